"""Batches by step, and random numbers that depend on the step alone: what resuming rests on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count
from typing import Any

import torch

from tncompiler.ir.errors import ArgumentError
from tncompiler.models.calibration import as_batch

_PRIME = 1_000_003
HELD = range(0, 32, 8)  # places in a pass of batches that nothing is learned from


def seed_step(seed: int, step: int, purpose: int) -> None:
    """Seed torch for one purpose at one step (reading a batch, computing a loss, …)."""
    torch.manual_seed(((seed * _PRIME + step) * 4 + purpose) % 2**63)


def hold_out(batches: Any, seed: int) -> tuple[list[Any], Any, range]:
    """The batches of a first pass that are `HELD`, what is left to learn from, and which places of
    each pass to leave out of it.

    A batch that is the only one is held and learned from as well. Raises as `batches_from` does.
    """
    if as_batch(batches) is not None:
        return [batches], batches, range(0)
    seed_step(seed, 0, 0)
    iterator = _iterator(batches)
    held: list[Any] = []
    others: list[Any] = []
    for place in range(HELD[-1] + 1):
        _seed_reading(seed, 0, place, len(others), HELD)
        try:
            item = next(iterator)
        except StopIteration:
            break
        (held if place in HELD else others).append(item)
    if not held:
        raise _nothing()
    if iterator is batches:
        return held, chain(others or held, iterator), range(0)
    return held, batches, HELD if others else range(0)


def batches_from(
    batches: Any, seed: int, start: int, steps: int | None, skip: range = range(0)
) -> Iterator[tuple[int, Any]]:
    """Pairs of a step and its batch, from step `start` on.

    An iterable is passed through again and again until there were `steps`; once where that is None.
    An iterator ends where it ends. Batches at the places `skip` of each pass are left out. Each
    pass and each batch is read under a seed of its own, so that a shuffling loader gives the same
    batches when what came before `start` is only skipped.
    Raises ArgumentError for what is no batch and no iterable, and for an empty one.
    """
    source = [batches] if as_batch(batches) is not None else batches
    step = passes = 0
    while steps is None or step < steps:
        seed_step(seed, passes, 0)
        iterator = _iterator(source)
        before = step
        for place in count():
            if step == steps:
                return
            _seed_reading(seed, passes, place, step, skip)
            try:
                item = next(iterator)
            except StopIteration:
                break
            if place in skip:
                continue
            if step >= start:
                yield step, item
            step += 1
        if step == before and not passes:
            raise _nothing()
        if steps is None or iterator is source or step == before:
            return
        passes += 1


def _seed_reading(seed: int, passes: int, place: int, step: int, skip: range) -> None:
    """Seed the reading of a batch: by its step, or by its place where it makes none."""
    if place in skip:
        seed_step(seed, passes * skip.stop + place, 3)
    else:
        seed_step(seed, step, 1)


def _iterator(source: Any) -> Iterator[Any]:
    try:
        return iter(source)
    except TypeError:
        raise ArgumentError(
            f"batches is a {type(source).__name__}",
            fix="give an iterable of batches, as a list or a DataLoader",
        ) from None


def _nothing() -> ArgumentError:
    return ArgumentError("there are no batches", fix="give at least one")
