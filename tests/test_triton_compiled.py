"""What kernels compile to, read from the machine code: no GPU is needed.

One child process compiles everything here, once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch

import tncompiler as tnc
from tests.test_triton import layer
from tncompiler.backends.triton.kernels import (
    SHARED_LIMIT,
    CompiledLaunch,
    Job,
    compile_jobs,
    job_of,
    read_launch,
)
from tncompiler.ir.errors import BackendError
from tncompiler.module import CompiledModule

Launches = Mapping[str, list[CompiledLaunch]]


def product(dtype: str, precision: str = "ieee") -> CompiledModule:
    b, i, o = tnc.indices("b i o", i=256, o=256)
    y = tnc.contract(tnc.input("x", b, i), tnc.param("W", i, o), out=(b, o))
    options = tnc.PlanOptions(precision=precision)
    return tnc.compile(tnc.relu(y), backend="triton", dtype=dtype, plan=options)


def elementwise(size: int) -> CompiledModule:
    i, j = tnc.indices("i j", i=size, j=1024)
    y = tnc.tanh(tnc.input("x", i, j)) * tnc.input("scale", i)
    return tnc.compile(y, backend="triton", dtype="float32")


MODULES = {
    "chain": lambda: layer("TTMatrix", "triton", torch.float16).cores,
    "float16": lambda: product("float16"),
    "float32": lambda: product("float32"),
    "tf32": lambda: product("float32", "tf32"),
    "narrow": lambda: elementwise(2**10),
    "wide": lambda: elementwise(2**22),
}
TARGETS = {name: "sm_90" for name in MODULES}


def forward_job(module: CompiledModule, target: str, batch: int = 256) -> Job:
    compilation = module.compilation
    nominal = compilation.nominal({s: batch for s in compilation.free_symbols})
    program = module.program()
    source = compilation.executable(program, "triton", "forward").source
    return job_of(program, source, {**compilation.binding, **nominal}, target)


@pytest.fixture(scope="module")
def launches() -> Launches:
    jobs = [forward_job(make(), TARGETS[name]) for name, make in MODULES.items()]
    return dict(zip(MODULES, compile_jobs(jobs), strict=True))


@pytest.mark.parametrize("name", MODULES)
def test_nothing_spills_and_shared_memory_fits(launches: Launches, name: str) -> None:
    for launch in launches[name]:
        assert launch.spill_bytes == 0
        assert launch.shared_bytes <= SHARED_LIMIT["sm_90"]
        assert 0 < launch.registers <= 255
        assert launch.binary[:4] == b"\x7fELF"
        assert launch.fits("sm_90")


@pytest.mark.parametrize("name", ["chain", "float16", "float32", "tf32"])
def test_products_run_on_tensor_cores(launches: Launches, name: str) -> None:
    assert re.search(r"wgmma\.mma_async|mma\.sync", launches[name][0].asm)


def test_no_tf32_unless_it_is_asked_for(launches: Launches) -> None:
    assert "tf32" not in launches["float32"][0].asm
    assert "tf32" in launches["tf32"][0].asm


def shifts_program_number_in_32_bits(asm: str) -> bool:
    """Whether the offset of a program's tile is a 32-bit product."""
    found = re.search(r"mov\.u32\s+(%r\d+), %ctaid\.x", asm)
    assert found
    product_32 = rf"(shl|mul\.lo|mad\.lo)\.[bsu]32\s+%r\d+, {re.escape(found.group(1))},"
    return re.search(product_32, asm) is not None


def test_offsets_multiply_in_64_bits_where_an_extent_needs_it(launches: Launches) -> None:
    assert not shifts_program_number_in_32_bits(launches["wide"][0].asm)
    assert shifts_program_number_in_32_bits(launches["narrow"][0].asm)


def test_loads_are_vectors(launches: Launches) -> None:
    assert re.search(r"ld\.global[\w.:]*\.v4\.", launches["narrow"][0].asm)


def test_kernels_of_a_compiled_network() -> None:
    """f.kernels, and that len() is the number of launches; AMD's compiler takes them as well"""
    found = layer("LowRank", "triton", torch.float16).cores.kernels("gfx942", {"b": 64})
    assert len(found) == 1
    assert "amdgcn" in found[0].asm or "amdhsa" in found[0].asm


def test_an_unknown_target_is_an_error() -> None:
    with pytest.raises(BackendError, match="there is no target 'sm_12'"):
        product("float32").kernels("sm_12")


def test_a_kernel_that_does_not_compile_is_an_error() -> None:
    with pytest.raises(BackendError, match="the kernel k did not compile: Bad: it is"):
        read_launch({"name": "k", "error": "Bad: it is"})
