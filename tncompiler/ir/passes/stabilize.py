"""Carry powers of two beside the values of networks, so that long products stay in range.

In: a scheduled program. Out: the same program in which every product that another contraction reads
is divided by a power of two, a scale of its own for each position of the axes that reach the end of
the network, whose exponents add up beside it. Where two tensors meet of which neither was divided,
the smaller one is first: what is left of their product is in range if both tensors are. A logarithm
takes exponents in, other functions of single networks pass them on, anything else multiplies them
back. A convolution is a product too, with one scale for all positions along its windows. An output
that is such a pair is returned as its value, with log10 of its scale as a further output after all
values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import DEFAULT, kind
from tncompiler.ir.errors import DTypeError
from tncompiler.ir.program import (
    Cast,
    Contract,
    Convolve,
    Fold,
    Labels,
    Literal,
    Map,
    Program,
    Step,
    Unfold,
    Value,
    Window,
    moving_labels,
)
from tncompiler.ir.scaled import (
    Scaled,
    add_exponents,
    add_scaled,
    align,
    log10_scale,
    logarithm,
    negate_exponent,
    normalise,
    plain,
)

_UNARY = ("neg", "conj", "real", "imag", "abs")  # the scale of the result is that of the operand
_NOMINAL = 128  # stands for a symbolic size when two operands are compared
_MADE_HERE = ("power_of_two", "decimal_exponent")


def carry_exponents(program: Program) -> Program:
    """Carry exponents through every network. Raises DTypeError for a network of integers.

    A program that carries them already, or whose dtypes are undecided, stays as it is.
    """
    networks = networks_of(program)
    done = any(isinstance(s.op, Map) and s.op.function in _MADE_HERE for s in program.steps)
    undecided = any(step.out.dtype == DEFAULT for step in program.steps)
    return program if done or undecided or not networks else _Carrier(program, networks).run()


def networks_of(program: Program) -> frozenset[str]:
    """The values that are products of tensors, or sums, quotients, parts and the like of such.

    The same for a logical program and for its schedule.
    """
    found: set[str] = set()
    numbers = _numbers(program)
    for step in program.steps:
        if kind(step.out.dtype) != "bool" and _is_network(step, found, numbers):
            found.add(step.out.name)
    return frozenset(found)


def _numbers(program: Program) -> set[str]:
    """The values that are no tensors of people: literals, ones, windows, whatever their dtype.

    A schedule has such factors that its logical program has not, or the other way round.
    """
    numbers: set[str] = set()
    for step in program.steps:
        made_of_nothing = isinstance(step.op, Literal | Window | Contract) and not step.operands
        if made_of_nothing or (isinstance(step.op, Cast) and numbers.issuperset(step.operands)):
            numbers.add(step.out.name)
    return numbers


def scaled_outputs(program: Program) -> tuple[bool, ...]:
    """For each output, whether it comes as a pair of value and scale."""
    networks = networks_of(program)
    return tuple(name in networks for name in program.outputs)


def _is_network(step: Step, found: set[str], numbers: set[str]) -> bool:
    own = found.intersection(step.operands)
    match step.op:
        case Contract() | Convolve():
            return bool(own) or sum(name not in numbers for name in step.operands) > 1
        case Unfold() | Fold():
            return bool(own)
        case Cast():
            return bool(own) and kind(step.out.dtype) in ("float", "complex")
        case Map("add" | "sub"):
            return own.issuperset(step.operands) and bool(own)
        case Map(name):
            return bool(own) and name in (*_UNARY, "div", "reciprocal")
    return False


class _Carrier:
    def __init__(self, program: Program, networks: frozenset[str]) -> None:
        self.program, self.networks = program, networks
        self.builder = Builder(like=program)
        self.apart = _axes_apart(program)
        self.numbers = _numbers(program)
        self.scaled = {a.value.name: Scaled(a.value) for a in program.arguments}
        self.worth: dict[str, Value] = {}  # pairs multiplied back
        self.divided: dict[str, Scaled] = {}  # operands of networks that were no products

    def run(self) -> Program:
        for step in self.program.steps:
            self.scaled[step.out.name] = self._step(step)
        outputs = self.program.outputs
        values = [self.scaled[name].value for name in outputs]
        pairs = [self.scaled[name] for name in outputs if name in self.networks]
        scales = [log10_scale(self.builder, pair) for pair in pairs]
        names = tuple(value.name for value in (*values, *scales))
        return self.program.with_steps(self.builder.steps, names)

    def _step(self, step: Step) -> Scaled:
        own = [self.scaled[name] for name in step.operands]
        if isinstance(step.op, Map) and step.op.function == "log":
            return Scaled(logarithm(self.builder, own[0]))
        if step.out.name not in self.networks:
            return Scaled(self.builder.copy(step, [self._plain(name) for name in step.operands]))
        if kind(step.out.dtype) == "int":
            raise DTypeError(
                f"stabilize='exponent' cannot scale the network {step.out.name!r} of "
                f"{step.out.dtype} numbers",
                fix="give its tensors a float dtype, or leave stabilize at 'none'",
            )
        wires = _wires(step)
        if wires is not None:
            return self._contract(step, wires, own)
        return self._function(step, own)

    def _plain(self, name: str) -> Value:
        """What a value is worth; multiplied back once for all who read it."""
        if name not in self.worth:
            self.worth[name] = plain(self.builder, self.scaled[name])
        return self.worth[name]

    def _contract(self, step: Step, wires: Contract, own: Sequence[Scaled]) -> Scaled:
        terms = [
            align(self.builder, term, _surviving(labels, wires.output))
            for term, labels in zip(self._in_range(step, own), wires.inputs, strict=True)
        ]
        made = self.builder.copy(step, [term.value for term in terms])
        moved = [
            replace(term, axes=tuple(wires.output.index(labels[axis]) for axis in term.axes))
            for term, labels in zip(terms, wires.inputs, strict=True)
        ]
        product = add_exponents(self.builder, made, moved)
        apart = self.apart.get(step.out.name)
        if apart is None or len(step.operands) < 2:
            return product
        return normalise(self.builder, align(self.builder, product, apart), apart)

    def _in_range(self, step: Step, own: Sequence[Scaled]) -> list[Scaled]:
        """The operands, the smaller one divided if none is: numbers of people are left alone."""
        terms = list(own)
        whole = [k for k, name in enumerate(step.operands) if name not in self.numbers]
        if len(whole) == 2 and all(term.exponent is None for term in terms):
            small = min(whole, key=lambda k: _elements(terms[k].value))
            terms[small] = self._divided(step.operands[small])
        return terms

    def _divided(self, name: str) -> Scaled:
        """An operand divided, once for all who read it."""
        if name not in self.divided:
            self.divided[name] = normalise(self.builder, self.scaled[name], self.apart[name])
        return self.divided[name]

    def _function(self, step: Step, own: Sequence[Scaled]) -> Scaled:
        if isinstance(step.op, Cast):
            return replace(own[0], value=self.builder.copy(step, [own[0].value]))
        op: Map = step.op  # type: ignore[assignment]
        terms = [self._spread(*pair, step.out) for pair in zip(own, op.inputs, strict=True)]
        if op.function in ("add", "sub"):
            return add_scaled(self.builder, terms[0], terms[1], op.function)
        made = self.builder.copy(step, [term.value for term in own])
        if op.function in ("div", "reciprocal"):
            terms[-1] = negate_exponent(self.builder, terms[-1])
        return add_exponents(self.builder, made, terms)

    def _spread(self, term: Scaled, wires: Labels, out: Value) -> Scaled:
        """An operand of a map with all axes of the result."""
        every = tuple(range(len(out.shape)))
        value = self.builder.contract((term.value,), (wires,), every, out.shape, out.axes)
        return Scaled(value, term.exponent, tuple(wires[axis] for axis in term.axes))


def _elements(value: Value) -> int:
    """How large a value is; a size that only calls make known counts as that of a batch."""
    return math.prod([size if isinstance(size, int) else _NOMINAL for size in value.shape])


def _wires(step: Step) -> Contract | None:
    """The step as if it were a plain contraction, if each of its sums is over products.

    Axes along which windows move are new in the result: no position of an operand is one of them.
    """
    match step.op:
        case Contract() | Convolve() as op:
            moving = moving_labels(op)
            return Contract(op.inputs, tuple(~x if x in moving else x for x in op.output))
        case Unfold(axis):
            every = tuple(range(len(step.out.shape) - 1))
            return Contract((every,), (*every[:axis], -1, -2, *every[axis + 1 :]))
        case Fold(axis):
            every = tuple(range(len(step.out.shape) + 1))
            return Contract((every,), (*every[:axis], -1, *every[axis + 2 :]))
    return None


def _surviving(labels: Labels, output: Labels) -> Labels:
    """The axes of an operand that are axes of the result, diagonals left out."""
    return tuple(k for k, x in enumerate(labels) if x in output and labels.count(x) == 1)


def _axes_apart(program: Program) -> dict[str, Labels]:
    """For each value that a contraction reads: the axes along which every network that reads it
    keeps its positions apart, to the end or to a sum of one operand, which aligns them."""
    apart: dict[str, Labels] = {}
    for step in reversed(program.steps):
        wires = _wires(step)
        if wires is None:
            continue
        every = tuple(range(len(step.out.shape)))
        open_labels = {wires.output[axis] for axis in apart.get(step.out.name, every)}
        for name, labels in zip(step.operands, wires.inputs, strict=True):
            kept = {k for k in _surviving(labels, wires.output) if labels[k] in open_labels}
            if len(step.operands) == 1:
                kept.update(k for k, x in enumerate(labels) if x not in wires.output)
            before = apart.get(name, tuple(range(len(labels))))
            apart[name] = tuple(axis for axis in before if axis in kept)
    return apart
