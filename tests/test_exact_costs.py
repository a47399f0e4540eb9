"""Flops and peak are exact: compared with torch's flop counter, and with operations one by one.

torch counts matrix products only, so products without a sum and plain sums are compared with
numbers that count themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from torch.utils.flop_counter import FlopCounterMode

import tncompiler as tnc
from tests.networks import Case, random_network
from tests.test_plan_family import FORMATS, B, layer
from tncompiler.inspection import PARTS
from tncompiler.ir.attention import Attention
from tncompiler.ir.attention_body import body_of
from tncompiler.ir.matmul import is_matmul
from tncompiler.ir.program import (
    Contract,
    Convolve,
    Loop,
    Program,
    Relation,
    Scan,
    Step,
    operand_values,
    relations_of,
)
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.cost import program_cost, step_flops
from tncompiler.planning.memory import (
    live_terms,
    moments,
    nbytes,
    peak_bytes,
    peak_expression,
    step_peak,
)
from tncompiler.planning.slicing import Cut, apply_cuts

SIZES = (1, 3, 40)
MOST_POINTS = 20_000  # of a contraction that is counted point by point

# ---------------------------------------------------------------------------- torch's counter


def matmul_flops(program: Program, sizes: Binding) -> int:
    """What torch counts too: the flops of steps that are matrix products."""
    steps = (s for s in program.steps if isinstance(s.op, Contract) and is_matmul(s.op))
    return sum(step_flops(program, step).evaluate(sizes) for step in steps)


def torch_flops(module: torch.nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Counted flops of an inference call and of a training step."""
    with FlopCounterMode(display=False) as inference, torch.no_grad():
        module(x)
    with FlopCounterMode(display=False) as step:
        module(x.requires_grad_()).sum().backward()
    return inference.get_total_flops(), step.get_total_flops()


def short_layer(name: str) -> Any:
    """A layer whose sums are short: long ones are split, and torch counts what that adds."""
    if name != "LowRank":
        return layer(name)
    weight = tnc.formats.LowRank(64).network((384,), (256,))
    legs = [i for i in weight.indices if i.name.startswith("i")]
    out = (B, *(i for i in weight.indices if i not in legs))
    return tnc.contract(tnc.input("x", B, *legs), weight, out=out)


@pytest.mark.parametrize("name", FORMATS)
def test_flops_of_layers_are_those_that_torch_counts(name: str) -> None:
    module = tnc.compile(short_layer(name), backend="torch", seed=0)
    (leaf,) = module.compilation.inputs
    for size in SIZES:
        at = {B.size: size}
        x = torch.randn([evaluate(n, at) for n in leaf.shape])
        programs = [module.program({"b": size}, part) for part in ("forward", "step")]
        expected = tuple(matmul_flops(program, at) for program in programs)
        assert torch_flops(module, x) == expected
        assert expected[0] <= module.cost({"b": size}).flops


def test_torch_counts_what_is_not_there() -> None:
    """The comparison fails for another size."""
    module = tnc.compile(short_layer("LowRank"), backend="torch", seed=0)
    counted, _ = torch_flops(module, torch.randn(4, 384))
    assert counted != matmul_flops(module.program({"b": 4}), {B.size: 5})


# ---------------------------------------------------------------------------- numbers that count


class Counted:
    """A number that counts multiplications and additions of its kind."""

    multiplied = added = 0

    def __mul__(self, other: Counted) -> Counted:
        Counted.multiplied += 1
        return self

    def __add__(self, other: Counted) -> Counted:
        Counted.added += 1
        return self


def counted_flops(program: Program, sizes: Binding) -> int:
    """The operations of all contractions; a multiply-add counts 2, the first of a sum as well.

    A scan's are those of one position, at each; an attention's those of what it stands for.
    """
    total = 0
    for step in program.steps:
        if isinstance(step.op, Contract | Convolve) and step.op.inputs:
            total += _counted(program, step, sizes)
        elif isinstance(step.op, Scan):
            total += evaluate(step.op.size, sizes) * counted_flops(step.op.body, sizes)
        elif isinstance(step.op, Attention):
            total += counted_flops(body_of(step, operand_values(program, step)), sizes)
    return total


def _counted(program: Program, step: Step, sizes: Binding) -> int:
    op: Any = step.op
    arrays = []
    for value in operand_values(program, step):
        shape = tuple(evaluate(size, sizes) for size in value.shape)
        array = np.empty(shape, object)
        array.fill(Counted())
        arrays.append(array)
    Counted.multiplied = Counted.added = 0
    related = relations_of(op)
    carried = {label for labels in op.inputs for label in labels}
    carried |= {label for relation in related for label in relation.labels}
    once = tuple(label for label in dict.fromkeys(op.output) if label in carried)
    total = _loop_over(op.inputs, once, arrays, [_numbered(r, sizes) for r in related])
    results = len(total)
    multiplied, added = Counted.multiplied, Counted.added
    if not carried - set(once):
        return multiplied
    return 2 * multiplied if len(arrays) > 1 else added + results


def _numbered(relation: Relation, sizes: Binding) -> Relation:
    source, out, kernel = (evaluate(size, sizes) for size in relation.sizes)
    return replace(relation, sizes=(source, out, kernel))


def _loop_over(
    wires: Any, out: Any, arrays: list[np.ndarray], related: list[Relation]
) -> dict[tuple[int, ...], Counted]:
    """The contraction, one point of its index space after the other.

    A window's source is where its other two labels say, so it is no axis of that space; taps that
    fall on the zeros around it are done as well.
    """
    extents: dict[int, int] = {}
    for labels, array in zip(wires, arrays, strict=True):
        extents.update(zip(labels, array.shape, strict=True))
    for relation in related:
        extents.update(zip(relation.labels, relation.sizes, strict=True))
    sources = {relation.labels[0] for relation in related}
    labels = [label for label in extents if label not in sources]
    total: dict[tuple[int, ...], Counted] = {}
    for point in np.ndindex(*(extents[label] for label in labels)):
        at = dict.fromkeys(sources, 0) | dict(zip(labels, point, strict=True))
        factors = [
            array[tuple(at[label] for label in own)]
            for own, array in zip(wires, arrays, strict=True)
        ]
        product = functools.reduce(lambda a, b: a * b, factors)
        key = tuple(at[label] for label in out)
        total[key] = total[key] + product if key in total else product
    return total


def corpus() -> Iterator[Case]:
    """Networks with a free batch and without; small enough to be counted point by point."""
    for seed in range(60):
        yield random_network(seed, 6, dtype="float64")


def points(program: Program, sizes: Binding) -> int:
    return max((step_flops(program, s).evaluate(sizes) for s in program.steps), default=0)


@pytest.mark.parametrize("part", PARTS)
def test_flops_are_the_operations_done_one_by_one(part: str) -> None:
    seen = 0
    for case in corpus():
        f = tnc.compile(case.outputs, framework="numpy", dtype="float64", sizes=case.given, seed=0)
        for size in (0, 1, 2, 5) if f.compilation.free_symbols else (1,):
            sizes = {symbol: size for symbol in f.compilation.free_symbols}
            program = f.program(sizes, part)
            if points(program, sizes) > MOST_POINTS:
                continue
            given = {symbol.name: n for symbol, n in sizes.items()}
            assert f.cost(given, part).flops == counted_flops(program, sizes), case.seed
            seen += program_cost(program, sizes).at(sizes).flops > 0
    assert seen > 30


def test_counting_sees_another_contraction() -> None:
    i, j, k = tnc.indices("i j k", i=2, j=3, k=4)
    f = tnc.compile(tnc.input("A", i, j) @ tnc.input("B", j, k), framework="numpy")
    assert counted_flops(f.program(), {}) == 2 * 2 * 3 * 4 == f.flops
    g = tnc.compile(tnc.input("A", i, j) * tnc.input("B", j, k), framework="numpy")
    assert counted_flops(g.program(), {}) == 2 * 3 * 4 == g.flops
    h = tnc.compile(tnc.input("A", i, j).sum(j), framework="numpy")
    assert counted_flops(h.program(), {}) == 2 * 3 == h.flops


def test_counting_sees_scans_windows_and_attention() -> None:
    t, i, j, k, o = tnc.indices("t i j k o", t=5, i=3, j=6, k=2, o=5)
    f = tnc.compile(running(t, i), framework="numpy")
    assert counted_flops(f.program(), {}) == 5 * 2 * 3 * 3 == f.flops
    window = tnc.window(j, out=o, kernel=k)
    image, kernel = tnc.input("image", i, j), tnc.input("kernel", k)
    g = tnc.compile(tnc.contract(window, image, kernel, out=(i, o)), framework="numpy")
    assert counted_flops(g.program(), {}) == 2 * 3 * 5 * 2 == g.flops
    h = tnc.compile(attention(t, j, i), framework="numpy")
    assert counted_flops(h.program(), {}) >= 2 * (5 * 6 * 3) * 2
    assert counted_flops(h.program(), {}) == h.flops


def running(over: tnc.Index, i: tnc.Index) -> tnc.Expr:
    """A state multiplied by a matrix at every position."""
    weight = tnc.input("W", i, tnc.Index("j", i.size))
    state, x = tnc.input("h", i), tnc.input("x", over, i)
    last, _ = tnc.scan(lambda h, p: ((h @ weight)(i) + p, None), state, x, over=over)
    return last


def attention(queries: tnc.Index, keys: tnc.Index, d: tnc.Index) -> tnc.Expr:
    q, k, v = (
        tnc.input(name, index, d) for name, index in (("q", queries), ("k", keys), ("v", keys))
    )
    return tnc.attention(q, k, v, dim=d)


# ---------------------------------------------------------------------------- symbols


@pytest.mark.parametrize("part", PARTS)
def test_symbolic_costs_are_those_of_every_size(part: str) -> None:
    """One program, its costs in the free sizes, and at numbers: flops, bytes and peak."""
    seen = 0
    for case in corpus():
        f = tnc.compile(case.outputs, framework="numpy", dtype="float64", sizes=case.given, seed=0)
        if not f.compilation.free_symbols:
            continue
        program = f.program(None, part)
        symbolic, peak = (
            program_cost(program, f.compilation.nominal({})),
            peak_expression(live_terms(program)),
        )
        for size in (0, 1, 2, 7, 1000):
            sizes = {symbol: size for symbol in f.compilation.free_symbols}
            cost = symbolic.at(sizes)
            assert cost.flops == sum(step_flops(program, s).evaluate(sizes) for s in program.steps)
            assert substituted(symbolic.flops, sizes) == cost.flops
            assert substituted(symbolic.bytes_read, sizes) == cost.bytes_read
            assert substituted(peak, sizes) == peak_bytes(program, sizes)
            seen += 1
    assert seen > 30


def test_the_peak_of_a_step_in_its_sizes() -> None:
    """Outputs and saved values stay alive until the end; as an expression, and at numbers."""
    seen = 0
    for case in corpus():
        f = tnc.compile(case.outputs, framework="numpy", dtype="float64", sizes=case.given, seed=0)
        wrt = f._differentiable(None)
        if not f.compilation.free_symbols or not wrt:
            continue
        peak = f.peak_expression("step")
        cut = f.compilation.training(f._dtypes(), f.compilation.nominal({}), wrt)
        for size in (0, 1, 2, 7, 1000):
            sizes = {symbol: size for symbol in f.compilation.free_symbols}
            assert substituted(peak, sizes) == step_peak(cut, sizes)
            seen += 1
    assert seen > 30


def substituted(expression: Any, sizes: Binding) -> int:
    """By sympy's own rules, an independent way."""
    return int(sympy.sympify(expression).xreplace({s: sympy.Integer(n) for s, n in sizes.items()}))


def test_a_scan_leaves_nothing_alive_but_its_results() -> None:
    """A scan itself is no value: it takes no memory, and frees none."""
    t, i = tnc.indices("t i", t=5, i=3)
    program = tnc.compile(running(t, i) * 2.0, framework="numpy").program()
    alive: set[str] = set()
    for moment in moments(program):
        alive.update(moment.made)
        assert alive.issuperset(moment.freed)
        alive.difference_update(moment.freed)
    assert alive == set(program.outputs)


@pytest.mark.parametrize("make", ["scatter", "attention"])
def test_peaks_hold_what_steps_take_beside_their_values(make: str) -> None:
    i, d = tnc.indices("i d", i=7, d=3)
    x, ids = tnc.input("x", B, d), tnc.input("ids", B, dtype="int64")
    expr = x.scatter_add(ids, i) if make == "scatter" else attention(B, i, d)
    f = tnc.compile(expr, framework="numpy")
    program, peak = f.program(), f.peak_expression()
    for size in (0, 1, 40):
        at = {B.size: size}
        assert substituted(peak, at) == peak_bytes(program, at)
        result = nbytes(program.values[program.outputs[0]]).evaluate(at)
        assert size == 0 or peak_bytes(program, at) > result


@pytest.mark.parametrize("name", FORMATS)
def test_flops_and_peak_of_a_layer_in_its_batch(name: str) -> None:
    f = tnc.compile(layer(name), framework="numpy", seed=0)
    member = f.plans(100, 1000).member(128)
    for size in {member.low, 128, member.high}:
        cost = f.cost({"b": size})
        assert substituted(f.flops, {B.size: size}) == cost.flops
        assert substituted(f.peak_expression(), {B.size: size}) == cost.peak_bytes


@pytest.mark.parametrize("part", ["forward", "step"])
@pytest.mark.parametrize("width", [1, 3])
def test_peaks_of_loops_hold_all_levels_of_their_sums(part: str, width: int) -> None:
    """Sums of more than 16 blocks keep a sum of sums beside them, and so on; short blocks too."""
    i, j = tnc.indices("i j", i=5, j=4)
    x, weight = tnc.input("x", B, i), tnc.param("W", i, j)
    f = tnc.compile((x @ weight).sum(B), framework="numpy", seed=0)
    program = apply_cuts(f.program(None, part), [Cut("x", 0, width)])
    assert any(isinstance(step.op, Loop) for step in program.steps)
    peak = peak_expression(live_terms(program))
    seen = set()
    for size in (0, 1, 2, 16 * width, 16 * width + 1, 300 * width, 5_000 * width):
        at = {B.size: size}
        seen.add(peak_bytes(program, at))
        assert substituted(peak, at) == peak_bytes(program, at)
    assert len(seen) > 3
