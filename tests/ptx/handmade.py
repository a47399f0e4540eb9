"""Small kernels written by hand, for the tests of the machine."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tests.ptx.machine import Order, forward, run_grid


def kernel(body: str, threads: int = 32, parameters: int = 2) -> str:
    """A kernel of pointers; %rd1, %rd2, … are loaded, %r1 is the thread, %r2 = 4 * %r1."""
    declared = ",\n".join(f"\t.param .u64 .ptr .global .align 1 p{k}" for k in range(parameters))
    loads = "\n".join(f"\tld.param.b64 %rd{k + 1}, [p{k}];" for k in range(parameters))
    return f"""
.version 8.7
.target sm_80
.extern .shared .align 16 .b8 global_smem[];
.visible .entry made(
{declared}
)
.reqntid {threads}
{{
	.reg .pred %p<9>;
	.reg .b16 %rs<99>;
	.reg .b32 %r<99>;
	.reg .b64 %rd<99>;
	.loc	1 279 0                         // <file>:279:0
{loads}
	mov.u32 %r1, %tid.x;
	shl.b32 %r2, %r1, 2;
{body}
	ret;
}}
	.section	.debug_abbrev
	{{
.b8 1
	}}
"""


# 4 bytes a thread
LOAD = "cvt.u64.u32 %rd9, %r2; add.s64 %rd10, %rd1, %rd9; ld.global.b32 %r3, [%rd10];"
STORE = "cvt.u64.u32 %rd9, %r2; add.s64 %rd11, %rd2, %rd9; st.global.b32 [%rd11], {%r9};"


def run(
    body: str,
    *given: np.ndarray,
    threads: int = 32,
    order: Order = forward,
    out: Any = np.uint32,
    races: bool = False,
) -> np.ndarray:
    """What a kernel writes through its last pointer."""
    result = np.zeros(threads, out)
    run_grid(kernel(body, threads, len(given) + 1), [*given, result], (1,), order, races=races)
    return result


def bits(kind: str, value: float) -> int:
    """The bits of a number, as a register holds them."""
    if kind == "bf16":
        return bits("f32", value) >> 16
    if kind[0] in "bsu":
        return int(value) & ((1 << int(kind[1:])) - 1)
    code = {"f16": "e", "f32": "f", "f64": "d"}[kind]
    return int.from_bytes(struct.pack(f"<{code}", value), "little")
