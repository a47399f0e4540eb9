"""Build, check and time everything on the machine's GPU, within 8 minutes.

    python -m benchmarks.gpu              checks, then times until the minutes are over
    python -m benchmarks.gpu --quick      a few cells, at most 2 minutes
    python -m benchmarks.gpu --minutes 5 --output results.json

Prints a short table and writes JSON. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from multiprocessing import TimeoutError, get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.checks import TOLERANCE, fuzz, layer_errors
from benchmarks.gpu.layers import Cell, cells, graphed, programs
from benchmarks.gpu.peers import PEERS, Unsupported
from benchmarks.gpu.prepare import PARTS, prepare
from benchmarks.gpu.stacks import STACKS, Stack
from benchmarks.gpu.timing import call_us, ceilings, device_us
from benchmarks.machine import machine_facts

FUZZ_SHARE = 0.1  # of the time
ENDING_S = 10.0
STACKS_AT = 12  # after the layers of rank 8 in float16
# how many cells a peer is timed on: compiling and searching take seconds a cell
_PEER_CELLS = {
    "torch.einsum": 1000,
    "cotengra": 12,
    "cuTensorNet": 12,
    "TensorLy-Torch": 12,
    "torch.compile": 3,
}
PATIENCE_S = 40.0  # for the kernels of one cell; the others do not wait longer for it


def measure(cell: Cell | Stack, peers: Sequence[str]) -> dict[str, Any]:
    """Times of one cell in microseconds, ours and others'."""
    layer, x = cell.layer("triton"), cell.input()
    made, aten = programs(layer, x), programs(layer, x, "torch")
    dense_forward, dense_backward = cell.dense(x)
    with torch.no_grad():
        found: dict[str, Any] = {
            "forward": device_us(made.forward),
            "backward": device_us(made.backward),
            "aten forward": device_us(aten.forward),
            "aten backward": device_us(aten.backward),
            "dense forward": device_us(dense_forward),
            "dense backward": device_us(dense_backward),
            "call": call_us(lambda: layer(x)),
            "dense call": call_us(dense_forward),
        }
        found.update(_others(cell, layer, x, peers))
    found["launches"], found["backward launches"] = made.launches
    found["GB/s"] = made.bytes[0] / found["forward"] / 1e3
    found["TFLOP/s"] = made.flops[0] / found["forward"] / 1e6
    found["backward TFLOP/s"] = made.flops[1] / found["backward"] / 1e6
    return found


def _others(
    cell: Cell | Stack, layer: Any, x: torch.Tensor, names: Sequence[str]
) -> dict[str, float]:
    """The layer as a CUDA graph, and peers; what fails is named, the others are timed."""
    runs: dict[str, Callable[[], float]] = {}
    if cell.dtype != "float32":  # whose kernels would be compiled again, for minutes
        runs["graph call"] = lambda: call_us(graphed(cell, layer, x))
    runs.update((n, lambda n=n: device_us(PEERS[n](cell, layer, x))) for n in names)
    found = {}
    for name, timed in runs.items():
        try:
            found[name] = timed()
        except Unsupported:
            continue
        except Exception as error:
            found[name] = float("nan")
            print(f"{name} on {cell.name}: {type(error).__name__}: {error}"[:200], file=sys.stderr)
    return found


def table(results: list[dict[str, Any]]) -> Table:
    """A row for each cell, in microseconds on the device."""
    made = Table(title="microseconds on the device; call, graph, dense: users' calls, with host")
    columns = {
        "fwd": "forward", "bwd": "backward", "aten fwd": "aten forward", "bwd ": "aten backward",
        "dense fwd": "dense forward", "bwd  ": "dense backward", "einsum": "torch.einsum",
        "cotengra": "cotengra", "cutn": "cuTensorNet", "tltorch": "TensorLy-Torch",
        "compile": "torch.compile", "call": "call", "graph": "graph call", "dense": "dense call",
        "GB/s": "GB/s", "TFLOP/s": "TFLOP/s",
    }  # fmt: skip
    made.add_column("cell")
    for column in (*columns, "error"):
        made.add_column(column, justify="right")
    for result in results:
        texts = [_text(result.get(key)) for key in columns.values()]
        worst = max(result["errors"].values(), default=float("nan"))
        made.add_row(result["cell"], *texts, f"{worst:.0e}", style="red" if result["wrong"] else "")
    return made


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def run_cell(cell: Cell | Stack, peers: Sequence[str]) -> dict[str, Any]:
    """Check, then time; whatever goes wrong is in the result."""
    result: dict[str, Any] = {"cell": cell.name, "errors": {}, "wrong": ""}
    try:
        result["errors"] = layer_errors(cell)
        bad = {n: e for n, e in result["errors"].items() if e > TOLERANCE[cell.dtype]}
        result["wrong"] = f"errors {bad}" if bad else ""
        result.update(measure(cell, peers))
    except Exception:
        result["wrong"] = traceback.format_exc(limit=-3)
    torch.cuda.empty_cache()
    return result


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cells, at most 2 minutes")
    parser.add_argument(
        "--cell", action="append", metavar="GLOB", help="names of cells, in this order; repeatable"
    )
    parser.add_argument("--minutes", type=float, help="stop after this time (default 7.5)")
    parser.add_argument("--output", type=Path, default=Path("gpu-output/results.json"))
    parser.add_argument("--jobs", type=int, default=8, help="processes that compile")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options, started = arguments(argv), time.monotonic()
    console = Console(width=200)
    if not torch.cuda.is_available():
        console.print("there is no GPU that torch can use: nothing was run")
        return 2
    seconds = 60 * (options.minutes or (2.0 if options.quick else 7.5))
    end = started + seconds - ENDING_S
    record = {**machine_facts(torch.get_num_threads()), "gpu": torch.cuda.get_device_name()}
    record["ceilings"] = ceilings()
    console.print(record["gpu"], {k: round(v, 1) for k, v in record["ceilings"].items()})
    results: list[dict[str, Any]] = []
    layers = cells(options.quick)
    every = layers if options.quick else [*layers[:STACKS_AT], *STACKS, *layers[STACKS_AT:]]
    globs = options.cell or ["*"]
    chosen = list(dict.fromkeys(c for g in globs for c in every if fnmatchcase(c.name, g)))
    with get_context("spawn").Pool(options.jobs) as pool:  # what still compiles is killed
        ready = {
            cell: pool.starmap_async(prepare, [(cell, part) for part in range(PARTS)], 1)
            for cell in chosen
        }
        failures = [wrong for wrong in fuzz(FUZZ_SHARE * seconds) if _counted(record, wrong)]
        console.print(
            f"{record['fuzzed']} random networks, {len(failures)} wrong", *failures[:5], sep="\n"
        )
        for cell in chosen:
            left = end - time.monotonic()
            if left < 0:
                break
            try:
                ready[cell].get(timeout=min(left, PATIENCE_S))
            except TimeoutError:
                continue
            results.append(run_cell(cell, [p for p in PEERS if len(results) < _PEER_CELLS[p]]))
            shown = {
                k: v if isinstance(v, str) else _text(v)
                for k, v in results[-1].items()
                if k != "errors"
            }
            console.print(f"{time.monotonic() - started:.0f} s", shown)
    console.print(table(results))
    wrong = [r for r in results if r["wrong"]]
    for result in wrong:
        console.print(result["cell"], result["wrong"], markup=False)
    reached = {result["cell"] for result in results}
    skipped = [cell.name for cell in chosen if cell.name not in reached]
    console.print(f"{len(results)} cells, {len(wrong)} wrong; not reached: {skipped}")
    record.update(results=results, failures=failures, skipped=skipped)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return int(bool(wrong or failures))


def _counted(record: dict[str, Any], wrong: str | None) -> bool:
    record["fuzzed"] = record.get("fuzzed", 0) + 1
    return wrong is not None


if __name__ == "__main__":
    sys.exit(main())
