"""CUDA graphs: a generated function captured once and replayed, for programs of many launches.

A graph reads and writes fixed buffers. They are ours: arguments are copied into them, results out
of them, so that a caller's tensors are the caller's own, and none is changed by a later call.
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

    Raises what the function raises at its first call. Memory: a copy of arguments and results.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._arguments: list[Tensor] = []
        self._results: tuple[Tensor, ...] = ()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with self._lock:
            if self._graph is None:
                self._capture(tensors)
            else:
                for held, given in zip(self._arguments, tensors, strict=True):
                    held.copy_(given)
            assert self._graph is not None
            self._graph.replay()
            return tuple(result.clone() for result in self._results)

    def _capture(self, tensors: Sequence[Tensor]) -> None:
        device = tensors[0].device
        self._arguments = [tensor.detach().clone() for tensor in tensors]
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM):
                    self.run(*self._arguments)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._results = self.run(*self._arguments)
        self._graph = graph
