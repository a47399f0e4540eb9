"""Compiles the kernels of generated sources for a GPU that need not be there.

In: one line of JSON on standard input, a list of jobs: source text, entry, arguments as (shape,
dtype), target. Out: one line of JSON with what each launch compiled to. Runs as a process of its
own, `python -m tncompiler.backends.triton.child`, since a process that interprets cannot compile.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from tncompiler.backends.source import Source, load
from tncompiler.backends.triton import fitting, runtime
from tncompiler.backends.triton.fitting import (
    HOPELESS,
    OPTIONS,
    Config,
    first_fitting,
    is_hopeless,
    rows_per_warp,
    way_of,
)
from tncompiler.backends.triton.kernels import SHARED_LIMIT
from tncompiler.backends.triton.lanes import sums_rightly

_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
TENSOR_COLUMNS = 512  # of Blackwell's memory for products, in a program
_PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}


def gpu_target(name: str) -> GPUTarget:
    """Triton's target of a name such as sm_90 or gfx942."""
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64)


def compile_job(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each launch of a source compiles to, for arguments without data."""
    found: list[dict[str, Any]] = []
    target = gpu_target(job["target"])

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {key: kwargs.pop(key) for key in _OPTIONS}
        found.append(compile_launch(self, args, kwargs, options, target, tuple(grid)))

    def fit(kernel: Any, candidates: Any, grid: Any, *args: Any, **constants: Any) -> Any:
        """The first candidate that spills nothing and fits the chip."""

        def spill(config: Any) -> int | None:
            options = {key: v for key, v in config.items() if key in _OPTIONS}
            given = {**constants, **{k: v for k, v in config.items() if k not in _OPTIONS}}
            options.update(OPTIONS)
            made = compile_launch(kernel, args, given, options, target, (1,))
            fits = "error" not in made and made["shared_bytes"] <= SHARED_LIMIT[job["target"]]
            return made["spill_bytes"] if fits else None

        return candidates[first_fitting(spills_until_none(candidates, spill))]

    def share(kernel: Any, candidates: Any, grid: Any, rows: int, *args: Any, **more: Any) -> Any:
        """As `fit`; a program on each multiprocessor."""
        config = fit(kernel, candidates, grid, *fitting.with_sums(args, 1), **more)
        return config, fitting.count_programs(triton.cdiv(rows, config["ROWS"]), processors)

    processors = _PROCESSORS.get(job["target"], 128)
    tensors = [
        torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for shape, dtype in job["arguments"]
    ]
    with _recording(record, fit, share):
        load(Source(job["text"], job["entry"])).run(*tensors)
    return found


def spills_until_none(
    candidates: Sequence[Config], spill: Callable[[Config], int | None]
) -> list[int | None]:
    """What each candidate spills, as far as is needed to know the first that spills nothing.

    They are tried in their order until one spills many bytes; from then on those of a way with the
    fewest rows a warp come first: what would spill thousands takes the compiler minutes.
    """
    spills: dict[int, int | None] = {}
    first = len(candidates)
    for _, group in itertools.groupby(range(len(candidates)), lambda k: _group(candidates[k])):
        pending = list(group)
        while pending:
            if any((spilled or 0) >= HOPELESS for spilled in spills.values()):
                pending.sort(key=lambda k: rows_per_warp(candidates[k]))
            k = pending.pop(0)
            tried = [(candidates[other], spilled) for other, spilled in spills.items()]
            if k < first and not is_hopeless(candidates[k], tried):
                spills[k] = spill(candidates[k])
                first = k if spills[k] == 0 else first
    return [spills.get(k) for k in range(len(candidates))]


def _group(config: Config) -> tuple[int | None, int]:
    """What a candidate is tried together with."""
    return way_of(config), config.get("WAY", 0)


@contextlib.contextmanager
def _recording(record: Any, fit: Any, share: Any) -> Iterator[None]:
    """Launches are recorded, devices not asked for."""
    kept = JITFunction.run, runtime.check_device, fitting.fitting, fitting.sharing
    JITFunction.run, fitting.fitting, fitting.sharing = record, fit, share
    runtime.check_device = lambda device: None
    try:
        yield
    finally:
        JITFunction.run, runtime.check_device, fitting.fitting, fitting.sharing = kept


def compile_launch(
    kernel: JITFunction,
    args: Sequence[Any],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    target: GPUTarget,
    grid: tuple[int, ...],
) -> dict[str, Any]:
    """One kernel, specialised as a launch with these arguments would have it."""
    source = specialise(kernel, args, constants)
    try:
        compiled = triton.compile(source, target=target, options=dict(options))
    except Exception as error:
        return {"name": kernel.__name__, "grid": grid, "error": f"{type(error).__name__}: {error}"}
    wrong = too_wide(getattr(compiled.metadata, "tmem_size", None) or 0)
    if not sums_rightly(compiled.asm["ttgir"], triton.__version__):
        wrong = f"triton {triton.__version__} adds up wrong lanes of it; 3.9 does not"
    if wrong:
        return {"name": kernel.__name__, "grid": grid, "error": wrong}
    said = {"name": kernel.__name__, "grid": grid, "constants": dict(constants), **options}
    return {**said, **resources(compiled, target)}


def too_wide(columns: int) -> str | None:
    """What is wrong with a kernel of Blackwell that takes so many columns of tensor memory: where
    there are not as many, all that triton compiles is a trap.
    """
    if columns <= TENSOR_COLUMNS:
        return None
    return f"it takes {columns} columns of tensor memory, of {TENSOR_COLUMNS}"


def specialise(kernel: JITFunction, args: Sequence[Any], constants: Mapping[str, Any]) -> ASTSource:
    """What triton compiles for a launch: types, constants (and integers 1), what divides by 16."""
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    given: dict[str, Any] = dict(zip(kernel.arg_names, args, strict=False))
    for position, name in enumerate(kernel.arg_names):
        value: Any = given.get(name, constants.get(name))
        if name in constants or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constexprs[position,] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:  # as of tensors without data
                attributes[position,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i64" if value >= 2**31 else "i32"
            if value % 16 == 0:
                attributes[position,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constexprs, attributes)


def resources(compiled: CompiledKernel, target: GPUTarget) -> dict[str, Any]:
    """Registers a thread, bytes spilled by it, shared memory, and the code itself."""
    if target.backend == "cuda":
        binary, asm = compiled.asm["cubin"], compiled.asm["ptx"]
        registers, spill = _cuda_usage(binary)
    else:
        binary, asm = compiled.asm["hsaco"], compiled.asm["amdgcn"]
        registers = int(_found(r"\.vgpr_count:\s+(\d+)", asm))
        spill = int(_found(r"\.private_segment_fixed_size:\s+(\d+)", asm))
    return {
        "registers": registers,
        "spill_bytes": spill,
        "shared_bytes": int(compiled.metadata.shared),
        "asm": asm,
        "binary": base64.b64encode(binary).decode(),
    }


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return int(_found(r"REG:(\d+)", shown)), int(_found(r"STACK:(\d+)", shown))


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1) if match else "0"


def main() -> None:
    jobs = json.loads(sys.stdin.readline())
    results = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        compiled = [compile_job(job) for job in jobs]
    results.write(json.dumps(compiled) + "\n")


if __name__ == "__main__":
    main()
