"""A whole attention as one step: softmax of scaled products of queries and keys, times values.

`fuse_attention` makes it where the pattern stands; `attention_body` says what it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tncompiler.ir.sizes import Size

Labels = tuple[int, ...]

LOW = -1e30  # the score of what is masked: its exponential is 0, and differences stay finite


@dataclass(frozen=True, slots=True)
class Attention:
    """Operands: query, key, value, and a mask if there is one; labelled as those of a Contract.

    ``over`` labels the positions of keys and values. ``causal``: a query sees the keys up to its
    own position. ``mask`` is "where" (booleans, true for what is seen), "add" or "".
    """

    inputs: tuple[Labels, ...]
    output: Labels
    over: int
    causal: bool
    mask: str

    def text(self) -> str:
        words = ["causal"] * self.causal + [f"mask {self.mask}"] * bool(self.mask)
        wires = ", ".join(" ".join(map(str, labels)) for labels in (*self.inputs, self.output))
        return f"attention[{'; '.join([wires, f'over {self.over}', *words])}]"

    @property
    def scores(self) -> Labels:
        """The labels of the scores, in the order that they are made in: batch, queries, keys."""
        return (*self.batch, *self.queries, self.over)

    @property
    def queries(self) -> Labels:
        """What only queries have: their positions."""
        query, key, value = map(set, self.inputs[:3])
        return tuple(k for k in self.output if k in query - key - value)

    @property
    def batch(self) -> Labels:
        """What queries or keys share with the result, but for the positions of queries."""
        either = {*self.inputs[0], *self.inputs[1]}
        return tuple(k for k in self.output if k in either and k not in self.queries)

    @property
    def features(self) -> Labels:
        """What products of queries and keys are summed over."""
        return tuple(k for k in self.inputs[0] if k not in self.output)

    @property
    def values(self) -> Labels:
        """What only values bring to the result."""
        either = {*self.inputs[0], *self.inputs[1]}
        return tuple(k for k in self.output if k not in either)


def fits(op: Attention, shapes: Sequence[tuple[Size, ...]], out: tuple[Size, ...]) -> bool:
    """Whether labels and sizes go together, for operands and a result of these shapes."""
    if len(shapes) != 3 + bool(op.mask) or len(op.inputs) != len(shapes):
        return False
    sizes: dict[int, Size] = {}
    for labels, shape in zip((*op.inputs, op.output), (*shapes, out), strict=True):
        if len(labels) != len(shape) or len(set(labels)) != len(labels):
            return False
        if any(sizes.setdefault(k, n) != n for k, n in zip(labels, shape, strict=True)):
            return False
    query, key, value = op.inputs[:3]
    known = op.over in key and op.over in value and op.over not in (*query, *op.output)
    masked = all(label in op.scores for labels in op.inputs[3:] for label in labels)
    return known and masked and (not op.causal or len(op.queries) == 1)


def places(op: Attention) -> list[tuple[int | None, ...]]:
    """For each operand, the output axis of each of its axes; positions that are compared have
    none, so that they are not cut into blocks."""
    compared = op.queries if op.causal else ()
    return [
        tuple(
            op.output.index(label) if label in op.output and label not in compared else None
            for label in labels
        )
        for labels in op.inputs
    ]
