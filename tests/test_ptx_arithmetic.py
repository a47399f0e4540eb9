"""What single instructions of PTX compute, on numbers whose results are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.ptx.handmade import STORE, bits, run

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
