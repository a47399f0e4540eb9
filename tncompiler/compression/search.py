"""tnc.Search: a format, modes and a rank for every weight, under one budget for the model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from torch import nn

from tncompiler.compression.found import Found, Point
from tncompiler.compression.knapsack import Groups, Option, Solution, frontier, solve
from tncompiler.compression.measuring import (
    Candidate,
    Laboratory,
    Measured,
    Menu,
    outputs_of,
)
from tncompiler.compression.outer import Tuning, tune
from tncompiler.compression.store import Store
from tncompiler.formats.format import Format
from tncompiler.formats.low_rank import LowRank
from tncompiler.formats.tt import TT
from tncompiler.formats.tt_matrix import TTMatrix
from tncompiler.formats.tucker import Tucker
from tncompiler.formats.weights import as_array
from tncompiler.ir.errors import ArgumentError, BudgetError
from tncompiler.models.calibration import read_batches
from tncompiler.models.config import Adaptive, Rule, Surroundings
from tncompiler.models.making import Making
from tncompiler.models.tasks import Task, plan_work
from tncompiler.models.tensorize import count_numbers, input_moments

OBJECTIVES = ("parameters", "latency", "memory")
TIMINGS = ("predicted", "measured")
FORMATS: tuple[Format, ...] = (LowRank(), TT(), TTMatrix(), Tucker())
LEVELS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
_STAND_IN = Rule(LowRank(1))  # for finding out which weights can become networks


@dataclass(frozen=True, slots=True)
class Search(Adaptive):
    """Which format, modes and rank each weight gets, or that it stays dense.

        report = tnc.tensorize_(model, tnc.Search(budget=0.5), calibration=batches)
        report.search.plot("pareto.png")

    ``budget``: of the whole model: a float up to 1.0 is a fraction of what the dense model costs,
    anything else a number of parameters, of microseconds, or of bytes. ``objective``: what counts.
    "parameters": numbers, those of the model that no layer can take the place of included.
    "latency": microseconds of a call of every layer that is searched, one after the other;
    ``timing`` says whether they are predicted (of a CPU, sizes as in the report) or measured on the
    first batch. "memory": bytes of weights and of what a call computes on its way from core to core
    (`implementation="factorized"` keeps to it), of these layers. ``formats``: tried with ``modes``
    factors a side and with each of the ``levels``, fractions of a weight's parameters, beside the
    dense weight.

    Each candidate's error is that of its layer's outputs on the calibration batches; what such an
    error means for the model's outputs is measured once for each weight. Squares of both are taken
    to add up, and the sum is minimised under the budget (`knapsack.solve`). As they do not quite
    add up, ``trials`` more choices are made with other weightings, drawn by Optuna, and the one
    whose model is nearest to the dense one on the calibration batches is taken.

    ``store``: a file in which every measurement is kept; a search that was stopped goes on there,
    and ends as it would have. Equal arguments give the same result (measured times aside).
    Raises: BudgetError, naming the least that can be reached; ArgumentError without batches.
    """

    budget: float
    objective: str = "parameters"
    formats: Sequence[Format] = FORMATS
    modes: Sequence[int] = (2, 3)
    levels: Sequence[float] = LEVELS
    timing: str = "predicted"
    trials: int = 0
    store: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        _check_number("budget", self.budget, math.inf)
        _check_name("objective", self.objective, OBJECTIVES)
        _check_name("timing", self.timing, TIMINGS)
        _check_several("formats", self.formats, Format, "formats, as [tnc.formats.TT()]")
        _check_several("levels", self.levels, float | int, "numbers, as (0.2, 0.5)")
        _check_several("modes", self.modes, int, "numbers of modes a side, as (2, 3)")
        for level in self.levels:
            _check_number("a level", level, 1)
        _check_count("a number of modes", min(self.modes), 1)
        _check_count("trials", self.trials, 0)

    def find(self, model: nn.Module, surroundings: Surroundings) -> Found:
        """The rules for a model's weights, and how they were found."""
        if not surroundings.batches:
            raise ArgumentError(
                "a search measures layers on calls of the model", fix="give calibration= a batch"
            )
        tasks = plan_work(model, _STAND_IN, surroundings.filter_fn, {}).tasks
        if not tasks:
            raise ArgumentError(
                "no weight of the model can become a network", fix="see the skipped of a report"
            )
        laboratory = self._laboratory(model, tasks, surroundings)
        menu = Menu(tuple(self.formats), tuple(self.modes), tuple(self.levels))
        measured = laboratory.measure(tasks, menu)
        return self._chosen(laboratory, measured)

    def run(self, model: nn.Module, calibration: Any, **options: Any) -> Found:
        """The search alone: `tensorize_(model, found.rules)` makes what it found.

        ``options``: ``filter_fn``, ``weighted``, ``implementation``, ``backend``, ``seed`` and
        ``progress`` of `tnc.tensorize_`.
        """
        known = dict(filter_fn=None, weighted=False, implementation="auto", backend="auto", seed=0)
        if unknown := sorted(options.keys() - known.keys() - {"progress"}):
            raise ArgumentError(
                f"a search takes no {unknown[0]}=", fix=f"use {', '.join(known)} or progress"
            )
        given = {"progress": True, **known, **options}
        return self.find(model, Surroundings(batches=read_batches(calibration), **given))

    # ---------------------------------------------------------------- measuring

    def _laboratory(
        self, model: nn.Module, tasks: Sequence[Task], surroundings: Surroundings
    ) -> Laboratory:
        batches, weighted = surroundings.batches, surroundings.weighted
        moments = input_moments(model, tasks, batches) if weighted else {}
        making = Making(
            surroundings.implementation, surroundings.backend, surroundings.seed, moments
        )
        store = Store(self.store, self._identity(model, surroundings))
        timing = None if self.objective == "parameters" else self.timing
        return Laboratory(model, batches, making, store, timing, surroundings.progress)

    def _identity(self, model: nn.Module, surroundings: Surroundings) -> str:
        """What measurements depend on: the weights, the calls, and how layers are made."""
        total = sha256()
        how = (surroundings.weighted, surroundings.implementation, surroundings.backend)
        total.update(repr((*how, surroundings.seed)).encode())
        for name, parameter in model.named_parameters():
            total.update(name.encode())
            total.update(repr(_fingerprint(parameter)).encode())
        for tensor in outputs_of(model, surroundings.batches):
            total.update(repr(_fingerprint(tensor)).encode())
        return total.hexdigest()

    # ---------------------------------------------------------------- choosing

    def _chosen(self, laboratory: Laboratory, measured: Sequence[Measured]) -> Found:
        model = laboratory.model
        whole = sum(self._cost(each.candidates[0]) for each in measured)
        fixed = count_numbers(model) - whole if self.objective == "parameters" else 0.0
        budget = self.budget * (whole + fixed) if self._is_fraction() else float(self.budget)
        groups = [self._options(each) for each in measured]
        try:
            plain = solve(groups, budget - fixed)
        except BudgetError:
            raise self._unmet(measured, groups, budget, fixed) from None
        tuning = Tuning(laboratory, measured, groups, budget - fixed, self.trials)
        solution, error = tune(tuning, plain)
        chosen = _picked(measured, solution)
        return Found(
            objective=self.objective,
            budget=budget,
            cost=solution.cost + fixed,
            predicted_error=math.sqrt(_loss(groups, solution)),
            bound=math.sqrt(max(plain.bound, 0.0)),
            model_error=error,
            rules={
                name: each.rule
                for m, each in zip(measured, chosen, strict=True)
                for name in _names(m.task)
                if each.rule is not None
            },
            pareto=tuple(
                Point(s.cost + fixed, math.sqrt(max(s.loss, 0.0))) for s in frontier(groups)
            ),
            candidates=sum(len(each.candidates) for each in measured),
        )

    def _is_fraction(self) -> bool:
        return isinstance(self.budget, float) and self.budget <= 1

    def _cost(self, candidate: Candidate) -> float:
        costs = {
            "parameters": candidate.parameters,
            "latency": candidate.us,
            "memory": candidate.bytes,
        }
        return float(costs[self.objective])

    def _options(self, measured: Measured) -> list[Option]:
        return [
            Option(self._cost(each), measured.weight * each.error**2)
            for each in measured.candidates
        ]

    def _unmet(
        self, measured: Sequence[Measured], groups: Groups, budget: float, fixed: float
    ) -> BudgetError:
        least = [min(option.cost for option in group) for group in groups]
        dearest = max(range(len(least)), key=least.__getitem__)
        has_one = len(groups[dearest]) == 1
        reason = ", which no format fits or no batch reaches" if has_one else ""
        return BudgetError(
            f"no configuration meets {budget:g} ({self.objective}): the least is "
            f"{sum(least) + fixed:g}, of which {fixed:g} cannot be searched and {least[dearest]:g} "
            f"are {measured[dearest].task.site.shown}{reason}",
            fix="allow more, lower the smallest of levels=, or add formats",
        )


def _picked(measured: Sequence[Measured], solution: Solution) -> list[Candidate]:
    return [each.candidates[k] for each, k in zip(measured, solution.choice, strict=True)]


def _loss(groups: Groups, solution: Solution) -> float:
    """The loss of a choice by the losses of these groups."""
    return sum(group[k].loss for group, k in zip(groups, solution.choice, strict=True))


def _names(task: Task) -> list[str]:
    """The first name of every site that a task is for."""
    return [site.name for site in (task.site, *task.tied)]


def _fingerprint(tensor: Any) -> tuple[Any, ...]:
    """The numbers of a tensor, briefly."""
    array = as_array(tensor)
    return (array.shape, array.dtype.name, sha256(array.tobytes()).hexdigest())


def _check_number(what: str, value: Any, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        upper = "" if most == math.inf else f" and at most {most}"
        raise ArgumentError(f"{what} is {value!r:.40}", fix=f"give a number above 0{upper}")


def _check_several(what: str, values: Any, kind: Any, wanted: str) -> None:
    is_several = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_several or not values or not all(isinstance(each, kind) for each in values):
        raise ArgumentError(f"{what} is {values!r:.60}", fix=f"give {wanted}")


def _check_count(what: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"{what} is {value!r:.40}", fix=f"give an integer, {least} or more")


def _check_name(what: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ArgumentError(f"{what} is {value!r:.40}", fix=f"choose one of {', '.join(known)}")
