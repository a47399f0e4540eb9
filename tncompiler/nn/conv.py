"""Conv1d, Conv2d and Conv3d: torch's, with the kernel as a network of cores.

A kernel (outputs, channels, *taps) is a weight with modes for the channels, one mode for the taps
of each dimension, and modes for the outputs: (c1, …, k1, …) → (o1, …). So CP and Tucker are the
convolutions of Lebedev et al. and Kim et al., TT a chain from channels over taps to outputs, and a
TT-matrix pairs channels with outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tncompiler.dsl import contract
from tncompiler.formats.format import Format
from tncompiler.ir import algebra
from tncompiler.ir.errors import ArgumentError, FormatError, ShapeError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.windows import Geometry, same_padding, window_count
from tncompiler.nn.built import may_keep, product_us, torch_rates
from tncompiler.nn.checks import check_kind, check_size, on_device
from tncompiler.nn.given import input_leaf
from tncompiler.nn.initialize import PROBES, gain_of, typical_scale
from tncompiler.nn.kernels import Kernel
from tncompiler.nn.tensorized import Tensorized, decompose_weight

_DOUBT = 2.3  # how many times as long as predicted programs on small images may take
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

Conv_ = TypeVar("Conv_", bound="Conv")


class Conv(Tensorized):
    """What Conv1d, Conv2d and Conv3d share: torch's signature, and a kernel of cores.

    Shapes: input (batch, in_channels, *image) or without the batch, output
    (batch, out_channels, *image). ``in_shape``: modes of the channels of a group, ``out_shape``: of
    the outputs of a group (one each if not given, two for TTMatrix, Kronecker and Monarch). The
    taps of each dimension are further input modes; for Monarch they belong to the second one. The
    layer's own `in_shape` and `out_shape` are all modes of the network, and may be given as well.
    Groups are a further output mode, the first one; Monarch, which has room for two, then takes one
    of the outputs.
    ``implementation``: "auto" (whichever the planner predicts to be faster), "factorized" (the
    image goes from core to core) or "reconstructed" (the kernel is built, then convolved).
    Parameters are ``cores.G1``, … as the format names them, and ``cores.bias``.
    Raises: FormatError for shapes, ranks or implementations that do not fit; WindowError for a
    stride or dilation below 1 and for images smaller than the kernel.
    """

    dimensions: ClassVar[int]
    flipped = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format,
        in_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.in_channels = check_size(in_channels, "in_channels")
        self.out_channels = check_size(out_channels, "out_channels")
        self.groups = check_size(groups, "groups")
        if in_channels % groups or out_channels % groups:
            raise FormatError(
                f"{in_channels} channels and {out_channels} outputs do not make {groups} groups",
                fix="give a number of groups that divides both",
            )
        self.kernel_size = self._each(kernel_size, "kernel_size")
        self.stride = self._each(stride, "stride")
        self.dilation = self._each(dilation, "dilation")
        self.padding_mode, self.has_bias = _checked_mode(padding_mode), bool(bias)
        self.padding = padding if isinstance(padding, str) else self._each(padding, "padding", 0)
        self._zeros = self._zeros_around()
        self._kernel = Kernel.of(format, self.weight_shape, groups, in_shape, out_shape)
        rows = prod(self.weight_shape[1:])
        ins, outs = self._kernel.ins, self._kernel.outs
        self._describe_weight((rows, out_channels), format, ins, outs, implementation, backend)
        with on_device(device):
            self.cores = self._compiled(dtype)
        self.reset_parameters()

    # ---------------------------------------------------------------- shapes

    def _each(self, value: Any, what: str, least: int = 1) -> tuple[int, ...]:
        """One number for each dimension, as torch takes them. Raises FormatError."""
        given = tuple(value) if isinstance(value, Sequence) else (value,) * self.dimensions
        if (
            isinstance(value, str)
            or len(given) != self.dimensions
            or any(isinstance(n, bool) or not isinstance(n, int) or n < least for n in given)
        ):
            raise FormatError(
                f"{what} is {value!r:.40}",
                fix=f"give an integer from {least} on, or {self.dimensions} of them",
            )
        return given

    def _zeros_around(self) -> list[tuple[int, int]]:
        """Padding before and after, for each dimension. Raises FormatError for other words."""
        if self.padding == "valid":
            return [(0, 0)] * self.dimensions
        if self.padding == "same":
            if any(step != 1 for step in self.stride):
                raise FormatError(
                    f"padding='same' has no meaning with stride {self.stride}",
                    fix="give the padding as a number",
                )
            pairs = map(same_padding, self.kernel_size, self.dilation)
            return [(int(before), int(after)) for before, after in pairs]
        if isinstance(self.padding, str):
            raise FormatError(
                f"padding is {self.padding!r:.40}", fix="give a number, 'same' or 'valid'"
            )
        return [(n, n) for n in self.padding]

    # ---------------------------------------------------------------- the network

    def _expression(self) -> Expr:
        """The layer on a batch of images of free size."""
        modes, taps, kernel = self._kernel.apart(self._network)
        batch, channels = Index("b"), Index("channels", self.in_channels)
        sources = [Index(f"s{k}") for k in range(1, self.dimensions + 1)]
        windows = [Index(f"w{k}") for k in range(1, self.dimensions + 1)]
        x: Expr = input_leaf("x", (batch, channels, *sources))
        x = self._kernel.channels_apart(x, channels, modes)
        is_padded = self.padding_mode != "zeros"
        around = [(0, 0)] * self.dimensions if is_padded else self._zeros
        moves = zip(sources, windows, taps, self.stride, self.dilation, around, strict=True)
        for source, window, tap, stride, dilation, pair in moves:
            x = x.window(
                source, out=window, kernel=tap, stride=stride, dilation=dilation, padding=pair
            )
        outputs = Index("outputs", prod(self.out_shape))
        y = contract(x, kernel, out=(batch, *modes.outs, *windows)).merge(modes.outs, outputs)
        y = y.slice("outputs", 0, self.out_channels)
        if not self.has_bias:
            return y
        by_output = Index("outputs", self.out_channels)
        return y + algebra.leaf("bias", (by_output,), kind="param", init="zeros")

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of a batch of images, or of one image."""
        ready = self._built.ready(self, x)
        if ready is not None:
            return self._convolved(x, *ready)
        self._check(x)
        images = x if x.ndim == self.dimensions + 2 else x[None]
        if self.padding_mode != "zeros":
            images = self._bordered(images)
        if may_keep(self, x, lambda: self.is_whole_faster(images.shape)):
            return self._convolved(x, *self._built.keep(self, x, self._make_whole))
        y: Tensor = self.cores(images)
        return y if images.ndim == x.ndim else y[0]

    def _make_whole(self) -> tuple[Tensor, Tensor | None]:
        """The dense kernel and the bias, to be kept."""
        return self.reconstruct().contiguous(), self.bias

    def _convolved(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """torch's own convolution of a batch or one image with a dense kernel."""
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.dimensions - 1]
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            is_batch = x.ndim == self.dimensions + 2
            x = self._bordered(x) if is_batch else self._bordered(x[None])[0]
            padding = 0
        made: Tensor = convolve(x, kernel, bias, self.stride, padding, self.dilation, self.groups)
        return made

    def is_whole_faster(self, shape: Sequence[int]) -> bool:
        """Whether images are predicted to meet the dense kernel faster than the cores.

        ``shape``: of a batch with its border. Not where no window fits: the program then says so.
        """
        if self._window_count(shape) < 1 or self.implementation == "reconstructed":
            return self._window_count(shape) >= 1
        return self._built.wins(
            tuple(shape),
            lambda: self.whole_us(shape),
            lambda: self.cores.predicted_us(self.sizes_of(shape), keeps=True),
            _DOUBT,
        )

    def whole_us(self, shape: Sequence[int]) -> float:
        """Predicted microseconds of torch's own convolution of a batch: as a share of the product
        that it comes to."""
        share = torch_rates(self.cores).convolutions or 1.0
        return share * product_us(self, shape[0] * self._window_count(shape), self.groups)

    def sizes_of(self, shape: Sequence[int]) -> dict[str, int]:
        """The sizes of a batch by the names of indices."""
        sources = {f"s{k}": size for k, size in enumerate(shape[2:], start=1)}
        return {"b": shape[0], **sources}

    def _window_count(self, shape: Sequence[int]) -> int:
        """How many windows an image has; none where one axis has none."""
        around = [(0, 0)] * self.dimensions if self.padding_mode != "zeros" else self._zeros
        moves = zip(self.stride, self.dilation, around, strict=True)
        geometries = [Geometry(stride, dilation, *pair) for stride, dilation, pair in moves]
        sizes = zip(shape[2:], self.kernel_size, geometries, strict=True)
        return prod(max(int(window_count(*each)), 0) for each in sizes)

    def _bordered(self, images: Tensor) -> Tensor:
        """The images with a border made of themselves; ShapeError where they are too small."""
        most = {"reflect": -1, "circular": 0}.get(self.padding_mode)  # beside the image's own size
        for size, pair in zip(images.shape[2:], self._zeros, strict=True):
            if most is not None and max(pair) > size + most:
                raise ShapeError(
                    f"an image with an axis of size {size} cannot be padded by {max(pair)} in mode "
                    f"{self.padding_mode!r}",
                    where=str(self),
                    fix="give larger images, or use padding_mode='zeros' or 'replicate'",
                )
        around = [n for pair in reversed(self._zeros) for n in pair]
        return F.pad(images, around, mode=self.padding_mode)

    def _check(self, x: Any) -> None:
        """Raises ArgumentError or ShapeError for what is no batch of images with these channels."""
        if not isinstance(x, Tensor):
            raise ArgumentError(
                f"the input is a {type(x).__name__}", where=str(self), fix="give a torch tensor"
            )
        axis = x.ndim - self.dimensions - 1
        if axis not in (0, 1) or x.shape[axis] != self.in_channels:
            raise ShapeError(
                f"the input has shape {tuple(x.shape)}, but the layer takes {self.in_channels} "
                f"channels of {self.dimensions} dimensions",
                where=str(self),
                fix="give (batch, channels, *image), or one image (channels, *image)",
            )

    @torch.no_grad()
    def reset_parameters(self, nonlinearity: str = "linear") -> None:
        """Draw the cores anew so that the output has the input's variance (where nothing is
        padded), and set the bias to 0. ``nonlinearity``: as in `Linear.reset_parameters`."""
        gain = gain_of(nonlinearity)
        like = self._draw()
        if like is not None:
            patches = torch.randn(PROBES, self.table_shape[0], dtype=like.dtype, device=like.device)
            self._scale_by(gain / typical_scale(patches @ self._whole_table()))

    @torch.no_grad()
    def tie(self, other: Tensorized) -> None:
        """Use the cores of another convolution with such a kernel from now on; see `Linear.tie`.

        Raises: ShapeError if the other's kernel has another size, or other groups.
        """
        if not isinstance(other, Conv) or (other.weight_shape, other.groups) != (
            self.weight_shape,
            self.groups,
        ):
            raise ShapeError(
                f"a kernel of shape {self.weight_shape} cannot be tied to {other!s:.200}",
                where=str(self),
                fix="tie it to a tensorized convolution with a kernel of that shape",
            )
        self._share_weight(other)
        self._kernel = other._kernel
        self._hold_cores_of(other)

    # ---------------------------------------------------------------- dense

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def reconstruct(self) -> Tensor:
        """The dense kernel as torch holds it; differentiable."""
        return super().reconstruct().reshape(self.weight_shape)

    @torch.no_grad()
    def to_dense(self) -> Any:
        """torch's convolution that computes the same."""
        weight = self.reconstruct()
        dense: Any = self.dense(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.has_bias,
            self.padding_mode,
            device=weight.device,
            dtype=weight.dtype,
        )
        dense.weight.copy_(weight)
        if self.bias is not None:
            dense.bias.copy_(self.bias)
        return dense.train(self.training)

    @classmethod
    def from_dense(
        cls: type[Conv_],
        module: Any,
        format: Format,
        *,
        in_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        rank: Any = None,
        tolerance: float | None = None,
        budget: float | None = None,
        moments: Any = None,
        seed: int = 0,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> Conv_:
        """The layer nearest to a dense one; `layer.decomposition` tells how near.

        ``rank``, ``tolerance``, ``budget``, ``moments``: as `Format.decompose`; moments are those
        of the patches that a kernel sees, channels first, as `torch.nn.Unfold` makes them.
        Warns: IllConditioned where the terms of a bond nearly cancel.
        Raises: FormatError for NaN weights and for shapes or ranks that do not fit.
        """
        check_kind(module, cls.dense)
        signature = (
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            module.bias is not None,
            module.padding_mode,
            module.weight.device,
            module.weight.dtype,
        )
        how: dict[str, Any] = dict(in_shape=in_shape, out_shape=out_shape, backend=backend)
        kernel = Kernel.of(format, module.weight.shape, module.groups, in_shape, out_shape)
        goal = dict(rank=rank, tolerance=tolerance, budget=budget, moments=moments, seed=seed)
        table = module.weight.flatten(1).t()
        found = decompose_weight(format, table, kernel.ins, kernel.outs, goal)
        layer = cls(*signature, format=found.format, implementation=implementation, **how)
        layer._take(found)
        layer._take_bias(module.bias)
        return layer.train(module.training)

    def extra_repr(self) -> str:
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        usual = (("stride", 1), ("padding", 0), ("dilation", 1))
        for name, value in usual:
            if getattr(self, name) != (value,) * self.dimensions:
                shown += f", {name}={getattr(self, name)!r}"
        shown += "" if self.groups == 1 else f", groups={self.groups}"
        shown += "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode!r}"
        return f"{shown}, bias={self.has_bias}, {self._shown_format()}"


def _checked_mode(padding_mode: Any) -> str:
    if padding_mode not in PADDING_MODES:
        raise FormatError(
            f"padding_mode is {padding_mode!r:.40}", fix=f"choose one of {', '.join(PADDING_MODES)}"
        )
    return str(padding_mode)


class Conv1d(Conv):
    """torch.nn.Conv1d with its kernel as the network of a format; see `Conv`."""

    dimensions, dense = 1, nn.Conv1d


class Conv2d(Conv):
    """torch.nn.Conv2d with its kernel as the network of a format; see `Conv`."""

    dimensions, dense = 2, nn.Conv2d


class Conv3d(Conv):
    """torch.nn.Conv3d with its kernel as the network of a format; see `Conv`."""

    dimensions, dense = 3, nn.Conv3d
