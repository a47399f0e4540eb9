"""Factored convolutions in torch, as TensorLy-Torch does them: layer by layer, or the kernel first.

Its own layers hold their cores in other orders; these are the same calls of conv2d on ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor
from torch.nn.functional import conv2d

from benchmarks.convolutions import convolve
from benchmarks.peers.base import Base, Contestant, tensors_of, torch_contestant
from benchmarks.problems import Arrays, Problem

Convolution = Callable[[str, Tensor, Mapping[str, Tensor]], Tensor]


def layer_by_layer(kind: str, x: Tensor, cores: Mapping[str, Tensor]) -> Tensor:
    """Channels to the rank, along the image, and to the channels again."""
    return _SEQUENCES[kind](x, cores)


def _tucker(x: Tensor, cores: Mapping[str, Tensor]) -> Tensor:
    kernel = cores["C"].transpose(0, 1)
    reduced = conv2d(x, cores["U"].t()[:, :, None, None])
    moved = conv2d(reduced, kernel, padding=kernel.shape[-1] // 2)
    return conv2d(moved, cores["V"].t()[:, :, None, None])


def _cp(x: Tensor, cores: Mapping[str, Tensor]) -> Tensor:
    rows, columns = cores["K"].t()[:, None, :, None], cores["L"].t()[:, None, None, :]
    rank, padding = rows.shape[0], rows.shape[2] // 2
    reduced = conv2d(x, cores["U"].t()[:, :, None, None])
    down = conv2d(reduced, rows, padding=(padding, 0), groups=rank)
    across = conv2d(down, columns, padding=(0, padding), groups=rank)
    return conv2d(across, cores["V"].t()[:, :, None, None])


_SEQUENCES: dict[str, Callable[[Tensor, Mapping[str, Tensor]], Tensor]] = {
    "Tucker": _tucker,
    "CP": _cp,
}


class TorchConv(Base):
    """One way to convolve with a factored kernel."""

    convolves = True

    def __init__(self, way: Convolution) -> None:
        self.way = way

    def supports(self, problem: Problem) -> str | None:
        return None if problem.windows else "has only convolutions"

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        leaves = tensors_of(problem, arrays)
        forward = partial(self.way, problem.cell.case.fields["format"], leaves["x"], leaves)
        return torch_contestant(problem, arrays, forward, leaves)


SEQUENCE, RECONSTRUCTED = TorchConv(layer_by_layer), TorchConv(convolve)
