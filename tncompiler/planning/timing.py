"""Predicted time of scheduled programs, step by step; it also chooses between NumPy and torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import sympy

from tncompiler.ir.matmul import is_matmul, matmul_form
from tncompiler.ir.program import (
    Contract,
    Loop,
    Map,
    Permute,
    Program,
    Step,
    Value,
    label_sizes,
    operand_values,
)
from tncompiler.ir.sizes import evaluate
from tncompiler.planning.machine import Machine
from tncompiler.planning.memory import ITEM_BYTES, is_view, within
from tncompiler.planning.rates import Rates

Sizes = Mapping[sympy.Symbol, int]

# maps that take no longer than reading and writing; all others count as transcendental
_AT_MEMORY_SPEED = frozenset(
    (
        *("add", "sub", "div", "neg", "reciprocal", "stop", "conj", "real", "imag", "abs"),
        *("project", "relu", "relu_gate", "maximum", "minimum", "where"),
        *("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"),
        *("power_of_two", "exponent", "shift_exponent", "decimal_exponent"),
    )
)
# below this a forward pass is left to torch's own autograd, whose start costs about 30 us less
TINY_US = 40.0
# what entering NumPy costs when its threads and torch's both keep spinning on the same cores
POOLS_FIGHT_US = 10_000.0


def program_us(program: Program, sizes: Sizes, rates: Rates) -> float:
    """Predicted microseconds of a program, and of entering it."""
    steps = (step_us(program, step, sizes, rates) for step in program.steps)
    return rates.call_us + math.fsum(steps)


def step_us(program: Program, step: Step, sizes: Sizes, rates: Rates) -> float:
    """Predicted microseconds of one step: the larger of arithmetic and traffic, and its start."""
    if is_view(step):
        return 0.0
    if isinstance(step.op, Loop):
        return _loop_us(step.op, sizes, rates)
    operands = operand_values(program, step)
    moved = float(sum(_bytes(value, sizes) for value in (*operands, step.out)))
    op = step.op
    if isinstance(op, Contract) and is_matmul(op):
        return rates.step_us + _product_us(op, operands, step.out, sizes, rates, moved)
    if isinstance(op, Permute):
        return rates.step_us + rates.gather_us(moved, _run(op, operands[0], sizes))
    if isinstance(op, Map) and op.function not in _AT_MEMORY_SPEED:
        elements = _bytes(step.out, sizes) / ITEM_BYTES[step.out.dtype]
        return rates.step_us + max(rates.function_us(elements), rates.pass_us(moved))
    return rates.step_us + rates.pass_us(moved)


def _loop_us(loop: Loop, sizes: Sizes, rates: Rates) -> float:
    """All blocks: the body, and writing its results where they belong."""
    inner = within(loop, sizes)
    body = loop.body
    made = sum(_bytes(body.values[name], inner) for name in body.outputs)
    block = math.fsum(step_us(body, step, inner, rates) for step in body.steps)
    starts = rates.step_us * len(body.outputs)
    return evaluate(loop.count, sizes) * (block + starts + rates.pass_us(2.0 * made))


def _product_us(
    op: Contract,
    operands: tuple[Value, ...],
    out: Value,
    sizes: Sizes,
    rates: Rates,
    moved: float,
) -> float:
    numbers = {k: evaluate(s, sizes) for k, s in label_sizes(op, operands, out).items()}
    form = matmul_form(op, numbers)
    batch, m, n, k = (
        math.prod(numbers[label] for label in group)
        for group in (form.batch, form.m, form.n, form.k)
    )
    time = max(rates.product_us(batch, m, n, k, out.dtype), rates.pass_us(moved))
    for copied, value in zip((form.a_copied, form.b_copied), operands, strict=True):
        if copied:
            size = _bytes(value, sizes)
            time += rates.gather_us(2.0 * size, float(ITEM_BYTES[value.dtype]))
    return time


def _bytes(value: Value, sizes: Sizes) -> int:
    return ITEM_BYTES[value.dtype] * math.prod(evaluate(size, sizes) for size in value.shape)


def _run(op: Permute, source: Value, sizes: Sizes) -> float:
    """Bytes that stay together in a permuting copy."""
    run, axis = ITEM_BYTES[source.dtype], len(op.axes) - 1
    while axis >= 0 and op.axes[axis] == axis:
        run *= evaluate(source.shape[axis], sizes)
        axis -= 1
    return float(run)


def blas_threads() -> int:
    """How many threads NumPy's BLAS was told to use; all cores if it was told nothing."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "")
        if text.isdigit():
            return int(text)
    return os.cpu_count() or 1


def faster_backend(
    program: Program, sizes: Sizes, machine: Machine, *, training: bool, threads: int
) -> str:
    """The CPU backend with the smaller predicted time; a training step is three times the work.

    ``threads`` is how many torch has.
    """
    work, entries = (3, 2) if training else (1, 1)
    times = {}
    for name in ("numpy", "torch"):
        rates = machine.libraries[name]
        entry = rates.call_us
        if name == "numpy" and max(threads, blas_threads()) > 1:
            entry += POOLS_FIGHT_US
        inside = program_us(program, sizes, rates) - rates.call_us
        times[name] = work * inside + entries * entry
    return min(times, key=times.__getitem__)
