"""Sums over the wrong lanes: known where triton makes them, and not made by generated kernels."""

from __future__ import annotations

import re

import pytest
import triton

import tncompiler as tnc
from tests.networks import fuzzed_network
from tncompiler.backends import emitter_of
from tncompiler.backends.source import Source
from tncompiler.backends.triton.kernels import Job, compile_jobs, job_of
from tncompiler.backends.triton.lanes import sums_rightly
from tncompiler.ir.errors import BackendError

FIXED = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)

# a sum over an axis that a reshape has merged, of as many elements as there are lanes
MERGED = """
import triton
import triton.language as tl


@triton.jit
def merged_kernel(a, out):
    x = tl.load(a + tl.arange(0, 8)[:, None] * 4 + tl.arange(0, 4)[None, :])
    x = tl.permute(tl.reshape(x, (4, 2, 4)), (1, 2, 0))
    tl.store(out + tl.arange(0, 2), tl.sum(tl.reshape(x, (2, 16)), axis=1))


def run(a, out):
    merged_kernel[(1,)](a, out, num_warps=1, num_stages=1, enable_fp_fusion=True)
"""


def ttgir(lane: str, layout: str = "#linear", axis: int = 1) -> str:
    return f"""
#linear = #ttg.linear<{{register = [], lane = {lane}, warp = [[0, 2]], block = []}}>
module {{
    %3 = "tt.reduce"(%2) <{{axis = {axis} : i32}}> ({{
    ^bb0(%4: f64, %5: f64):
      tt.reduce.return %6 : f64
    }}) : (tensor<2x16xf64, {layout}>) -> tensor<2xf64, #ttg.slice<{{dim = 1, parent = #linear}}>>
}}
"""


IN_RUNS = "[[0, 4], [0, 8], [0, 0], [1, 0]]"
APART = "[[0, 4], [0, 8], [1, 0], [0, 1], [0, 2]]"
APART_IN_3 = "[[0, 0, 4], [0, 0, 8], [1, 0, 0], [0, 0, 1]]"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (ttgir(IN_RUNS), True),
        (ttgir(APART), False),
        (ttgir(APART, axis=0), True),
        (ttgir(APART, "#blocked"), True),
        (ttgir(APART_IN_3.replace("0, 0, 1", "0, 1, 0"), axis=2), True),
        (ttgir(APART_IN_3, "#ttg.slice<{dim = 1, parent = #linear}>"), False),
        (ttgir(APART_IN_3, "#ttg.slice<{dim = 2, parent = #linear}>", 0), True),
    ],
)
def test_lanes_that_are_apart_are_seen(text: str, right: bool) -> None:
    text = text.replace("warp = [[0, 2]]", "warp = []")
    assert sums_rightly(text, "3.7.1") is right
    assert sums_rightly(text, "3.10.0")


def test_warps_that_are_apart_are_seen() -> None:
    text = ttgir(IN_RUNS).replace("warp = [[0, 2]]", "warp = [[0, 2], [1, 0], [0, 1]]")
    assert not sums_rightly(text, "3.6.0")


def test_a_kernel_that_would_add_up_wrong_lanes_is_refused() -> None:
    job = Job(Source(MERGED, "run"), (((8, 4), "float64"), ((2,), "float64")), "sm_90")
    if FIXED:
        assert compile_jobs([job])
        return
    with pytest.raises(BackendError, match="wrong lanes"):
        compile_jobs([job])


def each_candidate(seed: int) -> list[Job]:
    """A job for every configuration of the kernels that have several, forward and backward."""
    case = fuzzed_network(seed)
    compilation = tnc.compile(*case.outputs, backend="triton", dtype=case.dtype).compilation
    dtypes, nominal = compilation.default_dtypes(case.dtype), compilation.nominal({})
    wrt = tuple(leaf.name for leaf in (*compilation.inputs, *compilation.params))
    programs = compilation.training_programs(dtypes, nominal, wrt, "triton")
    jobs = []
    for program in (programs.forward, programs.backward):
        source = emitter_of("triton")(program, "run", "ieee")
        for listed in re.findall(r"^\w+_kernels = \((.*)\)$", source.text, re.MULTILINE):
            for one in re.findall(r"dict\(.*?\)", listed):
                text = source.text.replace(listed, f"{one},")
                jobs.append(job_of(program, Source(text, source.entry), nominal, "sm_90"))
    return jobs


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_generated_kernels_add_up_the_right_lanes(seed: int) -> None:
    """in these two networks, sums over merged axes did not"""
    jobs = each_candidate(seed)
    assert len(jobs) > 5
    assert all(compile_jobs(jobs))
