"""The table of instructions that only compute: a function of arrays for each, by opcode and type.

Subnormal numbers are kept where `.ftz` would flush them, and approximations are exact here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx.conversions import CONVERSIONS
from tests.ptx.registers import Array

Function = Callable[..., Array]

WORDS = "s16 u16 s32 u32 s64 u64"
BITS = "b16 b32 b64"
FLOATS = "f32 f64 f16 bf16 f16x2 bf16x2 f32x2"
ROUNDED = ("", ".rn", ".ftz", ".rn.ftz")
APPROXIMATED = ("", ".rn", ".approx", ".approx.ftz", ".rn.ftz", ".full", ".full.ftz")


@dataclass(frozen=True, slots=True)
class Computation:
    """The types of what goes in, and the function."""

    function: Function
    sources: tuple[str, ...]


def _wide(a: Array) -> Array:
    """More digits, so that a product and a sum are rounded once."""
    return a.astype(np.longdouble if a.dtype.itemsize == 8 else np.float64)


def _fma(a: Array, b: Array, c: Array) -> Array:
    return (_wide(a) * _wide(b) + _wide(c)).astype(a.dtype)


def _quotient(a: Array, b: Array) -> Array:
    """Of integers, towards zero."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    down = a // safe
    up: Array = np.where((down < 0) & (down * safe != a), down + 1, down)
    return up.astype(a.dtype)


def _remainder(a: Array, b: Array) -> Array:
    left: Array = a - _quotient(a, b) * b
    return left.astype(a.dtype)


def _double(a: Array) -> np.dtype[Any]:
    return np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")


def _wide_product(a: Array, b: Array) -> Array:
    product: Array = a.astype(_double(a)) * b.astype(_double(b))
    return product


def _high_product(a: Array, b: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    if bits == 64:
        products = [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
        return np.array(products, a.dtype)
    high: Array = _wide_product(a, b) >> _double(a).type(bits)
    return high.astype(a.dtype)


def _shift_left(a: Array, by: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    shifted: Array = a << np.minimum(by, bits - 1).astype(a.dtype)
    return np.where(by < bits, shifted, a.dtype.type(0))


def _shift_right(a: Array, by: Array) -> Array:
    """Signed numbers are filled with their sign."""
    bits = 8 * a.dtype.itemsize
    shifted: Array = a >> np.minimum(by, bits - 1).astype(a.dtype)
    if a.dtype.kind == "u":
        shifted = np.where(by < bits, shifted, a.dtype.type(0))
    return shifted


def _funnel_left(low: Array, high: Array, by: Array) -> Array:
    both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    return (both << (by & np.uint32(31)).astype(np.uint64) >> np.uint64(32)).astype(np.uint32)


def _funnel_right(low: Array, high: Array, by: Array) -> Array:
    both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    return (both >> (by & np.uint32(31)).astype(np.uint64)).astype(np.uint32)


def _field(a: Array, start: Array, length: Array) -> Array:
    """bfe: bits of a, with the sign of their first one if a has a sign."""
    bits = 8 * a.dtype.itemsize
    found = []
    for value, at, count in zip(a.tolist(), start & 255, length & 255, strict=True):
        count = min(int(count), bits)
        field = (value >> min(int(at), bits)) & (2**count - 1)
        signed = a.dtype.kind == "i" and count and field >> (count - 1)
        found.append(field - 2**count if signed else field)
    return np.array(found, a.dtype)


def _insert(field: Array, a: Array, start: Array, length: Array) -> Array:
    """bfi: a with bits of the field in it."""
    found = []
    for bits, value, at, count in zip(field, a, start & 255, length & 255, strict=True):
        mask = (2 ** int(count) - 1) << int(at)
        found.append((int(value) & ~mask | int(bits) << int(at) & mask) & 0xFFFFFFFF)
    return np.array(found, a.dtype)


def _permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt: four bytes of eight; bit 3 of a selection takes the sign of its byte only."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(a)
    for k in range(4):
        chosen = selector >> np.uint32(4 * k) & np.uint32(15)
        byte = both >> (chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8) & np.uint64(255)
        sign = np.where(byte >= 128, np.uint64(255), np.uint64(0))
        byte = np.where(chosen >= 8, sign, byte)
        result |= byte.astype(np.uint32) << np.uint32(8 * k)
    return result


def _logic(a: Array, b: Array, c: Array, table: Array) -> Array:
    """lop3: any function of three bits, from its table of eight."""
    result = np.zeros_like(a)
    for k in range(8):
        if int(table[0]) >> k & 1:
            result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return result


def _ones(a: Array) -> Array:
    return np.bitwise_count(a).astype(np.uint32)


def _leading_zeros(a: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    return np.array([bits - int(x).bit_length() for x in a], np.uint32)


def _select(a: Array, b: Array, where: Array) -> Array:
    return np.where(where, a, b)


def _tanh(a: Array) -> Array:
    return np.tanh(_wide(a)).astype(a.dtype)


# ---------------------------------------------------------------------------- the table

# opcode, what may follow it, types of the first operand, function; types of the others, where
# they are not the same
_ROWS: tuple[tuple[str, tuple[str, ...], str, Function, tuple[str, ...] | int], ...] = (
    ("add", ("",), WORDS, np.add, 2),
    ("sub", ("",), WORDS, np.subtract, 2),
    ("mul", (".lo",), WORDS, np.multiply, 2),
    ("mul", (".hi",), WORDS, _high_product, 2),
    ("mul", (".wide",), "s16 u16 s32 u32", _wide_product, 2),
    ("mad", (".lo",), WORDS, lambda a, b, c: a * b + c, 3),
    ("mad", (".hi",), WORDS, lambda a, b, c: _high_product(a, b) + c, 3),
    ("mad", (".wide",), "s16", lambda a, b, c: _wide_product(a, b) + c, ("s16", "s32")),
    ("mad", (".wide",), "u16", lambda a, b, c: _wide_product(a, b) + c, ("u16", "u32")),
    ("mad", (".wide",), "s32", lambda a, b, c: _wide_product(a, b) + c, ("s32", "s64")),
    ("mad", (".wide",), "u32", lambda a, b, c: _wide_product(a, b) + c, ("u32", "u64")),
    ("div", ("",), WORDS, _quotient, 2),
    ("rem", ("",), WORDS, _remainder, 2),
    ("neg", ("",), "s16 s32 s64", np.negative, 1),
    ("abs", ("",), "s16 s32 s64", np.abs, 1),
    ("min", ("",), WORDS, np.minimum, 2),
    ("max", ("",), WORDS, np.maximum, 2),
    ("and", ("",), BITS + " pred", np.bitwise_and, 2),
    ("or", ("",), BITS + " pred", np.bitwise_or, 2),
    ("xor", ("",), BITS + " pred", np.bitwise_xor, 2),
    ("not", ("",), BITS + " pred", np.invert, 1),
    *(("shl", ("",), bits, _shift_left, ("u32",)) for bits in BITS.split()),
    *(("shr", ("",), kind, _shift_right, ("u32",)) for kind in f"{BITS} {WORDS}".split()),
    ("shf", (".l.wrap",), "b32", _funnel_left, 3),
    ("shf", (".r.wrap",), "b32", _funnel_right, 3),
    *(("bfe", ("",), kind, _field, ("u32", "u32")) for kind in ("s32", "u32", "s64", "u64")),
    ("bfi", ("",), "b32", _insert, ("b32", "u32", "u32")),
    ("prmt", ("",), "b32", _permute_bytes, 3),
    ("lop3", ("",), "b32", _logic, 4),
    ("popc", ("",), "b32 b64", _ones, 1),
    ("clz", ("",), "b32 b64", _leading_zeros, 1),
    *(("selp", ("",), k, _select, (k, "pred")) for k in f"{BITS} {WORDS} f32 f64".split()),
    ("mov", ("",), f"pred {BITS} {WORDS} f32 f64", np.copy, 1),
    ("cvta", (".global", ".local", ".to.global", ".to.local"), "u64", np.copy, 1),
    ("add", ROUNDED, FLOATS, np.add, 2),
    ("sub", ROUNDED, FLOATS, np.subtract, 2),
    ("mul", ROUNDED, FLOATS, np.multiply, 2),
    ("fma", (".rn", ".rn.ftz"), FLOATS, _fma, 3),
    ("div", APPROXIMATED, "f32 f64", np.divide, 2),
    ("rcp", APPROXIMATED, "f32 f64", np.reciprocal, 1),
    ("sqrt", APPROXIMATED, "f32 f64", np.sqrt, 1),
    ("rsqrt", APPROXIMATED, "f32 f64", lambda a: np.reciprocal(np.sqrt(a)), 1),
    ("ex2", APPROXIMATED, "f32 f16 f16x2", np.exp2, 1),
    ("lg2", APPROXIMATED, "f32", np.log2, 1),
    ("sin", APPROXIMATED, "f32", np.sin, 1),
    ("cos", APPROXIMATED, "f32", np.cos, 1),
    ("tanh", APPROXIMATED, "f32 f16 bf16 f16x2 bf16x2", _tanh, 1),
    ("neg", ("", ".ftz"), FLOATS, np.negative, 1),
    ("abs", ("", ".ftz"), FLOATS, np.abs, 1),
    ("min", ("", ".ftz"), FLOATS, np.fmin, 2),
    ("max", ("", ".ftz"), FLOATS, np.fmax, 2),
    ("min", (".NaN", ".ftz.NaN"), FLOATS, np.minimum, 2),
    ("max", (".NaN", ".ftz.NaN"), FLOATS, np.maximum, 2),
    ("copysign", ("",), "f32 f64", lambda a, b: np.copysign(b, a), 2),
)


def _ordered(compare: Function) -> Function:
    return lambda a, b: compare(a, b) & ~np.isnan(a) & ~np.isnan(b)


def _unordered(compare: Function) -> Function:
    return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)


_COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_WITHOUT_SIGN = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def _comparisons() -> Iterator[tuple[str, Computation]]:
    """setp, by comparison and type; "equ" and its like are true where a number is NaN."""
    for name, compare in _COMPARISONS.items():
        for kind in f"{BITS} {WORDS}".split():
            yield f"setp.{name}.{kind}", Computation(compare, (kind, kind))
        for ftz, kind in itertools.product(("", ".ftz"), ("f16", "f32", "f64")):
            pair = (kind, kind)
            yield f"setp.{name}{ftz}.{kind}", Computation(_ordered(compare), pair)
            yield f"setp.{name}u{ftz}.{kind}", Computation(_unordered(compare), pair)
    for name, other in _WITHOUT_SIGN.items():
        for kind in ("u16", "u32", "u64"):
            yield f"setp.{name}.{kind}", Computation(_COMPARISONS[other], (kind, kind))
    for ftz, kind in itertools.product(("", ".ftz"), ("f16", "f32", "f64")):
        yield f"setp.num{ftz}.{kind}", Computation(lambda a, b: ~_nan(a, b), (kind, kind))
        yield f"setp.nan{ftz}.{kind}", Computation(_nan, (kind, kind))


def _nan(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


def _table() -> Iterator[tuple[str, Computation]]:
    for name, suffixes, kinds, function, others in _ROWS:
        for suffix, kind in itertools.product(suffixes, kinds.split()):
            same = (kind,) * others if isinstance(others, int) else (kind, *others)
            yield f"{name}{suffix}.{kind}", Computation(function, same)
    yield from _comparisons()
    for opcode, function, sources in CONVERSIONS:
        yield opcode, Computation(function, sources)


COMPUTATIONS = dict(_table())
