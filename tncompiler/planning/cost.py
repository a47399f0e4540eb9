"""What a program costs: symbolic terms for flops and bytes, a number for the peak of live bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sympy

from tncompiler.ir.attention import Attention
from tncompiler.ir.attention_body import body_of
from tncompiler.ir.gather import Scatter
from tncompiler.ir.pairs import Pairs, PairsAdjoint
from tncompiler.ir.program import (
    Fold,
    Loop,
    Map,
    Networks,
    Program,
    Reduce,
    Scan,
    Step,
    contract_flops,
    element_count,
    operand_values,
)
from tncompiler.ir.sizes import Binding, Terms, evaluate
from tncompiler.planning.memory import is_view, made_bytes, nbytes, peak_bytes, read_values

EIGEN = 60  # flops by r³ of two symmetric eigenproblems with vectors, and products


@dataclass(frozen=True)
class Cost:
    """Cost of one program.

    ``flops``: of contractions, a multiply-add counted as 2. ``elementwise``: results of maps and
    reductions. ``bytes_read`` / ``bytes_written``: by all steps. ``peak_bytes``: the most bytes of
    computed values alive at once, arguments not counted; outputs and saved values are. Sympy
    expressions in the free sizes, or ints where there are none; the peak is always an int, at the
    sizes that were asked for.
    """

    flops: sympy.Expr | int
    bytes_read: sympy.Expr | int
    bytes_written: sympy.Expr | int
    peak_bytes: int
    elementwise: sympy.Expr | int = 0

    def at(self, binding: Binding) -> Cost:
        """The cost at known sizes."""
        return Cost(
            evaluate(self.flops, binding),
            evaluate(self.bytes_read, binding),
            evaluate(self.bytes_written, binding),
            self.peak_bytes,
            evaluate(self.elementwise, binding),
        )


def step_flops(program: Program, step: Step) -> Terms:
    """Flops of a contraction, or of all in a loop; none for other steps."""
    if isinstance(step.op, Loop | Scan):
        return _repeated(step.op, (step_flops(step.op.body, inner) for inner in step.op.body.steps))
    if isinstance(step.op, Attention):
        body = body_of(step, operand_values(program, step))
        return Terms.total(step_flops(body, inner) for inner in body.steps)
    if isinstance(step.op, Pairs | PairsAdjoint):  # two eigenproblems and some products
        matrix = operand_values(program, step)[0].shape
        return Terms.of(EIGEN, (*matrix, matrix[-1]))
    if isinstance(step.op, Networks):
        return contract_flops(step.op, operand_values(program, step), step.out)
    return Terms()


def step_elementwise(step: Step, program: Program) -> Terms:
    """Results of a map; elements read by a reduction, or summed by position or out of windows."""
    if isinstance(step.op, Loop | Scan):
        body = step.op.body
        return _repeated(step.op, (step_elementwise(inner, body) for inner in body.steps))
    if isinstance(step.op, Attention):
        body = body_of(step, operand_values(program, step))
        return Terms.total(step_elementwise(inner, body) for inner in body.steps)
    if isinstance(step.op, Map):
        return element_count(step.out)
    if isinstance(step.op, Reduce | Scatter | Fold):
        return element_count(operand_values(program, step)[0])
    return Terms()


def _repeated(loop: Loop | Scan, costs: Iterable[Terms]) -> Terms:
    """The cost of all blocks or positions together, from those of the body's steps for one.

    Exact: the size of a block is a factor once or not at all, and blocks add up to the size.
    """
    total = Terms.total(costs)
    if isinstance(loop, Scan) or isinstance(loop.block, int):
        return Terms.total(Terms.of(c, (loop.count, *f)) for c, f in total.terms)
    terms = []
    for coefficient, factors in total.terms:
        left = [size for size in factors if size != loop.block]
        whole = loop.size if len(left) < len(factors) else loop.count
        terms.append(Terms.of(coefficient, (whole, *left)))
    return Terms.total(terms)


def step_bytes(program: Program, step: Step) -> tuple[Terms, Terms]:
    """Bytes read and written; a loop writes its results block by block, beside its body's steps."""
    if is_view(step):
        return Terms(), Terms()
    if isinstance(step.op, Loop | Scan):
        body = step.op.body
        inner = [step_bytes(body, one) for one in body.steps]
        results = _put_in_place(step.op)
        read = _repeated(step.op, (*(r for r, _ in inner), results))
        return read, _repeated(step.op, (*(w for _, w in inner), results))
    if isinstance(step.op, Attention):
        body = body_of(step, operand_values(program, step))
        inner = [step_bytes(body, one) for one in body.steps]
        return Terms.total(r for r, _ in inner), Terms.total(w for _, w in inner)
    read = Terms.total(nbytes(v) for v in read_values(step, operand_values(program, step)))
    return read, made_bytes(program, step)


def _put_in_place(op: Loop | Scan) -> Terms:
    """Bytes of the results of one block or position; states stay where they are."""
    first = op.carried if isinstance(op, Scan) else 0
    return Terms.total(nbytes(op.body.values[name]) for name in op.body.outputs[first:])


@dataclass(frozen=True, slots=True)
class FlatStep:
    """A step of a program or of a loop's body, with what all its repetitions cost together.

    ``program`` is the one that the step is in, ``loops`` the loops around it. The costs of a loop
    itself are those of putting its results where they belong; its steps follow it.
    """

    program: Program
    step: Step
    loops: tuple[Loop | Scan, ...]
    flops: Terms
    elementwise: Terms
    bytes_read: Terms
    bytes_written: Terms

    def within(self, loop: Loop | Scan) -> FlatStep:
        """The step as one of the body of a loop."""
        return FlatStep(
            self.program,
            self.step,
            (loop, *self.loops),
            _repeated(loop, (self.flops,)),
            _repeated(loop, (self.elementwise,)),
            _repeated(loop, (self.bytes_read,)),
            _repeated(loop, (self.bytes_written,)),
        )


def flat_steps(program: Program) -> Iterator[FlatStep]:
    """All steps in order, those of loops after their loop; their costs add up to the program's."""
    for step in program.steps:
        if isinstance(step.op, Loop | Scan):
            body = step.op.body
            moved = _repeated(step.op, (_put_in_place(step.op),))
            yield FlatStep(program, step, (), Terms(), Terms(), moved, moved)
            for inner in flat_steps(body):
                yield inner.within(step.op)
        else:
            read, written = step_bytes(program, step)
            flops, maps = step_flops(program, step), step_elementwise(step, program)
            yield FlatStep(program, step, (), flops, maps, read, written)


def program_cost(program: Program, binding: Binding) -> Cost:
    """The cost of a scheduled program; symbolic in what `binding` leaves free only for the peak."""
    read, written = [], []
    for step in program.steps:
        r, w = step_bytes(program, step)
        read.append(r)
        written.append(w)
    flops = Terms.total(step_flops(program, step) for step in program.steps)
    maps = Terms.total(step_elementwise(step, program) for step in program.steps)
    return Cost(
        _number(flops),
        _number(Terms.total(read)),
        _number(Terms.total(written)),
        peak_bytes(program, binding),
        _number(maps),
    )


def _number(terms: Terms) -> sympy.Expr | int:
    value = terms.to_sympy()
    return int(value) if isinstance(value, sympy.Integer) else value
