"""What a layer was made with, read back from it: layers keep arguments under their names."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

_PLACES = ("device", "dtype")  # where and in what a layer is, not what it is


def arguments_of(layer: nn.Module) -> dict[str, Any]:
    """The arguments that make a module like this one, with numbers of its own, on any device.

    A tensor (a bias) stands for whether there is one; what the layer does not keep is the default.
    """
    found = {}
    for name, parameter in signature(type(layer).__init__).parameters.items():
        rest = parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if name == "self" or name in _PLACES or rest:
            continue
        value = getattr(layer, name, parameter.default)
        if name == "bias" and not isinstance(value, bool):
            value = isinstance(value, Tensor)
        found[name] = value
    return found
