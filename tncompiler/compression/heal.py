"""tnc.heal: a compressed model learns to do again what the model did that it was made of."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from tncompiler.compression.asked import check_asked, check_optimizer
from tncompiler.compression.checkpoints import check_numbers, read_checkpoint, write_checkpoint
from tncompiler.compression.distilling import Lesson, by_features, by_function, by_outputs
from tncompiler.compression.judging import Judge
from tncompiler.compression.streams import batches_from, hold_out, seed_step
from tncompiler.ir.errors import ArgumentError, DivergedError, TeacherError
from tncompiler.models.layers import find_layers
from tncompiler.models.parameters import network_weights

TRAINED = ("cores", "all")
_LOSSES = ("feature", "output")
_HALVES = "; Adam's eps is 0 in float16: train in float32, or give an optimizer with another"
_GREW = "a lower lr= helps where the start was good, and more steps"


@dataclass(frozen=True, slots=True)
class Healing:
    """``losses``: of every step, those of its parts added up. ``parts``: of the last step, by slice
    or "output". ``steps``: how many there were, ``resumed``: how many of these a checkpoint had.
    ``seconds``: of this run. ``held``: the loss on batches that nothing was learned from, of the
    model as it came and as it stays; ``kept``: after how many steps it was as it stays."""

    losses: tuple[float, ...]
    parts: dict[str, float]
    steps: int
    resumed: int
    seconds: float
    held: tuple[float, float] | None
    kept: int

    def __str__(self) -> str:
        """The first and the last loss, and what helps where nothing was gained."""
        if not self.losses:
            return "no steps"
        first, last = self.losses[0], self.losses[-1]
        text = f"loss {first:.3g} → {last:.3g} in {self.steps} steps, {self.seconds:.1f} s"
        if self.held is None:
            return text if last <= first else f"{text}: it grew; {_GREW}"
        before, after = self.held
        if not self.kept:
            return f"{text}; held out {before:.3g}, which no step lowered: nothing changed; {_GREW}"
        return f"{text}; held out {before:.3g} → {after:.3g}, after {self.kept} steps"


@dataclass(frozen=True, slots=True)
class Course:
    """How a healing goes on: ``schedule`` from the part that is done to a factor of the rate."""

    steps: int | None
    schedule: Callable[[float], float] | None
    clip: float | None
    checkpoint: Path | None
    every: int
    seed: int
    progress: bool
    identity: str


def heal(
    model: nn.Module,
    teacher: nn.Module | None,
    batches: Any,
    loss: str | Callable[[nn.Module, Any], Any] = "feature",
    slices: Sequence[str] | None = None,
    *,
    steps: int | None = None,
    lr: float = 1e-3,
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    schedule: Callable[[float], float] | None = None,
    train: str = "cores",
    clip: float | None = 1.0,
    validation: Any = "held",
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Healing:
    """Train a tensorized model, in place, on what the model did that it was made of.

        before = copy.deepcopy(model)
        tnc.tensorize_(model, tnc.Search(budget=0.4), calibration=batches)
        tnc.heal(model, before, loader, loss="feature", steps=500)
        tnc.heal(model, before, loader, loss="output", steps=500, train="all", checkpoint="h.tnc")

    ``batches``: any iterable of calls of the model: tensors, tuples (positional) or dicts; passed
    through again and again until there were ``steps`` (one pass if None).
    ``loss``: "feature": each of the ``slices`` (names of modules; by default each weight that
    became a network) learns on its own, from the inputs that the teacher's slice gets, to make what
    that makes. "output": the model as a whole learns to make the teacher's outputs. Both are
    squared errors relative to what is wanted. Or a function (model, batch) → loss, for fine-tuning
    of any kind; the teacher may then be None, and batches may be anything.
    ``train``: "cores": what networks hold, and the biases of their layers; or "all" parameters that
    need gradients. ``optimizer``: from a list of parameters to an optimizer; Adam with ``lr`` by
    default. ``schedule``: from the part that is done, 0 to 1, to a factor of the rates.
    ``clip``: the largest norm of all gradients. The model's modes stay: call `model.train()` before
    where dropout and the like are wanted. The teacher runs in eval mode.

    ``validation``: batches that nothing is learned from. By their loss, in eval mode, the model is
    judged as it comes, ``every`` so many steps and at the end, and what stays is the best of these
    states: no model leaves with a larger loss there than it came with. By default ("held") the
    first, ninth, 17th and 25th batch of every pass are held out, as far as there are so many; a
    lone batch is learned from as well, and a loader that shuffles may show items of these in later
    passes. None: nothing is held out, and the last state stays.

    ``checkpoint``: a file, written every so many steps and at the end; where it is there already,
    the healing goes on from it. Random numbers depend on ``seed`` and the step only, so a run that
    was killed at any moment ends as it would have: bitwise, on one machine.
    Raises: TeacherError for teachers without the slices, or whose outputs have other shapes;
    DivergedError where a loss or gradient is no finite number: the model is then as it was at the
    last step with a finite loss, and so is the checkpoint on disk; FileFormatError for a checkpoint
    of something else; ArgumentError.
    """
    check_asked(steps, every, seed, lr, clip, schedule, optimizer, checkpoint, validation)
    identity = _identity(steps, schedule, seed, str(loss), validation)
    path = None if checkpoint is None else Path(checkpoint)
    course = Course(steps, schedule, clip, path, every, seed, progress, identity)
    lesson = _lesson(model, teacher, loss, slices)
    parameters = _trained(model, lesson, train)
    _check_apart(parameters, teacher)
    made = torch.optim.Adam(parameters, lr=lr) if optimizer is None else optimizer(parameters)
    check_optimizer(made, parameters)
    started = time.perf_counter()
    with torch.random.fork_rng(), _only(model, parameters):
        held, rest, skip = validation, batches, range(0)
        if isinstance(validation, str):
            held, rest, skip = hold_out(batches, seed)
        judge = None if held is None else Judge(model, lesson, parameters, held, seed)
        healer = _Healer(model, lesson, parameters, made, course, judge)
        healer.run(rest, skip)
    return healer.found(time.perf_counter() - started)


class _Healer:
    """One healing, from its checkpoint to its end."""

    def __init__(
        self,
        model: nn.Module,
        lesson: Lesson,
        parameters: list[nn.Parameter],
        optimizer: Optimizer,
        course: Course,
        judge: Judge | None,
    ) -> None:
        self.model, self.lesson, self.parameters = model, lesson, parameters
        self.optimizer, self.course, self.judge = optimizer, course, judge
        self.losses: list[float] = []
        self.parts: dict[str, float] = {}
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]
        if course.checkpoint is not None:
            check_numbers(course.checkpoint, model)
        if course.checkpoint is not None and course.checkpoint.exists():
            progress, kept = read_checkpoint(course.checkpoint, model, optimizer, course.identity)
            self.losses, self.parts = [*progress["losses"]], dict(progress["parts"])
            if judge is not None:
                judge.recall(progress["judge"], kept)
        self.resumed = len(self.losses)
        self.good = [p.detach().clone() for p in parameters]

    def run(self, batches: Any, skip: range) -> None:
        """All steps; with a judge, the best state is the model's at the end."""
        course, judge = self.course, self.judge
        total = course.steps
        if judge is not None and not self.resumed:
            self._first_look(judge)
        stream = batches_from(batches, course.seed, len(self.losses), total, skip)
        bar = tqdm(
            stream,
            "heal",
            total=total,
            initial=self.resumed,
            disable=not course.progress,
            delay=2.0,
            unit="step",
        )
        for step, item in bar:
            self.step(step, item)
            bar.set_postfix(loss=f"{self.losses[-1]:.3g}", refresh=False)
            if (step + 1) % course.every == 0:
                self.write(look=True)
        self.write()
        if judge is not None:  # what is written does not know of this look: more steps may follow
            judge.look(len(self.losses))
            judge.restore()

    def _first_look(self, judge: Judge) -> None:
        found = judge.look(0)
        if not math.isfinite(found):
            self._give_up(f"the loss on what is held out is {found:g} before any step", good=True)

    def found(self, seconds: float) -> Healing:
        """What is said of it."""
        judge, steps = self.judge, len(self.losses)
        held = None if judge is None else (judge.first, judge.best)
        kept = steps if judge is None else judge.step
        return Healing(tuple(self.losses), self.parts, steps, self.resumed, seconds, held, kept)

    def step(self, step: int, item: Any) -> None:
        """One batch: loss, gradients, and a step of the optimizer."""
        course = self.course
        seed_step(course.seed, step, 2)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.lesson.run(item)
        total = math.fsum(parts.values())
        norm = self._clipped()
        if not math.isfinite(total):
            self._give_up(f"the loss is {total:g} at step {step}", good=False)
        if not math.isfinite(norm):
            self._give_up(f"a gradient is not finite at step {step}", good=True)
        torch._foreach_copy_(self.good, [p.detach() for p in self.parameters])
        if course.schedule is not None:
            factor = course.schedule(step / max(course.steps or 1, 1))
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
        self.optimizer.step()
        self.losses.append(total)
        self.parts = parts

    def _clipped(self) -> float:
        """The norm of all gradients, which are scaled down to what is allowed."""
        clip = self.course.clip
        limit = math.inf if clip is None else clip
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))

    def _give_up(self, what: str, good: bool) -> None:
        """Put back the last good parameters, unless those of now are good. Raises."""
        if not good:
            with torch.no_grad():
                for parameter, kept in zip(self.parameters, self.good, strict=True):
                    parameter.copy_(kept)
        raise DivergedError(
            f"{what}; the model is as it was at the last step with a finite loss",
            fix="use a lower lr=, a smaller clip=, or look for NaN in the batches"
            + (_HALVES if self.parameters[0].dtype is torch.float16 else ""),
        )

    def write(self, look: bool = False) -> None:
        """Write the checkpoint, if one is wanted, after a look of the judge. Raises where the last
        step left NaN behind, of which no loss tells yet: what is on disk stays good."""
        course, judge = self.course, self.judge
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters):
            self._give_up("the last step made parameters that are not finite", good=False)
        if look and judge is not None:
            judge.look(len(self.losses))
        if course.checkpoint is not None and len(self.losses) > 0:
            progress = {"identity": course.identity, "losses": self.losses, "parts": self.parts}
            judged, kept = ({}, {}) if judge is None else judge.record()
            progress["judge"] = judged
            write_checkpoint(course.checkpoint, self.model, self.optimizer, progress, kept)


# ---------------------------------------------------------------------------- what is asked for


def _identity(steps: Any, schedule: Any, seed: int, loss: str, validation: Any) -> str:
    """What a checkpoint must have been written for, to go on from it."""
    length = "any" if schedule is None else steps  # without a schedule, more steps may follow
    text = f"seed {seed}, steps {length}, loss {loss if loss in _LOSSES else 'function'}"
    if validation is None:
        return text
    return f"{text}, judged by {'own' if isinstance(validation, str) else 'other'} batches"


def _lesson(model: Any, teacher: Any, loss: Any, slices: Sequence[str] | None) -> Lesson:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"the model is a {type(model).__name__}", fix="give a torch.nn.Module")
    if callable(loss):
        return by_function(model, loss)
    if loss not in _LOSSES:
        raise ArgumentError(
            f"loss is {loss!r:.40}", fix=f"choose one of {', '.join(_LOSSES)}, or give a function"
        )
    if not isinstance(teacher, nn.Module):
        raise TeacherError(
            f"the teacher is a {type(teacher).__name__}", fix="give the model before tensorizing it"
        )
    if teacher is model:
        raise TeacherError("the model is its own teacher", fix="copy it before tensorizing it")
    if loss == "output":
        return by_outputs(model, teacher)
    return by_features(model, teacher, _names(model, slices))


def _names(model: nn.Module, slices: Sequence[str] | None) -> list[str]:
    """The slices that are meant."""
    if isinstance(slices, str):
        raise ArgumentError(f"slices is {slices!r}", fix="give a list of names of modules")
    if slices is not None:
        names = [*dict.fromkeys(slices)]
    else:
        names = [own[0] for own in find_layers(model).values()]
        names += [name.rpartition(".")[0] for name, *_ in network_weights(model)]
    if not names:
        raise ArgumentError(
            "there are no slices: nothing in the model is tensorized",
            fix="give slices=, or tensorize it first",
        )
    return names


def _trained(model: nn.Module, lesson: Lesson, train: str) -> list[nn.Parameter]:
    """The parameters that learn: those of the lesson that are cores, or all."""
    if train not in TRAINED:
        raise ArgumentError(f"train is {train!r:.40}", fix=f"choose one of {', '.join(TRAINED)}")
    mine = dict.fromkeys(p for module in lesson.trained for p in module.parameters())
    if train == "cores":
        held = [p for layer in find_layers(model) for p in layer.parameters()]
        for _, module, key, _ in network_weights(model):
            chains: Any = module.parametrizations
            held += chains[key].parameters()
        cores = set(held)
        mine = dict.fromkeys(p for p in mine if p in cores)
    found = [p for p in mine if p.requires_grad]
    if not found:
        raise ArgumentError(
            "no parameter is to learn: all are frozen, or nothing is tensorized",
            fix='use train="all", or requires_grad_(True)',
        )
    return found


def _check_apart(parameters: Sequence[nn.Parameter], teacher: Any) -> None:
    """Raises TeacherError where what learns is also the teacher's."""
    if isinstance(teacher, nn.Module):
        held = set(teacher.parameters())
        if any(p in held for p in parameters):
            raise TeacherError(
                "the model shares parameters that learn with its teacher",
                fix="make the teacher by copy.deepcopy(model) before tensorizing the model",
            )


@contextmanager
def _only(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Only these parameters need gradients; afterwards all is as before, and no gradient left."""
    chosen = set(parameters)
    before: Mapping[Tensor, bool] = {p: p.requires_grad for p in model.parameters()}
    try:
        for p in before:
            p.requires_grad_(p in chosen)
        yield
    finally:
        for p, needed in before.items():
            p.requires_grad_(needed)
        for p in parameters:
            p.grad = None
