"""Checked constructors of windows: the index map of a convolution as a structural tensor.

`window(i, out=o, kernel=k)` is 1 where i = o·stride + k·dilation - before, else 0. Contracted with
an image and a kernel it is a convolution; with a result and a kernel, the transposed one; with an
image and a result, the gradient of the kernel.
"""

from __future__ import annotations

import operator
from typing import Any

from tncompiler.ir import algebra
from tncompiler.ir import expressions as ex
from tncompiler.ir.errors import ArgumentError, RepeatedIndex, WindowError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.origin import call_site
from tncompiler.ir.scope import check_indices, describe, find
from tncompiler.ir.sizes import Size, as_size
from tncompiler.ir.windows import Geometry, check_count, same_padding


def window(
    source: Index,
    *,
    out: Index,
    kernel: Index,
    stride: int = 1,
    dilation: int = 1,
    padding: Any = 0,
) -> Expr:
    """1 where source = out·stride + kernel·dilation - padding before it, else 0; never stored.

    Shapes: (source, out, kernel); the size of `out` is
    (source + padding - dilation·(kernel - 1) - 1) // stride + 1, and follows if it has none.
    ``padding``: an int, a pair (before, after), "same" (with stride 1) or "valid".
    Raises: WindowError for a stride or dilation below 1, a padding that is none, windows that do
    not fit; SizeEquationError for another count of windows.
    """
    check_indices((source, out, kernel), "window")
    steps = _step(stride, "stride"), _step(dilation, "dilation")
    before, after = _padding(padding, kernel.size, *steps)
    node = ex.Window((source, out, kernel), Geometry(*steps, before, after))
    check_count(out.size, node.equation)
    return node


def windowed(
    expr: Expr,
    index: Any,
    *,
    out: Index,
    kernel: Index,
    stride: int = 1,
    dilation: int = 1,
    padding: Any = 0,
) -> Expr:
    """One index seen through windows: `out` says which window, `kernel` where in it."""
    source = find(expr, index)
    check_indices((source, out, kernel), "window")
    for new in (out, kernel):
        if any(own.name == new.name for own in expr.indices):
            raise RepeatedIndex(
                f"window: {describe(expr)} already has an index {new.name!r}",
                where=call_site(),
                fix="give the windows and their taps indices of their own",
            )
    map_ = window(source, out=out, kernel=kernel, stride=stride, dilation=dilation, padding=padding)
    kept = [(own,) if own != source else (out, kernel) for own in expr.indices]
    return algebra.contract(expr, map_, out=[k for group in kept for k in group])


def _step(value: Any, what: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(
            f"window: {what} is {value!r:.40}", where=call_site(), fix="give an integer from 1 on"
        ) from None
    if number < 1 or isinstance(value, bool):
        raise WindowError(
            f"window: {what} is {value}", where=call_site(), fix="give an integer from 1 on"
        )
    return number


def _padding(padding: Any, kernel: Size, stride: int, dilation: int) -> tuple[Size, Size]:
    """Zeros before and after."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        if stride != 1:
            raise WindowError(
                f"window: padding 'same' has no meaning with stride {stride}",
                where=call_site(),
                fix="give the padding as a number or a pair",
            )
        return same_padding(kernel, dilation)
    if isinstance(padding, str) or (isinstance(padding, list | tuple) and len(padding) != 2):
        raise WindowError(
            f"window: padding is {padding!r:.40}",
            where=call_site(),
            fix="give a number, a pair (before, after), 'same' or 'valid'",
        )
    pair = padding if isinstance(padding, list | tuple) else (padding, padding)
    return as_size(pair[0], "padding"), as_size(pair[1], "padding")
