"""What users give to layers, checked: sizes, modes, formats, implementations, modules, devices."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from math import prod
from operator import index
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tncompiler.formats.factors import factorize
from tncompiler.formats.format import Format
from tncompiler.ir.errors import ArgumentError, DeviceError, FormatError
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.trees import reconstruct_first, stream_first

IMPLEMENTATIONS: dict[str, PlanOptions] = {
    "auto": PlanOptions(),
    "factorized": PlanOptions(search=stream_first),
    "reconstructed": PlanOptions(search=reconstruct_first),
}
MODES: dict[str, int] = {"Monarch": 2, "LowRank": 1, "Dense": 1}  # balanced factors; others: three
_MODES_OF_OTHERS = 3


def check_size(value: Any, what: str) -> int:
    """A size as a user gives it. Raises FormatError unless it is an integer of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FormatError(f"{what} is {value!r:.40}", fix="give an integer, 1 or more")
    return value


def check_probability(value: Any, what: str) -> float:
    """A probability. Raises ArgumentError unless it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ArgumentError(f"{what} is {value!r:.40}", fix="give a number from 0 to 1")
    return float(value)


def check_format(format: Any) -> Format:
    """The format, if it is one. Raises FormatError."""
    if not isinstance(format, Format):
        raise FormatError(
            f"format= is {format!r:.60}", fix="give a format, as tnc.formats.TTMatrix(rank=8)"
        )
    return format


def check_shape(
    shape: Any, features: int, what: str, format: Format, count: int | None = None
) -> tuple[int, ...]:
    """The modes of a size: as given, or balanced factors, as many as the format likes.

    ``count``: how many factors, if not that many.
    Raises: FormatError if their product is less than the size; more is padded with zeros.
    """
    if shape is None:
        usual = MODES.get(type(format).__name__, _MODES_OF_OTHERS)
        return factorize(features, usual if count is None else count)
    try:
        modes = tuple(index(n) for n in (shape if isinstance(shape, Iterable) else (shape,)))
    except TypeError:
        modes = ()
    if not modes or min(modes) < 1:
        raise FormatError(f"{what} is {shape!r:.60}", fix="give a tuple of positive integers")
    if prod(modes) < features:
        raise FormatError(
            f"{what} {modes} makes {prod(modes)}, less than the {features} that are needed",
            fix=f"use {factorize(features, len(modes))}",
        )
    return modes


def check_implementation(name: Any) -> PlanOptions:
    """The plan options of an implementation. Raises FormatError."""
    if not isinstance(name, str) or name not in IMPLEMENTATIONS:
        raise FormatError(
            f"implementation is {name!r:.40}", fix=f"choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    return IMPLEMENTATIONS[name]


def check_kind(module: Any, kind: type[nn.Module]) -> None:
    """Raises ArgumentError unless a module is what `from_dense` takes, with its numbers in it."""
    if not isinstance(module, kind):
        raise ArgumentError(
            f"from_dense takes a torch.nn.{kind.__name__}, not a {type(module).__name__}",
            fix="give the dense layer",
        )
    if any(is_lazy(weight) or weight.is_meta for weight in module.parameters()):
        raise ArgumentError(
            "a weight is lazy or on the meta device: it has no numbers",
            fix="load the layer first",
        )


def on_device(device: Any) -> AbstractContextManager[Any]:
    """Makes what is made inside on a device. Raises DeviceError where torch knows none."""
    if device is None:
        return nullcontext()
    try:
        context: AbstractContextManager[Any] = torch.device(device)
    except (RuntimeError, TypeError):
        raise DeviceError(
            f"there is no device {device!r:.40}", fix="give one as torch.device does, as 'cuda:0'"
        ) from None
    return context
