"""Who of a group is alive: every rank counts up in the group's store, a thread of each looks on.

Only the thread speaks to the store, so that the caller never waits for one that does not answer.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tncompiler.ir.errors import GroupError, RankLost

BEAT_S = 0.5
LEAVE_S = 2.0  # how long a process that ends waits for its thread
POST_S = 5.0  # how long a rank that fails waits for its last words to be written


@dataclass
class Heartbeat:
    """The thread of one rank. ``ranks``: what the members of the group are called, in order."""

    store: Any
    rank: int
    ranks: Sequence[int]
    lost_after_s: float
    _counts: dict[int, bytes] = field(default_factory=dict)
    _heard: dict[int, float] = field(default_factory=dict)
    _answered: float = 0.0
    _failed: str | None = None
    _last_words: str | None = None
    _wake: threading.Event = field(default_factory=threading.Event)
    _posted: threading.Event = field(default_factory=threading.Event)
    _stopped: bool = False

    def start(self) -> None:
        """Begin to count, and to listen."""
        self._answered = time.monotonic()
        self._heard = {rank: self._answered for rank in range(len(self.ranks))}
        thread = threading.Thread(target=self._run, name="tncompiler heartbeat", daemon=True)
        thread.start()
        atexit.register(self._leave, thread)

    def stop(self) -> None:
        """Let the thread end."""
        self._stopped = True
        self._wake.set()

    def _leave(self, thread: threading.Thread) -> None:
        """End the thread before Python ends, which would end it inside of torch's own code."""
        self.stop()
        thread.join(LEAVE_S)

    def check(self) -> None:
        """Raises: RankLost if one is silent, GroupError if one has failed."""
        if self._failed is not None:
            raise GroupError(self._failed)
        now = time.monotonic()
        if now - self._answered > self.lost_after_s:
            raise RankLost(
                f"the store of the process group has not answered for {now - self._answered:.0f} s",
                fix="see whether the process that holds it (rank 0, as a rule) is alive",
            )
        for rank, heard in self._heard.items():
            if rank != self.rank and now - heard > self.lost_after_s:
                raise lost(self.ranks[rank], f"nothing is heard of it for {now - heard:.0f} s")

    def post(self, words: str) -> None:
        """Tell the others that this rank has failed, and why."""
        self._last_words = words
        self._wake.set()
        self._posted.wait(POST_S)

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        count = 0
        while not self._stopped:
            try:
                self._beat(count)
            except RuntimeError:  # the store is gone, or the group: `check` says so in time
                return
            count += 1
            self._wake.wait(BEAT_S)
            self._wake.clear()

    def _beat(self, count: int) -> None:
        self.store.set(f"beat/{self.rank}", str(count))
        if self._last_words is not None:
            self.store.set(f"failed/{self.rank}", self._last_words)
            self._posted.set()
        for rank, name in enumerate(self.ranks):
            if rank != self.rank:
                self._listen(rank, name)
        self._answered = time.monotonic()

    def _listen(self, rank: int, name: int) -> None:
        if self._failed is None and self.store.check([f"failed/{rank}"]):
            words = self.store.get(f"failed/{rank}").decode()
            self._failed = f"rank {name} failed: {words}"
        beat = f"beat/{rank}"
        found = self.store.get(beat) if self.store.check([beat]) else b""
        if found != self._counts.get(rank):
            self._counts[rank] = found
            self._heard[rank] = time.monotonic()


def lost(name: int, why: str) -> RankLost:
    """The error of a rank that is gone."""
    return RankLost(
        f"rank {name} is lost: {why}",
        fix="start the job again (torchrun does); with Ranks(checkpoint=…) it goes on where it was",
    )
