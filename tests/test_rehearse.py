"""A second look at the best orders: copies, layouts and the backward pass as they will run."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

import tncompiler as tnc
from tests.test_machine import OWN
from tncompiler.compiler import Compilation
from tncompiler.ir.program import Program
from tncompiler.planning.budget import Budget
from tncompiler.planning.choose import best_order, choose_orders, networks_of
from tncompiler.planning.machine import load_machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.rehearse import _FORMS, SHORTLIST, Rehearsal, best_rehearsed
from tncompiler.planning.timing import program_us
from tncompiler.planning.ways import Ways

RATES = load_machine("reference").planning
WAYS = Ways(RATES)
B, I1, I2, O1, O2, R = tnc.indices("b i1 i2 o1 o2 r", b=2048, i1=12, i2=8, o1=16, o2=6, r=10)
LAYER = tnc.contract(
    tnc.input("x", B, I1, I2),
    tnc.param("G1", I1, O1, R),
    tnc.param("G2", R, I2, O2),
    out=(B, O1, O2),
)
STREAM, WEIGHT = ((0, 1), (2, 3)), ((1, 2), (0, 3))


def compiled(path: Any = None, **options: Any) -> tuple[Compilation, Program]:
    compilation = Compilation(LAYER, None, {}, PlanOptions(path=path, **options))
    return compilation, compilation.logical(compilation.default_dtypes("float32"))


def rehearsal(wrt: tuple[str, ...] = (), free: tuple[str, ...] = ()) -> Rehearsal:
    compilation, logical = compiled()
    (step,) = logical.steps
    return Rehearsal.of(logical, step, {}, compilation.options, wrt, free)


@pytest.mark.parametrize("pairs", [STREAM, WEIGHT, ((0, 2), (1, 3))])
def test_a_rehearsal_takes_the_time_of_the_compiled_program(pairs: Any) -> None:
    from tncompiler.planning.order import ssa_to_linear

    compilation, _ = compiled(ssa_to_linear(pairs, 3))
    dtypes = compilation.default_dtypes("float32")
    program, _ = compilation.scheduled(dtypes, {})
    assert rehearsal().time_us(pairs, WAYS) == pytest.approx(program_us(program, {}, RATES))
    wrt = ("x", "G1", "G2")
    joint = compilation.joint(dtypes, {}, wrt)
    assert rehearsal(wrt).time_us(pairs, WAYS) == pytest.approx(
        program_us(joint, {}, RATES), rel=0.06
    )


def test_gradients_cost() -> None:
    forward, one, both = (
        rehearsal(wrt).time_us(STREAM, WAYS) for wrt in ((), ("G2",), ("G1", "G2"))
    )
    assert forward < one < both


def test_products_that_are_kept_are_free() -> None:
    paid = rehearsal().time_us(WEIGHT, WAYS)
    kept = rehearsal(free=("G1", "G2")).time_us(WEIGHT, WAYS)
    assert kept < paid
    assert rehearsal(free=("G1", "G2")).time_us(STREAM, WAYS) <= rehearsal().time_us(STREAM, WAYS)


def test_the_fastest_of_the_shortlist_is_taken() -> None:
    look = rehearsal()
    times = {pairs: look.time_us(pairs, WAYS) for pairs in (STREAM, WEIGHT)}
    best = min(times, key=times.__getitem__)
    for costs in ((1.0, 1.5), (1.5, 1.0)):
        ranked = sorted(zip(costs, (STREAM, WEIGHT), strict=True))
        assert best_rehearsed(look, ranked, RATES, Budget()) == best


def test_orders_far_behind_are_not_looked_at() -> None:
    look = rehearsal()
    slower = max((STREAM, WEIGHT), key=lambda pairs: look.time_us(pairs, WAYS))
    faster = STREAM if slower == WEIGHT else WEIGHT
    assert best_rehearsed(look, [(1.0, slower), (2.1, faster)], RATES, Budget()) == slower
    many = [(1.0, slower)] * SHORTLIST
    assert best_rehearsed(look, [*many, (1.0, faster)], RATES, Budget()) == slower


def test_what_costs_more_than_another_takes_is_not_tried() -> None:
    """Of a forward pass: with gradients, values that are shared may make up for it."""
    tried = []

    def noted(look: Rehearsal) -> Rehearsal:
        time_us = look.time_us
        note = lambda pairs, *how: tried.append(pairs) or time_us(pairs, *how)  # noqa: E731
        return SimpleNamespace(wrt=look.wrt, time_us=note)  # type: ignore[return-value]

    times = {pairs: rehearsal().time_us(pairs, WAYS, math.inf) for pairs in (STREAM, WEIGHT)}
    first, second = sorted(times, key=times.__getitem__)
    ranked = [(times[first], first), (1.01 * _FORMS * times[first], second)]
    for wrt, expected in (((), [first]), (("x",), [first, second])):
        tried.clear()
        assert best_rehearsed(noted(rehearsal(wrt)), ranked, RATES, Budget()) == first
        assert tried == expected


def test_no_more_is_looked_at_than_there_is_time_for() -> None:
    """max_seconds: candidate ranking is cut too"""
    look = rehearsal()
    slower = max((STREAM, WEIGHT), key=lambda pairs: look.time_us(pairs, WAYS))
    faster = STREAM if slower == WEIGHT else WEIGHT
    over = Budget(deadline=0.0)
    assert best_rehearsed(look, [(1.0, slower), (1.0, faster)], RATES, over) == slower
    assert over.cut
    enough = Budget(deadline=0.0)
    assert best_rehearsed(look, [(1.0, slower)], RATES, enough) == slower
    assert not enough.cut


def test_a_copy_decides_between_orders_of_equal_flops() -> None:
    """A (i, p, q) summed with v over p or q first: only one order reads A as it stands."""
    i, p, q = tnc.indices("i p q", i=64, p=64, q=64)
    expr = tnc.contract(tnc.input("A", i, p, q), tnc.input("u", p), tnc.input("v", q), out=(i,))
    compilation = Compilation(expr, None, {}, PlanOptions())
    logical = compilation.logical(compilation.default_dtypes("float32"))
    (order,) = choose_orders(logical, {}, compilation.options).values()
    assert set(order[0]) in ({0, 2}, {1, 2})  # v first, or u and v; never u alone


def test_choices_are_those_of_the_machine_and_repeatable() -> None:
    compilation, logical = compiled()
    found = [choose_orders(logical, {}, compilation.options, ("x", "G1")) for _ in range(2)]
    assert found[0] == found[1]
    (network,) = networks_of(logical, {}, ("x",)).values()
    assert best_order(network, PlanOptions(machine=OWN)) == best_order(
        network, PlanOptions(machine=OWN)
    )


@pytest.mark.parametrize("asked", [{"minimize": "flops"}, {"minimize": "memory"}])
def test_flops_and_memory_are_not_rehearsed(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, logical = compiled()

    def never(*_: Any) -> float:
        raise AssertionError("rehearsed")

    monkeypatch.setattr(Rehearsal, "time_us", never)
    choose_orders(logical, {}, PlanOptions(**asked))
    choose_orders(logical, {}, PlanOptions(search="greedy"))
    with pytest.raises(AssertionError, match="rehearsed"):
        choose_orders(logical, {}, PlanOptions())


def test_axes_are_placed_where_copies_take_much() -> None:
    """batch 16 of a TT-matrix layer: copied plainly, the order that is best takes the most"""
    ins, outs = (8, 8, 12), (8, 16, 24)
    names = [*(f"i{k}" for k in range(3)), *(f"o{k}" for k in range(3)), "r0", "r1"]
    made = dict(zip(names, (*ins, *outs, 16, 16), strict=True))
    i0, i1, i2, o0, o1, o2, r0, r1 = tnc.indices(" ".join(names), **made)
    batch = tnc.Index("b", 16)
    layer = tnc.contract(
        tnc.input("x", batch, i0, i1, i2),
        tnc.param("G1", i0, o0, r0),
        tnc.param("G2", r0, i1, o1, r1),
        tnc.param("G3", r1, i2, o2),
        out=(batch, o0, o1, o2),
    )
    compilation = Compilation(layer, None, {}, PlanOptions())
    logical = compilation.logical(compilation.default_dtypes("float32"))
    (step,) = logical.steps
    look = Rehearsal.of(logical, step, {}, compilation.options, ())
    best, other = ((1, 2), (0, 4), (3, 5)), ((1, 2), (0, 3), (4, 5))
    plainly = {order: look.time_us(order, WAYS, least=1e9) for order in (best, other)}
    placed = {order: look.time_us(order, WAYS) for order in (best, other)}
    assert min(plainly, key=plainly.__getitem__) == other
    assert min(placed, key=placed.__getitem__) == best
    assert choose_orders(logical, {}, compilation.options)[step.out.name] == best
