"""tnc.to_dense: a model with tensorized layers as plain torch."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from tncompiler.ir.errors import ArgumentError
from tncompiler.models.layers import Layer, find_layers
from tncompiler.models.parameters import network_weights, remove_network
from tncompiler.models.swapping import all_or_nothing, put

Model = TypeVar("Model", bound=nn.Module)


def to_dense(model: Model) -> Model:
    """A copy of the model in which every network is a dense weight of torch's own layers.

    It computes the same up to rounding and needs nothing of tncompiler. Weights that were tied are
    tied, shared modules shared; biases, hooks, modes and flags are kept.
    Cost: all weights at once, beside a copy of the model.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"to_dense got a {type(model).__name__}", fix="give a torch.nn.Module")
    copied = copy.deepcopy(model)
    for _, module, key, _ in [*network_weights(copied)]:
        remove_network(module, key)
    names = find_layers(copied)
    modules = dict(copied.named_modules(remove_duplicate=False))
    with all_or_nothing(modules.values()):
        for layer, dense in zip(names, _densified([*names]), strict=True):
            slots = [name.rpartition(".") for name in names[layer] if name]
            put(dense, layer, [(modules[above], key) for above, _, key in slots])
    return copied


def _densified(layers: list[Layer]) -> list[Any]:
    """Dense layers, with one weight for those that share their cores."""
    weights: dict[tuple[int, ...], nn.Parameter] = {}
    made = []
    for layer in layers:
        dense: Any = layer.to_dense()  # type: ignore[operator]
        cores = layer.held_cores()
        dense.requires_grad_(any(core.requires_grad for core in cores))
        if isinstance(getattr(layer, "bias", None), nn.Parameter):
            dense.bias = layer.bias
        if isinstance(getattr(dense, "weight", None), nn.Parameter):
            known = weights.setdefault(tuple(map(id, cores)), dense.weight)
            if known.shape == dense.weight.shape:  # not so for the transpose of a matrix
                dense.weight = known
        made.append(dense)
    return made
