"""Reverse-mode differentiation, Program → Program: one rule per step kind, closed under itself.

In: any valid program. Out: the same program with a cotangent argument per output and, as further
outputs, the gradient of each chosen argument. Values that no chosen argument reaches cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tncompiler.ir.arange import Positions
from tncompiler.ir.attention import Attention
from tncompiler.ir.attention_body import adjoint_attention
from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import real_part
from tncompiler.ir.functions import function
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.gather_rules import adjoint_gather, adjoint_scatter
from tncompiler.ir.pairs import Pairs, PairsAdjoint
from tncompiler.ir.pairs_rules import adjoint as adjoint_pairs
from tncompiler.ir.pairs_rules import adjoint_again
from tncompiler.ir.passes.window_rules import (
    convolve_adjoint,
    fold_adjoint,
    unfold_adjoint,
    window_adjoint,
)
from tncompiler.ir.program import (
    Cast,
    Concat,
    Contract,
    Convolve,
    Fold,
    Labels,
    Literal,
    Map,
    Merge,
    Pad,
    Permute,
    Pick,
    Program,
    Reduce,
    Scan,
    Slice,
    Split,
    Step,
    Unfold,
    Value,
    Window,
    fresh_name,
    label_names,
    label_sizes,
    operand_values,
)
from tncompiler.ir.scans.adjoint import ScanAdjoint
from tncompiler.ir.scans.steps import active_arguments, reached_values
from tncompiler.ir.trace import Traced, Tracer


@dataclass(frozen=True, slots=True)
class GradientOrder:
    """How the gradients of one network are made, in place of reversing the steps it became.

    ``network`` is its contraction of all operands. ``pairs``: what to contract with what; operands
    have their numbers, then comes the cotangent, then the results. ``results``: the number of each
    operand's gradient.
    """

    network: Step
    pairs: tuple[tuple[int, int], ...]
    results: Mapping[int, int]

    def fits(self, program: Program) -> bool:
        """Whether the program still has all values that the network was made of."""
        names = (*self.network.operands, self.network.out.name)
        return all(name in program.values for name in names)


def adjoint(
    program: Program,
    wrt: Sequence[str],
    *,
    keep_outputs: bool = True,
    seeded: int | None = None,
    orders: Mapping[str, GradientOrder] | None = None,
) -> Program:
    """Append the gradients of the arguments named in `wrt`.

    The new cotangent arguments are named after the outputs; the result's outputs are those of the
    program (unless `keep_outputs` is false), then one gradient per name, zeros where none flows.
    Only the first `seeded` outputs receive a cotangent; the others are constants. ``orders``: by
    the name of its value, how a network's gradients are made; others are reversed.
    """
    fitting = {name: o for name, o in (orders or {}).items() if o.fits(program)}
    reverse = _Reverse(program, wrt, program.outputs[:seeded], fitting)
    for step in reversed(program.steps):
        reverse.step(step)
    gradients = [reverse.gradient(name) for name in wrt]
    primal = [program.values[name] for name in program.outputs] if keep_outputs else []
    return reverse.builder.program([*primal, *gradients])


def reachable_from(program: Program, names: Sequence[str]) -> set[str]:
    """Every differentiable value that depends on one of the named arguments."""
    return reached_values(program, names)


class _Reverse:
    def __init__(
        self,
        program: Program,
        wrt: Sequence[str],
        seeded: Sequence[str],
        orders: Mapping[str, GradientOrder],
    ) -> None:
        self.program, self.orders = program, orders
        self.builder = Builder(like=program)
        self.active = reachable_from(program, wrt)
        self.pending: dict[str, list[Value]] = {}
        self.results: dict[str, dict[int, Value]] = {}  # cotangents of what scans give
        for step in program.steps:
            self.builder.copy(step, operand_values(program, step))
        for position, name in enumerate(seeded):
            self._seed(program.values[name], position)

    def _seed(self, output: Value, position: int) -> None:
        name = fresh_name(f"ct{position}", self.program.values)
        value = Value(name, output.shape, output.dtype, output.axes)
        self.builder.argument(value, "cotangent")
        self.give(output, value)

    def give(self, target: Value, cotangent: Value | None) -> None:
        """Add to what `target` has received, as a number of its kind."""
        if target.name not in self.active or cotangent is None:
            return
        if cotangent.dtype != target.dtype:
            wires = (tuple(range(len(target.shape))),) * 2
            cotangent = self.builder.map(
                "project", (cotangent, target), wires, target.shape, target.axes
            )
        self.pending.setdefault(target.name, []).append(cotangent)

    def received(self, name: str) -> Value | None:
        contributions = self.pending.pop(name, None)
        return self.builder.add(contributions) if contributions else None

    def step(self, step: Step) -> None:
        if isinstance(step.op, Scan):
            self._scan(step, step.op)
            return
        cotangent = self.received(step.out.name)
        if cotangent is not None and step.out.name in self.orders:
            _Ordered(self, self.orders[step.out.name], cotangent).give_all()
        elif cotangent is not None:
            operands = operand_values(self.program, step)
            ADJOINT_RULES[type(step.op)](self, step, operands, cotangent)

    def _scan(self, step: Step, op: Scan) -> None:
        received = self.results.get(step.out.name)
        if not received:
            return
        operands = operand_values(self.program, step)
        active = active_arguments(op, operands, self.active)
        reverse = ScanAdjoint(self.builder, step.out, op, operands, received, active)
        gradients = reverse.gradients(adjoint)
        for argument, operand in zip(op.body.arguments, operands, strict=True):
            self.give(operand, gradients.get(argument.value.name))

    def gradient(self, name: str) -> Value:
        target = self.program.values[name]
        return self.received(name) or self.builder.zeros(target)

    def conj(self, value: Value) -> Value:
        wires = (tuple(range(len(value.shape))),)
        return self.builder.map("conj", (value,), wires, value.shape, value.axes)


def _contract(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    """∂/∂operand: the cotangent contracted with the conjugates of all others."""
    op: Contract = step.op  # type: ignore[assignment]
    names = label_names(op, operands, step.out)
    for position, target in enumerate(operands):
        if target.name not in rev.active:
            continue
        others = [
            (v, w)
            for k, (v, w) in enumerate(zip(operands, op.inputs, strict=True))
            if k != position
        ]
        values = [cotangent, *(rev.conj(value) for value, _ in others)]
        wires = [op.output, *(labels for _, labels in others)]
        wanted = op.inputs[position]
        axes = [names[label] for label in wanted]
        rev.give(target, rev.builder.contract(values, wires, wanted, target.shape, axes))


class _Ordered:
    """The gradients of a network in an order of their own.

    Sets of operands are contracted as the forward pass does it and conjugated where they meet the
    cotangent, so that what the forward pass has made too is seen to be the same, and merged.
    """

    def __init__(self, rev: _Reverse, order: GradientOrder, cotangent: Value) -> None:
        self.rev, self.order = rev, order
        self.op: Contract = order.network.op  # type: ignore[assignment]
        self.operands = [rev.program.values[name] for name in order.network.operands]
        self.sizes = label_sizes(self.op, self.operands, order.network.out)
        self.names = label_names(self.op, self.operands, order.network.out)
        wires = (*self.op.inputs, self.op.output)
        self.terms = list(zip((*self.operands, cotangent), wires, strict=True))
        self.members = [frozenset((k,)) for k in range(len(self.terms))]

    def give_all(self) -> None:
        given = {number: operand for operand, number in self.order.results.items()}
        for number, (a, b) in enumerate(self.order.pairs, len(self.terms)):
            operand = given.get(number)
            self.members.append(self.members[a] | self.members[b])
            wanted = self._open(a, b) if operand is None else self.op.inputs[operand]
            made = self._contract(self._factor(a), self._factor(b), wanted)
            self.terms.append((made, wanted))
            if operand is not None:
                self.rev.give(self.operands[operand], made)

    def _open(self, a: int, b: int) -> Labels:
        """The labels of a product that others carry too, in the order that scheduling gives it."""
        others = [k for k in range(len(self.operands) + 1) if k not in self.members[-1]]
        outside = {label for k in others for label in self.terms[k][1]}
        inside = dict.fromkeys((*self.terms[a][1], *self.terms[b][1]))
        return tuple(label for label in inside if label in outside)

    def _contract(self, a: tuple[Value, Labels], b: tuple[Value, Labels], wanted: Labels) -> Value:
        shape, axes = [self.sizes[k] for k in wanted], [self.names[k] for k in wanted]
        return self.rev.builder.contract((a[0], b[0]), (a[1], b[1]), wanted, shape, axes)

    def _factor(self, number: int) -> tuple[Value, Labels]:
        """A term of the product in the making, conjugated if it is about to meet the cotangent."""
        value, labels = self.terms[number]
        cotangent = len(self.operands)
        meets = cotangent in self.members[-1] and cotangent not in self.members[number]
        return (self.rev.conj(value), labels) if meets else (value, labels)


def _map(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Map = step.op  # type: ignore[assignment]
    rule = function(op.function)
    tracer = Tracer(rev.builder, step.out, real_part(step.out.dtype))
    traced = [tracer.wrap(v, labels) for v, labels in zip(operands, op.inputs, strict=True)]
    ct, out = tracer.wrap(cotangent), tracer.wrap(step.out)
    if rule.adjoint is not None:
        products = rule.adjoint(tracer.call, ct, *traced, out)
        for target, labels, product in zip(operands, op.inputs, products, strict=True):
            if target.name in rev.active and product is not None:
                rev.give(target, _summed(tracer, product, labels))
        return
    for target, labels, partial in zip(operands, op.inputs, rule.partials or (), strict=True):
        if target.name in rev.active and partial is not None:
            slope = partial(tracer.call, *traced, out)
            rev.give(target, _times_conj(rev, tracer, ct, slope, labels))


def _summed(tracer: Tracer, product: Traced, labels: tuple[int, ...]) -> Value:
    return tracer.multiply(product, keep=labels).value


def _times_conj(
    rev: _Reverse, tracer: Tracer, ct: Traced, slope: Any, labels: tuple[int, ...]
) -> Value:
    """ct * conj(slope), summed over the axes that the operand does not have."""
    if not isinstance(slope, Traced):
        if slope == 1.0:
            return _summed(tracer, ct, labels)
        if slope == -1.0:
            return _summed(tracer, tracer.call("neg", ct), labels)
        return tracer.multiply(ct, slope, keep=labels).value
    conjugated = tracer.wrap(rev.conj(slope.value), slope.labels)
    return tracer.multiply(ct, conjugated, keep=labels).value


def tie_shares(tracer: Tracer, source: Traced, extreme: Traced) -> Traced:
    """At each extreme 1 over the number of ties, elsewhere 0; as `torch.amax` shares."""
    hit = tracer.call("where", tracer.call("equal", source, extreme), 1.0, 0.0)
    share: Traced = hit / tracer.multiply(hit, keep=extreme.labels)
    return share


def _reduce(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Reduce = step.op  # type: ignore[assignment]
    (source,) = operands
    kept = tuple(axis for axis in range(len(source.shape)) if axis not in op.axes)
    tracer = Tracer(rev.builder, source, real_part(source.dtype))
    share = tie_shares(tracer, tracer.wrap(source), tracer.wrap(step.out, kept))
    rev.give(source, (tracer.wrap(cotangent, kept) * share).value)


def _permute(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Permute = step.op  # type: ignore[assignment]
    (source,) = operands
    back = tuple(op.axes.index(axis) for axis in range(len(op.axes)))
    labels = tuple(range(len(back)))
    rev.give(source, rev.builder.contract([cotangent], [labels], back, source.shape, source.axes))


def _split(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Split = step.op  # type: ignore[assignment]
    (source,) = operands
    size, name = source.shape[op.axis], source.axes[op.axis]
    rev.give(source, rev.builder.merge(cotangent, op.axis, op.count, size, name))


def _merge(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Merge = step.op  # type: ignore[assignment]
    (source,) = operands
    merged = slice(op.axis, op.axis + op.count)
    parts, names = source.shape[merged], source.axes[merged]
    rev.give(source, rev.builder.split(cotangent, op.axis, parts, names))


def _slice(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Slice = step.op  # type: ignore[assignment]
    (source,) = operands
    after = source.shape[op.axis] - op.stop
    rev.give(source, rev.builder.pad(cotangent, op.axis, op.start, after))


def _pad(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Pad = step.op  # type: ignore[assignment]
    (source,) = operands
    stop = op.before + source.shape[op.axis]
    rev.give(source, rev.builder.slice(cotangent, op.axis, op.before, stop))


def _concat(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Concat = step.op  # type: ignore[assignment]
    start: Any = 0
    for target in operands:
        stop = start + target.shape[op.axis]
        if target.name in rev.active:
            rev.give(target, rev.builder.slice(cotangent, op.axis, start, stop))
        start = stop


def _cast(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    rev.give(operands[0], cotangent)


def _pick(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    op: Pick = step.op  # type: ignore[assignment]
    received = rev.results.setdefault(operands[0].name, {})
    known = received.get(op.position)
    received[op.position] = cotangent if known is None else rev.builder.add([known, cotangent])


def _literal(rev: _Reverse, step: Step, operands: tuple[Value, ...], cotangent: Value) -> None:
    """A number receives nothing."""


ADJOINT_RULES: dict[type, Callable[..., None]] = {
    Contract: _contract,
    Map: _map,
    Reduce: _reduce,
    Permute: _permute,
    Split: _split,
    Merge: _merge,
    Slice: _slice,
    Pad: _pad,
    Concat: _concat,
    Cast: _cast,
    Literal: _literal,
    Convolve: convolve_adjoint,
    Unfold: unfold_adjoint,
    Fold: fold_adjoint,
    Window: window_adjoint,
    Pairs: adjoint_pairs,
    PairsAdjoint: adjoint_again,
    Positions: _literal,
    Attention: adjoint_attention,
    Gather: adjoint_gather,
    Scatter: adjoint_scatter,
    Pick: _pick,
}
