"""A graph convolutional network with TT-matrix weights on a social network; beside it the same in
torch.

Run `python examples/graph.py`. The graph is networkx's karate club: 34 members, 78 friendships, and
the side that each took when the club split. Trained on four members of each side. Both models start
from the same weights, so their losses agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import networkx as nx
import numpy as np
import torch
from race import Racer, copies, race, table
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm

import tncompiler as tnc
from tncompiler.ir.expressions import Expr

STEPS, RATE, RANK, KNOWN = 100, 1e-2, 3, 4
CLUB = nx.karate_club_graph()
MEMBERS = len(CLUB)  # 34: a member's features are who it is, 2 × 17

e, n = tnc.Index("e"), tnc.Index("n", MEMBERS)
i1, i2, h1, h2, r, c = tnc.indices("i1 i2 h1 h2 r c", i1=2, i2=17, h1=4, h2=4, r=RANK, c=2)


def edges() -> tuple[Tensor, Tensor]:
    """Both directions of every friendship, and each member with itself."""
    pairs = {(a, b) for a, b in CLUB.edges} | {(b, a) for a, b in CLUB.edges}
    pairs |= {(member, member) for member in CLUB}
    sources, targets = torch.tensor(sorted(pairs)).T
    return sources.contiguous(), targets.contiguous()


def sides() -> Tensor:
    return torch.tensor([CLUB.nodes[k]["club"] == "Officer" for k in CLUB]).long()


def expression() -> Expr:
    """Class scores (n, c): two convolutions, the first with a TT-matrix."""
    x = tnc.input("x", n, i1, i2)
    sources, targets = (tnc.input(name, e, dtype="int64") for name in ("sources", "targets"))
    weights = tnc.normalized_weights(sources, targets, n)
    g1, g2 = tnc.param("G1", i1, h1, r), tnc.param("G2", r, i2, h2)
    hidden = tnc.contract(x, g1, g2, out=(n, h1, h2))
    hidden = tnc.relu(tnc.propagate(hidden, n, sources, targets, weights=weights))
    scores = tnc.contract(hidden, tnc.param("V", h1, h2, c), out=(n, c))
    return tnc.propagate(scores, n, sources, targets, weights=weights)


def in_torch(x: Tensor, sources: Tensor, targets: Tensor, p: dict[str, Tensor]) -> Tensor:
    """The same with torch.einsum, indexing and index_add."""
    degree = torch.bincount(targets, minlength=MEMBERS).float()
    weights = degree[sources].rsqrt() * degree[targets].rsqrt()

    def propagate(values: Tensor) -> Tensor:
        messages = values[sources] * weights.reshape(-1, *[1] * (values.ndim - 1))
        return torch.zeros_like(values).index_add(0, targets, messages)

    hidden = torch.relu(propagate(torch.einsum("nij,ihr,rjk->nhk", x, p["G1"], p["G2"])))
    return propagate(torch.einsum("nhk,hkc->nc", hidden, p["V"]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps ({STEPS})")
    steps = parser.parse_args(arguments).steps
    torch.set_num_threads(1)
    sources, targets = edges()
    x, labels = torch.eye(MEMBERS).reshape(MEMBERS, 2, 17), sides()
    known = torch.tensor([k for side in (0, 1) for k in np.flatnonzero(labels == side)[:KNOWN]])
    ours = tnc.compile(expression(), seed=0)
    theirs = copies(ours)

    def scores_of_ours() -> Tensor:
        return ours(x=x, sources=sources, targets=targets)

    def loss(scores: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores[known], labels[known])

    racers = [
        Racer("TT-GCN, compiled", list(ours.parameters()), lambda _: loss(scores_of_ours())),
        Racer(
            "TT-GCN, torch.einsum and index_add",
            list(theirs.values()),
            lambda _: loss(in_torch(x, sources, targets, theirs)),
        ),
    ]
    with tqdm(total=2 * steps, unit="step", mininterval=0.5) as progress:
        outcomes = race(racers, steps, RATE, progress.update)
    console = Console(width=100)
    console.print(table("Karate club: who sides with whom", outcomes))
    rest = torch.ones(MEMBERS, dtype=torch.bool)
    rest[known] = False
    with torch.no_grad():
        hits = int((scores_of_ours().argmax(1) == labels)[rest].sum())
    dense = MEMBERS * 16 + 16 * 2
    console.print(
        f"{hits} of the other {int(rest.sum())} members on the right side; dense weights:"
    )
    console.print(f"Dense weights would store {dense} numbers.")


if __name__ == "__main__":
    main()
