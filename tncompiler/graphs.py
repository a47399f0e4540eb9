"""CUDA graphs: a generated function captured once and replayed, for programs of many launches.

A graph reads and writes fixed memory. Arguments that come in the same place each time, as
parameters do, are read where they are; the others are copied into buffers of ours. Results are
copied out, so that none is changed by a later call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Run = Callable[..., tuple[Tensor, ...]]

_WARM = 3  # calls before the capture: kernels are compiled and configurations chosen in them


class Graphed:
    """A function of tensors of one shape each, replayed from a graph; as safe to share as it was.

    Raises what the function raises at its first call. Memory: a copy of the results and of
    arguments that move.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._replay: Callable[[], None] | None = None
        self._read: list[Tensor] = []  # what the graph reads
        self._moving: set[int] = set()  # positions of arguments that are copied
        self._results: tuple[Tensor, ...] = ()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with self._lock:
            moved = {k for k, given in enumerate(tensors) if self._has_moved(k, given)}
            if self._replay is None or moved:
                self._moving |= moved
                self._capture(tensors)
            for k in self._moving:
                self._read[k].copy_(tensors[k])
            assert self._replay is not None
            self._replay()
            return tuple(result.clone() for result in self._results)

    def _has_moved(self, position: int, given: Tensor) -> bool:
        if self._replay is None or position in self._moving:
            return False
        read = self._read[position]
        return read.data_ptr() != given.data_ptr() or read.stride() != given.stride()

    def _capture(self, tensors: Sequence[Tensor]) -> None:
        given = [tensor.detach() for tensor in tensors]
        self._read = [t.clone() if k in self._moving else t for k, t in enumerate(given)]
        self._replay, self._results = record(self.run, self._read)


def record(run: Run, tensors: Sequence[Tensor]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """Capture a call: what runs it again on the same memory, and the results that this writes."""
    with torch.cuda.device(tensors[0].device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM):
                run(*tensors)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run(*tensors)
    return graph.replay, results
