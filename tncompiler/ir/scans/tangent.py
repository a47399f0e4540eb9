"""The tangent of a scan is a second scan, which reads what the first keeps of each position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.program import Program, Scan, Value
from tncompiler.ir.scans.adjoint import cut_body, read_by_backward
from tncompiler.ir.scans.steps import emit_pick, emit_scan, reached_values

Differentiate = Callable[[Program, Sequence[str]], Program]


def scan_tangents(
    builder: Builder,
    token: Value,
    op: Scan,
    operands: tuple[Value, ...],
    moved: Mapping[str, Value],
    differentiate: Differentiate,
) -> dict[int, Value]:
    """The tangents of the results that move, by position.

    ``moved``: tangents by the name of the body's argument; those of states may be of zeros.
    """
    inside = reached_values(op.body, tuple(moved))
    states = [k for k in range(op.carried) if op.body.arguments[k].value.name in moved]
    results = [k for k in range(op.carried, len(op.joined)) if op.body.outputs[k] in inside]
    wanted = [*states, *results]
    seeded = tuple(op.body.outputs[position] for position in wanted)
    joint = differentiate(replace(op.body, outputs=seeded), tuple(moved))
    cut = cut_body(op, joint, len(seeded))
    sources = read_by_backward(builder, token, op, operands, joint, cut)
    position_of = {a.value.name: k for k, a in enumerate(op.body.arguments)}
    own = [a.value.name for a in joint.arguments if a.kind == "tangent"]
    for name, source in zip(own, moved, strict=True):
        sources[name] = (moved[source], op.sliced[position_of[source]])
    carried = own[: len(states)]
    arguments = {a.value.name: a for a in cut.backward.arguments}
    order = [*carried, *(name for name in arguments if name not in carried)]
    rest = order[len(carried) :]
    scan = Scan(
        replace(cut.backward, arguments=tuple(arguments[name] for name in order)),
        op.index,
        op.size,
        len(carried),
        (*(None,) * len(carried), *(sources[name][1] for name in rest)),
        tuple(op.joined[position] for position in wanted),
        op.reverse,
        recomputed=cut.recomputed,
    )
    made = emit_scan(builder, scan, [sources[name][0] for name in order])
    return {k: emit_pick(builder, made, scan, number) for number, k in enumerate(wanted)}
