"""Shapes collected in inches, then put on matplotlib Axes: lines, circles, boxes and texts.

Collecting first gives the extent, so the figure fits what is drawn and no label is cut off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tncompiler.ir.errors import BackendError

Point = tuple[float, float]

# Okabe and Ito's colours, told apart by colour-blind readers too
COLOURS: dict[str, str] = {
    "input": "#56B4E9",
    "param": "#E69F00",
    "constant": "#CC79A7",
    "intermediate": "#D9D9D9",
}
KIND_NAMES = {"param": "parameter"}
POINT = 1 / 72  # inches
MARGIN = 0.15
RADIUS = 0.25  # of a tensor's circle
LABEL, NAME, TITLE = 8.5, 10.0, 10.0  # points


def text_size(text: str, points: float) -> Point:
    """About how wide and high a text is, in inches."""
    lines = text.split("\n")
    return max(map(len, lines)) * 0.62 * points * POINT, len(lines) * 1.25 * points * POINT


def check_matplotlib() -> None:
    """Raises BackendError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise BackendError(
            "drawing needs matplotlib, which is not installed",
            fix="pip install tncompiler[draw]",
        ) from None


def new_axes(ax: Any, size: Point, *, whole: bool = False) -> Any:
    """The Axes, or those of a new Figure of a size in inches, which they fill if `whole`."""
    if ax is not None:
        return ax
    check_matplotlib()
    from tncompiler.draw.figures import shown_axes

    return shown_axes(size, whole=whole)


@dataclass
class Canvas:
    """``lines``, ``circles`` and ``texts`` hold matplotlib's arguments; ``kinds`` is the legend."""

    lines: list[tuple[Sequence[Point], dict[str, Any]]] = field(default_factory=list)
    circles: list[tuple[Point, float, dict[str, Any]]] = field(default_factory=list)
    texts: list[tuple[Point, str, dict[str, Any]]] = field(default_factory=list)
    kinds: dict[str, None] = field(default_factory=dict)
    low: Point = (0.0, 0.0)
    high: Point = (0.0, 0.0)

    def line(self, points: Sequence[Point], width: float, role: str, style: str = "-") -> None:
        """A line through points. ``role`` is kept as the artist's gid."""
        for point in points:
            self._reach(point, 0.05, 0.05)
        look = {"linewidth": width, "gid": role, "linestyle": style, "color": "#404040"}
        self.lines.append((points, {**look, "zorder": 1, "solid_capstyle": "round"}))

    def circle(self, centre: Point, radius: float, kind: str, role: str) -> None:
        """A tensor, coloured by its kind; kind "dot" is a black dot, "hole" a place left empty."""
        self._reach(centre, radius, radius)
        if kind in COLOURS:
            self.kinds[kind] = None
        look = {"facecolor": COLOURS.get(kind, "black"), "edgecolor": "black", "linewidth": 1.0}
        if kind == "hole":
            look |= {"facecolor": "white", "linestyle": (0, (3, 2))}
        self.circles.append((centre, radius, {**look, "gid": role, "zorder": 3}))

    def text(
        self,
        centre: Point,
        text: str,
        points: float,
        *,
        role: str = "text",
        ground: str | None = None,
        edge: str = "none",
    ) -> None:
        """Text around a centre, on a ground of its own if `ground` is a colour."""
        width, height = text_size(text, points)
        self._reach(centre, width / 2, height / 2)
        look: dict[str, Any] = {"fontsize": points, "gid": role, "ha": "center", "va": "center"}
        if ground is not None:
            box = {"boxstyle": "round,pad=0.25", "facecolor": ground, "edgecolor": edge}
            look["bbox"] = {**box, "linewidth": 0.8} if edge != "none" else {**box, "pad": 0.1}
        self.texts.append((centre, text, {**look, "zorder": 4 if role == "name" else 2}))

    def place(self, other: Canvas, left: float, top: float) -> None:
        """Put another canvas's shapes here, its upper left corner at (left, top)."""
        dx, dy = left - other.low[0], top - other.high[1]

        def moved(point: Point) -> Point:
            return point[0] + dx, point[1] + dy

        self.lines += [([moved(p) for p in points], look) for points, look in other.lines]
        self.circles += [(moved(p), radius, look) for p, radius, look in other.circles]
        self.texts += [(moved(p), text, look) for p, text, look in other.texts]
        self.kinds.update(other.kinds)
        self._reach(moved(other.low), 0, 0)
        self._reach(moved(other.high), 0, 0)

    @property
    def size(self) -> Point:
        return self.high[0] - self.low[0], self.high[1] - self.low[1]

    def _reach(self, point: Point, dx: float, dy: float) -> None:
        if not (self.lines or self.circles or self.texts) and self.low == self.high:
            self.low = self.high = point
        self.low = min(self.low[0], point[0] - dx), min(self.low[1], point[1] - dy)
        self.high = max(self.high[0], point[0] + dx), max(self.high[1], point[1] + dy)

    def onto(self, ax: Any) -> Any:
        """Draw on Axes, or on those of a new Figure. Raises BackendError without matplotlib."""
        check_matplotlib()
        from matplotlib.lines import Line2D
        from matplotlib.patches import Circle

        legend = 0.35 if self.kinds else 0.0
        width = max(self.size[0] + 2 * MARGIN, 1.3 * len(self.kinds), 1.5)
        height = self.size[1] + 2 * MARGIN + legend
        ax = new_axes(ax, (width, height), whole=True)
        for points, look in self.lines:
            ax.add_line(Line2D([p[0] for p in points], [p[1] for p in points], **look))
        for centre, radius, look in self.circles:
            ax.add_patch(Circle(centre, radius, **look))
        for centre, text, look in self.texts:
            ax.text(*centre, text, parse_math=False, **look)
        middle = (self.low[0] + self.high[0]) / 2
        ax.set(xlim=(middle - width / 2, middle + width / 2), aspect="equal")
        ax.set_ylim(self.low[1] - MARGIN - legend, self.high[1] + MARGIN)
        ax.set_axis_off()
        if self.kinds:
            ax.legend(handles=self._legend(Line2D), **_LEGEND)
        return ax

    def _legend(self, line: Any) -> list[Any]:
        look = {"marker": "o", "linestyle": "none", "markersize": 9, "markeredgecolor": "black"}
        return [
            line([], [], markerfacecolor=COLOURS[kind], label=KIND_NAMES.get(kind, kind), **look)
            for kind in COLOURS
            if kind in self.kinds
        ]


_LEGEND: dict[str, Any] = {
    "loc": "lower center",
    "ncols": 4,
    "frameon": False,
    "fontsize": 8,
    "handletextpad": 0.2,
    "columnspacing": 1.2,
    "borderaxespad": 0.2,
}


def arrange(pictures: Sequence[Canvas], more: int, canvas: Canvas, gap: float = 0.5) -> None:
    """Pictures in reading order, in rows about as wide as a page; a line on what is left out."""
    row_width = max([9.0, *(picture.size[0] for picture in pictures)])
    left = top = bottom = 0.0
    for picture in pictures:
        width, height = picture.size
        if left > 0 and left + width > row_width:
            left, top = 0.0, bottom - gap
        canvas.place(picture, left, top)
        left, bottom = left + width + gap, min(bottom, top - height)
    if more:
        noun = "network" if more == 1 else "networks"
        text = f"and {more} more {noun}"
        canvas.text((text_size(text, 10)[0] / 2, bottom - gap), text, 10)


def name_in_circle(canvas: Canvas, name: str, place: Point) -> None:
    """A tensor's name in its circle, in smaller letters or in a box over it if it is long."""
    wrapped, points = fitted(name)
    if points >= 5.5:
        canvas.text(place, wrapped, min(NAME, points), role="name")
    else:
        canvas.text(place, name, 7.5, role="name", ground="white", edge="black")


def fitted(name: str) -> tuple[str, float]:
    """A name broken after dots and underscores, and the letter size at which it fits a circle."""
    if text_size(name, 7.5)[0] <= 2 * RADIUS * 0.92:
        return name, 2 * RADIUS * 0.92 / text_size(name, 1.0)[0]
    lines = [""]
    for piece in re.split(r"(?<=[._])", name):
        if lines[-1] and len(lines[-1]) + len(piece) > 7:
            lines.append("")
        lines[-1] += piece
    wrapped = "\n".join(lines)
    return wrapped, 2 * RADIUS * 0.95 / math.hypot(*text_size(wrapped, 1.0)) * 1.08


def title(picture: Canvas, text: str) -> None:
    """A line of text above a picture."""
    middle = (picture.low[0] + picture.high[0]) / 2
    picture.text((middle, picture.high[1] + 0.25), text, TITLE, role="title")
