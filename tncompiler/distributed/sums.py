"""What the blocks of a loop make together: added in ascending order, or joined along an axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tncompiler.backends.sums import RunningSum

Place = tuple[int, int, int]  # axis, first position, the one after the last

_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def added_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which parts are added up: at least single precision."""
    return _WIDER.get(dtype, dtype)


class Total:
    """One result of a loop on its way; it begins with zeros, which it takes over and changes.

    ``axis``: along which parts are joined; None where they are added, level by level, so that
    rounding grows with the logarithm of their number.
    """

    def __init__(self, zeros: Tensor, axis: int | None) -> None:
        self.axis, self.sum = axis, RunningSum(zeros)

    def add(self, part: Tensor, bounds: tuple[int, int] | None) -> None:
        """Add a part, or put it where it belongs. ``bounds`` None: it is all that there is."""
        whole = self.sum.levels[0]
        if self.axis is None or bounds is None:
            self.sum.add(part.to(whole.dtype))
        else:
            at(whole, ((self.axis, *bounds),)).copy_(part)

    def value(self) -> Tensor:
        """The whole; nothing can be added after it."""
        total: Tensor = self.sum.total
        return total

    def levels(self) -> list[Tensor]:
        """What `restored` goes on from; shares memory with the sum."""
        return self.sum.levels

    @staticmethod
    def restored(levels: Sequence[Tensor], counts: Sequence[int], axis: int | None) -> Total:
        """The sum as it was."""
        made = Total(levels[0], axis)
        made.sum.levels, made.sum.counts = list(levels), list(counts)
        return made


def at(whole: Any, places: Iterable[Place]) -> Any:
    """The part of an array at some places, as a view."""
    for axis, start, stop in places:
        whole = whole[(slice(None),) * axis + (slice(start, stop),)]
    return whole
