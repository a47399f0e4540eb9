"""tnc.load: a file of tnc.save as the model that it was, or into one of the same architecture."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tncompiler.ir.errors import ArgumentError, FileFormatError, TncError
from tncompiler.models.arguments import arguments_of
from tncompiler.models.files.descriptions import read_format, read_layer, read_structure
from tncompiler.models.files.sealed import read
from tncompiler.models.kinds import KINDS, Kind
from tncompiler.models.layers import Layer
from tncompiler.models.parameters import NetworkWeight, register_network, remove_network
from tncompiler.models.swapping import all_or_nothing, put

_SHOWN = 4  # names in an error
_OWN = ("format", "in_shape", "out_shape", "implementation", "backend")  # what dense layers lack


def load(model: nn.Module | None, path: str | os.PathLike[str]) -> nn.Module:
    """The model of a file; into `model`, in place, where one is given.

    ``model``: one of the same architecture, dense or tensorized: layers that are networks in the
    file become so, and all parameters and buffers get the file's numbers. None makes the model
    anew, which takes layers of `tnc.nn`, containers and simple modules of torch.
    On an error the model is what it was. Outputs are bitwise those of the model that was saved, on
    the same machine and version.
    Raises: FileFormatError for files that were altered, cut off, of another schema, or of another
    model; ArgumentError where a model is needed.
    """
    path = Path(path)
    content, tensors = read(path)
    with _as_file_errors(path):
        state = _state(content, tensors)
        if model is None:
            return _rebuilt(content, state, path)
        if not isinstance(model, nn.Module):
            raise ArgumentError(
                f"tnc.load got a {type(model).__name__} to load into",
                fix="give a torch.nn.Module, or None",
            )
        _load_into(model, content, state)
    return model


@contextmanager
def _as_file_errors(path: Path) -> Iterator[None]:
    """Data of another form than it should be is an error of the file."""
    try:
        yield
    except (FileFormatError, ArgumentError) as error:
        raise type(error)(error.what, where=error.where or str(path), fix=error.fix) from None
    except TncError as error:
        raise FileFormatError(error.what, where=str(path), fix=error.fix) from None
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        RecursionError,
    ) as error:
        raise FileFormatError(
            f"the file does not hold what it should: {type(error).__name__} {str(error)[:80]}",
            where=str(path),
            fix="write it again with tnc.save",
        ) from None


def _state(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state by its own names; names of one tensor have the same object."""
    whole = {
        name: torch.view_as_complex(tensor) if name in content["complex"] else tensor
        for name, tensor in tensors.items()
    }
    return {name: whole[stored] for name, stored in content["state"].items()}


# ---------------------------------------------------------------------------- without a model


def _rebuilt(content: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> nn.Module:
    needs = content["model"].get("needs")
    if needs:
        raise ArgumentError(
            f"the file does not say how to make {', '.join(needs)}",
            where=str(path),
            fix="make the model as it was before it was tensorized, and give it to tnc.load",
        )
    layers = [read_layer(data, None) for data in content["layers"]]
    model = read_structure(content["model"], layers)
    _tie(content, layers)
    _share(model, content["state"])
    _fill(model, state)
    return model


def _tie(content: Mapping[str, Any], layers: list[Layer]) -> None:
    """Share the cores of layers that shared them, and freeze parameters that were frozen."""
    described = [*zip(content["layers"], layers, strict=True)]
    owners = {data["names"][0]: layer for data, layer in described}
    for data, layer in described:
        if data["tied"] is not None:
            layer.tie(owners[data["tied"]])  # type: ignore[operator]
    for data, layer in described:
        for name in data["frozen"]:
            layer.get_parameter(name).requires_grad_(False)


# ---------------------------------------------------------------------------- into a model


def _load_into(model: nn.Module, content: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    places = [[_module(modules, name) for name in data["names"]] for data in content["layers"]]
    layers = []
    for data, (module, *_) in zip(content["layers"], places, strict=True):
        layer = read_layer(data, _device(module)).train(module.training)
        _check_replaces(layer, module, data["names"][0])
        layers.append(layer)
    _tie(content, layers)
    with all_or_nothing([*modules.values()]):
        for data, layer in zip(content["layers"], layers, strict=True):
            _put(layer, data["names"], modules)
        for data in content["parameters"]:
            _register(modules, data)
        _share(model, content["state"])
        _fill(model, state)


def _module(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise FileFormatError(
            f"the file has a layer {name!r}, the model has none", fix="load it into its own model"
        )
    return modules[name]


def _device(module: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in module.parameters()), None)


def _put(layer: Layer, names: list[str], modules: Mapping[str, nn.Module]) -> None:
    """Put a layer at all its names; the model itself becomes it."""
    slots = [name.rpartition(".") for name in names if name]
    parents = [(modules[above], key) for above, _, key in slots]
    put(layer, modules[names[0]], parents)


def _check_replaces(layer: Layer, module: nn.Module, name: str) -> None:
    """Raises FileFormatError unless the layer stands for a module of this class and these sizes."""
    cls = f"{type(module).__module__}.{type(module).__qualname__}"
    same = type(module) is type(layer)
    kind = Kind(type(layer).__name__) if same else KINDS.get(cls)
    if kind is None or kind.layer != type(layer).__name__:
        raise FileFormatError(
            f"{name!r} is a {type(layer).__name__} in the file, and a {type(module).__name__} in "
            "the model",
            fix="load it into its own model",
        )
    dense = kind.dense(module)
    theirs = {key: value for key, value in arguments_of(dense).items() if hasattr(dense, key)}
    for key, value in arguments_of(layer).items():
        if key not in _OWN and theirs.get(key, value) != value:
            raise FileFormatError(
                f"{key} of {name!r} is {value!r:.40} in the file, and {theirs[key]!r:.40} in the "
                "model",
                fix="load it into its own model",
            )


def _register(modules: Mapping[str, nn.Module], data: Mapping[str, Any]) -> None:
    """Make a parameter of the model a network."""
    above, _, key = data["name"].rpartition(".")
    module = _module(modules, above)
    if parametrize.is_parametrized(module, key):
        remove_network(module, key)
    parameter = module._parameters.get(key)
    if parameter is None or list(parameter.shape) != data["shape"]:
        raise FileFormatError(
            f"the file has a parameter {data['name']!r} of shape {tuple(data['shape'])}, the model "
            "has none",
            fix="load it into its own model",
        )
    form, shapes = read_format(data["format"]), (data["in_shape"], data["out_shape"])
    network = NetworkWeight(tuple(data["shape"]), form, *map(tuple, shapes))
    zeros = {name: np.zeros(shape) for name, shape in network.core_shapes.items()}
    register_network(module, key, network.start(zeros))


# ---------------------------------------------------------------------------- numbers


def _share(model: nn.Module, state: Mapping[str, str]) -> None:
    """Make parameters one that were one tensor, as biases of layers may be with others."""
    modules = dict(model.named_modules(remove_duplicate=False))
    held = dict(model.named_parameters(remove_duplicate=False))
    for name, stored in state.items():
        mine, other = held.get(name), held.get(stored)
        if mine is not None and other is not None and mine.shape == other.shape:
            above, _, key = name.rpartition(".")
            modules[above]._parameters[key] = other


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state into a model that has exactly these tensors: all are checked before."""
    own = model.state_dict(keep_vars=True)
    for what, names in (("lacks", own.keys() - state), ("has", state.keys() - own)):
        if names:
            shown = ", ".join(map(repr, sorted(names)[:_SHOWN]))
            raise FileFormatError(
                f"the file {what} {len(names)} tensors that the model "
                f"{'has' if what == 'lacks' else 'lacks'}: {shown}",
                fix="load it into its own model",
            )
    held: dict[int, Tensor] = {}
    for name, tensor in own.items():
        new = state[name]
        if (tensor.shape, tensor.dtype) != (new.shape, new.dtype) or tensor.is_meta:
            raise FileFormatError(
                f"{name!r} is {_shown(new)} in the file, and {_shown(tensor)} in the model",
                fix="give the model the sizes, dtype and device that it had",
            )
        if held.setdefault(id(tensor), new) is not new and not torch.equal(held[id(tensor)], new):
            raise FileFormatError(
                f"{name!r} is tied in the model, but not in the file", fix="untie it first"
            )
    model.load_state_dict(dict(state))


def _shown(tensor: Tensor) -> str:
    place = " on meta" if tensor.is_meta else ""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{place}"
