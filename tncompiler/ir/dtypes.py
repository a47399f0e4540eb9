"""Dtypes by name, with "default" standing for the one a compilation chooses."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from tncompiler.ir.errors import UnsupportedDType
from tncompiler.ir.origin import call_site

_NUMPY_NAME = re.compile(r"[<>=|]?[A-Za-z][A-Za-z0-9_]{0,20}")  # other text NumPy would parse

DEFAULT = "default"  # real or complex, not known until compiled

_KINDS = {
    "bool": "bool",
    **{f"{sign}int{bits}": "int" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{name: "float" for name in ("float16", "bfloat16", "float32", "float64")},
    **{name: "complex" for name in ("complex64", "complex128")},
    DEFAULT: DEFAULT,
}
_RANK = {"bool": 0, "int": 1, "float": 2, DEFAULT: 3, "complex": 4}
LOW_PRECISION = ("float16", "bfloat16")
NUMPY_ONLY = ("uint16", "uint32", "uint64")  # torch has no matrix products for them
DTYPES = frozenset(_KINDS)
ITEM_BYTES: Mapping[str, int] = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "default": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}


def dtype_name(dtype: object, owner: str = "", where: str | None = None) -> str:
    """The name of a NumPy or torch dtype, a dtype name, or a Python type.

    ``owner`` says whose dtype it is and ``where`` that is declared, for the error.
    Raises: UnsupportedDType for a dtype that tncompiler does not compute with.
    """
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    plain = not isinstance(dtype, str) or _NUMPY_NAME.fullmatch(dtype)
    if name not in _KINDS and plain and not name.startswith("<class 'torch"):
        try:
            name = np.dtype(dtype).name  # type: ignore[call-overload]
        except Exception:  # whatever NumPy makes of it, and it parses text: no dtype
            name = str(name)
    if name not in _KINDS:
        known = ", ".join(sorted(set(_KINDS) - {DEFAULT}))
        raise UnsupportedDType(
            f"the dtype {name[:40]!r}{owner and f' of {owner}'} is not supported",
            where=where or call_site(),
            fix=f"use one of {known}",
        )
    return name


def kind(dtype: str) -> str:
    """ "bool", "int", "float", "complex", or "default" (float or complex)."""
    return _KINDS[dtype]


def is_real(dtype: str) -> bool:
    """Whether values of the dtype are certainly real."""
    return kind(dtype) not in ("complex", DEFAULT)


def is_differentiable(dtype: str) -> bool:
    """Whether gradients to values of the dtype exist."""
    return kind(dtype) in ("float", "complex", DEFAULT)


def real_part(dtype: str) -> str:
    """The dtype of the real part."""
    return {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)


def promote_as_numpy(*dtypes: str) -> str:
    """The dtype NumPy gives a combination of operands: int64 and float32 make float64."""
    if DEFAULT in dtypes or "bfloat16" in dtypes:
        return promote(*dtypes)
    return np.result_type(*dtypes).name


def promote(*dtypes: str) -> str:
    """The dtype torch gives a combination of operands; "default" wins over all real dtypes."""
    distinct = set(dtypes)
    if len(distinct) == 1:
        return distinct.pop()
    if DEFAULT in distinct:
        complexes = [d for d in distinct if kind(d) == "complex"]
        return max(complexes, default=DEFAULT)
    if "bfloat16" in distinct:
        rest = distinct - {"bfloat16"}
        if all(kind(d) in ("bool", "int") for d in rest):
            return "bfloat16"
        return promote("float32", *rest)
    floats = [d for d in distinct if kind(d) in ("float", "complex")]
    return np.result_type(*(floats or distinct)).name
