"""Division of whole numbers: the digits of a number are what is left of it. No derivatives."""

from __future__ import annotations

import numpy as np

from tncompiler.ir.functions.rule import Elementwise

FLOORDIV = Elementwise(
    "floordiv",
    2,
    np.floor_divide,
    "{0} // {1}",
    "{0} // {1}",
    partials=(None, None),
    domain=("int",),
)
MOD = Elementwise(
    "mod",
    2,
    np.mod,
    "{0} % {1}",
    "{0} % {1}",
    partials=(None, None),
    domain=("int",),
)
