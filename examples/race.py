"""What the examples of whole networks share: train two models from equal weights, time and weigh
them, print one table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Racer:
    """A model in the race: its parameters, and the loss of a step by the step's number."""

    name: str
    parameters: Sequence[Tensor]
    loss: Callable[[int], Tensor]


@dataclass(frozen=True, slots=True)
class Outcome:
    """``losses`` of all steps; the median ``step_ms``; ``saved_bytes`` kept for the backward pass,
    parameters and inputs left out."""

    name: str
    parameters: int
    losses: tuple[float, ...]
    step_ms: float
    saved_bytes: int


def race(
    racers: Sequence[Racer], steps: int, rate: float, tick: Callable[[], object]
) -> list[Outcome]:
    """Train all in turn, a step each, so that all see the same machine; Adam."""
    optimizers = [torch.optim.Adam(list(racer.parameters), lr=rate) for racer in racers]
    losses: list[list[float]] = [[] for _ in racers]
    times: list[list[float]] = [[] for _ in racers]
    for step in range(steps):
        for k, (racer, optimizer) in enumerate(zip(racers, optimizers, strict=True)):
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = racer.loss(step)
            loss.backward()
            times[k].append(time.perf_counter() - start)
            optimizer.step()
            losses[k].append(float(loss.detach()))
            tick()
    return [
        Outcome(
            racer.name,
            sum(parameter.numel() for parameter in racer.parameters),
            tuple(losses[k]),
            1e3 * statistics.median(times[k]),
            saved_bytes(racer),
        )
        for k, racer in enumerate(racers)
    ]


def saved_bytes(racer: Racer) -> int:
    """What autograd keeps from forward to backward, each memory once, parameters left out."""
    known = {parameter.untyped_storage().data_ptr() for parameter in racer.parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = racer.loss(0)
    total = sum(kept.values())
    del loss
    return total


def table(title: str, outcomes: Sequence[Outcome]) -> Table:
    """One row a model."""
    made = Table(title=title, box=box.SIMPLE)
    columns = ("model", "parameters", "first loss", "last loss", "ms a step", "kept for backward")
    for column in columns:
        made.add_column(column, justify="left" if column == "model" else "right")
    for one in outcomes:
        first, last = f"{one.losses[0]:.6f}", f"{one.losses[-1]:.6f}"
        kept = f"{one.saved_bytes / 1024:,.0f} KiB"
        made.add_row(one.name, f"{one.parameters:,}", first, last, f"{one.step_ms:.2f}", kept)
    return made


def copies(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters as tensors of their own, to start another model from."""
    return {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
