"""The machine for PTX: memory, the order of warps, control, on kernels written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.handmade import LOAD, STORE, kernel, run
from tests.ptx.machine import Order, forward, reverse, run_grid, shuffled
from tests.ptx.text import PtxError, read_kernel

ORDERS: tuple[Order, ...] = (forward, reverse, shuffled(1))


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


def test_addresses_of_32_bits_wrap() -> None:
    """what triton 3.9 makes of an offset: a register below zero, and more added than it lacks"""
    given = np.arange(32, dtype=np.float32)
    body = f"""{LOAD}
    mov.b32 %r8, global_smem;
    add.s32 %r10, %r8, %r2;
    st.shared.b32 [%r10], %r3;
    add.s32 %r11, %r10, -256;
    ld.shared.b32 %r9, [%r11+256];
    {STORE}"""
    assert (run(body, given, out=np.float32) == given).all()


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
    return [int(x) for x in run(body, threads=128, order=order, races=races)[::32]]


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


# ---------------------------------------------------------------------------- copies


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
