"""Compile a cell's kernels, in a process of its own.

In a module of its own, because a spawned process does not import a package's `__main__`.
"""

from __future__ import annotations

import traceback

import torch

from benchmarks.gpu.layers import Cell, programs


def prepare(cell: Cell) -> str:
    """Compile a cell's kernels in another process; both find them in triton's cache."""
    from tncompiler.backends.triton import fitting

    fitting._milliseconds = lambda *args: 0.0  # the processes would disturb one another
    fitting._save = lambda choices: None
    try:
        layer, x = cell.layer("triton"), cell.input()
        made = programs(layer, x)
        made.forward()
        made.backward()
        torch.cuda.synchronize()
    except Exception:  # the run itself will say what is wrong
        return traceback.format_exc(limit=-2)
    return ""
