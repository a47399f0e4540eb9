"""Convolutions whose images have their channels last: equal values, and no image copied."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.convolutions import random_convolution
from tests.large import as_if_large
from tests.test_convolutions import RUNNERS, worst_of
from tncompiler.ir.convolution import has_channels_last
from tncompiler.ir.program import Convolve, Map, Permute, Program
from tncompiler.planning.layout_groups import joined_groups, own_order

SEEDS = 40
MOVES = {1: ((2, 1, 1),), 2: ((2, 1, 1), (1, 2, 0)), 3: ((1, 1, 1), (2, 1, 0), (1, 2, 1))}


def helper(library: str, name: str) -> Any:
    return getattr(import_module(f"tncompiler.backends.{library}.windows"), name)


def turned(array: np.ndarray, library: str) -> Any:
    """The array as it is for others, its axes 1 and 2 innermost in memory."""
    moved = np.ascontiguousarray(np.moveaxis(array, (1, 2), (-2, -1)))
    if library == "numpy":
        return np.moveaxis(moved, (-2, -1), (1, 2))
    return torch.from_numpy(moved).movedim((-2, -1), (1, 2))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_channels_last_gives_the_same(
    library: str, dimensions: int, channels: int, groups: int
) -> None:
    """All three kinds, and the result of an image is laid out as the data is."""
    rng = np.random.default_rng([dimensions, channels, groups])
    moves, sizes, taps = MOVES[dimensions], (9, 8, 7)[:dimensions], (3, 2, 2)[:dimensions]
    data = rng.standard_normal((2, groups, channels, *sizes)).astype(np.float32)
    weight = rng.standard_normal((groups, 5, channels, *taps)).astype(np.float32)
    counts = [
        (n + before - (k - 1) * reach - 1) // step + 1
        for n, k, (step, reach, before) in zip(sizes, taps, moves, strict=True)
    ]
    back = rng.standard_normal((2, groups, channels, *counts)).astype(np.float32)
    cotangent = rng.standard_normal((2, groups, 5, *counts)).astype(np.float32)
    swapped = [(reach, step, before) for step, reach, before in moves]
    for kind, a, b, positions, steps in (
        ("gather_windows", data, weight, counts, moves),
        ("scatter_windows", back, weight, sizes, moves),
        ("kernel_windows", data, cotangent, taps, swapped),
    ):
        expected = helper("numpy", kind)(a.astype(float), b.astype(float), positions, steps)
        images = 2 if kind == "kernel_windows" else 1
        given = [turned(x, library) for x in (a, b)[:images]]
        rest = [b if library == "numpy" else torch.from_numpy(b)] * (2 - images)
        found = helper(library, kind)(*given, *rest, positions, steps, last=True)
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-4)
        if images == 1:
            moved = np.moveaxis(np.asarray(found), (1, 2), (-2, -1))
            assert moved.flags.c_contiguous


def test_kernels_with_channels_last_in_groups() -> None:
    """torch 2.13 adds up other numbers where image and kernel both have channels last"""
    kernel = torch.randn(2, 1, 4, 3, 1).permute(0, 1, 3, 2, 4)
    image = torch.randn(3, 2, 3, 6, 8)
    moves = ((3, 2, 1), (2, 1, 2))
    gather = helper("torch", "gather_windows")
    expected = gather(image.double(), kernel.double(), (1, 6), moves).float()
    torch.testing.assert_close(gather(image, kernel, (1, 6), moves), expected)


@pytest.mark.parametrize("runner", RUNNERS)
def test_layouts_by_time_give_the_same(runner: str) -> None:
    with as_if_large():
        for seed in range(RUNNERS.index(runner), SEEDS, len(RUNNERS)):
            worst_of(random_convolution(seed), (runner,))


# ---------------------------------------------------------------------------- which layout


def step_of(expr: tnc.Expr, sizes: dict[str, int]) -> Program:
    """Forward and backward of a training step."""
    compilation = tnc.compile(expr, backend="torch", seed=0).compilation
    wrt = tuple(leaf.name for leaf in compilation.params)
    return compilation.joint(compilation.default_dtypes("float32"), compilation.nominal(sizes), wrt)


def two_layers() -> tnc.Expr:
    """Two CP convolutions with biases and relus between them, on images whose number is free."""
    b, h, w = tnc.indices("b h w")
    channel = tnc.Index("c0", 16)
    x: tnc.Expr = tnc.input("images", b, channel, h, w)
    for number in (1, 2):
        out, h2, w2 = tnc.Index(f"c{number}", 32), *tnc.indices(f"h{number} w{number}")
        p, q = tnc.Index("p", 3), tnc.Index("q", 3)
        seen = x.window(h, out=h2, kernel=p, padding=1).window(w, out=w2, kernel=q, padding=1)
        kernel = tnc.formats.CP(rank=24).network((channel, p, q), (out,), name=f"conv{number}")
        made = tnc.contract(seen, kernel, out=(b, out, h2, w2))
        x = tnc.relu(made + tnc.param(f"bias{number}", out))
        channel, h, w = out, h2, w2
    return x.mean(h, w)


def test_a_step_copies_no_image_and_maps_nothing_askew() -> None:
    """but for the input, which has its channels first"""
    program = step_of(two_layers(), {"b": 128, "h": 8, "w": 8})
    copies = [step for step in program.steps if isinstance(step.op, Permute)]
    images = [step for step in copies if len(step.out.shape) == 4]
    assert not [step for step in images if step.operands != ("images",)]
    moved = [step.op for step in program.steps if isinstance(step.op, Convolve)]
    assert moved and all(map(has_channels_last, moved))
    for step in program.steps:
        if isinstance(step.op, Map):
            whole = tuple(range(len(step.out.shape)))
            wires = [w for w in step.op.inputs if len(w) == len(whole)]
            assert all(w == whole for w in wires), step.text()


def test_values_that_maps_join_are_a_group() -> None:
    program = step_of(two_layers(), {"b": 8, "h": 8, "w": 8})
    steps = {step.out.name: step for step in program.steps}
    groups = list(joined_groups(steps, list(steps)))
    assert max(map(len, groups)) >= 5  # product, sum, relu, its gate and the cotangent
    members = [name for group in groups for name in group]
    assert len(members) == len(set(members))
    assert own_order((2, 0, 1), (0, 1, 2)) == (1, 2, 0)
