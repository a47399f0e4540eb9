"""Generated source, plans and reports as files, so that a change of them is seen in review."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import tncompiler as tnc
from tncompiler.function import NumpyFunction
from tncompiler.ir.expressions import Expr
from tncompiler.ir.network import networks_of

Golden = Callable[[str, str], None]


def tt_layer() -> Expr:
    b, i1, i2, o1, o2, r = tnc.indices("b i1 i2 o1 o2 r", i1=28, i2=28, o1=16, o2=16, r=8)
    x = tnc.input("x", b, i1, i2)
    cores = tnc.param("G1", i1, o1, r), tnc.param("G2", r, i2, o2)
    return tnc.relu(tnc.contract(x, *cores, out=(b, o1, o2)) + tnc.param("bias", o1, o2))


def cp_layer() -> Expr:
    b, i1, i2, o1, o2, r = tnc.indices("b i1 i2 o1 o2 r", i1=8, i2=8, o1=8, o2=8, r=16)
    factors = [tnc.param(f"F_{i.name}", i, r) for i in (i1, i2, o1, o2)]
    return tnc.contract(tnc.input("x", b, i1, i2), *factors, out=(b, o1, o2))


def traces_and_hostile_names() -> Expr:
    i, j, k = tnc.Index("class", 3), tnc.Index("a'b; import os", 3), tnc.Index("α β")
    A, x = tnc.param("A", i, j), tnc.input("x", k, i)
    return tnc.softmax(x * tnc.contract(A, tnc.delta(i, j), out=()), over=i)


NETWORKS = {
    "tt_layer": tt_layer,
    "cp_layer": cp_layer,
    "hostile_names": traces_and_hostile_names,
}


def compiled(name: str) -> NumpyFunction:
    function: NumpyFunction = tnc.compile(NETWORKS[name](), framework="numpy", seed=0)
    return function


@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_golden_source(name: str, backend: str, part: str, golden: Golden) -> None:
    golden(f"{name}.{backend}.{part}.py.txt", compiled(name).source(part=part, backend=backend))


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_plan(name: str, golden: Golden) -> None:
    golden(f"{name}.plan.json", compiled(name).plan().to_json() + "\n")


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_stages(name: str, golden: Golden) -> None:
    """Every stage as text: expression, logical program, networks, plan, scheduled program."""
    function = compiled(name)
    logical = function.compilation.logical(function.compilation.default_dtypes("float32"))
    stages = {
        "expression": NETWORKS[name]().to_text(),
        "logical program": logical.to_text(),
        "networks": "\n".join(network.to_text() for network in networks_of(logical)),
        "plan": function.plan().to_text(),
        "scheduled program": function.program().to_text(),
    }
    golden(f"{name}.stages.txt", "\n\n".join(f"# {k}\n{v}" for k, v in stages.items()) + "\n")


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_explain(name: str, golden: Golden) -> None:
    function = compiled(name)
    free = {symbol: 64 for symbol in function.compilation.free_symbols}
    golden(f"{name}.explain.txt", function.explain(free, part="step"))
