"""Contractions too large for a limit of memory, slice by slice on several ranks.

`python -m examples.slices` runs an amplitude of a random circuit and the norm of a PEPS on two
processes of this machine, compares them with one process without a limit, and prints what each
took; `torchrun --nproc-per-node N -m examples.slices` takes the ranks that torchrun starts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import tncompiler as tnc


@dataclass(frozen=True, slots=True)
class Network:
    """A contraction: its expression, its arrays in order, and the memory that it may take."""

    name: str
    expr: Any
    arrays: list[np.ndarray]
    memory_limit: str


def circuit(rows: int, columns: int, depth: int, memory_limit: str, seed: int = 0) -> Network:
    """<0|U|0> of random two-qubit gates on a grid, in layers of neighbours left, down, ...."""
    rng = np.random.default_rng(seed)
    count = rows * columns
    wire = list(range(count))  # the label that each qubit's line has now
    shapes: list[np.ndarray] = [np.array([1.0, 0.0]) for _ in wire]
    terms = [[label] for label in wire]
    fresh = count
    for layer in range(depth):
        for a, b in _pairs(rows, columns, layer % 4):
            gate = np.linalg.qr(rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4)))[0]
            terms.append([fresh, fresh + 1, wire[a], wire[b]])
            shapes.append(gate.reshape(2, 2, 2, 2))
            wire[a], wire[b] = fresh, fresh + 1
            fresh += 2
    terms += [[label] for label in wire]
    shapes += [np.array([1.0, 0.0]) for _ in wire]
    arrays = [array.astype(np.complex64) for array in shapes]
    return _network(f"circuit {rows}x{columns}, depth {depth}", terms, arrays, memory_limit)


def _pairs(rows: int, columns: int, kind: int) -> list[tuple[int, int]]:
    """Neighbours in a row (kinds 0 and 1) or in a column (2 and 3), from every second qubit."""
    step = 1 if kind < 2 else columns
    return [
        (r * columns + c, r * columns + c + step)
        for r in range(rows)
        for c in range(columns)
        if (c if kind < 2 else r) % 2 == kind % 2
        and (c + 1 < columns if kind < 2 else r + 1 < rows)
    ]


def peps_norm(rows: int, columns: int, bond: int, memory_limit: str, seed: int = 0) -> Network:
    """<psi|psi> of a random PEPS: two layers of a lattice, joined at the physical indices."""
    rng = np.random.default_rng(seed)
    edges: dict[tuple[int, int, int, int], int] = {}

    def label(layer: int, kind: int, row: int, column: int) -> int:
        return edges.setdefault((layer, kind, row, column), len(edges))

    terms, arrays = [], []
    for layer in (0, 1):
        for r in range(rows):
            for c in range(columns):
                own = [label(layer, 0, r, k) for k in (c - 1, c) if 0 <= k < columns - 1]
                own += [label(layer, 1, k, c) for k in (r - 1, r) if 0 <= k < rows - 1]
                terms.append([*own, label(2, 2, r, c)])
                scale = bond ** (-len(own) / 4)
                arrays.append(scale * rng.standard_normal([bond] * len(own) + [2]))
    half = rows * columns
    arrays = [array.astype(np.float32) for array in (*arrays[:half], *arrays[:half])]
    return _network(f"PEPS norm {rows}x{columns}, bond {bond}", terms, arrays, memory_limit)


def _network(
    name: str, terms: list[list[int]], arrays: list[np.ndarray], memory_limit: str
) -> Network:
    given: list[Any] = []
    for term, array in zip(terms, arrays, strict=True):
        given += [array, term]
    return Network(name, tnc.from_einsum(*given, []), arrays, memory_limit)


NETWORKS: dict[str, Callable[[], Network]] = {
    "circuit": lambda: circuit(4, 6, 16, "32MiB"),
    "peps": lambda: peps_norm(5, 5, 4, "32MiB"),
}


# Running them -----------------------------------------------------------------------------------


def run(name: str, group: Any, repeats: int = 3) -> dict[str, Any]:
    """The least time of some calls, the result, and how it was cut; the same on every rank."""
    network = NETWORKS[name]()
    tensors = [torch.from_numpy(array) for array in network.arrays]
    options = tnc.PlanOptions(memory_limit=network.memory_limit)
    module = tnc.compile(network.expr, plan=options, process_group=tnc.Ranks(group))
    start = time.perf_counter()
    value = module(*tensors)
    planned = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        if group is not None:
            dist.barrier()
        start = time.perf_counter()
        again = module(*tensors)
        times.append(time.perf_counter() - start)
        assert torch.equal(again, value), "two runs differ"
    return {
        "value": complex(value),
        "first_s": planned,
        "seconds": min(times),
        "slices": module.slices(),
        "seen": network.name,
    }


def whole(name: str) -> tuple[complex, int]:
    """The result without a limit of memory, and the memory that it is planned to take."""
    network = NETWORKS[name]()
    module = tnc.compile(network.expr, backend="torch")
    value = module(*(torch.from_numpy(array) for array in network.arrays))
    return complex(value), module.plan().peak_memory


def compare(rank: int, world: int) -> None:
    """Each network on one rank, then on all of them."""
    for name in NETWORKS:
        one = run(name, None) if rank == 0 else None
        dist.barrier()
        many = run(name, dist.group.WORLD)
        if one is None:
            continue
        value, peak = whole(name)
        off = abs(many["value"] - value) / abs(value)
        print(
            f"{many['seen']}: {peak / 2**20:.1f} MiB unsliced, {NETWORKS[name]().memory_limit} "
            f"allowed, {many['slices']} slices\n"
            f"  one rank {one['seconds'] * 1e3:,.0f} ms, {world} ranks "
            f"{many['seconds'] * 1e3:,.0f} ms: efficiency "
            f"{one['seconds'] / many['seconds'] / world:.2f}\n"
            f"  relative difference from the unsliced result {off:.1e}",
            flush=True,
        )


def _spawned(rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    compare(rank, world)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2, help="processes, without torchrun")
    ranks = parser.parse_args().ranks
    if "RANK" in os.environ:  # torchrun
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        compare(dist.get_rank(), dist.get_world_size())
        dist.destroy_process_group()
        return
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    wait = timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=wait, wait_for_workers=False)
    mp.spawn(_spawned, (ranks, store.port), nprocs=ranks)


if __name__ == "__main__":
    main()
