"""tensorize_ and tensorize: the weights of any torch model as networks, in two lines."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

from tncompiler.ir.errors import ArgumentError, UnsupportedModule
from tncompiler.models.calibration import Batch, Moments, OutputError, read_batches, run_hooked
from tncompiler.models.config import Adaptive, Surroundings
from tncompiler.models.making import Made, Making, make_all
from tncompiler.models.observing import OBSERVERS, ParameterInputs
from tncompiler.models.report import Report
from tncompiler.models.sites import Site
from tncompiler.models.swapping import all_or_nothing
from tncompiler.models.tasks import Filter, Task, plan_work

Model = TypeVar("Model", bound=nn.Module)


def tensorize(
    model: Model, config: Any, filter_fn: Filter | None = None, **options: Any
) -> tuple[Model, Report]:
    """A copy of the model with networks for weights, and the report; see `tensorize_`."""
    copied = copy.deepcopy(model)
    return copied, tensorize_(copied, config, filter_fn, **options)


def tensorize_(
    model: nn.Module,
    config: Any,
    filter_fn: Filter | None = None,
    *,
    rank: Any = None,
    tolerance: float | None = None,
    budget: float | None = None,
    calibration: Any = None,
    weighted: bool = False,
    implementation: str = "auto",
    backend: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Replace the weights of a torch model by networks, in place, without training.

        report = tnc.tensorize_(model, tnc.formats.TTMatrix(), budget=0.2)
        report = tnc.tensorize_(model, {
            "*.attention.*": tnc.formats.TT(rank=16, clamp=True),
            "embeddings.word": tnc.Rule(tnc.formats.TTMatrix(), tolerance=0.3),
        })

    ``config``: a format, a `tnc.Rule`, a dict from name patterns (as fnmatch; the first that
    matches counts) to these, or to None for what is to stay; or a `tnc.Search`. Modules of the
    classes in `tncompiler.models.kinds.KINDS` become layers of `tnc.nn`; other parameters, such as
    a fused projection that a module keeps itself, become networks in place where a pattern ends in
    their own name. ``filter_fn``: (module, name) → whether it may be replaced.
    ``rank``, ``tolerance``, ``budget``: as `Format.decompose`, for rules without any of their own.
    ``calibration``: a batch as the model takes it (a tensor, a tuple, a dict), or an iterable of
    batches: the report then has the error of every layer's output, and ``weighted=True`` minimises
    that instead of the weight's, by the second moments of what comes to each weight: rows of a
    Linear, patches of a convolution, tokens of a table by how often they occur, what attention's
    projections and the gates of recurrences read. Not where layers of several kinds share a weight
    (an embedding and its head), nor what the batches do not reach; the report says which were.
    ``progress``: a bar, if it takes longer than two seconds.

    Tied weights stay tied, shared modules shared; hooks, biases, modes, dtypes, devices and
    `requires_grad` are kept. What cannot be replaced is skipped with its reason, or an error where
    it was asked for by its full name. After any error the model is what it was. Make optimizers
    after this: parameters change.
    Cost: one decomposition for each weight; a pass over the calibration batches, two if weighted.
    Raises: ArgumentError, FormatError (NaN weights, ranks above what a bond can carry),
    UnsupportedModule.
    """
    started = time.perf_counter()
    before = count_numbers(model) if isinstance(model, nn.Module) else 0
    goal = {"rank": rank, "tolerance": tolerance, "budget": budget}
    batches = read_batches(calibration)
    found = None
    if isinstance(config, Adaptive):
        around = (filter_fn, batches, weighted, implementation, backend, seed, progress)
        found = config.find(model, Surroundings(*around))
        config = found.rules
    work = plan_work(model, config, filter_fn, goal)
    moments = input_moments(model, work.tasks, batches) if weighted else {}
    making = Making(implementation, backend, seed, moments)
    made = make_all(work, making, progress)
    errors = _output_errors(model, made, batches)
    layers = tuple(row for each in made for row in each.reports(errors.get(each.module)))
    with all_or_nothing(module for each in made for module in each.changed):
        for each in made:
            each.commit()
    seconds = time.perf_counter() - started
    return Report(layers, tuple(work.skipped), before, count_numbers(model), seconds, found)


def count_numbers(model: nn.Module) -> int:
    """How many numbers the parameters hold, each counted once."""
    return sum(p.numel() for p in model.parameters() if not is_lazy(p))


# ---------------------------------------------------------------------------- calibration


def input_moments(
    model: nn.Module, tasks: Sequence[Task], batches: Sequence[Batch]
) -> dict[Site, Any]:
    """Second moments of what comes to each weight, as layers' `from_dense` take them.

    Linears of one weight are seen together. Raises: UnsupportedModule for a parameter that a module
    uses otherwise than in torch's linear, where nothing is seen.
    """
    if not batches:
        raise _no_calibration()
    seen: dict[Site, Any] = {}
    hooks: dict[nn.Module, Any] = {}
    parameters: dict[int, Moments] = {}
    for task in tasks:
        sites = (task.site, *task.tied)
        kinds = {None if site.kind is None else site.kind.layer for site in sites}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is not None:
            seen[task.site] = OBSERVERS[kind]()
            hooks.update((site.module, seen[task.site]) for site in sites)
        elif task.site.parameter is not None:
            seen[task.site] = parameters[id(task.site.weight)] = Moments()
    with ParameterInputs(parameters):
        run_hooked(model, batches, hooks)
    found = {site: observer.value for site, observer in seen.items()}
    for site, moments in found.items():
        if site.parameter is not None and moments is None:
            raise _unseen(site)
    return found


def _output_errors(
    model: nn.Module, made: Sequence[Made], batches: Sequence[Batch]
) -> dict[nn.Module, float | None]:
    """How far each new layer's outputs are from those of the module it stands for."""
    hooks = {each.module: OutputError(each.layer) for each in made if each.is_layer}
    if batches:
        run_hooked(model, batches, hooks)
    return {module: hook.value for module, hook in hooks.items()}


def _unseen(site: Site) -> UnsupportedModule:
    return UnsupportedModule(
        f"weighted=True does not see what {site.shown} is multiplied by: on these batches its "
        "module does not use it in torch.nn.functional.linear",
        fix="leave it out of the configuration, or do without weighted=True",
    )


def _no_calibration() -> ArgumentError:
    return ArgumentError(
        "weighted=True needs to know the activations", fix="give calibration= a batch"
    )
