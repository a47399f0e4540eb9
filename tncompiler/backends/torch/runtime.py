"""Helpers that generated torch code calls; differentiable, no data-dependent control flow."""

from __future__ import annotations

import torch
from torch import Tensor


def embed_diagonal(x: Tensor, pattern: tuple[int, ...]) -> Tensor:
    """Axis k of `x` spread over all positions of k in `pattern`; 0 off the diagonals."""
    order = list(range(x.ndim))
    for label in range(x.ndim):
        for _ in range(pattern.count(label) - 1):
            x = x.movedim(order.index(label), -1)
            order.remove(label)
            order += [label, label]
            x = torch.diag_embed(x)
    positions = []
    for label in pattern:
        axis = next(k for k, own in enumerate(order) if own == label and k not in positions)
        positions.append(axis)
    return x.permute(positions)


def take_diagonal(x: Tensor, labels: tuple[int, ...], out: tuple[int, ...]) -> Tensor:
    """The entries of `x` where axes with one label agree, as a view."""
    order = list(labels)
    for label in dict.fromkeys(labels):
        while order.count(label) > 1:
            first = order.index(label)
            second = order.index(label, first + 1)
            x = x.diagonal(dim1=first, dim2=second)
            order = [k for i, k in enumerate(order) if i not in (first, second)] + [label]
    return x.permute([order.index(label) for label in out])
