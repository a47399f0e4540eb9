"""What an Attention step means: a program of contractions and maps; and the rules that use it.

Derivatives are those of that program, so that a backward pass makes the weights again rather than
keep them: only query, key and value need be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from tncompiler.ir.arange import Positions
from tncompiler.ir.attention import LOW, Attention
from tncompiler.ir.builder import Builder
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import Labels, Program, Step, Value, operand_values
from tncompiler.ir.sizes import Size

if TYPE_CHECKING:
    from tncompiler.ir.passes.adjoint import _Reverse
    from tncompiler.ir.passes.tangent import _Forward

_NAMES = ("query", "key", "value", "mask")


def body_of(step: Step, operands: Sequence[Value]) -> Program:
    """The program that a step stands for; its arguments are called query, key, value and mask."""
    op: Attention = step.op  # type: ignore[assignment]
    return _body(op, tuple(operands), step.out)


@lru_cache(maxsize=64)
def _body(op: Attention, operands: tuple[Value, ...], out: Value) -> Program:
    return _Body(op, operands, out).program()


class _Body:
    def __init__(self, op: Attention, operands: tuple[Value, ...], out: Value) -> None:
        self.op, self.out, self.builder = op, out, Builder()
        self.given = [
            self.builder.argument(Value(name, v.shape, v.dtype, v.axes), "input")
            for name, v in zip(_NAMES, operands, strict=False)
        ]
        self.sizes: dict[int, Size] = {}
        self.names: dict[int, str] = {}
        for labels, value in zip(op.inputs, operands, strict=True):
            self.sizes.update(zip(labels, value.shape, strict=True))
            self.names.update(zip(labels, value.axes, strict=True))
        self.every = tuple(range(len(op.scores)))
        self.rest = self.every[:-1]

    def program(self) -> Program:
        query, key, value = self.given[:3]
        scores = self._contract((query, key), self.op.inputs[:2], self.op.scores)
        weights = self._softmax(self._masked(scores))
        wires = (self.op.scores, self.op.inputs[2])
        made = self.builder.contract(
            (weights, value), wires, self.op.output, self.out.shape, self.out.axes
        )
        return self.builder.program([made])

    def _contract(
        self, operands: Sequence[Value], wires: Sequence[Labels], output: Labels
    ) -> Value:
        shape, axes = [self.sizes[k] for k in output], [self.names[k] for k in output]
        return self.builder.contract(operands, wires, output, shape, axes)

    def _map(self, name: str, like: Value, *operands: tuple[Value, Labels]) -> Value:
        values, wires = zip(*operands, strict=True)
        return self.builder.map(name, values, wires, like.shape, like.axes)

    def _masked(self, scores: Value) -> Value:
        op, every = self.op, self.every
        low = self.builder.literal(LOW, scores.dtype)
        if op.causal:
            scores = self._map("where", scores, self._seen(), (scores, every), (low, ()))
        if not op.mask:
            return scores
        mask = (self.given[3], tuple(op.scores.index(label) for label in op.inputs[3]))
        if op.mask == "add":
            return self._map("add", scores, (scores, every), mask)
        return self._map("where", scores, mask, (scores, every), (low, ()))

    def _seen(self) -> tuple[Value, Labels]:
        """Whether a key's position is at most that of the query, and the axes of the scores."""
        (query,), key = self.op.queries, self.op.over
        wires = (self.op.scores.index(query), self.op.scores.index(key))
        shape, axes = [self.sizes[k] for k in (query, key)], [self.names[k] for k in (query, key)]
        at = [
            self.builder.emit(Positions(), (), (size,), "int64", (name,))
            for size, name in zip(shape, axes, strict=True)
        ]
        seen = self.builder.map("less_equal", at[::-1], ((1,), (0,)), shape, axes)
        return seen, wires

    def _softmax(self, scores: Value) -> Value:
        every, rest = self.every, self.rest
        top = self.builder.reduce("max", scores, (len(rest),))
        top = self._map("stop", top, (top, rest))
        shifted = self._map("sub", scores, (scores, every), (top, rest))
        powers = self._map("exp", scores, (shifted, every))
        total = self.builder.contract((powers,), (every,), rest, top.shape, top.axes)
        return self._map("div", scores, (powers, every), (total, rest))


def inline(builder: Builder, program: Program, given: Sequence[Value]) -> list[Value]:
    """Append a program's steps to others, its arguments being given; what its outputs are."""
    known = {a.value.name: v for a, v in zip(program.arguments, given, strict=True)}
    for step in program.steps:
        operands, out = [known[name] for name in step.operands], step.out
        known[out.name] = builder.emit(step.op, operands, out.shape, out.dtype, out.axes)
    return [known[name] for name in program.outputs]


def expand_attention(program: Program) -> Program:
    """The program with each Attention written out; for backends without a kernel for it.

    New values are called after the attention's own, so that their names are new in the bodies of
    loops too.
    """
    if not any(isinstance(step.op, Attention) for step in program.steps):
        return program
    steps: list[Step] = []
    for step in program.steps:
        steps += _written_out(program, step) if isinstance(step.op, Attention) else [step]
    return program.with_steps(steps)


def _written_out(program: Program, step: Step) -> list[Step]:
    body = body_of(step, operand_values(program, step))
    names = {a.value.name: n for a, n in zip(body.arguments, step.operands, strict=True)}
    names |= {inner.out.name: f"{step.out.name}_{inner.out.name}" for inner in body.steps}
    names[body.outputs[0]] = step.out.name
    return [
        Step(
            replace(inner.out, name=names[inner.out.name]),
            inner.op,
            tuple(names[name] for name in inner.operands),
        )
        for inner in body.steps
    ]


def adjoint_attention(
    rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value
) -> None:
    from tncompiler.ir.passes.adjoint import adjoint  # which has this rule in its table

    body = body_of(step, operands)
    wanted = [
        (argument.value.name, operand)
        for argument, operand in zip(body.arguments, operands, strict=True)
        if operand.name in rev.active
    ]
    reverse = adjoint(body, [name for name, _ in wanted], keep_outputs=False)
    made = inline(rev.builder, drop_dead_steps(reverse), (*operands, cotangent))
    for (_, operand), gradient in zip(wanted, made, strict=True):
        rev.give(operand, gradient)


def tangent_attention(fwd: _Forward, step: Step, operands: tuple[Value, ...]) -> Value | None:
    from tncompiler.ir.passes.tangent import tangent  # which has this rule in its table

    body = body_of(step, operands)
    moving = [
        (argument.value.name, moved)
        for argument, operand in zip(body.arguments, operands, strict=True)
        if (moved := fwd.of(operand)) is not None
    ]
    if not moving:
        return None
    forward = tangent(body, [name for name, _ in moving], keep_outputs=False)
    given = (*operands, *(moved for _, moved in moving))
    (made,) = inline(fwd.builder, drop_dead_steps(forward), given)
    return made
