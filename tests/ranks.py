"""Worlds of a few processes for tests: started once, given functions to run on every rank.

Each process has one BLAS thread. The parent holds the store, as torchrun does, so no port is
guessed; whoever takes too long is killed, and the call that waited for it fails.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing import get_context
from typing import Any

import torch.distributed as dist

START_S = 120.0
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class RankFailed(AssertionError):
    """A function raised on a rank, or a rank did not answer; `answers` has what all ranks said."""

    def __init__(self, answers: list[Any]) -> None:
        super().__init__("\n".join(f"rank {k}: {a[1]}" for k, a in enumerate(answers) if a[0]))
        self.answers = answers


class World:
    """So many ranks, in a process each."""

    def __init__(self, size: int) -> None:
        self.size = size
        wait = timedelta(seconds=START_S)
        self.store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, timeout=wait, wait_for_workers=False
        )
        context = get_context("spawn")
        before = dict(os.environ)
        os.environ.update(ONE_THREAD)
        try:
            pairs = [context.Pipe() for _ in range(size)]
            self.pipes = [mine for mine, _ in pairs]
            self.processes = [
                context.Process(
                    target=_serve, args=(rank, size, self.store.port, theirs), daemon=True
                )
                for rank, (_, theirs) in enumerate(pairs)
            ]
            for process in self.processes:
                process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        for _, theirs in pairs:
            theirs.close()

    def call(self, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Any]:
        """What the function gives on each rank. Raises: RankFailed."""
        answers = self.answers(function, *args, timeout_s=timeout_s)
        if any(failed for failed, _ in answers):
            raise RankFailed(answers)
        return [value for _, value in answers]

    def answers(
        self, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0
    ) -> list[tuple[str, Any]]:
        """For each rank the name of what it raised, or "", and its value or traceback."""
        self.start(function, *args)
        return [self.answer(rank, timeout_s) for rank in range(self.size)]

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Let the function begin on every rank that is there."""
        for pipe in self.pipes:
            with suppress(OSError):
                pipe.send((function, args))

    def answer(self, rank: int, timeout_s: float = 120.0) -> tuple[str, Any]:
        """What one rank says to what was started."""
        pipe = self.pipes[rank]
        try:
            if pipe.poll(timeout_s):
                return pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):
            return "Killed", "the process is gone"
        return "Silent", f"nothing was heard for {timeout_s} s"

    def end(self, rank: int, timeout_s: float) -> int | None:
        """Let one rank leave by itself; its exit status, None if it does not."""
        self.pipes[rank].close()
        self.processes[rank].join(timeout_s)
        return self.processes[rank].exitcode

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def _serve(rank: int, size: int, port: int, pipe: Any) -> None:
    """The loop of one rank."""
    wait = timedelta(seconds=START_S)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=wait)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("", function(*args)))
        except Exception as error:
            pipe.send((type(error).__name__, traceback.format_exc()))
