"""Times on the GPU: a captured graph for what the device does, plain calls for what a user waits.

All in microseconds, the median of a few samples.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch

SAMPLES = 7
SAMPLE_MS = 3.0  # shorter work is repeated within a sample
Run = Callable[[], Any]


def call_us(run: Run) -> float:
    """One call after another, as a user's loop makes them."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    return _median(run)


def device_us(run: Run) -> float:
    """The same work replayed from a graph: no time of the host is in it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    gc.collect()  # a graph that is let go during a capture spoils it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    torch.cuda.synchronize()
    return _median(graph.replay)


def _median(run: Run) -> float:
    once = _elapsed(run, 1)
    count = max(1, min(1000, int(SAMPLE_MS * 1e3 / max(once, 1.0))))
    return statistics.median(_elapsed(run, count) for _ in range(SAMPLES))


def _elapsed(run: Run, count: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) * 1e3 / count


def ceilings() -> dict[str, float]:
    """What the machine reaches: copies in GB/s, products of 8192² matrices in TFLOP/s."""
    found = {}
    source = torch.empty(2**28, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    found["copy GB/s"] = 2 * source.nbytes / device_us(lambda: target.copy_(source)) / 1e3
    for dtype in ("float16", "bfloat16", "float32"):
        a = torch.randn(8192, 8192, device="cuda").to(getattr(torch, dtype))
        us = device_us(lambda a=a: a @ a)
        found[f"{dtype} TFLOP/s"] = 2 * 8192**3 / us / 1e6
    return found
