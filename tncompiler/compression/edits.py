"""What becomes of a core, and of what an optimizer keeps for it, when a bond is resized."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tncompiler.formats.joints import Joint

Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Edit:
    """A core after a change.

    ``value``: its new numbers. ``first``: how a gradient, or a mean of gradients, of the old core
    becomes one of the new core; ``second`` the same for means of squares.
    """

    value: Tensor
    first: Turn
    second: Turn


def grow(
    cores: Mapping[str, Tensor], joint: Joint, to: int, generator: torch.Generator
) -> dict[str, Edit]:
    """Cores with a bond of a larger size, whose network is what it was.

    At one end of the bond new channels are zero, at the others they are random, as large as what
    is there: so the value stays, and channels that are new get gradients that differ.
    """
    zeros = joint.zeros()
    edits = {}
    for name, axes in joint.axes.items():
        empty = [axis for axis in axes if (name, axis) in zeros]
        edits[name] = Edit(
            _extended(cores[name], axes, empty, to, generator),
            _padding(axes, to, lambda tensor: 0.0),
            # the mean of what is known: a new channel's first steps are then not the largest
            _padding(axes, to, lambda tensor: tensor.mean().item()),
        )
    return edits


def _extended(
    core: Tensor,
    axes: tuple[int, ...],
    empty: list[int],
    to: int,
    generator: torch.Generator,
) -> Tensor:
    """The core with random channels along some axes, and none along those that are to be empty."""
    wide = torch.complex128 if core.is_complex() else torch.float64
    drawn = torch.randn(_shape(core, axes, to), dtype=wide, generator=generator)
    scale = float(core.abs().double().square().mean().sqrt()) or math.prod(core.shape) ** -0.5
    new = (drawn * scale).to(core)
    for axis in empty:
        new.narrow(axis, core.shape[axis], to - core.shape[axis]).zero_()
    new[_corner(core)] = core
    return new


def _padding(axes: tuple[int, ...], to: int, fill: Callable[[Tensor], Any]) -> Turn:
    def pad(tensor: Tensor) -> Tensor:
        new = tensor.new_full(_shape(tensor, axes, to), fill(tensor))
        new[_corner(tensor)] = tensor
        return new

    return pad


def _shape(tensor: Tensor, axes: tuple[int, ...], to: int) -> list[int]:
    return [to if axis in axes else size for axis, size in enumerate(tensor.shape)]


def _corner(tensor: Tensor) -> tuple[slice, ...]:
    return tuple(slice(size) for size in tensor.shape)
