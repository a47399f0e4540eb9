"""Merge nested contractions, deltas and ones into one network per contraction.

A contraction that feeds only one other contraction is summed together with it; deltas, ones and
relabelings vanish by unifying labels. Bound labels are local to a step, so nothing is captured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tncompiler.ir.builder import Builder
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import (
    Contract,
    Labels,
    Literal,
    Program,
    Step,
    Value,
    Window,
    label_sizes,
    operand_values,
)
from tncompiler.ir.sizes import Size


def flatten_contractions(program: Program) -> Program:
    """Inline every contraction that is used once, or costs nothing, into its user.

    What nobody uses is dropped as well, since a use that is dead is none; what has thereby come to
    be used once is inlined in turn.
    """
    while True:
        flat = _flatten_once(drop_dead_steps(program))
        if flat is program:
            return program
        program = flat


def _flatten_once(program: Program) -> Program:
    inlined = _inlinable(program)
    users = [s for s in program.steps if isinstance(s.op, Contract)]
    if not any(name in inlined for step in users for name in step.operands):
        return program
    builder = Builder(like=program)
    for step in program.steps:
        if inlined.get(step.out.name, False):
            continue
        if isinstance(step.op, Contract) and any(name in inlined for name in step.operands):
            _Expansion(program, inlined, builder).expand(step)
        else:
            builder.copy(step, operand_values(program, step))
    return program.with_steps(builder.steps)


def _inlinable(program: Program) -> dict[str, bool]:
    """The contractions to inline, and whether every use of one is a contraction: then it goes."""
    uses = program.uses()
    fed: dict[str, int] = {}
    for step in program.steps:
        if isinstance(step.op, Contract):
            for name in step.operands:
                fed[name] = fed.get(name, 0) + 1
    result = {}
    chained = _chained_windows(program)
    for step in program.steps:
        name = step.out.name
        is_fed = isinstance(step.op, Contract) and fed.get(name, 0) > 0 and name not in chained
        if is_fed and (uses[name] == 1 or _is_free(step.op)):  # type: ignore[arg-type]
            result[name] = uses[name] == fed[name]
    return result


def _chained_windows(program: Program) -> set[str]:
    """Values with an axis that a window made and that a window of their user takes.

    One network holds no window of a window: the steps of a convolution after a convolution are
    never together.
    """
    windows = {step.out.name for step in program.steps if isinstance(step.op, Window)}
    made: dict[str, set[int]] = {}  # the axes of values that windows of their networks have made
    chained: set[str] = set()
    for step in program.steps if windows else ():
        op = step.op
        if not isinstance(op, Contract):
            continue
        wires = list(zip(step.operands, op.inputs, strict=True))
        own = {label for name, labels in wires if name in windows for label in labels}
        before = set()
        for name, labels in wires:
            inner = {labels[axis] for axis in made.get(name, ())}
            if inner & own:
                chained.add(name)
            else:
                before |= inner
        made[step.out.name] = {k for k, x in enumerate(op.output) if x in own | before}
    return chained


def _is_free(op: Contract) -> bool:
    """Structural tensors and relabelings of one operand without a sum."""
    return not op.inputs or (len(op.inputs) == 1 and set(op.inputs[0]) <= set(op.output))


@dataclass
class _Expansion:
    """The labels of one merged network, as a union-find."""

    program: Program
    inlined: dict[str, bool]
    builder: Builder
    parent: list[int] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    terms: list[tuple[Value, Labels]] = field(default_factory=list)
    literals: list[Step] = field(default_factory=list)

    def fresh(self, size: Size) -> int:
        self.parent.append(len(self.parent))
        self.sizes.append(size)
        return len(self.parent) - 1

    def find(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def expand(self, step: Step) -> None:
        output = self._inline(step)
        roots = tuple(self.find(label) for label in output)
        wires = [tuple(self.find(label) for label in labels) for _, labels in self.terms]
        self._count_bare_sums(roots, wires)
        values = [value for value, _ in self.terms]
        for scale in self._scales(step):
            values.append(scale)
            wires.append(())
        count = len(self.builder.steps)
        made = self.builder.contract(values, wires, roots, step.out.shape, step.out.axes)
        self._keep_name(step, made, is_new=len(self.builder.steps) > count)

    def _inline(self, root: Step) -> Labels:
        """Collect the operands of `root` and, depth first, of all that it inlines."""
        output, pending = self._open(root)
        while pending:
            name, labels = pending.pop()
            producer = self.program.producers.get(name)
            if name in self.inlined:
                inner, operands = self._open(self.program.producers[name])
                for mine, theirs in zip(inner, labels, strict=True):
                    self.parent[self.find(mine)] = self.find(theirs)
                pending.extend(operands)
            elif producer is not None and isinstance(producer.op, Literal):
                self.literals.append(producer)
            else:
                self.terms.append((self.program.values[name], labels))
        return output

    def _open(self, step: Step) -> tuple[Labels, list[tuple[str, Labels]]]:
        """Fresh labels for a contraction: those of its output, and its operands, last one first."""
        op: Contract = step.op  # type: ignore[assignment]
        sizes = label_sizes(op, operand_values(self.program, step), step.out)
        names = {label: self.fresh(size) for label, size in sizes.items()}
        operands = [
            (name, tuple(names[label] for label in labels))
            for name, labels in zip(step.operands, op.inputs, strict=True)
        ]
        return tuple(names[label] for label in op.output), operands[::-1]

    def _count_bare_sums(self, roots: Labels, wires: list[Labels]) -> None:
        """A label that is summed but on no operand multiplies by its size."""
        carried = {label for labels in wires for label in labels} | set(roots)
        for label in range(len(self.parent)):
            if self.find(label) == label and label not in carried and self.sizes[label] != 1:
                size = self.sizes[label]
                self.literals.append(Step(Value("", (), ""), Literal(size), ()))

    def _scales(self, step: Step) -> list[Value]:
        """The scalar factors: all numbers in one, symbolic sizes one by one."""
        values = [literal.op.value for literal in self.literals]  # type: ignore[union-attr]
        known = [v for v in values if isinstance(v, int | float | complex)]
        number = math.prod(known)
        rest = [v for v in values if not isinstance(v, int | float | complex)]
        factors = [*([number] if number != 1 or isinstance(number, complex) else []), *rest]
        dtype = step.out.dtype
        return [self.builder.literal(value, dtype) for value in factors]

    def _keep_name(self, step: Step, made: Value, is_new: bool) -> None:
        """The merged step goes under the name of the step it replaces."""
        if is_new:
            last = self.builder.steps[-1]
            self.builder.steps[-1] = Step(step.out, last.op, last.operands)
        else:  # the contraction turned out to be its only operand: keep it as a relabeling
            labels = tuple(range(len(made.shape)))
            op = Contract((labels,), labels)
            self.builder.steps.append(Step(step.out, op, (made.name,)))
