"""tnc.AdaptiveRank: bonds that shrink while a model trains, by their singular values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tncompiler.compression.changes import Resized
from tncompiler.compression.holders import holders_of
from tncompiler.compression.optimizers import as_optimizers
from tncompiler.compression.resize import shrink
from tncompiler.ir.errors import ArgumentError


class AdaptiveRank:
    """Shrinks the bonds of a model from time to time in a training loop.

        ranks = tnc.AdaptiveRank(model, adam, tolerance=0.05, every=200, last=4000)
        for batch in loader:
            ...
            adam.step()
            ranks.step()

    Start with ranks that are too large. After every ``every`` steps, up to step ``last``, each
    weight loses what its singular values say it can at a relative change of at most the tolerance
    (see `tnc.shrink`); the optimizer's state is carried along. ``tolerance``: a number that is
    reached from 0 in a straight line by step ``last``, or a function from the part of the
    schedule that is over, 0 to 1, to a tolerance. ``bond``: which bonds, as in `tnc.shrink`.
    ``history``: of every step in which something shrank, the step and the reports.
    Raises: ArgumentError.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        *,
        tolerance: float | Callable[[float], float],
        every: int = 100,
        last: int = 1000,
        bond: str = "*",
    ) -> None:
        for what, value in (("every", every), ("last", last)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{what} is {value!r:.40}", fix="give an integer, 1 or more")
        if not callable(tolerance) and (
            isinstance(tolerance, bool)
            or not isinstance(tolerance, int | float)
            or not 0 <= tolerance < 1
        ):
            raise ArgumentError(
                f"tolerance is {tolerance!r:.40}", fix="give a number from 0 to below 1"
            )
        holders_of(model)  # says so now if nothing is tensorized
        as_optimizers(optimizer)
        self.model, self.optimizer, self.bond = model, optimizer, bond
        self.tolerance, self.every, self.last = tolerance, every, last
        self.steps = 0
        self.history: list[tuple[int, list[Resized]]] = []

    def step(self) -> list[Resized]:
        """Count a step of the loop; what shrank after it, mostly nothing."""
        self.steps += 1
        if self.steps % self.every or self.steps > self.last:
            return []
        part = self.steps / self.last
        allowed = self.tolerance(part) if callable(self.tolerance) else self.tolerance * part
        shrunk = shrink(self.model, self.bond, tolerance=allowed, optimizer=self.optimizer)
        if shrunk:
            self.history.append((self.steps, shrunk))
        return shrunk

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is: for the checkpoint of a training loop."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. The model must have the ranks that it had then: see `tnc.load`."""
        self.steps = int(state["steps"])
