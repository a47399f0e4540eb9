"""Single channels of bonds: switched off or up, what excites them, and which ones are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tncompiler.formats.bonds import scale_channels
from tncompiler.interpret.layers import check_layer, cores_of, sites_of, with_cores
from tncompiler.interpret.pinning import Activations, capture
from tncompiler.ir.errors import ArgumentError, ShapeError

Channels = int | Sequence[int]


def amplify(layer: Any, bond: str, channel: Channels, factor: float) -> Any:
    """A copy of the layer in which channels of a bond count `factor` times.

    Raises: UnknownIndex for bonds and channels that there are not; FormatError where a core of the
    bond is constant or stands at several places.
    """
    sites = sites_of(layer)
    channels = sites.movable(bond).check_channels(channel)
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise ArgumentError(f"the factor is {factor!r:.40}", fix="give a number")
    factors = np.ones(sites.bond(bond).size)
    factors[[*channels]] = factor
    return with_cores(layer, scale_channels(sites, cores_of(check_layer(layer)), bond, factors))


def ablate(layer: Any, bond: str, channel: Channels) -> Any:
    """A copy of the layer without what channels of a bond carry; see `amplify`."""
    return amplify(layer, bond, channel, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class TopInputs:
    """The examples that use each channel of a bond most.

    ``examples``: (channels, count) positions in the batch, strongest first; ``strengths``: how
    strongly each uses the channel.
    """

    bond: str
    examples: Tensor
    strengths: Tensor


def top_inputs(layer: Any, bond: str, *inputs: Any, count: int = 5) -> TopInputs:
    """The `count` examples of a batch that use each channel of a bond most, sign left out.

    Raises: as `capture`; ArgumentError for a count that is no number from 1 to the batch's size.
    """
    strengths = capture(layer, bond, *inputs).channels.detach().abs()
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= len(strengths):
        raise ArgumentError(
            f"count is {count!r:.40} for a batch of {len(strengths)}",
            fix=f"give a number from 1 to {len(strengths)}",
        )
    best = strengths.T.topk(count)
    return TopInputs(bond, best.indices, best.values)


def similarity(first: Activations, second: Activations) -> Tensor:
    """How alike the channels of two bonds are on one batch, (channels, channels), from 0 to 1.

    Of any layers, or models: a channel is known by which examples it treats alike. This is the
    centered kernel alignment of single channels (Kornblith et al. 2019, arXiv:1905.00414); where
    both have one number for each example, it is the squared correlation. The sign, the scale and
    what else is open at the bonds do not matter; a channel that never changes is like none.
    Cost: batch² for each channel, and that times both numbers of channels.
    Raises: ShapeError where the batches differ in size, or are empty.
    """
    if len(first.values) != len(second.values):
        raise ShapeError(
            f"the activations are of {len(first.values)} and {len(second.values)} examples",
            fix="capture both on the same batch",
        )
    if not len(first.values):
        raise ShapeError("the activations are of no example", fix="capture a batch of some")
    one, other = _kernels(first.values), _kernels(second.values)
    return (one @ other.mH).real.clamp(0, 1)


def _kernels(values: Tensor) -> Tensor:
    """For each channel the products of all pairs of examples, centered, as a vector of norm one."""
    wide = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    centered = (wide - wide.mean(0)).movedim(-1, 0)
    rows = centered.reshape(*centered.shape[:2], -1)
    kernels = (rows @ rows.mH).flatten(1)
    norms = torch.linalg.vector_norm(kernels, dim=1, keepdim=True)
    return torch.where(norms > 0, kernels / torch.where(norms > 0, norms, 1.0), 0.0)
