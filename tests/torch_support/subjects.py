"""The columns of the table: networks to be transformed, each with the same function in plain torch.

References read the module's parameters by name, so any transform of the module can be applied to
the reference as well. They use nothing of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tncompiler as tnc

BACKENDS = ("torch", "numpy", "triton")
BATCH = 3

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Subject:
    """A network of one input with the batch first, and one output with the batch first.

    ``make``: the module for a backend and dtype; ``shape``: of the input without the batch;
    ``reference``: the same function of parameters and input, in plain torch.
    """

    name: str
    make: Callable[[str, torch.dtype], nn.Module]
    shape: tuple[int, ...]
    reference: Callable[[Parameters, Tensor], Tensor]

    def input(self, batch: int = BATCH, dtype: torch.dtype = torch.float64) -> Tensor:
        """A batch of inputs, the same numbers each time."""
        generator = torch.Generator().manual_seed(batch)
        drawn = torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64)
        return drawn.to(dtype)


# ---------------------------------------------------------------------------- the columns


def _program(backend: str, dtype: torch.dtype) -> nn.Module:
    b, i, j, r, o = tnc.indices("b i j r o", i=4, j=3, r=2, o=5)
    cores = tnc.param("G1", i, r), tnc.param("G2", r, j, o)
    sums = tnc.contract(tnc.input("x", b, i, j), *cores, out=(b, o)) + tnc.param("net.bias", o)
    scale = tnc.constant("net.scale", o, value=np.arange(1.0, 6.0))
    return _compiled(tnc.tanh(sums) * sums * scale, backend, dtype)


def _program_reference(p: Parameters, x: Tensor) -> Tensor:
    sums = torch.einsum("bij,ir,rjo->bo", x, p["G1"], p["G2"]) + p["net.bias"]
    return torch.tanh(sums) * sums * torch.arange(1, 6, dtype=x.dtype, device=x.device)


def _linear(backend: str, dtype: torch.dtype) -> nn.Module:
    format = tnc.formats.TTMatrix(rank=2)
    shapes = dict(in_shape=(2, 3), out_shape=(4, 2))
    return tnc.nn.Linear(6, 8, format=format, dtype=dtype, backend=backend, **shapes)


def _linear_reference(p: Parameters, x: Tensor) -> Tensor:
    weight = torch.einsum("aor,rbp->abop", p["cores.G1"], p["cores.G2"]).reshape(6, 8)
    return x @ weight + p["cores.bias"]


def _convolution(backend: str, dtype: torch.dtype) -> nn.Module:
    format = tnc.formats.Tucker(rank=2)
    return tnc.nn.Conv2d(3, 4, 3, padding=1, format=format, dtype=dtype, backend=backend)


def _convolution_reference(p: Parameters, x: Tensor) -> Tensor:
    names = ("C", "U1", "U2", "U3", "V1")
    cores = [p[f"cores.{name}"] for name in names]
    kernel = torch.einsum("pqrs,ip,jq,kr,os->oijk", *cores)
    return F.conv2d(x, kernel, p["cores.bias"], padding=1)


def _attention(backend: str, dtype: torch.dtype) -> nn.Module:
    b, t, s, m, n, h, d = tnc.indices("b t s m n h d", t=4, s=4, m=6, n=6, h=2, d=3)
    x = tnc.input("x", b, t, m)
    keys = x.rename({t: s})
    query, key, value = (
        source @ tnc.param(name, m, h, d)
        for name, source in (("query", x), ("key", keys), ("value", keys))
    )
    heads = tnc.attention(query, key, value, dim=d, is_causal=True)
    return _compiled(heads @ tnc.param("out", h, d, n), backend, dtype)


def _attention_reference(p: Parameters, x: Tensor) -> Tensor:
    query, key, value = (
        torch.einsum("btm,mhd->bhtd", x, p[name]) for name in ("query", "key", "value")
    )
    scores = query @ key.transpose(-1, -2) / 3**0.5
    hidden = torch.ones(4, 4, dtype=torch.bool, device=x.device).triu(1)
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)
    return torch.einsum("bhtd,hdn->btn", weights @ value, p["out"])


def _scan(backend: str, dtype: torch.dtype) -> nn.Module:
    b, t, i, h, k = tnc.indices("b t i h k", t=3, i=4, h=3, k=3)
    x, first = tnc.input("x", b, t, i), tnc.param("first", h)
    w, u = tnc.param("W", i, h), tnc.param("U", k, h)

    def cell(state: tnc.Expr, part: tnc.Expr) -> tuple[tnc.Expr, tnc.Expr]:
        carried = tnc.contract(state.rename({h: k}), u, out=(b, h))
        new = tnc.tanh(tnc.contract(part, w, out=(b, h)) + carried)
        return new, new

    _, states = tnc.scan(cell, first * tnc.ones(b), x, over=t)
    return _compiled(states.transpose(b, t, h), backend, dtype)


def _scan_reference(p: Parameters, x: Tensor) -> Tensor:
    state, states = p["first"].expand(len(x), -1), []
    for position in range(3):
        state = torch.tanh(x[:, position] @ p["W"] + state @ p["U"])
        states.append(state)
    return torch.stack(states, 1)


def _compiled(outputs: tnc.Expr, backend: str, dtype: torch.dtype) -> nn.Module:
    module: nn.Module = tnc.compile(
        outputs, backend=backend, dtype=str(dtype).removeprefix("torch."), seed=0
    )
    for parameter in module.parameters():  # biases start at 0, where much looks right
        with torch.no_grad():
            parameter.add_(0.1)
    return module


SUBJECTS = (
    Subject("program", _program, (4, 3), _program_reference),
    Subject("layer", _linear, (6,), _linear_reference),
    Subject("convolution", _convolution, (3, 5, 5), _convolution_reference),
    Subject("attention", _attention, (4, 6), _attention_reference),
    Subject("scan", _scan, (3, 4), _scan_reference),
)
