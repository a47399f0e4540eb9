"""The machine for PTX, on small kernels written by hand whose results are known."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.ptx.machine import Order, forward, reverse, run_grid, shuffled
from tests.ptx.matrices import PRODUCTS
from tests.ptx.text import PtxError, read_kernel

ORDERS: tuple[Order, ...] = (forward, reverse, shuffled(1))


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


def test_every_thread_of_every_block_runs() -> None:
    body = f"""
    mov.u32 %r20, %ctaid.x;
    mov.u32 %r21, %ntid.x;
    mad.lo.s32 %r1, %r20, %r21, %r1;
    shl.b32 %r2, %r1, 2;
    {LOAD}
    add.f32 %r9, %r3, 0f3F800000;  // 1.0
    {STORE}"""
    given, out = np.arange(192, dtype=np.float32), np.zeros(192, np.float32)
    run_grid(kernel(body, threads=64), [given, out], (3,))
    assert (out == given + 1).all()


# ---------------------------------------------------------------------------- what is computed


def bits(kind: str, value: float) -> int:
    """The bits of a number, as a register holds them."""
    if kind == "bf16":
        return struct.unpack("<I", struct.pack("<f", value))[0] >> 16
    if kind[0] in "bsu":
        return int(value) & 2 ** int(kind[1:]) - 1
    code = {"f16": ("<e", "<H"), "f32": ("<f", "<I"), "f64": ("<d", "<Q")}[kind]
    return struct.unpack(code[1], struct.pack(code[0], value))[0]


REGISTERS = {16: "%rs", 32: "%r", 64: "%rd"}


def computed(opcode: str, kinds: Sequence[str], *given: float) -> int:
    """The bits that an instruction makes of numbers; the first kind is the result's."""
    own = [int(kind.lstrip("bfsu")) for kind in kinds]
    names = [f"{REGISTERS[n]}{40 + k}" for k, n in enumerate(own)]
    moves = [
        f"mov.b{n} {name}, {hex(bits(kind, value))};"
        for n, name, kind, value in zip(own[1:], names[1:], kinds[1:], given, strict=True)
    ]
    store = f"mul.wide.u32 %rd30, %r1, {own[0] // 8}; add.s64 %rd31, %rd1, %rd30;"
    store += f"st.global.b{own[0]} [%rd31+0], {{ {names[0]} }};"
    made = run(f"{' '.join(moves)} {opcode} {', '.join(names)}; {store}", out=f"uint{own[0]}")
    assert (made == made[0]).all()
    return int(made[0])


def same(kind: str, count: int = 2) -> tuple[str, ...]:
    return (kind,) * (count + 1)


NAN, INF = float("nan"), float("inf")
COMPUTED: list[tuple[str, tuple[str, ...], tuple[float, ...], float]] = [
    ("add.s32", same("s32"), (2**31 - 1, 1), -(2**31)),
    ("sub.s64", same("s64"), (3, 5), -2),
    ("mul.lo.s32", same("s32"), (70_000, 70_000), 70_000**2),
    ("mul.hi.s32", same("s32"), (-70_000, 70_000), -(70_000**2) >> 32),
    ("mul.hi.u64", same("u64"), (2**63, 6), 3),
    ("mul.wide.s32", ("s64", "s32", "s32"), (-70_000, 70_000), -(70_000**2)),
    ("mad.wide.u32", ("u64", "u32", "u32", "u64"), (2**31, 4, 2**40), 2**33 + 2**40),
    ("mad.lo.s32", same("s32", 3), (-3, 4, 5), -7),
    ("div.s32", same("s32"), (-7, 2), -3),
    ("rem.s32", same("s32"), (-7, 2), -1),
    ("div.u32", same("u32"), (7, 2), 3),
    ("neg.s32", same("s32", 1), (5,), -5),
    ("max.u32", same("u32"), (5, 2**31), 2**31),
    ("min.s32", same("s32"), (5, -1), -1),
    ("and.b32", same("b32"), (12, 10), 8),
    ("or.b64", same("b64"), (12, 10), 14),
    ("xor.b32", same("b32"), (12, 10), 6),
    ("not.b16", same("b16", 1), (0xFF,), 0xFF00),
    ("shl.b32", ("b32", "b32", "u32"), (3, 4), 48),
    ("shl.b32", ("b32", "b32", "u32"), (3, 32), 0),
    ("shr.u32", ("u32", "u32", "u32"), (2**31, 31), 1),
    ("shr.s32", ("s32", "s32", "u32"), (-8, 2), -2),
    ("shr.s32", ("s32", "s32", "u32"), (-8, 40), -1),
    ("shf.l.wrap.b32", same("b32", 3), (2**31, 1, 1), 3),
    ("shf.r.wrap.b32", same("b32", 3), (4, 1, 2), 2**30 + 1),
    ("bfe.u32", ("u32", "u32", "u32", "u32"), (0b110100, 2, 3), 0b101),
    ("bfe.s32", ("s32", "s32", "u32", "u32"), (0b110100, 2, 3), 0b101 - 8),
    ("bfi.b32", ("b32", "b32", "b32", "u32", "u32"), (0b11, 0b1000000, 1, 2), 0b1000110),
    ("prmt.b32", same("b32", 3), (0x44332211, 0x88776655, 0x7632), 0x88774433),
    ("prmt.b32", same("b32", 3), (0x44332281, 0, 0x0008), 0x818181FF),
    ("lop3.b32", same("b32", 4), (0b1100, 0b1010, 0b0110, 0b11101010), 0b1110),
    ("popc.b32", same("b32", 1), (0b1011,), 3),
    ("clz.b32", same("b32", 1), (1,), 31),
    ("add.f32", same("f32"), (1.5, 2.25), 3.75),
    ("sub.rn.f64", same("f64"), (1.5, 2.25), -0.75),
    ("mul.f16", same("f16"), (1.5, 2.5), 3.75),
    ("add.bf16", same("bf16"), (1.5, 2.5), 4.0),
    ("fma.rn.f32", same("f32", 3), (1 + 2**-23, 1 - 2**-23, -1.0), -(2**-46)),
    ("fma.rn.f64", same("f64", 3), (2.0, 3.0, 0.5), 6.5),
    ("div.full.f32", same("f32"), (1.0, 4.0), 0.25),
    ("rcp.approx.ftz.f32", same("f32", 1), (8.0,), 0.125),
    ("sqrt.rn.f64", same("f64", 1), (9.0,), 3.0),
    ("rsqrt.approx.f32", same("f32", 1), (4.0,), 0.5),
    ("ex2.approx.ftz.f32", same("f32", 1), (3.0,), 8.0),
    ("lg2.approx.f32", same("f32", 1), (8.0,), 3.0),
    ("tanh.approx.f32", same("f32", 1), (100.0,), 1.0),
    ("max.f32", same("f32"), (NAN, 2.0), 2.0),
    ("min.NaN.f32", same("f32"), (1.0, 2.0), 1.0),
    ("abs.f32", same("f32", 1), (-2.0,), 2.0),
    ("neg.f64", same("f64", 1), (-2.0,), 2.0),
    ("copysign.f32", same("f32"), (-1.0, 3.0), -3.0),
    ("cvt.s64.s32", ("s64", "s32"), (-3,), -3),
    ("cvt.u64.u32", ("u64", "u32"), (-3,), 2**32 - 3),
    ("cvt.u16.u32", ("u16", "u32"), (2**16 + 7,), 7),
    ("cvt.rn.f32.s32", ("f32", "s32"), (-3,), -3.0),
    ("cvt.rzi.s32.f32", ("s32", "f32"), (-3.9,), -3),
    ("cvt.rmi.s32.f32", ("s32", "f32"), (-3.1,), -4),
    ("cvt.rni.s32.f32", ("s32", "f32"), (2.5,), 2),
    ("cvt.rzi.s32.f32", ("s32", "f32"), (INF,), 2**31 - 1),
    ("cvt.rzi.u32.f32", ("u32", "f32"), (NAN,), 0),
    ("cvt.rni.f32.f32", ("f32", "f32"), (3.5,), 4.0),
    ("cvt.rn.f16.f32", ("f16", "f32"), (1 + 2**-11 + 2**-20,), 1 + 2**-10),
    ("cvt.rn.bf16.f32", ("bf16", "f32"), (1 + 2**-8,), 1.0),
    ("cvt.f32.bf16", ("f32", "bf16"), (1.5,), 1.5),
    ("cvt.f64.f32", ("f64", "f32"), (0.75,), 0.75),
    ("cvt.rna.tf32.f32", ("f32", "f32"), (1 + 2**-11,), 1 + 2**-10),
]


@pytest.mark.parametrize(
    ("opcode", "kinds", "given", "expected"), COMPUTED, ids=[f"{c[0]} {c[2]}" for c in COMPUTED]
)
def test_what_is_computed(
    opcode: str, kinds: tuple[str, ...], given: tuple[float, ...], expected: float
) -> None:
    assert computed(opcode, kinds, *given) == bits(kinds[0], expected)


@pytest.mark.parametrize(
    ("opcode", "kind", "a", "b", "expected"),
    [
        ("setp.lt.s32", "s32", -1, 1, True),
        ("setp.lt.u32", "u32", -1, 1, False),
        ("setp.hi.u32", "u32", -1, 1, True),
        ("setp.ne.f32", "f32", NAN, 1.0, False),
        ("setp.neu.f32", "f32", NAN, 1.0, True),
        ("setp.geu.f64", "f64", NAN, 1.0, True),
        ("setp.num.f32", "f32", 2.0, 1.0, True),
        ("setp.nan.f32", "f32", NAN, 1.0, True),
    ],
)
def test_comparisons(opcode: str, kind: str, a: float, b: float, expected: bool) -> None:
    n = int(kind[1:])
    one, two = f"{REGISTERS[n]}40", f"{REGISTERS[n]}41"
    body = f"""
    mov.b{n} {one}, {hex(bits(kind, a))};
    mov.b{n} {two}, {hex(bits(kind, b))};
    {opcode} %p1, {one}, {two};
    selp.b32 %r9, 7, 5, %p1;
    mov.b32 %r10, 0;
    @!%p1 mov.b32 %r10, 1;
    shl.b32 %r10, %r10, 8;
    or.b32 %r9, %r9, %r10;
    mov.b64 %rd2, %rd1;
    {STORE}"""
    assert (run(body) == (7 if expected else 5 + 256)).all()


def test_pairs_in_one_register() -> None:
    body = f"""
    mov.b32 %r20, 0f3FC00000; mov.b32 %r21, 0f40000000;
    cvt.rn.f16x2.f32 %r22, %r20, %r21;      // high 1.5, low 2
    fma.rn.f16x2 %r23, %r22, %r22, %r22;    // high 3.75, low 6
    mov.b32 {{%rs1, %rs2}}, %r23;
    mov.b32 %r9, {{%rs2, %rs1}};            // changed over
    mov.b64 %rd2, %rd1;
    {STORE}"""
    assert (run(body).view(np.float16).reshape(-1, 2) == [3.75, 6]).all()


# ---------------------------------------------------------------------------- memory


def test_vectors_and_narrow_loads() -> None:
    body = """
    shl.b32 %r3, %r1, 4;
    cvt.u64.u32 %rd9, %r3;
    add.s64 %rd10, %rd1, %rd9;
    add.s64 %rd11, %rd2, %rd9;
    ld.global.v4.b32 { %r4, %r5, %r6, %r7 }, [ %rd10 + 0 ];
    ld.global.u8 %rs1, [%rd10+1];
    cvt.u32.u16 %r7, %rs1;
    st.global.v2.b32 [ %rd11 + 8 ], { %r5, %r4 };
    st.global.v2.b32 [ %rd11 + 0 ], { %r7, %r6 };"""
    given, out = np.arange(128, dtype=np.uint32) + 0x1200, np.zeros(128, np.uint32)
    run_grid(kernel(body), [given, out], (1,))
    rows = given.reshape(32, 4)
    expected = np.stack([np.full(32, 0x12), rows[:, 2], rows[:, 1], rows[:, 0]], axis=1)
    assert (out.reshape(32, 4) == expected).all()


def test_an_access_outside_every_array_is_an_error() -> None:
    given = np.zeros(31, np.float32)
    with pytest.raises(PtxError) as error:
        run(f"{LOAD} {STORE.replace('%r9', '%r3')}", given)
    assert "byte 124 of argument 0" in str(error.value)
    assert "ld.global.b32 %r3, [%rd10]" in str(error.value)
    assert f"{given.ctypes.data + 124:#x}" in str(error.value)


def test_lanes_that_take_no_part_may_point_anywhere() -> None:
    given = np.arange(31, dtype=np.uint32)
    body = f"setp.lt.s32 %p1, %r1, 31; mov.b32 %r9, 5; {LOAD.replace('ld.', '@%p1 ld.')}"
    made = run(f"{body} @%p1 mov.b32 %r9, %r3; {STORE}", given)
    assert (made == [*range(31), 5]).all()


def test_a_misaligned_access_is_an_error() -> None:
    with pytest.raises(PtxError, match="no multiple of the 4 bytes"):
        run(f"add.s64 %rd1, %rd1, 2; {LOAD}", np.zeros(40, np.uint32))
    with pytest.raises(PtxError, match="no multiple of the 8 bytes"):
        run(f"{LOAD} ld.global.v2.b32 {{%r3, %r4}}, [%rd10];", np.zeros(40, np.uint32))


def test_what_was_never_written_is_nan() -> None:
    body = f"mov.b64 %rd2, %rd1; mul.f32 %r9, %r77, 0f00000000; {STORE}"
    assert np.isnan(run(body, out=np.float32)).all()
    body = f"mov.b64 %rd2, %rd1; mov.b32 %r8, global_smem; ld.shared.b32 %r9, [%r8+64]; {STORE}"
    assert np.isnan(run(body, out=np.float32)).all()


# ---------------------------------------------------------------------------- order of warps

# every warp writes its number; each thread reads the number of the warp before its own
EXCHANGE = """
    shr.u32 %r10, %r1, 5;
    mov.b32 %r11, global_smem;
    add.s32 %r12, %r11, %r2;
    st.shared.b32 [%r12], %r10;
    {barrier}
    add.s32 %r13, %r2, 128;
    and.b32 %r13, %r13, 511;
    add.s32 %r14, %r11, %r13;
    ld.shared.b32 %r9, [%r14];
    mov.b64 %rd2, %rd1;
    {store}"""


def exchanged(barrier: str, order: Order, *, races: bool = False) -> list[int]:
    body = EXCHANGE.format(barrier=barrier, store=STORE)
    return run(body, threads=128, order=order, races=races)[::32].tolist()


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_makes_every_order_right(order: Order) -> None:
    assert exchanged("bar.sync 0;", order) == [1, 2, 3, 0]


def test_a_missing_barrier_shows_in_some_order() -> None:
    unset = 2**32 - 1
    assert exchanged("", forward, races=True) == [unset, unset, unset, 0]
    assert exchanged("", reverse, races=True) == [1, 2, 3, unset]


def test_a_missing_barrier_that_only_one_order_shows() -> None:
    """a warp reads what the one before it has written"""
    body = EXCHANGE.format(barrier="", store=STORE).replace(", 128;", ", 384;")
    in_order = run(body, threads=128, races=True)[::32].tolist()
    assert in_order[1:] == [0, 1, 2]
    backwards = run(body, threads=128, order=reverse, races=True)[::32].tolist()
    assert backwards[1:] == [2**32 - 1] * 3


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_is_an_error_in_every_order(order: Order) -> None:
    with pytest.raises(PtxError, match=r"no barrier between them\n  at (ld|st)\.shared"):
        exchanged("", order)


@pytest.mark.parametrize(("value", "races"), [("%r10", True), ("7", False)])
def test_warps_may_write_only_one_value_to_one_place(value: str, races: bool) -> None:
    """%r10 is the number of the warp"""
    body = f"""
    shr.u32 %r10, %r1, 5;
    mov.b32 %r11, global_smem;
    mov.b32 %r12, {value};
    st.shared.b32 [%r11], %r12;
    ld.shared.b32 %r9, [%r11];
    mov.b64 %rd2, %rd1;
    {STORE}"""
    if not races:
        assert (run(body, threads=64) == 7).all()
        return
    with pytest.raises(PtxError, match="warp 1 writes byte 0 of shared memory, which warp 0"):
        run(body, threads=64)


def test_a_seed_gives_the_same_order_again() -> None:
    one, two = shuffled(7), shuffled(7)
    rounds = [(one(list(range(8))), two(list(range(8)))) for _ in range(5)]
    assert all(a == b and sorted(a) == list(range(8)) for a, b in rounds)
    assert len({tuple(a) for a, _ in rounds}) > 1


# ---------------------------------------------------------------------------- control


def test_lanes_that_part_come_together_again() -> None:
    """lane n adds up n twos, then all shuffle"""
    body = f"""
    mov.b32 %r9, 0;
    mov.b32 %r20, 0;
    $LOOP:
    setp.ge.s32 %p1, %r20, %r1;
    @%p1 bra $DONE;
    add.s32 %r9, %r9, 2;
    add.s32 %r20, %r20, 1;
    bra.uni $LOOP;
    $DONE:
    shfl.sync.bfly.b32 %r9, %r9, 1, 31, -1;
    mov.b64 %rd2, %rd1;
    {STORE}"""
    assert (run(body) == 2 * (np.arange(32) ^ 1)).all()


def test_a_table_of_jumps() -> None:
    body = f"""
    $TABLE: .branchtargets
        $A,
        $B;
    and.b32 %r20, %r1, 1;
    brx.idx %r20, $TABLE;
    $A: mov.b32 %r9, 10;
    bra.uni $END;
    $B: mov.b32 %r9, 20;
    $END: mov.b64 %rd2, %rd1;
    {STORE}"""
    assert (run(body) == np.where(np.arange(32) % 2, 20, 10)).all()


def test_a_barrier_that_some_lanes_do_not_reach_is_an_error() -> None:
    with pytest.raises(PtxError, match=r"only lanes .* are at bar\.sync 0"):
        run("setp.lt.s32 %p1, %r1, 7;\n@%p1 bra $END;\nbar.sync 0;\n$END: mov.b32 %r9, 0;")


def test_what_no_lane_reaches_need_not_be_known() -> None:
    body = f"""
    mov.b32 %r9, 1;
    bra.uni $END;
    call.uni (retval0), slow, (param0);
    $END: mov.b64 %rd2, %rd1;
    {STORE}"""
    assert (run(body) == 1).all()


def test_arrays_of_a_thread_and_arrays_in_the_text() -> None:
    body = f"""
    .local .align 4 .b8 \t__local_depot0[8];
    mov.b64 %rd20, __local_depot0;
    st.local.b32 [%rd20+4], %r1;
    mov.b64 %rd21, TABLE;
    ld.global.nc.u8 %rs1, [%rd21+2];
    {{ .reg .b32 tmp; mov.b64 {{%r20, tmp}}, 0x500000007; }}
    ld.local.b32 %r9, [%rd20+4];
    cvt.u32.u16 %r21, %rs1;
    mad.lo.u32 %r9, %r9, %r20, %r21;
    mov.b64 %rd2, %rd1;
    {STORE}"""
    ptx = kernel(body, parameters=1)
    ptx = ptx.replace(".visible", ".global .align 8 .b8 TABLE[3] = {8, 93, 141};\n.visible")
    out = np.zeros(32, np.uint32)
    run_grid(ptx, [out], (1,))
    assert (out == 7 * np.arange(32) + 141).all()


@pytest.mark.parametrize("opcode", ["frobnicate.b32", "mma.sync.aligned.m7", "setp.lt.and.s32"])
def test_an_unknown_instruction_is_an_error(opcode: str) -> None:
    with pytest.raises(PtxError, match=f"unknown instruction: {opcode} %r9, %r1, %r2"):
        run(f"{opcode} %r9, %r1, %r2;")


def test_an_unknown_register_is_an_error() -> None:
    with pytest.raises(PtxError, match="no register"):
        run("add.s32 %what3, %r1, %r1;")


def test_text_that_holds_no_kernel_is_an_error() -> None:
    with pytest.raises(PtxError, match="no kernel"):
        read_kernel(".version 8.7")
    with pytest.raises(PtxError, match="how many threads"):
        read_kernel(kernel("").replace(".reqntid 32", ""))


# ---------------------------------------------------------------------------- lanes together


@pytest.mark.parametrize(
    ("mode", "b", "c", "source"),
    [
        ("bfly", 5, 31, lambda n: n ^ 5),
        ("idx", 3, 31, lambda n: 3),
        ("idx", 3, 31 | 24 << 8, lambda n: n // 8 * 8 + 3),
        ("up", 2, 0, lambda n: n - 2 if n >= 2 else n),
        ("down", 2, 31, lambda n: n + 2 if n < 30 else n),
    ],
)
def test_shuffles(mode: str, b: int, c: int, source: Any) -> None:
    body = f"shfl.sync.{mode}.b32 %r9, %r1, {b}, {c}, -1; mov.b64 %rd2, %rd1; {STORE}"
    assert run(body).tolist() == [source(n) for n in range(32)]


@pytest.mark.parametrize(
    ("opcode", "total"),
    [
        ("add.s32", 15 * 32 - 32 * 31 // 2),
        ("min.s32", 15 - 31),
        ("max.u32", 2**32 - 1),
        ("xor.b32", 0),
    ],
)
def test_reductions(opcode: str, total: int) -> None:
    """of 15, 14, …, -16"""
    body = f"""
    mov.b32 %r20, 15;
    sub.s32 %r20, %r20, %r1;
    redux.sync.{opcode} %r9, %r20, -1;
    mov.b64 %rd2, %rd1;
    {STORE}"""
    assert (run(body, out=np.int32) == np.int64(total).astype(np.int32)).all()


def places(m: int, k: int, packed: int, lane: int) -> dict[str, list[tuple[int, int]]]:
    """Where the elements of a lane stand, by the tables of the PTX manual: A, B and C."""
    group, place = divmod(lane, 4)
    rows = [group] if m == 8 else [group, group + 8]
    starts = range(0, k, 4 * packed)
    a = [(r, s + packed * place + e) for s in starts for r in rows for e in range(packed)]
    b = [(s + packed * place + e, group) for s in starts for e in range(packed)]
    c = [(r, 2 * place + e) for r in rows for e in range(2)]
    return {"a": a, "b": b, "c": c}


@pytest.mark.parametrize("opcode", PRODUCTS)
def test_products_of_matrices(opcode: str) -> None:
    shape = PRODUCTS[opcode]
    rng = np.random.default_rng(0)
    a, b, c = (
        rng.integers(-9, 9, size).astype(float)
        for size in ((shape.m, shape.k), (shape.k, 8), (shape.m, 8))
    )
    kind = {"f16x2": "f16", "bf16x2": "bf16", "b32": "f32", "f64": "f64"}[shape.operand]
    wide = 8 if kind == "f64" else 4
    words: list[int] = []
    for lane in range(32):
        at = places(shape.m, shape.k, shape.packed, lane)
        for matrix, name in ((a, "a"), (b, "b")):
            numbers = [bits(kind, matrix[place]) for place in at[name]]
            words += [
                sum(x << 16 * e for e, x in enumerate(numbers[n : n + shape.packed]))
                for n in range(0, len(numbers), shape.packed)
            ]
        words += [bits(shape.total, c[place]) for place in at["c"]]
    count = len(words) // 32
    names = [f"{'%rd' if wide == 8 else '%r'}{40 + n}" for n in range(count)]
    counts = shape.registers
    parts = np.split(np.array(names), np.cumsum(counts)[:-1])
    listed = ["{ " + ", ".join(part) + " }" for part in parts]
    body = f"mul.wide.u32 %rd9, %r1, {wide * count}; add.s64 %rd10, %rd1, %rd9;"
    body += " ".join(f"ld.global.b{8 * wide} {n}, [%rd10+{wide * k}];" for k, n in enumerate(names))
    body += f"{opcode} {', '.join([listed[2], *listed])};"
    body += f"mul.wide.u32 %rd9, %r1, {wide * counts[2]}; add.s64 %rd11, %rd2, %rd9;"
    body += " ".join(
        f"st.global.b{8 * wide} [%rd11+{wide * k}], {n};" for k, n in enumerate(parts[2])
    )
    out = np.zeros(32 * counts[2], f"f{wide}")
    run_grid(kernel(body), [np.array(words, f"u{wide}"), out], (1,))
    made = np.zeros((shape.m, 8))
    for lane, (k, place) in itertools.product(range(32), enumerate(range(counts[2]))):
        made[places(shape.m, shape.k, shape.packed, lane)["c"][place]] = out[lane * counts[2] + k]
    assert (made == a @ b + c).all()


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("opcode", ["ldmatrix", "stmatrix"])
def test_matrices_in_shared_memory(opcode: str, trans: str) -> None:
    """two of 8 x 8; lane l has elements 2 (l % 4) and the next one of row l / 4"""
    rows = "shl.b32 %r20, %r1, 4; mov.b32 %r21, global_smem; add.s32 %r22, %r21, %r20;"
    own = "add.s32 %r23, %r21, %r2;"
    moved = f"sync.aligned.m8n8.x2{trans}.shared.b16"
    if opcode == "ldmatrix":
        body = f"""{LOAD} {rows} {own} st.shared.b32 [%r23], %r3; add.s32 %r3, %r3, 0x400040;
        st.shared.b32 [%r23+128], %r3; {opcode}.{moved} {{%r8, %r9}}, [%r22];"""
    else:
        body = f"""{LOAD} {rows} {own} add.s32 %r4, %r3, 0x400040;
        {opcode}.{moved} [%r22], {{%r3, %r4}}; ld.shared.b32 %r9, [%r23+128];"""
    given = np.arange(64, dtype=np.uint16)
    made = run(f"{body} {STORE}", given.view(np.uint32)).view(np.uint16).reshape(8, 8)
    matrix = (given + 64).reshape(8, 8)
    assert (made == (matrix.T if trans else matrix)).all()


def test_a_copy_is_there_only_when_it_is_waited_for() -> None:
    body = f"""
    {LOAD}
    mov.b32 %r20, global_smem;
    add.s32 %r21, %r20, %r2;
    mov.b32 %r22, 4;
    cp.async.ca.shared.global [ %r21 + 0 ], [ %rd10 + 0 ], 0x4, %r22;
    cp.async.commit_group;
    WAIT
    ld.shared.b32 %r9, [%r21];
    {STORE}"""
    given = np.arange(32, dtype=np.uint32)
    unset = [2**32 - 1] * 32
    assert run(body.replace("WAIT", ""), given).tolist() == unset
    assert run(body.replace("WAIT", "cp.async.wait_group 1;"), given).tolist() == unset
    assert run(body.replace("WAIT", "cp.async.wait_group 0;"), given).tolist() == given.tolist()


def test_a_copy_of_fewer_bytes_is_filled_with_zeros() -> None:
    body = f"""
    {LOAD}
    mov.b32 %r20, global_smem;
    add.s32 %r21, %r20, %r2;
    setp.lt.s32 %p1, %r1, 31;
    selp.b32 %r22, 4, 0, %p1;
    cp.async.ca.shared.global [%r21], [%rd10], 0x4, %r22;
    cp.async.wait_all;
    ld.shared.b32 %r9, [%r21];
    {STORE}"""
    made = run(body.replace("ld.global", "@!%p8 ld.global"), np.arange(32, dtype=np.uint32) + 1)
    assert made.tolist() == [*range(1, 32), 0]
