"""Our compiled training step against torch.einsum's: do they agree, and how long does each take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from digits import Digits, compiled_classifier, einsum_classifier, training_step
from networks import Hidden
from torch import Tensor

TOLERANCE = 1e-4  # of float32 sums in another order, relative to the largest entry
STEPS_PER_REPEAT = 3
WARMUP = 5


class Disagreement(RuntimeError):
    """The compiled network and torch.einsum give different losses or gradients."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences are relative to the largest entry; times are medians for one training step."""

    loss_difference: float
    gradient_difference: float
    compiled_ms: float
    einsum_ms: float

    @property
    def ratio(self) -> float:
        """How many times as fast as torch.einsum the compiled step is."""
        return self.einsum_ms / self.compiled_ms


def compare(hidden: Hidden, data: Digits, *, batch: int, repeats: int) -> Comparison:
    """Check one step for equal loss and gradients, then time both in turn on the same batch.

    Raises: Disagreement if loss or a gradient differs by more than TOLERANCE.
    """
    images, labels = data.train_images[:batch], data.train_labels[:batch]
    model = compiled_classifier(hidden, seed=0)
    ours = dict(model.named_parameters())
    theirs = {name: value.detach().clone().requires_grad_() for name, value in ours.items()}
    baseline = einsum_classifier(hidden, theirs)

    def compiled_step() -> Tensor:
        return training_step(model, list(ours.values()), images, labels)

    def einsum_step() -> Tensor:
        return training_step(baseline, list(theirs.values()), images, labels)

    loss = _difference("loss", hidden, compiled_step(), einsum_step())
    gradients = [
        _difference(f"gradient of {name}", hidden, ours[name].grad, theirs[name].grad)
        for name in ours
    ]
    compiled_ms, einsum_ms = _time_in_turn(compiled_step, einsum_step, repeats)
    return Comparison(loss, max(gradients), compiled_ms, einsum_ms)


def _difference(what: str, hidden: Hidden, ours: Tensor | None, theirs: Tensor | None) -> float:
    """The largest difference relative to the largest entry of torch.einsum's result."""
    if ours is None or theirs is None:
        raise Disagreement(f"{hidden.name}: there is no {what}")
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if not difference <= TOLERANCE:
        raise Disagreement(
            f"{hidden.name}: the {what} differs from torch.einsum's by {difference:.1e} of its "
            f"largest entry; {TOLERANCE:.0e} is allowed"
        )
    return difference


def _time_in_turn(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Median milliseconds of each, measured alternately so that both see the same machine."""
    for _ in range(WARMUP):
        first()
        second()
    times = [(_milliseconds(first), _milliseconds(second)) for _ in range(repeats)]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def _milliseconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(STEPS_PER_REPEAT):
        step()
    return (time.perf_counter() - start) * 1e3 / STEPS_PER_REPEAT
