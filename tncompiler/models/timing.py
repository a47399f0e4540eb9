"""Predicted time and memory of layers, tensorized and dense, by the planner's table of a CPU.

A call in evaluation, where what cores alone make is kept: with NOMINAL rows, tokens, nodes and
edges, with one sequence of NOMINAL positions, or with one image of NOMINAL pixels an axis.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from typing import Any, NamedTuple

from torch import nn

from tncompiler.formats.dense import Dense
from tncompiler.models.arguments import arguments_of
from tncompiler.module import CompiledModule
from tncompiler.nn.attention import MultiheadAttention
from tncompiler.nn.built import allows_whole, product_us, table_us, torch_rates
from tncompiler.nn.conv import Conv
from tncompiler.nn.gated import Gated
from tncompiler.nn.graph import GraphConv
from tncompiler.nn.linear import Linear
from tncompiler.nn.parts import Composite
from tncompiler.nn.table import Table
from tncompiler.nn.tensorized import Tensorized

NOMINAL = 128


class Times(NamedTuple):
    """Microseconds of a call: of the dense layer, and of the tensorized one."""

    before: float
    after: float


class CallCost(NamedTuple):
    """``us``: microseconds of a call. ``bytes``: what its parameters take, and the most that a call
    computes on its way from core to core."""

    us: float
    bytes: int


def predicted_costs(layer: nn.Module) -> tuple[CallCost, CallCost]:
    """The cost of the dense layer and of the tensorized one."""
    times = predicted_us(layer)
    dense, own = _bytes(layer)
    return CallCost(times.before, dense), CallCost(times.after, own)


@singledispatch
def predicted_us(layer: Any) -> Times:
    """Microseconds of a call of a layer as it was, and as it is."""
    raise TypeError(f"nothing is predicted of a {type(layer).__name__}")


def parts_us(layer: Composite) -> dict[str, Times]:
    """Those of each weight of a layer with several, by its name."""
    if isinstance(layer, Gated):
        return _gated_us(layer)
    return {name: predicted_us(part) for name, part in layer.parts().items()}


# ---------------------------------------------------------------------------- layers of one weight


@predicted_us.register
def _(layer: Linear) -> Times:
    before = product_us(layer, NOMINAL)
    if allows_whole(layer) and layer.is_whole_faster(NOMINAL):
        return Times(before, before)
    return Times(before, layer.cores.predicted_us({"b": NOMINAL}, keeps=True))


@predicted_us.register
def _(layer: GraphConv) -> Times:
    sizes = {"n": NOMINAL, "e": NOMINAL}
    before = _twin(layer, **_DENSE).cores.predicted_us(sizes, keeps=True)
    if allows_whole(layer) and layer.is_whole_faster(NOMINAL):
        return Times(before, before)
    return Times(before, layer.cores.predicted_us(sizes, keeps=True))


@predicted_us.register
def _(layer: Conv) -> Times:
    extents = zip(layer.kernel_size, layer.dilation, strict=True)
    images = [max(NOMINAL, (taps - 1) * dilation + 1) for taps, dilation in extents]
    shape = (1, layer.in_channels, *images)
    before = layer.whole_us(shape)
    if allows_whole(layer) and layer.is_whole_faster(shape):
        return Times(before, before)
    return Times(before, layer.cores.predicted_us(layer.sizes_of(shape), keeps=True))


@predicted_us.register
def _(layer: Table) -> Times:
    """Reading rows of a table, or slices of cores that are contracted then."""
    rates, item = torch_rates(layer.cores), layer._core_dtype().itemsize
    before = rates.step_us + rates.pass_us(2.0 * NOMINAL * layer.embedding_dim * item)
    if allows_whole(layer):
        return Times(before, before)
    if layer.reads_whole(NOMINAL):
        return Times(before, before + table_us(layer))
    return Times(before, layer.reading_us(NOMINAL))


# ---------------------------------------------------------------------------- layers of several


@predicted_us.register
def _(layer: MultiheadAttention) -> Times:
    """The projections, and what lies between them: the same before and after."""
    rates, heads = torch_rates(layer.q_proj.cores), layer.num_heads
    dtype = layer.q_proj.cores.compute_dtype
    scores = rates.product_us(heads, NOMINAL, NOMINAL, layer.head_dim, dtype)
    values = rates.product_us(heads, NOMINAL, layer.head_dim, NOMINAL, dtype)
    between = rates.step_us + scores + values + rates.function_us(heads * NOMINAL**2)
    return _together([*parts_us(layer).values(), Times(between, between)])


@predicted_us.register
def _(layer: Gated) -> Times:
    return _together(parts_us(layer).values())


def _gated_us(layer: Gated) -> dict[str, Times]:
    """On built weights as before; or from core to core, where the scan's time is shared out among
    the weights that it multiplies by."""
    found: dict[str, Times] = {}
    runs_whole = layer.runs_whole(NOMINAL, 1, True)
    for end, ih, hh, hr in layer._all():
        inner = {f"weight_hh_{end}": hh} | ({} if hr is None else {f"weight_hr_{end}": hr})
        before = {name: NOMINAL * product_us(part, 1) for name, part in inner.items()}
        first = product_us(ih, NOMINAL)
        if runs_whole:
            found[f"weight_ih_{end}"] = Times(first, first)
            found |= {name: Times(us, us) for name, us in before.items()}
            continue
        scan = layer.scan_us(end, NOMINAL, 1)
        own = ih.cores.predicted_us({"b": NOMINAL}, keeps=True)
        found[f"weight_ih_{end}"] = Times(first, own)
        share = scan / sum(before.values())
        found |= {name: Times(us, us * share) for name, us in before.items()}
    return found


def _together(times: Iterable[Times]) -> Times:
    before, after = zip(*times, strict=True)
    return Times(sum(before), sum(after))


# ---------------------------------------------------------------------------- memory

_DENSE: dict[str, Any] = dict(format=Dense(), in_shape=None, out_shape=None, implementation="auto")


def _bytes(layer: Any) -> tuple[int, int]:
    """Of the dense layer and of the tensorized one; of tables and of layers with several weights,
    those of the parameters alone."""
    if isinstance(layer, Tensorized) and not isinstance(layer, Table):
        return _call_bytes(_twin(layer, **_DENSE)), _call_bytes(_twin(layer))
    own = sum(p.numel() * p.element_size() for p in layer.parameters())
    weights = [*layer.parts().values()] if isinstance(layer, Composite) else [layer]
    cores = {id(core): core for weight in weights for core in weight.held_cores()}
    held = sum(core.numel() * core.element_size() for core in cores.values())
    return own - held + layer.dense_bytes(), own


def _twin(layer: Tensorized, **other: Any) -> Any:
    """A layer without numbers that is made of the same arguments, but for some."""
    arguments = {**arguments_of(layer), **other}
    return type(layer)(**arguments, device="meta", dtype=layer._core_dtype()).eval()


def _call_bytes(twin: nn.Module) -> int:
    """What the parameters of a layer take, and the most that a call computes."""
    parts = [part for part in twin.modules() if isinstance(part, CompiledModule)]
    held = sum(p.numel() * p.element_size() for p in twin.parameters())
    return held + sum(int(part.peak_memory) for part in parts)
