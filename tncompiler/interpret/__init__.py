"""Looking inside tensorized layers: their bonds, what these carry, and how to read a layer.

tnc.interpret.bonds(layer)                      # every bond by name
seen = tnc.interpret.capture(layer, "r2", x)    # what flows through it for a batch
tnc.interpret.spectrum(layer)["r2"].entropy     # how much of it is used
clear = tnc.interpret.canonicalize(layer)       # channels ordered, orthogonal, comparable
less = tnc.interpret.ablate(clear, "r2", 0)     # without its first channel
print(tnc.interpret.stack_view(layer))          # every order of the cores, with its cost
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# public name → module that holds it
_PUBLIC: dict[str, str] = {
    "bonds": "gauges",
    "spectrum": "gauges",
    "canonicalize": "gauges",
    "regauge": "gauges",
    "pin": "pinning",
    "capture": "pinning",
    "capture_in": "pinning",
    "Activations": "pinning",
    "ablate": "channels",
    "amplify": "channels",
    "top_inputs": "channels",
    "similarity": "channels",
    "stack_view": "stacks",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tncompiler.interpret' has no attribute {name!r}")
    value = getattr(import_module(f"tncompiler.interpret.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
