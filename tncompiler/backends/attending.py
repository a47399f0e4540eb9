"""Write an attention as a call of torch's kernel, on (batch, head, position, feature)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tncompiler.backends.contracting import insert_axes
from tncompiler.ir.attention import Attention
from tncompiler.ir.program import Labels, Step, Value, operand_values
from tncompiler.ir.sizes import Size

if TYPE_CHECKING:
    from tncompiler.backends.emitter import Emitter

HELPERS = ("attend",)


def write_attention(emitter: Emitter, step: Step) -> None:
    """Append the call, between views that give operands and result their axes."""
    op = step.op
    assert isinstance(op, Attention)
    operands = operand_values(emitter.program, step)
    sizes: dict[int, Size] = {}
    for labels, value in zip((*op.inputs, op.output), (*operands, step.out), strict=True):
        sizes.update(zip(labels, value.shape, strict=True))
    heads = (op.batch[:-1], op.batch[-1:])
    rows = [(op.queries, op.features), ((op.over,), op.features), ((op.over,), op.values)]
    rows += [(op.queries, (op.over,))] * bool(op.mask)
    texts = [
        _block(emitter, value, labels, (*heads, *own), sizes, is_mask=k == 3)
        for k, (value, labels, own) in enumerate(zip(operands, op.inputs, rows, strict=True))
    ]
    mask = [f"{op.mask}={texts.pop()}"] if op.mask else []
    causal = ["causal=True"] if op.causal else []
    emitter.extra.add("from tncompiler.backends.torch.attention import attend")
    text = f"attend({', '.join([*texts, *mask, *causal])})"
    natural = (*op.batch, *op.queries, *op.values)
    if len(natural) != 4 or len(op.batch) != 2:
        text = emitter.reshape(text, emitter.dims([(sizes[k],) for k in natural]))
    if natural != op.output:
        text = emitter.permute(text, [natural.index(label) for label in op.output])
    emitter.assign(step, text, "attention")


def _block(
    emitter: Emitter,
    value: Value,
    labels: Labels,
    groups: tuple[Labels, ...],
    sizes: Mapping[int, Size],
    is_mask: bool,
) -> str:
    """The operand with an axis for each group of labels; those that it lacks are repeated."""
    wanted = tuple(label for group in groups for label in group)
    present = tuple(label for label in wanted if label in labels)
    text = emitter.ref(value)
    if present != labels:
        text = emitter.permute(text, [labels.index(label) for label in present])
    single = all(len(group) == 1 for group in groups)
    if present != wanted:
        text = insert_axes(text, present, wanted)
    if present != wanted and not (single and is_mask):  # masks broadcast by themselves
        text = emitter.broadcast(text, emitter.dims([(sizes[k],) for k in wanted]))
    if not single:
        text = emitter.reshape(text, emitter.dims([[sizes[k] for k in g] for g in groups]))
    return text
