"""Write a scan: states before the first position, then a loop in which each position makes the
next ones, and puts its results in their places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tncompiler.backends.loops import INDENT
from tncompiler.backends.naming import comment_name
from tncompiler.ir.program import Scan, Step, Value
from tncompiler.ir.scans.steps import picks_of

if TYPE_CHECKING:
    from tncompiler.backends.emitter import Emitter


def write_scan(emitter: Emitter, step: Step, op: Scan) -> None:
    """Append the lines of a scan."""
    results = picks_of(emitter.program.steps, step.out.name)
    made = {k: value for k, value in results.items() if k >= op.carried}
    inner = _body_emitter(emitter, step, op)
    states = [inner.name(argument.value) for argument in op.body.arguments[: op.carried]]
    before = [emitter.ref(emitter.program.values[name]) for name in step.operands[: op.carried]]
    emitter.lines += [f"{name} = {first}" for name, first in zip(states, before, strict=True)]
    places = {k: _place(emitter, op, k, value) for k, value in made.items()}
    position = emitter.names(("position", inner.scope), op.index, "position")
    positions = f"range({emitter.size(op.size)})"
    positions = f"reversed({positions})" if op.reverse else positions
    emitter.lines.append(f"for {position} in {positions}:  # {comment_name(op.index, 0)}")
    _write_body(emitter, inner, step, op, position, states, places)
    emitter.lines += [INDENT + line for line in inner.lines]
    last = {k: value for k, value in results.items() if k < op.carried}
    emitter.lines += [f"{emitter.name(value)} = {states[k]}" for k, value in last.items()]
    for k, value in made.items():
        _finish(emitter, op, k, value, places[k])
    if states:
        emitter.lines.append(f"del {', '.join(states)}")


def _body_emitter(emitter: Emitter, step: Step, op: Scan) -> Emitter:
    """An emitter for the body, in which what is read whole is called as it is outside."""
    inner = emitter.nested(op.body)
    inner.scope = f"{emitter.scope}/{step.out.name}"
    inner.aliases = {
        argument.value.name: emitter.ref(emitter.program.values[name])
        for k, (argument, name) in enumerate(zip(op.body.arguments, step.operands, strict=True))
        if k >= op.carried and op.sliced[k] is None
    }
    return inner


def _place(emitter: Emitter, op: Scan, k: int, value: Value) -> str:
    """The variable that positions of a result go to: an array, a list, or a sum."""
    adds = op.joined[k] is None
    name = emitter.name(value)
    if op.traced or adds:
        kind = "parts" if op.traced else "sum"
        name = emitter.names((kind, emitter.scope, value.name), f"{name}_{kind}", kind)
    if op.traced:
        emitter.lines.append(f"{name} = []")
    elif adds:
        emitter.extra.add("from tncompiler.backends.sums import RunningSum")
        emitter.lines.append(f"{name} = RunningSum({emitter.filled(value, True)})")
    else:
        emitter.lines.append(f"{name} = {emitter.filled(value, False)}")
    return name


def _write_body(
    emitter: Emitter,
    inner: Emitter,
    step: Step,
    op: Scan,
    position: str,
    states: list[str],
    places: dict[int, str],
) -> None:
    """What one position does, into the lines of the body's emitter."""
    slices = []
    for axis, name, argument in zip(op.sliced, step.operands, op.body.arguments, strict=True):
        if axis is not None:
            whole = emitter.ref(emitter.program.values[name])
            one = f"{whole}[{', '.join([*[':'] * axis, position])}]"
            inner.lines.append(f"{inner.name(argument.value)} = {one}")
            slices.append(argument.value.name)
    inner.write_steps()
    values = [inner.ref(op.body.values[name]) for name in op.body.outputs]
    for k, place in places.items():
        if op.traced:
            inner.lines.append(f"{place}.append({values[k]})")
        elif op.joined[k] is None:
            inner.lines.append(f"{place}.add({values[k]})")
        else:
            inner.lines.append(f"{place}[{position}] = {values[k]}")
    moved = [(s, v) for s, v in zip(states, values, strict=False) if s != v]
    if moved:
        names, after = zip(*moved, strict=True)
        inner.lines.append(f"{', '.join(names)} = {', '.join(after)}")
    computed = [n for n in dict.fromkeys(op.body.outputs) if n in op.body.producers]
    inner.release(list(dict.fromkeys([*computed, *inner.read_last(), *slices])))
    inner.lines += [] if inner.lines else ["pass"]


def _finish(emitter: Emitter, op: Scan, k: int, value: Value, place: str) -> None:
    """What the positions come to, under the result's name."""
    name, adds = emitter.name(value), op.joined[k] is None
    if op.traced:
        parts = f"{place}[::-1]" if op.reverse else place
        whole = emitter.stack(parts)
        if adds:
            whole = emitter.sum(whole, (0,), value.dtype, long=False)
        emitter.lines.append(f"{name} = {whole} if {place} else {emitter.filled(value, True)}")
    elif adds:
        emitter.lines += [f"{name} = {place}.total", f"del {place}"]
