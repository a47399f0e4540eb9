"""The tensorized layers of a model, by all their names."""

from __future__ import annotations

from torch import nn

from tncompiler.nn.parts import Composite
from tncompiler.nn.tensorized import Tensorized

Layer = Tensorized | Composite


def layer_names(model: nn.Module) -> dict[Layer, list[str]]:
    """All tensorized layers, with all their names; those of several weights as wholes."""
    found: dict[Layer, list[str]] = {}
    whole: str | None = None
    for name, module in model.named_modules(remove_duplicate=False):
        if whole is not None and name.startswith(whole):
            continue
        whole = (f"{name}." if name else "") if isinstance(module, Composite) else None
        if isinstance(module, Tensorized | Composite):
            found.setdefault(module, []).append(name)
    return found
