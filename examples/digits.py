"""Handwritten digits, 8×8 pixels: data, the classifier (ours and by torch.einsum), training.

The split is fixed; a seed chooses the initial parameters and the order of the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import networks
import torch
from networks import Hidden
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import tncompiler as tnc

LEARNING_RATE = 5e-3
TEST_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Digits:
    """Images (n, 4, 4, 4), the 64 pixels as three modes, and labels (n,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load() -> Digits:
    """1347 digits to train on and 450 to test on, scaled to mean 0 and deviation 1."""
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=TEST_SHARE, stratify=labels, random_state=0)
    mean, deviation = split[0].mean(), split[0].std()
    train, test = (
        torch.tensor((part - mean) / deviation, dtype=torch.float32).reshape(-1, 4, 4, 4)
        for part in split[:2]
    )
    return Digits(train, torch.tensor(split[2]), test, torch.tensor(split[3]))


def compiled_classifier(hidden: Hidden, seed: int) -> nn.Module:
    """Hidden layer and output layer as one compiled program."""
    model: nn.Module = tnc.compile(networks.classify(hidden.expression), seed=seed)
    return model


def hidden_parameters(hidden: Hidden) -> int:
    """How many numbers the hidden layer stores, its bias included."""
    parameters = dict(compiled_classifier(hidden, seed=0).named_parameters())
    return sum(parameters[name].numel() for name in hidden.parameter_names)


def einsum_classifier(
    hidden: Hidden, parameters: Mapping[str, Tensor]
) -> Callable[[Tensor], Tensor]:
    """The same classifier as users write it: one torch.einsum for the hidden layer's network."""
    cores = [parameters[name] for name in hidden.cores]

    def logits(images: Tensor) -> Tensor:
        features = torch.relu(torch.einsum(hidden.equation, images, *cores) + parameters["bias"])
        return torch.einsum("bopq,opqc->bc", features, parameters["V"]) + parameters["shift"]

    return logits


def training_step(
    model: Callable[[Tensor], Tensor], parameters: list[Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    """Forward, cross-entropy and backward; returns the loss and leaves the gradients behind."""
    for parameter in parameters:
        parameter.grad = None
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return loss.detach()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """The share of test digits that are recognised."""
    hits = model(data.test_images).argmax(dim=1) == data.test_labels
    return float(hits.double().mean())


@dataclass(frozen=True, slots=True)
class Run:
    """One training run: mean loss and test accuracy after each epoch."""

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]


def train(
    hidden: Hidden,
    data: Digits,
    *,
    seed: int,
    epochs: int,
    batch: int,
    after_epoch: Callable[[], object],
) -> Run:
    """Train from scratch with Adam, the learning rate falling to 0 along a cosine."""
    model = compiled_classifier(hidden, seed)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    order = torch.Generator().manual_seed(seed)
    losses, accuracies = [], []
    for _ in range(epochs):
        losses.append(_train_epoch(model, parameters, optimizer, data, batch, order))
        accuracies.append(accuracy(model, data))
        schedule.step()
        after_epoch()
    return Run(tuple(losses), tuple(accuracies))


def _train_epoch(
    model: nn.Module,
    parameters: list[Tensor],
    optimizer: torch.optim.Optimizer,
    data: Digits,
    batch: int,
    order: torch.Generator,
) -> float:
    """The mean loss of one pass over the shuffled training set; the odd rest is left out."""
    shuffled = torch.randperm(len(data.train_images), generator=order)
    chosen = [part for part in shuffled.split(batch) if len(part) == batch]
    total = 0.0
    for part in chosen:
        images, labels = data.train_images[part], data.train_labels[part]
        total += float(training_step(model, parameters, images, labels))
        optimizer.step()
    return total / len(chosen)
