"""The time that one plan may take: searches end by it, and what can be left out is."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tncompiler.planning.options import PlanOptions

_MOST = 0.85  # of the time that is left, what comes after the searches may be given


@dataclass
class Budget:
    """When one plan must be made; ``cut`` once something was stopped, or left out, for that.

    ``spare``: seconds that are kept for what comes after the searches.
    """

    deadline: float | None = None
    cut: bool = False
    spare: float = 0.0

    @staticmethod
    def of(options: PlanOptions) -> Budget:
        seconds = options.max_seconds
        return Budget(None if seconds is None else time.monotonic() + seconds)

    @property
    def left(self) -> float | None:
        """Seconds that searches still have; None for no end."""
        if self.deadline is None:
            return None
        return max(self.deadline - self.spare - time.monotonic(), 0.0)

    def keep(self, seconds: float) -> None:
        """Keep so much for later, at most most of what is left; what is kept already counts."""
        if self.deadline is not None and seconds > self.spare:
            whole = self.deadline - time.monotonic()
            self.spare = max(min(seconds, _MOST * whole), self.spare)

    def spent(self) -> bool:
        """Whether searches have no time left for more; then something is being cut."""
        self.cut = self.cut or self.left == 0.0
        return self.cut

    def late(self) -> bool:
        """Whether all the time is over, and whatever can be left out must be; a cut too."""
        is_over = self.deadline is not None and time.monotonic() >= self.deadline
        self.cut = self.cut or is_over
        return is_over
