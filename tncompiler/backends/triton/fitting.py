"""Which of a kernel's configurations runs: none that spills if another does not, then the fastest.

In: a kernel, candidates and a launch's arguments. Out: one candidate. Choices are kept by device,
kernel and shape class, in memory and as JSON on disk: configurations, never code.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

Grid = Callable[["Config"], tuple[int, ...]]
Config = Mapping[str, int]  # keyword arguments of a launch: block sizes, num_warps, num_stages

OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}  # the default changes with triton 3.10

_VERSION = 1
_REPEATS = 5
_ready: dict[object, Config] = {}  # by kernel, device and shape class: a look-up for each launch


def fitting(
    kernel: Any, candidates: Sequence[Config], grid: Grid, *args: Any, **constants: Any
) -> Config:
    """The candidate to launch with.

    ``grid`` says how many programs a candidate takes; ``args`` are the launch's, with a dtype for
    an array that has no size yet. Under the interpreter the first; on a GPU the fastest of those
    that spill nothing and fit into shared memory.
    """
    device = args[0].device
    if device.type != "cuda":
        return candidates[0]
    sizes = tuple([arg.bit_length() for arg in args if type(arg) is int])
    ready = (kernel, device.index, sizes)
    config = _ready.get(ready)
    if config is None:
        key = _key(kernel, candidates, sizes, device)
        known = _choices()
        if key not in known:
            known[key] = _choose(kernel, candidates, grid, args, constants)
            _save(known)
        config = _ready[ready] = candidates[min(known[key], len(candidates) - 1)]
    return config


def first_fitting(spills: Sequence[int | None]) -> int:
    """The first position that spills nothing; else the one that spills least; None: won't run."""
    runs = [k for k, spill in enumerate(spills) if spill is not None]
    return min(runs, key=lambda k: spills[k] or 0, default=0)


def _choose(
    kernel: Any,
    candidates: Sequence[Config],
    grid: Grid,
    args: Sequence[Any],
    constants: Mapping[str, Any],
) -> int:
    spills = [_spill(kernel, config, args, constants) for config in candidates]
    best = first_fitting(spills)
    fits = [k for k, spill in enumerate(spills) if spill is not None and spill == spills[best]]
    if len(fits) == 1:
        return best
    times = {k: _milliseconds(kernel, candidates[k], grid, args, constants) for k in fits}
    return min(fits, key=times.__getitem__)


def _spill(
    kernel: Any, config: Config, args: Sequence[Any], constants: Mapping[str, Any]
) -> int | None:
    """Bytes that a thread spills; None where the chip has not enough shared memory, or where one
    of triton's passes fails on its layouts.
    """
    from triton.runtime.errors import OutOfResources

    try:
        compiled = kernel.warmup(*args, grid=(1,), **constants, **config, **OPTIONS)
        compiled._init_handles()
    except OutOfResources:
        return None
    except RuntimeError as error:
        if "PassManager" not in str(error):
            raise
        return None
    return int(compiled.n_spills)


def _milliseconds(
    kernel: Any, config: Config, grid: Grid, args: Sequence[Any], constants: Mapping[str, Any]
) -> float:
    """The shortest of a few runs on the real arguments, which a launch may always repeat."""
    programs, device = grid(config), args[0].device
    given = [_scratch(a, programs[0], device) if isinstance(a, torch.dtype) else a for a in args]

    def run() -> None:
        kernel[programs](*given, **constants, **config, **OPTIONS)

    run()
    return min(_timed(run) for _ in range(_REPEATS))


def _scratch(dtype: torch.dtype, programs: int, device: torch.device) -> Tensor:
    """Room for partial sums while candidates are timed."""
    return torch.empty(programs * 2**17, dtype=dtype, device=device)


def _timed(run: Callable[[], None]) -> float:
    start, stop = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop))


# ---------------------------------------------------------------------------- what is kept


def _key(
    kernel: Any, candidates: Sequence[Config], sizes: Sequence[int], device: torch.device
) -> str:
    """Device, kernel source, candidates, and sizes to the next power of two."""
    name = torch.cuda.get_device_name(device)
    text = json.dumps([_VERSION, name, kernel.src, [dict(c) for c in candidates], sizes])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def choices_path() -> Path:
    """The file that choices are kept in."""
    return Path(platformdirs.user_cache_dir("tncompiler")) / "triton-choices.json"


@functools.cache
def _choices() -> dict[str, int]:
    """The choices on disk; none if the file is missing or holds anything else."""
    try:
        found = json.loads(choices_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if isinstance(k, str) and type(v) is int and v >= 0}


def _save(choices: Mapping[str, int]) -> None:
    """Write to a file beside and put it in place; a cache that cannot be written is none."""
    path = choices_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(choices, file)
        os.replace(file.name, path)
    except OSError:
        return
