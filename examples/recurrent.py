"""An LSTM and a GRU with TT-matrix gates read digits row by row; beside them the same in torch.

Run `python examples/recurrent.py`. Both models start from the same weights and see the same
batches, so their losses agree; the table shows parameters, time and memory of a step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import digits
import torch
from race import Outcome, Racer, copies, race, table
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm

import tncompiler as tnc
from tncompiler.ir.expressions import Expr

BATCH, ROWS, STEPS, RATE = 64, 8, 150, 2e-2
HIDDEN, RANK, CLASSES = (8, 8), 4, 10  # 64 hidden numbers
GATES = {"LSTM": 4, "GRU": 3}

b, t, i1, i2 = tnc.indices("b t i1 i2", t=ROWS, i1=2, i2=4)
h1, h2, k1, k2 = tnc.indices("h1 h2 k1 k2", h1=HIDDEN[0], h2=HIDDEN[1], k1=HIDDEN[0], k2=HIDDEN[1])
r, s, c = tnc.indices("r s c", r=RANK, s=RANK, c=CLASSES)


def expression(kind: str) -> Expr:
    """Digits (b, t, i1, i2), rows as steps, to class scores (b, c)."""
    g = tnc.Index("g", GATES[kind])
    x = tnc.input("x", b, t, i1, i2)
    w1, w2 = tnc.param("W1", g, i1, h1, r), tnc.param("W2", r, i2, h2)
    u1, u2 = tnc.param("U1", g, k1, h1, s), tnc.param("U2", s, k2, h2)
    bias = tnc.param("bias", g, h1, h2, init="zeros")

    def apart(sums: Expr) -> list[Expr]:
        return [sums.select(g, number) for number in range(GATES[kind])]

    def from_input(row: Expr) -> list[Expr]:
        return apart(tnc.contract(row, w1, w2, out=(g, b, h1, h2)) + bias)

    def from_hidden(h: Expr) -> list[Expr]:
        return apart(tnc.contract(h.rename({h1: k1, h2: k2}), u1, u2, out=(g, b, h1, h2)))

    start = x.sum(t, i1, i2) * tnc.ones(h1, h2) * 0.0
    cell = (tnc.lstm_cell if kind == "LSTM" else tnc.gru_cell)(from_input, from_hidden)
    last, _ = tnc.scan(cell, (start, start) if kind == "LSTM" else start, x, over=t)
    h = last[0] if kind == "LSTM" else last
    return tnc.contract(h, tnc.param("V", h1, h2, c), out=(b, c)) + tnc.param("shift", c)


def in_torch(kind: str, images: Tensor, p: dict[str, Tensor]) -> Tensor:
    """The same model, written with torch.einsum and a loop."""
    h = images.new_zeros(len(images), *HIDDEN)
    state = h
    for row in images.unbind(1):
        x = torch.einsum("bij,gihr,rjk->gbhk", row, p["W1"], p["W2"]) + p["bias"][:, None]
        carried = torch.einsum("bij,gihs,sjk->gbhk", h, p["U1"], p["U2"])
        if kind == "LSTM":
            i, f, g, o = (x + carried).unbind(0)
            state = f.sigmoid() * state + i.sigmoid() * g.tanh()
            h = o.sigmoid() * state.tanh()
        else:
            reset, update = (x[k] + carried[k] for k in (0, 1))
            new = (x[2] + reset.sigmoid() * carried[2]).tanh()
            h = new + update.sigmoid() * (h - new)
    return torch.einsum("bij,ijc->bc", h, p["V"]) + p["shift"]


def dense_parameters(kind: str) -> int:
    """What torch's own layer of the same size and the output layer store."""
    layer = getattr(nn, kind)(8, HIDDEN[0] * HIDDEN[1])
    stored = sum(parameter.numel() for parameter in layer.parameters())
    return stored + (HIDDEN[0] * HIDDEN[1] + 1) * CLASSES


def compare(kind: str, steps: int, progress: tqdm) -> list[Outcome]:
    """Train ours and torch's from the same weights on the same batches."""
    data = digits.load()
    images = data.train_images.reshape(-1, ROWS, 2, 4)
    order = torch.Generator().manual_seed(0)
    batches = [torch.randint(len(images), (BATCH,), generator=order) for _ in range(steps)]
    ours = tnc.compile(expression(kind), seed=0)
    theirs = copies(ours)

    def loss(logits: Tensor, step: int) -> Tensor:
        return nn.functional.cross_entropy(logits, data.train_labels[batches[step]])

    racers = [
        Racer(
            f"TT-{kind}, compiled",
            list(ours.parameters()),
            lambda step: loss(ours(images[batches[step]]), step),
        ),
        Racer(
            f"TT-{kind}, torch.einsum",
            list(theirs.values()),
            lambda step: loss(in_torch(kind, images[batches[step]], theirs), step),
        ),
    ]
    return race(racers, steps, RATE, progress.update)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps ({STEPS})")
    steps = parser.parse_args(arguments).steps
    torch.set_num_threads(1)
    console = Console(width=100)
    with tqdm(total=len(GATES) * 2 * steps, unit="step", mininterval=0.5) as progress:
        outcomes = {kind: compare(kind, steps, progress) for kind in GATES}
    for kind, rows in outcomes.items():
        console.print(table(f"{kind}: digits row by row, batch {BATCH}", rows))
        console.print(
            f"torch.nn.{kind} of the same size stores {dense_parameters(kind):,} numbers."
        )


if __name__ == "__main__":
    main()
