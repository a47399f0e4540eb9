"""Memory in which every access is checked: inside an array, and aligned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx.registers import LANES, Array, Mask
from tests.ptx.text import PtxError


@dataclass(frozen=True, slots=True)
class Region:
    """The bytes of one array, from an address on."""

    name: str
    base: int
    data: Array


class Memory:
    """Arrays at their addresses; loads and stores take one number a lane."""

    def __init__(self) -> None:
        self.regions: list[Region] = []

    def add(self, name: str, array: Array, base: int | None = None) -> int:
        """Make an array (not a copy of it) accessible; returns its address."""
        if not array.flags.c_contiguous:
            raise PtxError(f"{name} does not lie in the order of its axes")
        base = array.ctypes.data if base is None else base
        self.regions.append(Region(name, base, array.reshape(-1).view(np.uint8)))
        return base

    def load(self, addresses: Array, dtype: np.dtype[Any], lanes: Mask) -> Array:
        """Numbers of an unsigned type; zeros in lanes that take no part."""
        values = np.zeros(LANES, dtype)
        for region, where, places in self._found(addresses, dtype.itemsize, lanes):
            values[where] = _view(region, dtype)[places]
        return values

    def store(self, addresses: Array, values: Array, lanes: Mask) -> None:
        for region, where, places in self._found(addresses, values.itemsize, lanes):
            _view(region, values.dtype)[places] = values[where]

    def check(self, addresses: Array, size: int, lanes: Mask) -> None:
        """That so many bytes could be read."""
        for _ in self._found(addresses, size, lanes):
            pass

    def _found(
        self, addresses: Array, size: int, lanes: Mask
    ) -> Iterator[tuple[Region, Array, Array]]:
        """Which lanes access which region, and at which of its numbers of that size."""
        left = np.arange(LANES) if lanes is None else np.flatnonzero(lanes)
        if (addresses[left] % size).any():
            wrong = addresses[left][addresses[left] % size != 0]
            raise PtxError(f"address {int(wrong[0]):#x} is no multiple of {size} bytes")
        for region in self.regions:
            if not len(left):
                return
            offsets = addresses[left] - np.uint64(region.base)  # below the base: huge
            inside = offsets + np.uint64(size) - np.uint64(1) < region.data.size
            inside &= offsets < region.data.size
            if inside.any():
                yield region, left[inside], offsets[inside] // np.uint64(size)
                left = left[~inside]
        if len(left):
            raise PtxError(self._outside(int(addresses[left[0]]), int(left[0])))

    def _outside(self, address: int, lane: int) -> str:
        """What is wrong with an address, and the array that is nearest to it."""

        def distance(region: Region) -> int:
            return max(region.base - address, address - region.base - region.data.size)

        if not self.regions:
            return f"lane {lane} accesses address {address:#x}, and there is no array"
        near = min(self.regions, key=distance)
        where = f"{near.name} has bytes 0 to {near.data.size - 1}"
        return (
            f"lane {lane} accesses address {address:#x}, outside every array: "
            f"byte {address - near.base} of {near.name}, where {where}"
        )


def _view(region: Region, dtype: np.dtype[Any]) -> Array:
    return region.data[: region.data.size // dtype.itemsize * dtype.itemsize].view(dtype)
