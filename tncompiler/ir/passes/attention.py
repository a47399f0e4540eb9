"""Find attentions: softmax of products of queries and keys, times values; make each one step.

Backends have kernels for the whole. It is matched before networks are merged, so that queries,
keys and values are networks of their own, planned to come out split into heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from tncompiler.ir.arange import Positions
from tncompiler.ir.attention import LOW, Attention
from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import kind
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import (
    Contract,
    Labels,
    Literal,
    Map,
    Op,
    Program,
    Reduce,
    Step,
    Value,
    operand_values,
)


def fuse_attention(program: Program) -> Program:
    """Every attention whose intermediate values nobody else reads becomes an Attention."""
    finder = _Finder(program)
    found = {step.out.name: match for step in program.steps if (match := finder.match(step))}
    if not found:
        return program
    builder = Builder(like=program)
    for step in program.steps:
        match = found.get(step.out.name)
        if match is None:
            builder.copy(step, operand_values(program, step))
        else:
            query = match.scaled_query(builder)
            builder.copy(Step(step.out, match.op, ()), (query, *match.operands[1:]))
    return drop_dead_steps(program.with_steps(builder.steps))


@dataclass(frozen=True, slots=True)
class _Match:
    """An attention, its operands, and the scalars that its scores are multiplied by."""

    op: Attention
    operands: tuple[Value, ...]
    scales: tuple[Value, ...]

    def scaled_query(self, builder: Builder) -> Value:
        """The query times the scales, which its network takes in."""
        query = self.operands[0]
        if not self.scales:
            return query
        labels = tuple(range(len(query.shape)))
        wires = (labels, *(() for _ in self.scales))
        return builder.contract((query, *self.scales), wires, labels, query.shape, query.axes)


@dataclass(slots=True)
class _Scores:
    """What the softmax is of: the scores as they are made, and how they are masked.

    ``axes``: for each axis of the value that was reached, which axis of the weights it is.
    """

    axes: Labels
    step: Step | None = None
    causal: tuple[int, int] | None = None  # the axes of queries and keys
    mask: str = ""
    masked_by: Value | None = None
    wires: Labels = ()


class _Finder:
    def __init__(self, program: Program) -> None:
        self.program, self.uses = program, program.uses()

    def made_by(self, name: str, kind: type[Op], function: str = "") -> Step | None:
        """The step that makes a value, if it is of a kind."""
        step = self.program.producers.get(name)
        if step is None or not isinstance(step.op, kind):
            return None
        return None if function and getattr(step.op, "function", "") != function else step

    def match(self, step: Step) -> _Match | None:
        op = step.op
        if not isinstance(op, Contract) or len(op.inputs) != 2 or kind(step.out.dtype) != "float":
            return None
        for weights, value in ((0, 1), (1, 0)):
            found = self._softmax(step.operands[weights])
            if found is not None:
                labels = op.inputs[weights], op.inputs[value]
                return self._attention(step, found, labels, step.operands[value])
        return None

    def _softmax(self, name: str) -> tuple[str, int] | None:
        """What a value is the softmax of, and over which axis; if nobody reads what is between."""
        quotient = self.made_by(name, Map, "div")
        if quotient is None or self.uses[name] != 1:
            return None
        powers, total = quotient.operands
        exp, added = self.made_by(powers, Map, "exp"), self.made_by(total, Contract)
        if exp is None or added is None or self.uses[powers] != 2 or added.operands != (powers,):
            return None
        shifted = self.made_by(exp.operands[0], Map, "sub")
        if shifted is None or self.uses[exp.operands[0]] != 1:
            return None
        stop = self.made_by(shifted.operands[1], Map, "stop")
        top = None if stop is None else self.made_by(stop.operands[0], Reduce, "max")
        source = shifted.operands[0]
        if top is None or top.operands != (source,) or self.uses[source] != 2:
            return None
        axes = top.op.axes  # type: ignore[union-attr]
        every = tuple(range(len(quotient.out.shape)))
        rest = tuple(axis for axis in every if axis not in axes)
        wired = (quotient.op, shifted.op)
        aligned = all(op.inputs == (every, rest) for op in wired)  # type: ignore[union-attr]
        summed = added.op == Contract((every,), rest)
        return (source, axes[0]) if len(axes) == 1 and aligned and summed else None

    def _scores(self, name: str) -> _Scores | None:
        """The product behind masks that lie over it."""
        found = _Scores(tuple(range(len(self.program.values[name].shape))))
        expected = 2  # by the maximum and by the difference from it
        while self.uses[name] == expected:
            expected = 1
            step = self.program.producers.get(name)
            if step is None:
                return None
            if isinstance(step.op, Contract):
                found.step = step
                return found
            inner = self._unmask(step, found)
            if inner is None:
                return None
            name = inner
        return None

    def _unmask(self, step: Step, found: _Scores) -> str | None:
        """What a mask lies over, the mask being noted; None if this is no mask, or a second one."""
        op = step.op
        if not isinstance(op, Map) or op.function not in ("where", "add"):
            return None
        inner = 1 if op.function == "where" or not self._is_chain(step.operands[0]) else 0
        mask = 1 - inner
        if op.function == "where":
            low = self.made_by(step.operands[2], Literal)
            if low is None or low.op.value != LOW:  # type: ignore[union-attr]
                return None
        if len(op.inputs[inner]) != len(found.axes):
            return None
        wires = tuple(found.axes[axis] for axis in op.inputs[mask])
        found.axes = tuple(found.axes[axis] for axis in op.inputs[inner])
        causal = self._causal(step.operands[mask], wires) if op.function == "where" else None
        if causal is not None and found.causal is None:
            found.causal = causal
            return step.operands[inner]
        if found.mask:
            return None
        found.mask, found.wires = op.function, wires
        found.masked_by = self.program.values[step.operands[mask]]
        return step.operands[inner]

    def _is_chain(self, name: str) -> bool:
        step = self.program.producers.get(name)
        return step is not None and isinstance(step.op, Contract | Map) and self.uses[name] == 1

    def _causal(self, name: str, wires: Labels) -> tuple[int, int] | None:
        """The axes whose positions are compared, if a mask is key <= query."""
        step = self.made_by(name, Map, "less_equal")
        if step is None:
            return None
        op: Map = step.op  # type: ignore[assignment]
        axes = [self._position_axis(operand) for operand in step.operands]
        if None in axes:
            return None
        key, query = (wires[labels[a]] for labels, a in zip(op.inputs, axes, strict=True))  # type: ignore[index]
        return query, key

    def _position_axis(self, name: str) -> int | None:
        """The axis that a value holds the positions of, if that is all it holds."""
        step = self.program.producers.get(name)
        if step is None:
            return None
        if isinstance(step.op, Positions):
            return 0
        if not isinstance(step.op, Contract) or not step.operands:
            return None
        labels = []
        for operand, own in zip(step.operands, step.op.inputs, strict=True):
            source = self.program.producers.get(operand)
            if source is None:
                return None
            if isinstance(source.op, Positions):
                labels.append(own[0])
            elif source.op != Contract((), tuple(range(len(own)))):
                return None
        whole = set(step.op.output) == {k for own in step.op.inputs for k in own}
        return step.op.output.index(labels[0]) if len(labels) == 1 and whole else None

    def _attention(
        self, step: Step, found: tuple[str, int], labels: tuple[Labels, Labels], value: str
    ) -> _Match | None:
        """The step for scores made as they must be; labels are those of weights and value."""
        name, axis = found
        weights, of_value = labels
        scores = self._scores(name)
        kept = {label for label in weights if label != weights[axis]}
        if scores is None or scores.step is None or not kept <= set(step.op.output):  # type: ignore[union-attr]
            return None
        product: Contract = scores.step.op  # type: ignore[assignment]
        operands = operand_values(self.program, scores.step)
        pairs = list(zip(operands, product.inputs, strict=True))
        scales = tuple(v for v, own in pairs if not own)
        factors = [(v, own) for v, own in pairs if own]
        if len(factors) != 2 or len(set(product.output)) != len(product.output):
            return None
        start = 1 + max((*weights, *of_value), default=0)  # what is summed gets labels of its own
        called = {k: weights[a] for k, a in zip(product.output, scores.axes, strict=True)}
        wired = [
            (v, tuple(called.get(label, start + label) for label in own)) for v, own in factors
        ]
        wired.sort(key=lambda pair: weights[axis] in pair[1])  # queries first
        (query, of_query), (key, of_key) = wired
        mask = () if scores.masked_by is None else (scores.masked_by,)
        of_mask = () if scores.masked_by is None else (tuple(weights[k] for k in scores.wires),)
        op = Attention(
            (of_query, of_key, of_value, *of_mask),
            step.op.output,  # type: ignore[union-attr]
            weights[axis],
            scores.causal is not None,
            scores.mask,
        )
        compared = None if scores.causal is None else tuple(weights[k] for k in scores.causal)
        if not _is_plain(op, compared):
            return None
        return _Match(op, (query, key, self.program.values[value], *mask), scales)


def _is_plain(op: Attention, compared: tuple[int, ...] | None) -> bool:
    """Whether every label has the part that it must have in an attention."""
    query, key, value = op.inputs[:3]
    distinct = all(len(set(labels)) == len(labels) for labels in (*op.inputs, op.output))
    over = op.over in key and op.over in value and op.over not in (*query, *op.output)
    summed = all(label in key for label in op.features) and bool(op.features)
    known = {*op.output, op.over, *op.features}
    inside = all(label in known for labels in op.inputs for label in labels)
    causal = compared is None or (compared[1] == op.over and op.queries == compared[:1])
    return distinct and over and summed and inside and causal
