"""Layers for tasks, made beside the model and put into it at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn
from tqdm import tqdm

import tncompiler.nn
from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.low_rank import LowRank
from tncompiler.formats.modes import Modes
from tncompiler.ir.errors import BudgetError, TncError
from tncompiler.models.parameters import NetworkWeight, as_table, register_network
from tncompiler.models.report import LayerReport
from tncompiler.models.sites import Site
from tncompiler.models.swapping import inherit, put
from tncompiler.models.tasks import Task, Work
from tncompiler.models.timing import Times, parts_us, predicted_us
from tncompiler.nn.parts import Composite, Decompositions
from tncompiler.nn.tensorized import Tensorized, decompose_weight

_PATIENCE_S = 2.0  # before a progress bar shows


@dataclass(frozen=True, slots=True)
class Making:
    """How layers are made; ``moments``: of what comes to the weight of a site, where it counts."""

    implementation: str
    backend: str
    seed: int
    moments: Mapping[Site, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """``layer`` for a task's site, and one for each site that is tied to it."""

    task: Task
    layer: Any
    tied: tuple[nn.Module, ...]
    found: Decomposition | Decompositions

    @property
    def module(self) -> nn.Module:
        """What the layer takes the place of, or the parameter is in."""
        return self.task.site.module

    @property
    def is_layer(self) -> bool:
        return self.task.site.parameter is None

    @property
    def changed(self) -> list[nn.Module]:
        """The modules that `commit` changes."""
        sites = (self.task.site, *self.task.tied)
        return [module for s in sites for module in (s.module, *(parent for parent, _ in s.slots))]

    def commit(self) -> None:
        """Put it into the model."""
        site = self.task.site
        if site.parameter is not None:
            register_network(site.module, site.parameter, self.layer)
            return
        for layer, place in zip((self.layer, *self.tied), (site, *self.task.tied), strict=True):
            put(layer, place.module, place.slots)

    def sizes(self) -> tuple[dict[str, int], int]:
        """The ranks of the one weight (none of a layer with several), and how many numbers."""
        if isinstance(self.layer, Composite):
            return {}, self.found.parameters
        modes = Modes.of(self.layer.in_shape, self.layer.out_shape)
        return _ranks(self.found, modes), self.found.parameters

    def reports(self, output_error: float | None) -> list[LayerReport]:
        """What the report says of it: of a layer with several weights, one row for each."""
        site, layer = self.task.site, self.layer
        others = (*site.names[1:], *(name for other in self.task.tied for name in other.names))
        if not isinstance(layer, Composite):
            times = predicted_us(layer) if self.is_layer else None
            return [self._row(site.name, layer, self.found, output_error, times, others)]
        above, predicted = f"{site.name}." if site.name else "", parts_us(layer)
        return [
            self._row(f"{above}{name}", part, part.decomposition, output_error, predicted[name])
            for name, part in layer.parts().items()
        ]

    def _row(
        self,
        name: str,
        weight: Any,
        found: Any,
        output_error: float | None,
        times: Times | None,
        others: tuple[str, ...] = (),
    ) -> LayerReport:
        modes = Modes.of(weight.in_shape, weight.out_shape)
        return LayerReport(
            name=name,
            layer=type(self.layer).__name__,
            shape=weight.table_shape,
            format=str(found.format),
            ranks=_ranks(found, modes),
            in_shape=weight.in_shape,
            out_shape=weight.out_shape,
            parameters_before=prod(weight.table_shape),
            parameters_after=found.parameters,
            error=found.error,
            lower_bound=found.lower_bound,
            output_error=output_error,
            weighted=found.is_weighted,
            us_before=None if times is None else times.before,
            us_after=None if times is None else times.after,
            tied=others,
        )


def _ranks(found: Any, modes: Modes) -> dict[str, int]:
    return {bond: int(size) for bond, size in found.format.sizes(modes).items()}


def make_all(work: Work, making: Making, progress: bool) -> list[Made]:
    """Layers for all tasks; those that no rank fits into a budget join what is skipped."""
    made = []
    bar = tqdm(work.tasks, "tensorize", disable=not progress, delay=_PATIENCE_S, unit="weight")
    for task in bar:
        try:
            made.append(make(task, making))
        except BudgetError as error:
            if task.exact:
                raise _located(error, task.site) from None
            for site in (task.site, *task.tied):
                work.skip(site, error.what)
        except TncError as error:
            raise _located(error, task.site) from None
    return made


def _located(error: TncError, site: Site) -> TncError:
    """The error, with the layer in which it came up."""
    place = site.shown if error.where is None else f"{site.shown}, {error.where}"
    return type(error)(error.what, where=place, fix=error.fix)


def make(task: Task, making: Making) -> Made:
    """A layer or a parameter's network for a task. Raises FormatError, BudgetError."""
    site, rule = task.site, task.rule
    shapes = {"in_shape": rule.in_shape, "out_shape": rule.out_shape}
    if site.parameter is not None:
        return _network_weight(task, making)
    assert site.kind is not None
    layer = getattr(tncompiler.nn, site.kind.layer).from_dense(
        site.kind.dense(site.module),
        rule.format,
        **rule.goal,
        **shapes,
        moments=making.moments.get(site),
        seed=making.seed,
        implementation=making.implementation,
        backend=making.backend,
    )
    inherit(layer, site.module)
    tied = tuple(_tied(layer, other) for other in task.tied)
    return Made(task, layer, tied, layer.decomposition)


def _network_weight(task: Task, making: Making) -> Made:
    """A parameter's network; its module stays."""
    site, rule = task.site, task.rule
    weight = site.weight
    assert weight is not None
    goal = {**rule.goal, "seed": making.seed, "moments": making.moments.get(site)}
    found = decompose_weight(rule.format, as_table(weight), rule.in_shape, rule.out_shape, goal)
    layer = NetworkWeight(tuple(weight.shape), found.format, rule.in_shape, rule.out_shape)
    return Made(task, layer.start(found.cores), (), found)


def _tied(layer: Tensorized, site: Site) -> nn.Module:
    """A Linear that shares the cores of a layer, for a site that shared its weight."""
    assert site.kind is not None
    dense = site.kind.dense(site.module)
    options = {"implementation": layer.implementation, "backend": layer.backend}
    other = tncompiler.nn.Linear(
        dense.in_features,
        dense.out_features,
        dense.bias is not None,
        format=LowRank(1),  # of no consequence: its cores are replaced
        **options,
    )
    other.tie(layer)
    inherit(other, site.module)
    return other  # type: ignore[no-any-return]
