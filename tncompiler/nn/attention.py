"""MultiheadAttention: torch's, with its four projections as networks of cores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tncompiler.formats.format import Format
from tncompiler.ir.errors import ArgumentError, FormatError, ShapeError
from tncompiler.nn.built import may_keep
from tncompiler.nn.checks import check_kind, check_probability, check_size
from tncompiler.nn.linear import Linear
from tncompiler.nn.masks import added_mask
from tncompiler.nn.parts import Composite, Part

_LETTERS = "qkv"


class _NoWeight:
    """Stands where torch's transformer looks for a fused weight. torch takes what has this method
    for a tensor of a kind of its own, and leaves its kernels for plain ones alone."""

    requires_grad = False

    @classmethod
    def __torch_function__(cls, func: Any, *_: Any) -> Any:
        raise ArgumentError(
            "the projections of this attention are no one weight",
            where=f"a call of {func}",
            fix="read q_proj.weight, k_proj.weight and v_proj.weight, or call reconstruct()",
        )


class MultiheadAttention(Composite):
    """torch.nn.MultiheadAttention with its projections as networks of a format.

    Parts are ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, each a `tnc.nn.Linear` that
    chooses its own way to run; torch's fused ``in_proj_weight`` is the first three of them.
    ``in_shape``: modes of the features that the projections read (for `kdim` and `vdim` always
    balanced factors), ``out_shape`` of the embed_dim features that they make; balanced factors
    where not given. ``format`` may be a mapping with one for each of ``q_proj_weight``,
    ``k_proj_weight``, ``v_proj_weight`` and ``out_proj.weight``. The attention itself is torch's
    kernel, or written out where the weights are asked for.
    Raises: FormatError for sizes, shapes or ranks that do not fit; ShapeError or DTypeError for
    inputs and masks.
    """

    dense = nn.MultiheadAttention
    # what torch's transformer layers ask before they read weights past the layer's forward pass
    in_proj_bias, _qkv_same_embed_dim, in_proj_weight = None, False, _NoWeight()
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    out_proj: Linear
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format | Mapping[str, Format],
        in_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self._describe(embed_dim, num_heads, dropout, bias, add_zero_attn, kdim, vdim, batch_first)
        self.in_shape, self.out_shape = in_shape, out_shape
        self._use(format, implementation, backend)
        self._build(lambda part: self._new_part(part, device, dtype))
        self._add_biases(bool(add_bias_kv))
        self.reset_parameters()

    def _describe(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float,
        bias: bool,
        add_zero_attn: bool,
        kdim: int | None,
        vdim: int | None,
        batch_first: bool,
    ) -> None:
        self.embed_dim = check_size(embed_dim, "embed_dim")
        self.num_heads = check_size(num_heads, "num_heads")
        if embed_dim % num_heads:
            raise FormatError(
                f"embed_dim {embed_dim} does not make {num_heads} heads of one size",
                fix="give a number of heads that divides it",
            )
        self.kdim = embed_dim if kdim is None else check_size(kdim, "kdim")
        self.vdim = embed_dim if vdim is None else check_size(vdim, "vdim")
        self.head_dim = embed_dim // num_heads
        self.dropout, self.bias = check_probability(dropout, "dropout"), bool(bias)
        self.add_zero_attn, self.batch_first = bool(add_zero_attn), bool(batch_first)

    def _add_biases(self, wanted: bool) -> None:
        """The key and value that `add_bias_kv` adds to every sequence."""
        like = self.q_proj._core(self.q_proj._table.leaves[0])
        for name in ("bias_k", "bias_v"):
            made = nn.Parameter(torch.empty(1, 1, self.embed_dim).to(like)) if wanted else None
            self.register_parameter(name, made)

    @property
    def add_bias_kv(self) -> bool:
        return self.bias_k is not None

    # ---------------------------------------------------------------- parts

    def _plan_parts(self) -> Iterator[Part]:
        for letter, size in zip(_LETTERS, (self.embed_dim, self.kdim, self.vdim), strict=True):
            ins = self.in_shape if size == self.embed_dim else None
            name = f"{letter}_proj"
            shapes, own = (ins, self.out_shape), size == self.embed_dim
            yield Part(f"{name}_weight", name, size, self.embed_dim, self.bias, *shapes, own)
        shapes = (self.in_shape, self.out_shape)
        yield Part("out_proj.weight", "out_proj", *(self.embed_dim,) * 2, self.bias, *shapes)

    def _dense_parts(self, module: Any) -> dict[str, tuple[Tensor, Tensor | None]]:
        weights = [getattr(module, f"{letter}_proj_weight") for letter in _LETTERS]
        if module.in_proj_weight is not None:
            weights = [*module.in_proj_weight.chunk(3)]
        biased = module.in_proj_bias is not None
        biases = [*module.in_proj_bias.chunk(3)] if biased else [None] * 3
        pairs = zip(_LETTERS, weights, biases, strict=True)
        found = {f"{letter}_proj_weight": (weight, bias) for letter, weight, bias in pairs}
        out = module.out_proj
        return {**found, "out_proj.weight": (out.weight, out.bias)}

    def _blank_dense(self, like: Tensor) -> nn.Module:
        return nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            self.bias,
            self.bias_k is not None,
            self.add_zero_attn,
            self.kdim,
            self.vdim,
            self.batch_first,
            like.device,
            like.dtype,
        )

    @torch.no_grad()
    def to_dense(self) -> nn.MultiheadAttention:
        """A torch.nn.MultiheadAttention that computes the same."""
        dense: nn.MultiheadAttention = super().to_dense()
        self._copy_biases(self, dense)
        return dense

    @staticmethod
    def _copy_biases(source: Any, target: Any) -> None:
        for name in ("bias_k", "bias_v"):
            given = getattr(source, name)
            if given is not None:
                getattr(target, name).copy_(given)

    @classmethod
    def from_dense(
        cls,
        module: nn.MultiheadAttention,
        format: Format | Mapping[str, Format],
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
    ) -> MultiheadAttention:
        """The layer nearest to a dense one; `layer.decomposition` tells how near.

        ``rank``, ``tolerance``, ``budget``: as `Format.decompose`, for each projection; a budget in
        numbers is shared out among them. ``moments``: those of what self-attention reads, for the
        projections of queries, and of keys and values of that size; or a mapping with those of each
        projection's input, by the names of `parts`.
        """
        check_kind(module, nn.MultiheadAttention)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._describe(
            module.embed_dim,
            module.num_heads,
            module.dropout,
            module.in_proj_bias is not None,
            module.add_zero_attn,
            module.kdim,
            module.vdim,
            module.batch_first,
        )
        layer.in_shape, layer.out_shape = in_shape, out_shape
        layer._use(format, implementation, backend)
        goal = dict(rank=rank, tolerance=tolerance, budget=budget, moments=moments, seed=seed)
        layer._build_near(module, goal)
        layer._add_biases(module.bias_k is not None)
        with torch.no_grad():
            layer._copy_biases(module, layer)
        return layer.train(module.training)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the projections so that each keeps the variance of its input; biases are 0, those of
        `add_bias_kv` as torch draws them."""
        for part in self.parts().values():
            part.reset_parameters()
        for added in (self.bias_k, self.bias_v):
            if added is not None:
                nn.init.xavier_normal_(added)

    # ---------------------------------------------------------------- running

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The attention's output, and its weights if they are asked for; arguments as torch's.

        ``is_causal`` says, as in torch, that `attn_mask` is the causal mask: it is needed as well.
        """
        is_masked = key_padding_mask is not None or attn_mask is not None or is_causal
        if query is key is value and not is_masked:
            dense = self._kept_dense(query)
            if dense is not None:
                return dense.forward(
                    query,
                    key,
                    value,
                    need_weights=need_weights,
                    average_attn_weights=average_attn_weights,
                )
        self._check(query, key, value)
        single = query.ndim == 2
        given = [
            t[:, None] if single else t.transpose(0, 1) if self.batch_first else t
            for t in (query, key, value)
        ]  # (positions, batch, features)
        if single and isinstance(key_padding_mask, Tensor):
            key_padding_mask = key_padding_mask[None]
        q, k, v = self._heads(*given)
        lengths = given[0].shape[0], given[1].shape[0]
        if is_causal and attn_mask is None:
            raise ArgumentError(
                "is_causal says what attn_mask is, and there is none",
                where=str(self),
                fix="give it: torch.nn.Transformer.generate_square_subsequent_mask(length)",
            )
        mask = self._mask(attn_mask, key_padding_mask, given[0].shape[1], lengths, q.dtype)
        made, weights = self._attend(q, k, v, mask, need_weights)
        out = self.out_proj(made.permute(2, 0, 1, 3).flatten(2))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights[0] if single else weights
        if single:
            return out[:, 0], weights
        return (out.transpose(0, 1) if self.batch_first else out), weights

    def held_tensors(self) -> list[Tensor]:
        """What the parts hold, and the key and value that are added."""
        added = (self.bias_k, self.bias_v)
        return [*super().held_tensors(), *(bias for bias in added if bias is not None)]

    def _kept_dense(self, x: Tensor) -> nn.MultiheadAttention | None:
        """torch's layer with the weights that the cores make, for self-attention in evaluation:
        kept until a core changes. Its fused kernel is what parts cannot have."""
        ready = self._built.ready(self, x)
        if ready is None:
            self._check(x, x, x)
            if not may_keep(self, x, lambda: self._is_whole_faster(x.numel() // self.embed_dim)):
                return None
            ready = self._built.keep(self, x, self._make_whole)
        dense: nn.MultiheadAttention = ready[0]
        return dense

    def _make_whole(self) -> tuple[nn.MultiheadAttention]:
        return (self.to_dense().eval().requires_grad_(False),)

    def _is_whole_faster(self, rows: int) -> bool:
        """Whether so many rows are predicted to meet every dense projection faster than its cores.

        Not where projections differ in size: keys and values are then no self-attention.
        """
        return all(part.is_whole_faster(rows) for part in self.parts().values())

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values, (batch, heads, positions, features of a head)."""
        made = [self.q_proj(query), self.k_proj(key), self.v_proj(value)]
        if self.bias_k is not None and self.bias_v is not None:
            for place, added in ((1, self.bias_k), (2, self.bias_v)):
                row = added.expand(1, made[place].shape[1], -1).to(made[place].dtype)
                made[place] = torch.cat([made[place], row])
        split = [
            t.reshape(*t.shape[:2], self.num_heads, self.head_dim).permute(1, 2, 0, 3) for t in made
        ]
        if self.add_zero_attn:
            split[1:] = [F.pad(t, (0, 0, 0, 1)) for t in split[1:]]
        return split

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        rate = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, mask, rate), None
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = F.dropout(weights, rate) if rate else weights
        return weights @ v, weights

    def _mask(
        self,
        attn_mask: Tensor | None,
        padding: Tensor | None,
        batch: int,
        lengths: tuple[int, int],
        dtype: torch.dtype,
    ) -> Tensor | None:
        """What is added to the scores, (batch or 1, heads or 1, queries or 1, keys)."""
        found = added_mask(attn_mask, padding, (batch, self.num_heads, *lengths), dtype, self)
        more = (self.bias_k is not None) + self.add_zero_attn
        return None if found is None else F.pad(found, (0, more))

    def _check(self, query: Any, key: Any, value: Any) -> None:
        """Raises ArgumentError or ShapeError for what are no sequences that belong together."""
        named = dict(query=(query, self.embed_dim), key=(key, self.kdim), value=(value, self.vdim))
        for name, (tensor, features) in named.items():
            if not isinstance(tensor, Tensor) or tensor.is_nested:
                raise ArgumentError(
                    f"{name} is no plain tensor but {type(tensor).__name__}",
                    where=str(self),
                    fix="give a torch tensor; pad nested ones and use key_padding_mask",
                )
            if tensor.ndim not in (2, 3) or tensor.shape[-1] != features:
                raise ShapeError(
                    f"{name} has shape {tuple(tensor.shape)}, not (…, {features})",
                    where=str(self),
                    fix="give (positions, batch, features), batch first if the layer says so, or "
                    "(positions, features)",
                )
        batch = 0 if self.batch_first else 1
        same = query.ndim == key.ndim == value.ndim and key.shape[:-1] == value.shape[:-1]
        if not same or (query.ndim == 3 and query.shape[batch] != key.shape[batch]):
            raise ShapeError(
                f"query {tuple(query.shape)}, key {tuple(key.shape)} and value "
                f"{tuple(value.shape)} do not go together",
                where=str(self),
                fix="give one batch, and as many keys as values",
            )

    def extra_repr(self) -> str:
        shown = f"{self.embed_dim}, {self.num_heads}"
        usual = dict(dropout=0.0, bias=True, add_zero_attn=False, kdim=self.embed_dim)
        for name, value in (usual | dict(vdim=self.embed_dim, batch_first=False)).items():
            if getattr(self, name) != value:
                shown += f", {name}={getattr(self, name)}"
        shown += ", add_bias_kv=True" if self.bias_k is not None else ""
        return f"{shown}, {self._shown_parts()}"
