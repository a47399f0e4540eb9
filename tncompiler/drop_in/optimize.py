"""What `optimize=` may be, in NumPy's and opt_einsum's words and in ours → plan options."""

from __future__ import annotations

from typing import Any

from tncompiler.ir.errors import PlanError
from tncompiler.planning.options import PlanOptions
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


def read_optimize(optimize: Any) -> PlanOptions | ContractionPlan:
    """What `optimize=` asks for. Raises PlanError with the names it may have."""
    if isinstance(optimize, PlanOptions | ContractionPlan):
        return optimize
    if optimize is None:
        return PlanOptions()
    if isinstance(optimize, str | bool):
        if optimize not in OPTIMIZERS:
            names = ", ".join(repr(name) for name in OPTIMIZERS if isinstance(name, str))
            raise PlanError(
                f"there is no optimizer {optimize!r}",
                fix=f"choose True, False, one of {names}, or give a path or a function",
            )
        return PlanOptions(**OPTIMIZERS[optimize])
    if callable(optimize):
        return PlanOptions(search=optimize)
    if isinstance(optimize, list | tuple) and optimize and isinstance(optimize[0], str):
        if optimize[0] != "einsum_path":
            limit = optimize[1] if len(optimize) > 1 else None
            return PlanOptions(**OPTIMIZERS.get(optimize[0], {}), memory_limit=limit)
        optimize = optimize[1:]
    return PlanOptions(path=optimize)
