"""Correct first: layers against float64, and random networks against the tests' oracle.

In: cells and seeds. Out: for each what is wrong, if anything is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import torch

from benchmarks.gpu.layers import Cell
from benchmarks.gpu.stacks import Stack

os.environ["TRITON_INTERPRET"] = "0"  # the tests switch the interpreter on where nobody has said
from tests.fuzz import check_network
from tests.networks import fuzzed_network
from tests.oracle import Runner

# of the largest element: some tens of roundings, in products and in what is kept between them
TOLERANCE = {"float16": 6e-3, "bfloat16": 5e-2, "float32": 2e-5}


def layer_errors(cell: Cell | Stack) -> dict[str, float]:
    """The largest error of output and gradients, relative to the largest element of each."""
    ours, exact = cell.layer("triton"), cell.layer("torch", "float64")
    with torch.no_grad():
        for mine, theirs in zip(ours.parameters(), exact.parameters(), strict=True):
            theirs.copy_(mine)
    x = cell.input().requires_grad_()
    z = x.detach().double().requires_grad_()
    y, reference = ours(x), exact(z)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    reference.backward(cotangent.double())
    pairs = {"output": (y, reference), "input": (x.grad, z.grad)}
    names = dict(exact.named_parameters())
    pairs.update((n, (p.grad, names[n].grad)) for n, p in ours.named_parameters())
    return {name: _error(got, wanted) for name, (got, wanted) in pairs.items()}


def _error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    scale = wanted.abs().max().clamp_min(1e-30)
    error = ((got.double() - wanted).abs().max() / scale).item()
    return error if error == error else float("inf")


def fuzz(seconds: float, first: int = 0) -> Iterator[str | None]:
    """For each random network what is wrong with it, until the time is over."""
    Runner.device = "cuda"
    end = time.monotonic() + seconds
    seed = first
    while time.monotonic() < end:
        case = fuzzed_network(seed)
        try:
            check_network(case, ("triton", "torch"))
            yield None
        except Exception as error:  # whatever it is, it is what the run is for
            yield f"network {seed}, {case.dtype}: {type(error).__name__}: {str(error)[:300]}"
        seed += 1
