"""Random numbers that follow from a seed and a position: the same on every backend, every time."""

from __future__ import annotations

from typing import Any

import numpy as np

from tncompiler.ir.functions.rule import Elementwise

BITS = 32  # of a scrambled number
_MASK = 2**BITS - 1
# odd numbers, as signed ones of 32 bits: no product of two such numbers leaves 64 bits
_STEP, _FIRST, _SECOND = 0x9E3779B9 - 2**BITS, 0x7FEB352D, 0x846CA68B - 2**BITS


def scramble(state: Any, position: Any) -> Any:
    """A number below 2**32 for each whole number `position`, that depends on all bits of `state`.

    Written with operators alone, for arrays of int64 of any library. The mixing function is
    lowbias32 (https://nullprogram.com/blog/2018/07/31/).
    """
    x = (state ^ (state >> BITS) ^ ((position & _MASK) * _STEP)) & _MASK
    x = ((x ^ (x >> 16)) * _FIRST) & _MASK
    x = ((x ^ (x >> 15)) * _SECOND) & _MASK
    return x ^ (x >> 16)


SCRAMBLE = Elementwise(
    "scramble",
    2,
    lambda state, position: scramble(
        np.asarray(state).astype(np.int64), np.asarray(position).astype(np.int64)
    ),
    "scramble({0}, {1})",
    "scramble({0}, {1})",
    partials=(None, None),
    domain=("int",),
    helper="scramble",
    torch_helper="scramble",
)
