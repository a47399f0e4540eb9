"""Embedding and EmbeddingBag: torch's, with the table as a network of cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tncompiler.formats.format import Format
from tncompiler.ir.errors import ArgumentError
from tncompiler.nn.checks import check_kind
from tncompiler.nn.table import Table, refuse_options


class Embedding(Table):
    """torch.nn.Embedding with its table as the network of a format.

    Shapes: tokens (*), result (*, embedding_dim). ``in_shape`` and ``out_shape`` are the modes of
    num_embeddings and embedding_dim (three balanced factors if not given, padded).
    Raises: FormatError for shapes that do not fit, and for `max_norm` and `sparse`, which a table
    of cores cannot have.
    """

    dense = nn.Embedding

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format,
        in_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> None:
        refuse_options(max_norm, sparse)
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            scale_grad_by_freq,
            device,
            dtype,
            format,
            in_shape,
            out_shape,
            implementation,
            backend,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """The rows of the tokens."""
        ready = self._built.ready(self, tokens)
        if ready is not None:
            (table,) = ready
            try:
                return torch.embedding(table, tokens)
            except IndexError:
                self._checked(tokens)  # says which token is not there
                raise
        known = self._checked(tokens)
        kept = self._kept_table(tokens)
        if kept is not None:
            return torch.embedding(kept, tokens)
        rows, positions = self._rows_at(known)
        return F.embedding(positions, rows)

    @classmethod
    def from_dense(
        cls,
        module: nn.Embedding,
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
    ) -> Embedding:
        """The layer nearest to a dense one; `layer.decomposition` tells how near.

        ``moments``: how often each token occurs, (num_embeddings,): frequent rows then count more.
        """
        check_kind(module, nn.Embedding)
        goal = {"rank": rank, "tolerance": tolerance, "budget": budget}
        goal.update(moments=moments, seed=seed)
        return cls._from_table(
            module,
            format,
            goal,
            in_shape=in_shape,
            out_shape=out_shape,
            implementation=implementation,
            backend=backend,
        )

    @torch.no_grad()
    def to_dense(self) -> nn.Embedding:
        """A torch.nn.Embedding with the same rows."""
        table = self.reconstruct()
        dense = nn.Embedding(
            self.num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
            device=table.device,
            dtype=table.dtype,
        )
        dense.weight.copy_(table)
        return dense.train(self.training)


class EmbeddingBag(Table):
    """torch.nn.EmbeddingBag with its table as the network of a format; modes sum, mean and max."""

    dense = nn.EmbeddingBag

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format,
        in_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> None:
        refuse_options(max_norm, sparse)
        if mode not in ("sum", "mean", "max"):
            raise ArgumentError(f"mode is {mode!r:.40}", fix="choose 'sum', 'mean' or 'max'")
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            scale_grad_by_freq,
            device,
            dtype,
            format,
            in_shape,
            out_shape,
            implementation,
            backend,
        )
        self.mode, self.include_last_offset = mode, include_last_offset

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """One row for each bag; bags are rows of a matrix of tokens, or begin at offsets."""
        ready = self._built.ready(self, input)
        if ready is not None and input.numel():
            (table,) = ready
            self._check_bags(input, offsets, per_sample_weights)
            try:
                return self._bags(input, table, offsets, per_sample_weights, self.padding_idx)
            except RuntimeError:
                self._checked(input)  # says which token is not there
                raise
        tokens = self._checked(input)
        self._check_bags(tokens, offsets, per_sample_weights)
        kept = self._kept_table(input)
        if kept is not None:
            return self._bags(tokens, kept, offsets, per_sample_weights, self.padding_idx)
        rows, positions = self._rows_at(tokens)
        padding = None
        if self.padding_idx is not None or not len(rows):  # a row of its own, left out of all bags
            padding = 0
            rows = torch.cat([rows.new_zeros(1, self.embedding_dim), rows])
            positions = positions + 1
        if self.padding_idx is not None:
            positions = positions.masked_fill(tokens == self.padding_idx, 0)
        return self._bags(positions, rows, offsets, per_sample_weights, padding)

    def _bags(
        self,
        positions: Tensor,
        rows: Tensor,
        offsets: Tensor | None,
        per_sample_weights: Tensor | None,
        padding: int | None,
    ) -> Tensor:
        """torch's own bags of rows of a table, without its padding row."""
        return F.embedding_bag(
            positions,
            rows,
            None if offsets is None else offsets.long(),
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )

    def _check_bags(
        self, tokens: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
    ) -> None:
        """Raises ArgumentError for bags that are not told apart, and weights that do not fit."""
        if tokens.ndim not in (1, 2) or (tokens.ndim == 2) != (offsets is None):
            raise self._bad_bags(
                f"tokens have {tokens.ndim} axes, offsets are {'' if offsets is None else 'not '}"
                "missing",
                "give a matrix of tokens without offsets, or a vector with them",
            )
        if tokens.ndim == 2 and not tokens.shape[1]:
            raise self._bad_bags(
                f"bags of shape {tuple(tokens.shape)} hold no tokens",
                "give empty bags by offsets, which say how many there are",
            )
        if offsets is not None:
            self._check_offsets(offsets, len(tokens))
        if per_sample_weights is not None:
            same = per_sample_weights.shape == tokens.shape
            if self.mode != "sum" or not same or per_sample_weights.dtype != self._core_dtype():
                raise self._bad_bags(
                    f"per_sample_weights are {tuple(per_sample_weights.shape)}, "
                    f"{per_sample_weights.dtype}, in mode {self.mode!r}",
                    f"give one of {self._core_dtype()} for each token, in mode 'sum'",
                )

    def _check_offsets(self, offsets: Tensor, count: int) -> None:
        integers = getattr(offsets, "dtype", None) in (torch.int64, torch.int32)
        bad = not integers or offsets.ndim != 1 or (self.include_last_offset and not len(offsets))
        if not bad and offsets.device.type == "cpu" and not torch.compiler.is_compiling():
            ends = [0, *offsets.tolist(), count][1 - bool(len(offsets)) :]
            bad = ends != sorted(ends) or (len(offsets) > 0 and ends[1] != 0)
        if bad:
            raise self._bad_bags(
                f"offsets are {offsets!s:.60}, for {count} tokens",
                "give where each bag begins: a vector of integers that starts with 0 and grows",
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"

    def _bad_bags(self, what: str, fix: str) -> ArgumentError:
        return ArgumentError(what, where=str(self), fix=fix)

    @classmethod
    def from_dense(
        cls,
        module: nn.EmbeddingBag,
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
    ) -> EmbeddingBag:
        """The layer nearest to a dense one; `layer.decomposition` tells how near."""
        check_kind(module, nn.EmbeddingBag)
        goal = {"rank": rank, "tolerance": tolerance, "budget": budget}
        goal.update(moments=moments, seed=seed)
        return cls._from_table(
            module,
            format,
            goal,
            in_shape=in_shape,
            out_shape=out_shape,
            implementation=implementation,
            backend=backend,
            mode=module.mode,
            include_last_offset=module.include_last_offset,
        )

    @torch.no_grad()
    def to_dense(self) -> nn.EmbeddingBag:
        """A torch.nn.EmbeddingBag with the same rows."""
        table = self.reconstruct()
        dense = nn.EmbeddingBag(
            self.num_embeddings,
            self.embedding_dim,
            scale_grad_by_freq=self.scale_grad_by_freq,
            mode=self.mode,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
            device=table.device,
            dtype=table.dtype,
        )
        dense.weight.copy_(table)
        return dense.train(self.training)
