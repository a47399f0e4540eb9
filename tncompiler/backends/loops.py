"""Write a loop over the blocks of an index: buffers, the body, results put in their places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tncompiler.backends.naming import comment_name
from tncompiler.ir.program import Loop, Pick, Step, Value

if TYPE_CHECKING:
    from tncompiler.backends.emitter import Emitter

INDENT = "    "
Results = dict[int, Value]  # of a loop, by position


def write_loop(emitter: Emitter, step: Step, op: Loop) -> None:
    """Append the lines of a loop, and of the buffers that its results go to."""
    results = _picked(emitter, step)
    joined = {k: value for k, value in results.items() if op.joined[k] is not None}
    summed = {k: value for k, value in results.items() if op.joined[k] is None}
    for value in joined.values():
        emitter.lines.append(f"{emitter.name(value)} = {emitter.filled(value, zeros=False)}")
    write = _write_lanes if op.lanes > 1 and emitter.lanes else _write_for
    write(emitter, _Names(emitter, step), op, joined, summed)


class _Names:
    """The variables of one loop: of its first and its last position, and what it reads."""

    def __init__(self, emitter: Emitter, step: Step) -> None:
        self.start = emitter.names(("start", step.out.name), "start", "start")
        self.stop = emitter.names(("stop", step.out.name), "stop", "stop")
        self.block = step.out.name
        self.operands = step.operands


def _write_for(emitter: Emitter, names: _Names, op: Loop, joined: Results, summed: Results) -> None:
    """A for loop that adds to running sums."""
    lines, size, width = emitter.lines, emitter.size(op.size), op.width
    sums = {k: _sum_name(emitter, value) for k, value in summed.items()}
    for position, value in summed.items():
        emitter.extra.add("from tncompiler.backends.sums import RunningSum")
        lines.append(f"{sums[position]} = RunningSum({emitter.filled(value, zeros=True)})")
    index = comment_name(op.index, 0)
    lines.append(f"for {names.start} in range(0, {size}, {width}):  # {width} of {index} at a time")
    inner = emitter.nested(op.body)
    if isinstance(op.block, int):
        inner.lines.append(f"{names.stop} = {names.start} + {op.width}")
    else:
        inner.lines.append(f"{names.stop} = min({names.start} + {op.width}, {size})")
    _write_body(emitter, inner, names, op, joined)
    for position, name in sums.items():
        inner.lines.append(f"{name}.add({_made(inner, op, position)})")
    computed = [n for n in dict.fromkeys(op.body.outputs) if n in op.body.producers]
    inner.release([*computed, *inner.read_last()])
    lines += [INDENT + line for line in inner.lines]
    lines += [f"{emitter.name(summed[k])} = {name}.total" for k, name in sums.items()]
    if sums:
        lines.append(f"del {', '.join(sums.values())}")


def _write_lanes(
    emitter: Emitter, names: _Names, op: Loop, joined: Results, summed: Results
) -> None:
    """A function for a block, and a call that shares the blocks out."""
    emitter.imports.add("run_blocks")
    block = emitter.names(("block", names.block), "block", "block")
    index = comment_name(op.index, 0)
    signature = f"def {block}({names.start}, {names.stop}):"
    emitter.lines += ["", f"{signature}  # up to {op.width} of {index}"]
    inner = emitter.nested(op.body)
    _write_body(emitter, inner, names, op, joined)
    made = [_made(inner, op, position) for position in summed]
    inner.lines.append(f"return {', '.join(made)}{',' * (len(made) == 1)}" if made else "return ()")
    emitter.lines += [*(INDENT + line for line in inner.lines), ""]
    call = f"run_blocks({block}, {emitter.size(op.size)}, {op.width}, lanes={op.lanes})"
    totals = ", ".join(emitter.name(value) for value in summed.values())
    emitter.lines.append(f"{totals}{',' * (len(made) == 1)} = {call}" if made else call)


def _picked(emitter: Emitter, step: Step) -> Results:
    """The loop's results that are taken out, by position."""
    steps = emitter.program.steps
    return {
        other.op.position: other.out
        for other in steps
        if isinstance(other.op, Pick) and other.operands == (step.out.name,)
    }


def _sum_name(emitter: Emitter, value: Value) -> str:
    return emitter.names(("sum", value.name), f"{emitter.name(value)}_sum", "sum")


def _write_body(emitter: Emitter, inner: Emitter, names: _Names, op: Loop, joined: Results) -> None:
    """The block's part of what the loop reads, its steps, and what is joined put in its place."""
    if not isinstance(op.block, int):
        inner.bound.add(op.block)
        inner.lines.append(f"{inner.size(op.block)} = {names.stop} - {names.start}")
    for axis, name, argument in zip(op.sliced, names.operands, op.body.arguments, strict=True):
        if axis is not None:
            part = _part(emitter.ref(emitter.program.values[name]), axis, names)
            inner.lines.append(f"{inner.name(argument.value)} = {part}")
    parts = {k: _part(emitter.name(value), op.joined[k] or 0, names) for k, value in joined.items()}
    inner.places = {op.body.outputs[position]: part for position, part in parts.items()}
    inner.write_steps()
    for position, part in parts.items():
        if part not in inner.filled_in:
            inner.lines.append(f"{part} = {_made(inner, op, position)}")


def _made(inner: Emitter, op: Loop, position: int) -> str:
    return inner.ref(op.body.values[op.body.outputs[position]])


def _part(whole: str, axis: int, names: _Names) -> str:
    return f"{whole}[{', '.join([*[':'] * axis, f'{names.start}:{names.stop}'])}]"
