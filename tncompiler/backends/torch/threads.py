"""Programs on one of torch's threads, where waking the others takes longer than they save.

torch's threads fall asleep soon after an operation that they shared, and the next one that is to be
shared waits for them: a product of 60 µs took 75 on two threads right after another, 100 on one,
and 105 to 210 on two after some time in which they had nothing to do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from tncompiler.backends.numpy.threads import gomp

P = ParamSpec("P")
T = TypeVar("T")
_Set = Callable[[int], int]


@cache
def _setters() -> tuple[_Set, _Set] | None:
    """How to tell OpenMP and MKL how many threads the calling thread may take; None where torch has
    another OpenMP.

    `torch.set_num_threads` tells it to every thread that meets torch first meanwhile, too, and that
    one keeps it.
    """
    found = gomp()
    if found is None:
        return None
    # PyDLL: to let go of the interpreter's lock for a call this short takes longer than the call
    openmp = ctypes.PyDLL(found._name).omp_set_num_threads
    library = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"
    mkl = getattr(ctypes.PyDLL(str(library)), "MKL_Set_Num_Threads_Local", None)
    return openmp, mkl or _no_mkl


def _no_mkl(count: int) -> int:
    return 0


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
        openmp(1)
        before: Any = mkl(1)
        try:
            return run(*args, **kwargs)
        finally:
            mkl(before)  # 0 where it had none of its own
            openmp(count)

    return called
