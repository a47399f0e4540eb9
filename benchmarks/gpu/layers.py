"""The layers that are checked and timed, and how each contestant runs one.

In: a cell (format, shapes, rank, dtype, batch). Out: callables on the GPU, forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tncompiler as tnc
from benchmarks.layer_shapes import PROMISED, SHAPES
from tncompiler.backends.triton.actions import count_launches
from tncompiler.backends.triton.launches import plan_launches
from tncompiler.ir.program import Program
from tncompiler.nn.tensorized import Tensorized

Run = Callable[[], Any]

FORMATS = PROMISED
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer at one batch size."""

    format: str
    shape: str
    rank: int
    dtype: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.format} {self.shape} r{self.rank} {self.dtype} b{self.batch}"

    def layer(self, backend: str, dtype: str | None = None) -> Tensorized:
        """The layer on the GPU, the same numbers for every backend and dtype."""
        ins, outs = SHAPES[self.format][self.shape]
        torch.manual_seed(0)
        layer = tnc.nn.Linear(
            math.prod(ins),
            math.prod(outs),
            format=getattr(tnc.formats, self.format)(rank=self.rank, clamp=True),
            in_shape=ins,
            out_shape=outs,
            implementation="factorized",
            backend=backend,
        )
        return layer.to(device="cuda", dtype=getattr(torch, dtype or self.dtype))

    def input(self) -> Tensor:
        features = math.prod(SHAPES[self.format][self.shape][0])
        return random_rows(self.batch, features, self.dtype)

    def dense(self, x: Tensor) -> tuple[Run, Run]:
        """The layer that is replaced: one matrix product forward, two and a sum backward."""
        features = math.prod(SHAPES[self.format][self.shape][1])
        weight = torch.randn(features, x.shape[1], device="cuda", dtype=x.dtype)
        bias = torch.randn(features, device="cuda", dtype=x.dtype)
        cotangent = torch.randn(x.shape[0], features, device="cuda", dtype=x.dtype)

        def backward() -> tuple[Tensor, ...]:
            return cotangent @ weight, cotangent.t() @ x, cotangent.sum(0)

        return lambda: torch.nn.functional.linear(x, weight, bias), backward


def random_rows(batch: int, features: int, dtype: str) -> Tensor:
    """The same numbers in every process."""
    generator = torch.Generator("cuda").manual_seed(1)
    made = torch.randn(batch, features, device="cuda", generator=generator)
    return made.to(getattr(torch, dtype))


def cells(quick: bool) -> list[Cell]:
    """The cells, what matters most first."""
    first = [
        Cell(f, "1024→1024", 8, d, b)
        for d in ("float16", "float32")
        for f in FORMATS
        for b in (4096, 256)
    ]
    if quick:
        return [c for c in first if c.format in ("TTMatrix", "Tucker", "CP") and c.batch == 4096]
    more = [
        Cell(f, shape, rank, d, 4096)
        for f in FORMATS
        for shape, rank in (("768→3072", 8), ("4096→4096", 8), ("1024→1024", 32))
        for d in ("float16", "bfloat16")
    ]
    return first + more


@dataclass(frozen=True, slots=True)
class Programs:
    """The generated forward and backward functions with their arguments: no autograd around.

    ``flops``, ``bytes`` and ``launches``: of each of the two.
    """

    forward: Run
    backward: Run
    flops: tuple[float, float]
    bytes: tuple[float, float]
    launches: tuple[int, int]


def programs(layer: Tensorized, x: Tensor, backend: str = "triton") -> Programs:
    """What a training step runs on the device."""
    module = layer.cores
    compilation = module.compilation
    tensors = [x, *module._held()]
    call = module._call(tensors, False)
    wrt = tuple(leaf.name for leaf in compilation.ordered)
    pair = compilation.training_executable(call.dtypes, call.free, wrt, backend)
    results = pair.forward.run(*tensors)
    saved = list(results[pair.output_count :])
    names = [leaf.name for leaf in compilation.ordered]
    arguments = [a.value.name for a in pair.backward.program.arguments]
    held = [tensors[names.index(name)] for name in arguments if name in names]
    cotangent = torch.randn_like(results[0])
    sizes = {"b": x.shape[0]}
    flops = tuple(float(module.cost(sizes, part).flops) for part in ("forward", "backward"))
    stored = sum(t.numel() * t.element_size() for t in tensors)
    out = results[0].numel() * results[0].element_size()
    return Programs(
        lambda: pair.forward.run(*tensors),
        lambda: pair.backward.run(*held, *saved, cotangent),
        flops,
        (stored + out, 2 * stored + out),
        (_launches(pair.forward.program), _launches(pair.backward.program)),
    )


def _launches(program: Program) -> int:
    return count_launches(plan_launches(program).actions)


def graphed(cell: Cell, layer: Tensorized, x: Tensor) -> Run:
    """The layer compiled with `cuda_graph=True`."""
    network = layer._expression()  # type: ignore[operator]
    module = tnc.compile(network, backend="triton", dtype=cell.dtype, cuda_graph=True)
    module.to("cuda").load_state_dict(layer.cores.state_dict())
    return lambda: module(x)
