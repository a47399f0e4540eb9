"""Programs: SSA over positional arrays, the form that is planned, differentiated and emitted.

A logical program holds contractions of any number of operands; a scheduled one of at most two.
Index names survive only as `axes`, for people; meaning is by position, so equality of steps is
blind to names. Labels of a contraction are small ints local to its step, numbered by first
appearance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import sympy

from tncompiler.ir.arange import Positions
from tncompiler.ir.attention import Attention
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.pairs import Pairs, PairsAdjoint
from tncompiler.ir.sizes import Equation, Size, Terms, render_size
from tncompiler.ir.stacking import Member
from tncompiler.ir.windows import Geometry

Labels = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """An array: SSA name, shape, dtype, and what its axes are called (no meaning, for people)."""

    name: str
    shape: tuple[Size, ...]
    dtype: str
    axes: tuple[str, ...] = ()

    def text(self) -> str:
        axes = ", ".join(
            f"{a}:{render_size(s)}" for a, s in zip(self.axes, self.shape, strict=True)
        )
        return f"{self.name}({axes}) {self.dtype}"


@dataclass(frozen=True, slots=True)
class Contract:
    """The sum of products over every label not in `output`.

    ``inputs`` labels each operand's axes. `output` may repeat a label (diagonal embed) or have one
    that no operand has (broadcast, of the size that the step's value says).
    """

    inputs: tuple[Labels, ...]
    output: Labels

    def text(self) -> str:
        letters = [" ".join(map(str, labels)) for labels in (*self.inputs, self.output)]
        return f"contract[{', '.join(letters[:-1])} -> {letters[-1]}]"


@dataclass(frozen=True, slots=True)
class Relation:
    """Positions of three labels that go together: source = out·stride + kernel·dilation - before.

    ``labels`` are those of source, out and kernel, ``sizes`` theirs.
    """

    labels: tuple[int, int, int]
    sizes: tuple[Size, Size, Size]
    geometry: Geometry

    def text(self, names: Mapping[int, str]) -> str:
        """As an equation between positions, by the names of labels."""
        source, out, kernel = (names[label] for label in self.labels)
        stride, dilation, before = (
            self.geometry.stride,
            self.geometry.dilation,
            self.geometry.before,
        )
        step = "" if stride == 1 else f"·{stride}"
        reach = "" if dilation == 1 else f"·{dilation}"
        padding = "" if before == 0 else f" - {render_size(before)}"
        return f"{source} = {out}{step} + {kernel}{reach}{padding}"


@dataclass(frozen=True, slots=True)
class Convolve:
    """A contraction over the points at which every relation holds.

    ``inputs`` and ``output`` as in a Contract. Once scheduled it has two operands, and is of a form
    that `ir/convolution.py` describes.
    """

    inputs: tuple[Labels, ...]
    output: Labels
    relations: tuple[Relation, ...]

    def text(self) -> str:
        wires = Contract(self.inputs, self.output).text().removeprefix("contract")
        names = {label: str(label) for r in self.relations for label in r.labels}
        return f"convolve{wires} where {'; '.join(r.text(names) for r in self.relations)}"


@dataclass(frozen=True, slots=True)
class Window:
    """1 where the positions of three axes (source, out, kernel) go together, else 0."""

    geometry: Geometry

    def text(self) -> str:
        return f"window[{self.geometry.text()}]"


@dataclass(frozen=True, slots=True)
class Unfold:
    """Axis `axis` seen through windows: it becomes two, which window and which tap."""

    axis: int
    geometry: Geometry

    def text(self) -> str:
        return f"unfold[axis {self.axis}: {self.geometry.text()}]"


@dataclass(frozen=True, slots=True)
class Fold:
    """Two axes from `axis` on, which window and which tap, summed into one; Unfold's adjoint."""

    axis: int
    geometry: Geometry

    def text(self) -> str:
        return f"fold[axis {self.axis}: {self.geometry.text()}]"


@dataclass(frozen=True, slots=True)
class Map:
    """An elementwise function; `inputs` says which output axis each operand axis is.

    An operand without an output axis broadcasts along it. Every output axis is on some operand.
    """

    function: str
    inputs: tuple[Labels, ...]

    def text(self) -> str:
        return self.function


@dataclass(frozen=True, slots=True)
class Reduce:
    """ "max" or "min" over axes; the rest keep their order."""

    function: str
    axes: tuple[int, ...]

    def text(self) -> str:
        return f"{self.function}[axes {' '.join(map(str, self.axes))}]"


@dataclass(frozen=True, slots=True)
class Permute:
    """The same array laid out anew in memory, axis `axes[k]` at position k.

    A transpose that copies nothing is a Contract of one operand; this one is a copy.
    """

    axes: tuple[int, ...]

    def text(self) -> str:
        return f"permute[{' '.join(map(str, self.axes))}]"


@dataclass(frozen=True, slots=True)
class Split:
    """Axis `axis` becomes `count` axes, the first varying slowest."""

    axis: int
    count: int

    def text(self) -> str:
        return f"split[axis {self.axis}]"


@dataclass(frozen=True, slots=True)
class Merge:
    """`count` axes from `axis` on become one."""

    axis: int
    count: int

    def text(self) -> str:
        return f"merge[{self.count} axes from {self.axis}]"


@dataclass(frozen=True, slots=True)
class Slice:
    """Positions start … stop - 1 of an axis."""

    axis: int
    start: Size
    stop: Size

    def text(self) -> str:
        return f"slice[axis {self.axis}: {render_size(self.start)} to {render_size(self.stop)}]"


@dataclass(frozen=True, slots=True)
class Pad:
    """Zeros before and after an axis; the adjoint of Slice."""

    axis: int
    before: Size
    after: Size

    def text(self) -> str:
        return f"pad[axis {self.axis}: {render_size(self.before)}, {render_size(self.after)}]"


@dataclass(frozen=True, slots=True)
class Concat:
    """Operands one after the other along an axis."""

    axis: int

    def text(self) -> str:
        return f"concat[axis {self.axis}]"


@dataclass(frozen=True, slots=True)
class Literal:
    """A scalar number, or a size used as a number."""

    value: complex | float | int | Size

    def text(self) -> str:
        is_number = isinstance(self.value, int | float | complex)
        return f"literal[{self.value if is_number else render_size(self.value)}]"


@dataclass(frozen=True, slots=True)
class Cast:
    """The same values in the dtype of the step's value."""

    def text(self) -> str:
        return "cast"


@dataclass(frozen=True, slots=True)
class Loop:
    """`body` once for every block of an index, in ascending order; a Pick takes each result out.

    ``index`` is what the index is called, ``size`` its extent, ``width`` the positions of a block
    and ``block`` the size that the body knows (a symbol where the last block may be shorter).
    ``sliced``: the axis of each operand that is cut into blocks; None where the body reads all of
    it. ``joined``: the axis of each result of the body along which blocks are joined; None where
    blocks are added. ``lanes``: how many threads may share the blocks, each taking a contiguous
    part of them.
    """

    body: Program
    index: str
    size: Size
    width: int
    block: Size
    sliced: tuple[int | None, ...]
    joined: tuple[int | None, ...]
    lanes: int = 1

    def text(self) -> str:
        body = self.body.to_text().replace("\n", "\n    ")
        lanes = f" in {self.lanes} lanes" if self.lanes > 1 else ""
        return f"loop[{self.width} of {self.index} at a time{lanes}]\n    {body}\n "

    @property
    def count(self) -> Size:
        """How many blocks there are."""
        if isinstance(self.size, int):
            return -(-self.size // self.width)
        return sympy.floor((self.size + self.width - 1) / self.width)


@dataclass(frozen=True, slots=True)
class Scan:
    """`body` once for every position of an index, each from the states that the last one left.

    ``index`` is what the index is called, ``size`` its extent. The body's first `carried`
    arguments are the states before a position, its first `carried` outputs those after it; the
    operands begin with the states before the first. ``sliced``: the axis of each operand of which
    the body reads one position, and does not have; None for states and where it reads all.
    ``joined``: for each output 0 where positions stand side by side along a new first axis; None
    for states, of which the last is a result, and where positions are added. ``reverse``: the last
    position comes first. ``keeps``: what the backward pass is given: "values" are all it needs of a
    position, "states" only those before it. ``recomputed``: what the body makes again of another
    scan. ``traced``: positions are collected in lists, for a library to differentiate.
    """

    body: Program
    index: str
    size: Size
    carried: int
    sliced: tuple[int | None, ...]
    joined: tuple[int | None, ...]
    reverse: bool = False
    keeps: str = "values"
    recomputed: tuple[str, ...] = ()
    traced: bool = False

    @property
    def count(self) -> Size:
        """How many times the body runs."""
        return self.size

    def text(self) -> str:
        body = self.body.to_text().replace("\n", "\n    ")
        order = ", last first" if self.reverse else ""
        return f"scan[{self.index}{order}, {self.carried} states]\n    {body}\n "


@dataclass(frozen=True, slots=True)
class Pick:
    """One result of a loop or scan."""

    position: int

    def text(self) -> str:
        return f"pick[{self.position}]"


Op = (
    Contract
    | Convolve
    | Window
    | Unfold
    | Fold
    | Map
    | Reduce
    | Permute
    | Split
    | Merge
    | Slice
    | Pad
    | Concat
    | Literal
    | Cast
    | Gather
    | Scatter
    | Positions
    | Attention
    | Pairs
    | PairsAdjoint
    | Member
    | Loop
    | Scan
    | Pick
)
Networks = Contract | Convolve  # what is ordered


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: `out = op(operands)`."""

    out: Value
    op: Op
    operands: tuple[str, ...]

    def text(self) -> str:
        return f"{self.out.text()} = {self.op.text()} {' '.join(self.operands)}".rstrip()


@dataclass(frozen=True, slots=True)
class Argument:
    """A program input; `kind` is "input", "param", "constant", "cotangent" or "saved"."""

    value: Value
    kind: str


@dataclass(frozen=True)
class Program:
    """Arguments, steps in order, and the names of the values that are returned."""

    arguments: tuple[Argument, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    equations: tuple[Equation, ...] = ()

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """Every value by name."""
        values = {argument.value.name: argument.value for argument in self.arguments}
        return {**values, **{step.out.name: step.out for step in self.steps}}

    @cached_property
    def producers(self) -> Mapping[str, Step]:
        """The step that makes a value; arguments have none."""
        return {step.out.name: step for step in self.steps}

    def uses(self) -> dict[str, int]:
        """How often each value is used, outputs included."""
        count = dict.fromkeys(self.values, 0)
        for step in self.steps:
            for operand in step.operands:
                count[operand] += 1
        for name in self.outputs:
            count[name] += 1
        return count

    def with_steps(self, steps: Iterable[Step], outputs: tuple[str, ...] | None = None) -> Program:
        """The program with other steps; itself if nothing differs."""
        new = tuple(steps)
        outputs = self.outputs if outputs is None else outputs
        if new == self.steps and outputs == self.outputs:
            return self
        return replace(self, steps=new, outputs=outputs)

    def to_text(self) -> str:
        """One line an argument, equation, step and output."""
        lines = [f"{argument.kind} {argument.value.text()}" for argument in self.arguments]
        lines += [f"where {equation.text()}" for equation in self.equations]
        lines += [step.text() for step in self.steps]
        return "\n".join([*lines, f"return {', '.join(self.outputs)}"])


def label_sizes(op: Networks, operands: Iterable[Value], out: Value) -> dict[int, Size]:
    """The size of each label of a contraction, as the first that carries it has it."""
    labels = [*chain(*op.inputs, op.output)]
    known = [*chain(*(value.shape for value in operands), out.shape)]
    sizes = dict(zip(labels, known, strict=True))
    labels.reverse()
    known.reverse()
    sizes.update(zip(labels, known, strict=True))
    for relation in relations_of(op):
        sizes = {**dict(zip(relation.labels, relation.sizes, strict=True)), **sizes}
    return sizes


def label_names(op: Networks, operands: Iterable[Value], out: Value) -> dict[int, str]:
    """A name for each label, from the axes; distinct labels get distinct names."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for labels, value in zip((op.output, *op.inputs), (out, *operands), strict=True):
        for label, axis in zip(labels, value.axes, strict=True):
            if label not in names:
                names[label] = fresh_name(axis, taken)
                taken.add(names[label])
    for relation in relations_of(op):
        for label, role in zip(relation.labels, ("source", "out", "tap"), strict=True):
            if label not in names:
                names[label] = fresh_name(role, taken)
                taken.add(names[label])
    return names


def relations_of(op: Op) -> tuple[Relation, ...]:
    """The relations between a contraction's labels; a plain one has none."""
    return op.relations if isinstance(op, Convolve) else ()


def moving_labels(op: Op) -> frozenset[int]:
    """The labels of a contraction that windows relate: it does not work along them one by one."""
    return frozenset(label for relation in relations_of(op) for label in relation.labels)


def fresh_name(wanted: str, taken: Iterable[str]) -> str:
    """`wanted`, or `wanted_2`, `wanted_3`, … if it is taken."""
    if wanted not in taken:
        return wanted
    number = 2
    while f"{wanted}_{number}" in taken:
        number += 1
    return f"{wanted}_{number}"


def canonical(op: Contract) -> Contract:
    """Labels renumbered in order of first appearance."""
    seen = dict.fromkeys(chain(*op.inputs, op.output))
    number_of = dict(zip(seen, range(len(seen)), strict=True)).__getitem__
    inputs = tuple([tuple(map(number_of, labels)) for labels in op.inputs])
    return Contract(inputs, tuple(map(number_of, op.output)))


def is_canonical(op: Contract) -> bool:
    """Whether labels are numbered in order of first appearance."""
    seen = dict.fromkeys(chain(*op.inputs, op.output))
    return [*seen] == [*range(len(seen))]


def canonical_convolve(op: Convolve) -> Convolve:
    """Labels renumbered in order of first appearance, those of relations last."""
    related = chain.from_iterable(relation.labels for relation in op.relations)
    seen = dict.fromkeys(chain(*op.inputs, op.output, related))
    numbers = {label: number for number, label in enumerate(seen)}
    inputs = tuple(tuple(numbers[label] for label in labels) for labels in op.inputs)
    relations = []
    for relation in op.relations:
        a, b, c = (numbers[label] for label in relation.labels)
        relations.append(replace(relation, labels=(a, b, c)))
    return Convolve(inputs, tuple(numbers[label] for label in op.output), tuple(relations))


def with_output(step: Step, out: Value, output: Labels) -> Step:
    """The contraction making `out`, whose axes are those of its output in the order of labels."""
    op: Networks = step.op  # type: ignore[assignment]
    if isinstance(op, Convolve):
        return Step(out, canonical_convolve(replace(op, output=output)), step.operands)
    return Step(out, canonical(Contract(op.inputs, output)), step.operands)


def contract_flops(op: Networks, operands: Iterable[Value], out: Value) -> Terms:
    """Multiply-adds of a contraction times 2; a permutation, diagonal or broadcast costs none.

    With one operand and a sum: one addition an element. With n operands: 2 (n - 1) per point of
    the whole index space (a product without a sum: n - 1). Of three labels that are related, the
    source's position follows from the others'; taps that read zeros around it count.
    """
    sizes = label_sizes(op, operands, out)
    related = relations_of(op)
    summed = any(label not in op.output for labels in op.inputs for label in labels)
    on_operands = {label for labels in op.inputs for label in labels}
    on_operands |= {label for relation in related for label in relation.labels[1:]}
    on_operands -= {relation.labels[0] for relation in related}
    count = len(op.inputs)
    if count < 2:
        return Terms.of(1 if summed else 0, (sizes[label] for label in on_operands))
    per_point = (count - 1) * (2 if summed else 1)
    return Terms.of(per_point, (sizes[label] for label in on_operands))


def element_count(value: Value) -> Terms:
    """The number of elements of a value."""
    return Terms.of(1, value.shape)


def operand_values(program: Program, step: Step) -> tuple[Value, ...]:
    """The values a step reads."""
    values = program.values
    return tuple(map(values.__getitem__, step.operands))


def iter_contractions(program: Program) -> Iterator[tuple[Step, Contract]]:
    """Every contraction step."""
    for step in program.steps:
        if isinstance(step.op, Contract):
            yield step, step.op
