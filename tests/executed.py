"""Runs compiled kernels without a GPU: `python -m tests.executed CASE ...`, a line of JSON each.

A case is the seed of a network ("7") or a layer, its format and dtype ("TT float16"). Generated
host functions run as they are, on tensors of the CPU, but a launch compiles its kernel for sm_80
and runs the machine code in `tests.ptx`. Everything is run as often as the kernel with the most
configurations has some, each time with the next one of every kernel, forward and backward, and
compared with the oracle. A process of its own: one that interprets kernels cannot compile them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import triton
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

import tncompiler as tnc
from tests.networks import Case, as_dtype, fuzzed_network
from tests.oracle import Runner, compare, compare_named, epsilon, expected_gradients
from tests.ptx.machine import Order, forward, reverse, run_grid, shuffled
from tests.ptx.text import PtxError
from tncompiler.backends.triton import child, fitting, runtime
from tncompiler.backends.triton.kernels import SHARED_LIMIT
from tncompiler.backends.triton.lanes import sums_rightly
from tncompiler.ir.reference import evaluate_all

TARGET = child.gpu_target("sm_80")
ORDERS: tuple[Order, ...] = (forward, reverse, shuffled(0))
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
_OPCODE = re.compile(r"^\s*(?:@!?%p\d+ +)?([a-z]\w+(?:\.[a-z]\w*)?)", re.MULTILINE)
PROCESSORS = 2  # programs that share rows: more than one, so that their sums are added up
FORMATS: dict[str, tuple[Any, int, tuple[int, ...], tuple[int, ...]]] = {
    "TT": (tnc.formats.TT, 2, (2, 3), (3, 2)),
    "TTMatrix": (tnc.formats.TTMatrix, 3, (2, 4), (3, 2)),
    "Tucker": (tnc.formats.Tucker, 2, (2, 3), (3, 2)),
    "CP": (tnc.formats.CP, 3, (2, 3), (4, 2)),
    "TensorRing": (tnc.formats.TensorRing, 2, (3, 2), (2, 2)),
    "wide TTMatrix": (tnc.formats.TTMatrix, 8, (8, 4), (4, 8)),  # products on tensor cores
    "wide LowRank": (tnc.formats.LowRank, 16, (32,), (32,)),
}


@dataclass
class Found:
    """What running a case gave: launches, configurations refused, what was wrong."""

    case: str
    launches: int = 0
    kernels: int = 0
    instructions: list[str] = field(default_factory=list)
    candidates: int = 1
    refused: list[str] = field(default_factory=list)
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Refused(Exception):
    """A configuration that a GPU would not run, or that the package does not run."""


class Device:
    """What stands in for a GPU: it compiles, launches, and chooses the configuration in turn."""

    def __init__(self, found: Found, checked: bool = True) -> None:
        self.found, self.checked, self.turn = found, checked, 0
        self.compiled: dict[Any, CompiledKernel] = {}
        self.launched: list[str] = []
        self.instructions: set[str] = set()

    def run(self, kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **given: Any) -> None:
        self.found.launches += 1
        options = {key: given.pop(key) for key in OPTIONS}
        made = self.compile(kernel, args, given, options)
        passed = [
            _memory(value) if isinstance(value, torch.Tensor) else value
            for name, value in zip(kernel.arg_names, args, strict=False)
            if made.src.signature[name] != "constexpr"
        ]
        order = ORDERS[self.found.launches % len(ORDERS)]
        self.launched.append(f"{kernel.__name__} {given} {options}")
        run_grid(made.asm["ptx"], passed, grid, order, shared_bytes=made.metadata.shared)
        self.instructions |= set(_OPCODE.findall(made.asm["ptx"]))
        self.found.instructions = sorted(self.instructions)

    def compile(
        self, kernel: JITFunction, args: Sequence[Any], given: Mapping[str, Any], options: Any
    ) -> CompiledKernel:
        """Raises Refused where the package would not launch what is compiled."""
        source = child.specialise(kernel, args, given)
        key = (source.hash(), *options.values())
        if key not in self.compiled:
            try:
                made = triton.compile(source, target=TARGET, options=options)
            except RuntimeError as error:
                raise Refused(f"{type(error).__name__}: {error}") from error
            if self.checked and not sums_rightly(made.asm["ttgir"], triton.__version__):
                raise Refused("adds up wrong lanes")
            if made.metadata.shared > SHARED_LIMIT["sm_80"]:
                raise Refused(f"takes {made.metadata.shared} bytes of shared memory")
            self.compiled[key] = made
            self.found.kernels = len(self.compiled)
        return self.compiled[key]

    def fitting(self, kernel: Any, table: Any, grid: Any, *args: Any, **constants: Any) -> Any:
        """The configuration whose turn it is, or the first that compiles."""
        self.found.candidates = max(self.found.candidates, len(table))
        for position in (min(self.turn, len(table) - 1), *range(len(table))):
            config = table[position]
            options = {k: v for k, v in config.items() if k in OPTIONS} | fitting.OPTIONS
            blocks = {k: v for k, v in config.items() if k not in OPTIONS}
            try:
                self.compile(kernel, args, {**constants, **blocks}, options)
            except Refused as error:
                said = f"{kernel.__name__} {dict(config)}: {error}"
                if said not in self.found.refused:
                    self.found.refused.append(said)
                continue
            return config
        raise AssertionError(f"no configuration of {kernel.__name__} compiles")

    def sharing(
        self, kernel: Any, table: Any, grid: Any, rows: int, *args: Any, **constants: Any
    ) -> Any:
        config = self.fitting(kernel, table, grid, *fitting.with_sums(args, 1), **constants)
        return config, min(-(-rows // config["ROWS"]), PROCESSORS)


@contextlib.contextmanager
def as_device(found: Found, *, checked: bool = True) -> Iterator[Device]:
    """Launches run in the machine; memory that is not written holds NaN.

    ``checked``: what adds up wrong lanes is refused, as it is on a GPU.
    """
    device = Device(found, checked)
    empty = torch.empty

    def unwritten(*size: Any, **given: Any) -> torch.Tensor:
        made = empty(*size, **given)
        return made.fill_(math.nan) if made.is_floating_point() else made

    kept = JITFunction.run, runtime.check_device, fitting.fitting, fitting.sharing
    JITFunction.run = lambda *args, **given: device.run(*args, **given)
    fitting.fitting, fitting.sharing = device.fitting, device.sharing  # type: ignore[assignment]
    runtime.check_device = lambda device: None
    torch.empty = unwritten
    try:
        yield device
    finally:
        torch.empty = empty
        JITFunction.run, runtime.check_device, fitting.fitting, fitting.sharing = kept


def _memory(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor. Raises PtxError where they are not in the order of its axes."""
    if not tensor.is_contiguous():
        raise PtxError(f"an array of shape {tuple(tensor.shape)} has strides {tensor.stride()}")
    flat = torch.as_strided(tensor.detach(), (tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy()


def run_case(name: str, turns: int | None = None) -> Found:
    """Every configuration of a case (or that many of them) against the oracle.

    `wrong` says which failed, and how.
    """
    found, start = Found(name), time.monotonic()
    case = fuzzed_network(int(name)) if name.isdigit() else layer_case(name)
    with as_device(found) as device:
        check = _checks(case)
        while device.turn < (turns or found.candidates):
            device.launched.clear()
            try:
                found.worst = max(found.worst, check())
            except (AssertionError, PtxError, Refused) as error:
                ran = "\n    ".join(device.launched)
                found.wrong.append(f"turn {device.turn}: {error}\n  launched\n    {ran}")
            device.turn += 1
    found.seconds = round(time.monotonic() - start, 1)
    return found


def _checks(case: Case) -> Callable[[], float]:
    """One run forward and backward, as the worst error / bound; what is expected is made once."""
    outputs, arrays, eps = case.outputs, case.arrays, epsilon(case.dtype)
    forward_bounds = evaluate_all(outputs, arrays, case.sizes, eps)
    wrt = case.wrt if case.cotangents else ()
    backward = expected_gradients(outputs, arrays, case.cotangents, wrt, case.sizes, eps, case.seed)
    runner = Runner(outputs, "triton", case.dtype, case.given)

    def check() -> float:
        values = runner.forward(arrays)
        worst = compare("forward", outputs, values, forward_bounds, "ptx", case.seed)
        if wrt:
            values, gradients = runner.gradients(arrays, case.cotangents, wrt)
            compare("training forward", outputs, values, forward_bounds, "ptx", case.seed)
            ratio = compare_named("gradient", outputs, gradients, backward, "ptx", case.seed)
            worst = max(worst, ratio)
        return worst

    return check


def layer_case(name: str, batch: int = 5) -> Case:
    """A tiny linear layer as a network, with random numbers."""
    kind, dtype = name.rsplit(" ", 1)
    make, rank, ins, outs = FORMATS[kind]
    features = int(np.prod(ins)), int(np.prod(outs))
    layer = tnc.nn.Linear(
        *features,
        format=make(rank=rank),
        in_shape=ins,
        out_shape=outs,
        implementation="factorized",
        backend="torch",
    )
    outputs = (layer._expression(),)
    rng = np.random.default_rng(0)
    arrays = {n: p.detach().numpy() for n, p in layer.cores.named_parameters()}
    arrays = {n: as_dtype(rng.standard_normal(a.shape), dtype) for n, a in arrays.items()}
    arrays["x"] = as_dtype(rng.standard_normal((batch, features[0])), dtype)
    cotangent = as_dtype(rng.standard_normal((batch, features[1])), dtype)
    sizes = {tnc.size("b"): batch}
    return Case(0, outputs, arrays, dtype, (cotangent,), tuple(arrays), sizes)


def main(cases: Sequence[str]) -> None:
    results = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases:
            results.write(json.dumps(asdict(run_case(case))) + "\n")
            results.flush()


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("kernels that are interpreted are not compiled: unset TRITON_INTERPRET")
    main(sys.argv[1:])
