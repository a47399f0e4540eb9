"""A layer read as a stack of smaller layers: the orders in which its data can go through the cores,
and the terms that it is a sum of.

In: a layer. Out: every such reading with its cost, and a module that runs that way.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from tncompiler.formats.bonds import NetworkBond, Sites
from tncompiler.formats.joints import joints_of, with_bond
from tncompiler.interpret.contraction import Contraction
from tncompiler.interpret.layers import check_layer, feed_of, sites_of
from tncompiler.interpret.pinning import compiled
from tncompiler.ir.errors import ArgumentError
from tncompiler.nn.tensorized import Tensorized
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.trees import InOrder

MOST = 24  # stacks that are listed
_STATES = 512  # sets of cores followed at once, of layers with so many that not all can be


@dataclass(frozen=True, slots=True)
class Stage:
    """One smaller layer of a stack: the core that the data meets, and numbers for one example.

    ``flops``; ``inputs`` and ``outputs``: elements before and after; ``parameters``: of the core.
    """

    core: str
    inputs: int
    outputs: int
    parameters: int
    flops: int


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """A way through the layer: its stages in order. Sizes that a call brings count as one.

    ``widest``: the most elements between two stages.
    """

    layer: Tensorized
    stages: tuple[Stage, ...]
    sites: tuple[int, ...]

    @property
    def cores(self) -> tuple[str, ...]:
        return tuple(stage.core for stage in self.stages)

    @property
    def flops(self) -> int:
        """For one example, bias and windows left out."""
        return sum(stage.flops for stage in self.stages)

    @property
    def widest(self) -> int:
        return max(stage.outputs for stage in self.stages)

    def module(self) -> StackModule:
        """The layer running this way; its parameters are the layer's own."""
        return StackModule(self.layer, self.sites)


class StackModule(nn.Module):
    """A layer whose plan is a stack: the data meets one core after the other in a fixed order."""

    def __init__(self, layer: Tensorized, order: Sequence[int]) -> None:
        super().__init__()
        self.layer, self.order = layer, tuple(order)
        sites = sites_of(layer)
        self._feed = feed_of(layer, sites)
        contraction = Contraction.of(self._feed, sites)
        places = contraction.ranks_of_sites()
        count = len(contraction.inputs) - len(contraction.windows)
        options = PlanOptions(search=InOrder(tuple(places[site] for site in order), count))
        self.program, self._names = compiled(self._feed.expression, layer, options)

    def forward(self, *inputs: Any) -> Tensor:
        """The layer's output."""
        tensors = self._feed.tensors({}, inputs)
        y: Tensor = self.program(*(tensors[name] for name in self._names))
        return self._feed.result(y, inputs)


class ChannelPath(nn.Module):
    """What one channel of a bond adds to a layer's output: the layer with that channel alone.

    Without bias. ``parameters_used``: how many numbers of the cores it reads.
    """

    def __init__(self, layer: Tensorized, bond: NetworkBond, channel: int) -> None:
        super().__init__()
        self.layer, self.bond, self.channel = layer, bond.name, channel
        self._ends = bond.ends
        network = layer._network
        narrow = with_bond(network, joints_of(network)[bond.name], 1)
        self._feed = feed_of(layer, Sites.of(narrow))
        self.program, self._names = compiled(self._feed.expression, layer)

    @property
    def parameters_used(self) -> int:
        return sum(core.numel() for core in self._cores().values())

    def _cores(self) -> dict[str, Tensor]:
        """All cores, those at the bond with one channel."""
        held = {name: self.layer._core(name) for name in self.layer._table.leaves}
        for end in self._ends:
            held[end.core] = held[end.core].narrow(end.axis, self.channel, 1)
        return held

    def forward(self, *inputs: Any) -> Tensor:
        """The layer's output for this channel alone, without its bias."""
        tensors = self._feed.tensors(self._cores(), inputs)
        if "bias" in tensors:
            tensors["bias"] = tensors["bias"].new_zeros(tensors["bias"].shape)
        y: Tensor = self.program(*(tensors[name] for name in self._names))
        return self._feed.result(y, inputs)


@dataclass(frozen=True, eq=False)
class StackView:
    """Every way to read a layer as smaller layers.

    ``stacks``: the ways through all of it, cheapest first; each alone computes the layer.
    ``paths(bond)``: the terms that it is a sum of, one for each channel.
    """

    layer: Tensorized
    stacks: tuple[Stack, ...]

    @cached_property
    def _sites(self) -> Sites:
        return sites_of(self.layer)

    def paths(self, bond: str) -> tuple[ChannelPath, ...]:
        """A module for each channel of a bond; their outputs and the bias add up to the layer's.

        Raises: UnknownIndex for a bond that there is not; FormatError where its cores are shared.
        """
        found = self._sites.movable(bond)
        return tuple(ChannelPath(self.layer, found, k) for k in range(found.size))

    def __str__(self) -> str:
        lines = [f"{len(self.stacks)} ways through {self.layer}"]
        lines += [
            f"  {' → '.join(stack.cores)}: {stack.flops:,} flops, widest {stack.widest:,}"
            for stack in self.stacks
        ]
        sums = (f"{bond.name} ({bond.size})" for bond in self._sites.bonds)
        return "\n".join([*lines, f"sums of channels over: {', '.join(sums) or 'no bond'}"])


def stack_view(layer: Any, *, most: int = MOST) -> StackView:
    """The ways in which a layer is a stack of smaller ones, with their costs.

    The data goes from core to core; any order of the cores is a computation path of its own, all
    of them equal. The `most` cheapest by flops are listed (all of them, up to four cores); of
    layers with more than nine cores, the cheapest that a beam of 512 finds.
    Raises: ArgumentError for a `most` below 1, and for what is no layer of one weight.
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ArgumentError(f"most is {most!r:.40}", fix="give a number of stacks, 1 or more")
    sites = sites_of(check_layer(layer))
    contraction = Contraction.of(feed_of(layer, sites), sites)
    orders = _cheapest(contraction, most)
    return StackView(
        layer, tuple(Stack(layer, _stages(contraction, order), order) for order in orders)
    )


def _cheapest(contraction: Contraction, most: int) -> list[tuple[int, ...]]:
    """The orders of sites with the fewest flops: the best few for each set of sites, set by set."""
    ways: dict[frozenset[int], list[tuple[int, tuple[int, ...]]]] = {frozenset(): [(0, ())]}
    every = range(len(contraction.sites))
    for _ in every:
        longer: dict[frozenset[int], list[tuple[int, tuple[int, ...]]]] = {}
        for done, known in ways.items():
            for site in every:
                if site not in done:
                    step = _stage(contraction, done, site).flops
                    more = [(cost + step, (*order, site)) for cost, order in known]
                    longer.setdefault(done | {site}, []).extend(more)
        best = {done: sorted(known)[:most] for done, known in longer.items()}
        kept = sorted(best, key=lambda done: best[done][0])[:_STATES]
        ways = {done: best[done] for done in kept}
    (found,) = ways.values()
    return [order for _, order in found]


def _stages(contraction: Contraction, order: Sequence[int]) -> tuple[Stage, ...]:
    return tuple(_stage(contraction, frozenset(order[:k]), site) for k, site in enumerate(order))


def _stage(contraction: Contraction, done: Collection[int], site: int) -> Stage:
    """What meeting a site costs once others have been met; the first core of a table is read."""
    before = contraction.together(done)
    after = contraction.together({*done, site})
    own = contraction.inputs[contraction.sites[site]]
    inputs, outputs = contraction.open_labels(before), contraction.open_labels(after)
    count = contraction.elements
    flops = 2 * count({*inputs, *own, *outputs}) if before else 0
    core = contraction.network.tensors[site]
    return Stage(core, count(inputs), count(outputs), count(own), flops)
