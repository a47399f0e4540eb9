"""Pictures of compiled networks: networks in field notation, contraction trees, charts of costs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from tncompiler.draw.canvas import Canvas
from tncompiler.draw.charts import draw_family, draw_memory, draw_roofline
from tncompiler.inspection import Inspection
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.origin import call_site

# what → the function that puts it on a canvas, (canvas, compilation, sizes); loaded on use
PICTURES: dict[str, str] = {
    "network": "tncompiler.draw.network:draw_networks",
    "tree": "tncompiler.draw.tree:draw_trees",
}
# what → the function that puts it on Axes, (network, axes, **options); loaded on use
CHARTS: dict[str, str] = {
    "memory": "tncompiler.draw.charts:draw_memory",
    "roofline": "tncompiler.draw.charts:draw_roofline",
    "family": "tncompiler.draw.charts:draw_family",
}

__all__ = ["CHARTS", "PICTURES", "draw", "draw_family", "draw_memory", "draw_roofline"]


def draw(
    network: Inspection,
    what: str = "network",
    *,
    ax: Any = None,
    sizes: Mapping[Any, Any] | None = None,
    **options: Any,
) -> Any:
    """Draw a picture or a chart of a compiled network; returns the Axes.

    Without ``ax`` a Figure of fitting size is made: `draw(…).figure.savefig(path)` writes it. One
    unit of the Axes of a picture is one inch there. ``options``: of the network `without=`, the
    name of a tensor to take out; of charts, those of their functions.
    Raises: ArgumentError for an unknown `what`, BackendError where matplotlib is missing.
    """
    if what in CHARTS:
        given = {} if sizes is None else {"sizes": sizes}
        return _load(CHARTS[what])(network, ax, **given, **options)
    if what not in PICTURES:
        raise ArgumentError(
            f"there is no picture {what!r}",
            where=call_site(),
            fix=f"choose one of {', '.join(sorted({*PICTURES, *CHARTS}))}",
        )
    canvas = Canvas()
    nominal = network.compilation.nominal({} if sizes is None else sizes)
    _load(PICTURES[what])(canvas, network.compilation, nominal, **options)
    return canvas.onto(ax)


def _load(target: str) -> Any:
    module, function = target.split(":")
    return getattr(import_module(module), function)
