"""Embedding and EmbeddingBag: a table as a network of cores; each token reads its slices."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tncompiler.api import compile as compile_network
from tncompiler.dsl import contract
from tncompiler.dsl import input as data
from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.errors import ArgumentError, FormatError, ShapeError
from tncompiler.ir.expressions import Expr, Leaf
from tncompiler.ir.index import Index
from tncompiler.ir.interchange.networks import only_network
from tncompiler.nn.tensorized import (
    check_format,
    check_implementation,
    check_shape,
    decompose_weight,
    describe,
    set_cores,
)

Table_ = TypeVar("Table_", bound="Table")


class Table(nn.Module):
    """A table of num_embeddings rows, and how to read rows of it.

    The number of a token is written in the mixed radix of ``in_shape``; each core is indexed by its
    own digits, and what is read is contracted for each token. Where that costs more than the whole
    table ("reconstructed", or so many tokens), the table is built first.
    """

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
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = _padding(padding_idx, num_embeddings)
        self.scale_grad_by_freq = scale_grad_by_freq
        self.format, self.implementation = check_format(format), implementation
        self.in_shape = check_shape(in_shape, num_embeddings, "in_shape")
        self.out_shape = check_shape(out_shape, embedding_dim, "out_shape")
        options = check_implementation(implementation)
        name = None if dtype is None else dtype_name(dtype)
        modes = Modes.of(self.in_shape, self.out_shape)
        table = self.format.network(modes.ins, modes.outs)
        self.cores = compile_network(table, backend=backend, dtype=name, plan=options)
        self._digits = {leaf.name: _digits_of(leaf, modes) for leaf in table.leaves}
        reader = _reader(table, modes)
        self._read = compile_network(reader, backend=backend, dtype=name)
        self._row_flops = self._read.cost(sizes={"token": 1}).flops
        self._table_flops = self.cores.cost().flops
        if device is not None:
            self.cores.to(device)

    # ---------------------------------------------------------------- reading rows

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows of different tokens, (tokens, embedding_dim); the padding row is 0."""
        whole = self.implementation == "reconstructed" or (
            self.implementation == "auto" and len(tokens) * self._row_flops >= self._table_flops
        )
        rows = self.reconstruct()[tokens] if whole else self._gathered(tokens)
        if self.padding_idx is None:
            return rows
        return torch.where((tokens == self.padding_idx)[:, None], rows.new_zeros(()), rows)

    def _gathered(self, tokens: Tensor) -> Tensor:
        digits = _digits(tokens, self.in_shape)
        read = [
            _slices(self.cores.get_parameter(name), axes, [digits[k] for k in which])
            for name, (axes, which) in self._digits.items()
        ]
        return self._read(*read).reshape(len(tokens), -1)[:, : self.embedding_dim]  # type: ignore[no-any-return]

    def _checked(self, tokens: Tensor) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
            raise ArgumentError(
                f"tokens are {getattr(tokens, 'dtype', type(tokens).__name__)}",
                where=str(self),
                fix="give a tensor of int64 or int32",
            )
        if tokens.numel() and not tokens.is_meta:
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.num_embeddings:
                raise ShapeError(
                    f"token {low if low < 0 else high} is not in a table of {self.num_embeddings}",
                    where=str(self),
                    fix=f"tokens go from 0 to {self.num_embeddings - 1}",
                )
        return tokens

    def _distinct(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the distinct tokens, and for each token which of them is its own."""
        distinct, positions = torch.unique(tokens, return_inverse=True)
        rows = self.rows(distinct)
        if self.scale_grad_by_freq:
            counts = torch.bincount(positions.flatten(), minlength=len(distinct))
            rows = _with_gradient_over(rows, counts[:, None].to(rows.dtype))
        return rows, positions

    # ---------------------------------------------------------------- dense

    @property
    def weight(self) -> Tensor:
        """The whole table, (num_embeddings, embedding_dim); differentiable."""
        return self.reconstruct()

    def reconstruct(self) -> Tensor:
        """The whole table, (num_embeddings, embedding_dim); differentiable."""
        table: Tensor = self.cores().reshape(prod(self.in_shape), prod(self.out_shape))
        return table[: self.num_embeddings, : self.embedding_dim]

    def reset_parameters(self) -> None:
        """Draw the cores anew so that rows have variance 1, as torch.nn.Embedding's."""
        self.cores.reset_parameters()

    decomposition: Decomposition | None = None

    @classmethod
    def _from_table(
        cls: type[Table_], module: Any, format: Format, goal: dict[str, Any], **options: Any
    ) -> Table_:
        """A layer like `module`, with the cores nearest to its table."""
        modes = (
            check_shape(options.pop("in_shape"), module.num_embeddings, "in_shape"),
            check_shape(options.pop("out_shape"), module.embedding_dim, "out_shape"),
        )
        found = decompose_weight(check_format(format), module.weight, *modes, goal)
        layer = cls(
            module.num_embeddings,
            module.embedding_dim,
            padding_idx=module.padding_idx,
            scale_grad_by_freq=module.scale_grad_by_freq,
            device=module.weight.device,
            dtype=module.weight.dtype,
            format=found.format,
            in_shape=modes[0],
            out_shape=modes[1],
            **options,
        )
        set_cores(layer.cores, found.cores)
        layer.decomposition = found
        return layer.train(module.training)

    def extra_repr(self) -> str:
        dense = self.num_embeddings * self.embedding_dim
        shown = describe(self.format, self.in_shape, self.out_shape, dense)
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, {shown}"


class Embedding(Table):
    """torch.nn.Embedding with its table as the network of a format.

    Shapes: tokens (*), result (*, embedding_dim). ``in_shape`` and ``out_shape`` are the modes of
    num_embeddings and embedding_dim (three balanced factors if not given, padded).
    Raises: FormatError for shapes that do not fit, and for `max_norm` and `sparse`, which a table
    of cores cannot have.
    """

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
        _refuse(max_norm, sparse)
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
        rows, positions = self._distinct(self._checked(tokens))
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
        _check_kind(module, nn.Embedding)
        _refuse(module.max_norm, module.sparse)
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
        if self.padding_idx is not None:
            dense.weight[self.padding_idx] = 0
        return dense.train(self.training)


class EmbeddingBag(Table):
    """torch.nn.EmbeddingBag with its table as the network of a format; modes sum, mean and max."""

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
        _refuse(max_norm, sparse)
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
        rows, positions = self._distinct(self._checked(input))
        return F.embedding_bag(
            positions,
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self._padding_position(input, positions, len(rows)),
        )

    def _padding_position(self, tokens: Tensor, positions: Tensor, count: int) -> int | None:
        """Where the padding token is among the distinct ones; None if it does not occur."""
        if self.padding_idx is None or not count:
            return None
        found = positions[tokens == self.padding_idx]
        return int(found[0]) if len(found) else None

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
        _check_kind(module, nn.EmbeddingBag)
        _refuse(module.max_norm, module.sparse)
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


# ---------------------------------------------------------------------------- reading by digits


def _reader(table: Expr, modes: Modes) -> Expr:
    """The table's network with an index for tokens in place of the input modes.

    Each core becomes an input: with axes (token, *rest) if it has input modes, as it is otherwise.
    """
    token = Index("token")
    network = only_network(table)
    leaves = {leaf.name: leaf for leaf in table.leaves}
    terms = []
    for name in network.tensors:
        leaf = leaves[name]
        rest = [index for index in leaf.indices if index not in modes.ins]
        axes = [token, *rest] if len(rest) < leaf.ndim else rest
        terms.append(data(name, *axes))
    return contract(*terms, out=(token, *modes.outs))


def _digits_of(leaf: Leaf, modes: Modes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a core that are input modes, and which modes they are."""
    found = [(axis, modes.ins.index(i)) for axis, i in enumerate(leaf.indices) if i in modes.ins]
    return tuple(axis for axis, _ in found), tuple(mode for _, mode in found)


def _digits(tokens: Tensor, radix: Sequence[int]) -> list[Tensor]:
    """The digits of tokens in a mixed radix, the first one slowest."""
    digits = []
    for size in reversed(radix):
        digits.append(tokens % size)
        tokens = tokens // size
    return digits[::-1]


def _slices(core: Tensor, axes: Sequence[int], digits: Sequence[Tensor]) -> Tensor:
    """The core read at digits along some axes, (tokens, *rest); itself if there are none."""
    if not axes:
        return core
    rest = [axis for axis in range(core.ndim) if axis not in axes]
    moved = core.permute(*axes, *rest)
    position = torch.zeros_like(digits[0])
    for axis, digit in zip(axes, digits, strict=True):
        position = position * core.shape[axis] + digit
    return moved.flatten(0, len(axes) - 1).index_select(0, position)


def _with_gradient_over(rows: Tensor, counts: Tensor) -> Tensor:
    """The same rows, whose gradients are divided by counts."""
    share = 1 / counts
    return rows * share + (rows * (1 - share)).detach()


def _padding(index: int | None, count: int) -> int | None:
    if index is None:
        return None
    if isinstance(index, bool) or not isinstance(index, int) or not -count <= index < count:
        raise ArgumentError(
            f"padding_idx is {index!r:.40} in a table of {count}", fix="name one of its rows"
        )
    return index % count


def _refuse(max_norm: float | None, sparse: bool) -> None:
    if max_norm is not None or sparse:
        raise FormatError(
            f"{'max_norm' if max_norm is not None else 'sparse=True'} does not go with cores: rows "
            "share them",
            fix="leave it out",
        )


def _check_kind(module: Any, kind: type) -> None:
    if not isinstance(module, kind):
        raise ArgumentError(
            f"from_dense takes a torch.nn.{kind.__name__}, not a {type(module).__name__}",
            fix="give the dense layer",
        )
