"""The most memory that torch holds at once while something runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Storages(TorchDispatchMode):
    """Bytes of storages that were made inside and are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address not in given and address not in self.sizes:
                self.sizes[address] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, address, None)
        self.most = max(self.most, sum(self.sizes.values()))
        return made


def _tensors(value: Any) -> list[torch.Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def peak_bytes(run: Callable[[], object]) -> int:
    """Bytes of new tensors alive at once, at most, in a second run."""
    run()
    with _Storages() as storages:
        run()
    return storages.most
