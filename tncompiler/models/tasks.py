"""What is to be done: which sites become layers, which of them together, which stay, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tncompiler.ir.errors import ArgumentError, UnsupportedModule
from tncompiler.models.config import Choice, Rule, resolve
from tncompiler.models.report import Skipped
from tncompiler.models.sites import Site, Slot, find_sites, holders

Filter = Callable[[nn.Module, str], bool]
NOT_CHOSEN = "not chosen"


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """``site`` gets a network by ``rule``, and ``tied`` share it. ``exact``: not to be skipped."""

    site: Site
    rule: Rule
    exact: bool = False
    tied: tuple[Site, ...] = ()


@dataclass(slots=True)
class Work:
    """``tasks`` in the model's order; ``skipped`` in the order found."""

    tasks: list[Task] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, site: Site, reason: str, exact: bool = False) -> None:
        """Leave a site as it is. Raises UnsupportedModule where it was asked for by name."""
        kind = type(site.module).__name__ if site.parameter is None else "parameter"
        if exact:
            raise UnsupportedModule(
                f"{site.shown} ({kind}) cannot become a network: {reason}",
                fix="leave it out of the configuration",
            )
        self.skipped.append(Skipped(site.name, kind, reason))


def plan_work(
    model: nn.Module, config: Any, filter_fn: Filter | None, goal: Mapping[str, Any]
) -> Work:
    """Sites of a model as tasks; those that share a weight are one task.

    Raises: ArgumentError for configurations and filters that do not fit, and where sites that share
    a weight are to become different things; UnsupportedModule.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"the model is a {type(model).__name__}", fix="give a torch.nn.Module")
    if filter_fn is not None and not callable(filter_fn):
        raise ArgumentError(
            f"filter_fn is {filter_fn!r:.60}", fix="give a function (module, name) → bool"
        )
    sites = find_sites(model)
    work, chosen = Work(), {}
    for site, choice in zip(sites, resolve(config, sites, goal), strict=True):
        wanted = choice.rule is not None and _passes(site, filter_fn)
        if site.reason is not None or not wanted or choice.rule is None:
            work.skip(site, site.reason or NOT_CHOSEN, choice.exact and wanted)
        else:
            chosen[site] = choice
    for group, outside in _groups(model, chosen):
        _add(work, group, outside, chosen)
    return work


def _passes(site: Site, filter_fn: Filter | None) -> bool:
    return filter_fn is None or bool(filter_fn(site.module, site.name))


def _groups(model: nn.Module, chosen: Mapping[Site, Choice]) -> list[tuple[list[Site], list[Slot]]]:
    """Chosen sites by the weight that they hold, and who else holds it, or part of them."""
    held = holders(model)
    by_weight: dict[int, list[Site]] = {}
    for site in chosen:
        by_weight.setdefault(id(site if site.weight is None else site.weight), []).append(site)
    groups = []
    for group in by_weight.values():
        inside = {part for site in group for part in site.module.modules()}
        mine = [slot for site in group for slot in _weights(site, held)]
        groups.append((group, [(module, key) for module, key in mine if module not in inside]))
    return groups


def _weights(site: Site, held: Mapping[int, list[Slot]]) -> list[Slot]:
    """All holders of the weights of a site, which are its parameters of two axes or more."""
    return [slot for weight in site.weights for slot in held[id(weight)]]


def _add(work: Work, group: list[Site], outside: list[Slot], chosen: Mapping[Site, Choice]) -> None:
    """One task for sites of one weight, or the reason why it stays as it is."""
    choices = [chosen[site] for site in group]
    exact = any(choice.exact for choice in choices)
    if outside:
        module, key = outside[0]
        others = f"its weight is also {key!r} of a {type(module).__name__} that stays dense"
        for site in group:
            work.skip(site, others, exact)
        return
    rule = choices[0].rule
    if any(choice.rule != rule for choice in choices) or rule is None:
        names = " and ".join(site.shown for site in group)
        raise ArgumentError(
            f"{names} share a weight, but are to become different things",
            fix="give them one rule, by a pattern that matches all of them",
        )
    first, *tied = sorted(group, key=_is_linear)  # a Linear can be tied to others
    if not all(_can_share(first, site) for site in tied):
        for site in group:
            work.skip(site, "its weight is shared in a way that layers cannot share it", exact)
        return
    work.tasks.append(Task(first, rule, exact, tuple(tied)))


def _can_share(first: Site, other: Site) -> bool:
    """Whether a layer for the other can hold the first one's cores: both hold the weight alike."""
    if first.kind is None or other.kind is None:
        return False
    return _is_linear(other) and first.kind.dense is other.kind.dense


def _is_linear(site: Site) -> bool:
    return site.kind is not None and site.kind.layer == "Linear"
