"""Pooling is torch's: values and gradients, overlapping and padded windows, every runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tncompiler as tnc
from tests import oracle
from tncompiler.ir.errors import ArgumentError, SizeEquationError, WindowError

MAX = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
MEAN = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


@dataclass(frozen=True)
class Pool:
    """What torch's functions are called with; ``sizes`` are those of the image."""

    sizes: tuple[int, ...]
    kernel: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1

    def options(self, *names: str) -> dict[str, Any]:
        return {"kernel": self.kernel} | {name: getattr(self, name) for name in names}


POOLS = {
    "plain": Pool((8, 6), 2),
    "overlapping": Pool((9, 8), 3, 2),
    "padded": Pool((8, 7), 3, 2, 1),
    "all overlap": Pool((6, 6), 3, 1, 1),
    "one for each": Pool((9, 8), (3, 2), (2, 1), (1, 0)),
    "does not divide": Pool((7, 5), 2, 2),
    "1d": Pool((11,), 4, 3, 2),
    "3d": Pool((5, 4, 6), 3, 2, 1),
}


def indices(pool: Pool) -> tuple[list[tnc.Index], list[tnc.Index], tnc.Expr]:
    sources = [tnc.Index(f"s{k}") for k in range(len(pool.sizes))]
    outs = [tnc.Index(f"o{k}") for k in range(len(pool.sizes))]
    return sources, outs, tnc.input("x", *tnc.indices("b c", b=2, c=3), *sources)


def numbers(pool: Pool) -> np.ndarray:
    """All different, half of them negative."""
    count = 6 * int(np.prod(pool.sizes))
    order = np.random.default_rng(count).permutation(count) - count / 2
    return order.reshape(2, 3, *pool.sizes).astype(np.float32)


def agree(expr: tnc.Expr, pool: Pool, theirs: Any, runner: str) -> None:
    """Value and gradient, with torch's in double precision."""
    x = numbers(pool)
    own = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    expected = theirs(own)
    cotangent = np.random.default_rng(0).standard_normal(expected.shape).astype(np.float32)
    expected.backward(torch.tensor(cotangent))
    (value,), found = oracle.Runner((expr,), runner, "float32", {}).gradients(
        {"x": x}, [cotangent], ("x",)
    )
    assert own.grad is not None
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["x"], own.grad.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("runner", ["function", "torch", "numpy"])
@pytest.mark.parametrize("name", POOLS)
def test_the_largest(name: str, runner: str) -> None:
    pool = POOLS[name]
    sources, outs, x = indices(pool)
    options = pool.options("stride", "padding", "dilation")
    expr = tnc.max_pool(x, sources, out=outs, **options)
    assert [i.name for i in expr.indices] == ["b", "c", *(i.name for i in outs)]
    last = len(pool.sizes) - 1

    def theirs(t: torch.Tensor) -> torch.Tensor:
        return MAX[last](t, pool.kernel, pool.stride, pool.padding, pool.dilation)

    agree(expr, pool, theirs, runner)


def test_the_largest_of_taps_apart() -> None:
    pool = Pool((9, 9), 3, 2, 1, 2)
    sources, outs, x = indices(pool)
    expr = tnc.max_pool(x, sources, out=outs, **pool.options("stride", "padding", "dilation"))
    agree(expr, pool, lambda t: functional.max_pool2d(t, 3, 2, 1, 2), "torch")


@pytest.mark.parametrize("with_zeros", [True, False])
@pytest.mark.parametrize("runner", ["function", "torch", "numpy"])
@pytest.mark.parametrize("name", POOLS)
def test_the_mean(name: str, runner: str, with_zeros: bool) -> None:
    pool = POOLS[name]
    sources, outs, x = indices(pool)
    options = pool.options("stride", "padding")
    expr = tnc.avg_pool(x, sources, out=outs, count_include_pad=with_zeros, **options)
    last = len(pool.sizes) - 1

    def theirs(t: torch.Tensor) -> torch.Tensor:
        how = {"count_include_pad": with_zeros}
        return MEAN[last](t, pool.kernel, pool.stride, pool.padding, **how)

    agree(expr, pool, theirs, runner)


def test_written_out_it_is_windows_and_reductions() -> None:
    h, w, h2, w2, p, q = tnc.indices("h w h2 w2 p q", h=6, w=6, p=2, q=2)
    x = tnc.input("x", h, w)
    seen = x.window(h, out=h2, kernel=p, stride=2).window(w, out=w2, kernel=q, stride=2)
    array = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32)
    for mine, pooled in (
        (seen.max(p, q), tnc.max_pool(x, (h, w), out=(h2, w2), kernel=2)),
        (seen.mean(p, q), tnc.avg_pool(x, (h, w), out=(h2, w2), kernel=2)),
    ):
        first, second = (tnc.compile(e, framework="numpy")(array) for e in (mine, pooled))
        np.testing.assert_allclose(first, second, rtol=1e-6)


def test_equal_largest_share_the_gradient() -> None:
    h, o = tnc.Index("h", 4), tnc.Index("o")
    x = tnc.input("x", h)
    f = tnc.compile(tnc.max_pool(x, h, out=o, kernel=2), framework="numpy")
    _, pull = f.vjp(np.array([1, 1, 2, 0], np.float32))
    assert np.array_equal(pull(np.ones(2, np.float32))["x"], [0.5, 0.5, 1, 0])


def test_bad_use() -> None:
    h, w, o = tnc.Index("h", 6), tnc.Index("w", 6), tnc.Index("o")
    x = tnc.input("x", h, w)
    with pytest.raises(ArgumentError, match="2 indices is given 1 entries of out"):
        tnc.max_pool(x, (h, w), out=o, kernel=2)
    with pytest.raises(ArgumentError, match="1 indices is given 2 entries of stride"):
        tnc.avg_pool(x, h, out=o, kernel=2, stride=(1, 2))
    with pytest.raises(WindowError, match="does not fit"):
        tnc.max_pool(x, h, out=o, kernel=7)
    with pytest.raises(SizeEquationError, match="3 windows, not 4"):
        tnc.max_pool(x, h, out=tnc.Index("o", 4), kernel=2)
