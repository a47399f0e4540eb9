"""What an action is: the warp that it works on, and what actions of every sort have in common."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.ptx.memory import Memory
from tests.ptx.registers import Array, Mask, Read, Registers, reader
from tests.ptx.text import Instruction, Kernel, PtxError

LOCAL_BYTES = 1024  # of a lane
Copy = tuple[Array, list[Array], Mask]  # addresses in shared memory, words, lanes


@dataclass(slots=True)
class Warp:
    """Registers, memories, and copies under way: of each group, and of the one not committed."""

    registers: Registers
    spaces: dict[str, Memory]
    parameters: dict[str, int]
    groups: list[list[Copy]] = field(default_factory=list)
    open_group: list[Copy] = field(default_factory=list)


class Barrier:
    """Go on when all warps are here."""


Next = Array | type[Barrier] | None  # positions of the lanes that jump
Action = Callable[[Warp, Mask], Next]
Maker = Callable[[Kernel, Instruction, "re.Match[str]"], Action]


def listed(operand: str) -> list[str]:
    """The names in braces, or the one name."""
    return [name.strip() for name in operand.strip("{} ").split(",")]


_ADDRESS = re.compile(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]")


def address_of(kernel: Kernel, operand: str) -> Read:
    """The address of each lane; one of 32 bits wraps, as a register below what is added may."""
    found = _ADDRESS.fullmatch(operand)
    if found is None:
        raise PtxError(f"{operand!r} is no address")
    offset = np.uint64(int(found[2] or "0", 0) & (2**64 - 1))
    bits = 32 if found[1].startswith(("%r", "global_smem")) and found[1][2:3] != "d" else 64
    read = reader(kernel, found[1], f"u{bits}")
    mask = np.uint64(2**bits - 1)
    return lambda registers: (read(registers).astype(np.uint64) + offset) & mask


def check_vector(addresses: Array, size: int, lanes: Mask) -> None:
    """The whole of a vector is aligned, not only its parts."""
    wrong = addresses % np.uint64(size) != 0
    if (wrong if lanes is None else wrong & lanes).any():
        raise PtxError(f"an address is no multiple of the {size} bytes that are accessed")


def check_together(lanes: Mask, instruction: Instruction) -> None:
    if lanes is not None:
        raise PtxError(f"only lanes {np.flatnonzero(lanes).tolist()} are at {instruction}")
