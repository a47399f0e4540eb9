"""The rules every program keeps; checked between passes. A violation is a bug of a pass."""

from __future__ import annotations

import sympy

from tncompiler.ir.arange import Positions
from tncompiler.ir.attention import Attention
from tncompiler.ir.attention import fits as fits_attention
from tncompiler.ir.convolution import convolution_form
from tncompiler.ir.dtypes import DEFAULT, DTYPES, real_part
from tncompiler.ir.errors import InvalidProgram
from tncompiler.ir.functions import function, is_function
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.gather_rules import expected_shape
from tncompiler.ir.pairs import Pairs, PairsAdjoint
from tncompiler.ir.pairs_rules import expected_shape as shape_of_pairs
from tncompiler.ir.program import (
    Cast,
    Concat,
    Contract,
    Convolve,
    Fold,
    Literal,
    Loop,
    Map,
    Merge,
    Pad,
    Permute,
    Pick,
    Program,
    Reduce,
    Scan,
    Slice,
    Split,
    Step,
    Unfold,
    Value,
    Window,
    canonical_convolve,
    is_canonical,
    label_sizes,
    operand_values,
)
from tncompiler.ir.scans.steps import result_value
from tncompiler.ir.sizes import Size, product, resized
from tncompiler.ir.stacking import Member


def validate(program: Program, *, scheduled: bool = False, known: Program | None = None) -> Program:
    """The program itself. Raises InvalidProgram on the first broken rule.

    ``scheduled`` also demands that no contraction has more than two operands. ``known``: a program
    that was found valid in the same sense; of its own steps only the order is looked at again.
    """
    defined: set[str] = set()
    for argument in program.arguments:
        _define(argument.value, defined)
    for step in program.steps:
        missing = [name for name in step.operands if name not in defined]
        if missing:
            _fail(step, f"uses {missing[0]!r} before it is defined")
        _define(step.out, defined)
        if known is not None and _is_of(known, program, step):
            continue
        if isinstance(step.op, Loop):
            _check_loop(step, step.op, operand_values(program, step))
        elif isinstance(step.op, Scan):
            _check_scan(step, step.op, operand_values(program, step), scheduled)
        elif isinstance(step.op, Pick):
            _check_pick(program, step, step.op)
        else:
            _check_step(step, operand_values(program, step))
        if scheduled and isinstance(step.op, Contract) and len(step.operands) > 2:
            _fail(step, "has more than two operands in a scheduled program")
        if scheduled and isinstance(step.op, Convolve) and convolution_form(step.op) is None:
            _fail(step, "is no single convolution in a scheduled program")
    for name in program.outputs:
        if name not in defined:
            raise InvalidProgram(f"the output {name!r} is not defined")
    return program


def _is_of(known: Program, program: Program, step: Step) -> bool:
    """Whether a step and all that its rules read is the very same in another program."""
    if known.producers.get(step.out.name) is not step:
        return False
    if isinstance(step.op, Pick):  # its rules read the loop too
        (token,) = step.operands
        return program.producers.get(token) is known.producers.get(token)
    before, now = known.values, program.values
    return all(now[name] is before.get(name) for name in step.operands)


def _define(value: Value, defined: set[str]) -> None:
    if value.name in defined:
        raise InvalidProgram(f"{value.name!r} is defined twice")
    if len(value.axes) != len(value.shape):
        raise InvalidProgram(f"{value.name!r} names {len(value.axes)} axes of {len(value.shape)}")
    if value.dtype not in DTYPES:
        raise InvalidProgram(f"{value.name!r} has the unknown dtype {value.dtype!r}")
    defined.add(value.name)


def _fail(step: Step, what: str) -> None:
    raise InvalidProgram(f"the step '{step.text()}' {what}")


def _check_step(step: Step, operands: tuple[Value, ...]) -> None:
    match step.op:
        case Contract():
            _check_contract(step, step.op, operands)
            _check_dtypes(step, operands)
        case Convolve():
            _check_convolve(step, step.op, operands)
            _check_dtypes(step, operands)
        case Window() if operands or len(step.out.shape) != 3:
            _fail(step, "is a window but not of three axes without operands")
        case Window():
            return
        case Map():
            _check_map(step, step.op, operands)
            _check_map_dtype(step, step.op, operands)
        case Literal() if operands or step.out.shape:
            _fail(step, "is a literal but not a scalar without operands")
        case Literal():
            return
        case Concat(axis):
            _check_concat(step, axis, operands)
        case Positions() if operands or len(step.out.shape) != 1 or step.out.dtype != "int64":
            _fail(step, "makes something else than the positions of one axis")
        case Positions():
            return
        case Attention():
            if not fits_attention(step.op, [v.shape for v in operands], step.out.shape):
                _fail(step, "has labels or sizes that do not make an attention")
        case Pairs() | PairsAdjoint():
            if shape_of_pairs(step, operands) != step.out.shape:
                _fail(step, "does not fit its operands")
        case Gather() | Scatter():
            _check_gather(step, operands)
        case _ if len(operands) != 1:
            _fail(step, f"takes one operand, not {len(operands)}")
        case _:
            expected = _view_shape(step, operands[0])
            if not _same(expected, step.out.shape):
                _fail(step, f"should have shape {expected}")


def _same(a: tuple[Size, ...], b: tuple[Size, ...]) -> bool:
    return len(a) == len(b) and all(_agree(x, y) for x, y in zip(a, b, strict=True))


def _agree(a: Size, b: Size) -> bool:
    symbolic = not (isinstance(a, int) and isinstance(b, int))
    return bool(a == b or (symbolic and sympy.expand(a - b) == 0))


def _check_loop(step: Step, op: Loop, operands: tuple[Value, ...]) -> None:
    validate(op.body, scheduled=True)
    if op.width < 1 or not len(op.sliced) == len(op.body.arguments) == len(operands):
        _fail(step, "has another number of operands than its body, or empty blocks")
    if len(op.joined) != len(op.body.outputs):
        _fail(step, "joins another number of results than its body has")
    for axis, argument, value in zip(op.sliced, op.body.arguments, operands, strict=True):
        if not _same(argument.value.shape, resized(value.shape, axis, op.block)):
            _fail(step, f"gives its body {value.name!r} in another shape")


def _check_scan(step: Step, op: Scan, operands: tuple[Value, ...], scheduled: bool) -> None:
    validate(op.body, scheduled=scheduled)
    if not len(op.sliced) == len(op.body.arguments) == len(operands) >= op.carried:
        _fail(step, "has another number of operands than its body")
    if len(op.joined) != len(op.body.outputs) or len(op.joined) < op.carried:
        _fail(step, "has another number of results than its body")
    for axis, argument, value in zip(op.sliced, op.body.arguments, operands, strict=True):
        shape = list(value.shape)
        if axis is not None and (axis >= len(shape) or not _agree(shape.pop(axis), op.size)):
            _fail(step, f"reads no positions of {value.name!r}")
        if not (_same(tuple(shape), argument.value.shape) and _like(value, argument.value)):
            _fail(step, f"gives its body {value.name!r} in another shape or dtype")
    for argument, name in zip(op.body.arguments[: op.carried], op.body.outputs, strict=False):
        before, after = argument.value, op.body.values[name]
        if not (_same(before.shape, after.shape) and _like(before, after)):
            _fail(step, f"changes the shape or dtype of its state {before.name!r}")


def _like(a: Value, b: Value) -> bool:
    """Whether two values are of one dtype, as far as it is decided."""
    return a.dtype == b.dtype or DEFAULT in (a.dtype, b.dtype)


def _check_pick(program: Program, step: Step, op: Pick) -> None:
    producer = program.producers.get(step.operands[0]) if len(step.operands) == 1 else None
    if producer is None or not isinstance(producer.op, Loop | Scan):
        _fail(step, "picks from something that is no loop")
        return
    loop = producer.op
    if op.position not in range(len(loop.joined)):
        _fail(step, "picks a result that its loop does not have")
    made = loop.body.values[loop.body.outputs[op.position]]
    if isinstance(loop, Scan):
        if not _same(step.out.shape, result_value(loop, op.position, "").shape):
            _fail(step, "picks a result of another shape")
        return
    if not _same(step.out.shape, resized(made.shape, loop.joined[op.position], loop.size)):
        _fail(step, "picks a result of another shape")


def _check_contract(step: Step, op: Contract, operands: tuple[Value, ...]) -> None:
    if len(op.inputs) != len(operands):
        _fail(step, "labels another number of operands than it has")
    if not is_canonical(op):
        _fail(step, "does not number its labels by first appearance")
    wires = tuple(zip((*op.inputs, op.output), (*operands, step.out), strict=True))
    for labels, value in wires:
        if len(labels) != len(value.shape):
            _fail(step, f"gives {len(labels)} labels to {value.name!r} of {len(value.shape)} axes")
    sizes = label_sizes(op, operands, step.out)
    for labels, value in wires:
        if tuple([sizes[label] for label in labels]) == value.shape:
            continue  # as almost always; what follows takes its time
        for label, size in zip(labels, value.shape, strict=True):
            if not _agree(sizes[label], size):
                _fail(step, f"has label {label} with sizes {sizes[label]} and {size}")


def _check_convolve(step: Step, op: Convolve, operands: tuple[Value, ...]) -> None:
    if len(op.inputs) != len(operands) or not op.relations:
        _fail(step, "labels another number of operands than it has, or relates nothing")
    if op != canonical_convolve(op):
        _fail(step, "does not number its labels by first appearance")
    sizes = label_sizes(op, operands, step.out)
    for labels, value in zip((*op.inputs, op.output), (*operands, step.out), strict=True):
        if not _same(tuple(sizes[label] for label in labels), value.shape):
            _fail(step, f"labels {value.name!r} with labels of other sizes")
    related = [label for relation in op.relations for label in relation.labels]
    if len(set(related)) < len(related):
        _fail(step, "relates one label twice")
    for relation in op.relations:
        if not _same(tuple(sizes[label] for label in relation.labels), relation.sizes):
            _fail(step, "relates labels of other sizes")


def _check_dtypes(step: Step, operands: tuple[Value, ...]) -> None:
    dtypes = {value.dtype for value in (*operands, step.out)}
    if len(dtypes) > 1 and DEFAULT not in dtypes:
        _fail(step, f"mixes the dtypes {sorted(dtypes)}")


def _check_map(step: Step, op: Map, operands: tuple[Value, ...]) -> None:
    if not is_function(op.function):
        _fail(step, "has an unknown function")
    if any(label not in range(len(step.out.shape)) for labels in op.inputs for label in labels):
        _fail(step, "wires an axis that its value does not have")
    if len(operands) != function(op.function).arity or len(op.inputs) != len(operands):
        _fail(step, "has another number of operands than its function")
    for labels, value in zip(op.inputs, operands, strict=True):
        if len(set(labels)) != len(labels) or len(labels) != len(value.shape):
            _fail(step, f"does not wire {value.name!r} one to one")
        if not _same(tuple(step.out.shape[label] for label in labels), value.shape):
            _fail(step, f"broadcasts {value.name!r} to another size")
    if {label for labels in op.inputs for label in labels} != set(range(len(step.out.shape))):
        _fail(step, "has an output axis that no operand has")


def _check_map_dtype(step: Step, op: Map, operands: tuple[Value, ...]) -> None:
    source, out = operands[-1].dtype, step.out.dtype
    rule = function(op.function)
    expected = {"bool": "bool", "real": real_part(source)}.get(rule.result, source)
    if out != expected and DEFAULT not in {value.dtype for value in (*operands, step.out)}:
        _fail(step, f"should have dtype {expected}")


def _check_concat(step: Step, axis: int, operands: tuple[Value, ...]) -> None:
    if not operands or any(axis not in range(len(value.shape)) for value in operands):
        _fail(step, "joins nothing, or along an axis that an operand does not have")
    total = sum((value.shape[axis] for value in operands), start=0)
    for value in operands:
        expected = (*value.shape[:axis], total, *value.shape[axis + 1 :])
        if not _same(expected, step.out.shape):
            _fail(step, f"joins {value.name!r} of another shape")


def _check_gather(step: Step, operands: tuple[Value, ...]) -> None:
    expected = expected_shape(step, operands)
    if expected is None:
        _fail(step, "does not fit its operands, or has ids that are no int64")
    elif not _same(expected, (step.out if isinstance(step.op, Gather) else operands[0]).shape):
        _fail(step, f"should have shape {expected} where what is gathered is")


def _view_shape(step: Step, source: Value) -> tuple[Size, ...]:
    shape, out = source.shape, step.out.shape
    axis = getattr(step.op, "axis", 0)
    if not 0 <= axis <= max(len(shape) - 1, 0):
        _fail(step, "works on an axis that its operand does not have")
    match step.op:
        case Reduce(name, axes):
            if name not in ("max", "min") or not set(axes) <= set(range(len(shape))):
                _fail(step, "reduces by an unknown function or over an unknown axis")
            return tuple(size for axis, size in enumerate(shape) if axis not in axes)
        case Permute(axes) if sorted(axes) == list(range(len(shape))):
            return tuple(shape[axis] for axis in axes)
        case Split(axis, count):
            _check_product(step, shape[axis], out[axis : axis + count])
            return (*shape[:axis], *out[axis : axis + count], *shape[axis + 1 :])
        case Merge(axis, count):
            _check_product(step, out[axis], shape[axis : axis + count])
            return (*shape[:axis], *out[axis : axis + 1], *shape[axis + count :])
        case Unfold(axis):
            return (*shape[:axis], *out[axis : axis + 2], *shape[axis + 1 :])
        case Fold(axis):
            return (*shape[:axis], *out[axis : axis + 1], *shape[axis + 2 :])
        case Slice(axis, start, stop):
            known = [size for size in (0, start, stop, shape[axis]) if isinstance(size, int)]
            if known != sorted(known):
                _fail(step, "reaches beyond its operand")
            return (*shape[:axis], stop - start, *shape[axis + 1 :])
        case Pad(axis, before, after):
            return (*shape[:axis], shape[axis] + before + after, *shape[axis + 1 :])
        case Member(position):
            if not shape or (isinstance(shape[0], int) and not 0 <= position < shape[0]):
                _fail(step, "takes a member that its stack does not have")
            return shape[1:]
        case Cast():
            return shape
    raise InvalidProgram(f"the step '{step.text()}' is of no known kind")


def _check_product(step: Step, total: Size, parts: tuple[Size, ...]) -> None:
    whole = product(parts)
    if isinstance(total, int) and isinstance(whole, int) and total != whole:
        _fail(step, f"has sizes that do not multiply out: {total} and {parts}")
