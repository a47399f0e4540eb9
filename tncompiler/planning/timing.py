"""Predicted time of scheduled programs, step by step."""

from __future__ import annotations

import math
from collections.abc import ItemsView, Mapping, Sequence

import sympy

from tncompiler.ir.attention import Attention
from tncompiler.ir.attention_body import body_of
from tncompiler.ir.convolution import form_of
from tncompiler.ir.dtypes import ITEM_BYTES
from tncompiler.ir.matmul import form_of_product, is_matmul, is_product, matmul_form
from tncompiler.ir.program import (
    Concat,
    Contract,
    Convolve,
    Loop,
    Map,
    Networks,
    Permute,
    Program,
    Scan,
    Step,
    Unfold,
    Value,
    label_sizes,
    operand_values,
)
from tncompiler.ir.sizes import Size, evaluate, volume
from tncompiler.planning.copies import loops_of
from tncompiler.planning.memory import is_view, made_bytes, read_values, within
from tncompiler.planning.rates import PART_US, Rates
from tncompiler.planning.ways import copied_us, work_us
from tncompiler.planning.windows import convolution_us

Sizes = Mapping[sympy.Symbol, int]

# maps that take no longer than reading and writing; all others count as transcendental
_AT_MEMORY_SPEED = frozenset(
    (
        *("add", "sub", "div", "neg", "reciprocal", "stop", "conj", "real", "imag", "abs"),
        *("floordiv", "mod", "project", "relu", "relu_gate", "maximum", "minimum", "where"),
        *("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"),
        *("power_of_two", "exponent", "shift_exponent", "decimal_exponent"),
    )
)
# times as long as a copy takes an elementwise function to read an operand whose axes come otherwise
_SKEWED = 1.2
# bytes of an array that a core's own caches have no room for
FAR_BYTES = 2**21
# below this a forward pass is left to torch's own autograd, whose start costs about 30 us less
TINY_US = 40.0
# and a step whose programs take no longer: torch's own backward pass of batched products takes up
# to four times ours
TINY_STEP_US = 55.0
# a step of a library with threads of its own that takes as long is shared out among them; the time
# of what is shared out is divided by this share of the threads, of a library's and of our lanes
LONG_US = 50.0
SHARE, LANES_SHARE = 0.7, 0.9
# rows or columns of a product from which on a library's threads share it
NARROW = 32
# what a step takes longer where two threads take turns at the interpreter's lock
TURN_US = 25.0
# what a program waits until a library's threads are awake, beyond what its steps take in a loop
WAKE_US = 20.0
# to make NumPy's array of a tensor, or a tensor of an array
HOP_US = 1.0
# to hand blocks to other threads, and to wait for them: torch's, and our own
LANES_US = {"torch": 30.0, "numpy": 100.0}


def program_us(program: Program, sizes: Sizes, rates: Rates) -> float:
    """Predicted microseconds of a program's steps; infinite beyond floating point."""
    try:
        return math.fsum(step_us(program, step, sizes, rates) for step in program.steps)
    except OverflowError:
        return math.inf


def lanes_us(program: Program, sizes: Sizes, rates: Rates, start_us: float) -> float:
    """Predicted microseconds of a program whose loops are shared out among threads.

    ``start_us``: what handing out blocks takes, an entry of LANES_US.
    """

    def one(step: Step) -> float:
        alone = step_us(program, step, sizes, rates)
        op = step.op
        if not isinstance(op, Loop) or op.lanes == 1 or not alone:
            return alone
        blocks = evaluate(op.count, sizes)
        turns = TURN_US * sum(not is_view(inner) for inner in op.body.steps)
        threads = blocks / -(-blocks // op.lanes)
        return start_us + (alone + turns * blocks) / max(LANES_SHARE * threads, 1.0)

    try:
        return math.fsum(map(one, program.steps))
    except OverflowError:
        return math.inf


def step_us(program: Program, step: Step, sizes: Sizes, rates: Rates) -> float:
    """Predicted microseconds of one step: its start, its work, and memory for what it makes."""
    if is_view(step):
        return 0.0
    if isinstance(step.op, Loop | Scan):
        return _repeated_us(step.op, sizes, rates)
    operands = operand_values(program, step)
    if isinstance(step.op, Unfold):
        made = made_bytes(program, step).evaluate(sizes)
        return rates.step_us + rates.pass_us(2.0 * made) + rates.fresh_us(made)
    if isinstance(step.op, Convolve):
        numbers = {k: evaluate(s, sizes) for k, s in _labels(step.op, operands, step.out)}
        return convolution_us(form_of(step.op), numbers, step.out.dtype, rates)
    if isinstance(step.op, Attention):
        return program_us(body_of(step, operands), sizes, rates)
    work = _work_us(step, operands, sizes, rates)
    fresh = 0.0 if _takes_left_memory(step) else rates.fresh_us(_bytes(step.out, sizes))
    return rates.step_us + work + fresh


def _takes_left_memory(step: Step) -> bool:
    """Whether backends choose where a step's result is written: where it belongs, if it is a part,
    or memory that earlier arrays have left, if it is large (NumPy's maps in blocks alone)."""
    pair = isinstance(step.op, Contract) and len(step.op.inputs) == 2
    return pair or isinstance(step.op, Map | Permute)


def far_bytes(program: Program, sizes: Sizes) -> int:
    """The bytes that steps read and write of arrays beyond FAR_BYTES."""
    total = 0
    for step in program.steps:
        if isinstance(step.op, Loop | Scan):
            inner = far_bytes(step.op.body, within(step.op, sizes))
            total += evaluate(step.op.count, sizes) * inner
        elif not is_view(step):
            touched = (*read_values(step, operand_values(program, step)), step.out)
            found = (_bytes(value, sizes) for value in touched)
            total += sum(size for size in found if size > FAR_BYTES)
    return total


def _work_us(step: Step, operands: tuple[Value, ...], sizes: Sizes, rates: Rates) -> float:
    """The larger of arithmetic and traffic."""
    op = step.op
    read = read_values(step, operands)
    moved = float(sum(_bytes(value, sizes) for value in (*read, step.out)))
    traffic = rates.pass_us(moved)
    if isinstance(op, Contract) and len(op.inputs) == 2:
        numbers = {k: evaluate(s, sizes) for k, s in _labels(op, operands, step.out)}
        if is_product(op, numbers, step.out.dtype):
            return max(traffic, _product_us(op, numbers, step.out.dtype, rates))
        return max(traffic, rates.gather_us(moved, _sweep(op, numbers)))
    if isinstance(op, Permute):
        extents = [evaluate(size, sizes) for size in operands[0].shape]
        return _permuted_us(op.axes, extents, step.out.dtype, rates)
    if isinstance(op, Concat):
        return traffic + PART_US * len(operands)
    if isinstance(op, Map):
        traffic += _askew_us(op, operands, sizes, rates)
        if op.function not in _AT_MEMORY_SPEED:
            elements = _bytes(step.out, sizes) / ITEM_BYTES[step.out.dtype]
            return max(traffic, rates.function_us(elements))
    return traffic


def _askew_us(op: Map, operands: tuple[Value, ...], sizes: Sizes, rates: Rates) -> float:
    """What reading whole operands of a map takes more, whose axes come in another order than the
    result's: as long as to copy them, and libraries are slower at it."""
    total = 0.0
    for wires, value in zip(op.inputs, operands, strict=True):
        if wires != tuple(sorted(wires)) and len(set(wires)) == len(wires):
            order = tuple(wires.index(label) for label in sorted(wires))
            extents = [evaluate(size, sizes) for size in value.shape]
            total += _SKEWED * _permuted_us(order, extents, value.dtype, rates)
    return total


def _repeated_us(loop: Loop | Scan, sizes: Sizes, rates: Rates) -> float:
    """All blocks or positions: the body, and writing its results where they belong.

    Threads put a block of the first axis there as they make it.
    """
    inner = within(loop, sizes)
    first = loop.carried if isinstance(loop, Scan) else 0
    block = math.fsum(step_us(loop.body, step, inner, rates) for step in loop.body.steps)
    for name, axis in zip(loop.body.outputs[first:], loop.joined[first:], strict=True):
        value = loop.body.values[name]
        moved = 2.0 * _bytes(value, inner)
        made = loop.body.producers.get(name)
        lanes = isinstance(loop, Loop) and loop.lanes > 1
        if axis == 0 and lanes and made and _takes_left_memory(made):
            continue
        if axis:  # rows of the block lie apart in the whole
            run, item = volume(value.shape[axis:], inner), ITEM_BYTES[value.dtype]
            block += rates.step_us + rates.gather_us(moved, run, item)
        else:
            block += rates.step_us + rates.pass_us(moved)
    return evaluate(loop.count, sizes) * block


def _product_us(op: Contract, numbers: Mapping[int, int], dtype: str, rates: Rates) -> float:
    """A matrix product the way round that the backends write it."""
    form = matmul_form(op, numbers, stacks=True)
    lead = (*form.outer, *form.batch)
    swapped = op.output == form.natural()[1]
    groups = (lead, form.n, form.m) if swapped else (lead, form.m, form.n)
    batch, rows, columns = (math.prod(numbers[label] for label in group) for group in groups)
    inner = math.prod(numbers[label] for label in form.k)
    orders = (form.b_order, form.a_order) if swapped else (form.a_order, form.b_order)
    read = form_of_product(*orders, form.k)
    return work_us(rates, batch, rows, columns, inner, dtype, read)


def copy_us(program: Program, name: str, sizes: Sizes, rates: Rates) -> float:
    """Predicted microseconds to copy a value to where it lies in order: a permuting copy, where it
    is a permuted view."""
    source, axes = _memory_of(program, name)
    return _permuted_us(axes, [evaluate(size, sizes) for size in source.shape], source.dtype, rates)


def _memory_of(program: Program, name: str) -> tuple[Value, tuple[int, ...]]:
    """The value whose memory a permuted view is, and which of its axes each axis of the view is."""
    axes = tuple(range(len(program.values[name].shape)))
    step = program.producers.get(name)
    while step is not None and isinstance(step.op, Contract) and is_view(step):
        op = step.op
        if len(op.inputs) != 1 or len(op.inputs[0]) != len(op.output):
            break  # a number, or a diagonal
        axes = tuple(op.inputs[0].index(op.output[axis]) for axis in axes)
        name = step.operands[0]
        step = program.producers.get(name)
    return program.values[name], axes


def _labels(op: Networks, operands: tuple[Value, ...], out: Value) -> ItemsView[int, Size]:
    return label_sizes(op, operands, out).items()


def _sweep(op: Contract, numbers: Mapping[int, int]) -> int:
    """Elements of an elementwise product that one inner loop makes.

    It ends where an operand begins or ceases to be repeated.
    """
    count, pattern = 1, None
    for label in reversed(op.output):
        carried = [label in labels for labels in op.inputs]
        if pattern not in (None, carried):
            break
        count, pattern = count * numbers[label], carried
    return count


def _bytes(value: Value, sizes: Sizes) -> int:
    return ITEM_BYTES[value.dtype] * volume(value.shape, sizes)


def _permuted_us(axes: Sequence[int], extents: Sequence[int], dtype: str, rates: Rates) -> float:
    """A permuting copy of an array with these extents; of one that stays in order, a pass."""
    loops = loops_of(range(len(axes)), axes, extents)
    if loops is None:
        return rates.pass_us(2.0 * ITEM_BYTES[dtype] * math.prod(extents))
    return copied_us(rates, loops, dtype)


def threaded_us(
    program: Program, sizes: Sizes, rates: Rates, threads: int, *, products_only: bool = False
) -> float:
    """Predicted microseconds where a library shares long steps out among threads of its own.

    Narrow products it leaves to one; ``products_only``: and all but plain matrix products, as NumPy
    does. Rates that were measured with threads say so themselves.
    """
    if rates.threads > 1:
        return program_us(program, sizes, rates if threads > 1 else rates.one_thread)

    def one(step: Step) -> float:
        alone = step_us(program, step, sizes, rates)
        shared = alone > LONG_US and _is_shared(program, step, sizes, products_only)
        return alone / max(SHARE * threads, 1.0) if shared else alone

    try:
        return math.fsum(map(one, program.steps))
    except OverflowError:
        return math.inf


def is_faster_alone(program: Program, sizes: Sizes, rates: Rates) -> bool:
    """Whether a program takes no longer on one of its library's threads, so that no other need be
    woken; one that is too short for any operation to be shared needs no saying so."""
    if rates.threads == 1:  # what others would save was not measured
        return False
    alone = program_us(program, sizes, rates.one_thread)
    return TINY_US < alone < program_us(program, sizes, rates) + WAKE_US


def _is_shared(program: Program, step: Step, sizes: Sizes, products_only: bool) -> bool:
    op = step.op
    if not isinstance(op, Contract) or not is_matmul(op):
        return not products_only
    numbers = {
        k: evaluate(s, sizes) for k, s in _labels(op, operand_values(program, step), step.out)
    }
    form = matmul_form(op, numbers, stacks=True)
    if products_only and (form.outer or form.batch):
        return False
    sides = (math.prod(numbers[label] for label in group) for group in (form.m, form.n))
    return min(sides) >= NARROW
