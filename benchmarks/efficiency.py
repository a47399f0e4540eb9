"""How much faster two ranks are than one, on contractions in slices of a millisecond and more.

`python -m benchmarks.efficiency` times, in turn and on two quiet cores with one BLAS thread each:
one rank alone; two that do the whole work each and never speak to each other, for what the cores
cost each other; two that share it. Efficiency is half of the time alone over the time of two, by
the least and by the median of all rounds; a round ends with its slower rank.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

import tncompiler as tnc
from benchmarks.simulate import on_ranks
from examples.slices import Network, circuit, peps_norm
from tncompiler.distributed.calibrate import Stopwatch

PROMISED, WARM = 0.85, 3
NETWORKS: tuple[Callable[[], Network], ...] = (
    lambda: circuit(4, 5, 14, "4MiB"),
    lambda: circuit(4, 5, 14, "1MiB"),
    lambda: circuit(3, 6, 20, "2MiB"),
    lambda: circuit(4, 6, 16, "32MiB"),
    lambda: peps_norm(4, 5, 4, "4MiB"),
    lambda: peps_norm(4, 5, 5, "16MiB"),
    lambda: peps_norm(5, 5, 4, "32MiB"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One network: its slices, and the milliseconds of every round."""

    name: str
    slices: int
    alone: Sequence[float]
    apart: Sequence[float]  # two ranks, each with the whole
    shared: Sequence[float]

    def efficiency(self, of: Callable[[Sequence[float]], float]) -> float:
        return of(self.alone) / 2 / of(self.shared)

    def limit(self, of: Callable[[Sequence[float]], float]) -> float:
        """What ranks that never wait for each other's data reach."""
        return of(self.alone) / of(self.apart)


@dataclass(frozen=True, slots=True)
class Measuring:
    """What both ranks do for one network."""

    place: int
    rounds: int

    def __call__(self, watch: Stopwatch) -> Row:
        made = NETWORKS[self.place]()
        tensors = [torch.from_numpy(array) for array in made.arrays]
        options = tnc.PlanOptions(memory_limit=made.memory_limit)
        one, two = (
            tnc.compile(made.expr, plan=options, process_group=watch.ranks(n)) for n in (1, 2)
        )
        for _ in range(WARM):
            one(*tensors)
            two(*tensors)
        rows = [[*self._round(watch, one, two, tensors)] for _ in range(self.rounds)]
        times = torch.tensor(rows, dtype=torch.float64)
        dist.all_reduce(times, dist.ReduceOp.MAX)
        alone, apart, shared = (1e3 * times).t().tolist()
        return Row(f"{made.name}, {made.memory_limit}", two.slices(), alone, apart, shared)

    def _round(
        self, watch: Stopwatch, one: Any, two: Any, tensors: Sequence[torch.Tensor]
    ) -> Iterator[float]:
        """Seconds of this rank; where the other works alone, none."""
        for run in (one if watch.rank == 0 else None, one, two):
            dist.barrier()
            start = time.perf_counter()
            if run is not None:
                run(*tensors)
            yield time.perf_counter() - start


def table_of(rows: Sequence[Row]) -> Table:
    table = Table(title="ms by the least and (the median) of all rounds")
    table.add_column("network")
    headings = ("slices", "one rank", "two, apart", "two, shared", "limit", "efficiency")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        times = (f"{min(t):.1f} ({_median(t):.1f})" for t in (row.alone, row.apart, row.shared))
        shares = (f"{of(min):.2f} ({of(_median):.2f})" for of in (row.limit, row.efficiency))
        table.add_row(row.name, str(row.slices), *times, *shares)
    return table


def _median(times: Sequence[float]) -> float:
    return statistics.median(times)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.efficiency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args(argv)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    rows = []
    for place in range(len(NETWORKS)):
        rows.append(on_ranks(Measuring(place, arguments.rounds), time.perf_counter, ranks=2))
        least, median = (rows[-1].efficiency(of) for of in (min, _median))
        print(f"{rows[-1].name}: {least:.2f} by the least, {median:.2f} by medians", flush=True)
    Console(width=120).print(table_of(rows))
    held = sum(row.efficiency(min) >= PROMISED for row in rows)
    print(f"{held} of {len(rows)} at {PROMISED} and more by the least times")


if __name__ == "__main__":
    main()
