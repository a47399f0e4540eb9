"""Cores brought to one scale, the network the same."""

from __future__ import annotations

import numpy as np


def balanced(cores: list[np.ndarray]) -> list[np.ndarray]:
    """The cores scaled to one root mean square; for networks that are linear in every core."""
    scales = [float(np.sqrt(np.mean(np.abs(core) ** 2))) for core in cores]
    if not all(scales):
        return cores
    common = float(np.exp(np.mean(np.log(scales))))
    return [core * (common / scale) for core, scale in zip(cores, scales, strict=True)]


def balanced_by_name(cores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(cores, balanced(list(cores.values())), strict=True))
