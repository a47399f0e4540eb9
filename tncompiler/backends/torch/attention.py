"""Scaled dot-product attention for generated torch code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention

from tncompiler.backends.torch.tracing import transforms
from tncompiler.ir.attention import LOW


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    where: Tensor | None = None,
    add: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """softmax(query keyᵀ + mask) value, by torch's kernel where nobody looks inside.

    ``where`` is true for what is seen; ``add`` is added to the scores; ``causal``: a query sees the
    keys up to its own position. A query that sees nothing weighs all keys alike.
    """
    bias = _bias(query, key, where, add, causal)
    if _looks_inside(query, key, value) or not query.numel() or not key.numel():
        scores = query @ key.transpose(-1, -2)
        return torch.softmax(scores if bias is None else scores + bias, -1) @ value
    if bias is not None and bias.ndim < 2:
        bias = bias.expand(1, -1)  # torch wants an axis of queries
    alone = causal and where is None and add is None
    return scaled_dot_product_attention(
        query, key, value, None if alone else bias, is_causal=alone, scale=1.0
    )


def _bias(
    query: Tensor, key: Tensor, where: Tensor | None, add: Tensor | None, causal: bool
) -> Tensor | None:
    """What is added to the scores."""
    bias = add
    if where is not None:
        bias = torch.where(where, 0.0, LOW).to(query.dtype)
    if not causal:
        return bias
    at = torch.arange(query.shape[-2], device=query.device)
    to = torch.arange(key.shape[-2], device=query.device)
    later = to > at[:, None]
    hidden = torch.where(later, LOW, 0.0).to(query.dtype)
    # not added: a query that sees nothing weighs what comes later like all else
    return hidden if bias is None else torch.where(later, hidden, bias)


def _looks_inside(*tensors: Tensor) -> bool:
    """Whether torch differentiates or maps what is done: its kernel knows one derivative only."""
    if torch.compiler.is_compiling():
        return transforms() > 1
    functorch = torch._C._functorch.peek_interpreter_stack() is not None
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return functorch or recorded or forward_ad._current_level >= 0
