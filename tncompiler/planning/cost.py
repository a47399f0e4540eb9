"""What a program costs: symbolic terms for flops and bytes, a number for the peak of live bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy

from tncompiler.ir.program import (
    Contract,
    Literal,
    Map,
    Merge,
    Program,
    Reduce,
    Split,
    Step,
    Value,
    contract_flops,
    element_count,
    operand_values,
)
from tncompiler.ir.sizes import Binding, Terms, evaluate

ITEM_BYTES: Mapping[str, int] = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
    "default": 4,
    "int64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}


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


def nbytes(value: Value) -> Terms:
    """The bytes of a value."""
    return Terms.of(ITEM_BYTES[value.dtype], value.shape)


def step_flops(program: Program, step: Step) -> Terms:
    """Flops of a contraction; none for other steps."""
    if isinstance(step.op, Contract):
        return contract_flops(step.op, operand_values(program, step), step.out)
    return Terms()


def step_elementwise(step: Step, program: Program) -> Terms:
    """Results of a map; elements read by a reduction."""
    if isinstance(step.op, Map):
        return element_count(step.out)
    if isinstance(step.op, Reduce):
        return element_count(operand_values(program, step)[0])
    return Terms()


def is_view(step: Step) -> bool:
    """Whether a step moves no data: splits, merges, literals, permutations, diagonals."""
    op = step.op
    if isinstance(op, Contract) and len(op.inputs) <= 1:
        return all(set(labels) == set(op.output) for labels in op.inputs) and (
            len(set(op.output)) == len(op.output)
        )
    return isinstance(op, Split | Merge | Literal)


def step_bytes(program: Program, step: Step) -> tuple[Terms, Terms]:
    """Bytes read and written."""
    if is_view(step):
        return Terms(), Terms()
    read = Terms.total(nbytes(value) for value in operand_values(program, step))
    return read, nbytes(step.out)


def peak_bytes(program: Program, binding: Binding) -> int:
    """The most bytes of computed values alive at once; views share their source's memory."""
    sizes = {step.out.name: nbytes(step.out).evaluate(binding) for step in program.steps}
    live = peak = 0
    for made, freed in _lifetimes(program):
        live += sum(sizes[name] for name in made)
        peak = max(peak, live)
        live -= sum(sizes[name] for name in freed)
    return peak


def peak_expression(program: Program) -> sympy.Expr:
    """The peak in the free sizes: an unevaluated Max over the steps, built on request."""
    alive: dict[str, Terms] = {}
    totals: dict[Terms, None] = {}
    for made, freed in _lifetimes(program):
        alive.update((name, nbytes(program.values[name])) for name in made)
        totals.setdefault(Terms.total(alive.values()))
        for name in freed:
            del alive[name]
    return sympy.Max(0, *(terms.to_sympy() for terms in totals), evaluate=False)


def _lifetimes(program: Program) -> Iterator[tuple[list[str], list[str]]]:
    """For each step, the values whose memory it takes and those whose memory is free after it."""
    owner = _owners(program)
    kept = {owner[name] for name in program.outputs if name in owner}
    last: dict[str, int] = {}
    for position, step in enumerate(program.steps):
        for name in (*step.operands, step.out.name):
            if name in owner:
                last[owner[name]] = position
    freed: dict[int, list[str]] = {}
    for name, position in last.items():
        if name not in kept:
            freed.setdefault(position, []).append(name)
    for position, step in enumerate(program.steps):
        made = [step.out.name] if owner.get(step.out.name) == step.out.name else []
        yield made, freed.get(position, [])


def _owners(program: Program) -> dict[str, str]:
    """Which computed value's memory each computed value lives in."""
    owner: dict[str, str] = {}
    for step in program.steps:
        source = step.operands[0] if step.operands and is_view(step) else None
        if source is None:
            owner[step.out.name] = step.out.name
        elif source in owner:
            owner[step.out.name] = owner[source]
    return owner


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
