"""Random convolutions, as torch writes them and as contractions with windows.

Deterministic in the seed: 1 to 3 dimensions, stride, dilation, padding, groups, transposed or not;
the kernel is dense, or one of the formats CP, Tucker and TT, whose dense kernel torch is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

import tncompiler as tnc
from tncompiler.ir.expressions import Expr

KERNELS = ("dense", "dense", "cp", "tucker", "tt")


@dataclass(frozen=True)
class Convolution:
    """``sizes`` of the image, the kernel's ``taps``, and what torch's functions are called with.

    ``channels`` are those of the input and of the output, over all groups together. ``more`` is
    the output padding of a transposed convolution, less than stride or dilation, as torch has it,
    and than stride and padding together, beyond which one more window would fit.
    """

    seed: int
    batch: int
    channels: tuple[int, int]
    groups: int
    sizes: tuple[int, ...]
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    transposed: bool
    more: tuple[int, ...]
    kernel: str
    rank: int

    @property
    def results(self) -> tuple[int, ...]:
        """The sizes of the result."""
        found = []
        for n, k, s, d, p, m in zip(
            self.sizes,
            self.taps,
            self.stride,
            self.dilation,
            self.padding,
            self.more,
            strict=True,
        ):
            reach = d * (k - 1) + 1
            found.append(
                (n - 1) * s - 2 * p + reach + m if self.transposed else _count(n, k, s, d, p)
            )
        return tuple(found)


def _count(n: int, k: int, s: int, d: int, p: int) -> int:
    return (n + 2 * p - d * (k - 1) - 1) // s + 1


def random_convolution(seed: int) -> Convolution:
    """The convolution of a seed: one whose windows fit and whose result is not empty."""
    rng = np.random.default_rng([seed, 8])
    while True:
        drawn = _drawn(seed, rng)
        fits = drawn.transposed or all(
            n + 2 * p >= d * (k - 1) + 1
            for n, k, d, p in zip(
                drawn.sizes, drawn.taps, drawn.dilation, drawn.padding, strict=True
            )
        )
        if fits and all(size > 0 for size in drawn.results):
            return drawn


def _drawn(seed: int, rng: np.random.Generator) -> Convolution:
    dimensions = int(rng.choice([1, 1, 2, 2, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.integers(low, high + 1, dimensions))

    groups = int(rng.choice([1, 1, 1, 2, 3]))
    channels = tuple(groups * int(n) for n in rng.integers(1, 4, 2))
    taps, stride, dilation, padding = each(1, 4), each(1, 3), each(1, 3), each(0, 3)
    transposed = bool(rng.random() < 0.3)
    most = (min(max(s, d), s + p) for s, d, p in zip(stride, dilation, padding, strict=True))
    more = tuple(int(rng.integers(m)) for m in most)
    return Convolution(
        seed,
        int(rng.integers(1, 4)),
        (channels[0], channels[1]),
        groups,
        each(1, 9 if dimensions < 3 else 6),
        taps,
        stride,
        dilation,
        padding,
        transposed,
        more if transposed else (0,) * dimensions,
        str(rng.choice(KERNELS)),
        int(rng.integers(1, 4)),
    )


def torch_convolution(case: Convolution, x: Tensor, weight: Tensor) -> Tensor:
    """torch's own; the weight has axes (groups, out, in, taps…)."""
    last = len(case.sizes) - 1
    how: dict[str, Any] = {
        "stride": case.stride,
        "padding": case.padding,
        "dilation": case.dilation,
        "groups": case.groups,
    }
    if not case.transposed:
        made = (functional.conv1d, functional.conv2d, functional.conv3d)[last]
        return made(x, weight.flatten(0, 1), **how)
    made = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )[last]
    swapped = weight.transpose(1, 2).flatten(0, 1)
    return made(x, swapped, output_padding=case.more, **how)


@dataclass(frozen=True)
class Network:
    """``result`` convolves the input "x" with ``kernel``, a network of the other leaves."""

    result: Expr
    kernel: Expr


def network(case: Convolution, *, free: bool = True) -> Network:
    """The convolution as a contraction; batch and image sizes are free where that is possible."""
    n = len(case.sizes)
    g, i, o = tnc.indices("g i o", g=case.groups, **_channels(case))
    ks = [tnc.Index(f"k{d}", size) for d, size in enumerate(case.taps)]
    known = case.transposed or not free
    b = tnc.Index("b")
    sources = [tnc.Index(f"s{d}", case.sizes[d] if known else None) for d in range(n)]
    results = [tnc.Index(f"r{d}", case.results[d] if known else None) for d in range(n)]
    x = tnc.input("x", b, g, i, *sources)
    terms = kernel_terms(case, (g, o, i, *ks))
    windows = []
    for d, k in enumerate(ks):
        far, near = (results[d], sources[d]) if case.transposed else (sources[d], results[d])
        padding = case.padding[d]
        after = padding
        if case.transposed:  # the result's own size says how far it is padded
            reach = case.dilation[d] * (k.size - 1) + 1
            after = max(0, (near.size - 1) * case.stride[d] + reach - padding - far.size)
        windows.append(
            tnc.window(
                far,
                out=near,
                kernel=k,
                stride=case.stride[d],
                dilation=case.dilation[d],
                padding=(padding, after),
            )
        )
    result = tnc.contract(x, *windows, *terms, out=(b, g, o, *results))
    return Network(result, tnc.contract(*terms, out=(g, o, i, *ks)))


def _channels(case: Convolution) -> dict[str, int]:
    return {"i": case.channels[0] // case.groups, "o": case.channels[1] // case.groups}


def kernel_terms(case: Convolution, axes: tuple[tnc.Index, ...]) -> list[Expr]:
    """The leaves whose contraction is the kernel."""
    if case.kernel == "dense":
        return [tnc.param("W", *axes)]
    if case.kernel == "cp":
        r = tnc.Index("r", case.rank)
        return [tnc.param(f"F{d}", axis, r) for d, axis in enumerate(axes)]
    if case.kernel == "tucker":
        ranks = [tnc.Index(f"r{axis.name}_", case.rank) for axis in axes]
        core = tnc.param("core", *ranks)
        pairs = zip(axes, ranks, strict=True)
        return [core, *(tnc.param(f"F{d}", axis, r) for d, (axis, r) in enumerate(pairs))]
    bonds = [tnc.Index(f"bond{d}", case.rank) for d in range(len(axes) - 1)]
    around = [(), *((bond,) for bond in bonds), ()]
    return [tnc.param(f"G{d}", *around[d], axis, *around[d + 1]) for d, axis in enumerate(axes)]


def arrays(case: Convolution, leaves: tuple[Any, ...], dtype: str) -> dict[str, np.ndarray]:
    """Numbers for the input and for every core."""
    rng = np.random.default_rng([case.seed, 9])
    shape = (case.batch, case.groups, case.channels[0] // case.groups, *case.sizes)
    found = {"x": rng.standard_normal(shape).astype(dtype)}
    for leaf in leaves:
        if leaf.name != "x":
            found[leaf.name] = rng.standard_normal(leaf.shape).astype(dtype)
    return found
