"""Masks of attention as torch takes them, made numbers that are added to scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tncompiler.ir.errors import DTypeError, ShapeError


def added_mask(
    attn_mask: Tensor | None,
    padding: Tensor | None,
    sizes: tuple[int, int, int, int],
    dtype: torch.dtype,
    layer: object,
) -> Tensor | None:
    """What is added to the scores, (batch or 1, heads or 1, queries or 1, keys); None for nothing.

    ``sizes``: batch, heads, queries and keys. ``layer``: named in errors.
    Raises: ShapeError, DTypeError for what is no mask.
    """
    batch, heads, targets, sources = sizes
    found = []
    if attn_mask is not None:
        shapes = ((targets, sources), (batch * heads, targets, sources))
        added = _as_added(attn_mask, "attn_mask", shapes, dtype, layer)
        found.append(added.reshape(*((1, 1) if added.ndim == 2 else (batch, heads)), *sizes[2:]))
    if padding is not None:
        added = _as_added(padding, "key_padding_mask", ((batch, sources),), dtype, layer)
        found.append(added[:, None, None])
    return sum(found[1:], found[0]) if found else None


def _as_added(
    mask: Any, what: str, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, layer: object
) -> Tensor:
    """A mask as numbers to add: of booleans, true ones are not to be seen."""
    if not isinstance(mask, Tensor) or tuple(mask.shape) not in shapes:
        raise ShapeError(
            f"{what} has shape {tuple(getattr(mask, 'shape', ()))}, not "
            f"{' or '.join(map(str, shapes))}",
            where=str(layer),
            fix="give one number for each query and key, or for each key of a batch",
        )
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
    if not mask.is_floating_point():
        raise DTypeError(
            f"{what} has dtype {mask.dtype}",
            where=str(layer),
            fix="give booleans (true is not seen) or floats that are added to the scores",
        )
    return mask.to(dtype)
