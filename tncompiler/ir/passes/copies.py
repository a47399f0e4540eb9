"""Write permuting copies down as steps, so that they are shared, counted and shown.

A matrix product whose operand does not stand in contiguous blocks needs it permuted first. Here
that becomes a Permute step; a copy that another product, forward or backward, needs too is made
once.
"""

from __future__ import annotations

from tncompiler.ir.builder import Builder
from tncompiler.ir.matmul import is_matmul, matmul_form
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
        self.made: dict[tuple[str, Labels], Value] = {}

    def add(self, step: Step) -> None:
        operands = operand_values(self.program, step)
        op = step.op
        if isinstance(op, Permute):
            self.made.setdefault((operands[0].name, op.axes), step.out)
        if not isinstance(op, Contract) or not is_matmul(op):
            self.builder.copy(step, operands)
            return
        sizes = label_sizes(op, operands, step.out)
        form = matmul_form(op, {k: s if isinstance(s, int) else _NOMINAL for k, s in sizes.items()})
        a, b = operands
        wires_a, wires_b = op.inputs
        if form.a_copied:
            a, wires_a = self._copied(a, wires_a, (form.batch, form.m, form.k))
        if form.b_copied:
            b, wires_b = self._copied(b, wires_b, (form.batch, form.k, form.n))
        read = canonical(Contract((wires_a, wires_b), op.output))
        self.builder.copy(Step(step.out, read, ()), (a, b))

    def _copied(
        self, value: Value, labels: Labels, blocks: tuple[Labels, Labels, Labels]
    ) -> tuple[Value, Labels]:
        """The operand in blocks, either way round; one that exists already if there is one."""
        batch, rows, columns = blocks
        orders = [(*batch, *rows, *columns), (*batch, *columns, *rows)]
        orders.sort(key=lambda order: order[-1] != labels[-1])  # whole runs are copied faster
        for order in orders:
            axes = tuple(labels.index(label) for label in order)
            if (value.name, axes) in self.made:
                return self.made[value.name, axes], order
        order = orders[0]
        axes = tuple(labels.index(label) for label in order)
        copied = self.builder.emit(
            Permute(axes),
            (value,),
            [value.shape[axis] for axis in axes],
            value.dtype,
            [value.axes[axis] for axis in axes],
        )
        self.made[value.name, axes] = copied
        return copied, order
