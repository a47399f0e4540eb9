"""Write permuting copies down as steps, so that they are shared, counted and shown.

A matrix product whose operand does not stand in contiguous blocks needs it permuted first. Here
that becomes a Permute step; a copy that another product, forward or backward, needs too is made
once.
"""

from __future__ import annotations

import math
from itertools import product as choices

from tncompiler.ir.builder import Builder
from tncompiler.ir.matmul import copied_elements, is_product, matmul_form
from tncompiler.ir.passes.layout import places, wanted_order
from tncompiler.ir.program import (
    Contract,
    Labels,
    Permute,
    Program,
    Step,
    Value,
    canonical,
    label_sizes,
    operand_values,
)

Reading = tuple[Value, Labels]

_NOMINAL = 128  # stands for a symbolic size when copies are weighed


def copy_operands(program: Program) -> Program:
    """Give every matrix product operands that it can read in place."""
    copies = _Copies(program)
    for step in program.steps:
        copies.add(step)
    return program.with_steps(copies.builder.steps)


class _Copies:
    def __init__(self, program: Program) -> None:
        self.program, self.builder = program, Builder(like=program)
        self.made: dict[str, dict[Labels, Value]] = {}  # source → axes → copy

    def add(self, step: Step) -> None:
        operands = operand_values(self.program, step)
        op = step.op
        if isinstance(op, Permute):
            self.made.setdefault(operands[0].name, {}).setdefault(op.axes, step.out)
        if not isinstance(op, Contract) or len(operands) != 2:
            self.builder.copy(step, operands)
            return
        sizes = label_sizes(op, operands, step.out)
        numbers = {k: s if isinstance(s, int) else _NOMINAL for k, s in sizes.items()}
        if not is_product(op, numbers, step.out.dtype):
            self.builder.copy(step, operands)
            return
        (a, wires_a), (b, wires_b) = self._readings(op, operands, numbers)
        form = matmul_form(Contract((wires_a, wires_b), op.output), numbers)
        if not (form.a_copied or form.b_copied) and (a, b) == operands:
            self.builder.copy(step, operands)
            return
        if form.a_copied:
            a, wires_a = self._copied(a, wires_a, (form.batch, wanted_order(form.m, op), form.k))
        if form.b_copied:
            b, wires_b = self._copied(b, wires_b, (form.batch, form.k, wanted_order(form.n, op)))
        read = canonical(Contract((wires_a, wires_b), op.output))
        self.builder.copy(Step(step.out, read, ()), (a, b))

    def _readings(
        self, op: Contract, operands: tuple[Value, ...], numbers: dict[int, int]
    ) -> tuple[Reading, Reading]:
        """Each operand, or a copy of it that exists already where that saves copying."""
        first, second = map(self._alternatives, operands, op.inputs)
        if len(first) == len(second) == 1:
            return first[0], second[0]
        pairs = choices(first, second)
        return min(pairs, key=lambda pair: _copying(pair, op.output, numbers))

    def _alternatives(self, value: Value, labels: Labels) -> list[Reading]:
        copies = self.made.get(value.name, {})
        return [
            (value, labels),
            *((copy, tuple(labels[k] for k in axes)) for axes, copy in copies.items()),
        ]

    def _copied(
        self, value: Value, labels: Labels, blocks: tuple[Labels, Labels, Labels]
    ) -> tuple[Value, Labels]:
        """The operand in blocks, either way round; one that exists already if there is one."""
        batch, rows, columns = blocks
        orders = [(*batch, *rows, *columns), (*batch, *columns, *rows)]
        orders.sort(key=lambda order: order[-1] != labels[-1])  # whole runs are copied faster
        place = places(labels)
        for order in orders:
            axes = tuple(place[label] for label in order)
            if axes in self.made.get(value.name, {}):
                return self.made[value.name][axes], order
        order = orders[0]
        axes = tuple(place[label] for label in order)
        copied = self.builder.emit(
            Permute(axes),
            (value,),
            [value.shape[axis] for axis in axes],
            value.dtype,
            [value.axes[axis] for axis in axes],
        )
        self.made.setdefault(value.name, {})[axes] = copied
        return copied, order


def _copying(pair: tuple[Reading, Reading], output: Labels, numbers: dict[int, int]) -> int:
    """Elements copied for a product: operands that must be permuted, a result that comes askew."""
    op = Contract((pair[0][1], pair[1][1]), output)
    form = matmul_form(op, numbers)
    askew = 0 if output in form.natural() else math.prod(numbers[label] for label in output)
    return copied_elements(form, op, numbers) + askew
