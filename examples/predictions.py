"""Predictions for worlds that are not here: a contraction of a million slices, and a large model.

`python -m examples.predictions` runs nothing: it prints what `tnc.simulate` predicts for cycles of
matrices that take two million slices, and for the training step of a transformer whose dense
weights would be 70 billion parameters, on one DGX H100 and on many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tncompiler as tnc

MACHINE = "8xH100"
LAYERS = 80
# a block of Llama's shape: 64 heads of 128 in 8 groups, 28,672 features between its two layers;
# the groups are an index of attention and of features, so that one index cuts every weight
GROUPS, HEADS, WIDTH, FEATURES, INNER = 8, 8, 128, 28, 128
MODES = 64, 128
RANK = 512
TOKENS = 4096


def cycle(samples: int = 64, size: int = 128) -> Any:
    """A cycle of three matrices for each sample, which less memory than two rows cuts to pieces."""
    n, a, b, c = (
        tnc.Index(name, extent) for name, extent in zip("nabc", (samples, *[size] * 3), strict=True)
    )
    pairs = zip("ABC", ((a, b), (b, c), (c, a)), strict=True)
    return tnc.contract(*(tnc.input(name, n, *own) for name, own in pairs), out=())


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its expression, and how many parameters its weights have, and would have dense."""

    expr: Any
    parameters: int
    dense: int


def block(sequences: int) -> Block:
    """Attention and a gated pair of layers, every weight a TT-matrix of two cores."""
    made = _Weights()
    n, t, s = tnc.Index("n", sequences), tnc.Index("t", TOKENS), tnc.Index("s", TOKENS)
    g, u, d = tnc.Index("g", GROUPS), tnc.Index("u", HEADS), tnc.Index("d", WIDTH)
    f, e = tnc.Index("f", FEATURES), tnc.Index("e", INNER)
    m1, m2 = tnc.Index("m1", MODES[0]), tnc.Index("m2", MODES[1])
    x = tnc.input("x", n, t, m1, m2)
    q = made.layer("q", x, (n, t), ((m1,), (m2,)), ((g, u), (d,)))
    k, v = (made.layer(w, x, (n, t), ((m1,), (m2,)), ((g,), (d,))).rename({t: s}) for w in "kv")
    weights = tnc.softmax(tnc.contract(q, k, out=(n, g, u, t, s)) * WIDTH**-0.5, over=s)
    heads = tnc.contract(weights, v, out=(n, t, g, u, d))
    x = x + made.layer("o", heads, (n, t), ((g, u), (d,)), ((m1,), (m2,)))
    gate, up = (made.layer(w, x, (n, t), ((m1,), (m2,)), ((g, f), (e,))) for w in ("gate", "up"))
    y = x + made.layer("down", tnc.silu(gate) * up, (n, t), ((g, f), (e,)), ((m1,), (m2,)))
    return Block(y, made.parameters, made.dense)


class _Weights:
    """Layers, counted."""

    def __init__(self) -> None:
        self.parameters = self.dense = 0

    def layer(self, name: str, x: Any, rows: Any, ins: Any, outs: Any) -> Any:
        """x times a weight of two cores."""
        bond = tnc.Index(f"r_{name}", RANK)
        cores = (
            tnc.param(f"{name}1", *ins[0], *outs[0], bond),
            tnc.param(f"{name}2", bond, *ins[1], *outs[1]),
        )
        sizes = [_count(core.indices) for core in cores]
        self.parameters += sum(sizes)
        self.dense += _count((*ins[0], *ins[1], *outs[0], *outs[1]))
        return tnc.contract(x, *cores, out=(*rows, *outs[0], *outs[1]))


def _count(indices: Any) -> int:
    total = 1
    for index in indices:
        total *= index.size
    return total


def predictions() -> Iterator[tuple[str, Any]]:
    """What is predicted, with what it is of."""
    for world in (8, 64, 1024):
        yield (
            "a million slices and more: 64 cycles of three 128 x 128 matrices in 1 kB a rank",
            tnc.simulate(cycle(), MACHINE, world, memory_limit=1_000),
        )
    one = block(1)
    title = (
        f"one of {LAYERS} blocks, {LAYERS * one.dense / 1e9:.0f} B dense parameters, "
        f"{LAYERS * one.parameters / 1e9:.1f} B in TT-matrices of rank {RANK}; a training step"
    )
    cut = tnc.simulate(one.expr, MACHINE, 8, index="g", step=True, dtype="bfloat16")
    yield f"{title} of one sequence, index g cut", cut
    for world in (8, 64, 1024):
        many = block(world)
        found = tnc.simulate(many.expr, MACHINE, world, step=True, dtype="bfloat16")
        yield f"{title} of {world:,} sequences", found


def main() -> None:
    for title, found in predictions():
        print(title, found, sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    main()
