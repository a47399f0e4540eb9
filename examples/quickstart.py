"""Small networks to try commands on: `tnc explain examples/quickstart.py:layer`.

    python examples/quickstart.py

trains a TT layer on made-up data for some steps, prints what it costs, and writes its pictures and
the plan explorer into quickstart-output/.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import tncompiler as tnc

OUT = Path("quickstart-output")

b, i1, i2, o1, o2, r = tnc.indices("b i1 i2 o1 o2 r", i1=28, i2=28, o1=16, o2=16, r=8)
layer = tnc.relu(
    tnc.contract(
        tnc.input("x", b, i1, i2),
        tnc.param("G1", i1, o1, r),
        tnc.param("G2", r, i2, o2),
        out=(b, o1, o2),
    )
    + tnc.param("bias", o1, o2)
)


def make_model() -> nn.Module:
    """A small dense model, to tensorize."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def make_small_model() -> nn.Module:
    """The same with a tensorized first layer."""
    model, _ = tnc.tensorize(
        make_model(), {"0": tnc.formats.TTMatrix(rank=4, clamp=True)}, progress=False
    )
    return model


def train(steps: int = 20) -> list[float]:
    """Losses of a few steps towards random targets."""
    torch.manual_seed(0)
    model = tnc.compile(layer, seed=0)
    data, target = torch.randn(64, 28, 28), torch.rand(64, 16, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = (model(data) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train, explain, draw."""
    losses = train()
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    model = tnc.compile(layer)
    print(model.explain(sizes={b: 64}, part="step"))
    OUT.mkdir(exist_ok=True)
    for what in ("network", "tree", "memory", "roofline"):
        model.draw(what).figure.savefig(OUT / f"{what}.svg")
    print(f"open {model.to_html(OUT / 'explorer.html')} in a browser")


if __name__ == "__main__":
    main()
