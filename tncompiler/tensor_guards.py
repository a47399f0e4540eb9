"""Whether tensors, and what torch does with them now, are as they were: asked once for all of them.

torch.compile guards its code so, by one C++ function, which is taken where it is there: to ask each
tensor for its shape, dtype and device takes five times as long, and torch for its modes as long
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tncompiler.watching import (
    are_plain,
    count_modes,
    is_batched,
    is_ordinary,
    is_wrapped,
    trace_of_now,
)


class Guard:
    """Tensors of a call that was ordinary: plain ones, and nothing looked on.

    It holds none of them.
    """

    __slots__ = ("_check", "_count", "_gradients")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._count, self._gradients = len(tensors), torch.is_grad_enabled()
        is_twice = len({*map(id, tensors)}) < len(tensors)  # which torch's never holds for
        self._check = (_by_asking if is_twice else _make)(tensors)

    def may_hold(self) -> bool:
        """Whether gradients are wanted as they were, and nobody sees what is asked of tensors."""
        if torch.is_grad_enabled() is not self._gradients or forward_ad._current_level >= 0:
            return False
        return not count_modes() and trace_of_now() is None

    def holds(self, tensors: Sequence[Any]) -> bool:
        """Whether these are of the same types, shapes, dtypes and devices, want gradients as they
        did, and a call with them is ordinary. Only if it `may_hold`, and of no nested tensors, by
        which torch's check ends the process."""
        return len(tensors) == self._count and self._check(*tensors)


def _by_torch(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """torch's own check; it sees functorch and autocast by the keys that tensors are dispatched by
    now, and some modes, as those of a debugger and of checkpoints are hidden from it."""
    guards: Any = torch._C._dynamo.guards
    sizes, strides = [[*t.shape] for t in tensors], [[None] * t.ndim for t in tensors]
    check: Callable[..., bool] = guards.TensorGuards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    ).check
    return check


def _by_asking(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """The same in Python."""

    def kinds(given: Sequence[Tensor]) -> list[tuple[Any, ...]]:
        return [
            (t.shape, t.dtype, t.requires_grad, t.device, t.layout, t.is_inference()) for t in given
        ]

    seen, device = kinds(tensors), tensors[0].device.type
    inference = torch.is_inference_mode_enabled()

    def check(*given: Any) -> bool:
        if not is_ordinary(device) or torch.is_inference_mode_enabled() is not inference:
            return False
        if not are_plain(given) or any(map(is_batched, given)) or any(map(is_wrapped, given)):
            return False
        return kinds(given) == seen

    return check


def _fastest() -> Callable[[Sequence[Tensor]], Callable[..., bool]]:
    """torch's own, if this torch has it and it does what it is wanted for."""
    one, two = torch.zeros(2, 3, device="cpu"), torch.zeros(3, 2, device="cpu")
    others = (two, one), (one, two.double()), (one, two.clone().requires_grad_())
    try:
        check = _by_torch([one, two])
        works = check(one.clone(), two) and not any(check(*other) for other in others)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            works = works and not check(one, two)
    except (AttributeError, TypeError):
        works = False
    return _by_torch if works else _by_asking


_make = _fastest()
