"""Random reads and sums at integer positions, for the networks of the fuzzers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

import tncompiler as tnc
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index

if TYPE_CHECKING:
    from tests.networks import _Item, _Maker


def _ids(make: _Maker, indices: Sequence[Index], size: int) -> Expr:
    """A leaf of positions below `size`, sometimes as the remainder of larger numbers."""
    name, wide = f"ids{len(make.leaves)}", make.chance(0.2)
    shape = [make.extent(i) for i in indices]
    array = make.rng.integers(0, size * (3 if wide else 1), shape)
    free = any(not isinstance(index.size, int) for index in indices)
    if make.chance(0.3) and not free:
        made: Any = tnc.constant(name, *indices, value=array)
    else:
        dtype = make.pick(["int64", "int32"])
        made, array = tnc.input(name, *indices, dtype=dtype), np.asarray(array).astype(dtype)
    make.arrays[name] = np.asarray(array)
    make.leaves.append(made)
    return made % size if wide else made


def _readable(make: _Maker, indices: Sequence[Index]) -> list[Index]:
    return [i for i in indices if isinstance(i.size, int) and make.extent(i) > 0]


def gathered(make: _Maker) -> _Item | None:
    """A tensor read at positions of one index, or of two in a mixed radix."""
    item = make.take()
    options = _readable(make, item.indices)
    if not options:
        return item
    over = make.some(options, 2) if make.chance(0.3) else [make.pick(options)]
    size = int(np.prod([make.extent(i) for i in over]))
    axes = make.some(make.names, make.pick([0, 1, 1, 2]))
    result = [*(i for i in item.indices if i not in over), *axes]
    if not make.fits(dict.fromkeys(result)):
        return item
    at = _ids(make, axes, size)
    read = item.expr.gather(tuple(over) if len(over) > 1 else over[0], at)
    return replace(item, expr=read)


def scattered(make: _Maker) -> _Item | None:
    """Sums of a tensor by position, or the largest."""
    item = make.take()
    axes = make.some(item.indices, make.pick([1, 1, 2]))
    kept = [i for i in item.indices if i not in axes]
    options = [i for i in _readable(make, make.names) if i not in item.indices or i in axes]
    if not axes or not options:
        return item
    into = make.pick(options)
    over = [axes[0]] if into in axes[:1] or into not in axes else axes
    if not make.fits([*kept, *axes, into]):
        return item
    at = _ids(make, axes, make.extent(into))
    largest = not (item.complex or make.smooth) and make.chance(0.3)
    scatter = tnc.scatter_max if largest else tnc.scatter_add
    return replace(item, expr=scatter(item.expr, at, into, over))
