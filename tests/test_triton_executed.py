"""Compiled kernels run, without a GPU: the machine code of every configuration, on `tests.ptx`.

The interpreter shows what a kernel says, the machine what the compiler has made of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.networks import fuzzed_network
from tests.test_triton_lanes import FIXED

PRODUCTS = ("2", "wide LowRank float16", "wide LowRank float32")
LAYERS = ("TT", "TTMatrix", "Tucker", "CP", "TensorRing", "wide TTMatrix", "wide LowRank")
DTYPES = ("float16", "bfloat16", "float32", "float64")
NETWORKS = 40


def python(*arguments: str) -> str:
    """What a Python process prints in which kernels are compiled, not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


Found = dict[str, dict[str, Any]]


def executed(cases: Sequence[str]) -> Found:
    """What running each case gave, as `tests.executed` says."""
    return read(python("-m", "tests.executed", *cases).splitlines())


def read(lines: Sequence[str]) -> Found:
    found = [json.loads(line) for line in lines]
    return {one["case"]: one for one in found}


def check(found: Found) -> None:
    wrong = [f"{case}\n{text}" for case, one in found.items() for text in one["wrong"]]
    assert not wrong, "\n".join(wrong)
    assert sum(one["launches"] for one in found.values()) > len(found)


def instructions(found: Found) -> set[str]:
    """The first two words of everything that ran."""
    return {name for one in found.values() for name in one["instructions"]}


# ---------------------------------------------------------------------------- in every run

FAST = """
import torch
from tests.executed import Found, as_device, main
from tests.test_triton_lanes import MERGED
from tncompiler.backends.source import Source, load

a = torch.arange(32, dtype=torch.float64).reshape(8, 4) ** 2
out = torch.full((2,), float("nan"), dtype=torch.float64)
with as_device(Found("merged"), checked=False):
    load(Source(MERGED, "run")).run(a, out)
print(out.tolist())
main(["TT float32"])
"""


@pytest.fixture(scope="module")
def fast() -> list[str]:
    """One process for both: to load torch takes longer than to run a kernel."""
    return python("-c", FAST).splitlines()


def test_sums_over_merged_axes_are_wrong_before_triton_3_9(fast: list[str]) -> None:
    """what `sums_rightly` refuses is wrong, and what it lets pass is right"""
    expected = (np.arange(32.0) ** 2).reshape(4, 2, 4).sum(axis=(0, 2))
    assert (json.loads(fast[0]) == expected).all() == FIXED


def test_every_configuration_agrees_with_the_oracle(fast: list[str]) -> None:
    """forward and backward"""
    found = read(fast[1:])
    check(found)
    assert all(one["kernels"] > one["candidates"] > 1 for one in found.values())
    assert {"shfl.sync", "bar.sync"} <= instructions(found)


# ---------------------------------------------------------------------------- and now and then


@pytest.mark.slow
def test_products_on_tensor_cores_agree_with_the_oracle() -> None:
    found = executed(PRODUCTS)
    check(found)
    assert {"mma.sync", "ldmatrix.sync"} <= instructions(found)


BROKEN = """
import json
import tests.executed as executed

CHANGES = (("mul.f32", "add.f32"), ("bar.sync \\t0;", ""), ("setp.lt.s32", "setp.ne.s32"))
compiled = executed.Device.compile
found = []
for old, new in CHANGES:
    def broken(*args):
        made = compiled(*args)
        made.asm["ptx"] = made.asm["ptx"].replace(old, new)
        return made

    executed.Device.compile = broken
    found.append(executed.run_case("TT float32", turns=2).wrong)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_broken_kernel_is_found() -> None:
    """a wrong product, no barriers, and rows beyond the last"""
    product, barrier, outside = json.loads(python("-c", BROKEN))
    assert "error / bound" in product[0] and "launched" in product[0]
    assert "no barrier between them" in barrier[0]
    assert "outside every array" in outside[0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers(dtype: str) -> None:
    check(executed([f"{name} {dtype}" for name in LAYERS]))


def seeds(count: int) -> list[str]:
    """Networks with gradients; sums of many thousand terms would take hours."""
    kinds = ((seed, fuzzed_network(seed).kind) for seed in range(10 * count))
    return [str(seed) for seed, kind in kinds if kind not in ("integer", "long")][:count]


@pytest.mark.slow
def test_random_networks() -> None:
    check(executed(seeds(NETWORKS)))
