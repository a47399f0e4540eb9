"""Screenshots compared: where two differ, and by how much one differs from a stored reference.

References are kept at a quarter of the resolution, each pixel the mean of 4 × 4: what the browser's
versions do to edges stays below what counts as a difference, an outline or a label does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom
COARSE = 4
_CLEARLY = 40  # of 255, in one pixel or in the mean of 4 × 4


def pixels(png: bytes) -> np.ndarray:
    """Rows, columns, colours."""
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"), dtype=np.int16)


def coarse(png: bytes) -> bytes:
    """A quarter of the resolution, as PNG."""
    held = BytesIO()
    Image.open(BytesIO(png)).convert("RGB").reduce(COARSE).save(held, "png", optimize=True)
    return held.getvalue()


def differences(one: bytes, other: bytes) -> np.ndarray:
    """Where two pictures of one size clearly differ."""
    first, second = pixels(one), pixels(other)
    if first.shape != second.shape:
        raise ValueError(f"the pictures have shapes {first.shape} and {second.shape}")
    found: np.ndarray = (np.abs(first - second) > _CLEARLY).any(axis=2)
    return found


def differing(one: bytes, other: bytes) -> int:
    """How many pixels of two screenshots clearly differ."""
    return int(differences(one, other).sum())


def outside(found: np.ndarray, boxes: Sequence[Box]) -> int:
    """How many of the differences lie in none of the boxes."""
    rest = found.copy()
    for left, top, right, bottom in boxes:
        rest[max(top, 0) : bottom, max(left, 0) : right] = False
    return int(rest.sum())


def within(found: np.ndarray, box: Box, scale: int = 1) -> int:
    """How many of the differences lie in a box, given in pixels `scale` times as small."""
    left, top, right, bottom = (edge // scale for edge in box)
    return int(found[max(top, 0) : bottom, max(left, 0) : right].sum())


def strayed(reference: bytes, shot: bytes, boxes: Mapping[str, Box]) -> dict[str, int]:
    """By name of a box, the coarse pixels in which a screenshot differs from its reference."""
    found = differences(reference, coarse(shot))
    return {name: within(found, box, COARSE) for name, box in boxes.items()}
