"""Equal steps carried out as one: which, in what order, and with the same values and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.large import as_if_large
from tncompiler.compiler import Compilation
from tncompiler.ir.errors import InvalidProgram
from tncompiler.ir.program import Argument, Concat, Contract, Program, Step, Value
from tncompiler.ir.stacking import Member
from tncompiler.ir.validate import validate
from tncompiler.planning.machine import as_machine
from tncompiler.planning.memory import is_view
from tncompiler.planning.order import ssa_to_linear
from tncompiler.planning.rounds import order_in_rounds
from tncompiler.planning.stacking import (
    Run,
    earliest_levels,
    groups_of,
    latest_levels,
    runs_of,
    stack_alike,
)
from tncompiler.planning.timing import program_us

RATES = as_machine("reference").cpu.libraries["torch"]
SITES, BATCH, BOND, LETTERS = 24, 6, 4, 2


def chain(batch: int | None = BATCH) -> tuple[Any, tnc.PlanOptions]:
    """A matrix product state with an input at every site, and options for its order in rounds."""
    b = tnc.Index("b", batch) if batch else tnc.indices("b")[0]
    bonds = [tnc.Index(f"r{k}", BOND) for k in range(1, SITES)]
    tensors, terms = [], []
    for k in range(SITES):
        p = tnc.Index(f"p{k}", LETTERS)
        near = (*bonds[max(k - 1, 0) : k], p, *bonds[k : k + 1])
        tensors += [tnc.input(f"x{k}", b, p), tnc.param(f"G{k}", *near)]
        terms += [(b.name, p.name), tuple(index.name for index in near)]
    number = {name: k for k, name in enumerate(dict.fromkeys(n for term in terms for n in term))}
    wires = [frozenset(number[name] for name in term) for term in terms]
    sizes = {k: {"b": 8, "r": BOND, "p": LETTERS}[name[0]] for name, k in number.items()}
    pairs = order_in_rounds(wires, frozenset([number["b"]]), sizes)
    path = ssa_to_linear(pairs, len(terms))
    return tnc.contract(*tensors, out=(b,)), tnc.PlanOptions(path=path)


def along(xs: list[torch.Tensor], cores: list[torch.Tensor]) -> torch.Tensor:
    """The chain site by site."""
    left = xs[0] @ cores[0]
    for x, core in zip(xs[1:-1], cores[1:-1], strict=True):
        left = torch.einsum("br,bp,rps->bs", left, x, core)
    return torch.einsum("br,bp,rp->b", left, xs[-1], cores[-1])


def programs(batch: int | None = BATCH) -> tuple[Program, Program, Compilation]:
    """The forward program, and that with all gradients."""
    expr, options = chain(batch)
    compilation = Compilation(expr, None, {}, options)
    dtypes = compilation.default_dtypes("float32")
    nominal = compilation.nominal({})
    names = tuple(leaf.name for leaf in compilation.params)
    return (
        compilation.scheduled(dtypes, nominal)[0],
        compilation.joint(dtypes, nominal, names),
        compilation,
    )


def products(program: Program) -> int:
    """How many steps multiply."""
    pairs = (step for step in program.steps if isinstance(step.op, Contract))
    return sum(len(step.operands) == 2 for step in pairs)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("batch", [BATCH, None])
def test_values_and_gradients_of_a_chain_in_rounds(batch: int | None, backend: str) -> None:
    expr, options = chain(batch)
    with as_if_large(lanes=1):
        f = tnc.compile(expr, backend="torch", dtype="float64", plan=options, seed=0)
        xs = [torch.randn(BATCH, LETTERS, dtype=torch.float64) for _ in range(SITES)]
        if backend == "numpy":
            g = tnc.compile(expr, framework="numpy", dtype="float64", plan=options)
            g.parameters.update({k: p.detach().numpy() for k, p in f.named_parameters()})
        cores = [dict(f.named_parameters())[f"G{k}"] for k in range(SITES)]
        expected = along(xs, cores)
        seed = torch.randn(BATCH, dtype=torch.float64)
        wanted = torch.autograd.grad(expected, cores, seed)
        if backend == "numpy":
            value, pull = g.vjp(*(x.numpy() for x in xs))
            found = [torch.from_numpy(pull(seed.numpy())[f"G{k}"]) for k in range(SITES)]
            made = torch.from_numpy(value)
        else:
            made = f(*xs)
            found = list(torch.autograd.grad(made, cores, seed))
    torch.testing.assert_close(made, expected)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_chain_in_rounds_takes_a_product_a_round() -> None:
    forward, joint, _ = programs()
    apart = 2 * SITES - 1
    assert products(forward) < apart / 2 and products(joint) < 3 * apart / 2
    assert sum(isinstance(step.op, Member) for step in joint.steps) > SITES


def test_stacking_is_predicted_to_pay_and_is_done_once() -> None:
    expr, options = chain()
    compilation = Compilation(expr, None, {}, options)
    compilation.places_by_time = False
    program, _ = compilation.scheduled(compilation.default_dtypes("float32"), {})
    stacked = stack_alike(program, {}, RATES)
    assert program_us(stacked, {}, RATES) < program_us(program, {}, RATES)
    assert stack_alike(stacked, {}, RATES) is stacked


def test_few_or_different_steps_stay_as_they_are() -> None:
    expr = tnc.contract(*(tnc.param(f"A{k}", *tnc.indices("i j", i=3, j=3)) for k in range(2)))
    compilation = Compilation(expr, None, {}, None)
    program, _ = compilation.scheduled(compilation.default_dtypes("float32"), {})
    assert stack_alike(program, {}, RATES) is program


def test_steps_of_a_group_do_not_depend_on_one_another() -> None:
    _, joint, _ = programs()
    for levels in (earliest_levels(joint), latest_levels(joint)):
        for group in groups_of(joint, levels):
            below = {step.out.name for step in group}
            for step in joint.steps:
                if below.intersection(step.operands):
                    below.add(step.out.name)
            assert not any(below.intersection(step.operands) for step in group)


def test_second_derivatives_and_transforms_go_through_stacks() -> None:
    expr, options = chain()
    f = tnc.compile(expr, dtype="float64", plan=options, seed=1)
    xs = [torch.randn(BATCH, LETTERS, dtype=torch.float64) for _ in range(SITES)]
    xs[3].requires_grad_()
    (first,) = torch.autograd.grad(f(*xs).sum(), xs[3], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), f.G4)
    cores = [dict(f.named_parameters())[f"G{k}"] for k in range(SITES)]
    (plain,) = torch.autograd.grad(along(xs, cores).sum(), xs[3], create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(plain.square().sum(), f.G4)[0])
    moved = torch.func.jvp(lambda x: f(*xs[:3], x, *xs[4:]), (xs[3],), (torch.ones_like(xs[3]),))
    torch.testing.assert_close(moved[1], plain.detach().sum(1), rtol=1e-6, atol=1e-9)


def test_what_runs_at_other_times_is_not_stacked_together() -> None:
    """Equal products of parameters, of inputs and of cotangents, one level of them."""
    i, j = tnc.indices("i j", i=2, j=2)
    kinds = ["param", "input", "cotangent"] * 8
    arguments, steps = [], []
    for number, kind in enumerate(kinds):
        for side in "ab":
            value = Value(f"{side}{number}", (i.size, j.size), "float32", ("i", "j"))
            arguments.append(Argument(value, kind))
        out = Value(f"t{number}", (2, 2), "float32", ("i", "k"))
        op = Contract(((0, 1), (1, 2)), (0, 2))
        steps.append(Step(out, op, (f"a{number}", f"b{number}")))
    program = Program(tuple(arguments), tuple(steps), tuple(step.out.name for step in steps))
    groups = groups_of(program, earliest_levels(program))
    found = [{kinds[int(step.out.name[1:])] for step in group} for group in groups]
    assert found == [{"param"}, {"input"}, {"cotangent"}]


# ---------------------------------------------------------------------------- parts


def stack_of(size: int) -> Value:
    return Value("s", (size, 2), "float32", ("alike", "i"))


def test_runs_are_read_as_they_stand() -> None:
    stack, other = stack_of(8), Value("o", (8, 2), "float32", ("alike", "i"))

    def runs(*positions: int) -> list[Run | None]:
        return list(runs_of([(stack, k) for k in positions]))

    assert runs(*range(8)) == [Run(stack, 0, 1, 8)]
    assert runs(1, 3, 5, 7) == [Run(stack, 1, 2, 4)]
    assert runs(0, 3, 6) == [None, None, None]  # whole strides of three do not fit into eight
    assert runs(2, 1, 0) == [None, None, None]
    assert runs(0, 1, 2, 7) == [Run(stack, 0, 1, 3), None]
    assert list(runs_of([(stack, 0), (other, 1), None])) == [None, None, None]


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_a_run_lies_in_whole_strides(start: int) -> None:
    (run,) = runs_of([(stack_of(12), start + 4 * k) for k in range(3)])
    assert run is not None and run.first >= 0
    assert np.arange(12)[run.first :][: 4 * 3].reshape(3, 4)[:, start - run.first].tolist() == [
        start + 4 * k for k in range(3)
    ]


def test_a_member_that_is_not_there_is_refused() -> None:
    stack = stack_of(3)
    for position, shape in ((3, (2,)), (-1, (2,)), (0, (3,))):
        step = Step(Value("t", shape, "float32", ("i",)), Member(position), ("s",))
        with pytest.raises(InvalidProgram):
            validate(Program((Argument(stack, "input"),), (step,), ("t",)), scheduled=True)
    step = Step(Value("t", (2,), "float32", ("i",)), Member(2), ("s",))
    validate(Program((Argument(stack, "input"),), (step,), ("t",)), scheduled=True)
    assert is_view(step)


def test_an_order_in_rounds_joins_what_hangs_then_neighbours() -> None:
    """x0-x4 hang on G0-G4, a chain; B (0) is on all of them and on the output."""
    inputs = [{0, k} for k in (1, 2, 3, 4, 5)]
    cores = [{1, 6}, {6, 2, 7}, {7, 3, 8}, {8, 4, 9}, {9, 5}]
    terms = [frozenset(term) for term in (*inputs, *cores)]
    pairs = order_in_rounds(terms, frozenset([0]), dict.fromkeys(range(10), 2))
    hanging = ((0, 5), (1, 6), (2, 7), (3, 8), (4, 9))
    assert pairs == (*hanging, (10, 11), (13, 14), (12, 15), (16, 17))


def test_parts_that_touch_nothing_are_joined_last() -> None:
    terms = [frozenset(t) for t in ({0}, {1}, {0, 2}, {2})]
    pairs = order_in_rounds(terms, frozenset([1]), dict.fromkeys(range(3), 2))
    assert sorted(k for pair in pairs for k in pair) == list(range(6))


def test_stacks_are_joined_once() -> None:
    _, joint, _ = programs()
    joined = [step.operands for step in joint.steps if isinstance(step.op, Concat)]
    assert len(joined) == len(set(joined))
