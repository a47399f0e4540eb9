"""What ranks run on, and how fast they send each other sums; published figures of GPU nodes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from tncompiler.distributed.options import DIGEST_BYTES
from tncompiler.ir.errors import PlanError
from tncompiler.ir.origin import call_site
from tncompiler.planning.machine import Machine, default_machine, load_machine
from tncompiler.planning.rates import Rates

MESSAGE = 2**23  # bytes of a message that a cache has room for, which rates are of
BULK = 2**25  # and of one that goes through memory


@dataclass(frozen=True, slots=True)
class Link:
    """What connects ranks: microseconds until something arrives, and bytes a microsecond after.

    ``bulk_bytes_per_us``: the rate from BULK bytes on, between ranks that go through memory; None:
    the same.
    """

    latency_us: float
    bytes_per_us: float
    bulk_bytes_per_us: float | None = None

    def rate(self, sent: float) -> float:
        """Bytes a microsecond of so many."""
        if self.bulk_bytes_per_us is None or sent <= MESSAGE:
            return self.bytes_per_us
        rates = self.bytes_per_us, self.bulk_bytes_per_us
        return float(np.interp(np.log(sent), np.log((MESSAGE, BULK)), rates))

    def sum_us(self, size: float, world: int) -> float:
        """To add up so many bytes between ranks, each of which gets the sum: in a ring, each sends
        all but its own share twice."""
        if world == 1 or not size:
            return 0.0
        sent = 2.0 * (world - 1) / world * size
        return 2.0 * math.ceil(math.log2(world)) * self.latency_us + sent / self.rate(sent)

    def exchange_us(self, sent: float, world: int) -> float:
        """To send others what is theirs, so many bytes from the rank that sends or gets most."""
        if world == 1 or not sent:
            return 0.0
        return math.ceil(math.log2(world)) * self.latency_us + sent / self.rate(sent)


LOCAL = Link(latency_us=150.0, bytes_per_us=1_500.0)  # gloo between processes of one machine


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with so many ranks, the memory of each, and the links within and between."""

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
    """So many nodes' worth of ranks: the rates of one rank, and its node.

    ``slice_us``: what a slice takes beside its steps: blocks, sums, looking for NaN.
    ``slowdown``: numbers of ranks, ascending, with how many times as long their own work takes when
    so many of them are at it; nothing for GPUs, of which there are as many as ranks.
    ``calls``: numbers of ranks with the microseconds that a call of next to no work takes; nothing
    where only what ranks send each other before a call is known.
    """

    name: str
    rates: Rates
    node: Node
    slice_us: float = 60.0
    slowdown: tuple[tuple[int, float], ...] = ()
    calls: tuple[tuple[int, float], ...] = ()

    def link(self, world: int) -> Link:
        """The slowest link that a sum goes over."""
        return self.node.within if world <= self.node.ranks else self.node.between

    def call_us(self, world: int) -> float:
        """What a call takes beside its steps: ranks see whether all are at the same work."""
        if not self.calls:
            return self.link(world).exchange_us(DIGEST_BYTES * (world - 1), world)
        worlds, times = zip(*self.calls, strict=True)
        rounds = math.log2(world) / math.log2(worlds[-1]) if world > worlds[-1] > 1 else 1.0
        return float(np.interp(world, worlds, times)) * rounds

    def turns(self, world: int) -> float:
        """How many times as long ranks take for their own work when so many are at it: between
        numbers that are known interpolated, beyond them taking turns."""
        if not self.slowdown:
            return 1.0
        worlds, factors = zip(*self.slowdown, strict=True)
        between = float(np.interp(world, worlds, factors))
        return between * max(world / float(worlds[-1]), 1.0)


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
    node = Node(cores or 1, None, LOCAL, LOCAL)
    return Cluster(machine.name, rates, node, slowdown=((node.ranks, 1.0),))
