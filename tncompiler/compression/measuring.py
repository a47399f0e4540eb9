"""What each weight could become: the error of its layer's outputs, and what it would cost.

In: a model, calls of it, and options. Out: for each weight its options with their costs, and how
much an error of its layer's outputs means for those of the model. All measurements are records of
a store, so that a search that was stopped measures nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from tncompiler.compression.store import Store
from tncompiler.formats.factors import factorize
from tncompiler.formats.format import Format
from tncompiler.ir.errors import ArgumentError, BudgetError, FormatError
from tncompiler.models.calibration import (
    Batch,
    OutputError,
    evaluating,
    run_hooked,
    square_of,
    tensors_of,
)
from tncompiler.models.config import Rule
from tncompiler.models.making import Made, Making, make
from tncompiler.models.tasks import Task
from tncompiler.models.timing import predicted_costs

_AT_ONCE = 8  # layers that are held beside the model
_REPEATS = 5  # of a layer's call, of which the fastest counts
_MIDDLE = 0.3  # relative error with which a layer's meaning to the model is tried
_BY_FACTORS = ("Linear", "Embedding", "EmbeddingBag")  # layers whose sizes are factored here
_FEW_MODES = ("LowRank", "Dense", "Monarch")  # formats with as many modes as they have


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a weight could become.

    ``rule``: with the ranks that were found; None for the dense weight. ``error``: relative, of the
    layer's outputs. ``parameters``, ``us``, ``bytes``: what it costs (microseconds of a call;
    memory of the cores and of a call).
    """

    rule: Rule | None
    error: float
    parameters: int
    us: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A weight: its task, its candidates (the dense one first), and ``weight``: the model's squared
    relative error for each squared relative error of the layer."""

    task: Task
    candidates: tuple[Candidate, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Menu:
    """What is tried on every weight: formats, numbers of modes, and fractions of parameters."""

    formats: tuple[Format, ...]
    modes: tuple[int, ...]
    levels: tuple[float, ...]

    def rules(self, task: Task) -> Iterator[Rule]:
        """The rules that are tried on a weight."""
        for format in self.formats:
            for shapes in self._shapes(task, format):
                for level in self.levels:
                    yield Rule(format, budget=level, **shapes)

    def _shapes(self, task: Task, format: Format) -> list[dict[str, Any]]:
        site = task.site
        factored = site.kind is not None and site.kind.layer in _BY_FACTORS
        if not factored or type(format).__name__ in _FEW_MODES:
            return [{}]
        rows, columns = _table_shape(site.kind.layer, site.weight)  # type: ignore[union-attr]
        return [
            {"in_shape": factorize(rows, count), "out_shape": factorize(columns, count)}
            for count in self.modes
        ]


def _table_shape(layer: str, weight: Any) -> tuple[int, int]:
    """Inputs and outputs of a weight as formats have them."""
    return tuple(weight.shape[::-1]) if layer == "Linear" else tuple(weight.shape)


@dataclass(frozen=True, slots=True)
class Laboratory:
    """The model, its calls, how layers are made, and how they are timed (None: not at all)."""

    model: nn.Module
    batches: Sequence[Batch]
    making: Making
    store: Store
    timing: str | None
    progress: bool

    def measure(self, tasks: Sequence[Task], menu: Menu) -> list[Measured]:
        """Every weight with all that it could become. Cost: for each weight its decompositions,
        a pass over the batches for every eight of them, and one for its meaning to the model."""
        bar = tqdm(tasks, "measure", disable=not self.progress, delay=2.0, unit="weight")
        outputs = outputs_of(self.model, self.batches)
        _check_outputs(outputs)
        return [self._measure(task, menu, outputs) for task in bar]

    def _measure(self, task: Task, menu: Menu, outputs: Sequence[Tensor]) -> Measured:
        rules = [*menu.rules(task)]
        keys = [self._key(task, rule) for rule in rules]
        known = [self.store.get(key) for key in keys]
        if any(record is None for record in known):
            missing = [(k, r) for k, r, found in zip(keys, rules, known, strict=True) if not found]
            for start in range(0, len(missing), _AT_ONCE):
                self._try(task, missing[start : start + _AT_ONCE])
        found = [
            _candidate(self.store.get(key), rule) for key, rule in zip(keys, rules, strict=True)
        ]
        records = [record for key in keys if (record := self.store.get(key))["fits"]]
        candidates = (_dense(task, records), *(each for each in found if each is not None))
        return Measured(task, candidates, self._weight(task, candidates, outputs))

    def _key(self, task: Task, rule: Rule) -> str:
        """Of a record: what was tried, and how it was timed."""
        what = (task.site.name, str(rule.format), rule.in_shape, rule.budget, self.timing)
        return "|".join(map(str, what))

    def _try(self, task: Task, missing: Sequence[tuple[str, Rule]]) -> None:
        """Make some layers for a weight, and look at their outputs in one pass."""
        hooks = {}
        for key, rule in missing:
            try:
                hooks[key] = _Watch(make(replace(task, rule=rule), self.making), self.timing)
            except (BudgetError, FormatError):
                self.store.put(key, {"fits": False})
        if hooks:
            watches = [*hooks.values()]
            run_hooked(self.model, self.batches, {task.site.module: _all_of(watches)})
        for key, watch in hooks.items():
            self.store.put(key, watch.record())

    def _weight(
        self, task: Task, candidates: Sequence[Candidate], outputs: Sequence[Tensor]
    ) -> float:
        """What a small error of the layer does to the model: tried with one of its candidates."""
        if not task.site.slots:  # the layer is the model
            return 1.0
        usable = [each for each in candidates if each.rule is not None and each.error > 0]
        if not usable:
            return 0.0
        # neither so small that rounding counts nor so large that the model no longer follows it
        middle = min(usable, key=lambda each: abs(each.error - _MIDDLE))
        assert middle.rule is not None
        key = f"{task.site.name}|weight|{middle.rule.format}|{middle.rule.in_shape}"
        record = self.store.get(key)
        if record is None:
            with standing_in([make(replace(task, rule=middle.rule), self.making)]):
                record = self.error(outputs) ** 2 / middle.error**2
            self.store.put(key, record)
        return float(record)

    def error(self, outputs: Sequence[Tensor]) -> float:
        """The relative error of the model's outputs, as it is now."""
        now = outputs_of(self.model, self.batches)
        pairs = [*zip(now, outputs, strict=True)]
        missed = sum(square_of(mine - theirs) for mine, theirs in pairs)
        return float((missed / (sum(square_of(theirs) for _, theirs in pairs) or 1.0)) ** 0.5)


def outputs_of(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """The tensors that the model makes of all batches."""
    with evaluating(model):
        return [t for args, kwargs in batches for t in tensors_of(model(*args, **kwargs))]


def _check_outputs(outputs: Sequence[Tensor]) -> None:
    """Raises ArgumentError for outputs that no error can be measured of."""
    if not all(bool(tensor.isfinite().all()) for tensor in outputs):
        raise ArgumentError(
            "the model makes NaN or infinity of the calibration batches",
            fix="look for them in the batches and the weights",
        )
    if not any(tensor.numel() for tensor in outputs):
        raise ArgumentError(
            "the model makes no numbers of the calibration batches",
            fix="give batches with examples, and a model that returns tensors",
        )


@contextmanager
def standing_in(made: Sequence[Made]) -> Iterator[None]:
    """Layers in the place of what they stand for, for a while."""
    before: list[tuple[nn.Module, str, Any]] = []
    try:
        for each in made:
            sites = (each.task.site, *each.task.tied)
            for layer, site in zip((each.layer, *each.tied), sites, strict=True):
                for parent, key in site.slots:
                    before.append((parent, key, parent._modules[key]))
                    parent._modules[key] = layer
        yield
    finally:
        for parent, key, module in reversed(before):
            parent._modules[key] = module


# ---------------------------------------------------------------------------- one candidate


def _candidate(record: Mapping[str, Any], rule: Rule) -> Candidate | None:
    """A candidate of its record; None where the format does not fit, or nothing came through."""
    if not record["fits"] or record["error"] is None:
        return None
    if record["ranks"]:  # what a budget came to; a layer of several weights has its budget only
        rule = replace(rule, budget=None, format=rule.format.with_ranks(record["ranks"]))
    us, memory = record["us"][1], record["bytes"][1]
    return Candidate(rule, record["error"], record["parameters"], us, memory)


def _dense(task: Task, records: Sequence[Mapping[str, Any]]) -> Candidate:
    """The weight as it is; what its call costs is known from what was compared with it."""
    weights = task.site.weights
    us = min((record["us"][0] for record in records), default=0.0)
    memory = max((record["bytes"][0] for record in records), default=_held(weights))
    return Candidate(None, 0.0, sum(weight.numel() for weight in weights), us, memory)


class _Watch(OutputError):
    """The error of a candidate's outputs, and what its call costs beside the dense layer's."""

    def __init__(self, made: Made, timing: str | None) -> None:
        super().__init__(made.layer)
        self.made, self.costs = made, None if timing is None else predicted_costs(made.layer)
        self.measured = timing == "measured"
        self.us: list[float] = []

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        super().__call__(module, args, kwargs, result)
        if self.measured and not self.us:
            self.us = [call_us(each, args, kwargs) for each in (module, self.layer)]

    def record(self) -> dict[str, Any]:
        """What is kept of it: pairs are of the dense layer and of this one."""
        ranks, parameters = self.made.sizes()
        held = [_held(self.made.task.site.weights), _held(self.layer.parameters())]
        return {
            "fits": True,
            "error": self.value,
            "ranks": ranks,
            "parameters": parameters,
            "us": self._times(),
            "bytes": [cost.bytes for cost in self.costs] if self.costs else held,
        }

    def _times(self) -> list[float]:
        if self.costs is not None and not self.measured:
            return [cost.us for cost in self.costs]
        return self.us or [0.0, 0.0]


def _held(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _all_of(hooks: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def run(*call: Any) -> None:
        for hook in hooks:
            hook(*call)

    return run


def call_us(layer: nn.Module, args: Any, kwargs: Any) -> float:
    """The least microseconds of a few calls."""
    forward = type(layer).forward  # not the module's call: hooks would run
    times = []
    with evaluating(layer):
        for _ in range(_REPEATS):
            started = time.perf_counter()
            forward(layer, *args, **kwargs)
            times.append(time.perf_counter() - started)
    return min(times) * 1e6
