"""What a warp does together with small matrices: mma, ldmatrix, stmatrix, and shuffles.

A lane has a few elements of each matrix. In all of them lane l stands at row (or column, of B)
l / 4, and its registers hold elements of the columns from l % 4 on, two of 16 bits in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx.registers import LANES, Array

LANE = np.arange(LANES)
GROUP, PLACE = LANE // 4, LANE % 4


@dataclass(frozen=True, slots=True)
class Product:
    """m x k times k x 8; ``operand`` and ``total`` are types, ``packed`` numbers a register."""

    m: int
    k: int
    operand: str
    total: str
    packed: int = 1

    @property
    def registers(self) -> tuple[int, int, int]:
        """How many each of A, B and C has."""
        return (self.m * self.k // LANES // self.packed, self.k // 4 // self.packed, self.m // 4)


PRODUCTS = {
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": Product(16, 16, "f16x2", "f32", 2),
    "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32": Product(16, 8, "f16x2", "f32", 2),
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": Product(16, 16, "bf16x2", "f32", 2),
    "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32": Product(16, 8, "bf16x2", "f32", 2),
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": Product(16, 8, "b32", "f32"),
    "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32": Product(16, 4, "b32", "f32"),
    "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64": Product(8, 4, "f64", "f64"),
    "mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64": Product(16, 4, "f64", "f64"),
    "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64": Product(16, 8, "f64", "f64"),
    "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64": Product(16, 16, "f64", "f64"),
}


def multiply(shape: Product, a: Sequence[Array], b: Sequence[Array], c: Sequence[Array]) -> Any:
    """The registers of A B + C, summed in double precision and rounded once."""
    left, right = np.empty((shape.m, shape.k)), np.empty((shape.k, 8))
    blocks = max(shape.m // 8, 1)
    for n, register in enumerate(a):
        for e, numbers in enumerate(_unpacked(shape, register)):
            left[GROUP + 8 * (n % blocks), _along(shape, n // blocks, e)] = numbers
    for n, register in enumerate(b):
        for e, numbers in enumerate(_unpacked(shape, register)):
            right[_along(shape, n, e), GROUP] = numbers
    made = left @ right
    return [
        (made[GROUP + 8 * (n // 2), 2 * PLACE + n % 2] + total).astype(total.dtype)
        for n, total in enumerate(c)
    ]


def _along(shape: Product, block: int, element: int) -> Array:
    return shape.packed * (PLACE + 4 * block) + element


def _unpacked(shape: Product, register: Array) -> list[Array]:
    if shape.operand == "b32":  # tf32: the last 13 bits are not looked at
        register = (register & np.uint32(0xFFFFE000)).view(np.float32)
    pairs = register.reshape(LANES, shape.packed).astype(np.float64)
    return [pairs[:, e] for e in range(shape.packed)]


def lane_of_row(matrix: int) -> Array:
    """For each lane: which one has the address of the row that it takes part in."""
    return 8 * matrix + GROUP


def transposed(rows: Array) -> Array:
    """An 8 x 8 matrix, two numbers a lane, as its transpose."""
    halves = rows.view(np.uint16).reshape(8, 8)
    return np.ascontiguousarray(halves.T).reshape(-1).view(np.uint32)


def shuffled(mode: str, values: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """What each lane gets from another one, and whether that lane is in its segment."""
    b, c = b.astype(np.int64) & 31, c.astype(np.int64)
    clamp, segment = c & 31, c >> 8 & 31
    last = LANE & segment | clamp & ~segment
    match mode:
        case "bfly":
            source = LANE ^ b
        case "idx":
            source = LANE & segment | b & ~segment
        case "up":
            source = LANE - b
        case _:
            source = LANE + b
    inside = source >= last if mode == "up" else source <= last
    source = np.where(inside, source, LANE)
    return values[source], inside
