"""A table of rows as a network of cores, and how to read rows of it: what embeddings are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tncompiler.formats.format import Format
from tncompiler.ir.errors import ArgumentError, FormatError, ShapeError
from tncompiler.nn.built import may_keep, torch_rates
from tncompiler.nn.checks import check_size, on_device
from tncompiler.nn.given import CoreReading
from tncompiler.nn.reading import digits_of, read_slices, token_reader
from tncompiler.nn.tensorized import Tensorized, decompose_weight
from tncompiler.watching import watched

_SAMPLE = 256  # rows that tell the scale of a table
Table_ = TypeVar("Table_", bound="Table")


class Table(Tensorized):
    """A table of num_embeddings rows, and how to read rows of it.

    The number of a token is written in the mixed radix of ``in_shape``; each core is indexed by its
    own digits, and what is read is contracted for each token. Where that costs more than the whole
    table ("reconstructed", or so many tokens), the table is built first. After `eval()`, where no
    gradients are asked for, it is built once and kept, unless "factorized" was asked for.

    Where there is a ``padding_idx``, its row is the buffer ``padding_row``: zeros, or the row of
    the dense layer. It gets no gradient.
    """

    padding_row: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None,
        scale_grad_by_freq: bool,
        device: Any,
        dtype: torch.dtype | None,
        format: Format,
        in_shape: Sequence[int] | None,
        out_shape: Sequence[int] | None,
        implementation: str,
        backend: str,
    ) -> None:
        super().__init__()
        self.num_embeddings = check_size(num_embeddings, "num_embeddings")
        self.embedding_dim = check_size(embedding_dim, "embedding_dim")
        self.padding_idx = _padding(padding_idx, num_embeddings)
        self.scale_grad_by_freq = scale_grad_by_freq
        shape = (num_embeddings, embedding_dim)
        self._describe_weight(shape, format, in_shape, out_shape, implementation, backend)
        with on_device(device):
            self.cores = self._compiled(dtype)
            if self.padding_idx is not None:
                row = torch.zeros(embedding_dim, dtype=self._core_dtype())
                self.register_buffer("padding_row", row)
        self._make_reader()
        self.reset_parameters()

    def _make_reader(self) -> None:
        found = token_reader(self._network, len(self.in_shape))
        self._reader = None if found is None else CoreReading(found.network, self.backend)
        if found is not None and self._reader is not None:
            self._slices = [found.slices[name] for name in self._reader.leaves]
            run, self._token = self._reader.prepare(self._core_dtype()), found.token
            self._row_flops = int(run.cost(sizes={found.token: 1}).flops)
            self._table_flops = int(self.cores.cost().flops)
        self._prepare()

    def _prepare(self) -> None:
        dtype = self._core_dtype()
        self._table.prepare(dtype)
        if self._reader is not None:
            self._reader.prepare(dtype)

    # ---------------------------------------------------------------- reading rows

    def _kept_table(self, tokens: Tensor) -> Tensor | None:
        """The whole table, where a call in evaluation reads what is kept."""
        if not may_keep(self, tokens, lambda: True, is_index=True):
            return None
        table: Tensor
        (table,) = self._built.keep(self, tokens, lambda: (self.reconstruct().contiguous(),))
        return table

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows of tokens, (tokens,) → (tokens, embedding_dim)."""
        rows = self._read(tokens)
        if self.padding_idx is None:
            return rows
        return torch.where((tokens == self.padding_idx)[:, None], self.padding_row, rows)

    def _read(self, tokens: Tensor) -> Tensor:
        """The rows as the cores give them, that of the padding too."""
        if self.reads_whole(len(tokens)):
            return self._whole_table().index_select(0, tokens)
        assert self._reader is not None
        digits = digits_of(tokens, self.in_shape)
        slices = [
            read_slices(self._core(name), axes, [digits[k] for k in which])
            for name, axes, which in self._slices
        ]
        rows = self._reader(slices).reshape(len(tokens), prod(self.out_shape))
        return rows[:, : self.embedding_dim]

    def reads_whole(self, count: int) -> bool:
        """Whether so many tokens are read from the whole table, built for the call."""
        if self._reader is None or self.implementation == "reconstructed":
            return True
        return self.implementation == "auto" and count * self._row_flops >= self._table_flops

    def reading_us(self, count: int) -> float:
        """Predicted microseconds of reading the rows of so many tokens core by core."""
        assert self._reader is not None
        rates, item = torch_rates(self.cores), self._core_dtype().itemsize
        run, us = self._reader.prepare(self._core_dtype()), 0.0
        for name, axes, _ in self._slices:
            core = self._core(name)
            rest = prod(size for axis, size in enumerate(core.shape) if axis not in axes)
            us += rates.step_us + rates.pass_us(2.0 * count * rest * item) if axes else 0.0
        return us + float(run.predicted_us({self._token: count}))

    def _checked(self, tokens: Any) -> Tensor:
        """The tokens as int64. Raises ArgumentError for other kinds, ShapeError for unknown tokens.

        On a device and under torch.compile the range is asserted where the tokens are, as torch's
        own layer does, since looking at them would wait for the device.
        """
        if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
            raise ArgumentError(
                f"tokens are {getattr(tokens, 'dtype', type(tokens).__name__)}",
                where=str(self),
                fix="give a tensor of int64 or int32",
            )
        if torch.compiler.is_compiling() or tokens.is_cuda:
            known = ((tokens >= 0) & (tokens < self.num_embeddings)).all()
            torch._assert_async(known, f"a token is not in a table of {self.num_embeddings}")
        elif tokens.numel() and not tokens.is_meta and not watched((tokens,)):
            low, high = map(int, torch.aminmax(tokens))
            if low < 0 or high >= self.num_embeddings:
                raise ShapeError(
                    f"token {low if low < 0 else high} is not in a table of {self.num_embeddings}",
                    where=str(self),
                    fix=f"tokens go from 0 to {self.num_embeddings - 1}",
                )
        return tokens.long()

    def _rows_at(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Some rows, and for each token which of them is its own.

        Each token is read once, unless their number must not depend on values.
        """
        fixed = torch.compiler.is_compiling() or tokens.is_meta or watched((tokens,))
        if fixed:
            distinct = tokens.flatten()
            positions = torch.arange(len(distinct), device=tokens.device).reshape(tokens.shape)
        else:
            distinct, positions = torch.unique(tokens, return_inverse=True)
        rows = self.rows(distinct)
        if self.scale_grad_by_freq:
            rows = _with_gradient_over(rows, self._counts(tokens.flatten())[distinct][:, None])
        return rows, positions

    def _counts(self, tokens: Tensor) -> Tensor:
        """How often each row of the table is asked for."""
        ones = torch.ones_like(tokens)
        return ones.new_zeros(self.num_embeddings).index_add(0, tokens, ones)

    # ---------------------------------------------------------------- dense

    def reconstruct(self) -> Tensor:
        """The whole table as torch holds it, (num_embeddings, embedding_dim); differentiable."""
        table = self._whole_table()
        if self.padding_idx is None:
            return table
        before, after = table[: self.padding_idx], table[self.padding_idx + 1 :]
        return torch.cat([before, self.padding_row[None], after])

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the cores anew so that rows have variance 1, as torch.nn.Embedding's."""
        like = self._draw()
        if like is not None:
            few = self.num_embeddings <= _SAMPLE
            tokens = torch.randint(self.num_embeddings, (_SAMPLE,), device=like.device)
            rows = self._read(torch.arange(self.num_embeddings).to(tokens) if few else tokens)
            self._scale_by(float(rows.abs().double().square().mean().pow(-0.5)))
        if self.padding_idx is not None:
            self.padding_row.zero_()

    def tie(self, other: Tensorized) -> None:
        """Use the cores of another embedding from now on. Tie a Linear by its own `tie`.

        Raises: ShapeError if the other's table has another size, or is the weight of a Linear.
        """
        if not isinstance(other, Table) or not self._tied_like(other):
            raise ShapeError(
                f"the table is not tied to {other!s:.200}",
                where=str(self),
                fix="tie it to an embedding of that size, and a Linear to it: head.tie(embedding)",
            )
        self._share_weight(other)
        self.cores = other.cores
        self._make_reader()

    def resize(self, format: Format, cores: Mapping[str, nn.Parameter]) -> None:
        """See `Tensorized.resize`."""
        super().resize(format, cores)
        self._make_reader()

    @classmethod
    def _from_table(
        cls: type[Table_],
        module: Any,
        format: Format,
        goal: dict[str, Any],
        in_shape: Sequence[int] | None,
        out_shape: Sequence[int] | None,
        **options: Any,
    ) -> Table_:
        """A layer like `module`, with the cores nearest to its table."""
        refuse_options(module.max_norm, module.sparse)
        found = decompose_weight(format, module.weight, in_shape, out_shape, goal, stacklevel=4)
        layer = cls(
            module.num_embeddings,
            module.embedding_dim,
            padding_idx=module.padding_idx,
            scale_grad_by_freq=module.scale_grad_by_freq,
            device=module.weight.device,
            dtype=module.weight.dtype,
            format=found.format,
            in_shape=in_shape,
            out_shape=out_shape,
            **options,
        )
        layer._take(found)
        if layer.padding_idx is not None:
            layer.padding_row.copy_(module.weight[layer.padding_idx].detach())
        return layer.train(module.training)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, {self._shown_format()}"


def _with_gradient_over(rows: Tensor, counts: Tensor) -> Tensor:
    """The same rows, whose gradients are divided by counts."""
    if not rows.requires_grad:
        return rows
    share = 1 / counts.to(rows.dtype)
    return rows.detach() + (rows - rows.detach()) * share


def _padding(index: int | None, count: int) -> int | None:
    if index is None:
        return None
    if isinstance(index, bool) or not isinstance(index, int) or not -count <= index < count:
        raise ArgumentError(
            f"padding_idx is {index!r:.40} in a table of {count}", fix="name one of its rows"
        )
    return index % count


def refuse_options(max_norm: float | None, sparse: bool) -> None:
    if max_norm is not None or sparse:
        raise FormatError(
            f"{'max_norm' if max_norm is not None else 'sparse=True'} does not go with cores: rows "
            "share them",
            fix="leave it out",
        )
