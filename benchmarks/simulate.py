"""Predicted against measured times over 1, 2 and 4 ranks of this computer.

`python -m benchmarks.simulate` measures what ranks reach on a few networks (`calibrate_ranks`),
then other networks, which nothing was fitted to, each in processes of its own, and prints what
`tnc.simulate` predicts beside what they took. `--processor` takes the processor's time of the
busiest rank, for a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

import tncompiler as tnc
from benchmarks.plan_networks import LAYERS, layer
from examples.slices import circuit, peps_norm
from tncompiler.distributed.calibrate import WORLDS, Stopwatch, calibrate_ranks
from tncompiler.distributed.link import Cluster

WITHIN = 0.25


@dataclass(frozen=True, slots=True)
class Problem:
    """A network of inputs, and the memory that a rank may take."""

    name: str
    network: Any
    memory_limit: str | None = None
    dtype: str = "float32"


def problems() -> Iterator[Problem]:
    """Networks that calibration knows nothing of, of some milliseconds and more."""
    circuits = circuit(4, 5, 14, "4MiB"), circuit(4, 5, 14, "1MiB"), circuit(3, 6, 20, "2MiB")
    for made in circuits:
        name = f"{made.name}, {made.memory_limit}"
        yield Problem(name, made.expr, made.memory_limit, "complex64")
    norms = peps_norm(4, 5, 4, "4MiB"), peps_norm(4, 4, 6, "8MiB"), peps_norm(4, 5, 5, "16MiB")
    for made in norms:
        yield Problem(f"{made.name}, {made.memory_limit}", made.expr, made.memory_limit)
    for name in ("TTMatrix", "TensorRing", "CP", "Monarch"):
        yield Problem(f"{name} layer, batch 2048", layer(name, *LAYERS[name], 2048))
    a, b, c, d = tnc.indices("a b c d", a=768, b=2048, c=640, d=1536)
    chain = [tnc.input(n, *two) for n, two in zip("ABC", ((a, b), (b, c), (c, d)), strict=True)]
    yield Problem("chain of three matrices", tnc.contract(*chain, out=(a, d)))
    yield Problem("Kronecker layer, batch 4096", layer("Kronecker", *LAYERS["Kronecker"], 4096))


@dataclass(frozen=True, slots=True)
class Row:
    """One network on so many ranks, in milliseconds."""

    name: str
    world: int
    slices: int
    predicted_ms: float
    measured_ms: float

    @property
    def ratio(self) -> float:
        return self.predicted_ms / self.measured_ms

    @property
    def holds(self) -> bool:
        return abs(self.ratio - 1) <= WITHIN


def measured_us(problem: Problem, cluster: Cluster, watch: Stopwatch) -> dict[int, float]:
    """What calls take, by the number of ranks; the same on all of them."""
    options = tnc.PlanOptions(memory_limit=problem.memory_limit)
    given = problem.network, options, problem.dtype
    return watch.least_of(
        {world: (world, watch.calling(world, *given, machine=cluster)) for world in watch.groups}
    )


def rows_of(problem: Problem, cluster: Cluster, measured: Mapping[int, float]) -> Iterator[Row]:
    """Predicted and measured, for every number of ranks."""
    limit, dtype = problem.memory_limit, problem.dtype
    for world, taken_us in measured.items():
        found = tnc.simulate(problem.network, cluster, world, dtype=dtype, memory_limit=limit)
        yield Row(problem.name, world, found.slices, found.time_us / 1e3, taken_us / 1e3)


def table_of(rows: Sequence[Row], cluster: Cluster) -> Table:
    node = cluster.node
    table = Table(
        "network",
        title="predicted and measured ms of networks that nothing was fitted to",
        caption=f"sums {node.within.latency_us:.0f} us, {node.within.bytes_per_us:,.0f} B/us "
        f"({node.between.latency_us:.0f} us, {node.between.bytes_per_us:,.0f} B/us beyond the "
        f"cores); a slice {cluster.slice_us:.0f} us; own work takes "
        + ", ".join(f"{factor:.2f} times as long on {world}" for world, factor in cluster.slowdown)
        + "; large arrays "
        + ", ".join(f"{1e6 * far:.0f} us a MB on {world}" for world, far in cluster.far),
    )
    for heading in ("ranks", "slices", "predicted", "measured", "ratio", ""):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (f"{row.predicted_ms:.2f}", f"{row.measured_ms:.2f}", f"{row.ratio:.2f}")
        mark = "" if row.holds else "beyond 25 %"
        table.add_row(row.name, str(row.world), str(row.slices), *numbers, mark)
    return table


def summary(rows: Sequence[Row]) -> str:
    held = sum(row.holds for row in rows)
    ratios = sorted(row.ratio for row in rows)
    return (
        f"{held} of {len(rows)} held-out pairs within {WITHIN:.0%}; predicted / measured from "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f}, median {ratios[len(ratios) // 2]:.2f}"
    )


# In processes ------------------------------------------------------------------------------------

Task = Callable[[Stopwatch], Any]


def calibrated(watch: Stopwatch) -> Cluster:
    """What the ranks reach together."""
    return calibrate_ranks(clock=watch.clock, progress=True)


@dataclass(frozen=True, slots=True)
class Measuring:
    """What one problem takes, by its place among all."""

    place: int
    cluster: Cluster

    def __call__(self, watch: Stopwatch) -> dict[int, float]:
        problem = next(islice(problems(), self.place, None))
        return measured_us(problem, self.cluster, watch)


def on_ranks(
    task: Task, clock: Callable[[], float], ranks: int = max(WORLDS), kind: str = "gloo"
) -> Any:
    """What a task gives on the first of new ranks, whose heaps no other work has shaped."""
    wait = timedelta(seconds=120)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=wait, wait_for_workers=False)
    answer = mp.get_context("spawn").SimpleQueue()
    given = ranks, store.port, kind, task, clock, answer
    running = mp.spawn(_on_rank, given, nprocs=ranks, join=False)
    while answer.empty():  # a pipe holds little, and a rank that waits to write does not end
        running.join(timeout=0.1)  # raises what a rank failed with
    found = answer.get()
    while not running.join():
        pass
    return found


def _on_rank(
    rank: int,
    world: int,
    port: int,
    kind: str,
    task: Task,
    clock: Callable[[], float],
    answer: Any,
) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=120))
    dist.init_process_group(kind, store=store, rank=rank, world_size=world)
    found = task(Stopwatch(clock))
    if rank == 0:
        answer.put(found)
    dist.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processor", action="store_true", help="processor time, not the wall's")
    parser.add_argument("--out", type=Path, help="where the rows go, as JSON")
    arguments = parser.parse_args(argv)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    clock = time.process_time if arguments.processor else time.perf_counter
    cluster = on_ranks(calibrated, clock)
    rows: list[Row] = []
    for place, problem in enumerate(problems()):
        rows += rows_of(problem, cluster, on_ranks(Measuring(place, cluster), clock))
        print(
            problem.name,
            *(f"{row.ratio:.2f}" for row in rows if row.name == problem.name),
            flush=True,
        )
    Console(width=120).print(table_of(rows, cluster))
    print(summary(rows))
    if arguments.out:
        record = {"rows": [asdict(row) for row in rows], "processor": arguments.processor}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
