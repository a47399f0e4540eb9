"""Factored convolutions of the corpus: their operands, flops, and a double-precision oracle.

In: a Case of kind "conv". Out: operands whose letters are B batch, s and t channels in and out, i
and j positions of the image, o and u those of the result, k and l taps; p, q and r are ranks. The
image is padded so that it keeps its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d


@dataclass(frozen=True, slots=True)
class WindowLetters:
    """Letters whose positions go together: source = out + tap - padding."""

    source: str
    out: str
    tap: str
    padding: int


INPUT, OUTPUT = "Bsij", "Btou"
# format → its cores, in the order of the layers of a factored convolution
CORES: Mapping[str, Mapping[str, str]] = {
    "Tucker": {"U": "sp", "C": "pqkl", "V": "qt"},
    "CP": {"U": "sr", "K": "kr", "L": "lr", "V": "rt"},
}
# format → orders, each as the index spaces of its products: layer by layer, and the kernel first
ORDERS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "Tucker": (("Bsijp", "Bpqklou", "Bqtou"), ("spqkl", "sqtkl", "Bstklou")),
    "CP": (("Bsijr", "Brkoj", "Brlou", "Brtou"), ("rkl", "srkl", "srtkl", "Bstklou")),
}


def sizes_of(fields: Mapping[str, Any]) -> dict[str, int]:
    """The size of every letter but the batch."""
    (s, t), (i, j), kernel = fields["channels"], fields["image"], fields["kernel"]
    ranks = dict(zip("pq", fields["rank"], strict=True)) if fields["format"] == "Tucker" else {}
    sizes = dict(s=s, t=t, i=i, j=j, o=i, u=j, k=kernel, l=kernel)
    return {**sizes, **(ranks or {"r": fields["rank"]})}


def windows_of(fields: Mapping[str, Any]) -> tuple[WindowLetters, ...]:
    padding = fields["kernel"] // 2
    return WindowLetters("i", "o", "k", padding), WindowLetters("j", "u", "l", padding)


def conv_flops(kind: str, sizes: Mapping[str, int], part: str) -> int:
    """Flops of the cheaper order; a step makes two more products for each one."""
    orders = (sum(2 * prod(sizes[k] for k in space) for space in order) for order in ORDERS[kind])
    return min(orders) * (1 if part == "forward" else 3)


def dense_kernel(kind: str, cores: Mapping[str, Tensor]) -> Tensor:
    """The kernel (t, s, k, l) that the cores make."""
    terms = ",".join(CORES[kind].values())
    return torch.einsum(f"{terms}->tskl", *(cores[name] for name in CORES[kind]))


def convolve(kind: str, x: Tensor, cores: Mapping[str, Tensor]) -> Tensor:
    """The dense convolution with the kernel of the cores."""
    kernel = dense_kernel(kind, cores)
    return conv2d(x, kernel, padding=kernel.shape[-1] // 2)
