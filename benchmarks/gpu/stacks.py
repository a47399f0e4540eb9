"""Two tensorized layers with a function between them: no single chain, but stretches of launches.

A stack has what a `Cell` has: a name, a module on the GPU, an input, and the dense layers that are
replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tncompiler as tnc
from benchmarks.gpu.layers import Run, random_rows
from benchmarks.layer_shapes import THREE

BETWEEN: Mapping[str, Callable[[tnc.Expr, tnc.Index], tnc.Expr]] = {
    "softmax": lambda x, index: tnc.softmax(x, over=index),
    "gelu": lambda x, index: tnc.gelu(x),
}


@dataclass(frozen=True, slots=True)
class Stack:
    """Two TT-matrix layers of one shape, ``between`` them a function of BETWEEN."""

    between: str
    shape: str
    rank: int
    dtype: str
    batch: int

    @property
    def name(self) -> str:
        sizes = f"{self.shape} r{self.rank} {self.dtype} b{self.batch}"
        return f"two layers, {self.between} {sizes}"

    def layer(self, backend: str, dtype: str | None = None) -> Compiled:
        """Both layers on the GPU, the same numbers for every backend and dtype."""
        torch.manual_seed(0)
        made = Compiled(self._expression(), backend)
        return made.to(device="cuda", dtype=getattr(torch, dtype or self.dtype))

    def input(self) -> Tensor:
        return random_rows(self.batch, math.prod(THREE[self.shape][0]), self.dtype)

    def dense(self, x: Tensor) -> tuple[Run, Run]:
        """Two dense layers with the function between them, the backward pass by hand."""
        features = math.prod(THREE[self.shape][1])
        first, second = (
            torch.randn(features, n, device="cuda", dtype=x.dtype) / n**0.5
            for n in (x.shape[1], features)
        )
        function, slope = _DENSE[self.between]
        z = x @ first.t()
        h = function(z)
        cotangent = torch.randn(x.shape[0], features, device="cuda", dtype=x.dtype)

        def backward() -> tuple[Tensor, ...]:
            between = slope(cotangent @ second, z, h)
            return cotangent.t() @ h, between @ first, between.t() @ x

        return lambda: function(x @ first.t()) @ second.t(), backward

    def _expression(self) -> tnc.Expr:
        ins, outs = THREE[self.shape]
        rows, columns = tnc.Index("i", math.prod(ins)), tnc.Index("m", math.prod(outs))
        given = [tnc.Index(f"i{k}", n) for k, n in enumerate(ins)]
        x = tnc.input("x", tnc.Index("b"), rows).split(rows, given)
        h = BETWEEN[self.between](self._tensorized(x, "first", outs, columns), columns)
        middle = [tnc.Index(f"m{k}", n) for k, n in enumerate(outs)]
        last = tnc.Index("o", math.prod(outs))
        return self._tensorized(h.split(columns, middle), "second", outs, last)

    def _tensorized(self, x: tnc.Expr, name: str, outs: Any, merged: tnc.Index) -> tnc.Expr:
        batch, *ins = x.indices
        made = [tnc.Index(f"{name}{k}", n) for k, n in enumerate(outs)]
        bonds = [tnc.Index(f"{name}r{k}", self.rank) for k in range(len(outs) - 1)]
        cores = [
            tnc.param(f"{name}G{k}", *bonds[max(k - 1, 0) : k], ins[k], made[k], *bonds[k : k + 1])
            for k in range(len(outs))
        ]
        return tnc.contract(x, *cores, out=(batch, *made)).merge(made, merged)


class Compiled(nn.Module):
    """A compiled expression where a tensorized layer holds one: in ``cores``."""

    def __init__(self, expression: tnc.Expr, backend: str) -> None:
        super().__init__()
        self._written = expression
        self.cores = tnc.compile(expression, backend=backend)

    def _expression(self) -> tnc.Expr:
        return self._written

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.cores(x)
        return made


def _softmax_slope(gradient: Tensor, z: Tensor, h: Tensor) -> Tensor:
    return torch.ops.aten._softmax_backward_data(gradient, h, -1, h.dtype)


def _gelu_slope(gradient: Tensor, z: Tensor, h: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(gradient, z)


# the function, and its gradient from that of its result, its argument and its result
_DENSE: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]] = {
    "softmax": (lambda z: torch.softmax(z, -1), _softmax_slope),
    "gelu": (torch.nn.functional.gelu, _gelu_slope),
}

STACKS = tuple(Stack(between, "1024→1024", 8, "float16", 4096) for between in BETWEEN)
