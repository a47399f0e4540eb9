"""Modes of the layers whose kernels are listed, checked and timed."""

from __future__ import annotations

Modes = tuple[int, ...]

THREE: dict[str, tuple[Modes, Modes]] = {
    "1024→1024": ((16, 8, 8), (16, 8, 8)),
    "768→3072": ((12, 8, 8), (16, 16, 12)),
    "4096→4096": ((16, 16, 16), (16, 16, 16)),
}
# a Tucker core has rank ** modes elements: six modes of rank 8 fill 512 KiB, four fill 8
TWO: dict[str, tuple[Modes, Modes]] = {
    "1024→1024": ((32, 32), (32, 32)),
    "768→3072": ((24, 32), (48, 64)),
    "4096→4096": ((64, 64), (64, 64)),
}
ONE: dict[str, tuple[Modes, Modes]] = {
    "1024→1024": ((1024,), (1024,)),
    "768→3072": ((768,), (3072,)),
    "4096→4096": ((4096,), (4096,)),
}
SHAPES = {
    "TTMatrix": THREE,
    "TT": THREE,
    "Tucker": TWO,
    "CP": THREE,
    "TensorRing": THREE,
    "BlockTerm": TWO,
    "HT": TWO,
    "Kronecker": THREE,
    "LowRank": ONE,
}
PROMISED = ("TTMatrix", "TT", "Tucker", "CP", "TensorRing", "BlockTerm")
