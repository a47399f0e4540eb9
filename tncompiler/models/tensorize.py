"""tensorize_ and tensorize: the weights of any torch model as networks, in two lines."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

from tncompiler.ir.errors import ArgumentError
from tncompiler.models.calibration import Batch, Moments, OutputError, read_batches, run_hooked
from tncompiler.models.config import Adaptive, Surroundings
from tncompiler.models.making import Made, Making, make_all
from tncompiler.models.report import Report
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
    batches: the report then has the error of every layer's output, and ``weighted=True`` makes
    Linear layers minimise that instead of the weight's.
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
) -> dict[nn.Module, Any]:
    """Second moments of what comes into each Linear."""
    if not batches:
        raise _no_calibration()
    hooks = {
        task.site.module: Moments()
        for task in tasks
        if task.site.kind is not None and task.site.kind.layer == "Linear" and not task.tied
    }
    run_hooked(model, batches, hooks)
    return {module: hook.value for module, hook in hooks.items()}


def _output_errors(
    model: nn.Module, made: Sequence[Made], batches: Sequence[Batch]
) -> dict[nn.Module, float | None]:
    """How far each new layer's outputs are from those of the module it stands for."""
    hooks = {each.module: OutputError(each.layer) for each in made if each.is_layer}
    if batches:
        run_hooked(model, batches, hooks)
    return {module: hook.value for module, hook in hooks.items()}


def _no_calibration() -> ArgumentError:
    return ArgumentError(
        "weighted=True needs to know the activations", fix="give calibration= a batch"
    )
