"""Truncate a bond, in double precision; generated torch code calls these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tncompiler.ir.pairs_numbers import Spectrum


class _Leading(torch.autograd.Function):
    """Differentiable once: torch's own derivative of eigenvectors is infinite at equal values."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, count: int, cutoff: float) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.options = (count, cutoff)
        made: Tensor = Spectrum(torch, left.double(), right.double(), count, cutoff).value
        return made.to(left.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        left, right = ctx.saved_tensors
        both = leading_pairs_adjoint(left, right, cotangent, *ctx.options)
        return *both.unbind(-3), None, None


def leading_pairs(left: Tensor, right: Tensor, count: int, cutoff: float) -> Tensor:
    """The leading directions, (…, r, count), of Gram matrices (…, r, r)."""
    made: Tensor = _Leading.apply(left, right, count, cutoff)  # type: ignore[no-untyped-call]
    return made


def leading_pairs_adjoint(
    left: Tensor, right: Tensor, cotangent: Tensor, count: int, cutoff: float
) -> Tensor:
    """Gradients by both matrices, (…, 2, r, r)."""
    spectrum = Spectrum(torch, left.double(), right.double(), count, cutoff)
    both = spectrum.gradients(torch, cotangent.double())
    return torch.stack(both, -3).to(left.dtype)
