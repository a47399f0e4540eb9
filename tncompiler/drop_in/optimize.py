"""What `optimize=` may be, in NumPy's and opt_einsum's words and in ours → plan options."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tncompiler.ir.errors import PlanError
from tncompiler.ir.origin import call_site
from tncompiler.planning.options import Path, PlanOptions
from tncompiler.planning.plan import ContractionPlan

# names that NumPy and opt_einsum know, and what they ask of our planner
OPTIMIZERS: dict[object, dict[str, Any]] = {
    "auto": {},
    True: {},
    False: {"search": "left-to-right"},
    "optimal": {"search": "optimal"},
    "dp": {"search": "optimal"},
    "dynamic-programming": {"search": "optimal"},
    "branch-all": {"search": "optimal"},
    "branch-2": {"search": "greedy"},
    "branch-1": {"search": "greedy"},
    "greedy": {"search": "greedy", "trials": 1},
    "eager": {"search": "greedy", "trials": 1},
    "opportunistic": {"search": "greedy", "trials": 1},
    "random-greedy": {"search": "greedy"},
    "random-greedy-128": {"search": "greedy", "trials": 128},
    "auto-hq": {"search": "hyper"},
    "hyper": {"search": "hyper"},
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A search that finds the path of a plan, for as many tensors with axes as the plan has."""

    path: Path
    count: int

    def __call__(self, inputs: Sequence[Any], *_: object) -> Path:
        if len(inputs) != self.count:
            raise PlanError(
                f"the plan is for {self.count} tensors, but {len(inputs)} have axes here",
                fix="make one with tnc.plan(tnc.from_einsum(equation, *arrays))",
            )
        return self.path


class Asked:
    """A user's path function, told apart by identity; its memory limit is optional."""

    __slots__ = ("function", "takes_limit")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        try:
            inspect.signature(function).bind([], set(), {}, None)
            self.takes_limit = True
        except TypeError:  # cotengra's simplest optimizers take no limit
            self.takes_limit = False
        except ValueError:  # a function without a signature: as opt_einsum calls it
            self.takes_limit = True

    def __call__(
        self,
        inputs: Sequence[Any],
        output: Any,
        sizes: Mapping[str, int],
        memory_limit: int | None,
    ) -> Any:
        limit = (memory_limit,) if self.takes_limit else ()
        return self.function(inputs, output, sizes, *limit)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Asked) and other.function is self.function

    def __hash__(self) -> int:
        return id(self.function)


def read_optimize(optimize: Any, memory_limit: Any = None) -> PlanOptions:
    """What `optimize=` and `memory_limit=` (None or -1: none) ask for, hashable.

    Raises PlanError with the names it may have.
    """
    options = _options(optimize)
    unlimited = memory_limit is None or (isinstance(memory_limit, int) and memory_limit == -1)
    if unlimited:
        return options
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    return PlanOptions(**{**given, "memory_limit": memory_limit})


def _registered(name: str | bool) -> Callable[..., Any] | None:
    """The path function that someone, cotengra for one, has registered with opt_einsum."""
    paths = sys.modules.get("opt_einsum.paths")
    return None if paths is None else getattr(paths, "_PATH_OPTIONS", {}).get(name)


def _options(optimize: Any) -> PlanOptions:
    if isinstance(optimize, PlanOptions):
        if optimize.stabilize != "none":
            raise PlanError(
                "an einsum gives one array, which has no place for a scale",
                where=call_site(),
                fix="compile tnc.from_einsum(…) with stabilize='exponent'",
            )
        return optimize
    if isinstance(optimize, ContractionPlan):
        path = optimize.path if optimize.networks else ()
        return PlanOptions(search=Planned(path, sum(len(n.tensors) for n in optimize.networks)))
    if optimize is None:
        return PlanOptions()
    if isinstance(optimize, str | bool):
        if optimize not in OPTIMIZERS:
            if (function := _registered(optimize)) is not None:
                return PlanOptions(search=Asked(function))
            names = ", ".join(repr(name) for name in OPTIMIZERS if isinstance(name, str))
            raise PlanError(
                f"there is no optimizer {optimize!r:.40}",
                fix=f"choose True, False, one of {names}, or give a path or a function",
            )
        return PlanOptions(**OPTIMIZERS[optimize])
    if callable(optimize):
        return PlanOptions(search=Asked(optimize))
    if isinstance(optimize, list | tuple) and optimize and isinstance(optimize[0], str):
        if optimize[0] != "einsum_path":
            return read_optimize(*optimize[:2])
        optimize = optimize[1:]
    return PlanOptions(path=optimize)
