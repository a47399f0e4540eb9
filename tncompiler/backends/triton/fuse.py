"""Which steps of a scheduled program share a launch.

In: a program. Out: its steps in order, some replaced by launches (`Pairwise`): elementwise steps
go into the kernel that makes their operand, or the one that reads their result; relabelings and
casts cost nothing anywhere. What a kernel cannot do stays a step, for the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tncompiler.backends.triton.pairwise import Pairwise, classify
from tncompiler.backends.triton.spelling import is_spelled
from tncompiler.backends.triton.trees import (
    Apply,
    Load,
    Number,
    Total,
    Tree,
    dense_strides,
)
from tncompiler.ir.dtypes import LOW_PRECISION, kind
from tncompiler.ir.program import (
    Cast,
    Contract,
    Labels,
    Literal,
    Map,
    Permute,
    Program,
    Reduce,
    Step,
    Value,
    fresh_name,
)
from tncompiler.ir.sizes import Size

MAX_LOADS = 8  # a kernel that reads more arrays than this runs out of registers

Action = Step | Pairwise


def fuse(program: Program, low: str | None) -> list[Action]:
    """The program as steps for the host and launches; ``low``: the dtype that products round to."""
    return list(_Fusion(program, low).actions())


def program_low_dtype(program: Program) -> str | None:
    """The one low dtype that a program's arguments and results are stored in."""
    stored = [a.value.dtype for a in program.arguments if a.kind != "saved"]
    stored += [program.values[name].dtype for name in program.outputs[:1]]
    low = {dtype for dtype in stored if dtype in LOW_PRECISION}
    return low.pop() if len(low) == 1 and not {"float32", "float64"} & set(stored) else None


@dataclass
class _Scope:
    """The labels of one kernel while its trees are built."""

    sizes: dict[int, Size] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def label(self, size: Size, name: str) -> int:
        label = len(self.sizes)
        self.sizes[label] = size
        self.names[label] = fresh_name(name, self.names.values())
        return label

    def axes_of(self, value: Value) -> Labels:
        return tuple(self.label(s, n) for s, n in zip(value.shape, value.axes, strict=True))


class _Fusion:
    def __init__(self, program: Program, low: str | None) -> None:
        self.program, self.low = program, low
        self.consumers: dict[str, list[Step]] = {name: [] for name in program.values}
        for step in program.steps:
            for name in set(step.operands):
                self.consumers[name].append(step)
        self.position = {step.out.name: k for k, step in enumerate(program.steps)}
        self.able = {step.out.name for step in program.steps if self._is_able(step)}
        self.absorbed: set[str] = set()  # values that live on only in the kernel they began
        self.roots: dict[str, Step] = {}  # the reduction whose kernel ends in a value
        for step in program.steps:
            if step.out.name in self.able and not is_pointwise(step):
                self._extend(step)
        self.inlined = self._find_inlined()

    # ------------------------------------------------------------------ what a kernel can do

    def _is_able(self, step: Step) -> bool:
        values = [step.out, *(self.program.values[name] for name in step.operands)]
        if any(kind(v.dtype) not in ("float", "complex", "bool") for v in values):
            return False
        if any(0 in v.shape for v in values):
            return False
        producers = [self.program.producers.get(name) for name in step.operands]
        if all(p is not None and isinstance(p.op, Literal) for p in producers):
            return False  # numbers alone: nothing says what they are stored in
        match step.op:
            case Map(name):
                return is_spelled(name, tuple(v.dtype for v in values))
            case Cast():
                return {kind(v.dtype) for v in values} == {"float"}
            case Contract(inputs):
                return kind(step.out.dtype) != "bool" and len(inputs) <= 2
            case Reduce():
                return kind(step.out.dtype) == "float"
            case Permute():
                return True
        return False

    def _extend(self, root: Step) -> None:
        """The reduction's kernel goes on as long as one elementwise step alone reads its value."""
        value = root.out
        while not embeds(root) and value.name not in self.program.outputs:
            readers = self.consumers[value.name]
            if len(readers) != 1 or not self._goes_on(readers[0], value):
                break
            self.absorbed.add(value.name)
            value = readers[0].out
        self.roots[value.name] = root

    def _goes_on(self, step: Step, value: Value) -> bool:
        name = step.out.name
        taken = name in self.roots or name in self.absorbed  # one reduction a kernel
        if name not in self.able or taken or not is_pointwise(step):
            return False
        if len(step.out.shape) != len(value.shape) or step.operands.count(value.name) > 1:
            return False
        if not isinstance(step.op, Map | Contract):
            return True
        labels = step.op.inputs[step.operands.index(value.name)]
        return len(set(labels)) == len(value.shape)

    def _find_inlined(self) -> dict[str, int]:
        """Values that kernels compute where they read them, with how many arrays that reads.

        What costs nothing is done by every reader, anything else only by a single one.
        """
        inlined: dict[str, int] = {}
        for step in self.program.steps:
            name = step.out.name
            if name not in self.able or not is_pointwise(step) or embeds(step):
                continue
            if name in self.roots or name in self.absorbed:
                continue
            readers = self.consumers[name]
            reads = sum(inlined.get(operand, 1) for operand in step.operands)
            free = _is_free(step) and step.operands[0] not in inlined
            alone = len(readers) == 1 and name not in self.program.outputs
            if free or (alone and reads <= MAX_LOADS and readers[0].out.name in self.able):
                inlined[name] = reads
        return inlined

    def _is_written(self, step: Step) -> bool:
        """Whether a value must be in memory: somebody other than a kernel reads it."""
        name = step.out.name
        if name in self.absorbed:
            return False
        if name not in self.inlined or name in self.program.outputs:
            return True
        return any(reader.out.name not in self.able for reader in self.consumers[name])

    # ------------------------------------------------------------------ launches

    def actions(self) -> Iterator[Action]:
        for step in self.program.steps:
            if isinstance(step.op, Literal) or self._is_written(step):
                yield self._launch(step) if step.out.name in self.able else step

    def _launch(self, step: Step) -> Action:
        root = self.roots.get(step.out.name)
        scope = _Scope()
        out_labels = self._out_labels(step, scope)
        if root is None:
            tree = self._apply(step, out_labels, scope)
            return self._pairwise(step, out_labels, "map", (tree,), None, scope)
        found: dict[str, Labels] = {}
        epilogue = None
        if root is not step:
            epilogue = self._apply(step, out_labels, scope, found, root.out)
        else:
            found[root.out.name] = out_labels
        operands = self._operands(root, found[root.out.name], scope)
        reduction = root.op.function if isinstance(root.op, Reduce) else "sum"
        return self._pairwise(step, out_labels, reduction, operands, epilogue, scope)

    def _out_labels(self, step: Step, scope: _Scope) -> Labels:
        """One label an axis; axes on a diagonal share theirs."""
        if not isinstance(step.op, Contract):
            return scope.axes_of(step.out)
        labels: dict[int, int] = {}
        for own, size, name in zip(step.op.output, step.out.shape, step.out.axes, strict=True):
            if own not in labels:
                labels[own] = scope.label(size, name)
        return tuple(labels[own] for own in step.op.output)

    def _pairwise(
        self,
        step: Step,
        out_labels: Labels,
        reduction: str,
        operands: tuple[Tree, ...],
        epilogue: Tree | None,
        scope: _Scope,
    ) -> Pairwise:
        kept = tuple(dict.fromkeys(out_labels))
        summed = tuple(label for label in scope.sizes if label not in kept)
        right = operands[1] if len(operands) > 1 else None
        strides = dense_strides(step.out.shape, out_labels)
        return classify(
            Pairwise(
                step.out, strides, reduction, operands[0], right, epilogue, (), kept, (), summed,
                scope.sizes, scope.names, self.low, len(kept) < len(out_labels),
            )
        )  # fmt: skip

    def _operands(self, root: Step, out: Labels, scope: _Scope) -> tuple[Tree, ...]:
        """The trees that a reduction reduces, the result's axes being `out`."""
        values = [self.program.values[name] for name in root.operands]
        if isinstance(root.op, Reduce):
            kept = iter(out)
            (value,) = values
            labels = tuple(
                scope.label(size, name) if axis in root.op.axes else next(kept)
                for axis, (size, name) in enumerate(zip(value.shape, value.axes, strict=True))
            )
            return (self._tree(value, labels, scope),)
        assert isinstance(root.op, Contract)
        known = dict(zip(root.op.output, out, strict=True))
        return tuple(
            self._tree(value, _bound(value, labels, known, scope), scope)
            for value, labels in zip(values, root.op.inputs, strict=True)
        )

    # ------------------------------------------------------------------ trees

    def _tree(
        self,
        value: Value,
        labels: Labels,
        scope: _Scope,
        found: dict[str, Labels] | None = None,
        total: Value | None = None,
    ) -> Tree:
        step = self.program.producers.get(value.name)
        if total is not None and value.name == total.name and found is not None:
            found[value.name] = labels
            return Total(value.dtype)
        if step is not None and isinstance(step.op, Literal):
            return Number(step)
        inside = value.name in self.inlined or (total is not None and value.name in self.absorbed)
        if step is None or not inside:
            return Load(value, dense_strides(value.shape, labels))
        return self._apply(step, labels, scope, found, total)

    def _apply(
        self,
        step: Step,
        labels: Labels,
        scope: _Scope,
        found: dict[str, Labels] | None = None,
        total: Value | None = None,
    ) -> Tree:
        """The step's function over its operands' trees, its axes being `labels`."""
        values = [self.program.values[name] for name in step.operands]
        match step.op:
            case Map(function, wires):
                arguments = tuple(
                    self._tree(v, tuple(labels[axis] for axis in wire), scope, found, total)
                    for v, wire in zip(values, wires, strict=True)
                )
                return Apply(function, arguments, step.out.dtype)
            case Permute(axes):
                place = tuple(labels[axes.index(axis)] for axis in range(len(axes)))
                return self._tree(values[0], place, scope, found, total)
            case Contract(inputs, output):
                known = dict(zip(output, labels, strict=True))
                trees = tuple(
                    self._tree(v, tuple(known[k] for k in wire), scope, found, total)
                    for v, wire in zip(values, inputs, strict=True)
                )
                return trees[0] if len(trees) == 1 else Apply("mul", trees, step.out.dtype)
        tree = self._tree(values[0], labels, scope, found, total)
        return Apply("cast", (tree,), step.out.dtype)


def _bound(value: Value, labels: Labels, known: dict[int, int], scope: _Scope) -> Labels:
    for label, size, name in zip(labels, value.shape, value.axes, strict=True):
        if label not in known:
            known[label] = scope.label(size, name)
    return tuple(known[label] for label in labels)


def is_pointwise(step: Step) -> bool:
    """Whether each element of the result needs one element of each operand."""
    op = step.op
    if isinstance(op, Contract):
        return {k for labels in op.inputs for k in labels} <= set(op.output)
    return isinstance(op, Map | Cast | Permute)


def embeds(step: Step) -> bool:
    """Whether the result is zero but on a diagonal."""
    op = step.op
    return isinstance(op, Contract) and len(set(op.output)) < len(op.output)


def _is_free(step: Step) -> bool:
    """Whether reading the step's operand instead costs nothing."""
    op = step.op
    return isinstance(op, Permute | Cast) or (isinstance(op, Contract) and len(op.inputs) == 1)
