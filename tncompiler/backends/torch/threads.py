"""Programs on one of torch's threads, where waking the others takes longer than they save.

torch's threads fall asleep soon after an operation that they shared, and the next one that is to be
shared waits for them: a product of 60 µs took 75 on two threads right after another, 100 on one,
and 105 to 210 on two after some time in which they had nothing to do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
_Set = Callable[[int], int]


@cache
def _setters() -> tuple[_Set, _Set | None] | None:
    """How to tell OpenMP, and MKL if torch has it, how many threads the calling thread may take;
    None where torch has threads of another kind.

    `torch.set_num_threads` would tell it to every thread that meets torch first meanwhile, too, and
    that one keeps it. What torch itself is linked to is asked: other packages bring OpenMP as well.
    """
    try:
        # PyDLL: to let go of the interpreter's lock takes longer than a call this short
        linked = ctypes.PyDLL(torch._C.__file__)
        openmp: _Set = linked.omp_set_num_threads
    except (OSError, AttributeError, TypeError):
        return None
    before = torch.get_num_threads()
    openmp(1)
    is_heard = torch.get_num_threads() == 1
    openmp(before)
    return (openmp, getattr(linked, "MKL_Set_Num_Threads_Local", None)) if is_heard else None


def on_one_thread(run: Callable[P, T]) -> Callable[P, T]:
    """The function, which has one thread for operations on the CPU while it runs; no other thread's
    share changes."""

    @wraps(run)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        count = torch.get_num_threads()
        setters = _setters() if count > 1 else None
        if setters is None:
            return run(*args, **kwargs)
        openmp, mkl = setters
        before = None
        try:
            openmp(1)
            before = mkl(1) if mkl else None
            return run(*args, **kwargs)
        finally:
            openmp(count)
            if mkl and before is not None:
                mkl(before)  # 0 where it had none of its own

    return called
