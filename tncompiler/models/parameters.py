"""A parameter of any module as a network: one more parametrization of torch.

The module goes on reading its parameter, which is contracted from cores at each access; cores are
`parametrizations.NAME.original0`, … and `torch.nn.utils.parametrize.cached()` keeps it for a while.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.expressions import Expr
from tncompiler.nn.checks import check_shape
from tncompiler.nn.given import CoreReading
from tncompiler.nn.tensorized import decompose_weight
from tncompiler.parametrized import own_class, unregister


class NetworkWeight(nn.Module):
    """The network of a format as a parameter of some shape: its first axis counts as outputs."""

    def __init__(
        self,
        shape: tuple[int, ...],
        format: Format,
        in_shape: Any = None,
        out_shape: Any = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.table_shape = rows, columns = table_shape(self.shape)
        self.in_shape = check_shape(in_shape, rows, "in_shape", format)
        self.out_shape = check_shape(out_shape, columns, "out_shape", format)
        self._start: dict[str, np.ndarray] = {}
        for leaf in self.describe(format).leaves:
            if leaf.kind == "constant":
                self.register_buffer(_flat(leaf.name), torch.tensor(np.array(leaf.value)))

    def describe(self, format: Format) -> Expr:
        """Read cores as this format has them from now on; its network."""
        modes = Modes.of(self.in_shape, self.out_shape)
        network = format.network(modes.ins, modes.outs)
        self.format, self.reading = format, CoreReading(network, "auto")
        self.core_shapes = {
            leaf.name: leaf.shape for leaf in network.leaves if leaf.kind == "param"
        }
        return network

    def forward(self, *cores: Tensor) -> Tensor:
        """The parameter that the cores stand for."""
        rows, columns = self.table_shape
        held = dict(zip(self.core_shapes, cores, strict=True))
        leaves = [
            held[name] if name in held else self.get_buffer(_flat(name)).to(cores[0])
            for name in self.reading.leaves
        ]
        read: Tensor = self.reading(leaves)
        table = read.reshape(prod(self.in_shape), prod(self.out_shape))
        return table[:rows, :columns].t().reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Cores for a dense parameter: those that `start` gave, once, or the nearest there are."""
        cores, self._start = self._start, {}
        if not cores:
            shapes = (self.in_shape, self.out_shape)
            cores = decompose_weight(self.format, as_table(weight), *shapes, {}).cores
        tensors = (torch.from_numpy(cores[name].copy()) for name in self.core_shapes)
        return tuple(tensor.to(weight) for tensor in tensors)

    def start(self, cores: Mapping[str, np.ndarray]) -> NetworkWeight:
        """Use these cores when it is registered."""
        self._start = dict(cores)
        return self

    def extra_repr(self) -> str:
        return f"{self.shape}, format={self.format}"


def _flat(name: str) -> str:
    """A leaf's name without dots, which buffers must not have."""
    return "constant_" + name.replace(".", "__")


def table_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a parameter whose first axis is its outputs."""
    return prod(shape[1:]), shape[0]


def as_table(weight: Tensor) -> Tensor:
    """A parameter as (inputs, outputs)."""
    return weight.detach().reshape(len(weight), -1).t()


def register_network(module: nn.Module, key: str, network: NetworkWeight) -> None:
    """Make a parameter of a module a network."""
    own_class(module)
    parametrize.register_parametrization(module, key, network)


def remove_network(module: nn.Module, key: str) -> None:
    """Make a parameter that is a network a dense one, of the value that it has."""
    unregister(module, key)


def network_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, NetworkWeight]]:
    """All parameters that are networks: dotted name, module, attribute, and the network."""
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for key, chain in module.parametrizations.items():
            if isinstance(chain[0], NetworkWeight):
                yield f"{name}.{key}" if name else key, module, key, chain[0]
