"""A convolution's kernel as a weight with modes: which modes it has, and how an image meets them.

In: channels, outputs, taps and a format. Out: the modes that the format sees, and the network with
an index for the taps of each dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tncompiler.dsl import contract
from tncompiler.formats.factors import factorize
from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.errors import FormatError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.nn.checks import check_format, check_shape

CHANNEL_MODES: dict[str, int] = {"TTMatrix": 2, "Kronecker": 2, "Monarch": 2}  # others: one
JOINED = ("Monarch",)  # formats for two modes a side: the last channel mode holds the taps as well


@dataclass(frozen=True, slots=True)
class Kernel:
    """The modes of a kernel (groups · outputs, channels, *taps).

    ``channel_modes`` multiply to the channels of a group, or to more, padded with zeros.
    ``ins``: they and the taps, as the format has them; ``outs``: groups if there are several, then
    the modes of the outputs of a group. ``joined``: whether taps are part of the last channel mode.
    """

    channels: int
    groups: int
    taps: tuple[int, ...]
    channel_modes: tuple[int, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    joined: bool

    @staticmethod
    def of(
        format: Format,
        weight_shape: Sequence[int],
        groups: int,
        in_shape: Any = None,
        out_shape: Any = None,
    ) -> Kernel:
        """The modes for a kernel as torch holds it; FormatError where they do not fit.

        ``in_shape`` and ``out_shape``: of channels and outputs of a group, or all modes as `ins`
        and `outs` have them.
        """
        outputs, channels, *taps = weight_shape
        name = type(check_format(format)).__name__
        count, joined = CHANNEL_MODES.get(name, 1), name in JOINED
        given = _without_taps(in_shape, channels, tuple(taps), joined)
        modes = check_shape(given, channels, "in_shape", format, count)
        ins = (*modes[:-1], modes[-1] * prod(taps)) if joined else (*modes, *taps)
        if groups == 1:
            outs = check_shape(out_shape, outputs, "out_shape", format, count)
        else:
            few = count - 1 if joined else count
            outs = (groups, *_unpadded(out_shape, groups, outputs // groups, format, few))
        return Kernel(channels, groups, tuple(taps), modes, ins, outs, joined)

    def apart(self, network: Expr) -> tuple[Modes, list[Index], Expr]:
        """Modes of channels and outputs, an index for each dimension's taps, and the network."""
        modes = Modes.of(self.ins, self.outs)
        count = len(self.channel_modes)
        if not self.joined:
            return Modes(modes.ins[:count], modes.outs), list(modes.ins[count:]), network
        both, last = modes.ins[-1], Index("channel", self.channel_modes[-1])
        taps = [Index(f"tap{k}", size) for k, size in enumerate(self.taps, start=1)]
        parts = [
            leaf.split(both, (last, *taps)) if both in leaf.indices else leaf
            for leaf in network.leaves  # which have the network's own indices
        ]
        apart = Modes((*modes.ins[:-1], last), modes.outs)
        return apart, taps, contract(*parts, out=(*apart.ins, *taps, *modes.outs))

    def channels_apart(self, image: Expr, channels: Index, modes: Modes) -> Expr:
        """The image's channels as groups and modes."""
        own = channels
        if self.groups > 1:
            own = Index("own", self.channels)
            image = image.split(channels, (modes.outs[0], own))
        image = image.pad(own.name, 0, prod(self.channel_modes) - self.channels)
        return image.split(own.name, modes.ins)


def _without_taps(shape: Any, channels: int, taps: tuple[int, ...], joined: bool) -> Any:
    """The modes of the channels, where a shape has taps after them."""
    if not isinstance(shape, Sequence) or not all(isinstance(size, int) for size in shape):
        return shape
    if joined:
        count = prod(taps)
        whole = prod(shape) >= channels * count and shape[-1] % count == 0
        return (*shape[:-1], shape[-1] // count) if whole else shape
    before = tuple(shape[: -len(taps)])
    is_whole = tuple(shape[-len(taps) :]) == taps and before and prod(before) >= channels
    return before if is_whole else shape


def _unpadded(shape: Any, groups: int, outputs: int, format: Format, count: int) -> tuple[int, ...]:
    """The modes of the outputs of a group: padding would stand between groups."""
    chosen = factorize(outputs, count, pad=False) if shape is None else shape
    if isinstance(shape, Sequence) and [*shape[:1]] == [groups] and prod(shape) == groups * outputs:
        chosen = shape[1:]
    modes = check_shape(chosen, outputs, "out_shape", format)
    if prod(modes) != outputs:
        raise FormatError(
            f"out_shape {modes} makes {prod(modes)}, and a group has {outputs} outputs",
            fix=f"groups are not padded: use {factorize(outputs, len(modes), pad=False)}",
        )
    return modes
