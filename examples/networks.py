"""The classifier's hidden layer, 64 pixels → 512 features, once dense and in five tensor formats.

Each layer is one expression of named indices, bias and relu included, next to the einsum equation
of the same network, which the demo uses as its baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tncompiler as tnc

SIZES = dict(i1=4, i2=4, i3=4, o1=8, o2=8, o3=8, c=10)
b, i1, i2, i3, o1, o2, o3, c = tnc.indices("b i1 i2 i3 o1 o2 o3 c", **SIZES)
PIXELS, FEATURES = (i1, i2, i3), (o1, o2, o3)

x = tnc.input("x", b, *PIXELS)
bias = tnc.param("bias", *FEATURES)


@dataclass(frozen=True, slots=True)
class Hidden:
    """A hidden layer: its expression, and its contraction as an einsum over x and the cores."""

    name: str
    expression: tnc.Expr
    equation: str
    cores: tuple[str, ...]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return (*self.cores, "bias")


def dense() -> tnc.Expr:
    w = tnc.param("W", *PIXELS, *FEATURES)
    return tnc.relu(x @ w + bias)


def tt_matrix(rank: int = 8) -> tnc.Expr:
    """One core for each pair of modes, joined in a chain."""
    r1, r2 = tnc.indices("r1 r2", r1=rank, r2=rank)
    g1, g2 = tnc.param("G1", i1, o1, r1), tnc.param("G2", r1, i2, o2, r2)
    return tnc.relu(x @ g1 @ g2 @ tnc.param("G3", r2, i3, o3) + bias)


def tucker(rank_in: int = 4, rank_out: int = 3) -> tnc.Expr:
    """A small core, and one factor for each mode."""
    p = tnc.indices("p1 p2 p3", p1=rank_in, p2=rank_in, p3=rank_in)
    q = tnc.indices("q1 q2 q3", q1=rank_out, q2=rank_out, q3=rank_out)
    inner = [tnc.param(f"U{k}", *pair) for k, pair in enumerate(zip(PIXELS, p, strict=True), 1)]
    outer = [tnc.param(f"V{k}", *pair) for k, pair in enumerate(zip(FEATURES, q, strict=True), 1)]
    y = tnc.contract(x, *inner, tnc.param("core", *p, *q), *outer, out=(b, *FEATURES))
    return tnc.relu(y + bias)


def cp(rank: int = 72) -> tnc.Expr:
    """One factor for each mode; all share the index r."""
    (r,) = tnc.indices("r", r=rank)
    factors = [tnc.param(f"A_{mode.name}", mode, r) for mode in (*PIXELS, *FEATURES)]
    return tnc.relu(tnc.contract(x, *factors, out=(b, *FEATURES)) + bias)


def tensor_ring(rank: int = 5) -> tnc.Expr:
    """A chain of cores that closes on itself."""
    r1, r2, r3 = tnc.indices("r1 r2 r3", r1=rank, r2=rank, r3=rank)
    g1, g2 = tnc.param("G1", r3, i1, o1, r1), tnc.param("G2", r1, i2, o2, r2)
    g3 = tnc.param("G3", r2, i3, o3, r3)
    return tnc.relu(tnc.contract(x, g1, g2, g3, out=(b, *FEATURES)) + bias)


def hierarchical_tucker(rank: int = 11) -> tnc.Expr:
    """A leaf for each pair of modes; B12 joins the first two, and the root the third."""
    s1, s2, s3, s12 = tnc.indices("s1 s2 s3 s12", s1=rank, s2=rank, s3=rank, s12=rank)
    u1, u2 = tnc.param("U1", i1, o1, s1), tnc.param("U2", i2, o2, s2)
    u3, b12 = tnc.param("U3", i3, o3, s3), tnc.param("B12", s1, s2, s12)
    y = tnc.contract(x, u1, u2, u3, b12, tnc.param("root", s12, s3), out=(b, *FEATURES))
    return tnc.relu(y + bias)


def classify(hidden: tnc.Expr) -> tnc.Expr:
    """The logits: a dense output layer on the hidden features."""
    return hidden @ tnc.param("V", *FEATURES, c) + tnc.param("shift", c, init="zeros")


TUCKER = ("U1", "U2", "U3", "core", "V1", "V2", "V3")
CP = ("A_i1", "A_i2", "A_i3", "A_o1", "A_o2", "A_o3")
HT = ("U1", "U2", "U3", "B12", "root")


def _hidden(name: str, make: Callable[[], tnc.Expr], equation: str, *cores: str) -> Hidden:
    return Hidden(name, make(), equation, cores)


def hidden_layers() -> tuple[Hidden, ...]:
    """All six; in the equations b i j k are the batch and the pixels, o p q the features."""
    return (
        _hidden("dense", dense, "bijk,ijkopq->bopq", "W"),
        _hidden("TT-matrix", tt_matrix, "bijk,iou,ujpv,vkq->bopq", "G1", "G2", "G3"),
        _hidden("Tucker", tucker, "bijk,ix,jy,kz,xyzuvw,ou,pv,qw->bopq", *TUCKER),
        _hidden("CP", cp, "bijk,ir,jr,kr,or,pr,qr->bopq", *CP),
        _hidden("tensor ring", tensor_ring, "bijk,wiou,ujpv,vkqw->bopq", "G1", "G2", "G3"),
        _hidden("hierarchical Tucker", hierarchical_tucker, "bijk,iox,jpy,kqz,xys,sz->bopq", *HT),
    )
