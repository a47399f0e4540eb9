"""The places of a model where weights are: found once, each with its names and its kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from tncompiler.models.kinds import Kind, closed_reason, kind_of, parameter_reason

Slot = tuple[nn.Module, str]  # a module and the name under which it holds another


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A module that holds a weight, or a parameter that no layer knows.

    ``names``: dotted names, the first one is shown (a shared module has several). ``slots``: where
    the module hangs; none for the model itself. ``kind``: what takes its place. ``reason``: why
    nothing does. ``parameter``: the attribute of ``module`` where the site is no module.
    """

    names: tuple[str, ...]
    module: nn.Module
    slots: tuple[Slot, ...] = ()
    kind: Kind | None = None
    reason: str | None = None
    parameter: str | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def shown(self) -> str:
        """The name as messages have it."""
        return repr(self.name) if self.name else "the model itself"

    @property
    def weight(self) -> nn.Parameter | None:
        """The one weight of the site; None where it has several."""
        name = "weight" if self.parameter is None else self.parameter
        return self.module._parameters.get(name)

    @property
    def weights(self) -> list[nn.Parameter]:
        """All parameters of two axes or more that the site stands for."""
        if self.parameter is not None:
            return [self.module._parameters[self.parameter]]  # type: ignore[list-item]
        return [p for p in self.module.parameters() if p.ndim > 1]


def find_sites(model: nn.Module) -> list[Site]:
    """All modules that have a kind or a reason, and parameters of other modules; in order."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in _open_modules(model):
        names.setdefault(module, []).append(name)
    by_name = {name: module for module, own in names.items() for name in own}
    sites: list[Site] = []
    for module, own in names.items():
        kind, reason = kind_of(module)
        if kind is not None or reason is not None:
            slots = {(id(by_name[above]), key): (by_name[above], key) for above, key in _split(own)}
            sites.append(Site(tuple(own), module, tuple(slots.values()), kind, reason))
        else:
            sites.extend(_parameters(module, own))
    return sites


def _open_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by all their names, without what is inside of those that become one layer."""
    closed: str | None = None
    for name, module in model.named_modules(remove_duplicate=False):
        if closed is not None and name.startswith(closed):
            continue
        yield name, module
        whole = closed_reason(module) is not None or kind_of(module) != (None, None)
        closed = (f"{name}." if name else "") if whole else None


def _split(names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if name:
            above, _, key = name.rpartition(".")
            yield above, key


def _parameters(module: nn.Module, names: list[str]) -> Iterator[Site]:
    """The matrices that a module of no kind holds itself, such as a fused projection."""
    for key, parameter in module._parameters.items():
        if parameter is None:
            continue
        reason = parameter_reason(parameter)
        if reason is None and parameter.ndim < 2:
            continue
        own = tuple(f"{name}.{key}" if name else key for name in names)
        yield Site(own, module, reason=reason, parameter=key)


def holders(model: nn.Module) -> dict[int, list[Slot]]:
    """Every module and attribute that holds a parameter, by the parameter's id."""
    found: dict[int, list[Slot]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((module, key))
    return found
