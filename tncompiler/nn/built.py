"""Dense weights that layers build of their cores: kept in evaluation, used where that is faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tncompiler.autograd import watched
from tncompiler.kept import KeptValues
from tncompiler.planning.keeping import LARGEST_KEPT
from tncompiler.planning.machine import as_machine
from tncompiler.tensor_marks import MARKS, can_keep, is_gathered

_REMEMBERED = 256  # combinations of sizes


class Built:
    """The built weights of one layer. Copies of a layer build their own."""

    def __init__(self) -> None:
        self._kept = KeptValues(MARKS)
        self._ways: dict[Hashable, bool] = {}

    def __reduce__(self) -> Any:
        return (Built, ())

    def drop(self) -> None:
        """Forget what is kept."""
        self._kept.drop()

    def weights(self, layer: Any, make: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """What `make` makes of a layer's cores; in evaluation kept until one of them changes."""
        held = layer.held_cores()
        return self.kept(held, make) if keeps(layer, held) else make()

    def kept(
        self, held: Sequence[Tensor], make: Callable[[], Sequence[Tensor]]
    ) -> Sequence[Tensor]:
        """What `make` made of these cores, or makes of them now."""

        def once() -> tuple[Tensor, ...]:
            with torch.inference_mode(False), torch.no_grad():
                return tuple(make())

        return self._kept.get(held, "weights", once)

    def wins(
        self, key: Hashable, whole_us: Callable[[], float], cores_us: Callable[[], float]
    ) -> bool:
        """Whether built weights are predicted to be faster; asked once for each key."""
        if key not in self._ways:
            if len(self._ways) >= _REMEMBERED:
                self._ways.clear()
            self._ways[key] = whole_us() <= cores_us()
        return self._ways[key]


def keeps(layer: nn.Module, held: Sequence[Tensor]) -> bool:
    """Whether a call now may keep what a layer's cores make: in evaluation, where nobody asks for
    gradients, and changes of all cores show."""
    if layer.training or any(map(is_gathered, layer.modules())):
        return False
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in held):
        return False
    return can_keep(held, ()) and not watched(held)


def keeping_cores(layer: Any, x: Tensor) -> list[Tensor] | None:
    """The cores of a layer of one weight, if this call may multiply by what is kept of them.

    None where a backend was named, or torch looks inside or casts: there the program runs.
    """
    if layer.training or layer.implementation == "factorized" or layer.backend != "auto":
        return None
    if x.device.type != "cpu" or watched((x,)) or torch.is_autocast_enabled("cpu"):
        return None
    held: list[Tensor] = layer.held_cores()
    if any(core.dtype != x.dtype for core in held):
        return None
    if math.prod(layer.table_shape) * x.itemsize > LARGEST_KEPT:
        return None
    return held if keeps(layer, held) else None


def product_us(part: Any, rows: int, batch: int = 1) -> float:
    """Predicted microseconds of rows times a layer's dense weight, in groups of equal size."""
    rates = as_machine(part.cores.compilation.options.machine).cpu.libraries["torch"]
    inputs, outputs = part.table_shape
    dtype = part.cores.compute_dtype
    return rates.step_us + rates.product_us(batch, rows, outputs // batch, inputs, dtype)


def table_us(part: Any) -> float:
    """Predicted microseconds of building a layer's dense weight."""
    us: float = part._table.prepare(part._core_dtype()).predicted_us()
    return us
