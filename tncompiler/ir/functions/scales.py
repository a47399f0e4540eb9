"""Powers of two beside a number: what keeps long products in range. All are exact.

Exponents are whole numbers held in the dtype of the real part, and constant in derivatives.
"""

from __future__ import annotations

import numpy as np

from tncompiler.ir.functions.rule import Elementwise

LOG10_OF_2 = 0.3010299956639812


def _power_of_two(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    usable = (x >= np.finfo(x.dtype).tiny) & np.isfinite(x)
    return np.where(usable, np.ldexp(1.0, np.frexp(np.where(usable, x, 1.0))[1] - 1), 1.0)


POWER_OF_TWO = Elementwise(  # the largest up to a size; 1 for what is zero, subnormal, inf or nan
    "power_of_two",
    1,
    _power_of_two,
    "power_of_two({0})",
    "power_of_two({0})",
    partials=(None,),
    domain=("float",),
    helper="power_of_two",
    torch_helper="power_of_two",
)
EXPONENT = Elementwise(  # of a power of two
    "exponent",
    1,
    np.log2,
    "exponent({0})",
    "exponent({0})",
    partials=(None,),
    domain=("float",),
    helper="exponent",
    torch_helper="exponent",
)
SHIFT_EXPONENT = Elementwise(  # 2**e * x, rounded once and only where it is subnormal
    "shift_exponent",
    2,
    lambda e, x: x * np.exp2(np.asarray(e, np.longdouble)).astype(np.float64),
    "shift_exponent({0}, {1})",
    "shift_exponent({0}, {1})",
    tangent=lambda call, t, e, x, out: call("shift_exponent", e, t[1]),
    adjoint=lambda call, ct, e, x, out: (None, call("shift_exponent", e, ct)),
    helper="shift_exponent",
    torch_helper="shift_exponent",
)
DECIMAL_EXPONENT = Elementwise(  # log10 of 2**e
    "decimal_exponent",
    1,
    lambda e: np.asarray(e) * LOG10_OF_2,
    f"{{0}} * {LOG10_OF_2!r}",
    f"{{0}} * {LOG10_OF_2!r}",
    partials=(None,),
    domain=("float",),
)
