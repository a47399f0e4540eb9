"""Drawing cores anew: nearly orthogonal, then scaled by what the whole network really does.

A product of independent Gaussian cores keeps the variance only on average over draws: most draws
are too small, a few far too large, and a deep network of them dies out. Orthogonal factors and one
measured scale take most of that away.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from tncompiler.ir.errors import ArgumentError

_ORTHOGONAL_UP_TO = 512  # columns; larger Gaussian matrices are flat enough
PROBES = 64


def orthogonalize(core: Tensor) -> None:
    """Make a core a multiple of an isometry, cut where that leaves most columns; keep its norm."""
    cut = max(range(1, core.ndim), key=lambda k: _columns(core.shape, k), default=0)
    if core.is_meta or not cut or _columns(core.shape, cut) > _ORTHOGONAL_UP_TO:
        return
    wide = core.reshape(prod(core.shape[:cut]), -1)
    wide = wide.to(torch.promote_types(core.dtype, torch.float32))
    tall = wide if wide.shape[0] >= wide.shape[1] else wide.mH
    q, r = torch.linalg.qr(tall)
    q = q * torch.sgn(torch.diagonal(r))  # without it, QR prefers some directions
    q = q * (wide.norm() / q.shape[1] ** 0.5)
    core.copy_((q if wide.shape[0] >= wide.shape[1] else q.mH).reshape(core.shape))


def _columns(shape: Sequence[int], cut: int) -> int:
    return min(prod(shape[:cut]), prod(shape[cut:]))


def typical_scale(rows: Tensor) -> float:
    """The geometric mean of the rows' root mean squares: what a stack of layers multiplies up."""
    squares = rows.detach().to(torch.promote_types(rows.dtype, torch.float32)).abs().square()
    return float(squares.mean(1).log().mean().mul(0.5).exp())


def gain_of(nonlinearity: str) -> float:
    """torch's gain for what follows a layer. Raises ArgumentError for names it does not know."""
    try:
        return float(nn.init.calculate_gain(nonlinearity))  # type: ignore[arg-type]
    except ValueError:
        raise ArgumentError(
            f"nonlinearity is {nonlinearity!r:.40}",
            fix="name one that torch.nn.init.calculate_gain knows, as 'relu'",
        ) from None
