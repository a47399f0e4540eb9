"""Small torch models of the shapes that people have: for tests of what works on whole models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv1D(nn.Module):
    """As Hugging Face's: a Linear whose weight is (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).reshape(size)


Conv1D.__module__ = "transformers.pytorch_utils"


class FusedLinear(nn.Module):
    """Attention as timm writes it: one Linear for queries, keys and values."""

    def __init__(self, size: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(size, 3 * size), nn.Linear(size, size), heads

    def project(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.project(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class FusedParameter(FusedLinear):
    """The same with a parameter of its own."""

    def __init__(self, size: int = 24, heads: int = 4) -> None:
        super().__init__(size, heads)
        del self.qkv
        self.qkv_weight = nn.Parameter(torch.randn(3 * size, size) / size**0.5)

    def project(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qkv_weight)


class Block(nn.Module):
    """A residual block of a vision transformer, attention and feed-forward."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(size), FusedLinear(size)
        self.norm2, self.mlp = nn.LayerNorm(size), nn.ModuleDict()
        self.mlp["fc1"], self.mlp["fc2"] = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Vision(nn.Module):
    """As timm's vision transformers: patches by a convolution, a class token, blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 24))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class Language(nn.Module):
    """As GPT-2: Conv1D in the block, and a head that is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(60, 24)
        self.c_fc, self.c_proj = Conv1D(48, 24), Conv1D(24, 48)
        self.lm_head = nn.Linear(24, 60, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        return self.lm_head(x + self.c_proj(F.gelu(self.c_fc(x))))


class Twice(nn.Module):
    """One module under two names, and once more in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 24)
        self.second, self.all = self.first, nn.ModuleList([self.first, nn.Linear(24, 24)])

    def forward(self, x: Tensor) -> Tensor:
        return self.all[1](self.second(F.relu(self.first(x))))


class Recurrent(nn.Module):
    """Two layers of a GRU, and a head on the last position."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(24, 12, 2, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


def encoder() -> nn.TransformerEncoderLayer:
    """torch's own block of a transformer."""
    return nn.TransformerEncoderLayer(24, 4, 36, 0.0, batch_first=True)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 36), nn.ReLU(), nn.Linear(36, 12))


@dataclass(frozen=True)
class Case:
    """``make``: the model. ``example``: what it is called with. ``becomes``: what is to be
    replaced, by the names of a report. ``patterns``: further ones a configuration must name."""

    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    becomes: tuple[str, ...]
    patterns: tuple[str, ...] = ()


def rows() -> Tensor:
    return torch.randn(5, 24)


def sequences() -> Tensor:
    return torch.randn(2, 7, 24)


_ATTENTION = (
    *(f"self_attn.{letter}_proj_weight" for letter in "qkv"),
    "self_attn.out_proj.weight",
)
_RECURRENT = tuple(f"body.weight_{end}" for end in ("ih_l0", "hh_l0", "ih_l1", "hh_l1"))
_PARTS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
_BLOCKS = tuple(f"blocks.{k}.{part}" for k in range(2) for part in _PARTS)
MODELS: dict[str, Case] = {
    "the model itself": Case(lambda: nn.Linear(24, 12), rows, ("",)),
    "sequence": Case(
        lambda: nn.Sequential(nn.Linear(24, 36), nn.ReLU(), nn.Linear(36, 12)), rows, ("0", "2")
    ),
    "fused projection": Case(FusedLinear, sequences, ("qkv", "proj")),
    "fused parameter": Case(FusedParameter, sequences, ("qkv_weight", "proj"), ("qkv_weight",)),
    "vision": Case(Vision, lambda: torch.randn(2, 3, 8, 8), ("patches", *_BLOCKS, "head")),
    "encoder": Case(encoder, sequences, (*_ATTENTION, "linear1", "linear2")),
    "recurrent": Case(Recurrent, sequences, (*_RECURRENT, "head")),
    "language": Case(Language, lambda: torch.randint(60, (2, 7)), ("wte", "c_fc", "c_proj")),
    "used twice": Case(Twice, rows, ("first", "all.1")),
}
