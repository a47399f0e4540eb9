"""Predicted time of layers, tensorized and dense, by the planner's table of a CPU."""

from __future__ import annotations

from tncompiler.formats.dense import Dense
from tncompiler.models.arguments import arguments_of
from tncompiler.module import CompiledModule
from tncompiler.nn.table import Table
from tncompiler.nn.tensorized import Tensorized


def predicted_us(layer: Tensorized) -> tuple[float, float] | None:
    """Microseconds of a call of the dense layer and of the tensorized one, in eval mode.

    None for tables, of which a call reads a few rows: no program for that is known here.
    """
    if isinstance(layer, Table):
        return None
    own = arguments_of(layer)
    dense = {**own, "format": Dense(), "in_shape": None, "out_shape": None}
    return _call_us(layer, dense), _call_us(layer, own)


def _call_us(layer: Tensorized, arguments: dict[str, object]) -> float:
    """Of a layer without numbers that is made of these arguments."""
    dtype = layer._core_dtype()
    twin = type(layer)(**arguments, device="meta", dtype=dtype).eval()
    return sum(part.predicted_us() for part in twin.modules() if isinstance(part, CompiledModule))
