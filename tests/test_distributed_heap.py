"""Freed memory that stays with the process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from tncompiler.distributed.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.zeros(2**22, np.float32) for _ in range(12)]
    [array.fill(1.0) for array in arrays]
    del arrays
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults(how: str) -> int:
    """Pages that a process gets again for twelve arrays of 16 MiB, after it has freed them."""
    given = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(given, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_freed_arrays_is_kept() -> None:
    assert faults("keep") < 100
    assert faults("leave") > 1_000
