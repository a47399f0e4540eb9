"""How the reference interpreter reads and adds at positions: on whole arrays, by coordinates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tncompiler.ir.errors import PositionError
from tncompiler.ir.gather_nodes import Gather, Scatter
from tncompiler.ir.index import Index

Move = Callable[[np.ndarray], np.ndarray]


def check_range(ids: np.ndarray, index: Index, size: int, origin: str) -> None:
    """Raises PositionError for a position that an index of a size does not have."""
    wrong = ids[(ids < 0) | (ids >= size)]
    if wrong.size:
        raise PositionError(
            f"the id {int(wrong.flat[0])} is no position of index {index.name!r} of size {size}",
            where=f"the expression at {origin}",
            fix=f"ids go from 0 to {size - 1}",
        )


def move_gather(node: Gather, ids: np.ndarray, shape: tuple[int, ...]) -> Move:
    """Reads an array of the source's shape at the ids, one coordinate array an axis."""
    out = [node.indices.index(i) for i in node.ids.indices]

    def read(source: np.ndarray) -> np.ndarray:
        check_range(ids, node.source.indices[node.axis], source.shape[node.axis], node.origin)
        grid = np.indices(shape, sparse=True)
        at = ids[tuple(grid[k] for k in out)]
        kept = [i for k, i in enumerate(node.source.indices) if k != node.axis]
        coordinates = [grid[node.indices.index(index)] for index in kept]
        return np.asarray(source[(*coordinates[: node.axis], at, *coordinates[node.axis :])])

    return read


def move_scatter(node: Scatter, ids: np.ndarray, shape: tuple[int, ...]) -> Move:
    """Adds an array of the source's shape at the ids, one coordinate array an axis, or compares."""
    check_range(ids, node.into, shape[node.axis], node.origin)

    def add(source: np.ndarray) -> np.ndarray:
        grid = np.indices(source.shape, sparse=True)
        at = ids[tuple(grid[node.source.indices.index(i)] for i in node.ids.indices)]
        kept = [i for k, i in enumerate(node.indices) if k != node.axis]
        coordinates = [grid[node.source.indices.index(index)] for index in kept]
        where = (*coordinates[: node.axis], at, *coordinates[node.axis :])
        total = np.zeros(shape, source.dtype)
        if node.function == "max":
            total[where] = source  # any of those that come there, to begin with
            np.maximum.at(total, where, source)
        else:
            np.add.at(total, where, source)
        return total

    return add
