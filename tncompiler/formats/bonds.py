"""The bonds of a weight: the indices that its network sums over, with the cores that hold them.

In: the expression of a format. Out: its sites (a core at each place where it stands) and bonds by
name. Whatever looks into networks or changes them by channels starts here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np

from tncompiler.formats.conditioning import in_double
from tncompiler.ir.errors import EquationError, FormatError, UnknownIndex
from tncompiler.ir.expressions import Expr
from tncompiler.ir.interchange.networks import only_network

Cores = Mapping[str, np.ndarray]
_SHOWN = 12  # names in an error


@dataclass(frozen=True, slots=True)
class End:
    """Where a bond meets the network: the site, the core that stands there, and its axis."""

    site: int
    core: str
    axis: int


@dataclass(frozen=True, slots=True)
class NetworkBond:
    """A summed index: ``name``, ``size`` (channels), and the cores that it joins, in order.

    ``movable``: whether numbers can go from one end to another, since every end is a parameter that
    stands nowhere else.
    """

    name: str
    label: int
    size: int
    ends: tuple[End, ...]
    movable: bool

    @property
    def joins_two(self) -> bool:
        """Whether it is an edge, so that any invertible matrix and its inverse may stand on it."""
        return len(self.ends) == 2 and self.ends[0].site != self.ends[1].site

    @property
    def cores(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(end.core for end in self.ends))

    def check_channels(self, channels: Any) -> tuple[int, ...]:
        """Channels as a tuple. Raises UnknownIndex for others than 0 … size - 1."""
        given = tuple(channels) if isinstance(channels, Sequence) else (channels,)
        for channel in given:
            whole = isinstance(channel, int | np.integer) and not isinstance(channel, bool)
            if not whole or not 0 <= channel < self.size:
                raise UnknownIndex(
                    f"bond {self.name!r} has no channel {channel!r:.40}",
                    where=f"a bond of {', '.join(self.cores)}",
                    fix=f"its channels are 0 to {self.size - 1}",
                )
        return tuple(map(int, given))


@dataclass(frozen=True)
class Sites:
    """A weight's one contraction: ``tensors`` by site, the labels of their axes, and the output's.

    ``constants``: the numbers of leaves that are no parameters.
    """

    network: Expr
    tensors: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    sizes: Mapping[int, int]
    names: Mapping[int, str]
    constants: Mapping[str, np.ndarray]

    @staticmethod
    def of(network: Expr) -> Sites:
        """Raises FormatError for an expression that is more than one contraction of its leaves."""
        try:
            graph = only_network(network)
        except EquationError as error:
            raise FormatError(error.what, where=error.where, fix="use a format that is") from None
        constants = {leaf.name: leaf.value for leaf in network.leaves if leaf.kind == "constant"}
        known = {leaf.name for leaf in network.leaves}
        plain = known.issuperset(graph.tensors) and all(len(set(w)) == len(w) for w in graph.inputs)
        if not plain:
            raise FormatError(
                "the network holds numbers or diagonals beside its cores",
                where=repr(network),
                fix="write it as one contraction of parameters and constants",
            )
        names = {label: graph.index_name(label) for label in graph.sizes}
        sizes = {label: int(size) for label, size in graph.sizes.items()}
        held = {name: np.asarray(value) for name, value in constants.items()}
        return Sites(network, graph.tensors, graph.inputs, graph.output, sizes, names, held)

    @cached_property
    def bonds(self) -> tuple[NetworkBond, ...]:
        """Every summed index, in order of first appearance."""
        labels = dict.fromkeys(label for labels in self.inputs for label in labels)
        return tuple(self._bond(label) for label in labels if label not in self.output)

    def _bond(self, label: int) -> NetworkBond:
        ends = tuple(
            End(site, self.tensors[site], labels.index(label))
            for site, labels in enumerate(self.inputs)
            if label in labels
        )
        once = all(self.tensors.count(end.core) == 1 for end in ends)
        movable = once and not any(end.core in self.constants for end in ends)
        return NetworkBond(self.names[label], label, self.sizes[label], ends, movable)

    def bond(self, name: Any) -> NetworkBond:
        """The bond of a name. Raises UnknownIndex, listing those that there are."""
        for bond in self.bonds:
            if bond.name == name:
                return bond
        names = ", ".join(bond.name for bond in self.bonds[:_SHOWN]) or "none"
        more = ", …" if len(self.bonds) > _SHOWN else ""
        raise UnknownIndex(
            f"there is no bond {name!r:.40}",
            where=repr(self.network),
            fix=f"name one of {names}{more}",
        )

    def movable(self, name: Any) -> NetworkBond:
        """A bond whose ends can be changed. Raises FormatError where a core stands twice."""
        bond = self.bond(name)
        if not bond.movable:
            raise FormatError(
                f"bond {bond.name!r} cannot be changed: one of {', '.join(bond.cores)} is "
                "constant or stands at several places",
                where=repr(self.network),
                fix="give every place a parameter of its own",
            )
        return bond

    def arrays(self, cores: Cores) -> list[np.ndarray]:
        """The tensor of every site in double precision."""
        held = {**self.constants, **cores}
        return [in_double(held[name]) for name in self.tensors]

    @cached_property
    def held(self) -> dict[int, list[tuple[NetworkBond, End]]]:
        """The bonds of each site, with their ends there."""
        found: dict[int, list[tuple[NetworkBond, End]]] = {k: [] for k in range(len(self.tensors))}
        for bond in self.bonds:
            for end in bond.ends:
                found[end.site].append((bond, end))
        return found

    @cached_property
    def joined(self) -> nx.Graph:
        """Sites and bonds as the nodes of a graph, with an edge for each end."""
        graph: nx.Graph = nx.Graph()
        graph.add_nodes_from(range(len(self.tensors)))
        graph.add_edges_from((end.site, bond.name) for bond in self.bonds for end in bond.ends)
        return graph

    @cached_property
    def is_tree(self) -> bool:
        """Whether every bond that joins two cores cuts the network in two."""
        shared = any(sum(label in labels for labels in self.inputs) > 1 for label in {*self.output})
        return not shared and nx.is_forest(self.joined)


def keep_channels(
    sites: Sites, cores: Cores, kept: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """The cores with some channels only of some bonds, in the order given."""
    made = dict(cores)
    for name, channels in kept.items():
        for end in sites.movable(name).ends:
            made[end.core] = np.take(made[end.core], [*channels], end.axis)
    return made


def scale_channels(sites: Sites, cores: Cores, bond: str, factors: np.ndarray) -> dict[str, Any]:
    """The cores with each channel of a bond times a factor, which its first end takes."""
    found = sites.movable(bond)
    end = found.ends[0]
    core = cores[end.core]
    shape = [found.size if axis == end.axis else 1 for axis in range(core.ndim)]
    return {**cores, end.core: core * np.asarray(factors).reshape(shape)}
