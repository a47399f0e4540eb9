"""Take windows out of the operands of contractions: they become relations between labels.

In: a program whose contractions have windows, tensors of zeros and ones, among their operands. Out:
such contractions as Convolve steps, which planners and backends know. A window stays a tensor where
its indices are not those of a convolution: all three kept, say, or its source on no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import (
    Cast,
    Contract,
    Convolve,
    Labels,
    Program,
    Relation,
    Step,
    Window,
    canonical_convolve,
)


def bind_windows(program: Program) -> Program:
    """Windows among a contraction's operands as relations between its labels."""
    if not any(isinstance(step.op, Window) for step in program.steps):
        return program
    return drop_dead_steps(program.with_steps(_bound(step, program) for step in program.steps))


def _bound(step: Step, program: Program) -> Step:
    op = step.op
    if not isinstance(op, Contract):
        return step
    found = ((k, _window(program, name)) for k, name in enumerate(step.operands))
    windows = {k: window for k, window in found if window is not None}
    bindable = _bindable(op, list(windows))
    left = [k for k in range(len(op.inputs)) if k not in bindable]
    if not bindable or not left:
        return step
    relations = []
    for position in bindable:
        window: Window = windows[position].op  # type: ignore[assignment]
        a, b, c = op.inputs[position]
        source, out, kernel = windows[position].out.shape
        relations.append(Relation((a, b, c), (source, out, kernel), window.geometry))
    bare = Convolve(tuple(op.inputs[k] for k in left), op.output, tuple(relations))
    return Step(step.out, canonical_convolve(bare), tuple(step.operands[k] for k in left))


def _bindable(op: Contract, windows: Sequence[int]) -> list[int]:
    """The operands among `windows` that can become relations; those left are tensors to others."""
    chosen = list(windows)
    for position in windows:
        others = [labels for k, labels in enumerate(op.inputs) if k not in chosen]
        related = {x for k in chosen if k != position for x in op.inputs[k]}
        labels = op.inputs[position]
        if not (related.isdisjoint(labels) and is_regular(labels, others, op.output)):
            chosen.remove(position)
            return _bindable(op, chosen)
    return chosen


def is_regular(labels: Labels, others: Sequence[Labels], output: Labels) -> bool:
    """Whether a window with these labels is one that data is seen through, or summed into.

    Then its source is on tensors and not kept, or is kept and on no tensor, and the others are not.
    """
    source, *rest = labels
    carried = {label for wires in others for label in wires}
    if len(set(labels)) < 3 or any(len(set(w)) < len(w) for w in (*others, output)):
        return False
    if source in output:
        return source not in carried and not set(rest) & set(output)
    return source in carried


def _window(program: Program, name: str) -> Step | None:
    """The step of the window that a value is, in whatever dtype."""
    step = program.producers.get(name)
    while step is not None and isinstance(step.op, Cast):
        step = program.producers.get(step.operands[0])
    return step if step is not None and isinstance(step.op, Window) else None
