"""Large tensors of generated code in memory that earlier ones have left, on a CPU.

See `tncompiler.backends.numpy.memory`, which keeps it. Products of 33 MB took 5 times as long in
memory that the system had just given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tncompiler.backends.emitter import LARGE
from tncompiler.backends.numpy.memory import memory
from tncompiler.backends.torch.turning import turned

_THIN = 32  # rows or columns, of which all lines that a row of the copy reads stay in the cache


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A new tensor on the CPU, of any content."""
    held = memory(math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(held, dtype=dtype).view(shape)


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`."""
    if device.type != "cpu" or math.prod(shape) * dtype.itemsize < LARGE:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return fresh(shape, dtype)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """`torch.mm`, of shapes (m, k) and (k, n)."""
    shape = (a.shape[0], b.shape[1])
    return torch.mm(a, b, out=fresh(shape, a.dtype)) if _keeps(shape, a) else torch.mm(a, b)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """`torch.bmm`, of shapes (batch, m, k) and (batch, k, n)."""
    shape = (*a.shape[:2], b.shape[2])
    return torch.bmm(a, b, out=fresh(shape, a.dtype)) if _keeps(shape, a) else torch.bmm(a, b)


def elementwise(function: Callable[..., Tensor], *operands: Tensor | float) -> Tensor:
    """A function of numbers and tensors that are broadcast to each other, as torch has it.

    Operands whose axes lie in another order are left to torch: so does its result then.
    """
    tensors = [x for x in operands if isinstance(x, Tensor) and x.ndim]
    if not tensors:
        return function(*operands)
    first = tensors[0]
    shape = first.shape
    for other in tensors[1:]:
        if other.dtype != first.dtype:
            return function(*operands)
        if other.shape != shape:
            shape = torch.broadcast_shapes(shape, other.shape)  # type: ignore[no-untyped-call]
    in_order = all(x.is_contiguous() for x in tensors if x.shape == shape)
    if not in_order or not _keeps(shape, first):
        return function(*operands)
    return function(*operands, out=fresh(shape, first.dtype))


def copied(x: Tensor) -> Tensor:
    """`x.contiguous()`."""
    if x.is_contiguous() or not _is_unwatched(x):
        return x.contiguous()
    made = turned(x)
    if made is not None:
        return made
    if not _keeps(x.shape, x):
        return x.contiguous()
    out = fresh(x.shape, x.dtype)
    if x.ndim == 2 and min(x.shape) <= _THIN:  # torch turns matrices over in squares, in one thread
        out.unsqueeze(0).copy_(x.unsqueeze(0))
        return out
    return out.copy_(x)


def _keeps(shape: Sequence[int], like: Tensor) -> bool:
    """Whether a result is to be made in kept memory: it is large, and nothing looks on that wants
    to see new tensors."""
    return math.prod(shape) * like.itemsize >= LARGE and _is_unwatched(like)


def _is_unwatched(x: Tensor) -> bool:
    """Whether a tensor is on the CPU, and nothing looks on that wants to see new ones."""
    return x.is_cpu and not torch._C._len_torch_dispatch_stack()
