"""Programs in aten operations on NumPy arrays, for functions in a process that has torch anyway.

torch shares batched products, copies and maps out among threads, which NumPy works through on one.
Arrays are entered as tensors of the same memory, and results leave as arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, from_numpy

from tncompiler.backends.numpy.threads import is_forked
from tncompiler.watching import is_ordinary


class _Writable:
    """A read-only array's memory, as torch asks for it; no program writes into what it is given."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def tensors_of(arrays: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    """Arrays as tensors; copied only if torch cannot hold their strides or their byte order."""
    return tuple([_tensor(array) for array in arrays])


def _tensor(array: np.ndarray) -> Tensor:
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    try:
        return from_numpy(array)
    except (ValueError, TypeError):
        return from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


def arrays_of(tensors: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    """Tensors as arrays of the same memory."""
    try:
        return tuple([t.numpy() for t in tensors])
    except RuntimeError:  # one is to be read as its conjugate or negative
        return tuple([t.resolve_conj().resolve_neg().numpy() for t in tensors])


def can_run() -> bool:
    """Whether operations of this call do what they say: nothing looks at them or changes them, no
    thread of OpenMP was lost in a fork, and nobody wants to hear of NumPy's floating-point errors.
    """
    if is_forked() or not is_ordinary("cpu"):
        return False
    return not {"raise", "call"}.intersection(np.geterr().values())
