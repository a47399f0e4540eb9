"""Which of a kernel's configurations runs: none that spills if another does not, then the fastest.

In: a kernel, candidates and a launch's arguments. Out: one candidate, and for a kernel whose
programs share rows, how many of them; such a kernel is a chain, which other launches can replace
(`replanning.py`), so that none of it is chosen where all spill. Choices are kept by device, kernel
and shape class, in memory and as JSON on disk: configurations, never code.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import torch
from torch import Tensor

from tncompiler.backends.triton import runtime
from tncompiler.backends.triton.lanes import sums_rightly
from tncompiler.ir.errors import BackendError, NoConfiguration

Config = Mapping[str, int]  # keyword arguments of a launch: block sizes, num_warps, num_stages
Grid = Callable[[Config], tuple[int, ...]]
SharedGrid = Callable[[Config, int], tuple[int, ...]]
Otherwise = Callable[[Sequence[int | None]], "Choice"]

OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}  # the default changes with triton 3.10

_VERSION = 4
_REPEATS = 5
_FEW_WARPS = 4
HOPELESS = 256  # bytes a thread spills: more rows a warp would spill more, and take minutes
_CROWDS = (1, 2, 4, 8)  # programs on a multiprocessor: more hide more latency, and add more sums
_SUM_BYTES_PER_US = 1.5e6  # what each program's sums cost to be written and read again
_FLUSH_BYTES, _FLUSHES = 2**26, 4


class Choice(NamedTuple):
    """Position of a candidate, and programs a multiprocessor."""

    candidate: int
    crowd: int = 1


NONE = Choice(-1)  # of these: each spills, or does not run


_ready: dict[object, Any] = {}  # by kernel, device and shape class: a look-up for each launch


def fitting(
    kernel: Any, candidates: Sequence[Config], grid: Grid, *args: Any, **constants: Any
) -> Config:
    """The candidate to launch with.

    ``grid`` says how many programs a candidate takes; ``args`` are the launch's. Under the
    interpreter the first; on a GPU the fastest of those that spill nothing and fit into shared
    memory.
    """
    device = args[0].device
    if device.type != "cuda":
        return candidates[0]
    ready = (kernel, device.index, _size_class(args))
    if ready not in _ready:

        def runs(config: Config) -> Iterator[tuple[int, float]]:
            yield 1, _microseconds(kernel, config, grid(config), args, constants)

        chosen = _chosen(kernel, candidates, args, constants, runs, _spilling_least)
        _ready[ready] = candidates[chosen.candidate]
    return _ready[ready]  # type: ignore[no-any-return]


def sharing(
    kernel: Any,
    candidates: Sequence[Config],
    grid: SharedGrid,
    rows: int,
    *args: Any,
    **constants: Any,
) -> tuple[Config, int]:
    """The candidate to launch with, and how many programs share ``rows``.

    ``grid`` makes the launch's grid of a candidate and that number. An array among ``args`` that
    has a row of sums for each program comes as (dtype, sums). A GPU gets as many programs as run
    fastest together with adding up what they leave. Raises: NoConfiguration where all spill.
    """
    device = args[0].device
    most = runtime.count_processors(device)
    if device.type != "cuda":
        return candidates[0], _programs(rows, candidates[0], most)
    ready = (kernel, device.index, _size_class(args))
    if ready not in _ready:

        def runs(config: Config) -> Iterator[tuple[int, float]]:
            before = 0
            for crowd in _CROWDS:
                programs = _programs(rows, config, most * crowd)
                if programs > before:
                    given = with_sums(args, programs)
                    place = grid(config, programs)
                    us = _microseconds(kernel, config, place, given, constants)
                    yield crowd, us + _summing_us(args, programs)
                before = programs

        given = with_sums(args, 1)
        _ready[ready] = _chosen(kernel, candidates, given, constants, runs, lambda spills: NONE)
    chosen: Choice = _ready[ready]
    if chosen == NONE:
        raise NoConfiguration(
            f"each configuration of {kernel.__name__} spills, or does not run on this GPU",
            where=kernel.__name__,
            fix='choose backend="torch"',
        )
    config = candidates[chosen.candidate]
    return config, _programs(rows, config, most * chosen.crowd)


def first_fitting(spills: Sequence[int | None]) -> int:
    """The first position that spills nothing; else the one that spills least; None: won't run."""
    runs = [k for k, spill in enumerate(spills) if spill is not None]
    return min(runs, key=lambda k: spills[k] or 0, default=0)


def is_hopeless(config: Config, tried: Sequence[tuple[Config, int | None]]) -> bool:
    """Whether a candidate of the same way with fewer rows a warp spills many bytes; what would
    spill thousands takes the compiler minutes.
    """
    return any(
        (spilled or 0) >= HOPELESS
        and other.get("WAY") == config.get("WAY")
        and rows_per_warp(other) < rows_per_warp(config)
        for other, spilled in tried
    )


def rows_per_warp(config: Config) -> float:
    return config.get("ROWS", 0) / config["num_warps"]


def _chosen(
    kernel: Any,
    candidates: Sequence[Config],
    args: Sequence[Any],
    constants: Mapping[str, Any],
    runs: Callable[[Config], Iterator[tuple[int, float]]],
    otherwise: Otherwise,
) -> Choice:
    """The choice that is kept for such a launch, made now if there is none.

    ``runs`` times a candidate: programs a multiprocessor, and microseconds.
    """
    device, known = args[0].device, _choices()
    key = _key(kernel, candidates, _size_class(args), device)
    kept = known.get(key)
    if kept is None or kept.candidate >= len(candidates):
        spills = functools.partial(_spill, kernel, args=args, constants=constants)
        kept = known[key] = _fastest(candidates, spills, runs, otherwise)
        _save(known)
    return kept


def _fastest(
    candidates: Sequence[Config],
    spill: Callable[[Config], int | None],
    runs: Callable[[Config], Iterator[tuple[int, float]]],
    otherwise: Otherwise,
) -> Choice:
    """The fastest of those that spill nothing, else what is made of all that they spill.

    Compiling takes seconds a candidate: ways to cut a kernel are tried while they make it faster,
    and those of many warps where nothing else fits.
    """
    spills: dict[int, int | None] = {}
    best, least = Choice(0), math.inf
    for many, group in itertools.groupby(range(len(candidates)), lambda k: way_of(candidates[k])):
        if many is None and least < math.inf:
            break
        found: dict[int, int | None] = {}
        for k in sorted(group, key=lambda k: rows_per_warp(candidates[k])):
            tried = [(candidates[other], spilled) for other, spilled in found.items()]
            found[k] = None if is_hopeless(candidates[k], tried) else spill(candidates[k])
        spills.update(found)
        fits = [k for k, spilled in found.items() if spilled == 0]
        timed = {Choice(k, crowd): us for k in fits for crowd, us in runs(candidates[k])}
        if not timed:
            continue
        first = min(timed, key=timed.__getitem__)
        if timed[first] >= least:
            break
        best, least = first, timed[first]
    if least < math.inf:
        return best
    return otherwise([spills.get(k) for k in range(len(candidates))])


def _spilling_least(spills: Sequence[int | None]) -> Choice:
    """What runs although it spills."""
    if all(spilled is None for spilled in spills):
        raise BackendError(
            "no configuration of a kernel fits this GPU, or is compiled rightly",
            fix='update triton (from 3.9 on it adds up the right lanes), or choose backend="torch"',
        )
    return Choice(first_fitting(spills))


def way_of(config: Config) -> int | None:
    """What a candidate is tried together with: those of many warps are the last resort."""
    return config.get("WAY", 0) if config["num_warps"] <= _FEW_WARPS else None


def _spill(
    kernel: Any, config: Config, *, args: Sequence[Any], constants: Mapping[str, Any]
) -> int | None:
    """Bytes that a thread spills; None where the chip has not enough shared memory, where one of
    triton's passes fails on its layouts, or where it adds up wrong lanes.
    """
    import triton
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
    if not sums_rightly(compiled.asm["ttgir"], triton.__version__):
        return None
    return int(compiled.n_spills)


def _programs(rows: int, config: Config, most: int) -> int:
    return count_programs(-(-rows // config["ROWS"]), most)


def count_programs(tiles: int, most: int) -> int:
    """The fewest programs that take as many turns as the most there may be: each reads all cores
    and leaves sums of its own.
    """
    turns = -(-tiles // most)
    return -(-tiles // max(turns, 1))


def with_sums(args: Sequence[Any], programs: int) -> list[Any]:
    """Arguments with room for what that many programs sum."""
    device = args[0].device
    return [
        torch.empty(programs, arg[1], dtype=arg[0], device=device) if type(arg) is tuple else arg
        for arg in args
    ]


def _summing_us(args: Sequence[Any], programs: int) -> float:
    width: int = sum(arg[0].itemsize * arg[1] for arg in args if type(arg) is tuple)
    return 2.0 * programs * width / _SUM_BYTES_PER_US


def _microseconds(
    kernel: Any,
    config: Config,
    grid: tuple[int, ...],
    args: Sequence[Any],
    constants: Mapping[str, Any],
) -> float:
    """The shortest of a few runs on the real arguments, which a launch may always repeat.

    The device is kept busy until the launch has reached it: else the host would be timed.
    """
    busy = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=args[0].device)

    def run() -> None:
        kernel[grid](*args, **constants, **config, **OPTIONS)

    run()
    return min(_timed(run, busy) for _ in range(_REPEATS))


def _timed(run: Callable[[], None], busy: Tensor) -> float:
    start, stop = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    for _ in range(_FLUSHES):
        busy.zero_()
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return 1e3 * float(start.elapsed_time(stop))


# ---------------------------------------------------------------------------- what is kept


def _size_class(args: Sequence[Any]) -> tuple[int, ...]:
    """The sizes among a launch's arguments, to the next power of two."""
    return tuple([arg.bit_length() for arg in args if type(arg) is int])


def _key(
    kernel: Any, candidates: Sequence[Config], sizes: Sequence[int], device: torch.device
) -> str:
    """Device, compiler, kernel source, candidates, and sizes to the next power of two."""
    made_by = [_VERSION, metadata.version("triton"), torch.cuda.get_device_name(device)]
    text = json.dumps([*made_by, kernel.src, [dict(c) for c in candidates], sizes])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def choices_path() -> Path:
    """The file that choices are kept in."""
    return Path(platformdirs.user_cache_dir("tncompiler")) / "triton-choices.json"


@functools.cache
def _choices() -> dict[str, Choice]:
    """The choices on disk; none if the file is missing or holds anything else."""
    try:
        found = json.loads(choices_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: Choice(*value) for key, value in found.items() if _is_choice(value)}


def _is_choice(value: object) -> bool:
    match value:
        case [int(candidate), int(crowd)]:
            return candidate >= NONE.candidate and crowd in _CROWDS
    return False


def _save(choices: Mapping[str, Choice]) -> None:
    """Write to a file beside and put it in place; a cache that cannot be written is none."""
    path = choices_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(choices, file)
        os.replace(file.name, path)
    except OSError:
        return
