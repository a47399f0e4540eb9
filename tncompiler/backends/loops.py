"""Write a loop over the blocks of an index: buffers, the body, results put in their places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tncompiler.backends.naming import comment_name
from tncompiler.ir.program import Loop, Pick, Step, Value

if TYPE_CHECKING:
    from tncompiler.backends.emitter import Emitter

INDENT = "    "


def write_loop(emitter: Emitter, step: Step, op: Loop) -> None:
    """Append the lines of a loop, and of the buffers that its results go to."""
    lines, size, width = emitter.lines, emitter.size(op.size), op.width
    results = _picked(emitter, step)
    sums = {k: _sum_name(emitter, value) for k, value in results.items() if op.joined[k] is None}
    for position, value in results.items():
        buffer, name = emitter.filled(value, position in sums), emitter.name(value)
        if position in sums:
            emitter.extra.add("from tncompiler.backends.sums import RunningSum")
            name, buffer = sums[position], f"RunningSum({buffer})"
        lines.append(f"{name} = {buffer}")
    start = emitter.names(("start", step.out.name), "start", "start")
    index = comment_name(op.index, 0)
    lines.append(f"for {start} in range(0, {size}, {width}):  # {width} of {index} at a time")
    lines += [INDENT + line for line in _body(emitter, op, step, start, size, results, sums)]
    lines += [f"{emitter.name(results[k])} = {name}.total" for k, name in sums.items()]
    if sums:
        lines.append(f"del {', '.join(sums.values())}")


def _picked(emitter: Emitter, step: Step) -> dict[int, Value]:
    """The loop's results that are taken out, by position."""
    steps = emitter.program.steps
    return {
        other.op.position: other.out
        for other in steps
        if isinstance(other.op, Pick) and other.operands == (step.out.name,)
    }


def _sum_name(emitter: Emitter, value: Value) -> str:
    return emitter.names(("sum", value.name), f"{emitter.name(value)}_sum", "sum")


def _body(
    emitter: Emitter,
    op: Loop,
    step: Step,
    start: str,
    size: str,
    results: dict[int, Value],
    sums: dict[int, str],
) -> list[str]:
    inner = emitter.nested(op.body)
    stop = emitter.names(("stop", step.out.name), "stop", "stop")
    if isinstance(op.block, int):
        inner.lines.append(f"{stop} = {start} + {op.width}")
    else:
        inner.bound.add(op.block)
        inner.lines.append(f"{stop} = min({start} + {op.width}, {size})")
        inner.lines.append(f"{inner.size(op.block)} = {stop} - {start}")
    for axis, name, argument in zip(op.sliced, step.operands, op.body.arguments, strict=True):
        if axis is not None:
            whole = emitter.ref(emitter.program.values[name])
            inner.lines.append(f"{inner.name(argument.value)} = {_part(whole, axis, start, stop)}")
    inner.write_steps()
    for position, value in results.items():
        made, axis = inner.ref(op.body.values[op.body.outputs[position]]), op.joined[position]
        if axis is None:
            inner.lines.append(f"{sums[position]}.add({made})")
        else:
            inner.lines.append(f"{_part(emitter.name(value), axis, start, stop)} = {made}")
    computed = [n for n in dict.fromkeys(op.body.outputs) if n in op.body.producers]
    inner.release([*computed, *inner.read_last()])
    return inner.lines


def _part(whole: str, axis: int, start: str, stop: str) -> str:
    return f"{whole}[{', '.join([*[':'] * axis, f'{start}:{stop}'])}]"
