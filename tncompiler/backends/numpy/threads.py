"""Blocks of a loop on several threads, each with a BLAS of one thread.

A product of a block is too small for BLAS to share out, so the blocks are: every thread works
through parts of them in ascending order. What is summed is added part by part in that order too, so
the result does not depend on which thread was first.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import cache, partial, wraps
from itertools import count
from operator import itemgetter
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

import threadpoolctl

from tncompiler.backends.sums import RunningSum

Block = Callable[[int, int], tuple[Any, ...]]
PARTS = 2  # for each lane: who comes late finds less left
LATE_S = 5e-4  # a thread that is waited for longer, and longer than others work, has no core
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0  # for which nothing is handed out then
P = ParamSpec("P")
T = TypeVar("T")


# ---------------------------------------------------------------------------- one thread for BLAS


@cache
def _libraries() -> tuple[Any, ...]:
    """The BLAS libraries of this process; finding them takes a millisecond."""
    found = threadpoolctl.ThreadpoolController().select(user_api="blas")
    return tuple(found.lib_controllers)


def blas_threads() -> int:
    """How many threads NumPy's products may take; what calls in progress ask for left aside."""
    held = [count for _, count in _one_thread.before] if _one_thread.inside else []
    return max((1, *held, *(int(library.num_threads) for library in _libraries())))


class _OneThread:
    """How many calls are in progress that want BLAS to have one thread, and what it had before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.before: list[tuple[Any, int]] = []  # libraries that were changed

    def enter(self) -> None:
        with self.lock:
            if not self.inside:
                counts = [(library, int(library.num_threads)) for library in _libraries()]
                self.before = [(library, count) for library, count in counts if count > 1]
                for library, _ in self.before:
                    _set_threads(library, 1)
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                for library, count in self.before:
                    _set_threads(library, count)


def _set_threads(library: Any, count: int) -> None:
    """Set how many threads a BLAS library has.

    From threadpoolctl 3.8 on it does nothing, unless the thread that asks is the first that ever
    did. Here whole calls take turns at the number, under one lock.
    """
    let_go = getattr(library, "clear_controlling_thread", None)
    if let_go is not None:
        let_go(force=True)
    library.set_num_threads(count)
    if let_go is not None:
        let_go(force=True)


_one_thread = _OneThread()


_call = threading.local()  # what is known of the call that this thread is in


def has_one_blas_thread() -> bool:
    """Whether this thread is in a call that has taken BLAS's threads away; others do not count, or
    a result would depend on what they do."""
    return getattr(_call, "alone", False)


def one_blas_thread(run: Callable[P, T]) -> Callable[P, T]:
    """The function, with one thread for all BLAS libraries of the process while it runs.

    The number belongs to the process: calls from several threads share one setting, and the last
    of them that is done puts back what was there before the first.
    """

    @wraps(run)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        setting, before = _one_thread, has_one_blas_thread()
        setting.enter()
        _call.alone = True
        try:
            return run(*args, **kwargs)
        finally:
            _call.alone = before
            setting.leave()

    return guarded


# ---------------------------------------------------------------------------- lanes

_PINS = hasattr(os, "sched_setaffinity")  # on Linux a process can choose cores
_core: Callable[[], int] = ctypes.CDLL(None).sched_getcpu if _PINS else lambda: 0


class _Worker(threading.Thread):
    """A thread that runs what it is given, anywhere but on the core of whoever gives it."""

    def __init__(self, number: int) -> None:
        super().__init__(name=f"tncompiler-{number}", daemon=True)
        self.inbox: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self.kept_off = -1
        self.start()

    def run(self) -> None:
        while True:
            self.inbox.get()()

    def keep_off(self, core: int, cores: frozenset[int]) -> None:
        """Leave a core alone: kernels that save power wake threads on the core that is busy."""
        if core != self.kept_off and self.native_id is not None:
            os.sched_setaffinity(self.native_id, cores - {core} or cores)
            self.kept_off = core


class _Workers:
    """Threads beside the calling one: as many as there are further cores, for all callers."""

    def __init__(self) -> None:
        everything = range(os.cpu_count() or 1)
        self.cores = frozenset(os.sched_getaffinity(0) if _PINS else everything)
        self.idle: SimpleQueue[_Worker] = SimpleQueue()
        for number in range(len(self.cores) - 1):
            self.idle.put(_Worker(number))

    def call(self, run: Callable[[], None]) -> bool:
        """Have an idle worker run something; False if all are busy: no core is taken twice."""
        try:
            worker = self.idle.get_nowait()
        except Empty:
            return False
        if _PINS:
            worker.keep_off(_core(), self.cores)
        context = copy_context()  # where np.errstate keeps what it was told

        def told() -> None:
            context.run(run)
            self.idle.put(worker)

        worker.inbox.put(told)
        return True


class _Crowd:
    """Whether other threads keep the cores busy: OpenBLAS's look for work for a tenth of a second
    after each product that they shared, and a worker beside them waits for turns of milliseconds.

    Each time that a worker comes late nothing is handed out for a while, twice as long as before.
    """

    def __init__(self) -> None:
        self.until, self.pause = 0.0, FIRST_PAUSE_S

    def is_here(self) -> bool:
        return time.monotonic() < self.until

    def note(self, waited_s: float, worked_s: float) -> None:
        """How long the calling thread waited for others, and how long it worked before."""
        if waited_s > max(LATE_S, worked_s):
            self.until = time.monotonic() + self.pause
            self.pause = min(2 * self.pause, LONGEST_PAUSE_S)
        else:
            self.pause = FIRST_PAUSE_S


_crowd = _Crowd()
_lock = threading.Lock()
_forked = False  # OpenMP's threads are lost in a forked process, and it waits for them
_workers: _Workers | None = None


def _shared_workers() -> _Workers:
    global _workers
    with _lock:
        if _workers is None:
            _workers = _Workers()
        return _workers


def is_forked() -> bool:
    """Whether this process was forked from one that had this module loaded."""
    return _forked


def _forget_workers() -> None:
    """Threads do not come along into a forked process."""
    global _workers, _lock, _one_thread, _forked
    _workers, _lock, _one_thread, _forked = None, threading.Lock(), _OneThread(), True
    _team.cache_clear()


os.register_at_fork(after_in_child=_forget_workers)


def together(run: Callable[[], None], threads: int) -> bool:
    """Run something on this thread, and on others as soon as they come.

    Returns when this thread is done, and whether others may still be at work: our own.
    """
    if threads > 1 and getattr(_call, "with_torch", False) and _team() is not None:
        _run_in_team(run, threads)
        return False
    wanted = 0 if threads == 1 or _crowd.is_here() else threads - 1
    called = sum(_shared_workers().call(run) for _ in range(wanted))
    run()
    return called > 0


# torch's threads go on looking for work for a while after each of its operations. Among tensors
# they are taken along: beside them, threads of our own would wait for a core.
_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _team() -> Any:
    """How to run something on each of torch's threads, by the OpenMP library that it is linked to:
    other packages bring theirs as well. None where torch is not there or has none of GNU's kind."""
    torch: Any = sys.modules.get("torch")
    if torch is None or _forked:
        return None
    try:
        parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError, TypeError):
        return None
    parallel.argtypes = [_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return parallel


_regions: dict[int, deque[Callable[[], None]]] = {}  # what the threads of each region run
_numbers = count(1)


_enter_region = _Region(lambda number: _regions[number].popleft()())


def _run_in_team(run: Callable[[], None], threads: int) -> None:
    """Run something on each thread of torch's team, in the context of this call."""
    number = next(_numbers)
    _regions[number] = deque(partial(copy_context().run, run) for _ in range(threads))
    try:
        _team()(_enter_region, number, threads, 0)
    finally:
        del _regions[number]


def among_tensors(run: Callable[P, T]) -> Callable[P, T]:
    """The function, on torch's threads and with one thread for BLAS."""

    @wraps(run)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        before = getattr(_call, "with_torch", False)
        _call.with_torch = True
        try:
            return run(*args, **kwargs)
        finally:
            _call.with_torch = before

    return one_blas_thread(called)


def run_blocks(block: Block, size: int, width: int, lanes: int) -> tuple[Any, ...]:
    """`block(start, stop)` for every `width` positions of `size`, on up to `lanes` threads.

    Returns the sums of what the blocks return, position by position. The blocks are cut into parts
    that do not depend on the threads; whoever is free takes the next part, the calling thread too,
    so that nothing waits for a core that is busy with something else.
    """
    starts = range(0, max(size, 1), width)  # one empty block, for the shapes of the sums
    share = -(-len(starts) // (PARTS * lanes))
    parts = [starts[k : k + share] for k in range(0, len(starts), share)]
    work = _Work([_Part(block, part, size, width) for part in parts])
    begun = time.perf_counter()
    shared = together(work.run, min(lanes, len(parts)))
    done = time.perf_counter()
    first, *rest = work.results()
    if shared:
        _crowd.note(time.perf_counter() - done, done - begun)
    for sums in rest:
        for total, part in zip(first, sums, strict=True):
            total += part
    return first


class _Work:
    """The parts of one loop, and what became of them."""

    def __init__(self, parts: list[_Part]) -> None:
        self.count = len(parts)
        self.left = deque(enumerate(parts))
        # number of a part, its sums, or what it raised; neither for a part that was given up
        self.done: SimpleQueue[tuple[int, tuple[Any, ...], BaseException | None]] = SimpleQueue()

    def run(self) -> None:
        """Take parts until none is left."""
        while True:
            try:
                number, part = self.left.popleft()
            except IndexError:
                return
            try:
                self.done.put((number, part(), None))
            except BaseException as error:  # raised where the call was made
                self.done.put((number, (), error))
                self._give_up()

    def _give_up(self) -> None:
        while self.left:
            try:
                number, _ = self.left.popleft()
            except IndexError:
                return
            self.done.put((number, (), None))

    def results(self) -> list[tuple[Any, ...]]:
        """What all parts gave, when no thread works on them any more; raises the first error."""
        done = sorted((self.done.get() for _ in range(self.count)), key=itemgetter(0))
        for _, _, error in done:
            if error is not None:
                raise error
        return [sums for _, sums, _ in done]


class _Part:
    """Some blocks, one after the other."""

    def __init__(self, block: Block, starts: range, size: int, width: int) -> None:
        self.block, self.starts, self.size, self.width = block, starts, size, width

    def __call__(self) -> tuple[Any, ...]:
        """The sums of what the blocks return, in arrays of their own."""
        sums: list[RunningSum] = []
        for start in self.starts:
            parts = self.block(start, min(start + self.width, self.size))
            if sums:
                for total, part in zip(sums, parts, strict=True):
                    total.add(part)
            else:
                sums = [RunningSum.of(part) for part in parts]
        return tuple(total.total for total in sums)
