"""What flows through a bond: an intermediate pinned in the plan, and its values for a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tncompiler.api import compile as compile_network
from tncompiler.formats.bonds import NetworkBond
from tncompiler.interpret.contraction import Contraction
from tncompiler.interpret.layers import check_layer, feed_of, sites_of
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.errors import ArgumentError, PlanError
from tncompiler.ir.expressions import Leaf, walk
from tncompiler.nn.tensorized import Tensorized


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """What a bond carried for a batch.

    ``values``: (batch, …, channels), the bond last; what else is open where the bond is stands
    between, by the names in ``axes`` (no other one, where the bond cuts inputs from outputs).
    ``cores``: those that the data has met. ``output``: the layer's output, made of these values.
    """

    bond: str
    axes: tuple[str, ...]
    cores: tuple[str, ...]
    values: Tensor
    output: Tensor

    @property
    def channels(self) -> Tensor:
        """How strongly each example uses each channel, (batch, channels): the norm over the rest;
        where there is no rest, the values themselves, sign included."""
        if self.values.ndim == 2:
            return self.values
        norms: Tensor = torch.linalg.vector_norm(self.values.flatten(1, -2), dim=1)
        return norms


class Pinned(nn.Module):
    """A layer that runs by way of one intermediate and shows it.

    ``program``: the compiled network with two outputs, the layer's and the intermediate, whose plan
    makes the first out of the second (`pinned.program.explain()`). Parameters are the layer's own.
    """

    def __init__(self, layer: Tensorized, bond: NetworkBond, before: Sequence[str] | None) -> None:
        super().__init__()
        self.layer, self.bond = layer, bond.name
        sites = sites_of(layer)
        self._feed = feed_of(layer, sites)
        contraction = Contraction.of(self._feed, sites)
        chosen = _chosen(contraction, bond, before)
        self.cores = tuple(dict.fromkeys(sites.tensors[site] for site in chosen))
        whole, part, self.axes = contraction.cut(chosen, bond)
        self.program, self._names = compiled((whole, part), layer)

    def forward(self, *inputs: Any) -> Activations:
        """The activations for what the layer is called with."""
        tensors = self._feed.tensors({}, inputs)
        y, values = self.program(*(tensors[name] for name in self._names))
        output = self._feed.result(y, inputs)
        return Activations(self.bond, self.axes, self.cores, values, output)


def compiled(outputs: Any, layer: Tensorized, options: Any = None) -> tuple[Any, list[str]]:
    """Expressions of inputs as a compiled network of the layer's dtype, and the inputs' names."""
    each = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = dict.fromkeys(node.name for node in walk(*each) if isinstance(node, Leaf))
    backend = "auto" if layer.backend == "triton" else layer.backend
    dtype = dtype_name(layer._core_dtype())
    made = compile_network(outputs, inputs=[*leaves], backend=backend, dtype=dtype, plan=options)
    return made, [*leaves]


def _chosen(
    contraction: Contraction, bond: NetworkBond, before: Sequence[str] | None
) -> tuple[int, ...]:
    if before is None:
        return contraction.smallest_before(bond)
    sites = contraction.sites_named(before)
    if not contraction.shows(bond, sites):
        raise PlanError(
            f"bond {bond.name!r} is not open between {', '.join(before) or 'no core'} and the rest",
            where=str(contraction.network.network),
            fix=f"name some, but not all, of {', '.join(bond.cores)}",
        )
    return sites


def pin(layer: Any, bond: str, *, before: Sequence[str] | None = None) -> Pinned:
    """The layer as a module that runs by way of the bond's intermediate, call by call.

    ``before``: the cores that the data meets first. By default those that leave the smallest
    intermediate in which the bond is open: for a bond that cuts inputs from outputs (batch,
    channels).
    Cost: the layer's, with one product fixed in its plan.
    Raises: UnknownIndex for bonds and cores that there are not, which lists those that there are;
    PlanError where the bond is not open there.
    """
    return Pinned(check_layer(layer), sites_of(layer).bond(bond), before)


def capture(
    layer: Any, bond: str, *inputs: Any, before: Sequence[str] | None = None
) -> Activations:
    """The activations of a bond for what the layer is called with; see `pin`."""
    seen: Activations = pin(layer, bond, before=before)(*inputs)
    return seen


def capture_in(model: nn.Module, bonds: Mapping[str, str], *inputs: Any) -> dict[str, Activations]:
    """The activations of bonds all over a model in one call of it.

    ``bonds``: from names of layers (as `model.named_modules()` has them) to a bond of each. A layer
    that is called several times shows its last call.
    """
    layers = dict(model.named_modules())
    for name in bonds:
        if name not in layers:
            known = [key for key, module in layers.items() if isinstance(module, Tensorized)]
            raise ArgumentError(
                f"the model has no module {name!r:.60}",
                fix=f"name some of {', '.join(known[:8]) or 'none: nothing is tensorized'}",
            )
    found: dict[str, Activations] = {}
    pins = {name: pin(layers[name], bond) for name, bond in bonds.items()}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            found[name] = pins[name](*args)

        return layers[name].register_forward_pre_hook(hook)

    handles = [watch(name) for name in bonds]
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name in bonds if name not in found]
    if silent:
        raise ArgumentError(
            f"the model did not call {', '.join(silent)}",
            fix="name layers that it calls: some read only the weights of their parts",
        )
    return found
