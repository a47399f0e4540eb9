"""Tensors as a backend's arrays, and its arrays as tensors, without a copy where none is needed.

Crossing takes as long as a small product, and every tensor of a call does it, so both ways are
kept short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, from_numpy
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

_CPU = (1, 0)  # DLPack's number of the device, and which of them


class _Memory:
    """A tensor's memory as NumPy asks for it.

    `Tensor.numpy` marks memory as not resizable, which stops FSDP2; a tensor's own `__dlpack__`
    looks at streams, devices and versions first and takes three times as long.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return to_dlpack(self.tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU


def enter(tensors: Sequence[Tensor], backend: str) -> Sequence[Any]:
    """Tensors as the backend's arrays, without a copy."""
    if backend != "numpy":
        return tensors
    return [
        np.from_dlpack(_Memory(t.resolve_conj().resolve_neg() if t.is_conj() or t.is_neg() else t))
        for t in tensors
    ]


def leave(results: Sequence[Any], backend: str, entered: Sequence[Any]) -> list[Tensor]:
    """The backend's arrays as tensors.

    A NumPy array that shares memory with what came in, or with another result, is copied: tensors
    that alias behind autograd's back would change together. The same array gives the same tensor.
    """
    if backend != "numpy":
        return list(results)
    owners = {id(_owner(array)) for array in entered}
    made: dict[int, Tensor] = {}
    for array in results:
        if id(array) in made:
            continue
        owner = id(_owner(array))
        made[id(array)] = from_numpy(array.copy() if owner in owners else _plain(array))
        owners.add(owner)
    return [made[id(array)] for array in results]


def _owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory an array is a view of."""
    base = array.base
    while isinstance(base, np.ndarray):
        array, base = base, base.base
    return array


def _plain(array: np.ndarray) -> np.ndarray:
    """The array, copied if torch cannot hold it as it is."""
    negative = min(array.strides, default=0) < 0
    return array.copy() if negative or not array.flags.writeable else array
