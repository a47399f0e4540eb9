"""How a tensor shows that it has changed, for values that are kept of it.

A version counts writes that torch sees. Fused optimizers do not count theirs, so every step of any
optimizer ages whatever is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from tncompiler.kept import Marks


class _Age:
    now: object = object()


def _grow_older(*_: Any) -> None:
    """Set without being read: torch.compile would compile anew for every value it reads."""
    _Age.now = object()


register_optimizer_step_post_hook(_grow_older)


def _checksum(tensor: Tensor) -> bytes:
    held = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return blake2b(held.view(torch.uint8).cpu().numpy().tobytes(), digest_size=8).digest()


MARKS = Marks(
    mark=lambda tensor: (tensor.data_ptr(), tensor._version),
    age=lambda: _Age.now,
    checksum=_checksum,
)


def can_keep(parameters: Sequence[Tensor], constants: Sequence[Tensor]) -> bool:
    """Whether changes of all these tensors show: a module's own parameters, no stand-ins for them
    (functional_call, parametrize), no inference tensors, which have no version."""
    if any(type(tensor) is not nn.Parameter for tensor in parameters):
        return False
    return not any(tensor.is_inference() for tensor in (*parameters, *constants))


def is_gathered(module: nn.Module) -> bool:
    """Whether FSDP2 fills a module's parameters for each call: unseen, since it counts no version.

    Looked up in the dict, as a module's own look-up of what is missing takes longer than a product.
    """
    return "_is_fsdp_managed_module" in module.__dict__
