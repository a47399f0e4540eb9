"""A training step that is like the last one, seen with as few questions as possible.

What a step does between its programs runs in cold caches, which large products have used, and takes
ten times as long there as in a loop of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tncompiler.autograd import Specialisation, are_plain, is_ordinary


class RepeatedStep:
    """A call for gradients, and what it ran, which any call of the same kind can run again."""

    __slots__ = ("_device", "_kind", "spec")

    def __init__(self, spec: Specialisation, tensors: Sequence[Tensor]) -> None:
        self.spec, self._kind = spec, _kind(tensors)
        self._device = tensors[0].device.type

    def may_come_again(self) -> bool:
        """Whether gradients are wanted and nothing looks on: a trace would note what comes next."""
        return torch.is_grad_enabled() and is_ordinary(self._device)

    def is_like(self, tensors: Sequence[Any]) -> bool:
        """Whether a call with these is of the same kind."""
        return are_plain(tensors) and _kind(tensors) == self._kind


def _kind(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    return [(t.shape, t.dtype, t.requires_grad, t.device) for t in tensors]
