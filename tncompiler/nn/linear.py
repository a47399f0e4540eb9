"""Linear: torch.nn.Linear with its weight as a network of cores."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tncompiler.api import compile as compile_network
from tncompiler.dsl import input as data
from tncompiler.dsl import param
from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.errors import ArgumentError, FormatError, ShapeError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.nn.tensorized import (
    check_format,
    check_implementation,
    check_shape,
    decompose_weight,
    describe,
    set_cores,
)


class Linear(nn.Module):
    """y = x W + bias, with W as the network of a format.

    Shapes: input (*, in_features), output (*, out_features).
    ``format``: any of `tnc.formats`. ``in_shape`` and ``out_shape``: modes of the two sizes (three
    balanced factors if not given); a product above the size is padded with zeros.
    ``implementation``: "auto" (whichever the planner predicts to be faster), "factorized" (the
    input goes from core to core) or "reconstructed" (the weight is built, then multiplied).
    Parameters are ``cores.G1``, … as the format names them, and ``cores.bias``.
    Raises: FormatError for shapes, ranks or implementations that do not fit.
    """

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
        self.in_features, self.out_features = _features(in_features), _features(out_features)
        self.format, self.implementation = check_format(format), implementation
        self.in_shape = check_shape(in_shape, in_features, "in_shape")
        self.out_shape = check_shape(out_shape, out_features, "out_shape")
        self.has_bias = bool(bias)
        self.cores = compile_network(
            self._expression(),
            backend=backend,
            dtype=None if dtype is None else dtype_name(dtype),
            plan=check_implementation(implementation),
        )
        if device is not None:
            self.cores.to(device)

    def _expression(self) -> Expr:
        """The layer on a batch of rows, padded and cut where modes are more than features."""
        modes = Modes.of(self.in_shape, self.out_shape)
        n, m = Index("inputs", self.in_features), Index("outputs", self.out_features)
        b, wide = Index("b"), Index("outputs", prod(self.out_shape))
        x: Expr = data("x", b, n).pad(n, 0, prod(self.in_shape) - self.in_features)
        weight = self.format.network(modes.ins, modes.outs)
        y = x.split("inputs", modes.ins) @ weight
        y = y.merge(modes.outs, wide).slice("outputs", 0, self.out_features)
        return y + param("bias", m, init="zeros") if self.has_bias else y

    def forward(self, x: Tensor) -> Tensor:
        """x W + bias over the last axis."""
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(
                f"the input has shape {tuple(x.shape)}, but the layer takes {self.in_features} "
                "features",
                where=f"{self}",
                fix="give a tensor whose last axis has that size",
            )
        rows = x.reshape(-1, self.in_features)
        y: Tensor = self.cores(rows)
        return y.reshape(*x.shape[:-1], self.out_features)

    @property
    def bias(self) -> Tensor | None:
        return self.cores.bias if self.has_bias else None

    def reset_parameters(self, nonlinearity: str = "linear") -> None:
        """Draw the cores anew so that the output has the input's variance, and set the bias to 0.

        ``nonlinearity``: what follows the layer, as torch.nn.init.calculate_gain knows it: "relu"
        makes up for the half of the variance that a relu takes.
        """
        gain = nn.init.calculate_gain(nonlinearity)  # type: ignore[arg-type]
        self.cores.reset_parameters()
        weights = [p for name, p in self.cores.named_parameters() if name != "bias"]
        with torch.no_grad():
            for weight in weights:
                weight.mul_(gain ** (1 / len(weights)))

    # ---------------------------------------------------------------- dense

    def reconstruct(self) -> Tensor:
        """The weight as torch.nn.Linear holds it, (out_features, in_features); differentiable."""
        network = self.format.network(self.in_shape, self.out_shape)
        run = compile_network(network, share=self.cores, backend="torch")
        weight: Tensor = run().reshape(prod(self.in_shape), prod(self.out_shape))
        return weight[: self.in_features, : self.out_features].t()

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

        ``rank``, ``tolerance``, ``budget``, ``moments``: as `Format.decompose`. Raises: FormatError
        for NaN weights and for shapes or ranks that do not fit.
        """
        if not isinstance(module, nn.Linear):
            raise ArgumentError(
                f"from_dense takes a torch.nn.Linear, not a {type(module).__name__}",
                fix="give the dense layer",
            )
        modes = (
            check_shape(in_shape, module.in_features, "in_shape"),
            check_shape(out_shape, module.out_features, "out_shape"),
        )
        goal = {"rank": rank, "tolerance": tolerance, "budget": budget, "moments": moments}
        found = decompose_weight(
            check_format(format), module.weight.t(), *modes, {**goal, "seed": seed}
        )
        layer = cls(
            module.in_features,
            module.out_features,
            module.bias is not None,
            module.weight.device,
            module.weight.dtype,
            format=found.format,
            in_shape=modes[0],
            out_shape=modes[1],
            implementation=implementation,
            backend=backend,
        )
        set_cores(layer.cores, found.cores)
        if module.bias is not None:
            with torch.no_grad():
                layer.cores.bias.copy_(module.bias)
        layer.decomposition = found
        return layer.train(module.training)

    decomposition: Decomposition | None = None

    def extra_repr(self) -> str:
        dense = self.in_features * self.out_features
        shown = describe(self.format, self.in_shape, self.out_shape, dense)
        return f"{self.in_features}, {self.out_features}, bias={self.has_bias}, {shown}"


def _features(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FormatError(f"a layer has {value!r} features", fix="give an integer, 1 or more")
    return value
