"""What all tensorized layers share: shapes, the format, going from and to dense."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tncompiler.formats.conditioning import condition_numbers
from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.factors import factorize
from tncompiler.formats.format import Format
from tncompiler.ir.errors import FormatError
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.trees import reconstruct_first, stream_first

IMPLEMENTATIONS: dict[str, PlanOptions] = {
    "auto": PlanOptions(),
    "factorized": PlanOptions(search=stream_first),
    "reconstructed": PlanOptions(search=reconstruct_first),
}
DEFAULT_MODES = 3


class IllConditioned(UserWarning):
    """A bond carries directions that nearly cancel: rounding is amplified."""


def check_format(format: Any) -> Format:
    """The format, if it is one. Raises FormatError."""
    if not isinstance(format, Format):
        raise FormatError(
            f"format= is {format!r:.60}", fix="give a format, as tnc.formats.TTMatrix(rank=8)"
        )
    return format


def check_shape(shape: Sequence[int] | None, features: int, what: str) -> tuple[int, ...]:
    """The modes of a size: as given, or three balanced factors.

    Raises: FormatError if their product is less than the size; more is padded with zeros.
    """
    if shape is None:
        return factorize(features, DEFAULT_MODES)
    modes = tuple(shape)
    if not modes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in modes):
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


def decompose_weight(
    format: Format,
    weight: Tensor,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    goal: Mapping[str, Any],
) -> Decomposition:
    """Cores for a weight of shape (inputs, outputs); warns where a bond is badly conditioned."""
    found: Decomposition = format.decompose(weight, in_shape, out_shape, **goal)
    limit = 1 / float(np.finfo(next(iter(found.cores.values())).dtype).eps) ** 0.5
    for bond, number in condition_numbers(found.network, found.cores).items():
        if number > limit:
            warnings.warn(
                f"bond {bond} of {found.format} has condition number {number:.1e}: its terms "
                "nearly cancel, which amplifies rounding. Use a lower rank, or another format",
                IllConditioned,
                stacklevel=4,
            )
    return found


def set_cores(layer: nn.Module, cores: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into the parameters of the same names."""
    parameters = dict(layer.named_parameters())
    with torch.no_grad():
        for name, core in cores.items():
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(core)))


def describe(format: Format, in_shape: Sequence[int], out_shape: Sequence[int], dense: int) -> str:
    """For extra_repr: the format with its shapes, parameters, and how many times fewer they are."""
    count = int(format.parameters(in_shape, out_shape))
    shapes = f"{'x'.join(map(str, in_shape))} → {'x'.join(map(str, out_shape))}"
    return (
        f"format={format}, {shapes}, {count:,} parameters, {dense / max(count, 1):.1f} times fewer"
    )
