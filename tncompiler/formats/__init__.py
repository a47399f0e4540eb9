"""Formats: how a weight of (in, out) modes is a network of small cores.

To add one: a file with a subclass of Format, and one line in FORMATS.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name → module that holds it; the order of docs and tables
FORMATS: dict[str, str] = {
    "TT": "tncompiler.formats.tt",
    "TTMatrix": "tncompiler.formats.tt_matrix",
    "Tucker": "tncompiler.formats.tucker",
    "CP": "tncompiler.formats.cp",
    "HT": "tncompiler.formats.ht",
    "TensorRing": "tncompiler.formats.tensor_ring",
    "BlockTerm": "tncompiler.formats.block_term",
    "Kronecker": "tncompiler.formats.kronecker",
    "Monarch": "tncompiler.formats.monarch",
    "LowRank": "tncompiler.formats.low_rank",
    "Dense": "tncompiler.formats.dense",
    "Custom": "tncompiler.formats.custom",
}
ALIASES: dict[str, str] = {"MPS": "TT", "MPO": "TTMatrix", "BlockTT": "TTMatrix"}

_OTHERS: dict[str, str] = {
    "Format": "tncompiler.formats.format",
    "Decomposition": "tncompiler.formats.decomposition",
    "factorize": "tncompiler.formats.factors",
    "from_tensorly_torch": "tncompiler.formats.foreign",
    "from_tensorkrowch": "tncompiler.formats.foreign",
    "from_quimb": "tncompiler.formats.foreign",
}

__all__ = sorted({*FORMATS, *ALIASES, *_OTHERS})


def __getattr__(name: str) -> Any:
    target = ALIASES.get(name, name)
    module = FORMATS.get(target) or _OTHERS.get(target)
    if module is None:
        raise AttributeError(f"module 'tncompiler.formats' has no attribute {name!r}")
    value = getattr(import_module(module), target)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
