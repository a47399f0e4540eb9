"""The open-ended fuzzer: `python -m tests.fuzz --minutes 30`; `--seed N` runs one network again.

It goes on where the state file says the last run stopped, prints figures at the end and exits
with 1 if a network failed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton loads: its kernels run on the CPU

import numpy as np
import torch
from tqdm import tqdm

from tests.large import as_if_large
from tests.networks import Case, fuzzed_network
from tests.oracle import (
    Runner,
    compare,
    compare_named,
    epsilon,
    exact,
    expected_gradients,
)
from tests.oracle import render as render_expressions
from tncompiler.ir.reference import Bounded, evaluate_all

STATE = ".fuzz-state.json"
SAVE_SECONDS = 30  # what a killed run loses at most
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ALONE = 8  # each so many-th network is compiled by every runner from the start, and runs on all
LARGE = 3  # each so many-th is compiled as large networks are, in lanes
SELDOM = 20  # and each so many-th in Triton's kernels
AHEAD = 16  # networks waiting for one process: a long one does not hold up the others


def check_network(case: Case, runners: Iterable[str] | None = None) -> dict[str, float]:
    """Forward and every gradient on every runner: the worst error / bound of each.

    Raises AssertionError where an error exceeds its bound.
    """
    with as_if_large() if case.seed % LARGE == 1 else contextlib.nullcontext():
        return _check(case, runners_for(case) if runners is None else tuple(runners))


def _check(case: Case, names: Sequence[str]) -> dict[str, float]:
    made: list[Runner] = []
    for name in names:
        like = made[0] if made and case.seed % ALONE else None
        dtype = "float32" if case.kind == "integer" else case.dtype
        made.append(Runner(case.outputs, name, dtype, case.given, like))
    if case.kind == "integer":
        return _check_exactly(case, made)
    worst = _check_numbers(case, made)
    if case.other is not None:
        for name, ratio in _check_numbers(case.other, made).items():
            worst[name] = max(worst[name], ratio)
    return worst


def runners_for(case: Case) -> tuple[str, ...]:
    """Where a network runs: torch and the NumPy function; the NumPy module and the function on
    tensors, their twins, at times.

    NumPy has no bfloat16. Triton's kernels run seldom, as their interpreter is slow, and where a
    process has it switched on.
    """
    found = ["torch"] if case.dtype == "bfloat16" else ["function", "torch"]
    if case.dtype != "bfloat16" and case.seed % ALONE == 0:
        found += ["numpy", "crossing"]
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and case.kind != "long"
    if interpreted and case.seed % SELDOM == 0:
        found.append("triton")
    return tuple(found)


def _check_numbers(case: Case, runners: Sequence[Runner]) -> dict[str, float]:
    eps, seed = epsilon(case.dtype), case.seed
    outputs, arrays, cts, wrt = case.outputs, case.arrays, case.cotangents, case.wrt
    extended = case.dtype in ("float64", "complex128")  # the judge must be better
    forward = evaluate_all(outputs, arrays, case.sizes, eps, extended=extended)
    backward = expected_gradients(
        outputs, arrays, cts, wrt, case.sizes, eps, seed, extended=extended
    )
    worst: dict[str, float] = {}
    for runner in runners:
        name = runner.name
        values = runner.forward(arrays)
        worst[f"{name} forward"] = compare("forward", outputs, values, forward, name, seed)
        if wrt:
            values, found = runner.gradients(arrays, cts, wrt)
            compare("training forward", outputs, values, forward, name, seed)
            ratio = compare_named("gradient", outputs, found, backward, name, seed)
            worst[f"{name} gradient"] = ratio
    return worst


def _check_exactly(case: Case, runners: Sequence[Runner]) -> dict[str, float]:
    """Integers and booleans: the same numbers and the same dtype."""
    expected = exact(case.outputs, case.arrays)
    bounds = [Bounded(value, np.zeros(value.shape)) for value in expected]
    worst = {}
    for runner in runners:
        values = runner.forward(case.arrays)
        wrong = [v.dtype for v, e in zip(values, expected, strict=True) if v.dtype != e.dtype]
        if wrong:
            raise AssertionError(
                f"{runner.name} gives {wrong} for {case.dtype}\n{render_expressions(case.outputs)}"
            )
        ratio = compare("forward", case.outputs, values, bounds, runner.name, case.seed)
        worst[f"{runner.name} exact"] = ratio
    return worst


@dataclass(frozen=True)
class Result:
    """What checking one network gave; `failure` says what went wrong, how to see it again."""

    seed: int
    ratios: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    dtype: str = "none"
    longest: int = 0


def result_of(seed: int) -> Result:
    """Make the network of a seed and check it."""
    case = None
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            case = fuzzed_network(seed)
            return Result(seed, check_network(case), None, case.dtype, case.longest)
    except AssertionError as error:
        text = str(error)
    except Exception:
        text = traceback.format_exc()
        text += "" if case is None else render_expressions(case.outputs)
    failure = f"seed {seed}: python -m tests.fuzz --seed {seed}\n{text}"
    if case is None:
        return Result(seed, failure=failure)
    return Result(seed, {}, failure, case.dtype, case.longest)


@dataclass
class Figures:
    """What a run has seen; `next` is the seed to go on with."""

    next: int = 0
    networks: int = 0
    seconds: float = 0.0
    worst: dict[str, float] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)
    dtypes: dict[str, int] = field(default_factory=dict)
    longest: int = 0

    def add(self, result: Result) -> None:
        self.networks += 1
        self.next = max(self.next, result.seed + 1)
        self.dtypes[result.dtype] = self.dtypes.get(result.dtype, 0) + 1
        self.longest = max(self.longest, result.longest)
        for name, ratio in result.ratios.items():
            self.worst[name] = max(self.worst.get(name, 0.0), ratio)
        if result.failure is not None:
            self.failures.append(result.seed)

    def report(self) -> str:
        rate = 1000 * self.seconds / max(self.networks, 1)
        lines = [f"{self.networks} networks, {rate:.0f} ms each, next seed {self.next}"]
        lines += [f"  {count} of {dtype}" for dtype, count in sorted(self.dtypes.items())]
        lines += [f"  longest axis {self.longest}"]
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


def fuzz(
    figures: Figures, seeds: Iterable[int], minutes: float | None = None, jobs: int = 1
) -> Iterator[Result]:
    """Check networks until seeds or time run out, in order of their seeds; yields each result."""
    started, before = time.monotonic(), figures.seconds
    with contextlib.closing(_results(seeds, jobs)) as results:
        for result in results:
            figures.add(result)
            figures.seconds = before + time.monotonic() - started
            yield result
            if minutes is not None and time.monotonic() - started > 60 * minutes:
                return


def _results(seeds: Iterable[int], jobs: int) -> Iterator[Result]:
    """The results in order; a few more than `jobs` are under way at any time."""
    if jobs == 1:
        yield from map(result_of, seeds)
        return
    # fresh processes: a forked one would hang in the thread pools of its parent
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_one_thread) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for seed in seeds:
                waiting.append(pool.submit(result_of, seed))
                if len(waiting) > AHEAD * jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the run
    torch.set_num_threads(1)
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # a tenth less time: a network makes many short-lived nodes


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--networks", type=int, help="stop after so many networks")
    parser.add_argument("--seed", type=int, help="run this one network, and nothing else")
    parser.add_argument("--start", type=int, help="the first seed (default: where it stopped)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--state", type=Path, default=Path(STATE), help=f"default {STATE}")
    return parser.parse_args(argv)


def _run_one(seed: int) -> int:
    print(render_expressions(fuzzed_network(seed).outputs))
    result = result_of(seed)
    ratios = "\n".join(f"  {name}: {ratio:.3f}" for name, ratio in result.ratios.items())
    print(result.failure or ratios)
    return int(result.failure is not None)


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
    if options.jobs > 1:  # the libraries of the other processes read it when they load
        os.environ.update(dict.fromkeys(THREADS, "1"))
    failed, saved = 0, time.monotonic()
    with tqdm(unit="network", total=options.networks, smoothing=0) as bar:
        try:
            for result in fuzz(figures, seeds, options.minutes, options.jobs):
                bar.update()
                if result.failure is not None:
                    failed += 1
                    bar.write(result.failure)
                if time.monotonic() - saved > SAVE_SECONDS:
                    save_state(options.state, figures)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            bar.write("interrupted; the figures so far:")
        finally:
            save_state(options.state, figures)
    print(figures.report())
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
