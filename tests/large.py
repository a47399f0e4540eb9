"""Small networks treated as large ones: layouts by time, equal steps stacked, blocks on threads,
memory that earlier arrays have left, arrays as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import PropertyMock, patch

from tncompiler import function, scheduling
from tncompiler.backends import emitter
from tncompiler.backends.numpy import memory as numpy_memory
from tncompiler.backends.torch import memory as torch_memory
from tncompiler.compiler import Compilation
from tncompiler.planning import stacking, tiling, timing


@contextmanager
def as_if_large(lanes: int = 2) -> Iterator[None]:
    """Every program is searched for the best layout, equal steps are stacked, what can be cut into
    lanes is, and all arrays take memory that others have left."""
    with (
        patch.object(scheduling, "LAYOUT_FROM_US", 0.0),
        patch.object(scheduling, "THINNING_GAIN", math.inf),
        patch.object(stacking, "LEAST", 2),
        patch.object(stacking, "GAIN", math.inf),
        patch.object(tiling, "FROM_US", 0.0),
        patch.object(tiling, "GAIN", math.inf),
        patch.dict(timing.LANES_US, numpy=0.0, torch=0.0),
        patch.object(emitter, "LARGE", 1),
        patch.object(torch_memory, "LARGE", 1),
        patch.object(numpy_memory, "LEAST_BYTES", 1),
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
