"""A matrix product state that classifies digits: each pixel a product state, one core a pixel.

Pixels become vectors (cos², sin²), their outer product is contracted with a train of cores that has
one open index, the class. The compiled network, an order of contraction chosen for it, runs beside
the same train as users write it, core by core in torch:
`python examples/mps_classifier.py`.
"""

from __future__ import annotations

import argparse
import math

import torch
from comparison import Batch, Contender, compete, table
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

import tncompiler as tnc
from tncompiler.ir.expressions import Expr

PIXELS, BOND, CLASSES, BATCH = 64, 8, 10, 100
NOISE, LEARNING_RATE = 0.02, 1e-2

b, c = tnc.indices("b c", c=CLASSES)
p = tnc.Index("p", PIXELS)
k = tnc.Index("k", 2)


def eye_with_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Cores near the identity between their bonds: as the entries of a pixel's vector add up to 1,
    a long product of them keeps its size."""
    noise = NOISE * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return noise + torch.eye(BOND)[:, None, :] if len(shape) == 3 else noise


def logits_expression() -> Expr:
    """Scores of all classes: the product state of the pixels, contracted with the train."""
    pixels = tnc.input("pixels", b, p)
    angles = pixels * (math.pi / 2)
    states = tnc.stack([tnc.cos(angles) ** 2, tnc.sin(angles) ** 2], k)
    bonds = [tnc.Index(f"r{n}", BOND) for n in range(PIXELS + 1)]
    factors = []
    for n in range(PIXELS):
        site = tnc.Index(f"k{n}", 2)
        state = states.select(p, n).rename({k: site})
        factors += [state, tnc.param(f"core{n}", bonds[n], site, bonds[n + 1])]
    left, right = tnc.param("left", bonds[0]), tnc.param("right", bonds[PIXELS], c)
    return tnc.contract(left, *factors, right, out=(b, c))


def loss_expression() -> Expr:
    target = tnc.input("target", b, dtype="int64")
    return -tnc.log_softmax(logits_expression(), over=c).gather(c, target).mean()


def set_cores(model: torch.nn.Module) -> None:
    """First values of all cores, by name."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            fresh = torch.ones(BOND) if name == "left" else eye_with_noise(parameter.shape, number)
            parameter.copy_(fresh)


class PlainTrain(torch.nn.Module):
    """The same train, a matrix a pixel, multiplied from the left."""

    def __init__(self, cores: dict[str, Tensor]) -> None:
        super().__init__()
        copies = {name: core.detach().clone() for name, core in cores.items()}
        self.left, self.right = (torch.nn.Parameter(copies[name]) for name in ("left", "right"))
        self.cores = torch.nn.ParameterList(copies[f"core{n}"] for n in range(PIXELS))

    def logits(self, pixels: Tensor) -> Tensor:
        angles = pixels * (math.pi / 2)
        states = torch.stack([torch.cos(angles) ** 2, torch.sin(angles) ** 2], -1)
        vector = self.left.expand(len(pixels), BOND)
        for n, core in enumerate(self.cores):
            vector = torch.einsum("br,bk,rks->bs", vector, states[:, n], core)
        return vector @ self.right

    def forward(self, pixels: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(self.logits(pixels), target)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels in 0 … 1 and labels, to train on and to test on."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 16, labels, test_size=0.25, stratify=labels, random_state=0)
    first, second = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    return first, second, torch.tensor(parts[2]), torch.tensor(parts[3])


def batches(pixels: Tensor, labels: Tensor, steps: int, seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps):
        chosen = torch.randperm(len(pixels), generator=generator)[:BATCH]
        found.append((pixels[chosen], labels[chosen]))
    return found


@torch.no_grad()
def accuracy(loss_model: torch.nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """The share of digits that the trained train recognises."""
    model = tnc.compile(logits_expression(), share=loss_model)
    return float((model(pixels).argmax(1) == labels).double().mean())


def main(argv: list[str] | None = None) -> tuple[list[Contender], float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    train, test, train_labels, test_labels = digits()
    model = tnc.compile(loss_expression())
    set_cores(model)
    plain = PlainTrain(dict(model.named_parameters()))
    models = [
        Contender("compiled network", list(model.parameters()), model),
        Contender("core by core, plain torch", list(plain.parameters()), plain),
    ]
    compete(models, batches(train, train_labels, options.steps, options.seed), LEARNING_RATE)
    hits = accuracy(model, test, test_labels)
    title = f"Matrix product state of {PIXELS} sites, bond {BOND}, on digits of 8×8 pixels"
    caption = f"loss: mean of the last ten steps; {100 * hits:.1f} % of the test digits recognised"
    Console(width=100).print(table(title, models, caption))
    return models, hits


if __name__ == "__main__":
    main()
