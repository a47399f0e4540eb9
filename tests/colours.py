"""How far apart colours are, also for readers who see fewer of them; contrast of text."""

from __future__ import annotations

import numpy as np

# linear RGB → what is seen without the cones for long, middle or short waves; Machado, Oliveira &
# Fernandes 2009, doi:10.1109/TVCG.2009.113, severity 1
SIGHTS: dict[str, np.ndarray] = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    ),
    "deuteranopia": np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    ),
    "tritanopia": np.array(
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]
    ),
}
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _XYZ.sum(axis=1)


def linear(colour: str) -> np.ndarray:
    """Red, green and blue of "#rrggbb", as amounts of light."""
    values = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colour: str, sight: str = "all cones") -> np.ndarray:
    """CIE 1976 L*a*b* of a colour as a sight sees it."""
    seen = np.clip(SIGHTS[sight] @ linear(colour), 0, 1)
    x, y, z = np.cbrt(np.maximum(_XYZ @ seen / _WHITE, 216 / 24389))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(one: str, other: str, sight: str) -> float:
    """The distance of two colours; 2.3 is the least that is noticed, side by side."""
    return float(np.linalg.norm(lab(one, sight) - lab(other, sight)))


def contrast(one: str, other: str) -> float:
    """The ratio of lightnesses of WCAG 2: 4.5 is asked of text, 3 of what is drawn."""
    weights = _XYZ[1]
    low, high = sorted(float(weights @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)
