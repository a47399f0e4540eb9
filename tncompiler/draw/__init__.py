"""Pictures of compiled networks: tensor networks in field notation, or contraction trees."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import sympy

from tncompiler.compiler import Compilation
from tncompiler.draw.canvas import Canvas
from tncompiler.ir.errors import ArgumentError

# what → the function that puts it on a canvas; loaded on use
PICTURES: dict[str, str] = {
    "network": "tncompiler.draw.network:draw_networks",
    "tree": "tncompiler.draw.tree:draw_trees",
}

__all__ = ["PICTURES", "draw"]


def draw(
    compilation: Compilation,
    what: str = "network",
    *,
    ax: Any = None,
    nominal: Mapping[sympy.Symbol, int],
) -> Any:
    """Draw the "network" or the contraction "tree" at the sizes `nominal`; returns the Axes.

    Without ``ax`` a Figure of fitting size is made: `draw(…).figure.savefig(path)` writes it.
    One unit of the Axes is one inch there.
    Raises: ArgumentError for an unknown `what`, BackendError where matplotlib is missing.
    """
    if what not in PICTURES:
        raise ArgumentError(
            f"there is no picture {what!r}", fix=f"choose one of {', '.join(sorted(PICTURES))}"
        )
    module, function = PICTURES[what].split(":")
    canvas = Canvas()
    getattr(import_module(module), function)(canvas, compilation, nominal)
    return canvas.onto(ax)
