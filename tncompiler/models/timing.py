"""Predicted time and memory of layers, tensorized and dense, by the planner's table of a CPU."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from tncompiler.formats.dense import Dense
from tncompiler.models.arguments import arguments_of
from tncompiler.module import CompiledModule
from tncompiler.nn.table import Table
from tncompiler.nn.tensorized import Tensorized


class CallCost(NamedTuple):
    """``us``: microseconds of a call in eval mode, with free sizes at 128. ``bytes``: what its
    parameters take, and the most that a call computes."""

    us: float
    bytes: int


def predicted_costs(layer: nn.Module) -> tuple[CallCost, CallCost] | None:
    """The cost of the dense layer and of the tensorized one.

    None for tables, of which a call reads a few rows, and for layers of several weights: no program
    for these is known here.
    """
    if not isinstance(layer, Tensorized) or isinstance(layer, Table):
        return None
    own = arguments_of(layer)
    dense = {**own, "format": Dense(), "in_shape": None, "out_shape": None}
    return _call_cost(layer, dense), _call_cost(layer, own)


def predicted_us(layer: Tensorized) -> tuple[float, float] | None:
    """Microseconds of a call of the dense layer and of the tensorized one, where they are known."""
    found = predicted_costs(layer)
    return None if found is None else (found[0].us, found[1].us)


def _call_cost(layer: Tensorized, arguments: dict[str, object]) -> CallCost:
    """Of a layer without numbers that is made of these arguments."""
    dtype = layer._core_dtype()
    twin = type(layer)(**arguments, device="meta", dtype=dtype).eval()
    parts = [part for part in twin.modules() if isinstance(part, CompiledModule)]
    held = sum(p.numel() * p.element_size() for p in twin.parameters())
    us = sum(part.predicted_us() for part in parts)
    return CallCost(us, held + sum(int(part.peak_memory) for part in parts))
