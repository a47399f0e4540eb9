"""A layer seen from outside: its sites and cores, what it computes, and how it is fed.

One line of FEEDS for each family of layers; all else in this package is the same for all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tncompiler.formats.bonds import Sites
from tncompiler.formats.weights import as_array
from tncompiler.ir.errors import ArgumentError, FormatError
from tncompiler.ir.expressions import Expr, Leaf, replace_leaves, walk
from tncompiler.models.storage import hold_plainly
from tncompiler.nn.conv import Conv
from tncompiler.nn.given import input_leaf
from tncompiler.nn.graph import GraphConv, check_graph, edges_of
from tncompiler.nn.linear import Linear
from tncompiler.nn.parts import Composite
from tncompiler.nn.reading import digits_of, read_slices, token_reader
from tncompiler.nn.table import Table
from tncompiler.nn.tensorized import Tensorized


def check_layer(layer: Any) -> Tensorized:
    """The layer, if it is one of a single weight. Raises ArgumentError."""
    if isinstance(layer, Tensorized):
        return layer
    if isinstance(layer, Composite):
        names = ", ".join(layer.parts())
        raise ArgumentError(
            f"{type(layer).__name__} has several weights: {names}",
            fix="take one of them: layer.parts()[name]",
        )
    raise ArgumentError(
        f"a {type(layer).__name__} is no tensorized layer",
        fix="give a layer of tnc.nn, as tnc.tensorize_ puts them into a model",
    )


def sites_of(layer: Any) -> Sites:
    """The sites and bonds of a layer's weight."""
    return Sites.of(check_layer(layer)._network)


def cores_of(layer: Tensorized) -> dict[str, np.ndarray]:
    """The parameters of the weight as arrays."""
    return {name: as_array(layer._core(name)) for name in dict.fromkeys(layer._table.parameters)}


@torch.no_grad()
def with_cores(layer: Tensorized, cores: Mapping[str, np.ndarray]) -> Any:
    """A copy of the layer with other numbers in its cores, which it holds plainly."""
    copied = copy.deepcopy(layer)
    hold_plainly(copied)
    for name, core in cores.items():
        copied._core(name).copy_(torch.from_numpy(np.ascontiguousarray(core)))
    copied.decomposition = None
    return copied


# ---------------------------------------------------------------------------- feeding


@dataclass(frozen=True, slots=True)
class Feed:
    """A layer with a certain network for its weight, as an expression and what it is fed with.

    ``sites``: the leaves that stand for the network's sites, in order. ``axes``: where the axes of
    each site's core are in its leaf. ``tensors``: a tensor for
    each leaf, from the cores by name and what the layer is called with. ``result``: the layer's
    output from that of the expression.
    """

    expression: Expr
    sites: tuple[str, ...]
    axes: tuple[dict[int, int], ...]
    tensors: Callable[[Mapping[str, Tensor], tuple[Any, ...]], dict[str, Tensor]]
    result: Callable[[Tensor, tuple[Any, ...]], Tensor]


def feed_of(layer: Tensorized, sites: Sites) -> Feed:
    """How a layer is fed that has these sites. Raises ArgumentError for unknown kinds of layers."""
    for family, feed in FEEDS.items():
        if isinstance(layer, family):
            return feed(layer, sites)
    raise ArgumentError(
        f"tnc.interpret does not know how a {type(layer).__name__} is called",
        fix=f"give one of {', '.join(family.__name__ for family in FEEDS)}",
    )


def held_tensors(layer: Tensorized) -> dict[str, Tensor]:
    """Parameters, constants and the bias by the names of leaves."""
    held = {name: layer._core(name) for name in layer._table.leaves}
    return held if layer.bias is None else {**held, "bias": layer.bias}


def _own_feed(
    layer: Any,
    sites: Sites,
    data: Callable[..., dict[str, Tensor]],
    result: Callable[[Tensor, tuple[Any, ...]], Tensor],
) -> Feed:
    """That of a layer whose program holds its network."""
    other = copy.copy(layer)  # shares everything but what is set here
    other._network = sites.network

    def tensors(cores: Mapping[str, Tensor], inputs: tuple[Any, ...]) -> dict[str, Tensor]:
        return {**held_tensors(layer), **cores, **data(*inputs)}

    axes = tuple({k: k for k in range(len(labels))} for labels in sites.inputs)
    return Feed(as_inputs(other._expression()), sites.tensors, axes, tensors, result)


def as_inputs(expression: Expr) -> Expr:
    """The expression with parameters and constants that are given at each call."""
    own = [n for n in walk(expression) if isinstance(n, Leaf) and n.kind != "input"]
    return replace_leaves(expression, {leaf: input_leaf(leaf.name, leaf.indices) for leaf in own})


def _feed_rows(layer: Linear, sites: Sites) -> Feed:
    def rows(x: Any) -> dict[str, Tensor]:
        layer.check_input(x)
        return {"x": x.reshape(-1, layer.in_features)}

    def result(y: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        return y.reshape(*inputs[0].shape[:-1], layer.out_features)

    return _own_feed(layer, sites, rows, result)


def _feed_images(layer: Conv, sites: Sites) -> Feed:
    def images(x: Any) -> dict[str, Tensor]:
        layer._check(x)
        batch = x if x.ndim == layer.dimensions + 2 else x[None]
        return {"x": batch if layer.padding_mode == "zeros" else layer._bordered(batch)}

    def result(y: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        return y if inputs[0].ndim == layer.dimensions + 2 else y[0]

    return _own_feed(layer, sites, images, result)


def _feed_graph(layer: GraphConv, sites: Sites) -> Feed:
    def graph(x: Any, edge_index: Any = None, edge_weight: Any = None) -> dict[str, Tensor]:
        check_graph(layer, x, edge_index, edge_weight)
        edges = edges_of(x, edge_index, edge_weight, layer.self_loops)
        return {"x": x, **dict(zip(("sources", "targets", "weights"), edges, strict=True))}

    return _own_feed(layer, sites, graph, lambda y, inputs: y)


def _feed_tokens(layer: Table, sites: Sites) -> Feed:
    """Rows of a table: each core is read at the digits of the tokens."""
    found = token_reader(sites.network, len(layer.in_shape))
    if found is None:
        raise FormatError(
            "the table can only be read as a whole: a mode of its network is input and output",
            where=str(layer),
            fix="use a format in which they are apart",
        )

    def tensors(cores: Mapping[str, Tensor], inputs: tuple[Any, ...]) -> dict[str, Tensor]:
        digits = digits_of(layer._checked(*inputs).flatten(), layer.in_shape)
        held = {**held_tensors(layer), **cores}
        return {
            name: read_slices(held[core], axes, [digits[k] for k in which])
            for name, (core, axes, which) in found.slices.items()
        }

    def result(y: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        tokens = inputs[0].flatten()
        rows = y.reshape(len(tokens), prod(layer.out_shape))[:, : layer.embedding_dim]
        if layer.padding_idx is not None:
            rows = torch.where(tokens[:, None] == layer.padding_idx, layer.padding_row, rows)
        return rows.reshape(*inputs[0].shape, layer.embedding_dim)

    pairs = zip(found.slices.values(), sites.inputs, strict=True)
    places = tuple(_left_axes(len(labels), read) for (_, read, _), labels in pairs)
    return Feed(found.network, tuple(found.slices), places, tensors, result)


def _left_axes(count: int, read: tuple[int, ...]) -> dict[int, int]:
    """Where the axes of a core are once it was read along some: tokens come first."""
    left = [axis for axis in range(count) if axis not in read]
    return {axis: place + bool(read) for place, axis in enumerate(left)}


# family of layers → how it is fed
FEEDS: dict[type[nn.Module], Callable[[Any, Sites], Feed]] = {
    Linear: _feed_rows,
    Conv: _feed_images,
    GraphConv: _feed_graph,
    Table: _feed_tokens,
}
