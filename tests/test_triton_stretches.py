"""Programs that are no single chain: stretches of them are, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import tncompiler as tnc
from tests.fuzz import check_network
from tests.networks import fuzzed_network, random_network
from tests.test_triton import TOLERANCE, relative_error
from tncompiler.backends.triton import stretches
from tncompiler.backends.triton.actions import Launch, count_launches, made_by
from tncompiler.backends.triton.bundle import Bundle
from tncompiler.backends.triton.chain import renames
from tncompiler.backends.triton.fuse import fuse, program_low_dtype
from tncompiler.backends.triton.launches import LaunchPlan, plan_launches, planned_us
from tncompiler.backends.triton.stretches import Refused, cut_actions
from tncompiler.ir.function_body import expand_functions
from tncompiler.ir.program import Program


def layer(x: tnc.Expr, name: str, ins: Sequence[tnc.Index], outs: Sequence[tnc.Index]) -> tnc.Expr:
    """A matrix product operator of two cores and bond 4."""
    bond = tnc.Index(f"{name}r", 4)
    G1 = tnc.param(f"{name}G1", ins[0], outs[0], bond)
    G2 = tnc.param(f"{name}G2", bond, ins[1], outs[1])
    return tnc.contract(x, G1, G2, out=(x.indices[0], *outs))


def two_layers(between: bool = True) -> tnc.Expr:
    """A layer, a softmax over all its results, another layer."""
    b = tnc.Index("b")
    ins, middle, outs = (tnc.indices(f"{k}1 {k}2", **{f"{k}1": 8, f"{k}2": 6}) for k in "imo")
    h = layer(tnc.input("x", b, *ins), "first", ins, middle)
    if between:
        whole = tnc.Index("m", 48)
        h = tnc.softmax(h.merge(middle, whole), over=whole).split(whole, middle)
    return tnc.tanh(layer(h, "second", middle, outs))


def programs(expr: tnc.Expr, dtype: str = "float32") -> tuple[Program, Program]:
    compilation = tnc.compile(expr, backend="triton", dtype=dtype).compilation
    wrt = tuple(leaf.name for leaf in (*compilation.inputs, *compilation.params))
    dtypes, nominal = compilation.default_dtypes(dtype), compilation.nominal({"b": 4096})
    made = compilation.training_programs(dtypes, nominal, wrt, "triton")
    return made.forward, made.backward


def chains(actions: Sequence[Launch]) -> int:
    return sum(isinstance(action, Bundle) for action in actions)


def test_a_softmax_stands_between_two_chains() -> None:
    """the maximum is a launch of its own; what was eight launches and fifteen is four and two"""
    for program, most in zip(programs(two_layers()), (4, 2), strict=True):
        plan = plan_launches(program)
        alone = LaunchPlan(program, fuse(program, program_low_dtype(program)))
        assert chains(plan.actions) >= 1
        assert planned_us(plan) < planned_us(alone)
        assert count_launches(plan.actions) <= most < count_launches(alone.actions)


def test_two_layers_that_fit_are_one_chain() -> None:
    forward, backward = programs(two_layers(between=False))
    assert count_launches(plan_launches(forward).actions) == 1
    assert chains(plan_launches(backward).actions) == 1


def test_layers_that_do_not_fit_together_are_a_chain_each(monkeypatch: pytest.MonkeyPatch) -> None:
    b = tnc.Index("b")
    ins, middle, outs = (tnc.indices(f"{k}1 {k}2", **{f"{k}1": 8, f"{k}2": 6}) for k in "imo")
    h = tnc.tanh(layer(tnc.input("x", b, *ins), "first", ins, middle))
    forward, _ = programs(layer(h, "second", middle, outs))
    resident = 2 * (8 * 8 * 4)  # both cores of a layer, padded
    monkeypatch.setattr("tncompiler.backends.triton.chain.MAX_RESIDENT", resident + 8)
    assert chains(plan_launches(forward).actions) == 2


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_stretches_agree_with_float64(dtype: torch.dtype) -> None:
    ours = tnc.compile(two_layers(), backend="triton", seed=0).to(dtype)
    exact = tnc.compile(two_layers(), backend="torch", seed=0, dtype="float64")
    with torch.no_grad():
        for mine, theirs in zip(ours.parameters(), exact.parameters(), strict=True):
            theirs.copy_(mine)
    x = torch.randn(5, 8, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    z = x.double().requires_grad_()
    x.requires_grad_()
    y, wanted = ours(x), exact(z)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    y.backward(cotangent)
    wanted.backward(cotangent.double())
    pairs = [(y, wanted), (x.grad, z.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(ours.parameters(), exact.parameters(), strict=True)]
    assert max(relative_error(*pair) for pair in pairs) <= 4 * TOLERANCE[dtype]


def test_what_is_held_on_chip_is_made_again_and_what_is_written_is_saved() -> None:
    """of the first layer, its result; of the softmax, what the launches beside leave"""
    forward, backward = programs(two_layers())
    actions = plan_launches(forward).actions
    written = {value.name for a in actions if isinstance(a, Bundle) for value in a.outputs}
    written |= {a.out.name for a in actions if not isinstance(a, Bundle)}
    saved = {a.value.name for a in backward.arguments if a.kind == "saved"}
    assert saved
    assert saved <= written


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Plans are cut into as many chains as can be; the list gets how many each has."""
    found: list[int] = []

    def most_chains(actions: Sequence[Launch], program: Program, sizes: object = None) -> float:
        return -float(chains(actions))

    def as_cut(program: Program, refused: Refused) -> LaunchPlan:
        program = expand_functions(program)
        plan = LaunchPlan(program, cut_actions(program, program_low_dtype(program)))
        found.append(chains(plan.actions))
        return plan

    monkeypatch.setattr(stretches, "predicted_us", most_chains)
    monkeypatch.setattr("tncompiler.backends.triton.emit.plan_launches", as_cut)
    return found


def test_random_networks_in_stretches_agree_with_the_oracle(eager: list[int]) -> None:
    for seed in range(60):
        check_network(random_network(seed), ("triton",))
    assert max(eager) > 1
    assert sum(eager) > 20


def test_a_program_has_at_most_so_many_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    b, n = tnc.Index("b"), tnc.Index("n", 8)
    h = tnc.input("x", b, n)
    for k in range(60):
        m = tnc.Index(f"n{k}", 8)
        h = tnc.softmax(tnc.contract(h, tnc.param(f"A{k}", h.indices[1], m), out=(b, m)), over=m)
    forward, _ = programs(h)
    monkeypatch.setattr(stretches, "MOST_CUTS", 20)
    assert len(stretches._places(forward)) == 22
    made = {step.out.name for step in forward.steps}
    done = [name for action in cut_actions(forward, None) for name in made_by(action)]
    assert set(done) <= made
    assert forward.outputs[0] in done


def test_a_value_that_two_launches_make_has_two_kernels() -> None:
    """both stretches need a value of parameters alone; one kernel had stood in for the other"""
    check_network(fuzzed_network(3003949), ("triton",))


def origin(name: str, program: Program) -> str:
    """What a value is a cast or a renaming of."""
    while name in program.producers and renames(program.producers[name]):
        (name,) = program.producers[name].operands
    return name


def test_numbers_and_casts_cross_a_cut_for_nothing() -> None:
    """a cast of a parameter that both stretches read is made in each"""
    forward, _ = programs(two_layers(), "float16")
    params = {a.value.name for a in forward.arguments if a.kind == "param"}
    for position in range(1, len(forward.steps)):
        stretch = stretches._Stretches(forward)(position, len(forward.steps))
        saved = [a.value for a in stretch.arguments if a.kind == "saved"]
        read = {n for s in stretch.steps for n in s.operands}
        assert all(value.name in read for value in saved)
        assert not [v for v in saved if v.dtype == "float32" and origin(v.name, forward) in params]
