"""What the lanes of a warp do together: shuffles, sums, and small matrices."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.ptx.handmade import LOAD, STORE, bits, kernel, run
from tests.ptx.machine import run_grid
from tests.ptx.matrices import PRODUCTS


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
