"""Memory that slices use again and again stays with the process."""

from __future__ import annotations

import numpy as np

from tncompiler.planning.rates import FRESH_BYTES

_JUST_BELOW = FRESH_BYTES - 2**16


def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed arrays of up to 32 MiB, some 64 MiB of it.

    glibc gives the end of its heap back when more is free than twice the largest block below 32 MiB
    that it ever mapped and freed, and every page of it faults again: a third of the time of slices
    with arrays of 16 MiB, on those ranks that had never freed a larger one. One that is mapped and
    freed untouched is enough, and takes microseconds. Other C libraries learn nothing of it.
    """
    np.empty(_JUST_BELOW, np.uint8)
