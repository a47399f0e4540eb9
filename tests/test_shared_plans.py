"""Equal layers of a stack are planned once, whatever their tensors are called."""

from typing import Any

import pytest

import tncompiler as tnc
from tncompiler.compiler import Compilation
from tncompiler.ir.expressions import Expr
from tncompiler.planning import choose


def stack(layers: int, ranks: tuple[int, ...] = (3,)) -> Expr:
    b, i, j, k, m = tnc.indices("b i j k m", b=16, i=4, j=4, k=4, m=4)
    x: Expr = tnc.input("x", b, i, j)
    for number in range(layers):
        r = tnc.Index("r", ranks[number % len(ranks)])
        g, h = tnc.param(f"l{number}.G", i, k, r), tnc.param(f"l{number}.H", r, j, m)
        x = tnc.tanh(tnc.contract(x, g, h, out=(b, k, m))).rename({k: i, m: j})
    return x


def searches(monkeypatch: pytest.MonkeyPatch, expr: Expr) -> int:
    """How many networks are searched for an order, for a training step."""
    asked: list[Any] = []
    search = choose.best_order

    def counted(network: Any, *rest: Any) -> Any:
        asked.append(network)
        return search(network, *rest)

    monkeypatch.setenv("TNC_CACHE", "0")
    monkeypatch.setattr(choose, "best_order", counted)
    compilation = Compilation(expr, None, {}, None)
    names = tuple(leaf.name for leaf in expr.leaves)
    compilation.training_step(compilation.default_dtypes("float32"), {}, names)
    return len(asked)


def test_equal_layers_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = searches(monkeypatch, stack(2))  # the input of the first needs a gradient too
    assert one and searches(monkeypatch, stack(6)) == one
    assert searches(monkeypatch, stack(6, ranks=(3, 5))) == 2 * one


def test_equal_layers_have_equal_orders() -> None:
    plan = tnc.plan(stack(3))
    assert len(plan.networks) == 3
    assert len({network.pairs for network in plan.networks}) == 1
