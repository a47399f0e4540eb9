"""Where trials run: right here, on an executor, or in processes of our own that can be killed.

In: a network, an objective, trials, a budget. Out: (number of the trial, order) as they are found.
When the budget is spent the rest is dropped, and a trial that is stuck dies with its process.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Protocol

from tncompiler.planning.budget import Budget
from tncompiler.planning.candidates import Network
from tncompiler.planning.hyper import (
    Order,
    Trial,
    collect_trial,
    network_data,
    order_from,
    run_trial,
    trial_data,
)

logger = logging.getLogger("tncompiler.planning")

Found = tuple[int, Order]

THREAD = "tncompiler search"  # the name of those that feed processes
_POLL_S = 0.002
_AHEAD = 2  # trials under way for each worker


class Runner(Protocol):
    """A place for trials of one network."""

    def run(self, trials: Iterable[Trial]) -> Iterator[Found]: ...

    def close(self) -> None: ...


@dataclass
class Here:
    """One trial after the other, in this process."""

    network: Network
    minimize: str
    budget: Budget

    def run(self, trials: Iterable[Trial]) -> Iterator[Found]:
        for number, trial in enumerate(trials):
            for order in run_trial(self.network, self.minimize, trial):
                yield number, order
                if self.budget.spent():
                    return

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass
class Executor:
    """Whatever cotengra submits to: concurrent.futures, loky, a Dask client, Ray, or their name."""

    network: Network
    minimize: str
    budget: Budget
    parallel: Any

    def run(self, trials: Iterable[Trial]) -> Iterator[Found]:
        from cotengra.parallel import get_n_workers, parse_parallel_arg, submit

        pool = parse_parallel_arg(self.parallel)
        at_once = _AHEAD * max(_workers_of(pool, get_n_workers), 1)
        waiting = enumerate(trials)
        pending: dict[int, Any] = {}
        try:
            while True:
                for number, trial in islice(waiting, at_once - len(pending)):
                    work = (self.network, self.minimize, trial)
                    pending[number] = submit(pool, collect_trial, *work)
                if not pending or self.budget.spent():
                    return
                ended = [number for number, future in pending.items() if future.done()]
                for number in ended:
                    yield from ((number, order) for order in pending.pop(number).result())
                if not ended:
                    time.sleep(_POLL_S)
        finally:
            for future in pending.values():
                future.cancel()

    def close(self) -> None:
        """The executor is its owner's."""


def _workers_of(pool: Any, count: Any) -> int:
    """How many workers an executor has; one for a kind that does not say."""
    try:
        return int(count(pool))
    except ValueError:
        return 1


class Processes:
    """Python processes of our own, killed when they are not needed any more.

    They are started as plain programs and spoken to in JSON, so that nothing of the caller's main
    module runs again, and nothing is pickled. Each has a thread here that feeds it.
    """

    def __init__(self, network: Network, minimize: str, budget: Budget, count: int | bool) -> None:
        self.budget = budget
        self.count = (os.cpu_count() or 1) if count is True else int(count)
        self.first = json.dumps({"network": network_data(network), "minimize": minimize})
        self.tasks: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[tuple[int, Order | None]] = queue.SimpleQueue()
        self.children: list[_Child] = []

    def run(self, trials: Iterable[Trial]) -> Iterator[Found]:
        waiting = enumerate(trials)
        under_way = 0
        while True:
            for number, trial in islice(waiting, _AHEAD * self.count - under_way):
                self.tasks.put((number, json.dumps(trial_data(trial))))
                under_way += 1
            while len(self.children) < min(self.count, under_way):
                self.children.append(_Child(self.first, self.tasks, self.results))
            if not under_way or self.budget.spent():
                return
            try:
                number, order = self.results.get(timeout=self.budget.left)
            except queue.Empty:
                continue
            if order is None:
                under_way -= 1
            else:
                yield number, order

    def close(self) -> None:
        for child in self.children:
            child.stop()


class _Child:
    """One process and the thread that feeds it; a process that dies takes its trial with it."""

    def __init__(
        self,
        first: str,
        tasks: queue.SimpleQueue[tuple[int, str] | None],
        results: queue.SimpleQueue[tuple[int, Order | None]],
    ) -> None:
        self.first, self.tasks, self.results = first, tasks, results
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False
        self.lock = threading.Lock()
        threading.Thread(target=self._feed, name=THREAD, daemon=True).start()

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            if self.process is not None:
                self.process.kill()
        self.tasks.put(None)

    def _feed(self) -> None:
        while not self.stopped and (task := self.tasks.get()) is not None:
            number, text = task
            try:
                for order in self._ask(text):
                    self.results.put((number, order))
            except (OSError, ValueError) as error:
                if not self.stopped:
                    logger.debug("trial %d was lost with its process: %r", number, error)
                self._end()
            self.results.put((number, None))
        self._end()

    def _ask(self, text: str) -> Iterator[Order]:
        """The orders of one trial. Raises: OSError or ValueError if the process is gone."""
        reader, writer = self._streams()
        writer.write(text + "\n")
        writer.flush()
        while (reply := json.loads(reader.readline())) is not None:
            yield order_from(reply)

    def _streams(self) -> tuple[IO[str], IO[str]]:
        with self.lock:
            if self.stopped:
                raise OSError("the search is over")
            is_new = self.process is None
            process = self.process = self.process or _start()
        if process.stdin is None or process.stdout is None:
            raise OSError("the process has no pipes")
        if is_new:
            process.stdin.write(self.first + "\n")
        return process.stdout, process.stdin

    def _end(self) -> None:
        with self.lock:
            process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()


def _start() -> subprocess.Popen[str]:
    """A process that runs `tncompiler.planning.worker`, from where this one imports."""
    paths = [path or os.getcwd() for path in sys.path]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tncompiler.planning.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
