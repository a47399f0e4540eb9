"""The tables of passes and their runner.

A pass is a pure function, valid program in and out, that returns the same object when it has
nothing to do. To add one: a new file, and one line in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module

from tncompiler.ir.program import Program
from tncompiler.ir.scans.steps import at_all_depths
from tncompiler.ir.validate import validate

Watcher = Callable[[str, Program, Program], None]

PASSES: dict[str, str] = {
    "fuse_attention": "attention:fuse_attention",
    "flatten_contractions": "flatten:flatten_contractions",
    "absorb_relabelings": "simplify:absorb_relabelings",
    "bind_windows": "bind_windows:bind_windows",
    "merge_common_steps": "common:merge_common_steps",
    "drop_dead_steps": "dead:drop_dead_steps",
    "order_axes": "layout:order_axes",
    "copy_operands": "copies:copy_operands",
    "drop_unit_axes": "units:drop_unit_axes",
    "widen_low_precision": "widen:widen_low_precision",
    "sum_booleans": "booleans:sum_booleans",
    "carry_exponents": "stabilize:carry_exponents",
    "trim_scans": "scans:trim_scans",
    "hoist_invariants": "scans:hoist_invariants",
    "hoist_from_scans": "scans:hoist_from_scans",
    "share_results": "results:share_results",
    "sink_sums": "sink:sink_sums",
    "sink_all_sums": "sink:sink_all_sums",
}

# before planning: networks as large as they can be, each value once
LOGICAL_PASSES = (
    "widen_low_precision",
    "fuse_attention",
    "flatten_contractions",
    "absorb_relabelings",
    "bind_windows",
    "sum_booleans",
    "merge_common_steps",
    "drop_dead_steps",
    "trim_scans",
)
# before planning, where memory is no matter
SPREADING_PASSES = (
    "hoist_from_scans",
    "flatten_contractions",
    "absorb_relabelings",
    "merge_common_steps",
    "drop_dead_steps",
    "trim_scans",
)
# after differentiating, before it is planned again; where memory is no matter, and else
JOINING_PASSES = ("sink_all_sums", "share_results", "trim_scans")
SINKING_PASSES = ("sink_sums", "share_results", "trim_scans")
# after planning: each value once, axes as they come
MERGING_PASSES = (
    "absorb_relabelings",
    "hoist_invariants",
    "merge_common_steps",
    "share_results",
    "drop_dead_steps",
    "trim_scans",
)
# after planning, if the plan's options say so; before differentiating
STABILIZING_PASSES = ("carry_exponents",)
# before layouts are weighed by time
THINNING_PASSES = ("drop_unit_axes", "merge_common_steps")
# after planning, and after differentiating a planned program
LAYOUT_PASSES = ("order_axes", "copy_operands", "hoist_invariants")
# the same where there is no time left
LATE_LAYOUT_PASSES = ("copy_operands", "hoist_invariants")
SCHEDULED_PASSES = (*MERGING_PASSES, *LAYOUT_PASSES)
# these look into scans themselves, or leave them as they are; all others run in each body too
SHALLOW_PASSES = ("widen_low_precision", "carry_exponents", "trim_scans")


@cache
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
    known: Program | None = None,
) -> Program:
    """Run passes in order, validating after each; `watcher(name, before, after)` sees changes.

    ``known``: a program that was found valid already, of which this one may have steps.
    """
    validate(program, scheduled=scheduled, known=known)
    for name in names:
        change = load_pass(name)
        after = (change if name in SHALLOW_PASSES else at_all_depths(change))(program)
        if after is not program:
            validate(after, scheduled=scheduled, known=program)
            if watcher is not None:
                watcher(name, program, after)
            program = after
    return program
