"""Batches by step, and random numbers that depend on the step alone: what resuming rests on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tncompiler.ir.errors import ArgumentError
from tncompiler.models.calibration import as_batch

_PRIME = 1_000_003


def seed_step(seed: int, step: int, purpose: int) -> None:
    """Seed torch for one purpose at one step (reading a batch, computing a loss, …)."""
    torch.manual_seed(((seed * _PRIME + step) * 4 + purpose) % 2**63)


def batches_from(
    batches: Any, seed: int, start: int, steps: int | None
) -> Iterator[tuple[int, Any]]:
    """Pairs of a step and its batch, from step `start` on.

    An iterable is passed through again and again until there were `steps`; once where that is None.
    An iterator ends where it ends. Each pass and each batch is read under a seed of its own, so
    that a shuffling loader gives the same batches when what came before `start` is only skipped.
    Raises ArgumentError for what is no batch and no iterable, and for an empty one.
    """
    source = [batches] if as_batch(batches) is not None else batches
    step = passes = 0
    while steps is None or step < steps:
        seed_step(seed, passes, 0)
        try:
            iterator = iter(source)
        except TypeError:
            raise ArgumentError(
                f"batches is a {type(source).__name__}",
                fix="give an iterable of batches, as a list or a DataLoader",
            ) from None
        before = step
        while steps is None or step < steps:
            seed_step(seed, step, 1)
            try:
                item = next(iterator)
            except StopIteration:
                break
            if step >= start:
                yield step, item
            step += 1
        if step == before and not passes:
            raise ArgumentError("there are no batches", fix="give at least one")
        if steps is None or iterator is source:
            return
        passes += 1
