"""Compare plans: predicted and measured time of many trees of each network.

    make bench-plan                       every network, at most 15 minutes
    make bench-plan ARGS="--quick"        a third of them, at most 3 minutes
    make bench-plan ARGS="--network 'HT-*' --calibrate"

Prints tables, writes plan.json and pictures; docs/build_planning.py makes the page of them. One
thread, unless --threads says more: the committed table is that of one core. The machine may be
shared, so processor time counts on one thread, and the least of several rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from tqdm import tqdm

from benchmarks.run import set_threads

if TYPE_CHECKING:
    from benchmarks.measure import Clock
    from benchmarks.plan_flops import Duel
    from benchmarks.plan_race import Race
    from tncompiler.planning.machine import Machine

BUDGET_MINUTES = {"quick": 3.0, "default": 15.0}
LEAST_S, MOST_S = 1.0, 12.0  # of timing one network
RESERVE_S = 75.0  # for the memory-time curve, families, tables and pictures
_QUICK = 3  # a quick run takes every third network


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="every third network")
    parser.add_argument("--network", default="*", metavar="GLOB", help="names of networks")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="0: all cores")
    parser.add_argument("--minutes", type=float, help="another budget")
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit status."""
    options = read_options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    start = time.perf_counter()
    threads = set_threads(options.threads)
    from benchmarks.machine import machine_facts
    from benchmarks.plan_networks import plan_networks
    from benchmarks.plan_plots import draw_plans
    from benchmarks.plan_table import print_plans

    named = [pair for pair in plan_networks() if fnmatchcase(pair[0], options.network)]
    if not named:
        console.print(f"no network is called {options.network}", style="red", markup=False)
        return 2
    named = named[::_QUICK] if options.quick else named
    facts, machine = machine_facts(threads), _machine(options.calibrate)
    minutes = options.minutes or BUDGET_MINUTES["quick" if options.quick else "default"]
    clock = time.process_time if threads == 1 else time.perf_counter
    races, duels, skipped = run_races(named, machine, start + minutes * 60 - RESERVE_S, clock)
    record = as_record(races, duels, skipped, facts, machine)
    record |= memory_record(clock)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "plan.json"
    path.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
    print_plans(console, record)
    pictures = draw_plans(record, options.out)
    used = (time.perf_counter() - start) / 60
    console.print(
        f"{facts['cpu']}, {threads} of {facts['cores']} cores, load {facts['load_1min']}; "
        f"{len(races)} networks in {used:.1f} min; {path}, {', '.join(map(str, pictures))}",
        highlight=False,
    )
    return 0


def _machine(calibrated: bool) -> Machine:
    from tncompiler.calibration import calibrate
    from tncompiler.planning.machine import load_machine

    return calibrate() if calibrated else load_machine("reference")


def run_races(
    named: Sequence[tuple[str, Any]], machine: Machine, deadline: float, clock: Clock
) -> tuple[list[Race], list[Duel], list[str]]:
    """Races and duels of the networks that fit before the deadline, and the names of the rest."""
    from benchmarks.plan_flops import compare_flops
    from benchmarks.plan_race import run_race

    races, duels, skipped = [], [], []
    start = time.perf_counter()
    progress = tqdm(named, desc="networks", unit="network", dynamic_ncols=True)
    for done, (name, expr) in enumerate(progress):
        progress.set_postfix_str(name)
        now = time.perf_counter()
        left = deadline - now
        if left < max(LEAST_S, (now - start) / max(len(races), 1)):
            skipped.append(name)
            continue
        duels += compare_flops(name, expr)
        budget = min(max(0.5 * left / (len(named) - done), LEAST_S), MOST_S)
        races.append(run_race(name, expr, machine, budget, clock))
    return races, duels, skipped


def as_record(
    races: Sequence[Race],
    duels: Sequence[Duel],
    skipped: Sequence[str],
    facts: dict[str, Any],
    machine: Machine,
) -> dict[str, Any]:
    """All of it as data."""
    from benchmarks.plan_score import gains, scores, summarise

    found = scores(races)
    return {
        "format": "tncompiler bench-plan",
        "machine": facts,
        "rates": {"name": machine.name, "digest": machine.digest},
        "summary": summarise(found),
        "scores": [asdict(score) for score in found],
        "gains": [asdict(gain) for gain in gains(races)],
        "flops": [asdict(duel) for duel in duels],
        "skipped": list(skipped),
        "races": [asdict(race) for race in races],
    }


def memory_record(clock: Clock) -> dict[str, Any]:
    """The memory-time curve and the plan families as data."""
    from benchmarks.plan_memory import family_members, memory_curve

    return {
        "memory": [asdict(point) for point in memory_curve(clock)],
        "families": [asdict(member) for member in family_members()],
    }


if __name__ == "__main__":
    sys.exit(main())
