"""What a search found: rules, costs, and the curve of what every budget would give."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from tncompiler.ir.errors import ArgumentError
from tncompiler.models.config import Rule


@dataclass(frozen=True, slots=True)
class Point:
    """A cost, in units of the objective, and the relative error of the model's outputs that is
    predicted for the best choice of that cost."""

    cost: float
    error: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a search chose.

    ``rules``: for each weight that becomes a network; a configuration of `tnc.tensorize_`.
    ``budget``, ``cost``: of the whole model, in units of the objective. ``predicted_error``: of the
    model's outputs, relative, if squares added up; ``bound``: no choice within the budget has less,
    by the same measure. ``model_error``: the error on the calibration batches; None where no trial
    was made. ``pareto``: the best choices for all budgets. ``candidates``: how many were compared.
    """

    objective: str
    budget: float
    cost: float
    predicted_error: float
    bound: float
    model_error: float | None
    rules: dict[str, Rule]
    pareto: tuple[Point, ...]
    candidates: int

    def to_json(self) -> str:
        """All of it as JSON text; formats as they print."""
        rules = {name: _shown(rule) for name, rule in self.rules.items()}
        own = {name: getattr(self, name) for name in self.__slots__ if name != "pareto"}
        pareto = [asdict(point) for point in self.pareto]
        return json.dumps({**own, "rules": rules, "pareto": pareto}, indent=1)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw predicted error against cost, and the choice. Raises ArgumentError without
        matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ArgumentError(
                "matplotlib is not installed", fix='pip install "tncompiler[draw]"'
            ) from None
        figure = Figure(figsize=(6, 4.2), layout="constrained")
        axes = figure.subplots()
        costs, errors = [p.cost for p in self.pareto], [p.error for p in self.pareto]
        axes.plot(costs, errors, lw=1.2, marker=".", label="best choice for each budget")
        axes.plot([self.cost], [self.predicted_error], "o", ms=8, label="chosen")
        axes.axvline(self.budget, lw=0.8, color="0.5", label="budget")
        axes.set(
            xlabel=self.objective, ylabel="predicted relative error of outputs", ylim=(0, None)
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(path, dpi=130)

    def __str__(self) -> str:
        lines = [
            f"{len(self.rules)} weights of {self.candidates} candidates; {self.objective} "
            f"{self.cost:,.0f} of {self.budget:,.0f}; predicted error {self.predicted_error:.3g}, "
            f"no choice below {self.bound:.3g}"
        ]
        lines += [f"  {name or '(model)'}: {_shown(rule)}" for name, rule in self.rules.items()]
        return "\n".join(lines)


def _shown(rule: Rule) -> str:
    budget = "" if rule.budget is None else f", budget {rule.budget:g}"
    return f"{rule.format}{budget}"
