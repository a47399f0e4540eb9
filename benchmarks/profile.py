"""Where the time of a cell goes: every statement of its generated NumPy code, one after the other.

    python -m benchmarks.profile 'ring-32x32-r8/b256/float32/step'

On one core and one thread, without blocks: what a statement takes, what it reaches of the core's
arithmetic and copying, and what the model of the planner had predicted for it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import tncompiler as tnc
from benchmarks.cases import Cell, load_cases, select
from benchmarks.peers.ours import expression
from benchmarks.problems import build_problem, draw_arrays
from tncompiler.backends.numpy.emit import emit
from tncompiler.backends.numpy.threads import one_blas_thread
from tncompiler.ir.program import Contract, Program, Step, contract_flops, operand_values
from tncompiler.planning.machine import as_machine
from tncompiler.planning.memory import is_view, nbytes
from tncompiler.planning.timing import step_us

ROUNDS = 25


@dataclass(frozen=True, slots=True)
class Statement:
    """One line of source: the least microseconds seen, its work, and what was predicted."""

    part: str
    text: str
    us: float
    flops: float
    bytes: float
    predicted_us: float


@one_blas_thread
def profile(cell: Cell) -> list[Statement]:
    """The statements of a cell's forward pass, and for a step of its backward pass."""
    problem = build_problem(cell)
    arrays = draw_arrays(problem).operands
    function = tnc.compile(
        expression(problem),
        inputs=[o.name for o in problem.inputs],
        framework="numpy",
        dtype=cell.dtype,
    )
    compilation = function.compilation
    dtypes = compilation.default_dtypes(cell.dtype)
    held = {leaf.name: arrays[leaf.name] for leaf in compilation.ordered}
    if cell.part == "forward":
        program = compilation.inference(dtypes, {}).fitted.program
        return list(_statements("forward", program, held)[0])
    step = compilation.training(dtypes, {}, tuple(held))
    forward, made = _statements("forward", step.forward, held)
    outputs = dict(zip(step.forward.outputs, made, strict=True))
    seeds = [a.value for a in step.backward.arguments if a.kind == "cotangent"]
    held |= outputs | {v.name: np.ones(v.shape, v.dtype) for v in seeds}  # type: ignore[arg-type]
    return [*forward, *_statements("backward", step.backward, held)[0]]


def _statements(
    part: str, program: Program, held: Mapping[str, np.ndarray]
) -> tuple[list[Statement], tuple[Any, ...]]:
    """Every statement timed, and what the program returns."""
    names = [argument.value.name for argument in program.arguments]
    header, _, body = emit(program, part).text.partition(f"def {part}(")
    lines = [line.strip() for line in body.splitlines()[1:] if line.strip()]
    *work, last = lines
    scope: dict[str, Any] = {}
    exec(header, scope)  # our own generated code
    codes = [compile(line, part, "exec") for line in work]
    best = [math.inf] * len(codes)
    for _ in range(ROUNDS):
        local = {name: held[name] for name in names}
        for number, code in enumerate(codes):
            start = time.perf_counter()
            exec(code, scope, local)
            best[number] = min(best[number], (time.perf_counter() - start) * 1e6)
    made = eval(last.removeprefix("return ").split("  #")[0], scope, local)
    steps = {step.out.name: step for step in program.steps}
    found = [
        _described(part, program, steps[line.split(" = ")[0]], line, us)
        for line, us in zip(work, best, strict=True)
        if line.split(" = ")[0] in steps
    ]
    return found, made


def _described(part: str, program: Program, step: Step, line: str, us: float) -> Statement:
    operands = operand_values(program, step)
    flops = 0.0
    if isinstance(step.op, Contract):
        flops = float(contract_flops(step.op, operands, step.out).evaluate({}))
    moved = 0.0 if is_view(step) else sum(nbytes(v).evaluate({}) for v in (*operands, step.out))
    rates = as_machine("reference").libraries["numpy"]
    return Statement(part, line, us, flops, moved, step_us(program, step, {}, rates))


def table_rows(statements: Sequence[Statement]) -> Iterator[tuple[str, ...]]:
    """Part, statement, time, share, arithmetic, traffic, predicted time."""
    total = sum(one.us for one in statements)
    for one in statements:
        code, _, comment = one.text.partition("  # ")
        yield (
            one.part,
            f"{code.split(' = ')[0]}: {comment}",
            f"{one.us:.1f}",
            f"{one.us / total:.0%}",
            f"{one.flops / one.us / 1e3:.1f}" if one.flops else "",
            f"{one.bytes / one.us / 1e3:.1f}" if one.bytes else "",
            f"{one.predicted_us:.1f}",
        )


HEADS = ("part", "statement", "µs", "share", "GFLOP/s", "GB/s", "predicted µs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of one cell; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cell", help="its id, or a pattern that fits one; see run.py --all --list")
    wanted = parser.parse_args(arguments).cell
    cells = [c for c in select(load_cases(), "all", "*") if fnmatchcase(c.id, wanted)]
    if len(cells) != 1:
        print(f"{wanted!r} fits {len(cells)} cells; it must fit one", file=sys.stderr)
        return 2
    statements = profile(cells[0])
    table = Table(*HEADS, title=cells[0].id)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in table_rows(statements):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    total, predicted = (sum(getattr(s, k) for s in statements) for k in ("us", "predicted_us"))
    print(f"{total:.0f} µs, predicted {predicted:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
