"""Linear: torch.nn.Linear with its weight as a network of cores."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.format import Format
from tncompiler.ir.errors import ArgumentError, FormatError, ShapeError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.nn.built import may_keep
from tncompiler.nn.checks import check_kind
from tncompiler.nn.given import common_dtype, input_leaf
from tncompiler.nn.matrix import Matrix, times_dense


class Linear(Matrix):
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

    dense = nn.Linear

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
        features, shapes = (in_features, out_features), (in_shape, out_shape)
        self._describe(features, bias, format, shapes, implementation, backend)
        self._make(device, dtype)

    def _expression(self) -> Expr:
        """The layer on a batch of rows."""
        x = input_leaf("x", (Index("b"), Index("inputs", self.in_features)))
        return self._biased(self.product(x, self._network))

    def forward(self, x: Tensor) -> Tensor:
        """x W + bias over the last axis."""
        ready = self._built.ready(self, x)
        if ready is not None:
            return times_dense(x, *ready)
        self.check_input(x)
        if may_keep(self, x, lambda: self.is_whole_faster(x.numel() // self.in_features)):
            return times_dense(x, *self._built.keep(self, x, self._make_whole))
        rows = x if x.ndim == 2 else x.reshape(-1, self.in_features)
        y: Tensor = self.cores(rows)
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def check_input(self, x: Any) -> None:
        """Raises ArgumentError or ShapeError unless x is a tensor of rows that the layer takes."""
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

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """A torch.nn.Linear that computes the same."""
        return self._dense_linear()

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
        goal = dict(rank=rank, tolerance=tolerance, budget=budget, moments=moments, seed=seed)
        return cls._near(
            module,
            format,
            goal,
            in_shape,
            out_shape,
            implementation=implementation,
            backend=backend,
        )

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
        layer._take_bias(bias)
        return layer
