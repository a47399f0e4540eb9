"""Pooling: the largest or the mean of what windows see, by windows and reductions.

Each window is a contraction with a structural tensor, seen as a view, and a mean over its taps is
part of that contraction; so pooling is planned, differentiated and compiled like anything else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tncompiler import dsl
from tncompiler.ir import algebra
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.expressions import Expr, Window
from tncompiler.ir.index import Index
from tncompiler.ir.origin import call_site
from tncompiler.ir.program import fresh_name
from tncompiler.ir.scope import find_all
from tncompiler.ir.windowing import window


def max_pool(
    t: Expr,
    over: Any,
    *,
    out: Any,
    kernel: Any,
    stride: Any = None,
    dilation: Any = 1,
    padding: Any = 0,
) -> Expr:
    """The largest in each window of one index or several.

    Shapes: t(…, over, …) gives (…, out, …). ``out``: the index of the windows, or one for each of
    `over`; without a size it has as many windows as fit. ``kernel``, ``stride`` (the kernel's by
    default), ``dilation`` and ``padding``: a number for all, or a list of one for each, in which a
    padding may be a pair (before, after). Padding takes no part: it is never the largest.
    Where several are the largest the gradient goes to all in equal parts, as that of `max` does.
    Raises: ArgumentError for a list of another length; what `tnc.window` raises.
    Source: torch.nn.functional.max_pool2d has the same meaning, ties apart.
    """
    found = _windows(t, over, out, kernel, stride, dilation, padding)
    seen = _seen(t, found)
    for one in found:
        if one.is_padded:
            seen = _inside(one, seen, -math.inf)
    return _in_order(seen.max(*(one.taps for one in found)), t, found)


def avg_pool(
    t: Expr,
    over: Any,
    *,
    out: Any,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    count_include_pad: bool = True,
) -> Expr:
    """The mean of each window of one index or several; arguments as those of `max_pool`.

    ``count_include_pad``: whether zeros of the padding are among what a mean is taken of.
    Source: torch.nn.functional.avg_pool2d has the same meaning.
    """
    found = _windows(t, over, out, kernel, stride, 1, padding)
    seen = _seen(t, found)
    taps = tuple(one.taps for one in found)
    if count_include_pad:
        return seen.mean(*taps)
    total = seen.sum(*taps)
    for one in found:
        total = total / _inside(one, 1.0, 0.0).sum(one.taps)
    return _in_order(total, t, found)


@dataclass(frozen=True, slots=True)
class _Windows:
    """The windows over one index: the structural tensor (source, out, taps)."""

    map: Window

    @property
    def taps(self) -> Index:
        return self.map.indices[2]

    @property
    def is_padded(self) -> bool:
        return (self.map.geometry.before, self.map.geometry.after) != (0, 0)


def _windows(t: Expr, over: Any, out: Any, *options: Any) -> list[_Windows]:
    """One for each index; ``options`` are kernel, stride, dilation and padding."""
    sources = find_all(t, (over,) if isinstance(over, Index | str) else tuple(over))
    outs = (out,) if isinstance(out, Index) else tuple(out)
    kernel, stride, dilation, padding = options
    columns = (
        _each("out", outs, sources),
        _each("kernel", kernel, sources),
        _each("stride", kernel if stride is None else stride, sources),
        _each("dilation", dilation, sources),
        _each("padding", padding, sources),
    )
    taken = {index.name for index in (*t.indices, *outs)}
    found = []
    for source, count, size, step, reach, zeros in zip(sources, *columns, strict=True):
        taps = Index(fresh_name(f"{source.name}_tap", taken), size)
        taken.add(taps.name)
        made = window(source, out=count, kernel=taps, stride=step, dilation=reach, padding=zeros)
        assert isinstance(made, Window)
        found.append(_Windows(made))
    return found


def _each(name: str, given: Any, sources: Sequence[Index]) -> Sequence[Any]:
    """One entry for each index."""
    values = given if isinstance(given, list | tuple) else (given,) * len(sources)
    if len(values) != len(sources):
        raise ArgumentError(
            f"pooling over {len(sources)} indices is given {len(values)} entries of {name}",
            where=call_site(),
            fix=f"give one {name} for each of {', '.join(i.name for i in sources)}, or one for all",
        )
    return values


def _seen(t: Expr, found: Sequence[_Windows]) -> Expr:
    """The tensor with windows and taps in place of what they see."""
    kept: list[Index] = []
    places = {one.map.indices[0]: one.map.indices[1:] for one in found}
    for index in t.indices:
        kept += places.get(index, (index,))
    return algebra.contract(t, *(one.map for one in found), out=kept)


def _in_order(pooled: Expr, t: Expr, found: Sequence[_Windows]) -> Expr:
    """With the windows where the indices stood that they are over."""
    places = {one.map.indices[0]: one.map.indices[1] for one in found}
    return algebra.transpose(pooled, [places.get(index, index) for index in t.indices])


def _inside(one: _Windows, value: Any, other: float) -> Expr:
    """The value where a window's tap is a position of the index, the other number in padding."""
    source, out, taps = one.map.indices
    geometry = one.map.geometry
    first = dsl.arange(out) * geometry.stride * dsl.ones(taps)
    position = first + dsl.arange(taps) * geometry.dilation - geometry.before
    starts = dsl.where(dsl.greater_equal(position, 0), value, other)
    return dsl.where(dsl.less(position, source.size), starts, other)
