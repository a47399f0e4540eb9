"""What ranks run on, and how fast they send each other sums; published figures of GPU nodes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tncompiler.ir.errors import PlanError
from tncompiler.ir.origin import call_site
from tncompiler.planning.machine import Machine, default_machine, load_machine
from tncompiler.planning.rates import Rates


@dataclass(frozen=True, slots=True)
class Link:
    """What connects ranks: microseconds until something arrives, and bytes a microsecond after."""

    latency_us: float
    bytes_per_us: float

    def sum_us(self, size: float, world: int) -> float:
        """To add up so many bytes between ranks, each of which gets the sum: in a ring, each sends
        all but its own share twice."""
        if world == 1 or not size:
            return 0.0
        sent = 2.0 * (world - 1) / world * size
        return 2.0 * math.ceil(math.log2(world)) * self.latency_us + sent / self.bytes_per_us

    def exchange_us(self, sent: float, world: int) -> float:
        """To send others what is theirs, so many bytes from the rank that sends or gets most."""
        if world == 1 or not sent:
            return 0.0
        return math.ceil(math.log2(world)) * self.latency_us + sent / self.bytes_per_us


LOCAL = Link(latency_us=150.0, bytes_per_us=1_500.0)  # gloo between processes of one machine


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with several ranks: how many, each one's memory, and the links within and between.

    ``ranks``: as many as work at once; more of them on one node would take turns.
    """

    ranks: int
    memory_bytes: int | None
    within: Link
    between: Link


# NVLink and Infinity Fabric count one direction; between nodes each GPU has a network card of its
# own: 200 Gb/s in a DGX A100, 400 Gb/s in the others. Latencies are those of NCCL's own tests.
NODES: Mapping[str, Node] = MappingProxyType(
    {
        "a100": Node(8, 80 * 10**9, Link(10.0, 300_000.0), Link(20.0, 25_000.0)),
        "h100": Node(8, 80 * 10**9, Link(10.0, 450_000.0), Link(20.0, 50_000.0)),
        "b200": Node(8, 180 * 10**9, Link(10.0, 900_000.0), Link(20.0, 50_000.0)),
        "mi300x": Node(8, 192 * 10**9, Link(10.0, 448_000.0), Link(20.0, 50_000.0)),
    }
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """So many nodes' worth of ranks: the rates of one rank, and its node."""

    name: str
    rates: Rates
    node: Node

    def link(self, world: int) -> Link:
        """The slowest link that a sum goes over."""
        return self.node.within if world <= self.node.ranks else self.node.between

    def turns(self, world: int) -> float:
        """How many times as long ranks take that share what is there for fewer; 1 for GPUs, of
        which there are as many as ranks."""
        return max(world / self.node.ranks, 1.0) if self.node.within == LOCAL else 1.0


def as_cluster(given: str | Machine | Cluster | None) -> Cluster:
    """The cluster: "8xH100" is nodes of 8; a Machine, or nothing, is this computer.

    Raises: PlanError for a name without a table.
    """
    if isinstance(given, Cluster):
        return given
    machine = default_machine() if given is None else given
    if isinstance(machine, Machine):
        return _local(machine)
    match = re.fullmatch(r"(?:([1-9][0-9]{0,4})x)?([a-z0-9]+)", str(machine).strip().lower())
    count, name = (match[1], match[2]) if match else (None, "")
    if name == "reference":
        return _local(load_machine(name))
    if name not in NODES:
        raise PlanError(
            f"there is no machine {given!r:.40}",
            where=call_site(),
            fix=f"give a tnc.Machine, or one of {', '.join(NODES)}, as in '8xH100'",
        )
    node = NODES[name]
    ranks = int(count) if count else node.ranks
    node = Node(ranks, node.memory_bytes, node.within, node.between)
    return Cluster(f"{ranks}x{name}", load_machine(name).planning, node)


def _local(machine: Machine) -> Cluster:
    """Processes of this computer, one for each core at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rates = machine.libraries.get("torch", machine.planning)
    return Cluster(machine.name, rates, Node(cores or 1, None, LOCAL, LOCAL))
