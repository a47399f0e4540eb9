"""How the slices of a compiled network run over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.origin import call_site

NOT_FINITE = ("ignore", "warn", "raise")
DIGEST_BYTES = 8  # by which ranks see whether they are at the same work


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the slices of this rank are: done, of so many, after and with so many seconds left.

    ``remaining_s`` is None until something is known of it.
    """

    done: int
    total: int
    elapsed_s: float
    remaining_s: float | None


@dataclass(frozen=True, slots=True)
class Ranks:
    """How slices run over the ranks of a process group; `tnc.compile(…, process_group=Ranks(…))`.

    ``group``: a group of torch.distributed; None for this process alone. ``slices``: how many there
    should be at least, where an index can be cut into so many; by default one for every rank.
    ``checkpoint``: a folder in which each rank keeps what its finished slices add up to, written
    every ``every_s`` seconds; a job that is started again with the same tensors goes on from there,
    and its result is the same to the last bit. ``progress``: True for a bar on rank 0, or a
    function of a `Progress`, called on every rank. ``not_finite``: what a slice with NaN in it
    does: "warn" and "raise" name the slice. ``lost_after_s``: when a rank of which nothing is heard
    counts as lost; all others then raise `RankLost`. ``machine``: what slices are chosen for, as in
    `tnc.simulate`; by default that of the plan's options. Raises: ArgumentError for what is
    unknown.
    """

    group: Any = None
    slices: int | None = None
    checkpoint: str | Path | None = None
    every_s: float = 60.0
    progress: bool | Callable[[Progress], None] = False
    not_finite: str = "warn"
    lost_after_s: float = 20.0
    machine: Any = None

    def __post_init__(self) -> None:
        _demand("slices", self.slices, self.slices is None or _whole(self.slices), "1 or more")
        _demand("every_s", self.every_s, _seconds(self.every_s, 0.0), "seconds, 0 or more")
        lost = self.lost_after_s
        _demand("lost_after_s", lost, _seconds(lost, 2.0), "seconds, 2 or more")
        known = self.not_finite in NOT_FINITE
        _demand("not_finite", self.not_finite, known, f"one of {', '.join(NOT_FINITE)}")
        shown = isinstance(self.progress, bool) or callable(self.progress)
        _demand("progress", self.progress, shown, "True, False or a function of a Progress")
        folder = self.checkpoint
        _demand("checkpoint", folder, isinstance(folder, str | Path | None), "a folder")

    @staticmethod
    def of(given: Any) -> Ranks:
        """The options as they are, or those of a group alone."""
        return given if isinstance(given, Ranks) else Ranks(group=given)


def _demand(name: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise ArgumentError(
            f"Ranks.{name} is {value!r:.40}", where=call_site(), fix=f"give {wanted}"
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _seconds(value: Any, least: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and least <= value < float("inf")
