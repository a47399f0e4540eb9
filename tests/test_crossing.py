"""Tensors as NumPy arrays and back: the same memory, and never shared behind autograd's back."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tncompiler.crossing import enter, leave

TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    "a parameter": lambda: torch.nn.Parameter(torch.randn(3, 4)),
    "a result": lambda: torch.randn(3, 4, requires_grad=True) * 2,
    "a transposed view": lambda: torch.randn(3, 4).t(),
    "a repeated row": lambda: torch.randn(4).expand(3, 4),
    "every second": lambda: torch.randn(3, 8)[:, ::2],
    "empty": lambda: torch.zeros(0, 4),
    "a number": lambda: torch.tensor(2.0, dtype=torch.float64),
    "integers": lambda: torch.arange(5),
    "truth values": lambda: torch.tensor([True, False]),
    "conjugated": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "negative": lambda: torch.randn(3, dtype=torch.complex64).conj().imag,
}


@pytest.mark.parametrize("name", TENSORS)
def test_an_array_has_the_numbers_of_its_tensor(name: str) -> None:
    tensor = TENSORS[name]()
    (array,) = enter((tensor,), "numpy")
    wanted = tensor.detach().resolve_conj().resolve_neg()
    assert array.dtype == wanted.numpy().dtype and array.shape == tuple(wanted.shape)
    assert np.array_equal(array, wanted.numpy())
    marked = tensor.is_conj() or tensor.is_neg()
    if wanted.numel() and not marked:
        assert np.shares_memory(array, wanted.numpy())


def test_what_comes_in_cannot_be_written_to() -> None:
    (array,) = enter((torch.ones(3),), "numpy")
    with pytest.raises(ValueError, match="read-only"):
        array += 1


def test_an_array_keeps_its_memory() -> None:
    (array,) = enter((torch.arange(1000) * 2,), "numpy")
    gc.collect()
    torch.zeros(1000, dtype=torch.int64)  # would take memory that was given back
    assert np.array_equal(array, np.arange(1000) * 2)


def test_other_backends_take_tensors_as_they_are() -> None:
    tensors = (torch.ones(3),)
    assert enter(tensors, "torch") is tensors and leave(tensors, "torch", tensors) == [*tensors]


def test_results_that_share_memory_are_copied() -> None:
    """With what came in, or with another result; the same array is the same tensor."""
    given = torch.arange(6.0)
    (array,) = enter((given,), "numpy")
    own = np.arange(4.0)
    back, first, again, part = leave((array[::2], own, own, own[1:]), "numpy", (array,))
    assert first is again
    for tensor in (back, first, part):
        tensor += 1
    assert given.tolist() == [0, 1, 2, 3, 4, 5] and back.tolist() == [1, 3, 5]
    assert first.tolist() == [1, 2, 3, 4] and part.tolist() == [2, 3, 4]


def test_arrays_that_torch_cannot_hold_are_copied() -> None:
    fixed = np.arange(3.0)
    fixed.flags.writeable = False
    turned, held = leave((np.arange(3.0)[::-1], fixed), "numpy", ())
    assert turned.tolist() == [2, 1, 0] and held.tolist() == [0, 1, 2]
    held += 1
    assert fixed.tolist() == [0, 1, 2]
