"""Small networks treated as large ones: layouts by time, equal steps stacked, blocks on threads,
arrays as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import PropertyMock, patch

from tncompiler import function, scheduling
from tncompiler.compiler import Compilation
from tncompiler.planning import stacking, tiling, timing


@contextmanager
def as_if_large(lanes: int = 2) -> Iterator[None]:
    """Every program is searched for the best layout, equal steps are stacked, and what can be cut
    into lanes is."""
    with (
        patch.object(scheduling, "LAYOUT_FROM_US", 0.0),
        patch.object(scheduling, "THINNING_GAIN", math.inf),
        patch.object(stacking, "LEAST", 2),
        patch.object(stacking, "GAIN", math.inf),
        patch.object(tiling, "FROM_US", 0.0),
        patch.object(tiling, "GAIN", math.inf),
        patch.dict(timing.LANES_US, numpy=0.0, torch=0.0),
        patch.object(Compilation, "lanes", new_callable=PropertyMock, return_value=lanes),
    ):
        yield


@contextmanager
def crossing() -> Iterator[None]:
    """What a NumPy function may run in torch's operations is predicted to be faster there."""
    with (
        patch.object(function, "_CROSSING_FROM_US", -1.0),
        patch.object(function, "_CROSSING_SHARE", math.inf),
    ):
        yield
