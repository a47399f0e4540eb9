"""What a plan is asked for."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from tncompiler.ir.errors import PlanError
from tncompiler.ir.origin import call_site
from tncompiler.planning.machine import Machine, as_machine, default_machine, load_machine

Path = tuple[tuple[int, ...], ...]

# how trials may be run at once, beside numbers of processes and executors
EXECUTORS = ("auto", "concurrent.futures", "threads", "loky", "dask", "ray")

_CHOICES: dict[str, tuple[str, ...]] = {
    "minimize": ("time", "flops", "memory"),
    "search": ("auto", "greedy", "optimal", "hyper", "left-to-right"),
    "precision": ("ieee", "tf32"),
    "recompute": ("auto", "never", "always"),
    "stabilize": ("none", "exponent"),
}
_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000**k for k, prefix in enumerate("kmgtp", start=1)}
_UNITS |= {f"{prefix}ib": 1024**k for k, prefix in enumerate("kmgtp", start=1)}


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Options of a plan; see the documentation for what each means.

    ``minimize``: "time", "flops" or "memory". ``search``: "auto" (exact for small networks),
    "greedy", "optimal" or "hyper" with ``trials`` and ``seed``, "left-to-right" (as written), or a
    callable (inputs, output, sizes, memory_limit) → linear path, as opt_einsum calls its own.
    ``path`` fixes the order of the only network: a linear path, as `plan.path` gives it.
    ``stabilize``: "exponent" carries a power of two beside every product that another one reads,
    so that none over- or underflows. An output that is a network (a contraction of two or more
    tensors, or a sum, difference, quotient, part or absolute value of networks) then comes as a
    pair (value, log10_scale), worth value * 10**log10_scale; the scale is float64, in the shape of
    the value. A log takes the scale in. Gradients are those of the value, its scale held fixed.
    ``parallel`` runs the trials of "hyper" at once, with the same result: a number of processes,
    True or "auto" for one a core, an executor (concurrent.futures, a Dask client, Ray through
    cotengra), or the name of one: "concurrent.futures", "threads", "loky", "dask", "ray".
    ``max_seconds`` counts from the call and cuts the search so that scheduling still fits in: what
    runs is killed (on an executor: cancelled), the best order so far is taken, at least the greedy
    one, and `plan.cut` is true. When all of it is over, whatever else can be left out is: layouts,
    further cuts and values to keep inside a limit of memory. A function given as ``search`` is not
    cut. ``progress`` shows a bar.
    ``training``: whether orders are compared with their backward pass, "auto" where a call computes
    gradients. ``memory_limit``: bytes, or text such as "2GiB", that a call may allocate, outputs
    and saved values included, inputs and parameters not; to keep it the plan slices indices (loops
    over blocks of their positions) and computes values again instead of saving them; programs that
    torch looks into are not sliced. ``recompute``: "auto" computes again only where the limit asks
    for it, "never", or "always" (outputs alone are saved).
    ``machine``: whose rates predicted times come from, a committed table ("reference",
    "a100", "h100", "b200", "mi300x") or what `tnc.calibrate` returned.
    ``precision``: "tf32" allows Triton's kernels to round the operands of float32 products to 11
    bits; elsewhere nothing does. Raises PlanError for an unknown value, and for options that this
    version does not carry out yet.
    """

    minimize: str = "time"
    training: str | bool = "auto"
    memory_limit: int | str | None = None
    search: str | Callable[..., Any] = "auto"
    trials: int = 32
    max_seconds: float | None = None
    parallel: Any = field(default=None, compare=False)
    precision: str = "ieee"
    stabilize: str = "none"
    machine: str | Machine = field(default_factory=default_machine)
    seed: int = 0
    recompute: str = "auto"
    progress: bool = field(default=False, compare=False)
    path: Path | None = None

    def __post_init__(self) -> None:
        for name, valid in _CHOICES.items():
            value = getattr(self, name)
            if name == "search" and callable(value):
                continue
            if not isinstance(value, str) or value not in valid:
                raise PlanError(
                    f"PlanOptions.{name} is {value!r:.40}",
                    where=call_site(),
                    fix=f"choose one of {', '.join(valid)}",
                )
        if self.memory_limit is not None:
            object.__setattr__(self, "memory_limit", _bytes(self.memory_limit))
        self._demand("trials", _is_whole(self.trials, 1), "give an integer, 1 or more")
        self._demand("seed", _is_whole(self.seed, 0), "give an integer, 0 or more")
        self._demand("progress", isinstance(self.progress, bool), "give True or False")
        seconds = self.max_seconds
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        limited = is_number and 0 < seconds < math.inf  # type: ignore[operator]
        self._demand("max_seconds", seconds is None or limited, "give seconds, more than 0")
        self._demand(
            "parallel",
            _is_parallel(self.parallel),
            "give a number of processes, True, an executor with a method submit, "
            f"or one of {', '.join(EXECUTORS)}",
        )
        if self.path is not None:
            object.__setattr__(self, "path", _checked_path(self.path))
        if isinstance(self.machine, str):
            load_machine(self.machine)
        elif not isinstance(self.machine, Machine):
            raise PlanError(
                f"PlanOptions.machine is {self.machine!r:.40}",
                where=call_site(),
                fix="give the name of a table, or a tnc.Machine as tnc.calibrate() returns",
            )
        if self.training not in ("auto", True, False):
            raise PlanError(
                f"PlanOptions.training is {self.training!r:.40}",
                where=call_site(),
                fix="choose one of 'auto', True, False",
            )

    def _demand(self, name: str, holds: bool, fix: str) -> None:
        if not holds:
            value = f"{getattr(self, name)!r:.40}"
            raise PlanError(f"PlanOptions.{name} is {value}", where=call_site(), fix=fix)

    def key(self) -> tuple[object, ...]:
        """What identifies the options in caches: all but how, and how long, a search may run."""
        apart = ("progress", "machine", "parallel", "max_seconds")
        named = (f.name for f in fields(self) if f.name not in apart)
        return (*(getattr(self, name) for name in named), as_machine(self.machine).digest)


def _bytes(limit: Any) -> int:
    """A number of bytes from an integer or from text such as "2GiB"."""
    number = limit
    if isinstance(limit, str):
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) *([a-z]*)", limit.strip().lower())
        unit = _UNITS.get(match[2]) if match else None
        number = None if match is None or unit is None else int(float(match[1]) * unit)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise PlanError(
            f"PlanOptions.memory_limit is {limit!r:.40}",
            where=call_site(),
            fix="give bytes, 1 or more, as an integer or as text such as '512MB' or '2GiB'",
        )
    return number


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_parallel(value: Any) -> bool:
    if isinstance(value, str):
        return value in EXECUTORS
    if value is None or isinstance(value, bool):
        return True
    return _is_whole(value, 1) or callable(getattr(value, "submit", None))


def _checked_path(path: Any) -> Path:
    """The path as tuples of integers; whether it fits a network is seen when it is used."""
    try:
        steps = tuple(tuple(operator.index(position) for position in step) for step in path)
    except TypeError:
        raise PlanError(
            f"a path is a list of tuples of positions, not {path!r:.80}",
            fix="write it as [(0, 2), (0, 1)], or take plan.path",
        ) from None
    if any(min(step, default=0) < 0 or len(set(step)) < len(step) for step in steps):
        raise PlanError(
            f"a step of the path {list(steps)} repeats a position or has a negative one",
            fix="each step names different positions among the tensors that are left",
        )
    return steps
