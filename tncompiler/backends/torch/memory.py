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
from tncompiler.backends.numpy.memory import piece
from tncompiler.backends.torch.turning import turned

_THIN = 32  # rows or columns, of which all lines that a row of the copy reads stay in the cache
_modes = torch._C._len_torch_dispatch_stack
_from_numpy, _float32 = torch.from_numpy, torch.float32


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A new tensor on the CPU, of any content."""
    return _made(shape, math.prod(shape) * dtype.itemsize, dtype)


def _made(shape: Sequence[int], size: int, dtype: torch.dtype) -> Tensor:
    held = piece(size)
    if held.nbytes != size:  # storages are as large as their tensors, but for a few bytes
        held = held[: -(-size // held.itemsize)]
    made = _from_numpy(held)
    if dtype is not _float32:
        made = made.view(dtype)[: size // dtype.itemsize]
    return made.view(shape)


def left(like: Tensor, *shape: int) -> Tensor | None:
    """Where a result of a tensor's dtype goes, as `out=` takes it: None where it is small, on
    another device, or something looks on that wants to see new tensors."""
    size = math.prod(shape) * like.itemsize
    if size < LARGE or not like.is_cpu or _modes():
        return None
    return _made(shape, size, like.dtype)


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`."""
    if device.type != "cpu" or math.prod(shape) * dtype.itemsize < LARGE:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return fresh(shape, dtype)


def elementwise(function: Callable[..., Tensor], *operands: Tensor | float) -> Tensor:
    """A function of numbers and tensors that are broadcast to each other, as torch has it.

    Operands whose axes lie in another order are left to torch: so does its result then.
    """
    out = _left_for(operands)
    return function(*operands) if out is None else function(*operands, out=out)


def _left_for(operands: Sequence[Tensor | float]) -> Tensor | None:
    """Where an elementwise function's result goes."""
    tensors = [x for x in operands if isinstance(x, Tensor) and x.ndim]
    if not tensors:
        return None
    first = tensors[0]
    shape, dtype = first.shape, first.dtype
    for other in tensors[1:]:
        if other.dtype != dtype:
            return None
        if other.shape != shape:
            shape = torch.broadcast_shapes(shape, other.shape)  # type: ignore[no-untyped-call]
    for x in tensors:
        if x.shape == shape and not x.is_contiguous():
            return None
    return left(first, *shape)


def copied(x: Tensor) -> Tensor:
    """`x.contiguous()`."""
    if x.is_contiguous() or not x.is_cpu or _modes():
        return x.contiguous()
    made = turned(x)
    if made is not None:
        return made
    out = left(x, *x.shape)
    if out is None:
        return x.contiguous()
    if x.ndim == 2 and min(x.shape) <= _THIN:  # torch turns matrices over in squares, in one thread
        out.unsqueeze(0).copy_(x.unsqueeze(0))
        return out
    return out.copy_(x)
