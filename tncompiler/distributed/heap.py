"""Memory that slices use again and again stays with the process."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, see malloc.h
_LARGEST = 2**25  # bytes of a block; more is not allowed, and larger ones are always given back
_MOST = 2**28  # freed bytes at the end of the heap


def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed arrays of up to 32 MiB, some 256 MiB of it.

    glibc gives the end of its heap back when more is free than twice the largest block that it ever
    mapped and freed, and every page of it faults again: a third of the time of slices with arrays
    of 16 MiB, and by the accident of what was freed before. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _MOST)
