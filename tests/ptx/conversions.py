"""Conversions (cvt) as functions of arrays: from and to every type, by how they round."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from tests.ptx.registers import KINDS, Array

Function = Callable[..., Array]

_INTEGERS = ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64")
_FLOATS = ("f16", "bf16", "f32", "f64")
_TO_INTEGER: dict[str, Function] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def _convert(to: str) -> Function:
    """To the nearest number of a type; of integers the low bits."""
    dtype = KINDS[to].dtype
    return lambda a: a.astype(dtype)


def _round(to: str, how: Function) -> Function:
    """To a whole number; what is too large becomes the largest, NaN zero."""
    dtype = KINDS[to].dtype
    if dtype.kind not in "iu":
        return lambda a: how(a).astype(dtype)
    limits = np.iinfo(dtype)

    def rounded(a: Array) -> Array:
        whole = how(a.astype(np.float64))
        found = [0 if x != x else int(np.clip(x, -1e30, 1e30)) for x in whole]
        return np.array([min(max(x, limits.min), limits.max) for x in found], dtype)

    return rounded


def _pair(to: str) -> Function:
    """Two numbers in one register, the second in the lower half."""
    dtype = KINDS[to].dtype
    return lambda high, low: np.stack([low, high], axis=-1).astype(dtype).reshape(-1)


def _as_tf32(a: Array) -> Array:
    """10 bits after the point, ties away from zero."""
    return ((a.view(np.uint32) + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


def _conversions() -> Iterator[tuple[str, Function, tuple[str, ...]]]:
    for to, source in itertools.product(_INTEGERS, _INTEGERS):
        yield f"cvt.{to}.{source}", _convert(to), (source,)
    for to, source in itertools.product(_FLOATS, _INTEGERS):
        yield f"cvt.rn.{to}.{source}", _convert(to), (source,)
    for to, source in itertools.product(_FLOATS, _FLOATS):
        for how in ("", ".rn", ".ftz", ".rn.ftz"):
            yield f"cvt{how}.{to}.{source}", _convert(to), (source,)
    for to, source in itertools.product((*_INTEGERS, *_FLOATS), _FLOATS):
        for (name, whole), ftz in itertools.product(_TO_INTEGER.items(), ("", ".ftz")):
            yield f"cvt.{name}{ftz}.{to}.{source}", _round(to, whole), (source,)
    for to in ("f16x2", "bf16x2"):
        yield f"cvt.rn.{to}.f32", _pair(to), ("f32", "f32")
    yield "cvt.rna.tf32.f32", _as_tf32, ("f32",)


CONVERSIONS = tuple(_conversions())
