"""What the kernels of layers compile to, for GPUs that need not be there.

    make kernels                            the pruned table: docs/kernels.json and docs/kernels.md
    make kernels ARGS="--all"               every cell; hours of compiling
    make kernels ARGS="--formats TT,CP --targets sm_90 --jobs 2"

A cell whose source has not changed is not compiled again, only its times are predicted anew.
Nothing here is measured: registers, spills and shared memory are read from machine code, bytes are
counted from loads and stores. Registers differ a little from one version of triton to the next: a
row says which made it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tncompiler as tnc
from benchmarks.layer_shapes import PROMISED, SHAPES, THREE
from tncompiler.backends.triton.actions import count_launches
from tncompiler.backends.triton.atoms import Unfit
from tncompiler.backends.triton.bundle import Bundle, find_bundle
from tncompiler.backends.triton.emit import emit_without
from tncompiler.backends.triton.fitting import count_programs
from tncompiler.backends.triton.fuse import program_low_dtype
from tncompiler.backends.triton.kernels import SHARED_LIMIT, compile_program
from tncompiler.backends.triton.launches import plan_launches
from tncompiler.backends.triton.pairwise import Pairwise
from tncompiler.backends.triton.predict import predicted_us
from tncompiler.backends.triton.stretches import Refused
from tncompiler.backends.triton.traffic import Traffic, bundle_traffic, nbytes, pairwise_traffic
from tncompiler.ir.dtypes import ITEM_BYTES
from tncompiler.ir.program import Program
from tncompiler.planning.machine import load_machine
from tncompiler.planning.timing import program_us

JSON, PAGE = Path("docs/kernels.json"), Path("docs/kernels.md")
BATCHES = (256, 4096)
PARTS = ("forward", "backward")
MACHINES = {"sm_80": "a100", "sm_90": "h100", "sm_100": "b200", "gfx942": "mi300x"}
NVIDIA = ("sm_80", "sm_90", "sm_100")
HOPPER = "sm_90"
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}


@dataclass(frozen=True, slots=True)
class Cell:
    """One part of one layer for one GPU."""

    format: str
    shape: str
    rank: int
    dtype: str
    part: str
    target: str

    @property
    def name(self) -> str:
        return " ".join(map(str, asdict(self).values()))


def cells(everything: bool) -> Iterator[Cell]:
    """All cells; or the promised ones: rank 8 in float16 everywhere, other dtypes at 1024→1024, and
    rank 32 in float16 there, on Hopper.
    """
    names = (*PROMISED, *(f for f in SHAPES if f not in PROMISED))
    axes = (MACHINES, (8, 32), ("float16", "bfloat16", "float32"), THREE, names, PARTS)
    for target, rank, dtype, shape, name, part in itertools.product(*axes):
        large = (rank, dtype) == (8, "float16") and target in NVIDIA
        wide = (rank, dtype) == (8, "float32") and target in NVIDIA
        hopper = target == HOPPER and (rank == 8 or dtype == "float16")
        small = shape == "1024→1024" and (wide or hopper)
        if everything or (name in PROMISED and (large or small)):
            yield Cell(name, shape, rank, dtype, part, target)


# ---------------------------------------------------------------------------- one cell


def program_of(cell: Cell) -> tuple[Program, Any]:
    """The program that a training step runs for the part, and the sizes it is for."""
    ins, outs = SHAPES[cell.format][cell.shape]
    layer = tnc.nn.Linear(
        math.prod(ins),
        math.prod(outs),
        format=getattr(tnc.formats, cell.format)(rank=cell.rank, clamp=True),
        in_shape=ins,
        out_shape=outs,
        implementation="factorized",
        backend="triton",
    )
    compilation = layer.cores.compilation
    nominal = compilation.nominal({"b": BATCHES[-1]})
    dtypes = compilation.default_dtypes(cell.dtype)
    wrt = tuple(leaf.name for leaf in (*compilation.inputs, *compilation.params))
    programs = compilation.training_programs(dtypes, nominal, wrt, "triton")
    return getattr(programs, cell.part), {**compilation.binding, **nominal}


def digest_of(row: dict[str, Any]) -> str:
    """Of the source that the row would be made from now."""
    program, _ = program_of(cell_of(row))
    return emit_without(refused_of(row), program, row["part"]).source.digest


def refused_of(row: dict[str, Any]) -> Refused:
    """The chains that spill on the row's target, by digest."""
    return frozenset(row.get("refused", ()))


def row_of(cell: Cell) -> dict[str, Any]:
    """Compile a cell and count its bytes."""
    program, sizes = program_of(cell)
    compiled = compile_program(program, cell.part, "ieee", sizes, cell.target)
    launches, refused = compiled.launches, compiled.refused
    program, actions = plan_launches(program, refused)
    state, why = state_of(actions, program, launches, refused)
    row: dict[str, Any] = {
        **asdict(cell),
        "digest": compiled.source.digest,
        **({"refused": sorted(refused)} if refused else {}),
        "triton": version("triton"),
        "state": state,
        "why": why,
        "launches": len(launches),
        "registers": max(k.registers for k in launches),
        "spill_bytes": max(k.spill_bytes for k in launches),
        "shared_bytes": max(k.shared_bytes for k in launches),
        "fits": all(k.fits(cell.target) for k in launches),
        "constants": launches[0].constants,
        "warps": launches[0].num_warps,
    }
    (batch,) = [symbol for symbol in sizes if symbol.name == "b"]
    for number in BATCHES:
        at = {**sizes, batch: number}
        row[f"batch {number}"] = bytes_and_times(cell, program, actions, launches, at)
    return row


def state_of(actions: Any, program: Program, launches: Any, refused: Refused) -> tuple[str, str]:
    """ "fits" in one chain, "cut" into branches or launches, or "pairwise"; and why."""
    bundles = [action for action in actions if isinstance(action, Bundle)]
    if not bundles and refused:
        return "pairwise", "every chain spills"
    if not bundles:
        try:
            find_bundle(program, program_low_dtype(program))
        except Unfit as reason:
            return "pairwise", str(reason)
        return "pairwise", "a chain is predicted to be no faster"
    rest = count_launches(actions) - count_launches(bundles)
    reasons = [f"{len(refused)} larger chains would spill"] if refused else []
    reasons += [f"{len(bundles)} chains one after the other"] if len(bundles) > 1 else []
    reasons += [f"{rest} launches beside"] if rest else []
    own = [launch for launch in launches if "ROWS" in launch.constants]
    for bundle, launch in zip(bundles, own, strict=True):
        way = bundle.ways[launch.constants.get("WAY", 0)]
        tiled = [f"{part.tile.name} by {part.width}" for part in way if part.tile]
        if len(way) > 1:
            reasons.append(f"{len(way)} branches in one launch: uncut it spills")
        if tiled:
            reasons.append(f"tiled along {', '.join(tiled)}")
    return ("cut", "; ".join(reasons)) if reasons else ("fits", "")


def bytes_and_times(
    cell: Cell, program: Program, actions: Any, launches: Any, sizes: Any
) -> dict[str, Any]:
    """Bytes against their floor, and predicted microseconds on the target."""
    moved = Traffic(0, 0)
    waiting = iter(launches)
    for action in (a for a in actions if isinstance(a, Bundle | Pairwise)):
        launch = next(waiting)
        if isinstance(action, Pairwise):
            moved += pairwise_traffic(action, sizes, launch.constants)
            if "SPLITS" in launch.constants:
                next(waiting)  # adds up the parts: small beside what it adds up
            continue
        turns = -(-sizes[action.stream.size] // launch.constants["ROWS"])
        way = action.ways[launch.constants.get("WAY", 0)]
        programs = count_programs(turns, PROCESSORS[cell.target])
        moved += bundle_traffic(action, way, sizes, programs, -(-turns // programs))
        if action.sums:
            next(waiting)  # adds up the sums, which bundle_traffic has counted
    given = sum(nbytes(a.value, sizes) for a in program.arguments)
    floor = given + sum(nbytes(program.values[name], sizes) for name in program.outputs)
    return {
        "bytes": moved.unique,
        "floor": floor,
        "cached": moved.cached,
        **times(cell, program, actions, sizes),
    }


def times(cell: Cell, program: Program, actions: Any, sizes: Any) -> dict[str, float]:
    """Predicted microseconds on the target."""
    machine = load_machine(MACHINES[cell.target]).libraries["triton"]
    return {
        "steps_us": round(program_us(program, sizes, machine), 2),
        "dense_us": round(dense_us(cell, sizes), 2),
        "kernels_us": round(kernels_us(cell, program, actions, sizes), 2),
    }


def renewed(row: dict[str, Any], program: Program, sizes: Any) -> dict[str, Any]:
    """The row of the same source, with the times that are predicted now."""
    planned, cell = plan_launches(program, refused_of(row)), cell_of(row)
    (batch,) = [symbol for symbol in sizes if symbol.name == "b"]
    moved = {
        f"batch {n}": row[f"batch {n}"] | times(cell, *planned, {**sizes, batch: n})
        for n in BATCHES
    }
    return row | moved


def rates_of(cell: Cell, target: str = "") -> dict[str, Any]:
    """Published figures of the cell's target, or of another."""
    data = json.loads(machine_file(target or cell.target).read_text(encoding="utf-8"))
    return data["libraries"]["triton"]


def kernels_us(cell: Cell, program: Program, actions: Any, sizes: Any) -> float:
    """By the model that launches are chosen by, which was fitted to a GPU of Hopper's kind; others
    by their bandwidth.
    """
    slower = rates_of(cell, HOPPER)["bytes_per_us"] / rates_of(cell)["bytes_per_us"]
    return slower * predicted_us(actions, program, sizes)


def dense_us(cell: Cell, sizes: Any) -> float:
    """The dense layer: one product forward, two backward, by published peak and bandwidth."""
    rates = rates_of(cell)
    ins, outs = (math.prod(s) for s in SHAPES[cell.format][cell.shape])
    (batch,) = [n for symbol, n in sizes.items() if symbol.name == "b"]
    products = 1 if cell.part == "forward" else 2
    flops = 2.0 * batch * ins * outs
    moved = ITEM_BYTES[cell.dtype] * (batch * (ins + outs) + ins * outs)
    each = max(flops / (rates["teraflops"][cell.dtype] * 1e6), moved / rates["bytes_per_us"])
    return products * (each + rates["step_us"])


def machine_file(target: str) -> Path:
    import tncompiler.planning

    return Path(tncompiler.planning.__file__).parent / "machines" / f"{MACHINES[target]}.json"


# ---------------------------------------------------------------------------- the table


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "# Kernels",
        "",
        "Written by `make kernels`; nothing is measured. A row is one part of one layer: launches,",
        "the most registers of a thread, bytes it spills, shared memory of a program; bytes to and",
        "from device memory over their floor (arguments and results, once each), bytes asked of L2",
        "over the same floor, at batch 256 and 4096. Last, microseconds at batch 4096, predicted:",
        "these kernels by the model that was fitted to a GPU (docs/gpu.md), the plan step by step",
        "and the dense layer from published figures, which no kernel reaches.",
        f"Made with triton {_versions(rows)}.",
        "",
        "| layer | rank | dtype | part | target | state | launches | registers | spill "
        "| shared KiB | bytes 256 | L2 256 | bytes 4096 | L2 4096 | kernels | steps | dense |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = [
            f"{row[f'batch {b}'][key] / row[f'batch {b}']['floor']:.2f}"
            for b in BATCHES
            for key in ("bytes", "cached")
        ]
        last = row[f"batch {BATCHES[-1]}"]
        times = [f"{last[key]:.0f}" for key in ("kernels_us", "steps_us", "dense_us")]
        state = row["state"] + (f": {row['why']}" if row["why"] else "")
        lines.append(
            f"| {row['format']} {row['shape']} | {row['rank']} | {row['dtype']} | {row['part']} "
            f"| {row['target']} | {state} | {row['launches']} | {row['registers']} "
            f"| {row['spill_bytes']} | {row['shared_bytes'] / 1024:.0f} | {' | '.join(ratios)} "
            f"| {' | '.join(times)} |"
        )
    return "\n".join([*lines, "", *summary(rows), ""])


def _versions(rows: list[dict[str, Any]]) -> str:
    """How many rows each version made."""
    counts = Counter(row["triton"] for row in rows)
    return ", ".join(f"{name} ({count} rows)" for name, count in sorted(counts.items()))


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """The promises against the rows."""
    low = [r for r in rows if r["rank"] == 8 and r["dtype"] != "float32" and r["target"] == "sm_90"]
    lines = []
    for part, most in (("forward", 1), ("backward", 2)):
        own = [r for r in low if r["part"] == part and r["format"] in PROMISED]
        kept = [r for r in own if r["launches"] <= most]
        lines.append(
            f"Rank 8 in 16 bits on sm_90, {part}: {len(kept)} of {len(own)} cells in at most "
            f"{most} launches."
        )
    spilling = [r for r in rows if r["spill_bytes"]]
    over = [r for r in rows if r["shared_bytes"] > SHARED_LIMIT[r["target"]]]
    found = f"{len(spilling)} of {len(rows)}"
    lines.append(f"Cells that spill: {found}; over the chip's shared memory: {len(over)}.")
    held = {cell_of(row) for row in rows}
    absent = [cell.name for cell in cells(everything=False) if cell not in held]
    lines += [f"Not in the table: {', '.join(absent)}."] if absent else []
    return lines


def read_rows(path: Path = JSON) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make kernels", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every cell: hours")
    parser.add_argument("--formats", default="", help="only these, with commas between")
    parser.add_argument("--targets", default="", help="only these, with commas between")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin none after this")
    parser.add_argument("--jobs", type=int, default=1, help="cells that compile side by side")
    options = parser.parse_args(argv)
    end = time.monotonic() + 60 * options.minutes
    rows = {cell_of(row): row for row in read_rows()}

    def made(cell: Cell) -> dict[str, Any] | None:
        if time.monotonic() > end:
            return None
        if cell in rows and rows[cell]["digest"] == digest_of(rows[cell]):
            return renewed(rows[cell], *program_of(cell))
        return row_of(cell)

    with ThreadPoolExecutor(options.jobs) as pool:  # the work is done in processes of their own
        wanted = [cell for cell in cells(options.all) if _is_wanted(cell, options)]
        for done in as_completed(pool.submit(made, cell) for cell in wanted):
            if (row := done.result()) is not None:
                rows[cell_of(row)] = row
                shown = ("state", "launches", "registers", "spill_bytes")
                print(cell_of(row).name, {k: row[k] for k in shown}, flush=True)
                _write(rows)
    _write(rows)
    return 0


def cell_of(row: dict[str, Any]) -> Cell:
    """The cell that a row is of."""
    return Cell(*(row[name] for name in Cell.__slots__))


def _is_wanted(cell: Cell, options: argparse.Namespace) -> bool:
    chosen = (options.formats, cell.format), (options.targets, cell.target)
    return all(not names or own in names.split(",") for names, own in chosen)


def _write(rows: dict[Cell, dict[str, Any]]) -> None:
    """Both files, in the order of the cells."""
    places = {cell: place for place, cell in enumerate(cells(everything=True))}
    ordered = [rows[cell] for cell in sorted(rows, key=places.__getitem__)]
    JSON.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")
    PAGE.write_text(page(ordered), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
