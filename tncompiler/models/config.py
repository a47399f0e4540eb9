"""What a user asks for, resolved to a rule for each site.

A kind of configuration is a line in RESOLVERS: a function from it and all sites to rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tncompiler.formats.format import Format, Rank
from tncompiler.ir.errors import ArgumentError
from tncompiler.models.calibration import Batch
from tncompiler.models.sites import Site


@dataclass(frozen=True, slots=True)
class Rule:
    """What a weight becomes: a format, with one of rank, tolerance and budget, and its modes.

    ``rank``, ``tolerance``, ``budget``: as `Format.decompose`. ``in_shape``, ``out_shape``: modes
    of inputs and outputs (balanced factors if not given); only for weights of one size.
    """

    format: Format
    rank: Rank = None
    tolerance: float | None = None
    budget: float | None = None
    in_shape: Any = None
    out_shape: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.format, Format):
            raise ArgumentError(
                f"a rule has the format {self.format!r:.60}",
                fix="give a format, as tnc.Rule(tnc.formats.TT(), budget=0.1)",
            )

    @property
    def goal(self) -> dict[str, Any]:
        """What `Format.decompose` is asked for."""
        return {"rank": self.rank, "tolerance": self.tolerance, "budget": self.budget}


class Adaptive(ABC):
    """A configuration that looks at the model before it says what becomes of which weight."""

    @abstractmethod
    def find(self, model: nn.Module, surroundings: Surroundings) -> Any:
        """What was found, with its ``rules``: a dict from names to rules, to be resolved."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What `tensorize_` was called with beside the configuration; ``batches``: calls of the model,
    ``weighted``: whether the error of layers' outputs is minimised instead of that of weights."""

    filter_fn: Callable[[nn.Module, str], bool] | None
    batches: Sequence[Batch]
    weighted: bool
    implementation: str
    backend: str
    seed: int
    progress: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """``rule``: for a site; None where it stays as it is.

    ``exact``: whether it was asked for by its own name, so that it must not be skipped.
    """

    rule: Rule | None
    exact: bool = False


# from a configuration, all sites, and the goal of rules that have none
Resolver = Callable[[Any, Sequence[Site], Mapping[str, Any]], list[Choice]]


def resolve(config: Any, sites: Sequence[Site], goal: Mapping[str, Any]) -> list[Choice]:
    """A choice for each site. ``goal``: rank, tolerance or budget of rules that have none.

    Raises: ArgumentError for a configuration of no known kind, for patterns that match nothing, and
    for a goal that no rule takes.
    """
    for kind, resolver in RESOLVERS.items():
        if isinstance(config, kind):
            choices = resolver(config, sites, goal)
            _check_taken(choices, goal)
            return choices
    raise ArgumentError(
        f"the configuration is {config!r:.60}",
        fix="give a format, a tnc.Rule, a dict from name patterns to these, or a tnc.Search",
    )


def _check_taken(choices: Sequence[Choice], goal: Mapping[str, Any]) -> None:
    given = [name for name, value in goal.items() if value is not None]
    rules = [choice.rule for choice in choices if choice.rule is not None]
    if given and rules and not any(rule.goal == goal for rule in rules):
        raise ArgumentError(
            f"{given[0]}= is given, but every rule has a rank, tolerance or budget of its own",
            fix="leave it out, or give a format without a rank",
        )


def _everywhere(config: Any, sites: Sequence[Site], goal: Mapping[str, Any]) -> list[Choice]:
    """One rule for all modules."""
    rule = _rule(config, goal)
    return [Choice(rule if site.parameter is None else None) for site in sites]


def _by_pattern(config: Any, sites: Sequence[Site], goal: Mapping[str, Any]) -> list[Choice]:
    """The rule of the first pattern that matches a name."""
    rules = {_pattern(key): _rule(value, goal) for key, value in config.items()}
    for pattern in rules:
        if not any(_matches(pattern, site) for site in sites):
            raise _unmatched(pattern, sites)
    choices = []
    for site in sites:
        fitting = [pattern for pattern in rules if _matches(pattern, site)]
        if fitting:
            choices.append(Choice(rules[fitting[0]], fitting[0] in site.names))
        else:
            choices.append(Choice(None))
    return choices


# kind of configuration → how it is resolved; the first that fits
RESOLVERS: dict[type, Resolver] = {
    Format: _everywhere,
    Rule: _everywhere,
    Mapping: _by_pattern,
}


def _rule(value: Any, goal: Mapping[str, Any]) -> Rule | None:
    """A value of a configuration as a rule; None means: leave it as it is."""
    if value is None:
        return None
    rule = value if isinstance(value, Rule) else Rule(value)
    given = any(value is not None for value in rule.goal.values())
    if given or rule.format.rank is not None:
        return rule
    return Rule(rule.format, **goal, in_shape=rule.in_shape, out_shape=rule.out_shape)


def _pattern(key: Any) -> str:
    if not isinstance(key, str):
        raise ArgumentError(
            f"a pattern is {key!r:.60}", fix="give names as text, as 'encoder.*.query'"
        )
    return key


def _matches(pattern: str, site: Site) -> bool:
    """Whether a pattern means a site; a parameter only where its own name is written out."""
    if site.parameter is not None and not pattern.endswith(site.parameter):
        return False
    return any(fnmatchcase(name, pattern) for name in site.names)


def _unmatched(pattern: str, sites: Sequence[Site]) -> ArgumentError:
    names = [name for site in sites for name in site.names]
    near = get_close_matches(pattern, names, 3, 0.4) or names[:3]
    return ArgumentError(
        f"the pattern {pattern!r} matches no weight of the model",
        fix=f"name one of its modules: {', '.join(map(repr, near))}, …" if near else None,
    )
