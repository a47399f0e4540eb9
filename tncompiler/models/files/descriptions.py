"""Formats, layers and plain modules as JSON data and back. Names are looked up, nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

import tncompiler.nn
from tncompiler import formats
from tncompiler.formats.custom import Custom
from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.errors import FileFormatError
from tncompiler.ir.serialize import from_data, to_data
from tncompiler.models.arguments import arguments_of
from tncompiler.models.layers import Layer
from tncompiler.models.storage import restore_storage, storage_data
from tncompiler.nn import LAYERS
from tncompiler.nn.tensorized import Tensorized

# torch modules that `tnc.load(None, path)` makes anew: containers, and those that need only numbers
CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")
PLAIN = (
    *("Identity", "Dropout", "Flatten", "Softmax", "LogSoftmax"),
    *("ReLU", "GELU", "SiLU", "Tanh", "Sigmoid", "LeakyReLU", "ELU", "Softplus"),
    *("Linear", "Embedding", "LayerNorm", "Conv1d", "Conv2d", "Conv3d"),
    *("BatchNorm1d", "BatchNorm2d", "MaxPool1d", "MaxPool2d", "AvgPool1d", "AvgPool2d"),
)


# ---------------------------------------------------------------------------- formats


def format_data(format: Format, in_shape: Any, out_shape: Any) -> dict[str, Any]:
    """A format as data; a user's own network as its expression at these modes."""
    if isinstance(format, Custom):
        modes = Modes.of(in_shape, out_shape)
        expression = to_data((format.network(modes.ins, modes.outs),))
        return {"kind": "Custom", "expression": expression}
    held = {field.name: _plain(getattr(format, field.name)) for field in fields(format)}
    return {"kind": type(format).__name__, **held}


def read_format(data: Mapping[str, Any]) -> Format:
    """A format of data. Raises FileFormatError for an unknown one."""
    kind = data["kind"]
    if kind not in formats.FORMATS:
        raise FileFormatError(
            f"there is no format {kind!r:.40}", fix="read it with a later version"
        )
    cls = getattr(formats, kind)
    if cls is Custom:
        (expression,) = from_data(data["expression"])
        return Custom(expression)
    known = {field.name for field in fields(cls)}
    given = {name: _tuples(value) for name, value in data.items() if name in known}
    return cls(**given)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------- layers


def layer_data(layer: Layer) -> dict[str, Any]:
    """What makes a layer like this one."""
    kind = type(layer).__name__
    if LAYERS.get(kind) != type(layer).__module__:
        raise FileFormatError(
            f"{kind} is no layer of tnc.nn", fix="save its state_dict with safetensors"
        )
    arguments = arguments_of(layer)
    arguments["format"] = _format_of(layer)
    return {
        "kind": kind,
        "dtype": dtype_name(layer._core_dtype()),
        "training": layer.training,
        "frozen": [name for name, p in layer.named_parameters() if not p.requires_grad],
        "arguments": {name: _plain(value) for name, value in arguments.items()},
        "storage": storage_data(layer),
    }


def _format_of(layer: Layer) -> dict[str, Any]:
    """The format of a layer; of several weights, that of each."""
    if isinstance(layer, Tensorized):
        return format_data(layer.format, layer.in_shape, layer.out_shape)
    parts = layer.parts().items()
    return {"parts": {name: _format_of(part) for name, part in parts}}


def read_layer(data: Mapping[str, Any], device: torch.device | None) -> Layer:
    """A layer of data, with numbers of its own."""
    if data["kind"] not in LAYERS:
        raise FileFormatError(f"there is no layer {data['kind']!r:.40}", fix="use a later version")
    given = {name: _tuples(value) for name, value in data["arguments"].items()}
    form = data["arguments"]["format"]
    parts = form.get("parts", {})
    given["format"] = {name: read_format(each) for name, each in parts.items()} or read_format(form)
    cls = getattr(tncompiler.nn, data["kind"])
    layer: Layer = cls(**given, device=device, dtype=_dtype(data["dtype"]))
    restore_storage(layer, data.get("storage", []))  # older files have none
    return layer.train(data["training"])


# ---------------------------------------------------------------------------- plain modules


def structure_data(module: Any, layers: Mapping[Any, int]) -> Any:
    """A module as data: a layer by its number, a container, a plain module; the name of its class
    in a list where it is none of these."""
    kind = parametrize.type_before_parametrizations(module).__name__
    if module in layers:
        return {"layer": layers[module]}
    torch_class = getattr(nn, kind, None) is type(module)
    if torch_class and kind in CONTAINERS:
        parts = {name: structure_data(part, layers) for name, part in module._modules.items()}
        missing = {name for part in parts.values() if isinstance(part, list) for name in part}
        return sorted(missing) if missing else {"container": kind, "parts": parts, **_mode(module)}
    if torch_class and kind in PLAIN:
        arguments = {name: _plain(value) for name, value in arguments_of(module).items()}
        dtype = next((dtype_name(p.dtype) for p in module.parameters()), None)
        return {"module": kind, "arguments": arguments, "dtype": dtype, **_mode(module)}
    return [kind]


def _mode(module: Any) -> dict[str, Any]:
    return {"training": module.training}


def read_structure(data: Any, layers: list[Layer]) -> nn.Module:
    """A module of data. Raises FileFormatError for classes that are not made anew."""
    module: nn.Module
    if "layer" in data:
        module = layers[data["layer"]]
        return module
    if "container" in data:
        module = getattr(nn, _known(data["container"], CONTAINERS))()
        for name, part in data["parts"].items():
            module.add_module(name, read_structure(part, layers))
    else:
        cls = getattr(nn, _known(data["module"], PLAIN))
        given = {name: _tuples(value) for name, value in data["arguments"].items()}
        module = cls(**given)
        if data["dtype"] is not None:
            module.to(_dtype(data["dtype"]))
    module.training = bool(data["training"])
    return module


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise FileFormatError(f"there is no module {name!r:.40}", fix="use a later version")
    return name


# ---------------------------------------------------------------------------- values


def _plain(value: Any) -> Any:
    """A value of an argument as JSON has it. Raises FileFormatError for what it cannot hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list | torch.Size):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise FileFormatError(
        f"a file cannot hold the argument {value!r:.60}", fix="use numbers, texts and tuples"
    )


def _tuples(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return value


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise FileFormatError(f"there is no dtype {name!r:.40}", fix="use a later version")
    return found
