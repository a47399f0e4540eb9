"""Write one contraction of at most two operands: views, a matrix product, a broadcast product.

The form is decided here, the same for all array backends; how an operation is spelled, by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tncompiler.backends.naming import comment_name
from tncompiler.ir.errors import InvalidProgram
from tncompiler.ir.matmul import MatmulForm, is_broad, is_product, matmul_form
from tncompiler.ir.program import Contract, Labels, Step, Value, label_names, label_sizes
from tncompiler.ir.sizes import Size

if TYPE_CHECKING:
    from tncompiler.backends.emitter import Emitter

# an operand of a product: its labels, the order in which it is read, and (lead, rows, columns)
Side = tuple[Value, Labels, Labels, tuple[Labels, Labels, Labels]]
# the size that decides about forms where only a call brings one
_NOMINAL = 128


def is_inexact(dtype: str) -> bool:
    """Whether sums of this dtype round."""
    return dtype.startswith(("float", "bfloat", "complex"))


def count(sizes: Sequence[Size], unknown: float) -> float:
    """The product of sizes; `unknown` if one of them is known only at run time."""
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if 0 in known or len(known) == len(sizes) else unknown


def write_contraction(
    emitter: Emitter, step: Step, op: Contract, operands: tuple[Value, ...]
) -> None:
    """Append the statement of a contraction of no, one or two operands."""
    names = {k: comment_name(n, k) for k, n in label_names(op, operands, step.out).items()}
    if not operands:
        text = emitter.ones(step.out)
        distinct = tuple(dict.fromkeys(op.output))
        if len(distinct) < len(op.output):
            sizes = label_sizes(op, operands, step.out)
            text = emitter.ones_of([sizes[k] for k in distinct], step.out.dtype)
            text = emitter.embed(text, distinct, op.output)
        emitter.assign(step, text, _labels(op.output, names))
    elif len(operands) == 1:
        emitter.assign(step, _unary(emitter, step, op, operands[0]), _equation(op, names))
    elif is_product(op, _numbers(op, operands, step.out), step.out.dtype):
        _matmul(emitter, step, op, operands, names)
    else:
        _multiply(emitter, step, op, operands, names)


def _labels(labels: Labels, names: dict[int, str]) -> str:
    return f"({', '.join(names[label] for label in labels)})"


def _equation(op: Contract, names: dict[int, str]) -> str:
    inputs = " * ".join(_labels(labels, names) for labels in op.inputs)
    return f"{_labels(op.output, names)} = {inputs}"


def _unary(emitter: Emitter, step: Step, op: Contract, operand: Value) -> str:
    """Diagonal, then sum, then permute, then broadcast, then embed; each only if needed."""
    text, labels = emitter.ref(operand), op.inputs[0]
    sizes = label_sizes(op, (operand,), step.out)
    distinct = tuple(dict.fromkeys(labels))
    if distinct != labels:
        text, labels = emitter.diagonal(text, labels, distinct), distinct
    summed = tuple(k for k, label in enumerate(labels) if label not in op.output)
    if summed:
        labels_left = tuple(label for label in labels if label in op.output)
        if all(sizes[labels[k]] == 1 for k in summed):
            text = emitter.reshape(text, emitter.dims([(sizes[k],) for k in labels_left]))
        else:
            length = count([sizes[labels[k]] for k in summed], math.inf)
            long = is_inexact(operand.dtype) and length > emitter.long_sum
            text = emitter.sum(text, summed, operand.dtype, long=long)
        labels = labels_left
    wanted = tuple(dict.fromkeys(op.output))
    present = tuple(label for label in wanted if label in labels)
    if present != labels:
        text = emitter.permute(text, [labels.index(label) for label in present])
    if present != wanted:
        text = insert_axes(text, present, wanted)
        text = emitter.broadcast(text, emitter.dims([(sizes[k],) for k in wanted]))
        if step.out.name in emitter.program.outputs and len(wanted) == len(op.output):
            text = emitter.copy(text)
    return text if wanted == op.output else emitter.embed(text, wanted, op.output)


def insert_axes(text: str, present: Sequence[int], wanted: Sequence[int]) -> str:
    """Index with None where `wanted` has an axis that `present` lacks, but for leading ones."""
    first = next((k for k, label in enumerate(wanted) if label in present), len(wanted))
    pattern = [":" if label in present else "None" for label in wanted[first:]]
    return f"{text}[{', '.join(pattern)}]" if "None" in pattern else text


def _multiply(
    emitter: Emitter, step: Step, op: Contract, operands: tuple[Value, ...], names: dict[int, str]
) -> None:
    """An elementwise or outer product: both operands aligned to the output."""
    if set(op.output) != {k for labels in op.inputs for k in labels} or any(
        len(set(labels)) < len(labels) for labels in (*op.inputs, op.output)
    ):
        raise InvalidProgram(f"the step '{step.text()}' was not scheduled")
    if all(value.name in emitter.literals for value in operands):  # a number would lose its dtype
        texts = [emitter.ref(value) for value in operands]
    else:
        texts = [
            aligned(emitter, value, labels, op.output)
            for value, labels in zip(operands, op.inputs, strict=True)
        ]
    place = {label: axis for axis, label in enumerate(op.output)}
    axes = tuple(tuple([place[label] for label in labels]) for labels in op.inputs)
    text = emitter.in_place("mul", texts, emitter.place(step, texts, axes)) or " * ".join(texts)
    emitter.assign(step, text, _equation(op, names))


def aligned(emitter: Emitter, value: Value, labels: Labels, wanted: Labels) -> str:
    """The operand with its axes in the order of `wanted`, absent ones inserted."""
    text = emitter.inline(value)
    present = tuple(label for label in wanted if label in labels)
    if present != labels:
        text = emitter.permute(text, [labels.index(label) for label in present])
    return insert_axes(text, present, wanted)


def _numbers(op: Contract, operands: tuple[Value, ...], out: Value) -> dict[int, int]:
    """Sizes by label, a usual one for those that only a call brings."""
    sizes = label_sizes(op, operands, out)
    return {k: size if isinstance(size, int) else _NOMINAL for k, size in sizes.items()}


def _matmul(
    emitter: Emitter, step: Step, op: Contract, operands: tuple[Value, ...], names: dict[int, str]
) -> None:
    sizes = label_sizes(op, operands, step.out)
    numbers = _numbers(op, operands, step.out)
    form = matmul_form(op, numbers, stacks=True)
    if all(len(labels) == 1 for labels in op.inputs) and not op.output:
        length = count([sizes[label] for label in form.k], math.inf)
        if length <= emitter.long_sum:
            text = emitter.dot(*map(emitter.ref, operands))
            emitter.assign(step, text, _equation(op, names))
            return
    rows_first, columns_first = form.natural()
    lead = form.outer or form.batch
    swapped = op.output == columns_first != rows_first
    if rows_first == columns_first and lead and not form.n:  # either way round is the same
        swapped = emitter.vectors_in_rows
    a_lead, b_lead = (lead if form.batch or form.outer_on == side else () for side in (0, 1))
    first = (operands[0], op.inputs[0], form.a_order, (a_lead, form.m, form.k))
    second = (operands[1], op.inputs[1], form.b_order, (b_lead, form.k, form.n))
    rows, columns = (form.n, form.m) if swapped else (form.m, form.n)
    if swapped:
        a, b = (_turned(emitter, side, sizes) for side in (second, first))
        a_lead, b_lead = b_lead, a_lead
    else:
        a, b = (_block(emitter, side, sizes) for side in (first, second))
    length = count([sizes[label] for label in form.k], math.inf)
    least = [count([sizes[label] for label in group], 1) for group in (rows, columns)]
    long_k = is_inexact(step.out.dtype) and emitter.is_long(length, *least)
    if form.outer:
        times = emitter.product([sizes[label] for label in form.outer])
        a, b = (a, emitter.repeated(b, times)) if a_lead else (emitter.repeated(a, times), b)
    natural = columns_first if swapped else rows_first
    blocks = [tuple(sizes[k] for k in g) for g in (*([lead] if lead else []), rows, columns)]
    out = emitter.places.get(step.out.name) if natural == op.output else None
    if length == 1 and is_inexact(step.out.dtype):
        text = emitter.outer(a, b, bool(lead), broad=is_broad(op, numbers))
    else:
        known = [count([sizes[label] for label in group], math.inf) for group in (rows, columns)]
        shape = (known[0], length, known[1])
        text = emitter.matmul(a, b, bool(lead), shape, long_k=long_k, blocks=blocks, out=out)
    if [len(block) for block in blocks] != [1] * len(natural):
        text = emitter.reshape(
            emitter.parenthesize(text), emitter.dims([(sizes[k],) for k in natural])
        )
    if natural != op.output:
        text = emitter.permute(
            emitter.parenthesize(text), [natural.index(label) for label in op.output]
        )
    emitter.assign(step, text, _matmul_comment(form, names, swapped))


def _turned(emitter: Emitter, side: Side, sizes: dict[int, Size]) -> str:
    """The operand as (lead, columns, rows).

    A vector is written as it is wanted, not as a transposed view: torch takes products with such
    views one by one.
    """
    value, labels, order, (lead, rows, columns) = side
    if not (rows and columns):
        return _block(emitter, (value, labels, order, (lead, columns, rows)), sizes)
    return _swapped(emitter, _block(emitter, side, sizes), bool(lead))


def _swapped(emitter: Emitter, text: str, batched: bool) -> str:
    """The transposed matrix; twice transposed is as it was."""
    suffixes = [emitter.swap("", batched), *([emitter.permute("", (0, 2, 1))] if batched else [])]
    for suffix in suffixes:
        if text.endswith(suffix):
            return text.removesuffix(suffix)
    return text + suffixes[0]


def _block(emitter: Emitter, side: Side, sizes: dict[int, Size]) -> str:
    """The operand as (lead, rows, columns): permuted if it must be, reshaped, swapped."""
    value, labels, order, parts = side
    text = emitter.ref(value)
    if order != labels:
        text = emitter.permute(text, [labels.index(label) for label in order])
    lead, *matrix = parts
    wanted = [lead, *matrix] if lead else matrix
    stored = sorted((g for g in wanted if g), key=lambda g: order.index(g[0]))
    if stored == [g for g in wanted if g]:
        stored = wanted
    else:
        stored += [g for g in wanted if not g]
    if [len(group) for group in stored] != [1] * len(order) or len(stored) != len(order):
        text = emitter.reshape(text, emitter.dims([[sizes[k] for k in group] for group in stored]))
    moved = [next(i for i, g in enumerate(stored) if g is group) for group in wanted]
    return text if moved == sorted(moved) else emitter.permute(text, moved)


def _matmul_comment(form: MatmulForm, names: dict[int, str], swapped: bool) -> str:
    def block(*groups: Labels) -> str:
        joined = ["·".join(names[k] for k in group) or "1" for group in groups]
        return f"({', '.join(joined)})"

    lead = [form.outer or form.batch] if form.outer or form.batch else []
    left, right = (lead if form.batch or form.outer_on == side else [] for side in (0, 1))
    if swapped:
        out, first = block(*lead, form.n, form.m), block(*right, form.n, form.k)
        return f"{out} = {first} @ {block(*left, form.k, form.m)}"
    out, first = block(*lead, form.m, form.n), block(*left, form.m, form.k)
    return f"{out} = {first} @ {block(*right, form.k, form.n)}"
