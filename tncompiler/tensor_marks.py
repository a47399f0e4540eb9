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


class Snapshot:
    """All that a module and its submodules held at one time, and whether they still do.

    It sees what `MARKS` see, and another object in the place of a submodule, parameter or buffer.
    Told apart for speed, as every call of a small layer asks: tensors, and what else has a place.
    """

    __slots__ = ("_age", "_places", "_tensors")

    def __init__(self, module: nn.Module) -> None:
        self._age = _Age.now  # read before the tensors are: what changes meanwhile is seen later
        found = [
            (None if each is module else each, table, key, value)  # no cycle: it may hold this
            for each in module.modules()
            for table in ("_modules", "_parameters", "_buffers")
            for key, value in each.__dict__[table].items()
        ]
        self._places = [place for place in found if not isinstance(place[-1], Tensor)]
        self._tensors = [
            (*place, place[-1].data_ptr(), place[-1]._version)
            for place in found
            if isinstance(place[-1], Tensor)
        ]

    def holds(self, root: nn.Module) -> bool:
        """Whether nothing has changed since in the module that it was taken of."""
        if self._age is not _Age.now:
            return False
        for module, table, key, held in self._places:
            if (root if module is None else module).__dict__[table].get(key) is not held:
                return False
        for module, table, key, held, address, version in self._tensors:
            if (root if module is None else module).__dict__[table].get(key) is not held:
                return False
            if held.data_ptr() != address or held._version != version:
                return False
        return True

    def asks_gradients(self) -> bool:
        """Whether a tensor requires gradients."""
        return any(place[3].requires_grad for place in self._tensors)


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
