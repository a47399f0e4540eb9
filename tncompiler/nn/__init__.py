"""Tensorized layers with the signatures of torch.nn, plus `format=`.

To add one: a file, and one line in LAYERS.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

LAYERS: dict[str, str] = {
    "Linear": "tncompiler.nn.linear",
    "Conv1d": "tncompiler.nn.conv",
    "Conv2d": "tncompiler.nn.conv",
    "Conv3d": "tncompiler.nn.conv",
    "MultiheadAttention": "tncompiler.nn.attention",
    "LSTM": "tncompiler.nn.recurrent",
    "GRU": "tncompiler.nn.recurrent",
    "GraphConv": "tncompiler.nn.graph",
    "Embedding": "tncompiler.nn.embedding",
    "EmbeddingBag": "tncompiler.nn.embedding",
}

_OTHERS: dict[str, str] = {"DenseGraphConv": "tncompiler.nn.graph"}

__all__ = sorted({*LAYERS, *_OTHERS})


def __getattr__(name: str) -> Any:
    module = LAYERS.get(name) or _OTHERS.get(name)
    if module is None:
        raise AttributeError(f"module 'tncompiler.nn' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
