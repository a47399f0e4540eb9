"""Take axes of size 1 off the tensors of products, so that no product sees them.

In: a scheduled program. Out: the same one whose products read and make tensors without such axes;
views take them off arguments and give them back to outputs, and to steps that want them. An axis of
size 1 between two others keeps these from being one block that BLAS can read, and costs a copy.
"""

from __future__ import annotations

from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.program import (
    Contract,
    Labels,
    Program,
    Split,
    Step,
    Value,
    canonical,
    operand_values,
)


def drop_unit_axes(program: Program) -> Program:
    """Products without axes of size 1, where each of their tensors has another."""
    thin = {step.out.name for step in program.steps if _can_thin(program, step)}
    if not thin:
        return program
    return _Thinning(program, thin).program()


def _can_thin(program: Program, step: Step) -> bool:
    """Whether a step is a product with an axis to take off, none of whose tensors is all such."""
    if not isinstance(step.op, Contract) or len(step.op.inputs) != 2:
        return False
    tensors = (*operand_values(program, step), step.out)
    kept = [_staying(value) for value in tensors]
    fewer = any(len(k) < len(v.shape) for k, v in zip(kept, tensors, strict=True))
    return fewer and all(k or not v.shape for k, v in zip(kept, tensors, strict=True))


def _staying(value: Value) -> list[int]:
    """The axes that are not of size 1."""
    return [k for k, size in enumerate(value.shape) if size != 1]


def _thin(value: Value) -> Value:
    kept = _staying(value)
    axes = tuple(value.axes[k] for k in kept)
    return replace(value, shape=tuple(value.shape[k] for k in kept), axes=axes)


def _thin_labels(labels: Labels, value: Value) -> Labels:
    return tuple(labels[k] for k in _staying(value))


def _groups(value: Value) -> list[list[int]]:
    """Axes together: each that stays with those of size 1 before it, the last with all after it.

    Batches come first, so that they stay alone and can be cut into blocks.
    """
    ends = [k + 1 for k in _staying(value)[:-1]] + [len(value.shape)]
    return [list(range(a, b)) for a, b in zip([0, *ends], ends, strict=False)]


class _Thinning:
    """The program on its way; ``made``: values without axes of size 1, by the name of the whole."""

    def __init__(self, program: Program, thin: set[str]) -> None:
        self.source, self.thin, self.builder = program, thin, Builder(like=program)
        self.made: dict[str, Value] = {}
        others = [step.operands for step in program.steps if step.out.name not in thin]
        self.wanted = {*program.outputs, *(name for names in others for name in names)}

    def program(self) -> Program:
        for step in self.source.steps:
            operands = operand_values(self.source, step)
            if isinstance(step.op, Contract) and step.out.name in self.thin:
                self._product(step, step.op, operands)
            else:
                self.builder.copy(step, operands)
        return self.source.with_steps(self.builder.steps)

    def _product(self, step: Step, op: Contract, operands: tuple[Value, ...]) -> None:
        given = [self._read(value) for value in operands]
        inputs = tuple(map(_thin_labels, op.inputs, operands))
        product = canonical(Contract(inputs, _thin_labels(op.output, step.out)))
        out = _thin(step.out)
        if out == step.out or step.out.name not in self.wanted:
            made = self.builder.copy(Step(out, product, ()), given)
        else:
            made = self.builder.emit(product, given, out.shape, out.dtype, out.axes)
            self._restore(made, step.out)
        self.made[step.out.name] = made

    def _read(self, value: Value) -> Value:
        """The value without its axes of size 1, each merged into one beside it."""
        if value.name not in self.made:
            found, thin = value, _thin(value)
            for axis, group in enumerate(_groups(value)):
                if len(group) > 1:
                    size, name = thin.shape[axis], thin.axes[axis]
                    found = self.builder.merge(found, axis, len(group), size, name)
            self.made[value.name] = found
        return self.made[value.name]

    def _restore(self, thin: Value, value: Value) -> None:
        """Make the value as it was of what it is without axes of size 1."""
        groups = [(axis, group) for axis, group in enumerate(_groups(value)) if len(group) > 1]
        while len(groups) > 1:  # from the last, so that those before it keep their places
            axis, group = groups.pop()
            sizes, names = [value.shape[k] for k in group], [value.axes[k] for k in group]
            thin = self.builder.split(thin, axis, sizes, names)
        ((axis, group),) = groups
        self.builder.copy(Step(value, Split(axis, len(group)), ()), (thin,))
