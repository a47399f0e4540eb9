"""A call of a module that is like the last one, seen with as few questions as possible.

What a call does beside its programs runs in cold caches, which large products have used, and takes
ten times as long there as in a loop of its own. `repeated_calls` is the same for NumPy functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tncompiler.autograd import PLAIN, Specialisation, is_ordinary


class RepeatedStep:
    """A call and what it ran, which any call of the same kind can run again.

    ``training``: the module's mode, by which it keeps what parameters make.
    """

    __slots__ = ("_device", "_enabled", "_inputs", "_kind", "_training", "spec")

    def __init__(self, spec: Specialisation, tensors: Sequence[Tensor], training: bool) -> None:
        self.spec, self._training = spec, training
        self._enabled = torch.is_grad_enabled()
        self._device = tensors[0].device.type
        # without gradients what is kept of the others tells by itself whether they are the same
        self._inputs = None if spec.kept is None or self._enabled else spec.input_count
        seen = tensors[: self._inputs]
        self._kind = [(t.shape, t.dtype, t.requires_grad, t.device) for t in seen]

    def may_come_again(self, training: bool) -> bool:
        """Whether the modes are the same and nothing looks on: a trace would note what is asked
        next."""
        if self._training is not training or torch.is_grad_enabled() is not self._enabled:
            return False
        return is_ordinary(self._device)

    def is_like(self, tensors: Sequence[Any]) -> bool:
        """Whether a call with these is of the same kind."""
        if not PLAIN.issuperset(map(type, tensors)):
            return False
        seen = tensors if self._inputs is None else tensors[: self._inputs]
        return [(t.shape, t.dtype, t.requires_grad, t.device) for t in seen] == self._kind
