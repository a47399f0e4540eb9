"""Linear: torch.nn.Linear with its weight as a network of cores."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tncompiler.api import compile as compile_network
from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.ir import algebra
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.errors import ArgumentError, FormatError, ShapeError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.nn.initialize import PROBES, typical_scale
from tncompiler.nn.tensorized import (
    IMPLEMENTATIONS,
    Tensorized,
    check_kind,
    check_size,
    common_dtype,
    decompose_weight,
    input_leaf,
    on_device,
)


class Linear(Tensorized):
    """y = x W + bias, with W as the network of a format.

    Shapes: input (*, in_features), output (*, out_features).
    ``format``: any of `tnc.formats`. ``in_shape`` and ``out_shape``: modes of the two sizes
    (balanced factors if not given); a product above the size is padded with zeros.
    ``implementation``: "auto" (whichever the planner predicts to be faster), "factorized" (the
    input goes from core to core) or "reconstructed" (the weight is built, then multiplied).
    Parameters are ``cores.G1``, … as the format names them, and ``cores.bias``.
    Tied weights: `head.tie(embedding)`, where torch has `head.weight = embedding.weight`.
    Raises: FormatError for shapes, ranks or implementations that do not fit.
    """

    flipped = True  # False where the format's inputs are the layer's outputs: tied to an embedding

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
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
        self.in_features = check_size(in_features, "in_features")
        self.out_features = check_size(out_features, "out_features")
        self.has_bias = bool(bias)
        self._describe_weight(
            (in_features, out_features), format, in_shape, out_shape, implementation, backend
        )
        with on_device(device):
            self.cores = self._compiled(dtype)
        self.reset_parameters()

    def _compiled(self, dtype: torch.dtype | None) -> Any:
        return compile_network(
            self._expression(),
            backend=self.backend,
            dtype=None if dtype is None else dtype_name(dtype),
            plan=IMPLEMENTATIONS[self.implementation],
        )

    def _expression(self) -> Expr:
        """The layer on a batch of rows, padded and cut where modes are more than features."""
        modes = Modes.of(self.in_shape, self.out_shape)
        ins, outs = (modes.ins, modes.outs) if self.flipped else (modes.outs, modes.ins)
        padded_in, padded_out = self._padded()
        n, m = Index("inputs", self.in_features), Index("outputs", self.out_features)
        x = input_leaf("x", (Index("b"), n)).pad(n, 0, padded_in - self.in_features)
        y = x.split("inputs", ins) @ self._network
        y = y.merge(outs, Index("outputs", padded_out)).slice("outputs", 0, self.out_features)
        return y + algebra.leaf("bias", (m,), kind="param", init="zeros") if self.has_bias else y

    def _padded(self) -> tuple[int, int]:
        """What the modes of inputs and outputs multiply to."""
        sizes = prod(self.in_shape), prod(self.out_shape)
        return sizes if self.flipped else sizes[::-1]

    def forward(self, x: Tensor) -> Tensor:
        """x W + bias over the last axis."""
        if not isinstance(x, Tensor):
            raise ArgumentError(
                f"the input is a {type(x).__name__}", where=str(self), fix="give a torch tensor"
            )
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(
                f"the input has shape {tuple(x.shape)}, but the layer takes {self.in_features} "
                "features",
                where=str(self),
                fix="give a tensor whose last axis has that size",
            )
        y: Tensor = self.cores(x.reshape(-1, self.in_features))
        return y.reshape(*x.shape[:-1], self.out_features)

    @property
    def bias(self) -> Tensor | None:
        return self.cores.bias if self.has_bias else None

    @torch.no_grad()
    def reset_parameters(self, nonlinearity: str = "linear") -> None:
        """Draw the cores anew so that the output has the input's variance, and set the bias to 0.

        ``nonlinearity``: what follows the layer, as torch.nn.init.calculate_gain knows it: "relu"
        makes up for the half of the variance that a relu takes.
        """
        try:
            gain = nn.init.calculate_gain(nonlinearity)  # type: ignore[arg-type]
        except ValueError:
            raise ArgumentError(
                f"nonlinearity is {nonlinearity!r:.40}",
                fix="name one that torch.nn.init.calculate_gain knows, as 'relu'",
            ) from None
        like = self._draw()
        if like is not None:
            probes = torch.randn(PROBES, self.in_features, dtype=like.dtype, device=like.device)
            self._scale_by(gain / typical_scale(self.cores.run_aten(probes)))

    @torch.no_grad()
    def tie(self, other: Tensorized) -> None:
        """Use the cores of another layer from now on, transposed where the sizes ask for it.

        The other is an Embedding or a Linear; the bias stays this layer's own. Tie before making
        the optimizer and after `to_empty`, as with torch's own layers: the parameters change.

        Raises: ShapeError if the other's weight has another size.
        """
        same = self._tied_like(other)
        like, bias = other._core(other._table.leaves[0]), self.bias
        self._share_weight(other)
        self.flipped = other.flipped if same else not other.flipped
        with on_device(like.device):
            self.cores = self._compiled(like.dtype)
        for leaf in self._network.leaves:
            if leaf.kind == "param":
                path, _, last = leaf.name.rpartition(".")
                setattr(self.cores.get_submodule(path), last, other._core(leaf.name))
        if bias is not None:
            moved = bias.to(like)
            self.cores.bias = bias if moved is bias else nn.Parameter(moved, bias.requires_grad)

    # ---------------------------------------------------------------- dense

    @property
    def weight_shape(self) -> tuple[int, int]:
        return (self.out_features, self.in_features)

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """A torch.nn.Linear that computes the same."""
        weight = self.reconstruct()
        dense = nn.Linear(
            self.in_features, self.out_features, self.has_bias, weight.device, weight.dtype
        )
        dense.weight.copy_(weight)
        if self.bias is not None:
            dense.bias.copy_(self.bias)
        return dense.train(self.training)

    @classmethod
    def from_dense(
        cls,
        module: nn.Linear,
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
    ) -> Linear:
        """The layer nearest to a dense one; `layer.decomposition` tells how near.

        ``rank``, ``tolerance``, ``budget``, ``moments``: as `Format.decompose`.
        Warns: IllConditioned where the terms of a bond nearly cancel.
        Raises: FormatError for NaN weights and for shapes or ranks that do not fit.
        """
        check_kind(module, nn.Linear)
        goal = {"rank": rank, "tolerance": tolerance, "budget": budget, "moments": moments}
        goal["seed"] = seed
        found = decompose_weight(format, module.weight.t(), in_shape, out_shape, goal)
        layer = cls(
            module.in_features,
            module.out_features,
            module.bias is not None,
            module.weight.device,
            module.weight.dtype,
            format=found.format,
            in_shape=in_shape,
            out_shape=out_shape,
            implementation=implementation,
            backend=backend,
        )
        layer._take(found)
        if module.bias is not None:
            with torch.no_grad():
                layer.cores.bias.copy_(module.bias)
        return layer.train(module.training)

    @classmethod
    @torch.no_grad()
    def from_cores(
        cls,
        found: Decomposition,
        bias: Tensor | None = None,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> Linear:
        """The layer that holds given cores, such as `tnc.formats.from_tensorly_torch` reads them.

        ``in_features``, ``out_features``: what its modes multiply to, if not given.
        Raises: FormatError unless the decomposition says which modes are inputs.
        """
        shapes = [found.details.get(key) for key in ("in_shape", "out_shape")]
        if None in shapes:
            raise FormatError(
                "the decomposition does not say which modes are inputs",
                fix="give one that was read from another library, or use from_dense",
            )
        ins, outs = (tuple(shape or ()) for shape in shapes)
        cores = {name: torch.from_numpy(np.array(core)) for name, core in found.cores.items()}
        layer = cls(
            prod(ins) if in_features is None else in_features,
            prod(outs) if out_features is None else out_features,
            bias is not None,
            dtype=common_dtype([*cores.values()]),
            format=found.format,
            in_shape=ins,
            out_shape=outs,
            implementation=implementation,
            backend=backend,
        )
        layer._take(found)
        if bias is not None:
            layer.cores.bias.copy_(bias)
        return layer

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.has_bias}, {self._shown_format()}"
        )
