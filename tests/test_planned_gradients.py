"""Gradients on trees of their own: right on every network, cheaper where chosen, only if asked for.

`any_trees` takes the gradients of every network from random trees, so that rarely chosen code runs
on the fuzzer's networks: shared leaves, hyperedges, traces, broadcasts, complex numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import tncompiler as tnc
import tncompiler.training
from tests.fuzz import check_network
from tests.networks import Case, fuzzed_network, random_network
from tncompiler.compiler import Compilation
from tncompiler.ir.passes import MERGING_PASSES, run_passes
from tncompiler.ir.passes.adjoint import GradientOrder, adjoint, reachable_from
from tncompiler.ir.program import Contract, Program
from tncompiler.planning.candidates import Network, candidate_orders
from tncompiler.planning.choose import choose_orders, networks_of
from tncompiler.planning.cost import program_cost
from tncompiler.planning.gradients import Sets, best_gradients
from tncompiler.planning.machine import as_machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.replan import choose_gradients, joint_cost
from tncompiler.planning.schedule import schedule
from tncompiler.planning.tree_cost import tree_cost

FLOPS = PlanOptions(minimize="flops")
RATES = as_machine("reference").planning
NETWORKS = 60


# ---------------------------------------------------------------------------- random trees


def any_trees(program: Program, wrt: tuple[str, ...], seed: int = 0) -> dict[str, GradientOrder]:
    """For every network without scalar factors, each gradient in a random order of its own."""
    active = reachable_from(program, wrt)
    rng = np.random.default_rng(seed)
    found = {}
    for step in program.steps:
        operands = step.operands if isinstance(step.op, Contract) else ()
        if len(operands) < 2 or not all(step.op.inputs):
            continue
        wanted = [k for k, name in enumerate(operands) if name in active]
        pairs: list[tuple[int, int]] = []
        results = {}
        for operand in wanted:
            left = [k for k in range(len(operands) + 1) if k != operand]
            while len(left) > 1:
                a, b = (left.pop(int(rng.integers(len(left)))) for _ in range(2))
                pairs.append((a, b))
                left.append(len(operands) + len(pairs))
            (results[operand],) = left
        if wanted:
            found[step.out.name] = GradientOrder(step, tuple(pairs), results)
    return found


@pytest.fixture
def random_gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every training program takes all gradients from random trees; counts those programs."""
    used: list[int] = []

    def chosen(program: Program, orders: Any, nominal: Any, options: Any, wrt: Any) -> Any:
        return any_trees(program, wrt, seed=len(program.steps))

    def last(program: Program, *_: Any) -> int:
        used.append(len(program.steps))
        return -len(used)

    monkeypatch.setattr(tncompiler.training, "replannable", lambda *_: True)
    monkeypatch.setattr(tncompiler.training, "choose_gradients", chosen)
    monkeypatch.setattr(tncompiler.training, "joint_cost", last)
    yield used


@pytest.mark.parametrize("chunk", range(5))
def test_gradients_from_random_trees_on_fuzzed_networks(
    random_gradients: list[int], chunk: int
) -> None:
    with np.errstate(all="ignore"):
        for seed in range(chunk, NETWORKS, 5):
            check_network(fuzzed_network(seed))
    assert random_gradients


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_gradients_from_random_trees_on_large_networks(
    random_gradients: list[int], dtype: str
) -> None:
    with np.errstate(all="ignore"):
        for seed in range(25):
            check_network(random_network(seed, 14, dtype=dtype))
    assert random_gradients


def test_a_wrong_gradient_order_is_seen(random_gradients: list[int], monkeypatch: Any) -> None:
    """The check fails where two gradients of one shape are exchanged."""

    def wrong(program: Program, wrt: tuple[str, ...]) -> dict[str, GradientOrder]:
        (order,) = any_trees(program, wrt).values()
        first, second = order.results.values()
        exchanged = dict(zip(order.results, (second, first), strict=True))
        name = order.network.out.name
        return {name: GradientOrder(order.network, order.pairs, exchanged)}

    i, j = tnc.indices("i j", size=3)
    y = tnc.input("a", i, j) * tnc.input("b", i, j)
    case = _case((y,))
    check_network(case)
    monkeypatch.setattr(tncompiler.training, "replannable", lambda *_: True)
    monkeypatch.setattr(
        tncompiler.training, "choose_gradients", lambda p, o, n, opt, wrt: wrong(p, wrt)
    )
    with pytest.raises(AssertionError, match="gradient"):
        check_network(case)


def _case(outputs: tuple[Any, ...]) -> Case:
    rng = np.random.default_rng(0)
    leaves = {leaf.name: leaf for output in outputs for leaf in output.leaves}
    arrays = {name: rng.standard_normal(leaf.shape) for name, leaf in leaves.items()}
    cotangents = tuple(rng.standard_normal(output.shape) for output in outputs)
    return Case(0, outputs, arrays, "float64", cotangents, tuple(arrays))


# ---------------------------------------------------------------------------- what is chosen


def tucker_layer(rank: int = 32, batch: int = 512) -> Any:
    """A layer for which streaming is best, and the dense gradient of the weight for its cores."""
    weight = tnc.formats.Tucker(rank, clamp=True).network((24, 32), (48, 64))
    legs = [i for i in weight.indices if i.name.startswith("i")]
    (rows,) = tnc.indices("b", size=batch)
    x = tnc.input("x", rows, *legs)
    return tnc.contract(x, weight, out=(rows, *(i for i in weight.indices if i not in legs)))


def compiled(expr: Any, options: PlanOptions = FLOPS) -> tuple[Compilation, tuple[str, ...]]:
    compilation = Compilation(expr, None, {}, options, parameters_known=False)
    return compilation, compilation.default_dtypes("float32")


def cores(expr: Any) -> tuple[str, ...]:
    return tuple(leaf.name for leaf in expr.leaves if leaf.kind == "param")


def step_flops(compilation: Compilation, wrt: tuple[str, ...]) -> int:
    joint = compilation.joint(compilation.default_dtypes("float32"), {}, wrt)
    return int(program_cost(joint, {}).flops)


def without_own_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tncompiler.training, "choose_gradients", lambda *_: {})


def test_the_weights_gradient_is_shared_by_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tucker_layer()
    planned = step_flops(compiled(layer)[0], cores(layer))
    without_own_trees(monkeypatch)
    reversed_ = step_flops(compiled(layer)[0], cores(layer))
    assert planned < 0.8 * reversed_


def test_the_gradient_of_the_data_keeps_to_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every leaf active, reversing is (nearly) the best there is."""
    layer = tucker_layer()
    wrt = ("x", *cores(layer))
    planned = step_flops(compiled(layer)[0], wrt)
    without_own_trees(monkeypatch)
    assert planned <= step_flops(compiled(layer)[0], wrt)


def random_cases() -> Iterator[tuple[Any, Network]]:
    """Networks whose tree costs what its sets do: with windows it does not, and they reverse."""
    rng = np.random.default_rng(1)
    for seed in range(60):
        case = random_network(seed, 7, dtype="float64")
        wrt = tuple(name for name in case.wrt if rng.random() < 0.5)
        compilation = Compilation(case.outputs, None, case.given, FLOPS, False)
        program = compilation.logical(compilation.default_dtypes("float64"))
        sizes = {symbol: 3 for symbol in case.sizes}
        for network in networks_of(program, sizes, wrt).values():
            if network.active and len(network.terms) > 2 and not network.relations:
                yield program, network


@pytest.mark.parametrize("minimize", ["time", "flops"])
def test_what_is_chosen_is_never_dearer_than_reversing(minimize: str) -> None:
    options = PlanOptions(minimize=minimize)
    seen = 0
    for _, network in random_cases():
        orders = tuple(candidate_orders(network, 8, 0))
        sets = Sets(network, minimize, RATES)
        for pairs in orders:
            chosen = best_gradients(sets, pairs, orders, options)
            assert chosen.cost <= tree_cost(network, pairs, minimize, RATES) * (1 + 1e-9)
            seen += 1
    assert seen > 20


def test_reversing_costs_what_the_tree_says() -> None:
    """The cost of sets is that of the tree with its adjoint, if all come from one tree."""
    for _, network in random_cases():
        for pairs in candidate_orders(network, 8, 0):
            sets = Sets(network, "flops", RATES)
            made: dict[int, tuple[int, int]] = {}
            tree = sets.tree(pairs)
            wanted = [sets.value, *map(sets.gradient, sorted(network.active))]
            total = sum(sets.extend(made, tensors, tree) for tensors in wanted)
            assert total == pytest.approx(tree_cost(network, pairs, "flops", RATES))


# ---------------------------------------------------------------------------- only if asked for


def test_leaves_without_gradient_cost_nothing() -> None:
    layer = tucker_layer(8, 16)
    names = cores(layer)
    compilation, dtypes = compiled(layer)
    one = compilation.training(dtypes, {}, names[:1])
    assert len(one.backward.outputs) == 1
    every = step_flops(compilation, ("x", *names))
    assert step_flops(compilation, names[:1]) < step_flops(compilation, names) < every


def test_frozen_cores_and_data_are_left_out_of_the_choice() -> None:
    """With one core active, the whole step costs its environment and one small product."""
    sites, bond, physical = 4, 8, 4
    names = [f"b{k}" for k in range(1, sites)]
    bonds = dict(zip(names, tnc.indices(" ".join(names), size=bond), strict=True))
    legs = tnc.indices(" ".join(f"p{k}" for k in range(sites)), size=physical)
    chain = []
    for k in range(sites):
        own = [bonds[n] for n in (f"b{k}", f"b{k + 1}") if n in bonds]
        chain += [tnc.param(f"A{k}", *own, legs[k]), tnc.input(f"x{k}", legs[k])]
    compilation, _ = compiled(tnc.contract(*chain, out=()))
    forward = compilation.scheduled(compilation.default_dtypes("float32"), {})[0]
    alone = int(program_cost(forward, {}).flops)
    assert step_flops(compilation, ("A0",)) < 1.5 * alone
    assert step_flops(compilation, tuple(f"A{k}" for k in range(sites))) > 1.5 * alone


@pytest.mark.parametrize(("training", "wrt"), [(False, ()), ("auto", ("x",)), (True, ("x",))])
def test_training_says_what_is_counted(training: Any, wrt: tuple[str, ...]) -> None:
    """False: the value; "auto": what the call asks for; True: gradients even without a call."""
    compilation, _ = compiled(tucker_layer(), PlanOptions(minimize="flops", training=training))
    assert compilation._planned_for(("x",)) == wrt
    every = tuple(leaf.name for leaf in compilation.ordered)
    assert compilation._planned_for(()) == (every if training is True else ())


def test_nothing_is_planned_where_nothing_is_asked_for() -> None:
    compilation, dtypes = compiled(tucker_layer())
    program = compilation.logical(dtypes)
    orders = choose_orders(program, {}, FLOPS)
    assert not choose_gradients(program, orders, {}, FLOPS, ())


def test_memory_and_given_searches_reverse() -> None:
    layer = tucker_layer()
    for options in (PlanOptions(minimize="memory"), PlanOptions(search="greedy")):
        compilation, dtypes = compiled(layer, options)
        program = compilation.logical(dtypes)
        _, orders = compilation.scheduled(dtypes, {}, cores(layer))
        assert not choose_gradients(program, orders, {}, options, cores(layer))


# ---------------------------------------------------------------------------- sharing


def test_what_the_forward_pass_makes_is_not_made_again() -> None:
    """Orders that reverse the tree, written out, give the steps that reversing gives."""
    layer = tucker_layer(8, 16)
    compilation, dtypes = compiled(layer)
    program = compilation.logical(dtypes)
    wrt = ("x", *cores(layer))
    _, orders = compilation.scheduled(dtypes, {}, wrt)
    ordered, _ = schedule(program, {}, FLOPS, orders)
    ordered = run_passes(ordered, MERGING_PASSES, scheduled=True)
    (network,) = networks_of(program, {}, wrt).values()
    sets = Sets(network, "flops", RATES)
    ((name, pairs),) = orders.items()
    same = best_gradients(sets, pairs, (), PlanOptions(minimize="flops", search="greedy"))
    order = GradientOrder(program.producers[name], same.pairs, same.results)
    written = compilation._differentiated(ordered, wrt, {}, {name: order})
    reversed_ = compilation._differentiated(ordered, wrt, {})
    assert joint_cost(written, {}, FLOPS) == joint_cost(reversed_, {}, FLOPS) == same.cost


def test_an_order_for_values_that_are_gone_is_not_used() -> None:
    compilation, dtypes = compiled(tucker_layer(8, 16))
    program = compilation.logical(dtypes)
    orders: Mapping[str, GradientOrder] = any_trees(program, ("x",))
    (name,) = orders
    renamed = GradientOrder(
        type(program.steps[0])(
            program.producers[name].out, program.producers[name].op, ("gone", "gone")
        ),
        orders[name].pairs,
        orders[name].results,
    )
    assert adjoint(program, ("x",), orders={name: renamed}) == adjoint(program, ("x",))
