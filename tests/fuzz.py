"""The open-ended fuzzer: `python -m tests.fuzz --minutes 30`; `--seed N` runs one network again.

It goes on where the state file says the last run stopped, prints figures at the end and exits
with 1 if a network failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from tests.networks import Case, random_network
from tests.oracle import RUNNERS, Runner, compare, compare_named, epsilon, expected_gradients
from tests.oracle import render as render_expressions
from tncompiler.ir.reference import evaluate_all

STATE = ".fuzz-state.json"


def check_network(case: Case, runners: Iterable[str] = RUNNERS) -> dict[str, float]:
    """Forward and every gradient on every runner: the worst error / bound of each.

    Raises AssertionError where an error exceeds its bound.
    """
    eps, seed = epsilon(case.dtype), case.seed
    outputs, arrays, cts, wrt = case.outputs, case.arrays, case.cotangents, case.wrt
    forward = evaluate_all(outputs, arrays, case.sizes, eps)
    backward = expected_gradients(outputs, arrays, cts, wrt, case.sizes, eps, seed)
    worst: dict[str, float] = {}
    for name in runners:
        runner = Runner(outputs, name, case.dtype, case.given)
        values = runner.forward(arrays)
        worst[f"{name} forward"] = compare("forward", outputs, values, forward, name, seed)
        if wrt:
            values, found = runner.gradients(arrays, cts, wrt)
            compare("training forward", outputs, values, forward, name, seed)
            ratio = compare_named("gradient", outputs, found, backward, name, seed)
            worst[f"{name} gradient"] = ratio
    return worst


def failure_of(seed: int, runners: Iterable[str] = RUNNERS) -> tuple[dict[str, float], str | None]:
    """The ratios of one network, and what went wrong with how to see it again."""
    case = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case = random_network(seed)
            return check_network(case, runners), None
    except AssertionError as error:
        text = str(error)
    except Exception:
        text = traceback.format_exc()
        text += "" if case is None else render_expressions(case.outputs)
    return {}, f"seed {seed}: python -m tests.fuzz --seed {seed}\n{text}"


@dataclass
class Figures:
    """What a run has seen; `next` is the seed to go on with."""

    next: int = 0
    networks: int = 0
    seconds: float = 0.0
    worst: dict[str, float] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)

    def add(self, seed: int, ratios: dict[str, float], failed: bool) -> None:
        self.networks += 1
        self.next = max(self.next, seed + 1)
        for name, ratio in ratios.items():
            self.worst[name] = max(self.worst.get(name, 0.0), ratio)
        if failed:
            self.failures.append(seed)

    def report(self) -> str:
        rate = 1000 * self.seconds / max(self.networks, 1)
        lines = [f"{self.networks} networks, {rate:.0f} ms each, next seed {self.next}"]
        lines += [f"  worst error / bound, {k}: {v:.3f}" for k, v in sorted(self.worst.items())]
        failed = ", ".join(map(str, self.failures)) or "none"
        return "\n".join([*lines, f"  failures: {failed}"])


def load_state(path: Path) -> Figures:
    """The figures of earlier runs; fresh ones if there is no file.

    Raises: SystemExit naming the file if it holds something else.
    """
    if not path.exists():
        return Figures()
    try:
        return Figures(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SystemExit(f"{path} is no state of the fuzzer ({error})\n  fix: delete it") from None


def save_state(path: Path, figures: Figures) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(vars(figures)), encoding="utf-8")
    os.replace(temporary, path)


def fuzz(figures: Figures, seeds: Iterable[int], minutes: float | None = None) -> Iterator[str]:
    """Check networks until seeds or time run out; yields each failure."""
    started, before = time.monotonic(), figures.seconds
    for seed in seeds:
        ratios, failure = failure_of(seed)
        figures.add(seed, ratios, failure is not None)
        figures.seconds = before + time.monotonic() - started
        if failure is not None:
            yield failure
        if minutes is not None and time.monotonic() - started > 60 * minutes:
            return


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--networks", type=int, help="stop after so many networks")
    parser.add_argument("--seed", type=int, help="run this one network, and nothing else")
    parser.add_argument("--start", type=int, help="the first seed (default: where it stopped)")
    parser.add_argument("--state", type=Path, default=Path(STATE), help=f"default {STATE}")
    return parser.parse_args(argv)


def _run_one(seed: int) -> int:
    print(render_expressions(random_network(seed).outputs))
    ratios, failure = failure_of(seed)
    print(failure or "\n".join(f"  {name}: {ratio:.3f}" for name, ratio in ratios.items()))
    return int(failure is not None)


def main(argv: list[str] | None = None) -> int:
    options = _arguments(argv)
    if options.seed is not None:
        return _run_one(options.seed)
    figures = load_state(options.state)
    first = figures.next if options.start is None else options.start
    seeds = (
        itertools.count(first)
        if options.networks is None
        else range(first, first + options.networks)
    )
    failed = 0
    with tqdm(seeds, unit="network", total=options.networks) as bar:
        try:
            for failure in fuzz(figures, bar, options.minutes):
                failed += 1
                bar.write(failure)
        except KeyboardInterrupt:
            bar.write("interrupted; the figures so far:")
        finally:
            save_state(options.state, figures)
    print(figures.report())
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
