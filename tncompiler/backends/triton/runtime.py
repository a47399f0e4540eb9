"""What generated Triton code calls, in kernels and on the host."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from tncompiler.ir.errors import BackendError

IEEE = tl.constexpr("bf16x6")  # a plain string as a default is unknown to triton 3.6
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit  # type: ignore[untyped-decorator]
def dot(x, y, acc, precision: tl.constexpr = IEEE):  # type: ignore[no-untyped-def]
    """acc + x @ y; float32 as six products of bfloat16 parts, which keep all of its 24 bits.

    The interpreter would multiply the bits of a bfloat16, so it gets float32.
    """
    if INTERPRETED:
        if x.dtype == tl.bfloat16:
            x = x.to(tl.float32)
            y = y.to(tl.float32)
        return tl.dot(x, y, acc, input_precision="ieee", out_dtype=acc.dtype)
    if x.dtype == tl.float32:
        return tl.dot(x, y, acc, input_precision=precision, out_dtype=acc.dtype)
    return tl.dot(x, y, acc, out_dtype=acc.dtype)


@triton.jit
def widen(x):  # type: ignore[no-untyped-def]
    """(m, k) as (m, 2 k) with a zero after each element: tl.dot wants 16 terms."""
    return tl.reshape(tl.join(x, tl.zeros_like(x)), (x.shape[0], 2 * x.shape[1]))


@triton.jit
def widen_rows(y):  # type: ignore[no-untyped-def]
    """(k, n) as (2 k, n) with a row of zeros after each row."""
    pairs = tl.permute(tl.join(y, tl.zeros_like(y)), (0, 2, 1))
    return tl.reshape(pairs, (2 * y.shape[0], y.shape[1]))


@triton.jit
def widen_batch(x):  # type: ignore[no-untyped-def]
    """`widen` of each matrix of a batch."""
    return tl.reshape(tl.join(x, tl.zeros_like(x)), (x.shape[0], x.shape[1], 2 * x.shape[2]))


@triton.jit
def widen_batch_rows(y):  # type: ignore[no-untyped-def]
    """`widen_rows` of each matrix of a batch."""
    pairs = tl.permute(tl.join(y, tl.zeros_like(y)), (0, 1, 3, 2))
    return tl.reshape(pairs, (y.shape[0], 2 * y.shape[1], y.shape[2]))


@triton.jit  # type: ignore[untyped-decorator]
def split_columns(x, parts: tl.constexpr):  # type: ignore[no-untyped-def]
    """(m, k) as (parts, m, k / parts): each warp takes a part of the sum, and not all of it."""
    return tl.permute(tl.reshape(x, (x.shape[0], parts, x.shape[1] // parts)), (1, 0, 2))


@triton.jit  # type: ignore[untyped-decorator]
def split_rows(y, parts: tl.constexpr):  # type: ignore[no-untyped-def]
    """(k, n) as (parts, k / parts, n)."""
    return tl.reshape(y, (parts, y.shape[0] // parts, y.shape[1]))


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(-x)), without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)); what 1 + e rounds away of a small e is put back, as Kahan does."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    log = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(x > 0, x, 0.0) + log


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """tanh; near 0 its series, where 1 - exp(-2 |x|) would cancel."""
    y = x * x
    tail = 2.0 / 15 - y * (17.0 / 315 - y * (62.0 / 2835 - y * 1382.0 / 155925))
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(y < 0.05, x * (1.0 - y * (1.0 / 3 - y * tail)), tl.where(x < 0, -far, far))


def is_wide(*tensors: Tensor) -> bool:
    """Whether an offset into one of the tensors needs 64 bits."""
    return any(tensor.numel() * (1 + tensor.is_complex()) >= 2**31 for tensor in tensors)


def count_processors(device: torch.device) -> int:
    """The multiprocessors of a GPU; a few under the interpreter, which runs one after another."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def real_view(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, its memory in the order of its axes."""
    return torch.view_as_real(tensor.resolve_conj().contiguous())


def check_device(device: torch.device) -> None:
    """Raises BackendError where kernels can run neither on a GPU nor under the interpreter."""
    if device.type != "cuda" and not INTERPRETED.value:
        raise BackendError(
            f"the triton backend needs CUDA or ROCm tensors, and these are on {device}",
            fix="move module and inputs to a GPU, set TRITON_INTERPRET=1 before tncompiler loads "
            "to run kernels on the CPU, or use backend='torch'",
        )


def on_device_of_arguments(run: Callable[..., Any]) -> Callable[..., Any]:
    """Launch on the device that the arguments are on: triton launches on the current one."""

    @functools.wraps(run)
    def checked(*tensors: Tensor) -> Any:
        if not tensors:
            return run()
        device = tensors[0].device
        check_device(device)
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return run(*tensors)
        with torch.cuda.device(device):
            return run(*tensors)

    return checked
