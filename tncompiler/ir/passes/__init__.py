"""The tables of passes and their runner.

A pass is a pure function, valid program in and out, that returns the same object when it has
nothing to do. To add one: a new file, and one line in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

from tncompiler.ir.program import Program
from tncompiler.ir.validate import validate

Watcher = Callable[[str, Program, Program], None]

PASSES: dict[str, str] = {
    "flatten_contractions": "flatten:flatten_contractions",
    "absorb_relabelings": "simplify:absorb_relabelings",
    "bind_windows": "bind_windows:bind_windows",
    "merge_common_steps": "common:merge_common_steps",
    "drop_dead_steps": "dead:drop_dead_steps",
    "order_axes": "layout:order_axes",
    "copy_operands": "copies:copy_operands",
    "widen_low_precision": "widen:widen_low_precision",
    "sum_booleans": "booleans:sum_booleans",
    "carry_exponents": "stabilize:carry_exponents",
}

# before planning: networks as large as they can be, each value once
LOGICAL_PASSES = (
    "widen_low_precision",
    "flatten_contractions",
    "absorb_relabelings",
    "bind_windows",
    "sum_booleans",
    "merge_common_steps",
    "drop_dead_steps",
)
# after planning: each value once, axes as they come
MERGING_PASSES = ("absorb_relabelings", "merge_common_steps", "drop_dead_steps")
# after planning, if the plan's options say so; before differentiating
STABILIZING_PASSES = ("carry_exponents",)
# after planning, and after differentiating a planned program
LAYOUT_PASSES = ("order_axes", "copy_operands")
SCHEDULED_PASSES = (*MERGING_PASSES, *LAYOUT_PASSES)


def load_pass(name: str) -> Callable[[Program], Program]:
    """A pass by its name in the table."""
    module, attribute = PASSES[name].split(":")
    loaded = getattr(import_module(f"tncompiler.ir.passes.{module}"), attribute)
    return loaded  # type: ignore[no-any-return]


def run_passes(
    program: Program,
    names: Iterable[str],
    *,
    scheduled: bool = False,
    watcher: Watcher | None = None,
) -> Program:
    """Run passes in order, validating after each; `watcher(name, before, after)` sees changes."""
    validate(program, scheduled=scheduled)
    for name in names:
        after = load_pass(name)(program)
        if after is not program:
            validate(after, scheduled=scheduled)
            if watcher is not None:
                watcher(name, program, after)
            program = after
    return program
