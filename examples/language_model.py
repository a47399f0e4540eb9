"""A causal transformer language model, every weight a network of cores, on Python's documentation.

The whole model, loss included, is one expression: embedding rows read core by core, heads as an
index, attention as one call of torch's kernel. It is trained beside the same model in plain torch,
which starts as the same function: `python examples/language_model.py`.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics

import torch
from comparison import Batch, Contender, compete, table
from rich.console import Console
from torch import Tensor
from torch.nn import functional

import tncompiler as tnc
from tncompiler.ir.expressions import Expr

VOCABULARY, WIDTH, HEADS, HEAD, HIDDEN = (8, 16), (8, 8), 4, 16, (16, 16)
LENGTH, BATCH, LAYERS, RANK = 64, 8, 2, 8
LEARNING_RATE = 3e-3

b, t = tnc.indices("b t", t=LENGTH)
s = tnc.Index("s", LENGTH)
v1, v2, m1, m2, n1, n2, h, d, f1, f2 = (
    tnc.Index(name, size)
    for name, size in zip(
        ["v1", "v2", "m1", "m2", "n1", "n2", "h", "d", "f1", "f2"],
        (*VOCABULARY, *WIDTH, *WIDTH, HEADS, HEAD, *HIDDEN),
        strict=True,
    )
)
r = tnc.Index("r", RANK)
v = tnc.Index("v", VOCABULARY[0] * VOCABULARY[1])


# ---------------------------------------------------------------------------- the network


def matrix(name: str, first: tuple[tnc.Index, ...], second: tuple[tnc.Index, ...]) -> Expr:
    """A TT-matrix of two cores: each has one input mode and one output mode."""
    i1, i2, o1, o2 = (first[0], first[1], second[0], second[1])
    cores = tnc.param(f"{name}1", i1, o1, r), tnc.param(f"{name}2", r, i2, o2)
    return tnc.contract(*cores, out=(i1, i2, o1, o2))


def norm(x: Expr, name: str) -> Expr:
    scale = tnc.param(f"{name}_scale", m1, m2, init="ones")
    return tnc.rms_norm(x, (m1, m2), weight=scale)


def block(x: Expr, layer: int) -> Expr:
    """Attention and feed-forward, each with a norm before it and a residual around it."""
    with tnc.scope(f"layer{layer}"):
        seen = norm(x, "before_attention")
        keys = seen.rename({t: s})
        query, key, value = (
            source @ matrix(name, (m1, m2), (h, d))
            for name, source in (("query", seen), ("key", keys), ("value", keys))
        )
        heads = tnc.attention(query, key, value, dim=d, is_causal=True)
        x = x + (heads @ matrix("out", (h, d), (m1, m2)))
        wide = tnc.gelu(norm(x, "before_hidden") @ matrix("up", (m1, m2), (f1, f2)))
        return x + (wide @ matrix("down", (f1, f2), (m1, m2)))


def loss_expression() -> Expr:
    """The mean cross-entropy of the next characters."""
    ids, following = (tnc.input(name, b, t, dtype="int64") for name in ("ids", "following"))
    places = tnc.param("place1", t, r) @ tnc.param("place2", r, m1, m2)
    x = tnc.gather(matrix("embedding", (v1, v2), (m1, m2)), (v1, v2), ids) + places
    for layer in range(LAYERS):
        x = block(x, layer)
    logits = (norm(x, "last") @ matrix("head", (m1, m2), (v1, v2))).merge((v1, v2), v)
    return -tnc.log_softmax(logits, over=v).gather(v, following).mean()


# ---------------------------------------------------------------------------- plain torch


class PlainModel(torch.nn.Module):
    """The same model with dense weights, reconstructed from the cores."""

    def __init__(self, cores: dict[str, Tensor]) -> None:
        super().__init__()
        names = {name.removesuffix("1") for name in cores if name.endswith("1")}
        dense = {name: _dense(cores, name) for name in names}
        dense.update((n, c.reshape(-1)) for n, c in cores.items() if n.endswith("_scale"))
        self.weights = torch.nn.ParameterDict(
            {name.replace(".", "-"): weight.detach().clone() for name, weight in dense.items()}
        )

    def forward(self, ids: Tensor, following: Tensor) -> Tensor:
        w = self.weights
        x = functional.embedding(ids, w["embedding"]) + w["place"]
        for layer in range(LAYERS):
            x = self._block(x, f"layer{layer}-")
        logits = _norm(x, w["last_scale"]) @ w["head"]
        return functional.cross_entropy(logits.flatten(0, 1), following.flatten())

    def _block(self, x: Tensor, prefix: str) -> Tensor:
        w = self.weights
        seen = _norm(x, w[f"{prefix}before_attention_scale"])
        query, key, value = (
            (seen @ w[prefix + name]).unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        heads = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + heads.transpose(1, 2).flatten(2) @ w[f"{prefix}out"]
        wide = functional.gelu(_norm(x, w[f"{prefix}before_hidden_scale"]) @ w[f"{prefix}up"])
        return x + wide @ w[f"{prefix}down"]


def _norm(x: Tensor, scale: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], scale, eps=1e-5)


def _dense(cores: dict[str, Tensor], name: str) -> Tensor:
    """The matrix of two cores, (inputs, outputs)."""
    first, second = cores[f"{name}1"], cores[f"{name}2"]
    if first.ndim == 2:
        return (first @ second.flatten(1)).reshape(len(first), -1)
    weight = torch.einsum("aor,rbp->abop", first, second)
    return weight.flatten(2).flatten(0, 1)


# ---------------------------------------------------------------------------- text, training


def characters() -> Tensor:
    """The topics of Python's help as ASCII codes."""
    text = "\n".join(topics[name] for name in sorted(topics))
    return torch.tensor([code for code in text.encode("ascii", "ignore") if code < v.size])


def batches(codes: Tensor, steps: int, seed: int) -> list[Batch]:
    """Random pieces of the text, and the same pieces one character further."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps):
        starts = torch.randint(len(codes) - LENGTH - 1, (BATCH, 1), generator=generator)
        piece = codes[starts + torch.arange(LENGTH + 1)]
        found.append((piece[:, :-1].contiguous(), piece[:, 1:].contiguous()))
    return found


def contenders(seed: int) -> list[Contender]:
    """The compiled model, and plain torch with the dense weights of its cores."""
    model = tnc.compile(loss_expression(), seed=seed)
    plain = PlainModel(dict(model.named_parameters()))
    return [
        Contender("tensorized, compiled", list(model.parameters()), model),
        Contender("dense, plain torch", list(plain.parameters()), plain),
    ]


def main(argv: list[str] | None = None) -> list[Contender]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    models = contenders(options.seed)
    compete(models, batches(characters(), options.steps, options.seed), LEARNING_RATE)
    title = f"Transformer of {LAYERS} layers, width 64, rank {RANK}, on the topics of Python's help"
    caption = "loss: nats a character, mean of the last ten steps; both start as one function"
    Console(width=100).print(table(title, models, caption))
    return models


if __name__ == "__main__":
    main()
