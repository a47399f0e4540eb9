"""Time tncompiler beside its peers, in one process, in turn.

    make bench                            the default cells, at most 25 minutes
    make bench ARGS="--quick"             a few, at most 3 minutes
    make bench ARGS="--all"               every cell, as long as it takes
    make bench ARGS="--case 'ttm-*' --every-peer"
    make bench ARGS="--calibrate"         plans for this machine's rates, not the committed ones
    make bench ARGS="--against bench-output/results.json"

Prints tables, writes results.json and pictures. The machine may be shared: read the ratios of one
run, never milliseconds of two.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from tqdm import tqdm

from benchmarks.cases import CASES, CaseError, Cell, load_cases, select

if TYPE_CHECKING:
    from benchmarks.contest import CellResult
    from benchmarks.floor import Rates

BUDGET_MINUTES = {"quick": 3.0, "default": 25.0, "all": float("inf")}
LEAST_S, MOST_S = 1.0, 30.0  # of timing one cell
# but for --all: a call that takes longer is timed fewer rounds, a contestant that takes longer to
# start is left out
BOUNDED = {"slow_s": 1.0, "patience_s": 15.0}
ENDING_S = 20.0  # kept for the second look at the machine's rates, tables and pictures


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_const", const="quick", dest="selection")
    which.add_argument("--all", action="store_const", const="all", dest="selection")
    parser.set_defaults(selection="default")
    parser.add_argument("--case", default="*", metavar="GLOB", help="ids of cases or of cells")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier results.json")
    parser.add_argument("--minutes", type=float, help="another budget")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0: as many as cores")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first")
    parser.add_argument("--every-peer", action="store_true", help="a table for each cell")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    parser.add_argument("--cases", type=Path, default=CASES, help="another corpus")
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit status."""
    options = read_options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        cells = select(load_cases(options.cases), options.selection, options.case)
        if not cells:
            raise CaseError(options.case, "--case", "selects no cell", "see --list, or use --all")
        if options.list:
            print("\n".join(cell.id for cell in cells))
            return 0
        return _bench(console, cells, options)
    except ValueError as error:  # CaseError and RecordError say all there is to say
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
        return 2


def _bench(console: Console, cells: Sequence[Cell], options: argparse.Namespace) -> int:
    start = time.perf_counter()
    threads = set_threads(options.threads)
    from benchmarks.contest import find_missing
    from benchmarks.floor import measure_rates
    from benchmarks.machine import machine_facts
    from benchmarks.plots import draw_plots
    from benchmarks.record import as_record, compare, read_record, write_record
    from benchmarks.table import change_table, print_results
    from tncompiler.calibration import calibrate
    from tncompiler.distributed.heap import keep_freed_memory
    from tncompiler.planning.machine import as_machine, default_machine

    warnings.simplefilter("ignore")  # of peers
    keep_freed_memory()  # else page faults are a third of some calls, by what ran before
    earlier = None if options.against is None else read_record(options.against)
    if options.calibrate:
        calibrate()  # from here on what is compiled is planned for it
    planned_for = as_machine(default_machine()).name
    facts, missing = {**machine_facts(threads), "planned_for": planned_for}, find_missing()
    dtypes = tuple(dict.fromkeys(cell.dtype for cell in cells))
    rates = measure_rates(dtypes)
    minutes = options.minutes or BUDGET_MINUTES[options.selection]
    results, skipped = run_cells(cells, rates, missing, start + minutes * 60, options)
    rates = rates.best(measure_rates(dtypes))
    results = [_with_rates(result, rates) for result in results]
    record = as_record(results, facts, rates, skipped)
    write_record(record, options.out / "results.json")
    pictures = draw_plots(results, options.out)
    print_results(console, results, skipped, missing, options.every_peer)
    if earlier is not None:
        console.print(change_table(compare(earlier, record), str(options.against)))
    shown = ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in rates.flops_per_s.items())
    used = time.perf_counter() - start
    console.print(
        f"{facts['cpu']}, {threads} of {facts['cores']} cores, load {facts['load_1min']}; {shown}, "
        f"copy {rates.bytes_per_s / 1e9:.0f} GB/s read and written; "
        f"planned for: {planned_for}; {len(results)} cells in {used / 60:.1f} min; "
        f"{options.out / 'results.json'}, {', '.join(str(p) for p in pictures)}",
        highlight=False,
    )
    return 0


def run_cells(
    cells: Sequence[Cell],
    rates: Rates,
    missing: Mapping[str, str],
    deadline: float,
    options: argparse.Namespace,
) -> tuple[list[CellResult], dict[str, str]]:
    """The results of all cells that fit before the deadline, and why the others were not run."""
    from benchmarks.contest import run_cell

    results: list[CellResult] = []
    skipped: dict[str, str] = {}
    quick = options.selection == "quick"
    limits = {} if options.selection == "all" else BOUNDED
    start = time.perf_counter()
    progress = tqdm(cells, desc="cells", unit="cell", dynamic_ncols=True)
    for done, cell in enumerate(progress):
        now = time.perf_counter()
        left = deadline - ENDING_S - now
        if left < max(LEAST_S, (now - start) / max(len(results), 1)):
            skipped[cell.id] = "the time was used up"
            continue
        progress.set_postfix_str(cell.id)
        budget = min(max(left / (len(cells) - done), LEAST_S), MOST_S)
        starters = not quick and _has_slow_starters(cell, options.selection)
        try:
            results.append(run_cell(cell, rates, missing, budget, starters, **limits))
        except CaseError as error:
            skipped[cell.id] = error.what
    return results, skipped


def _has_slow_starters(cell: Cell, selection: str) -> bool:
    marked = (fnmatchcase(cell.settings, pattern) for pattern in cell.case.torch_compile)
    return selection == "all" or any(marked)


def _with_rates(result: CellResult, rates: Rates) -> CellResult:
    """The result with its floor at the rates of the whole run."""
    flops_ms = result.floor.flops / rates.flops_per_s[result.cell.dtype] * 1e3
    bytes_ms = result.floor.bytes / rates.bytes_per_s * 1e3
    return replace(result, floor=replace(result.floor, time_ms=max(flops_ms, bytes_ms)))


def set_threads(wanted: int) -> int:
    """Threads for NumPy's and torch's products, the same for everybody; 0 means all cores."""
    import numpy  # noqa: F401  its library must be there for its threads to be set
    import threadpoolctl
    import torch

    count = wanted if wanted > 0 else (os.cpu_count() or 1)
    torch.set_num_threads(count)
    threadpoolctl.threadpool_limits(count)
    return count


if __name__ == "__main__":
    sys.exit(main())
