"""Two models trained on the same batches: losses, time a step, memory; printed side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

Batch = tuple[Tensor, ...]
TOLERANCE = 1e-4  # of losses of two models that compute the same function in float32


class Disagreement(RuntimeError):
    """Two models that should start as the same function do not."""


@dataclass
class Contender:
    """A model by its loss of a batch, and what was measured of it."""

    name: str
    parameters: Sequence[Tensor]
    loss: Callable[..., Tensor]
    losses: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    kept_bytes: int = 0

    @property
    def size(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)


def compete(
    contenders: Sequence[Contender], batches: Sequence[Batch], learning_rate: float
) -> None:
    """Train all on the same batches, step by step in turn, with a bar that says how far it is.

    Raises: Disagreement if the first losses differ.
    """
    _check_start(contenders, batches[0])
    optimizers = [torch.optim.Adam(c.parameters, lr=learning_rate) for c in contenders]
    with _bar() as progress:
        task = progress.add_task("training", total=len(batches))
        for batch in batches:
            for contender, optimizer in zip(contenders, optimizers, strict=True):
                start = time.perf_counter()
                contender.losses.append(_step(contender, optimizer, batch))
                contender.milliseconds.append((time.perf_counter() - start) * 1e3)
            progress.advance(task)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


def _step(contender: Contender, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = contender.loss(*batch)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _check_start(contenders: Sequence[Contender], batch: Batch) -> None:
    """All start as one function; what each keeps for the backward pass is noted on the way."""
    firsts = []
    for contender in contenders:
        loss, contender.kept_bytes = _measured(contender, batch)
        firsts.append(loss)
    for contender, first in zip(contenders, firsts, strict=True):
        if abs(first - firsts[0]) > TOLERANCE * abs(firsts[0]):
            raise Disagreement(
                f"{contender.name} starts with the loss {first:.6f}, {contenders[0].name} with "
                f"{firsts[0]:.6f}"
            )


def _measured(contender: Contender, batch: Batch) -> tuple[float, int]:
    """The loss, and the bytes that torch saves for the backward pass, parameters apart."""
    held = {p.untyped_storage().data_ptr() for p in (*contender.parameters, *batch)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = contender.loss(*batch)
    return float(loss.detach()), sum(kept.values())


def table(title: str, contenders: Sequence[Contender], caption: str) -> Table:
    """One line a model; the first is what others are compared with."""
    made = Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("model", no_wrap=True)
    steps = len(contenders[0].losses)
    for heading in ("parameters", "ms a step", "kept for backward", "first loss"):
        made.add_column(heading, justify="right")
    made.add_column(f"loss after {steps} steps", justify="right")
    for contender in contenders:
        made.add_row(
            contender.name,
            f"{contender.size:,}",
            f"{statistics.median(contender.milliseconds):.1f}",
            f"{contender.kept_bytes / 2**20:.2f} MiB",
            f"{contender.losses[0]:.4f}",
            f"{statistics.mean(contender.losses[-10:]):.4f}",
        )
    return made
