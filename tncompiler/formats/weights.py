"""A weight as users hold it, made an array in double precision with one axis for each mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tncompiler.formats.modes import Modes
from tncompiler.ir.errors import FormatError


@dataclass(frozen=True)
class Weight:
    """``array`` in double precision, padded to the modes; ``dtype`` and ``size`` as given.

    ``inputs`` is how many rows were given, before padding.
    """

    array: np.ndarray
    dtype: np.dtype[Any]
    size: int
    inputs: int

    @staticmethod
    def of(weight: Any, modes: Modes) -> Weight:
        """Raises FormatError for shapes that do not fit, other dtypes than floats, NaN, infinity.

        A matrix may have fewer rows and columns than the modes make, but more than half: it is
        padded with zeros. Rows that the modes do not make by far are a mistake.
        """
        given = _finite(as_array(weight))
        double = np.complex128 if given.dtype.kind == "c" else np.float64
        numbers = modes.numbers()
        rows = prod(numbers[: len(modes.ins)])
        columns = prod(numbers[len(modes.ins) :])
        if given.shape == numbers:
            return Weight(given.astype(double), given.dtype, given.size, rows)
        if given.ndim != 2 or not all(
            n <= whole < 2 * n for n, whole in zip(given.shape, (rows, columns), strict=True)
        ):
            raise _misfit(given.shape, modes, (rows, columns))
        padded = np.zeros((rows, columns), double)
        padded[: given.shape[0], : given.shape[1]] = given
        return Weight(padded.reshape(numbers), given.dtype, given.size, given.shape[0])


def as_array(value: Any) -> np.ndarray:
    """An array, list or torch tensor as an array; bfloat16, which NumPy lacks, as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().resolve_conj().resolve_neg()
        low = str(value.dtype) == "torch.bfloat16"
        value = (value.float() if low else value).numpy()
    try:
        return np.asarray(value)
    except ValueError:
        raise FormatError("the weight is no array", fix="give rows of one length") from None


def check_finite(cores: Mapping[str, np.ndarray], where: str) -> None:
    """Raises FormatError where a core holds NaN or infinity, which others would get from it."""
    for name, core in cores.items():
        if not np.isfinite(core).all():
            raise FormatError(
                f"core {name!r} holds NaN or infinite numbers", where=where, fix="repair it first"
            )


def _finite(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fc":
        raise FormatError(f"the weight has dtype {array.dtype}", fix="convert it to a float dtype")
    if not array.size:
        raise FormatError(f"the weight has shape {array.shape}", fix="give one with elements")
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise FormatError(
            f"{bad} of the weight's {array.size} numbers are NaN or infinite",
            fix="repair the weight first: a decomposition would spread them to all cores",
        )
    return array


def _misfit(shape: tuple[int, ...], modes: Modes, whole: tuple[int, int]) -> FormatError:
    numbers = modes.numbers()
    turned = len(shape) == 2 and shape[::-1] == whole
    return FormatError(
        f"the weight has shape {shape}, but the modes {numbers[: len(modes.ins)]} and "
        f"{numbers[len(modes.ins) :]} make {whole}",
        fix="transpose it: inputs come first" if turned else "choose modes that multiply out",
    )
