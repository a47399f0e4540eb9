"""Which state of a healing stays: the one of least loss on batches that nothing is learned from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tncompiler.compression.distilling import Lesson
from tncompiler.compression.streams import batches_from
from tncompiler.models.calibration import evaluating


class Judge:
    """The best state that was seen of a model: what learns, and buffers, which may follow the data.

    ``first``: the loss of the model as it came, ``best``: that of the state kept, ``step``: after
    how many steps it was seen. The first look is at the model as it comes.
    """

    def __init__(
        self,
        model: nn.Module,
        lesson: Lesson,
        parameters: Sequence[Tensor],
        batches: Any,
        seed: int,
    ) -> None:
        self.model, self.lesson, self.seed = model, lesson, seed
        self.batches = [*batches] if isinstance(batches, Iterator) else batches
        self.tensors = [*parameters, *model.buffers()]
        self.first, self.best, self.step = math.nan, math.inf, 0
        self.state = [t.detach().clone() for t in self.tensors]

    def loss(self) -> float:
        """Mean over the batches, in eval mode; random numbers are the same at every look."""
        with evaluating(self.model):
            found = [
                math.fsum(self.lesson.run(item).values())
                for _, item in batches_from(self.batches, self.seed, 0, None)
            ]
        return math.fsum(found) / len(found)

    def look(self, step: int) -> float:
        """Keep the state of now if none was better; its loss."""
        found = self.loss()
        if math.isnan(self.first):
            self.first = found
        if found < self.best:
            self.best, self.step = found, step
            _copy(self.tensors, self.state)
        return found

    def restore(self) -> None:
        """Put the best state back into the model."""
        _copy(self.state, self.tensors)

    # ---------------------------------------------------------------- in checkpoints

    def record(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Numbers and tensors from which `recall` goes on."""
        numbers = {"first": self.first, "best": self.best, "step": self.step}
        return numbers, {str(k): tensor for k, tensor in enumerate(self.state)}

    def recall(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.first, self.best, self.step = numbers["first"], numbers["best"], numbers["step"]
        _copy([tensors[str(k)] for k in range(len(self.state))], self.state)


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
