"""Networks for the tests of pictures and pages."""

from __future__ import annotations

from typing import Any

import tncompiler as tnc

B, I1, I2, O1, O2, R = tnc.indices("b i1 i2 o1 o2 r", i1=28, i2=28, o1=16, o2=16, r=8)
LAYER = tnc.relu(
    tnc.contract(
        tnc.input("x", B, I1, I2),
        tnc.param("G1", I1, O1, R),
        tnc.param("G2", R, I2, O2),
        out=(B, O1, O2),
    )
    + tnc.param("bias", O1, O2)
)
CP = tnc.contract(
    tnc.param("A", I1, R), tnc.param("B", I2, R), tnc.param("C", O1, R), out=(I1, I2, O1)
)


def chain(count: int) -> Any:
    """A matrix product state of so many tensors, its physical indices contracted with vectors."""
    bonds = [tnc.Index(f"r{k}", 3) for k in range(1, count)]
    tensors = []
    for k in range(count):
        own = [*bonds[max(k - 1, 0) : k], *bonds[k : k + 1]]
        tensors.append(tnc.param(f"A{k}", *own))
    return tnc.contract(*tensors, out=())


def lattice(rows: int, columns: int) -> Any:
    """Tensors of a rectangle, a bond between neighbours, an open leg on each."""
    bonds: dict[tuple[int, int, int, int], Any] = {}
    legs = []
    tensors = []
    for row in range(rows):
        for column in range(columns):
            own = []
            for a, c in (
                (row - 1, column),
                (row, column - 1),
                (row + 1, column),
                (row, column + 1),
            ):
                if 0 <= a < rows and 0 <= c < columns:
                    low, high = sorted([(row, column), (a, c)])
                    own.append(bonds.setdefault((*low, *high), tnc.Index(f"v{len(bonds)}", 2)))
            legs.append(tnc.Index(f"p{row}{column}", 2))
            tensors.append(tnc.param(f"T{row}{column}", *own, legs[-1]))
    return tnc.contract(*tensors, out=tuple(legs))


def hostile() -> Any:
    """Index names that would be markup, script or a way out of either."""
    names = ["<img src=x onerror=alert(1)>", "</script><b>", "a'b\"; alert(1)//"]
    i, j, k = (tnc.Index(name, 3) for name in names)
    return tnc.relu(tnc.contract(tnc.input("x", i, j), tnc.param("W", j, k), out=(i, k)))
