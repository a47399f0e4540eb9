"""What people do around a module: autocast, checkpointing, changing outputs in place."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tncompiler as tnc
from tncompiler.module import CompiledModule

b, i, h, o, p = tnc.indices("b i h o p", i=4, h=3, o=2, p=2)
x = tnc.input("x", b, i)
BACKENDS = pytest.mark.parametrize("backend", ["auto", "torch", "numpy"])


def two_layers(backend: str, dtype: str | None = None) -> CompiledModule:
    hidden = tnc.relu(x @ tnc.param("A", i, h))
    module: CompiledModule = tnc.compile(
        hidden @ tnc.param("B", h, o, p), backend=backend, dtype=dtype, seed=0
    )
    return module


@BACKENDS
@pytest.mark.parametrize("rows", [5, 600])
def test_autocast_trains_as_torch_does(backend: str, rows: int) -> None:
    f, data = two_layers(backend), torch.randn(rows, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = f(data)
        loss = y.float().square().mean()
    assert y.dtype == torch.bfloat16
    loss.backward()
    exact = torch.relu(data @ f.A) @ f.B.reshape(3, 4)
    expected = torch.autograd.grad(exact.square().mean(), [f.A, f.B])
    for parameter, gradient in zip((f.A, f.B), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=0.05, atol=0.02)


@BACKENDS
def test_autocast_leaves_float64_alone(backend: str) -> None:
    f, data = two_layers(backend, "float64"), torch.randn(600, 4, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = f(data)
    assert y.dtype == torch.float64
    assert torch.equal(y, f(data))


@BACKENDS
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(backend: str, reentrant: bool) -> None:
    f, data = two_layers(backend), torch.randn(600, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(f(data).square().sum(), data)
    checkpoint(f, data, use_reentrant=reentrant).square().sum().backward()
    if reentrant and backend == "auto":  # whose pass without gradients may be another library's
        torch.testing.assert_close(data.grad, expected)
    else:
        assert torch.equal(data.grad, expected)


@BACKENDS
def test_outputs_may_be_changed_in_place(backend: str) -> None:
    f, data = two_layers(backend), torch.randn(600, 4)
    (expected,) = torch.autograd.grad(torch.relu(f(data)).sum(), f.A)
    torch.nn.Sequential(f, torch.nn.ReLU(inplace=True))(data).sum().backward()
    assert torch.equal(f.A.grad, expected)
