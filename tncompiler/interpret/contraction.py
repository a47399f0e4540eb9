"""The one contraction in which a layer's data meets its cores.

In: a layer's expression and its sites. Out: the step, which operand each site is, and which label
each bond has, so that the step can be cut in two or be given an order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import prod

from tncompiler.formats.bonds import NetworkBond, Sites
from tncompiler.interpret.layers import Feed
from tncompiler.ir import algebra
from tncompiler.ir.dtypes import DEFAULT
from tncompiler.ir.errors import FormatError, UnknownIndex
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.lift import lift
from tncompiler.ir.lower import lower
from tncompiler.ir.passes import LOGICAL_PASSES, run_passes
from tncompiler.ir.program import (
    Contract,
    Labels,
    Permute,
    Program,
    Split,
    Step,
    Value,
    Window,
    canonical,
    fresh_name,
    label_names,
    label_sizes,
    operand_values,
)

_PASSES = tuple(name for name in LOGICAL_PASSES if name != "bind_windows")
_EVERY_SET_UP_TO = 12  # sites; of longer networks, those from one end on
_FREE = 32  # what a size counts as that only a call brings


@dataclass(frozen=True)
class Contraction:
    """``sites``: the operand that each site of the network is. ``axes``: where the axes of a site's
    core are in that operand."""

    program: Program
    step: Step
    network: Sites
    sites: tuple[int, ...]
    axes: tuple[dict[int, int], ...]

    @staticmethod
    def of(feed: Feed, network: Sites) -> Contraction:
        """Raises FormatError where the cores do not meet in one contraction."""
        program = run_passes(lower((feed.expression,)), _PASSES)
        for step in program.steps:
            if isinstance(step.op, Contract):
                found = [_traced(program, name) for name in step.operands]
                places = _places([name for name, _ in found], feed.sites)
                if places is not None:
                    axes = tuple(
                        {a: found[k][1][b] for a, b in own.items() if b in found[k][1]}
                        for k, own in zip(places, feed.axes, strict=True)
                    )
                    return Contraction(program, step, network, places, axes)
        raise FormatError(
            "the cores of the layer do not meet in one contraction",
            where=repr(feed.expression),
            fix="use a format that is a network of cores",
        )

    @property
    def inputs(self) -> tuple[Labels, ...]:
        op: Contract = self.step.op  # type: ignore[assignment]
        return op.inputs

    @property
    def output(self) -> Labels:
        op: Contract = self.step.op  # type: ignore[assignment]
        return op.output

    @property
    def values(self) -> tuple[Value, ...]:
        return operand_values(self.program, self.step)

    @cached_property
    def windows(self) -> frozenset[int]:
        """The operands that say which positions of an image go together."""
        made = self.program.producers
        return frozenset(
            k
            for k, name in enumerate(self.step.operands)
            if name in made and isinstance(made[name].op, Window)
        )

    @cached_property
    def data(self) -> frozenset[int]:
        """The operands that are neither cores nor windows."""
        return frozenset(range(len(self.inputs))) - {*self.sites} - self.windows

    @cached_property
    def sizes(self) -> dict[int, int]:
        """Of labels, free ones at a nominal size."""
        op: Contract = self.step.op  # type: ignore[assignment]
        sizes = label_sizes(op, self.values, self.step.out)
        return {k: n if isinstance(n, int) else _FREE for k, n in sizes.items()}

    @cached_property
    def free(self) -> frozenset[int]:
        """Labels whose sizes a call brings: of a batch, or of an image."""
        op: Contract = self.step.op  # type: ignore[assignment]
        sizes = label_sizes(op, self.values, self.step.out)
        return frozenset(k for k, n in sizes.items() if not isinstance(n, int))

    def label(self, bond: NetworkBond) -> int:
        """The label of a bond of the network."""
        end = bond.ends[0]
        return self.inputs[self.sites[end.site]][self.axes[end.site][end.axis]]

    def open_labels(self, group: Collection[int]) -> Labels:
        """The labels of what a group of operands makes together, in order of first appearance."""
        outside = {*self.output}.union(
            *(labels for k, labels in enumerate(self.inputs) if k not in group)
        )
        inside = [label for k in sorted(group) for label in self.inputs[k]]
        return tuple(label for label in dict.fromkeys(inside) if label in outside)

    def together(self, sites: Collection[int]) -> frozenset[int]:
        """The operands that meet when the data has met these sites: a window, once nothing else has
        its taps."""
        group = self.data | {self.sites[site] for site in sites}
        rest = {*range(len(self.inputs))} - group - self.windows
        taken = {label for k in rest for label in self.inputs[k]}
        inside = {label for k in group for label in self.inputs[k]}
        ready = (k for k in self.windows if self._taps(k) in inside - taken)
        return group.union(ready)

    def _taps(self, window: int) -> int:
        """The label of a window's third axis, its positions in the kernel."""
        return self.inputs[window][2]

    def elements(self, labels: Collection[int]) -> int:
        """How many numbers a tensor of some labels has, for one example: free sizes count as 1."""
        return prod(self.sizes[label] for label in labels if label not in self.free)

    def ranks_of_sites(self) -> dict[int, int]:
        """For each site its position among the operands that are no windows."""
        left = [k for k in range(len(self.inputs)) if k not in self.windows]
        return {site: left.index(k) for site, k in enumerate(self.sites)}

    # ---------------------------------------------------------------- cutting it in two

    def smallest_before(self, bond: NetworkBond) -> tuple[int, ...]:
        """The sites that the data meets in the smallest intermediate in which a bond is open."""
        return min(
            (sites for sites in self._sets() if self.shows(bond, sites)),
            key=lambda sites: (self._size(sites, bond), len(sites), sites),
            default=tuple(end.site for end in bond.ends[:1]),
        )

    def _sets(self) -> list[tuple[int, ...]]:
        count = range(len(self.sites))
        if len(count) <= _EVERY_SET_UP_TO:
            return [each for n in count for each in combinations(count, n + 1)]
        heads = [tuple(count[:k]) for k in count[1:]]
        return [*heads, *(tuple(count[k:]) for k in count[1:])]

    def shows(self, bond: NetworkBond, sites: Collection[int]) -> bool:
        """Whether a bond leads from some sites, which see all of the batch, to others."""
        ends = [end.site in sites for end in bond.ends]
        group = self.together(sites)
        carried = {label for k in group for label in self.inputs[k]}
        return any(ends) and (not all(ends) or len(ends) == 1) and not (self._batch - carried)

    @cached_property
    def _batch(self) -> frozenset[int]:
        """Free labels of the output that no window makes."""
        moving = {label for k in self.windows for label in self.inputs[k]}
        return frozenset(self.free & {*self.output}) - moving

    def _size(self, sites: Collection[int], bond: NetworkBond) -> int:
        labels = {*self.open_labels(self.together(sites)), self.label(bond)}
        return prod(self.sizes[label] for label in labels)

    def cut(self, sites: Collection[int], bond: NetworkBond) -> tuple[Expr, Expr, tuple[str, ...]]:
        """The layer by way of an intermediate: its output, the intermediate and its axes' names.

        The batch is the intermediate's first axis, the bond its last one.
        """
        group, label = sorted(self.together(sites)), self.label(bond)
        others = [k for k in self.open_labels(group) if k != label]
        labels = (*sorted(others, key=lambda k: k not in self._batch), label)
        op: Contract = self.step.op  # type: ignore[assignment]
        sizes = label_sizes(op, self.values, self.step.out)
        names = label_names(op, self.values, self.step.out)
        axes = (*(fresh_name(names[k], [bond.name]) for k in labels[:-1]), bond.name)
        name = fresh_name("captured", self.program.values)
        value = Value(name, tuple(sizes[k] for k in labels), self.step.out.dtype, axes)
        inner = Contract(tuple(self.inputs[k] for k in group), labels)
        rest = [k for k in range(len(self.inputs)) if k not in group]
        outer = Contract((labels, *(self.inputs[k] for k in rest)), self.output)
        operands = self.step.operands
        made = (
            Step(value, canonical(inner), tuple(operands[k] for k in group)),
            Step(self.step.out, canonical(outer), (name, *(operands[k] for k in rest))),
        )
        steps = [s for step in self.program.steps for s in (made if step is self.step else (step,))]
        outputs = (*self.program.outputs, name)
        return *self._lifted(self.program.with_steps(steps, outputs)), axes

    def _lifted(self, program: Program) -> tuple[Expr, Expr]:
        leaves = dict(zip(self.program.values, self._leaves, strict=False))
        whole, part = lift(program, leaves)
        return whole, part

    @cached_property
    def _leaves(self) -> list[Expr]:
        """The program's arguments as inputs: a layer's cores are given at each call."""
        made: list[Expr] = []
        for argument in self.program.arguments:
            value = argument.value
            taken: list[str] = []
            for axis in value.axes:
                taken.append(fresh_name(axis, taken))
            indices = [Index(n, size) for n, size in zip(taken, value.shape, strict=True)]
            dtype = None if value.dtype == DEFAULT else value.dtype
            made.append(algebra.leaf(value.name, indices, kind="input", dtype=dtype))
        return made

    def sites_named(self, cores: Sequence[str]) -> tuple[int, ...]:
        """The sites of some cores. Raises UnknownIndex, listing the cores that there are."""
        known = self.network.tensors
        for core in cores:
            if core not in known:
                raise UnknownIndex(
                    f"there is no core {core!r:.40}",
                    where=repr(self.network.network),
                    fix=f"name some of {', '.join(dict.fromkeys(known))}",
                )
        return tuple(site for site, name in enumerate(known) if name in cores)


def _traced(program: Program, name: str) -> tuple[str, dict[int, int]]:
    """The argument that an operand is a view of, and where each axis of the argument is in it."""
    moves: list[Step] = []
    while name in program.producers and isinstance(program.producers[name].op, Split | Permute):
        moves.append(program.producers[name])
        (name,) = moves[-1].operands
    axes = {axis: axis for axis in range(len(program.values[name].shape))}
    for step in reversed(moves):
        op = step.op
        if isinstance(op, Permute):
            axes = {old: op.axes.index(new) for old, new in axes.items()}
        elif isinstance(op, Split):
            more = op.count - 1
            axes = {
                old: new + more * (new > op.axis) for old, new in axes.items() if new != op.axis
            }
    return name, axes


def _places(operands: Sequence[str], leaves: Sequence[str]) -> tuple[int, ...] | None:
    """Where each leaf stands among operands, one place each; None where one is missing."""
    left = [*enumerate(operands)]
    places = []
    for leaf in leaves:
        found = next((item for item in left if item[1] == leaf), None)
        if found is None:
            return None
        left.remove(found)
        places.append(found[0])
    return tuple(places)
