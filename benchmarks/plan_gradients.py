"""Training steps with gradients on trees of their own, against the best tree reversed.

    python -m benchmarks.plan_gradients [--network GLOB] [--minimize flops] [--out DIR]

In: `gradient_networks`. Out: a table, and gradients.json: flops, predicted and measured time of the
step with the best tree reversed (today's practice, chosen for forward and backward together) and
with what the planner chooses. Both are timed in turn on NumPy with one thread.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import time_in_turn
from benchmarks.plan_networks import gradient_networks
from tncompiler.compiler import Compilation
from tncompiler.planning.cost import program_cost
from tncompiler.planning.machine import as_machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.timing import program_us

WAYS = ("reversed", "chosen")


@dataclass(frozen=True, slots=True)
class Step:
    """A training step made in one way; times in milliseconds."""

    flops: int
    predicted_ms: float
    measured_ms: float
    spread_ms: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A network, how many gradients are asked for, and its step in both ways.

    ``off``: the largest difference of a gradient, relative to its largest element.
    """

    network: str
    tensors: int
    gradients: int
    steps: dict[str, Step]
    off: float

    def gain(self, what: str) -> float:
        """How many times more the reversed tree takes."""
        before, after = (getattr(self.steps[way], what) for way in WAYS)
        return float(before / after)


def compare(
    name: str, expr: Any, wrt: tuple[str, ...], options: PlanOptions, budget_s: float
) -> Comparison:
    """Both ways of a network's training step."""
    rates = as_machine(options.machine).planning
    made = {way: _compiled(expr, wrt, options, replan=way == "chosen") for way in WAYS}
    joints = {way: c.joint(c.default_dtypes("float32"), {}, wrt) for way, c in made.items()}
    runs = {way: _run(compilation, wrt) for way, compilation in made.items()}
    timings = time_in_turn(runs, budget_s)
    steps = {
        way: Step(
            int(program_cost(joints[way], {}).flops),
            program_us(joints[way], {}, rates) / 1e3,
            timings[way].median_ms,
            timings[way].spread_ms,
        )
        for way in WAYS
    }
    pairs = zip(runs["reversed"](), runs["chosen"](), strict=True)
    off = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
    return Comparison(name, len(expr.leaves), len(wrt), steps, off)


def _compiled(
    expr: Any, wrt: tuple[str, ...], options: PlanOptions, *, replan: bool
) -> Compilation:
    compilation = Compilation(expr, None, {}, options, parameters_known=False)
    if replan:
        return compilation
    with patch("tncompiler.planning.gradients.GRADIENTS_UP_TO", 0):  # programs are made once
        compilation.training(compilation.default_dtypes("float32"), {}, wrt)
    return compilation


def _run(compilation: Compilation, wrt: tuple[str, ...]) -> Callable[[], tuple[Any, ...]]:
    """A training step on fixed arrays; returns the gradients."""
    dtypes = compilation.default_dtypes("float32")
    pair = compilation.training_executable(dtypes, {}, wrt, "numpy")
    rng = np.random.default_rng(0)
    arrays = {
        leaf.name: rng.standard_normal(leaf.shape).astype("float32") / leaf.shape[0] ** 0.5
        for leaf in compilation.ordered
    }
    given = [arrays[leaf.name] for leaf in compilation.ordered]
    shape = pair.forward.program.values[pair.forward.program.outputs[0]].shape
    cotangent = rng.standard_normal(shape).astype("float32")
    names = [a.value.name for a in pair.backward.program.arguments]
    read = [arrays[name] for name in names if name in arrays]

    def step() -> tuple[Any, ...]:
        saved = pair.forward.run(*given)[pair.output_count :]
        return pair.backward.run(*read, *saved, cotangent)

    return step


def table(found: Sequence[Comparison]) -> Table:
    """A row for each network: both ways, and how many times more the reversed tree takes."""
    shown = Table(title="training steps: best tree reversed → gradients on trees of their own")
    for column in ("network", "tensors", "gradients", "Gflop", "", "predicted ms", "", "ms", ""):
        shown.add_column(column, justify="left" if column == "network" else "right")
    for one in found:
        before, after = (one.steps[way] for way in WAYS)
        shown.add_row(
            one.network,
            str(one.tensors),
            str(one.gradients),
            f"{before.flops / 1e9:.2f} → {after.flops / 1e9:.2f}",
            f"{one.gain('flops'):.2f}×",
            f"{before.predicted_ms:.1f} → {after.predicted_ms:.1f}",
            f"{one.gain('predicted_ms'):.2f}×",
            f"{before.measured_ms:.1f} → {after.measured_ms:.1f}",
            f"{one.gain('measured_ms'):.2f}×",
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the networks that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_gradients")
    parser.add_argument("--network", default="*", metavar="GLOB", help="names of networks")
    parser.add_argument("--minimize", choices=("time", "flops"), default="time")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network")
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    options = parser.parse_args(arguments)
    chosen = [n for n in gradient_networks() if fnmatchcase(n[0], options.network)]
    plan = PlanOptions(minimize=options.minimize)
    found = [compare(*network, plan, options.seconds) for network in chosen]
    Console(width=140).print(table(found))
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(one) for one in found], indent=1)
    (options.out / "gradients.json").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
