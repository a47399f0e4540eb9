"""What the experiments share: the digits that ship with scikit-learn, training, accuracy.

The split is fixed; a seed chooses the initial parameters and the order of the batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

RATE = 3e-3
BATCH = 64


@dataclass(frozen=True, slots=True)
class Data:
    """Rows and labels to train on, and to test on."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits(image: bool = False) -> Data:
    """1,347 handwritten digits to train on and 450 to test on, 8 × 8 pixels, mean 0, deviation 1.

    ``image``: as (1, 8, 8) instead of 64 numbers.
    """
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=0.25, stratify=labels, random_state=0)
    mean, deviation = split[0].mean(), split[0].std()
    shape = (-1, 1, 8, 8) if image else (-1, 64)
    train, test = (
        torch.tensor((part - mean) / deviation, dtype=torch.float32).reshape(shape)
        for part in split[:2]
    )
    return Data(train, torch.tensor(split[2]), test, torch.tensor(split[3]))


def fit(model: nn.Module, data: Data, *, epochs: int, seed: int, rate: float = RATE) -> None:
    """Train with Adam, the rate falling to 0 along a cosine."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs, 1))
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        shuffled = torch.randperm(len(data.train_x), generator=order)
        for part in shuffled[: len(shuffled) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.train_x[part]), data.train_y[part])
            loss.backward()
            optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """The share of test digits that are recognised."""
    hits = model.eval()(data.test_x).argmax(dim=1) == data.test_y
    return float(hits.double().mean())


def count(model: nn.Module) -> int:
    """How many numbers the parameters hold."""
    return sum(p.numel() for p in model.parameters())
