"""Write steps with windows: operands brought into the form that a backend's kernels know.

Both array backends offer `gather_windows`, `scatter_windows`, `unfold_axis`, `fold_axes` and
`window_tensor`, with the same arguments, in a module of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tncompiler.backends.naming import comment_name
from tncompiler.ir.convolution import form_of, has_channels_last, joined
from tncompiler.ir.program import (
    Contract,
    Convolve,
    Fold,
    Labels,
    Program,
    Split,
    Step,
    Unfold,
    Value,
    Window,
    label_names,
    label_sizes,
)
from tncompiler.ir.sizes import Size

if TYPE_CHECKING:
    from tncompiler.backends.emitter import Emitter

HELPERS = (
    *("fold_axes", "gather_windows", "kernel_windows", "scatter_windows", "unfold_axis"),
    "window_tensor",
)


def write_window_step(emitter: Emitter, step: Step, operands: tuple[Value, ...]) -> None:
    """Append the line of a step with windows."""
    match step.op:
        case Convolve():
            _write_convolve(emitter, step, step.op, operands)
        case Unfold(axis, geometry):
            sizes = _tuple(emitter, step.out.shape[axis : axis + 2])
            steps = f"{geometry.stride}, {geometry.dilation}, {emitter.size(geometry.before)}"
            call = f"{_helper(emitter, 'unfold_axis')}({emitter.ref(operands[0])}, {axis}, "
            text = f"{call}{sizes}, {steps})"
            text = emitter.copy(text) if _is_returned(emitter.program, step) else text
            emitter.assign(step, text, _axes(step.out))
        case Fold(axis, geometry):
            size = emitter.size(step.out.shape[axis])
            steps = f"{geometry.stride}, {geometry.dilation}, {emitter.size(geometry.before)}"
            call = f"{_helper(emitter, 'fold_axes')}({emitter.ref(operands[0])}, {axis}, "
            emitter.assign(step, f"{call}{size}, {steps})", _axes(step.out))
        case Window(geometry):
            steps = f"{geometry.stride}, {geometry.dilation}, {emitter.size(geometry.before)}"
            ones = emitter.ones_of((), step.out.dtype)
            sizes = _tuple(emitter, step.out.shape)
            call = f"{_helper(emitter, 'window_tensor')}({ones}, {sizes}, {steps})"
            emitter.assign(step, call, _axes(step.out))


def _is_returned(program: Program, step: Step) -> bool:
    """Whether a view, whose elements overlap in memory, would leave the program."""
    names = {step.out.name}
    for other in program.steps:
        if isinstance(other.op, Contract | Split) and names.intersection(other.operands):
            names.add(other.out.name)
    return not names.isdisjoint(program.outputs)


def _write_convolve(
    emitter: Emitter, step: Step, op: Convolve, operands: tuple[Value, ...]
) -> None:
    form = form_of(op)
    sizes = label_sizes(op, operands, step.out)
    names = {k: comment_name(n, k) for k, n in label_names(op, operands, step.out).items()}
    data, weight = operands[form.data], operands[1 - form.data]
    a = _arranged(emitter, data, op.inputs[form.data], form.data_blocks, sizes)
    w = _arranged(emitter, weight, op.inputs[1 - form.data], form.weight_blocks, sizes)
    positions = _tuple(emitter, [sizes[axis.out] for axis in form.axes])
    moves = ", ".join(
        f"({axis.step}, {axis.reach}, {emitter.size(axis.before)})" for axis in form.axes
    )
    moves = f"({moves}{',' * (len(form.axes) == 1)})"
    order = ", last=True" if has_channels_last(op) else ""
    text = f"{_helper(emitter, f'{form.kind}_windows')}({a}, {w}, {positions}, {moves}{order})"
    made = joined(form.out_blocks)
    if any(len(block) != 1 for block in form.out_blocks):
        text = emitter.reshape(text, emitter.dims([(sizes[k],) for k in made]))
    if made != op.output:
        text = emitter.permute(text, [made.index(label) for label in op.output])
    emitter.assign(step, text, _comment(op, names))


def _arranged(
    emitter: Emitter,
    value: Value,
    labels: Labels,
    blocks: Sequence[Labels],
    sizes: dict[int, Size],
) -> str:
    """The operand with one axis for each block of labels."""
    text = emitter.ref(value)
    order = joined(blocks)
    if order != labels:
        text = emitter.permute(text, [labels.index(label) for label in order])
    if any(len(block) != 1 for block in blocks):
        text = emitter.reshape(text, emitter.dims([[sizes[k] for k in b] for b in blocks]))
    return text


def _comment(op: Convolve, names: dict[int, str]) -> str:
    def listed(labels: Labels) -> str:
        return f"({', '.join(names[label] for label in labels)})"

    moves = ", ".join(relation.text(names) for relation in op.relations)
    return f"{listed(op.output)} = {' * '.join(map(listed, op.inputs))}, {moves}"


def _helper(emitter: Emitter, name: str) -> str:
    emitter.extra.add(f"from tncompiler.backends.{emitter.library}.windows import {name}")
    return name


def _tuple(emitter: Emitter, sizes: Sequence[Size]) -> str:
    texts = [emitter.size(size) for size in sizes]
    return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"


def _axes(value: Value) -> str:
    return f"({', '.join(comment_name(n, k) for k, n in enumerate(value.axes))})"
