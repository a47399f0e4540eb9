"""tnc.save: a model's numbers once each, and what its networks are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tncompiler.ir.errors import ArgumentError, FileFormatError, TncError
from tncompiler.models.files.descriptions import format_data, layer_data, structure_data
from tncompiler.models.files.sealed import write
from tncompiler.models.layers import Layer, find_layers
from tncompiler.models.parameters import network_weights
from tncompiler.models.storage import owner_of
from tncompiler.nn.tensorized import Tensorized
from tncompiler.parametrized import source_of
from tncompiler.planning.decide import package_version

# what a layer is made with that holds another's cores: they are tied to it afterwards
_STAND_IN = {"format": {"kind": "LowRank", "rank": 1}, "in_shape": None, "out_shape": None}


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model with tensorized layers to a file, wholly or not at all.

    The file is safetensors; JSON in its header says of each layer what it was made with: format,
    shapes, ranks, the plan of its calls (of torch's other modules, only the numbers of their state
    are kept). Tensors that are one are written once, complex ones as pairs of real numbers.
    Cost: the bytes of all parameters and buffers, written and read once for the checksum.
    Raises: FileFormatError for what JSON cannot hold: extra state, initial values by functions;
    OSError where the system does.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"tnc.save got a {type(model).__name__}", fix="give a torch.nn.Module")
    layers = find_layers(model)
    numbers = {layer: number for number, layer in enumerate(layers)}
    structure = structure_data(model, numbers)
    state, tensors, complex_ones = _state(model)
    content = {
        "version": package_version("tncompiler"),
        "model": structure if isinstance(structure, dict) else {"needs": structure},
        "layers": [_described(layer, names, layers) for layer, names in layers.items()],
        "parameters": [_parameter_data(*each) for each in network_weights(model)],
        "state": state,
        "complex": complex_ones,
    }
    write(Path(path), content, tensors)


def _described(layer: Layer, names: list[str], layers: Mapping[Layer, list[str]]) -> dict[str, Any]:
    """A layer, the names where it hangs, and whose cores it shares."""
    data = {**layer_data(layer), "names": names, "plan": None, "tied": None}
    if not isinstance(layer, Tensorized):
        return data
    data["plan"] = _plan_data(layer)
    others = [other for other in layers if isinstance(other, Tensorized)]
    owner = next(other for other in others if _holds(other, layer) and not _is_turned(other))
    if owner is not layer:
        data["tied"] = layers[owner][0]
        data["arguments"].update(_STAND_IN)
    return data


def _holds(layer: Tensorized, other: Tensorized) -> bool:
    """Whether two layers share their cores."""
    mine, theirs = (
        [
            id(source_of(*owner_of(each.cores, leaf.name)))
            for leaf in each._network.leaves
            if leaf.kind == "param"
        ]
        for each in (layer, other)
    )
    return mine == theirs


def _is_turned(layer: Tensorized) -> bool:
    """Whether the layer is the transposed use of another's weight, so that it cannot come first."""
    return layer.flipped != type(layer).flipped


def _plan_data(layer: Tensorized) -> Any:
    """The order in which a call contracts, at a batch of 128: for whoever reads the file."""
    try:
        plan = json.loads(layer.cores.plan().to_json())
    except TncError:  # a program that is no network
        return None
    networks = [{key: n[key] for key in ("name", "tensors", "pairs")} for n in plan["networks"]]
    return {"digest": plan["digest"], "sizes": plan["sizes"], "networks": networks}


def _parameter_data(name: str, module: nn.Module, key: str, network: Any) -> dict[str, Any]:
    shapes = (network.in_shape, network.out_shape)
    return {
        "name": name,
        "shape": network.shape,
        "format": format_data(network.format, *shapes),
        "in_shape": network.in_shape,
        "out_shape": network.out_shape,
    }


def _state(model: nn.Module) -> tuple[dict[str, str], dict[str, Tensor], dict[str, str]]:
    """Names of the state → names in the file, the tensors there, and which are complex."""
    state: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    complex_ones: dict[str, str] = {}
    known: dict[Any, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise FileFormatError(
                f"the state {name!r} is a {type(tensor).__name__}, not a tensor",
                fix="save models without extra state",
            )
        if tensor.is_meta:
            raise FileFormatError(f"{name!r} is on the meta device", fix="load its numbers first")
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        key = place if tensor.numel() else id(tensor)
        state[name] = known.setdefault(key, name)
        if state[name] != name:
            continue
        plain = tensor.detach().resolve_conj().resolve_neg()
        if plain.is_complex():
            complex_ones[name], plain = str(plain.dtype), torch.view_as_real(plain)
        tensors[name] = plain.contiguous().clone()
    return state, tensors, complex_ones
