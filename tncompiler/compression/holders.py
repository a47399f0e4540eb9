"""Where a model's networks are: layers of `tnc.nn` and parameters that are networks.

Those that share their cores are one holder, so that what is resized stays shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.expressions import Expr
from tncompiler.models.parameters import network_weights
from tncompiler.nn.parts import Composite
from tncompiler.nn.tensorized import Tensorized


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One place where cores are held: ``name`` in the model, the layer or network, and the modules
    that change with it (``chain`` holds the cores of a parameter that is a network)."""

    name: str
    weight: Any  # Tensorized or NetworkWeight
    chain: Any = None

    def cores(self) -> dict[str, nn.Parameter]:
        """The parameters by the names of the network's leaves."""
        if self.chain is None:
            return dict(zip(self.weight._table.parameters, self.weight.held_cores(), strict=True))
        names = enumerate(self.weight.core_shapes)
        return {name: self.chain._parameters[f"original{k}"] for k, name in names}

    def hold(self, format: Format, cores: Mapping[str, nn.Parameter]) -> None:
        """Hold other cores."""
        if self.chain is None:
            self.weight.resize(format, cores)
            return
        self.weight.describe(format)
        for k, name in enumerate(self.weight.core_shapes):
            self.chain._parameters[f"original{k}"] = cores[name]

    @property
    def modules(self) -> list[nn.Module]:
        """All that `hold` changes."""
        return [self.weight] if self.chain is None else [self.weight, self.chain]


@dataclass(frozen=True, slots=True, eq=False)
class Holder:
    """A weight that is a network: the places that share its cores, and the layers around them."""

    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        return self.places[0].name

    @property
    def format(self) -> Format:
        format: Format = self.places[0].weight.format
        return format

    @property
    def modes(self) -> Modes:
        weight = self.places[0].weight
        return Modes.of(weight.in_shape, weight.out_shape)

    @property
    def network(self) -> Expr:
        """The weight as an expression of its cores."""
        return self.format.network(self.modes.ins, self.modes.outs)

    def cores(self) -> dict[str, nn.Parameter]:
        return self.places[0].cores()


def holders_of(model: Any) -> list[Holder]:
    """All weights of a layer or model that are networks, in order.

    Raises ArgumentError for what is no module or holds none, and where two networks share some of
    their cores only.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"the layer or model is a {type(model).__name__}", fix="give a torch.nn.Module"
        )
    groups: dict[tuple[int, ...], list[Place]] = {}
    for place in _places(model):
        groups.setdefault(tuple(map(id, place.cores().values())), []).append(place)
    if not groups:
        raise ArgumentError(
            "nothing in it is tensorized", fix="give a layer of tnc.nn, or use tnc.tensorize_ first"
        )
    ids = [core for group in groups for core in set(group)]
    if len(set(ids)) < len(ids):
        raise ArgumentError(
            "two weights share some of their cores, but not all", fix="tie layers by layer.tie(…)"
        )
    return [Holder(tuple(places)) for places in groups.values()]


def _places(model: nn.Module) -> Iterator[Place]:
    for name, module in model.named_modules():
        if isinstance(module, Tensorized):
            yield Place(name, module)
    for name, module, key, network in network_weights(model):
        yield Place(name, network, module.parametrizations[key])  # type: ignore[index]


def wholes_of(model: nn.Module) -> list[Composite]:
    """Layers with several weights: they say which formats their parts have."""
    return [module for module in model.modules() if isinstance(module, Composite)]
