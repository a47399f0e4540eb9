"""Write docs/layers.md: every layer in every format at full rank against torch's, and in a tenth.

python docs/build_layers.py        (a minute or two)
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import tncompiler as tnc
from tncompiler.formats import FORMATS
from tncompiler.formats.format import Format
from tncompiler.nn import LAYERS
from tncompiler.nn.checks import IMPLEMENTATIONS
from tncompiler.nn.parts import Composite
from tncompiler.nn.tensorized import IllConditioned

PAGE = Path(__file__).parent / "layers.md"
FULL = 10**6  # a rank that every bond is clamped to

HEAD = """# Layers

`tnc.nn` has torch's layers with one more argument, `format=`. This page is written by
`python docs/build_layers.py`; do not edit it by hand.

<!-- run: import torch, tncompiler as tnc -->
<!-- run: lstm = torch.nn.LSTM(32, 32) -->

```python
layer = tnc.nn.Conv2d(64, 128, 3, padding=1, format=tnc.formats.Tucker(rank=(16, 3, 3, 32)))
layer = tnc.nn.LSTM.from_dense(lstm, tnc.formats.TTMatrix(), budget=0.1)
layer.decomposition.error  # how near the cores came
layer.to_dense()  # torch's layer again; layer.reconstruct() the weight alone
```

What is a network, and what its modes are (balanced factors where they are not given):

- `Linear`, `GraphConv`: the weight, from modes of in_features to modes of out_features.
- `Conv1d`, `Conv2d`, `Conv3d`: the kernel. Modes in are those of the channels of a group, then the
  taps of each dimension; modes out are the groups, if there are several, and those of the outputs
  of a group. Channels and outputs have one mode each, two for TTMatrix, Kronecker and Monarch; the
  second one of Monarch holds the taps as well.
- `Embedding`, `EmbeddingBag`: the table, from modes of num_embeddings to modes of embedding_dim.
- `LSTM`, `GRU`: every weight, each a `Linear` called `ih_l0`, `hh_l0`, …, `hr_l0`, from modes of
  the inputs or of the hidden state to modes of the gates.
- `MultiheadAttention`: every projection, each a `Linear` called `q_proj`, `k_proj`, `v_proj` and
  `out_proj`.

`implementation=` is "auto" (what is predicted to be faster), "factorized" (data goes from core to
core) or "reconstructed" (the dense weight is built first). After `eval()`, where no gradients are
asked for, what cores alone make is kept until one of them changes: the dense weight too, unless
cores are predicted to be much faster or "factorized" was asked for. After writing to cores through
`.data` or NumPy call `layer.invalidate()`.
"""
AGREEMENT = """
## Agreement at full rank

Every layer made from torch's by `from_dense`, at ranks that hold any weight, in float64.
Differences are relative to the largest value; the largest over the three implementations.

Outputs, against torch's:

{outputs}

Gradients, of the inputs against torch's and of all cores against those that torch's gradient of the
dense weight gives through `reconstruct`:

{gradients}

Numbers that the cores hold at these ranks, beside those of the dense weights:

{counts}
"""
EVALUATION = """
## Evaluation

A forward pass after `eval()` without gradients: our time over that of torch's layer with the dense
weight of our cores, built once outside of the measurement. float32, one thread and its processor
time, in turn, the median of {repeats} rounds. What is below 1 is faster than the dense layer.

{table}

Where cores are not predicted to be much faster, a layer keeps its dense weight and calls what
torch's layer calls. Before that it sees whether any core has changed, which takes 0.5 µs and some
0.1 for each core: a tenth of the time of the smallest layers, a quarter where there are many cores.
`implementation="factorized"` keeps no dense weight.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """``dense``: torch's layer. ``given``: what it is called with. ``how``: modes of ours."""

    dense: nn.Module
    given: tuple[Any, ...]
    how: dict[str, Any]


def case_of(name: str) -> Case:
    """A small layer of each kind, with modes that all formats take, Monarch's two a side too."""
    torch.manual_seed(0)
    normal = torch.randn
    pair: dict[str, Any] = dict(in_shape=(2, 3), out_shape=(2, 4))
    tokens = torch.randint(12, (5, 3))
    match name:
        case "Linear":
            return Case(nn.Linear(6, 8), (normal(5, 6),), pair)
        case "Conv1d" | "Conv2d" | "Conv3d":
            count = int(name[4])
            layer = getattr(nn, name)(6, 8, 3, padding=1, stride=2)
            return Case(layer, (normal(2, 6, *(7, 6, 5)[:count]),), {})
        case "Embedding" | "EmbeddingBag":
            shapes = dict(in_shape=(3, 4), out_shape=(2, 4))
            return Case(getattr(nn, name)(12, 8), (tokens,), shapes)
        case "LSTM" | "GRU":
            gates = 4 if name == "LSTM" else 3
            shapes = dict(in_shape=(2, 3), hidden_shape=(2, 4), out_shape=(gates, 8))
            layer = getattr(nn, name)(6, 8, bidirectional=True)
            return Case(layer, (normal(4, 3, 6),), shapes)
        case "MultiheadAttention":
            shapes = dict(in_shape=(2, 4), out_shape=(4, 2))
            query, key = normal(4, 3, 8), normal(5, 3, 8)
            return Case(nn.MultiheadAttention(8, 2), (query, key, key), shapes)
    edges = torch.randint(6, (2, 20))
    return Case(tnc.nn.DenseGraphConv(nn.Linear(6, 8)), (normal(6, 6), edges), pair)


def format_of(name: str) -> Format:
    """The format at full rank."""
    if name != "Custom":
        made: Format = getattr(tnc.formats, name)(rank=FULL, clamp=True)
        return made

    def low_rank(ins: Any, outs: Any) -> Any:
        sizes = (prod(index.size for index in side) for side in (ins, outs))
        r = tnc.Index("r", min(sizes))
        return tnc.param("A", *ins, r) @ tnc.param("B", r, *outs)

    return tnc.formats.Custom(low_rank)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Relative differences, and how many numbers cores and dense weights hold."""

    outputs: float
    gradients: float
    cores: int
    dense: int


def agreement(layer: str, format: str) -> Agreement:
    """The largest differences over the implementations."""
    case = case_of(layer)
    dense = case.dense.double()
    given = [t.double().requires_grad_() if t.is_floating_point() else t for t in case.given]
    moving = [tensor for tensor in given if tensor.is_floating_point()]
    differences = []
    for implementation in IMPLEMENTATIONS:
        mine = getattr(tnc.nn, layer).from_dense(
            dense, format_of(format), implementation=implementation, **case.how
        )
        got, wanted = first(mine(*given)), first(dense(*given))
        cotangent = torch.randn_like(wanted)
        cores = [c for n, c in mine.named_parameters() if not n.split(".")[-1].startswith("bias")]
        ours = torch.autograd.grad(got, [*moving, *cores], cotangent)
        weights = list(dense.parameters())
        theirs = torch.autograd.grad(wanted, [*moving, *weights], cotangent)
        through = torch.autograd.grad(*dense_weights(mine, dense, theirs[len(moving) :], cores))
        pairs = zip(ours, (*theirs[: len(moving)], *through), strict=True)
        gradient = max(relative(a, b) for a, b in pairs)
        differences.append((relative(got, wanted), gradient))
    sizes = (sum(core.numel() for core in cores), sum(w.numel() for w in dense_of(mine)))
    outputs, gradients = map(max, zip(*differences, strict=True))
    return Agreement(outputs, gradients, *sizes)


def dense_weights(
    mine: Any, dense: nn.Module, gradients: Sequence[Tensor], cores: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The reconstructed weights, the cores, and torch's gradients of those weights."""
    held = copy.deepcopy(dense)  # torch's gradients where its weights were
    for parameter, gradient in zip(held.parameters(), gradients, strict=True):
        parameter.data = gradient
    if isinstance(mine, Composite):
        parts = mine._dense_parts(held)
        return [*mine.reconstruct().values()], cores, [weight for weight, _ in parts.values()]
    weight = held.linear.weight if isinstance(held, tnc.nn.DenseGraphConv) else held.weight
    return [mine.reconstruct()], cores, [weight]


def dense_of(mine: Any) -> list[Tensor]:
    made = mine.reconstruct()
    return [*made.values()] if isinstance(made, dict) else [made]


def first(result: Any) -> Tensor:
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(1e-300))


# ---------------------------------------------------------------------------- evaluation


RANKS = dict(TTMatrix=8, Tucker=8, CP=32, LowRank=32, Monarch=4)


def evaluated(format: Format) -> Iterator[tuple[str, Any, tuple[Tensor, ...]]]:
    """Layers with what they are called with: some where building the weight pays, and others."""
    normal, integers, nn_ = torch.randn, torch.randint, tnc.nn
    for size, batch in ((64, 1), (64, 64), (256, 16), (1024, 16), (1024, 1024)):
        layer: Any = nn_.Linear(size, size, format=format)
        yield f"Linear {size}, batch {batch}", layer, (normal(batch, size),)
    for channels, image, batch in ((8, 8, 1), (32, 32, 8), (128, 14, 8)):
        layer = nn_.Conv2d(channels, channels, 3, padding=1, format=format)
        name = f"Conv2d {channels}, 3 × 3, {batch} × {image} × {image}"
        yield name, layer, (normal(batch, channels, image, image),)
    layer = nn_.Embedding(1000, 64, format=format)
    yield "Embedding 1000 × 64, 256 tokens", layer, (integers(1000, (16, 16)),)
    layer = nn_.EmbeddingBag(1000, 64, format=format)
    yield "EmbeddingBag 1000 × 64, 64 × 32 tokens", layer, (integers(1000, (64, 32)),)
    for size, heads, batch, length in ((64, 4, 2, 10), (256, 4, 4, 64)):
        layer = nn_.MultiheadAttention(size, heads, batch_first=True, format=format)
        x = normal(batch, length, size)
        yield f"MultiheadAttention {size}, {batch} × {length}", layer, (x, x, x)
    recurrent = (("LSTM", 64, 16, 8), ("GRU", 64, 16, 8), ("LSTM", 256, 32, 16))
    for kind, size, length, batch in recurrent:
        layer = getattr(nn_, kind)(size, size, format=format)
        x = normal(length, batch, size)
        yield f"{kind} {size}, {length} positions, batch {batch}", layer, (x,)
    layer = nn_.GraphConv(64, 64, format=format)
    graph = (normal(1000, 64), integers(1000, (2, 5000)))
    yield "GraphConv 64, 1000 nodes, 5000 edges", layer, graph


def ratio(layer: Any, given: tuple[Tensor, ...], repeats: int) -> float:
    """Our time over the dense layer's, the median of rounds in turn."""
    models = (layer.eval(), layer.to_dense().eval())
    taken: list[list[float]] = [[], []]
    with torch.no_grad():
        for model in models:
            model(*given)
        calls = max(int(200 / timed(models[1], given, 1)), 1)  # some 200 µs at a time
        for _ in range(repeats):
            for model, times in zip(models, taken, strict=True):
                times.append(timed(model, given, calls))
    ours, theirs = map(statistics.median, taken)
    return ours / theirs


def timed(model: nn.Module, given: tuple[Tensor, ...], calls: int) -> float:
    """Microseconds of processor time of some calls."""
    start = time.thread_time()
    for _ in range(calls):
        model(*given)
    return (time.thread_time() - start) * 1e6


# ---------------------------------------------------------------------------- the page


def table(head: str, rows: dict[str, list[str]], columns: Sequence[str]) -> str:
    lines = [f"| {head} | {' | '.join(columns)} |", "|---" + "|--:" * len(columns) + "|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def agreement_page() -> str:
    """The tables of differences and of numbers held."""
    pairs = [(layer, format) for layer in LAYERS for format in FORMATS]
    found = {pair: agreement(*pair) for pair in tqdm(pairs, desc="layers × formats")}

    def rows(cell: Callable[[Agreement], str]) -> dict[str, list[str]]:
        return {
            f"`{layer}`": [cell(found[layer, format]) for format in FORMATS] for layer in LAYERS
        }

    counts = rows(lambda one: f"{one.cores:,}")
    for layer, cells in zip(LAYERS, counts.values(), strict=True):
        cells.append(f"{found[layer, 'Dense'].dense:,}")
    return AGREEMENT.format(
        outputs=table("layer", rows(lambda one: f"{one.outputs:.0e}"), [*FORMATS]),
        gradients=table("layer", rows(lambda one: f"{one.gradients:.0e}"), [*FORMATS]),
        counts=table("layer", counts, [*FORMATS, "dense"]),
    )


def evaluation_page(repeats: int) -> str:
    """The table of ratios, layers by formats."""
    torch.manual_seed(0)
    rows: dict[str, list[str]] = {}
    for format, rank in tqdm(RANKS.items(), desc="evaluation"):
        for name, layer, given in evaluated(getattr(tnc.formats, format)(rank=rank, clamp=True)):
            rows.setdefault(name, []).append(f"{ratio(layer, given, repeats):.2f}")
    return EVALUATION.format(repeats=repeats, table=table("layer", rows, [*RANKS]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31, help="rounds of each measurement (31)")
    repeats = parser.parse_args(arguments).repeats
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", IllConditioned)
    PAGE.write_text(HEAD + agreement_page() + evaluation_page(repeats), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
