"""Shared memory, as the warps of a block see it: accesses that race are errors.

Between two barriers a warp may neither read nor write what another one writes there. To write the
value that a place already has does no harm, and kernels do so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ptx.memory import Memory
from tests.ptx.registers import Array, Mask
from tests.ptx.text import PtxError


class Block:
    """The bytes that a block shares, and since the last barrier a bit for each warp that
    read or wrote them.
    """

    def __init__(self, size: int) -> None:
        self.data = np.full(size, 255, np.uint8)
        self.readers, self.writers = np.zeros((2, size), np.uint32)

    def pass_barrier(self) -> None:
        self.readers[:] = 0
        self.writers[:] = 0


class SharedMemory(Memory):
    """One warp's accesses, from address 0 on; ``forbids`` those that race."""

    def __init__(self, block: Block, warp: int, *, forbids: bool = True) -> None:
        super().__init__()
        self.add("shared memory", block.data, base=0)
        self.block, self.warp, self.forbids = block, warp, forbids
        self.own = np.uint32(1 << warp)

    def load(self, addresses: Array, dtype: np.dtype[Any], lanes: Mask) -> Array:
        values = super().load(addresses, dtype, lanes)
        places = _bytes_of(addresses, dtype.itemsize, lanes)
        writers = self.block.writers[places]
        self._forbid("reads", places, (writers != 0) & (writers & self.own == 0), writers)
        self.block.readers[places] |= self.own
        return values

    def store(self, addresses: Array, values: Array, lanes: Mask) -> None:
        super().check(addresses, values.itemsize, lanes)
        places = _bytes_of(addresses, values.itemsize, lanes)
        before = self.block.data[places]
        super().store(addresses, values, lanes)
        changed = self.block.data[places] != before
        others = (self.block.readers[places] | self.block.writers[places]) & ~self.own
        self._forbid("writes", places, changed & (others != 0), others)
        self.block.writers[places] |= self.own

    def _forbid(self, does: str, places: Array, wrong: Array, others: Array) -> None:
        if self.forbids and wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            other = int(others.flat[k]).bit_length() - 1
            raise PtxError(
                f"warp {self.warp} {does} byte {int(places.flat[k])} of shared memory, which warp "
                f"{other} accesses, and there is no barrier between them"
            )


def _bytes_of(addresses: Array, size: int, lanes: Mask) -> Array:
    taken = addresses if lanes is None else addresses[lanes]
    return (taken[:, None] + np.arange(size, dtype=np.uint64)).astype(np.int64)
