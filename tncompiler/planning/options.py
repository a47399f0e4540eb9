"""What a plan is asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tncompiler.ir.errors import PlanError

_CHOICES: dict[str, tuple[str, ...]] = {
    "minimize": ("time", "flops", "memory"),
    "search": ("auto", "greedy", "optimal", "hyper"),
    "precision": ("ieee", "tf32"),
}
_LATER: dict[str, tuple[object, str]] = {
    "memory_limit": (None, "slicing under a memory limit"),
    "stabilize": ("none", "exponent stabilisation"),
    "recompute": ("auto", "choosing what to recompute"),
    "machine": ("reference", "machine tables"),
    "training": ("auto", "joint planning of forward and backward"),
    "max_seconds": (None, "cutting a search by time"),
    "parallel": (None, "parallel search"),
}


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Options of a plan; see the documentation for what each means.

    ``minimize``: "time", "flops" or "memory". ``search``: "auto" (exact for small networks),
    "greedy", "optimal" or "hyper" with ``trials`` and ``seed``. Raises PlanError for an unknown
    value, and for options that this version does not carry out yet.
    """

    minimize: str = "time"
    training: str = "auto"
    memory_limit: int | str | None = None
    search: str = "auto"
    trials: int = 32
    max_seconds: float | None = None
    parallel: Any = None
    precision: str = "ieee"
    stabilize: str = "none"
    machine: str = "reference"
    seed: int = 0
    recompute: str = "auto"
    progress: bool = False

    def __post_init__(self) -> None:
        for name, valid in _CHOICES.items():
            value = getattr(self, name)
            if value not in valid:
                raise PlanError(
                    f"PlanOptions.{name} is {value!r}", fix=f"choose one of {', '.join(valid)}"
                )
        for name, (only, what) in _LATER.items():
            if getattr(self, name) != only:
                raise PlanError(
                    f"PlanOptions.{name} = {getattr(self, name)!r}: {what} is not built yet",
                    fix=f"leave {name} at {only!r}",
                )
        if not isinstance(self.trials, int) or self.trials < 1:
            raise PlanError(f"PlanOptions.trials is {self.trials!r}", fix="give 1 or more")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise PlanError(f"PlanOptions.seed is {self.seed!r}", fix="give an integer, 0 or more")
        if self.precision == "tf32":
            raise PlanError(
                "precision 'tf32' needs a GPU backend, which is not built yet",
                fix="leave precision at 'ieee'",
            )

    def key(self) -> tuple[object, ...]:
        """What identifies the options in caches."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name != "progress")
