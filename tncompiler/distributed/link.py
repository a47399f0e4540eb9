"""What ranks run on, and how fast they send each other sums; published figures of GPU nodes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tncompiler.distributed.options import DIGEST_BYTES
from tncompiler.ir.errors import PlanError
from tncompiler.ir.origin import call_site
from tncompiler.planning.machine import Machine, default_machine, load_machine
from tncompiler.planning.rates import Rates

MESSAGE = 2**23  # bytes of a message that a cache has room for, which rates are of
BULK = 2**25  # and of one that goes through memory
# of a cache that ranks share: how full their slices make it where one begins to slow the others
# down, and where it is as slow as it gets; how many times as long slices take then. Read on two
# cores with 32 MiB, of slices with 6 to 24 MiB each, in processes that did not speak to each other
_BEGINS, _ENDS, _CROWDED = 0.6, 1.1, 1.35


@dataclass(frozen=True, slots=True)
class Link:
    """What connects ranks: microseconds until something arrives, and bytes a microsecond after.

    ``bulk_bytes_per_us``: the rate from BULK bytes on, between ranks that go through memory; None:
    the same. ``exchange_bytes_per_us``, ``exchange_bulk_bytes_per_us``: where bytes are sent as
    they are, and not added up; None: as fast as sums.
    """

    latency_us: float
    bytes_per_us: float
    bulk_bytes_per_us: float | None = None
    exchange_bytes_per_us: float | None = None
    exchange_bulk_bytes_per_us: float | None = None

    def rate(self, sent: float) -> float:
        """Bytes a microsecond of so many of a sum."""
        return _rate(sent, self.bytes_per_us, self.bulk_bytes_per_us)

    def exchange_rate(self, sent: float) -> float:
        """Bytes a microsecond of so many as they are."""
        if self.exchange_bytes_per_us is None:
            return self.rate(sent)
        return _rate(sent, self.exchange_bytes_per_us, self.exchange_bulk_bytes_per_us)

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
        return math.ceil(math.log2(world)) * self.latency_us + sent / self.exchange_rate(sent)


def _rate(sent: float, large: float, bulk: float | None) -> float:
    """Between a message that a cache has room for and one that goes through memory."""
    if bulk is None or sent <= MESSAGE:
        return large
    return float(np.interp(np.log(sent), np.log((MESSAGE, BULK)), (large, bulk)))


_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
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
    ``far``: numbers of ranks with the microseconds that each byte of arrays beyond FAR_BYTES takes
    besides, as ranks share the way to memory; nothing where that is not known.
    ``calls``: numbers of ranks with the microseconds that a call of next to no work takes; nothing
    where only what ranks send each other before a call is known.
    ``libraries``: rates of a rank by the library that runs its slices; empty where there is one.
    ``cache_bytes``: of the cache that the ranks of a node share; None: each has its own.
    """

    name: str
    rates: Rates
    node: Node
    slice_us: float = 60.0
    slowdown: tuple[tuple[int, float], ...] = ()
    far: tuple[tuple[int, float], ...] = ()
    calls: tuple[tuple[int, float], ...] = ()
    libraries: Mapping[str, Rates] = field(default_factory=dict)
    cache_bytes: int | None = None

    def on(self, library: str) -> Cluster:
        """With the rates of a library, where they are known apart."""
        return replace(self, rates=self.libraries.get(library, self.rates))

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
        """How many times as long ranks take for their own work when so many are at it."""
        return _in_turns(self.slowdown, world) if self.slowdown else 1.0

    def far_us(self, world: int, size: float) -> float:
        """What so many bytes of arrays beyond FAR_BYTES take a rank besides."""
        return _in_turns(self.far, world) * size if self.far else 0.0

    def cache_share(self, world: int) -> float:
        """Bytes of a shared cache for each of the ranks that are at work at one time."""
        together = min(world, self.node.ranks)
        if self.cache_bytes is None or together < 2:
            return math.inf
        return self.cache_bytes / together

    def crowding(self, world: int, held: float) -> float:
        """How many times as long slices that hold so many bytes take, as others fill the cache."""
        full = held / self.cache_share(world)
        return float(np.interp(full, (_BEGINS, _ENDS), (1.0, _CROWDED)))


def _in_turns(figures: tuple[tuple[int, float], ...], world: int) -> float:
    """Between numbers of ranks that are known interpolated, beyond them ranks take turns."""
    worlds, found = zip(*figures, strict=True)
    return float(np.interp(world, worlds, found)) * max(world / float(worlds[-1]), 1.0)


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
    return Cluster(
        machine.name,
        rates,
        node,
        slowdown=((node.ranks, 1.0),),
        libraries=dict(machine.libraries),
        cache_bytes=shared_cache_bytes(),
    )


def shared_cache_bytes(folder: Path = _CACHES) -> int | None:
    """The largest cache that several cores of this computer share; None if that is not known."""
    found = [_shared_bytes(cache) for cache in sorted(folder.glob("index*"))]
    return max((size for size in found if size), default=None)


def _shared_bytes(cache: Path) -> int | None:
    """The bytes of a cache as Linux describes it; None unless several cores share it."""
    try:
        size = re.fullmatch(r"([0-9]+)K", (cache / "size").read_text().strip())
        cores = (cache / "shared_cpu_list").read_text().strip()
    except OSError:
        return None
    return int(size[1]) * 2**10 if size and not cores.isdecimal() else None
