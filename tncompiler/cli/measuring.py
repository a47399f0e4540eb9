"""`tnc bench`, `tnc calibrate` and `tnc cache`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

from tncompiler.cli.options import (
    JsonOption,
    NetworkArgument,
    SizesOption,
    put,
    read_sizes,
)
from tncompiler.cli.targets import Target, read_network
from tncompiler.ir.dtypes import DEFAULT
from tncompiler.ir.errors import ArgumentError, TncError
from tncompiler.ir.expressions import Expr, Leaf
from tncompiler.ir.sizes import evaluate
from tncompiler.planning.cache import directory, is_on

_LEAST_S = 0.002  # of one sample; what is shorter is repeated within it


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of a call: the median and the least of the samples."""

    name: str
    median_us: float
    least_us: float


def bench(
    network: NetworkArgument,
    sizes: SizesOption = "",
    repeats: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 7,
    as_json: JsonOption = False,
) -> None:
    """Time the forward pass on NumPy and torch, beside their own einsum where there is one.

    \b
    $ tnc bench "bi,ir,ro->bo" --sizes b=64,i=784,r=8,o=256
    $ tnc bench examples/quickstart.py:layer --sizes b=32 --repeats 3 --json
    """
    given = read_sizes(sizes)
    found = read_network(network, given)
    arrays = _random_leaves(found)
    runs = {**_ours(found, arrays), **_peers(found, arrays)}
    timings = time_all(runs, repeats)
    nominal = found.network.compilation.nominal(found.sizes)
    shown = {symbol.name: size for symbol, size in nominal.items()}
    data = {"sizes": {**given, **shown}, "timings": [asdict(timing) for timing in timings]}
    put(as_json, lambda: data, lambda: _table(timings, shown))


def _random_leaves(found: Target) -> dict[str, np.ndarray]:
    """Normal numbers for every leaf, positions for integers."""
    compilation, rng = found.network.compilation, np.random.default_rng(0)
    nominal = {**compilation.binding, **compilation.nominal(found.sizes)}

    def made(leaf: Leaf) -> np.ndarray:
        dtype = np.dtype("float32" if leaf.dtype == DEFAULT else leaf.dtype)
        shape = tuple(evaluate(size, nominal) for size in leaf.shape)
        if leaf.value is not None:
            return np.asarray(leaf.value, dtype)
        if dtype.kind in "iub":
            return np.zeros(shape, dtype)
        return rng.standard_normal(shape).astype(dtype)

    return {leaf.name: made(leaf) for leaf in compilation.ordered}


def _ours(found: Target, arrays: Mapping[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """The generated code of both CPU backends, on the arrays of all leaves."""
    import torch

    compilation = found.network.compilation
    nominal = compilation.nominal(found.sizes)
    dtypes = found.network._dtypes()
    order = [arrays[leaf.name] for leaf in compilation.ordered]
    runs: dict[str, Callable[[], Any]] = {}
    for backend in ("numpy", "torch"):
        run = compilation.inference_executable(dtypes, nominal, backend).run
        given = order if backend == "numpy" else [torch.as_tensor(array) for array in order]
        runs[f"tncompiler, {backend}"] = partial(run, *given)
    return runs


def _peers(found: Target, arrays: Mapping[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """The libraries' own einsum, if the network is one contraction of leaves."""
    import torch

    (output, *others) = found.network.compilation.outputs
    try:
        equation = None if others else output.to_einsum()
    except TncError:
        equation = None
    if equation is None:
        return {}
    held = [arrays[_name(operand)] for operand in equation.operands]
    tensors = [torch.as_tensor(array) for array in held]
    path = np.einsum_path(str(equation), *held, optimize="greedy")[0]
    return {
        "numpy.einsum, greedy": lambda: np.einsum(str(equation), *held, optimize=path),
        "torch.einsum": lambda: torch.einsum(str(equation), *tensors),
    }


def _name(operand: Expr) -> str:
    if not isinstance(operand, Leaf):
        raise ArgumentError("an operand is no leaf", fix="give a contraction of leaves")
    return operand.name


def time_all(runs: Mapping[str, Callable[[], Any]], repeats: int) -> list[Timing]:
    """Time all in turn, so that what disturbs one disturbs its neighbours too."""
    counts = {name: _count(run) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            for _ in range(counts[name]):
                run()
            samples[name].append((time.perf_counter() - started) / counts[name] * 1e6)
    return [Timing(name, median(found), min(found)) for name, found in samples.items()]


def _count(run: Callable[[], Any]) -> int:
    """How many calls make a sample long enough; the first call is left out."""
    run()
    started = time.perf_counter()
    run()
    once = max(time.perf_counter() - started, 1e-9)
    return max(1, round(_LEAST_S / once))


def _table(timings: list[Timing], sizes: Mapping[str, int]) -> str:
    best = min(timing.median_us for timing in timings)
    shown = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    width = max(len(timing.name) for timing in timings)
    lines = [f"{'':<{width}}   median µs    least µs   times the fastest"]
    lines += [
        f"{t.name:<{width}}  {t.median_us:>10.4g}  {t.least_us:>10.4g}  {t.median_us / best:>18.2f}"
        for t in timings
    ]
    return "\n".join([*([f"sizes {shown}"] if shown else []), *lines])


def calibrate(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the table goes.")
    ] = Path("machine.json"),
    as_json: JsonOption = False,
) -> None:
    """Measure this machine, in about a minute, for plans that suit it.

    Close other programs first. Use the table with tnc plan --machine machine.json, or in Python
    with PlanOptions(machine=tnc.Machine.from_json(text)).
    """
    from tncompiler.calibration import calibrate as measure

    machine = measure(default=False, progress=not as_json)
    output.write_text(machine.to_json(), encoding="utf-8")
    put(as_json, lambda: json.loads(machine.to_json()), lambda: f"wrote {output}: {machine.name}")


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all plans that are kept.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Where plans are kept between runs, and how many there are.

    \b
    $ tnc cache
    $ tnc cache --clear --json
    """
    folder = directory()
    files = list(folder.glob("*.json")) if folder.is_dir() else []
    size = sum(path.stat().st_size for path in files)
    if clear:
        for path in files:
            path.unlink(missing_ok=True)
    data = {
        "folder": str(folder),
        "plans": len(files),
        "bytes": size,
        "on": is_on(),
        "cleared": clear,
    }
    verb = "removed" if clear else "holds"
    off = "" if is_on() else " (switched off by TNC_CACHE=0)"
    put(as_json, lambda: data, lambda: f"{folder} {verb} {len(files)} plans, {size:,} bytes{off}")
