"""The registers of a warp, 32 lanes each, and operands as functions that read and write them.

A register is an array of unsigned numbers as wide as it is declared (booleans for predicates); an
instruction views their bits as its own type. What was never written reads as all ones, which is
NaN in every floating type: a result that depends on it shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tests.ptx.text import Kernel, PtxError

LANES = 32
Array = np.ndarray[Any, np.dtype[Any]]
Mask = Array | None  # which lanes take part; None: all of them
Read = Callable[["Registers"], Array]
Write = Callable[["Registers", Array, Mask], None]

_NUMBER = re.compile(r"(-?\d+|-?0x[0-9a-fA-F]+)U?|0[fd]([0-9a-fA-F]+)")


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of PTX: how wide a register of it is, and what its numbers are; two in f16x2."""

    bits: int
    dtype: np.dtype[Any]


KINDS = {
    "pred": Kind(1, np.dtype(np.bool_)),
    **{f"{c}{n}": Kind(n, np.dtype(f"uint{n}")) for c in "bu" for n in (8, 16, 32, 64)},
    **{f"s{n}": Kind(n, np.dtype(f"int{n}")) for n in (8, 16, 32, 64)},
    "f16": Kind(16, np.dtype(np.float16)),
    "f16x2": Kind(32, np.dtype(np.float16)),
    "bf16": Kind(16, np.dtype(ml_dtypes.bfloat16)),
    "bf16x2": Kind(32, np.dtype(ml_dtypes.bfloat16)),
    "f32": Kind(32, np.dtype(np.float32)),
    "f32x2": Kind(64, np.dtype(np.float32)),
    "f64": Kind(64, np.dtype(np.float64)),
}
UNSIGNED = {
    1: np.dtype(np.bool_),
    **{bits: np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}


class Registers(dict[str, Array]):
    """By name. A register that is read before it is written holds ones in all bits."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def __missing__(self, name: str) -> Array:
        bits = width(self.kernel, name)
        return np.full(LANES, True if bits == 1 else 2**bits - 1, UNSIGNED[bits])


def width(kernel: Kernel, name: str) -> int:
    """The bits of a register."""
    if name.startswith(("%tid", "%ntid", "%ctaid", "%nctaid", "%laneid")):
        return 32
    if name in kernel.constants:
        return 64
    kind = kernel.registers.get(name) or kernel.registers.get(name.rstrip("0123456789"))
    if kind is None:
        raise PtxError(f"{name!r} is no register that kernel {kernel.name} declares")
    return KINDS[kind].bits


def reader(kernel: Kernel, operand: str, kind: str) -> Read:
    """How to read a register or a number as this type; of a wider register the low bits."""
    bits, dtype = KINDS[kind].bits, KINDS[kind].dtype
    if operand in ("global_smem", *kernel.local):
        return lambda registers: np.zeros(LANES, dtype)
    if operand in kernel.constants:
        return lambda registers: registers[operand]
    if operand[0] != "%" and (number := _NUMBER.fullmatch(operand)):
        constant = _constant(number, bits).view(dtype)
        return lambda registers: constant
    own = width(kernel, operand)
    if own < bits:
        raise PtxError(f"{operand} has {own} bits, too few for .{kind}")
    if bits == 1:
        return lambda registers: registers[operand]
    if own > bits:
        low = UNSIGNED[bits]
        return lambda registers: registers[operand].astype(low).view(dtype)
    return lambda registers: registers[operand].view(dtype)


def _constant(number: re.Match[str], bits: int) -> Array:
    value = int(number[1], 0) if number[1] else int(number[2], 16)
    if bits == 1:
        return np.full(LANES, value != 0)
    return np.full(LANES, value & (2**bits - 1), UNSIGNED[bits])


def writer(kernel: Kernel, operand: str) -> Write:
    """How to write a register; narrower numbers are extended, with their sign if they have one."""
    if operand == "_":
        return lambda registers, values, lanes: None
    bits = width(kernel, operand)
    unsigned = UNSIGNED[bits]

    def write(registers: Registers, values: Array, lanes: Mask) -> None:
        if values.dtype != unsigned:
            values = _as_bits(values, bits)
        if lanes is not None:
            values = np.where(lanes, values, registers[operand])
        registers[operand] = values

    return write


def _as_bits(values: Array, bits: int) -> Array:
    own = 8 * values.nbytes // LANES
    if values.dtype.kind in "iu" and own < bits:
        return values.astype(f"{values.dtype.kind}{bits // 8}").view(UNSIGNED[bits])
    if own > bits:
        return values.view(UNSIGNED[own]).astype(UNSIGNED[bits])
    if own < bits:
        return values.view(UNSIGNED[own]).astype(UNSIGNED[bits])
    return values.view(UNSIGNED[bits])
