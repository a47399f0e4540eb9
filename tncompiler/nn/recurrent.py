"""LSTM and GRU: torch's, with every weight as a network of cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tncompiler.formats.format import Format
from tncompiler.ir.errors import FormatError
from tncompiler.nn.gated import Gated


class LSTM(Gated):
    """torch.nn.LSTM with every weight as the network of a format; see `Gated`.

    ``in_shape``: modes of the inputs of the first layer, ``hidden_shape`` of the hidden state,
    ``out_shape`` of the 4 · hidden_size gates; balanced factors where not given. ``format`` may be
    a mapping with one for each weight, by the names that torch gives them. A packed sequence
    runs on built weights. ``implementation``: "auto" (whichever is predicted to be faster),
    "factorized" or "reconstructed".
    Raises: FormatError for sizes, shapes or ranks that do not fit; ShapeError for states.
    """

    kind, dense = "LSTM", nn.LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format | Mapping[str, Format],
        in_shape: Sequence[int] | None = None,
        hidden_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self._describe(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        )
        if isinstance(proj_size, bool) or proj_size not in range(hidden_size):
            raise FormatError(
                f"proj_size is {proj_size!r:.40}", fix="give a size below hidden_size, or 0"
            )
        self.proj_size = proj_size
        self._set_shapes(in_shape, hidden_shape, out_shape)
        self._make(format, implementation, backend, device, dtype)

    def forward(
        self, input: Any, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """The outputs of all positions, and the last states (h_n, c_n)."""
        out, (h, c) = self._forward(input, hx)
        return out, (h, c)

    @classmethod
    def from_dense(
        cls,
        module: nn.LSTM,
        format: Format | Mapping[str, Format],
        *,
        in_shape: Sequence[int] | None = None,
        hidden_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        rank: Any = None,
        tolerance: float | None = None,
        budget: float | None = None,
        moments: Any = None,
        seed: int = 0,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> LSTM:
        """The layer nearest to a dense one; `layer.decomposition` tells how near.

        ``rank``, ``tolerance``, ``budget``: as `Format.decompose`, for each weight; a budget in
        numbers is shared out among them. ``moments``: those of the inputs, for the weights of the
        first layer that read them; or a mapping with those of what each weight is multiplied by, by
        the names of `parts`.
        """
        shapes = (in_shape, hidden_shape, out_shape)
        goal = dict(rank=rank, tolerance=tolerance, budget=budget, moments=moments, seed=seed)
        return cls._near(module, format, shapes, implementation, backend, goal)


class GRU(Gated):
    """torch.nn.GRU with every weight as the network of a format; see `Gated` and `LSTM`.

    ``out_shape``: modes of the 3 · hidden_size gates.
    """

    kind, dense = "GRU", nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format | Mapping[str, Format],
        in_shape: Sequence[int] | None = None,
        hidden_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self._describe(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        )
        self._set_shapes(in_shape, hidden_shape, out_shape)
        self._make(format, implementation, backend, device, dtype)

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """The outputs of all positions, and the last state h_n."""
        out, (h,) = self._forward(input, hx)
        return out, h

    @classmethod
    def from_dense(
        cls,
        module: nn.GRU,
        format: Format | Mapping[str, Format],
        *,
        in_shape: Sequence[int] | None = None,
        hidden_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        rank: Any = None,
        tolerance: float | None = None,
        budget: float | None = None,
        moments: Any = None,
        seed: int = 0,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> GRU:
        """The layer nearest to a dense one; see `LSTM.from_dense`."""
        shapes = (in_shape, hidden_shape, out_shape)
        goal = dict(rank=rank, tolerance=tolerance, budget=budget, moments=moments, seed=seed)
        return cls._near(module, format, shapes, implementation, backend, goal)
