"""Turn a logical program into a scheduled one: each network into steps of at most two operands.

In: a logical program, integers that stand for its free sizes, options (or the orders of a saved
plan). Out: the scheduled program and the order of each network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tncompiler.ir.builder import Builder
from tncompiler.ir.errors import PlanError
from tncompiler.ir.matmul import is_matmul
from tncompiler.ir.program import (
    Contract,
    Labels,
    Networks,
    Program,
    Scan,
    Step,
    Value,
    canonical,
    label_names,
    label_sizes,
    operand_values,
    relations_of,
    with_output,
)
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import Pair, intermediate_labels, order_as_written
from tncompiler.planning.search import contraction_order
from tncompiler.planning.windowed_steps import Term, Windowing
from tncompiler.planning.windows import is_ready

Orders = Mapping[str, tuple[Pair, ...]]


def schedule(
    program: Program,
    nominal: Binding,
    options: PlanOptions,
    orders: Orders | None = None,
) -> tuple[Program, dict[str, tuple[Pair, ...]]]:
    """The scheduled program, and the SSA pairs of each network by the name of its value.

    The networks inside scans are among them.
    """
    builder = Builder(like=program)
    chosen: dict[str, tuple[Pair, ...]] = {}
    for step in program.steps:
        operands = operand_values(program, step)
        if isinstance(step.op, Scan):
            body, inner = schedule(step.op.body, nominal, options, orders)
            step = replace(step, op=replace(step.op, body=body))
            chosen.update(inner)
        if not isinstance(step.op, Networks) or not operands:
            builder.copy(step, operands)
            continue
        if isinstance(step.op, Contract) and is_matmul(step.op):  # nothing to take apart
            builder.copy(step, operands)
            chosen[step.out.name] = order_as_written(2)
            continue
        network = _Network(builder, step, step.op, operands, nominal)
        pairs = None if orders is None else orders.get(step.out.name)
        chosen[step.out.name] = network.contract_all(options, pairs)
    return program.with_steps(builder.steps), chosen


class _Network:
    """One contraction being taken apart."""

    def __init__(
        self,
        builder: Builder,
        step: Step,
        op: Networks,
        operands: Sequence[Value],
        nominal: Binding,
    ) -> None:
        self.builder, self.step, self.op = builder, step, op
        self.windows = list(relations_of(op))
        self.start = len(builder.steps)
        self.sizes = label_sizes(op, operands, step.out)
        self.names = label_names(op, operands, step.out)
        self.windowing = Windowing(builder, self.sizes, self.names)
        self.numbers = {label: evaluate(size, nominal) for label, size in self.sizes.items()}
        terms = [Term(v, labels) for v, labels in zip(operands, op.inputs, strict=True)]
        self.scalars = [term for term in terms if not term.labels]
        self.terms = [term for term in terms if term.labels]

    def contract_all(
        self, options: PlanOptions, pairs: tuple[Pair, ...] | None
    ) -> tuple[Pair, ...]:
        wires = [term.labels for term in self.terms]
        uses = _label_uses((*wires, *(r.labels for r in self.windows)), self.op.output)
        if len(self.terms) + len(self.scalars) > 1:
            self.terms = [self._reduced(term, uses) for term in self.terms]
        wires = [term.labels for term in self.terms]
        if pairs is None and len(wires) < 3:
            pairs = order_as_written(len(wires))
        elif pairs is None:
            windows = relations_of(self.op)
            pairs = contraction_order(wires, self.op.output, self.numbers, options, windows)
        elif len(pairs) != max(len(wires) - 1, 0):
            raise PlanError(
                f"the plan contracts {len(pairs) + 1} tensors where the network has {len(wires)}",
                fix="plan this expression anew",
            )
        at = self._scaled_term(pairs) if self.scalars and self.terms else None
        if at is not None and at < len(wires):
            self._scale(at)
        for made, (left, right) in enumerate(pairs, len(wires)):
            self._contract_pair(left, right, uses)
            if made == at and made < len(wires) + len(pairs) - 1:  # else `_finish` does
                self._scale(at)
        last = self.terms[-1] if self.terms else self._product_of_scalars()
        for relation in self.windows:
            last = self.windowing.alone(relation, last, self.op.output)
        self._finish(last)
        return pairs

    def _reduced(self, term: Term, uses: dict[int, int]) -> Term:
        """The term's diagonal, summed over labels that stand on it alone."""
        kept = tuple(
            label
            for label in dict.fromkeys(term.labels)
            if uses[label] > 1 or label in self.op.output
        )
        for label in set(term.labels):
            uses[label] -= label not in kept
        return term if kept == term.labels else self.windowing.contract([term], kept)

    def _scaled_term(self, pairs: tuple[Pair, ...]) -> int:
        """The tensor that scalar factors go into: the smallest of operands and results."""
        wires = [term.labels for term in self.terms]
        labels = intermediate_labels(wires, dict.fromkeys(self.op.output), pairs)
        return min(labels, key=lambda number: (self._count(labels[number]), number))

    def _scale(self, at: int) -> None:
        """Multiply the scalar factors into a tensor."""
        term, scale = self.terms[at], self._product_of_scalars()
        self.scalars = []
        self.terms[at] = self.windowing.contract([scale, term], term.labels)

    def _product_of_scalars(self) -> Term:
        product, *rest = self.scalars
        for scalar in rest:
            product = self.windowing.contract([product, scalar], ())
        return product

    def _contract_pair(self, left: int, right: int, uses: dict[int, int]) -> None:
        a, b, output = self.terms[left], self.terms[right], self.op.output
        ready = [r for r in self.windows if is_ready(r, a.labels, b.labels, uses, output)]
        self.windows = [r for r in self.windows if r not in ready]
        for labels in (a.labels, b.labels, *(r.labels for r in ready)):
            for label in labels:
                uses[label] -= 1
        met = dict.fromkeys((*a.labels, *b.labels, *(k for r in ready for k in r.labels)))
        kept = tuple(label for label in met if uses[label] > 0 or label in self.op.output)
        for label in kept:
            uses[label] += 1
        if ready:
            self.terms.append(self.windowing.together(ready, a, b, kept))
        else:
            self.terms.append(self.windowing.contract([a, b], kept))

    def _finish(self, term: Term) -> None:
        """The last term under the network's own name, in the declared axis order."""
        if self.scalars and self.terms:
            term = self.windowing.contract([self._product_of_scalars(), term], term.labels)
        is_new = len(self.builder.steps) > self.start
        last = self.builder.steps[-1] if is_new else self.step
        out = self.step.out
        made_here = last.out.name == term.value.name
        folds = sorted(term.labels) == sorted(self.op.output)
        if made_here and folds and isinstance(last.op, Networks):
            names = dict(zip(last.op.output, term.labels, strict=True))
            back = {label: local for local, label in names.items()}
            self.builder.steps[-1] = with_output(last, out, tuple(back[k] for k in self.op.output))
            return
        op = canonical(Contract((term.labels,), self.op.output))
        self.builder.steps.append(Step(out, op, (term.value.name,)))

    def _count(self, labels: Labels) -> int:
        total = 1
        for label in labels:
            total *= max(self.numbers[label], 1)
        return total


def _label_uses(wires: Sequence[Labels], output: Labels) -> dict[int, int]:
    """On how many tensors each label stands."""
    uses: dict[int, int] = dict.fromkeys(output, 0)
    for labels in wires:
        for label in set(labels):
            uses[label] = uses.get(label, 0) + 1
    return uses
