"""The outer loop of a search: other weightings of the weights, judged by the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from tqdm import tqdm

from tncompiler.compression.knapsack import Groups, Option, Solution, solve
from tncompiler.compression.measuring import Laboratory, Measured, outputs_of, standing_in
from tncompiler.ir.errors import ArgumentError
from tncompiler.models.making import Made, make

_REACH = 4.0  # how far a kind of weight may count for more or less than was measured


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """Options of all weights and the budget that is left for them; ``trials`` of other weightings
    than the measured one."""

    laboratory: Laboratory
    measured: Sequence[Measured]
    groups: Groups
    budget: float
    trials: int


def tune(tuning: Tuning, plain: Solution) -> tuple[Solution, float | None]:
    """The choice whose model is nearest to the dense one on the calibration batches.

    The first trial is the measured weighting, so the result is nowhere worse there. Each trial's
    sampler is seeded by its number, so that a study that is resumed goes on as it would have.
    Raises ArgumentError where Optuna is missing.
    Source: tree-structured Parzen estimators, Bergstra et al. 2011, as Optuna has them.
    """
    if not tuning.trials:
        return plain, None
    optuna = _optuna()
    laboratory, kinds = tuning.laboratory, _kinds(tuning.measured)
    outputs = outputs_of(laboratory.model, laboratory.batches)
    built: dict[tuple[int, int], Made] = {}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    best: tuple[float, Solution] | None = None
    bar = tqdm(range(tuning.trials + 1), "search", disable=not laboratory.progress, delay=2.0)
    for number in bar:
        study.sampler = optuna.samplers.TPESampler(seed=laboratory.making.seed + number)
        if number == 0:
            study.enqueue_trial({"power": 1.0, **dict.fromkeys(kinds, 1.0)})
        trial = study.ask()
        power = trial.suggest_float("power", 0.5, 1.5)
        shares = {kind: trial.suggest_float(kind, 1 / _REACH, _REACH, log=True) for kind in kinds}
        solution = solve(_weighted(tuning, power, shares), tuning.budget)
        error = _error(tuning, solution, built, outputs)
        study.tell(trial, error)
        if best is None or error < best[0]:
            best = (error, solution)
    assert best is not None
    return best[1], best[0]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ArgumentError(
            "trials= needs Optuna, which is not installed", fix='pip install "tncompiler[search]"'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _kind(measured: Measured) -> str:
    """Weights that are weighted alike: of one layer class and shape."""
    site = measured.task.site
    layer = site.kind.layer if site.kind is not None else "parameter"
    shapes = "+".join("x".join(map(str, weight.shape)) for weight in site.weights)
    return f"{layer} {shapes}"


def _kinds(measured: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(map(_kind, measured)))


def _weighted(tuning: Tuning, power: float, shares: dict[str, float]) -> list[list[Option]]:
    """The options with losses as a trial weights them."""
    made = []
    for measured, group in zip(tuning.measured, tuning.groups, strict=True):
        share = shares[_kind(measured)] * measured.weight ** (power - 1) if measured.weight else 1.0
        made.append([replace(option, loss=option.loss * share) for option in group])
    return made


def _error(
    tuning: Tuning,
    solution: Solution,
    built: dict[tuple[int, int], Made],
    outputs: Sequence[Any],
) -> float:
    """The error of the model that a choice makes; kept, as equal choices are the same model."""
    laboratory = tuning.laboratory
    chosen = zip(tuning.measured, solution.choice, strict=True)
    text = repr([(m.task.site.name, str(m.candidates[k].rule)) for m, k in chosen])
    key = f"choice|{sha256(text.encode()).hexdigest()}"
    known = laboratory.store.get(key)
    if known is not None:
        return float(known)
    error = _measured_error(tuning, solution, built, lambda: laboratory.error(outputs))
    laboratory.store.put(key, error)
    return error


def _measured_error(
    tuning: Tuning,
    solution: Solution,
    built: dict[tuple[int, int], Made],
    measure: Callable[[], float],
) -> float:
    standing = []
    for number, (measured, position) in enumerate(
        zip(tuning.measured, solution.choice, strict=True)
    ):
        rule = measured.candidates[position].rule
        if rule is None:
            continue
        key = (number, position)
        if key not in built:
            built[key] = make(replace(measured.task, rule=rule), tuning.laboratory.making)
        standing.append(built[key])
    with standing_in(standing):
        return measure()
