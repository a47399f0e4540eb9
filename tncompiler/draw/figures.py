"""Figures and Axes that notebooks show without pyplot: as SVG, the same text each time."""

from __future__ import annotations

from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def as_svg(figure: Any) -> str:
    """A figure as SVG text, its letters as text."""
    text = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tncompiler", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


class ShownFigure(Figure):
    """A figure of our own."""

    def _repr_svg_(self) -> str:
        return as_svg(self)


class ShownAxes(Axes):
    """Axes of a figure of our own, all of which a notebook shows."""

    def _repr_svg_(self) -> str:
        return as_svg(self.figure)


def shown_axes(size: tuple[float, float], *, whole: bool) -> Any:
    """The Axes of a new figure of a size in inches, which they fill if `whole`."""
    if whole:
        return ShownFigure(figsize=size).add_axes((0, 0, 1, 1), axes_class=ShownAxes)
    return ShownFigure(figsize=size, layout="constrained").add_subplot(axes_class=ShownAxes)
