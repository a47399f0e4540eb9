"""tnc.to_dense: a model with tensorized layers as plain torch."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from tncompiler.ir.errors import ArgumentError
from tncompiler.models.layers import Layer, layer_names
from tncompiler.models.parameters import network_weights, remove_network
from tncompiler.models.swapping import all_or_nothing, put
from tncompiler.nn.parts import Composite

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
    modules = dict(copied.named_modules(remove_duplicate=False))
    names = layer_names(copied)
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
        made.append(dense)
        if isinstance(layer, Composite):
            _freeze_as(dense, layer)
            continue
        cores = [layer._core(leaf.name) for leaf in layer._network.leaves if leaf.kind == "param"]
        dense.requires_grad_(any(core.requires_grad for core in cores))
        if isinstance(getattr(layer, "bias", None), nn.Parameter):
            dense.bias = layer.bias
        known = weights.setdefault(tuple(map(id, cores)), dense.weight)
        if known.shape == dense.weight.shape:  # not so for the transpose of a matrix
            dense.weight = known
    return made


def _freeze_as(dense: nn.Module, layer: nn.Module) -> None:
    """A layer whose numbers are all frozen stays so; of several weights, torch may hold one."""
    dense.requires_grad_(any(parameter.requires_grad for parameter in layer.parameters()))
