"""Parametrizations of torch on modules that are copied: what a parameter is made of goes along."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


def own_class(module: nn.Module) -> None:
    """Give a module with parametrizations a class of its own.

    torch puts properties on it, and a copied module has the class of the one that it was copied of:
    what is registered or removed on one would be so on the other.
    """
    cls = type(module)
    if parametrize.is_parametrized(module):
        module.__class__ = type(cls.__name__, cls.__bases__, dict(cls.__dict__))


def register(module: nn.Module, name: str, made: nn.Module) -> None:
    """Let a module make one of its parameters; its own class is not touched."""
    own_class(module)
    parametrize.register_parametrization(module, name, made, unsafe=True)


def unregister(module: nn.Module, name: str) -> None:
    """Make a parameter plain again, of the value that it has."""
    own_class(module)
    parametrize.remove_parametrizations(module, name)


def chain_of(module: nn.Module, name: str) -> Any:
    """What makes a parameter that is made: a list of modules that holds the tensors as well."""
    return module.parametrizations[name]  # type: ignore[index]


def copy_onto(source: nn.Module, target: nn.Module, name: str) -> None:
    """Make a parameter of `target` as `source` makes its own, of copies of the same tensors."""
    chain = chain_of(source, name)
    for made in chain:
        register(target, name, copy.deepcopy(made))
    copied = chain_of(target, name)
    copied.load_state_dict(chain.state_dict())
    for mine, theirs in zip(chain.parameters(), copied.parameters(), strict=True):
        theirs.requires_grad_(mine.requires_grad)


def source_of(module: nn.Module, name: str) -> Tensor:
    """The tensor that a module holds for a parameter or buffer: what it is made of, if it is."""
    if parametrize.is_parametrized(module, name):
        found: Tensor = next(chain_of(module, name).parameters())
        return found
    held: Tensor = getattr(module, name)
    return held
