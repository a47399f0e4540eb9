"""A matrix of (inputs, outputs) as a network of cores: what Linear and GraphConv are made of."""

from __future__ import annotations

from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tncompiler.formats.modes import Modes
from tncompiler.ir import algebra
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.nn.built import product_us
from tncompiler.nn.checks import check_size, on_device
from tncompiler.nn.initialize import PROBES, gain_of, typical_scale
from tncompiler.nn.tensorized import Tensorized, decompose_weight

Matrix_ = TypeVar("Matrix_", bound="Matrix")


class Matrix(Tensorized):
    """A layer with one matrix, from in_features to out_features, and a bias or none."""

    flipped = True  # False where the format's inputs are the layer's outputs: tied to an embedding

    def _describe(
        self,
        features: tuple[Any, Any],
        bias: bool,
        format: Any,
        shapes: tuple[Any, Any],
        implementation: Any,
        backend: Any,
    ) -> None:
        self.in_features = check_size(features[0], "in_features")
        self.out_features = check_size(features[1], "out_features")
        self.has_bias = bool(bias)
        self._describe_weight(features, format, *shapes, implementation, backend)

    def _make(self, device: Any, dtype: torch.dtype | None) -> None:
        with on_device(device):
            self.cores = self._compiled(dtype)
        self.reset_parameters()

    def product(self, x: Expr, network: Expr) -> Expr:
        """x(…, inputs) times the weight that a network of such modes is, as (…, outputs).

        Padded and cut where modes are more than features.
        """
        modes = Modes.of(self.in_shape, self.out_shape)
        ins, outs = (modes.ins, modes.outs) if self.flipped else (modes.outs, modes.ins)
        padded_in, padded_out = self._padded()
        x = x.pad("inputs", 0, padded_in - self.in_features).split("inputs", ins) @ network
        return x.merge(outs, Index("outputs", padded_out)).slice("outputs", 0, self.out_features)

    def _padded(self) -> tuple[int, int]:
        """What the modes of inputs and outputs multiply to."""
        sizes = prod(self.in_shape), prod(self.out_shape)
        return sizes if self.flipped else sizes[::-1]

    def _biased(self, y: Expr) -> Expr:
        """y(…, outputs) plus the bias, if there is one."""
        m = Index("outputs", self.out_features)
        return y + algebra.leaf("bias", (m,), kind="param", init="zeros") if self.has_bias else y

    # ---------------------------------------------------------------- in evaluation

    def _make_whole(self) -> tuple[Tensor, Tensor | None]:
        """The dense weight, inputs first, and the bias, to be kept."""
        return self.reconstruct().contiguous().t(), self.bias

    def is_whole_faster(self, rows: int) -> bool:
        """Whether so many rows are predicted to meet the dense weight, once it is there, faster
        than the cores: as told for the power of two from there on."""
        if self.implementation == "reconstructed":
            return True
        size = 1 << max(rows - 1, 0).bit_length()
        return self._built.wins(
            size,
            lambda: product_us(self, size),
            lambda: self.cores.predicted_us(self._sizes(size), keeps=True),
        )

    def _sizes(self, rows: int) -> dict[str, int]:
        """The sizes of a call with so many rows, by the names of indices."""
        return {"b": rows}

    def _probe(self, rows: Tensor) -> Tensor:
        """What the layer makes of rows that have nothing to do with one another."""
        made: Tensor = self.cores.run_aten(rows)
        return made

    @torch.no_grad()
    def reset_parameters(self, nonlinearity: str = "linear") -> None:
        """Draw the cores anew so that the output has the input's variance, and set the bias to 0.

        ``nonlinearity``: what follows the layer, as torch.nn.init.calculate_gain knows it: "relu"
        makes up for the half of the variance that a relu takes.
        """
        gain = gain_of(nonlinearity)
        like = self._draw()
        if like is not None:
            probes = torch.randn(PROBES, self.in_features, dtype=like.dtype, device=like.device)
            self._scale_by(gain / typical_scale(self._probe(probes)))

    @torch.no_grad()
    def tie(self, other: Tensorized) -> None:
        """Use the cores of another layer from now on, transposed where the sizes ask for it.

        The other is an Embedding or a Linear; the bias stays this layer's own. Tie before making
        the optimizer and after `to_empty`, as with torch's own layers: the parameters change.

        Raises: ShapeError if the other's weight has another size.
        """
        same = self._tied_like(other)
        self._share_weight(other)
        self.flipped = other.flipped if same else not other.flipped
        self._hold_cores_of(other)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_features, self.in_features)

    @classmethod
    def _near(
        cls: type[Matrix_],
        module: nn.Linear,
        format: Any,
        goal: dict[str, Any],
        in_shape: Any,
        out_shape: Any,
        **options: Any,
    ) -> Matrix_:
        """The layer with cores near the weight of torch's, and its bias."""
        found = decompose_weight(format, module.weight.t(), in_shape, out_shape, goal, stacklevel=4)
        layer = cls(
            module.in_features,
            module.out_features,
            module.bias is not None,
            module.weight.device,
            module.weight.dtype,
            format=found.format,
            in_shape=in_shape,
            out_shape=out_shape,
            **options,
        )
        layer._take(found)
        layer._take_bias(module.bias)
        return layer.train(module.training)

    def _dense_linear(self) -> nn.Linear:
        """A torch.nn.Linear with the same weight and bias."""
        weight = self.reconstruct()
        dense = nn.Linear(
            self.in_features, self.out_features, self.has_bias, weight.device, weight.dtype
        )
        with torch.no_grad():
            dense.weight.copy_(weight)
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.has_bias}, {self._shown_format()}"
        )


def times_dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x(…, inputs) times a weight (inputs, outputs), plus a bias."""
    if x.ndim != 2:
        return F.linear(x, weight.t(), bias)
    # what torch's linear comes to, without the time that it takes to find out
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
