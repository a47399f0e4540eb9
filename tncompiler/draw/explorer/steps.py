"""The steps of a program as the page shows them: equation, costs, lines of source, tree nodes."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from tncompiler.draw.explorer.formulas import Formulas
from tncompiler.draw.explorer.lineage import Lineage
from tncompiler.explain import copied_operands
from tncompiler.ir.program import Loop, Program, Scan, Step
from tncompiler.ir.sizes import Terms, evaluate
from tncompiler.planning.cost import FlatStep, flat_steps
from tncompiler.planning.memory import is_view, made_bytes, moments, scratch_terms, within
from tncompiler.planning.plan import step_equation
from tncompiler.planning.rates import Rates
from tncompiler.planning.timing import step_us

Sizes = dict[sympy.Symbol, int]
_LONGEST_US = 1e300  # what is longer cannot be written as JSON


@dataclass(frozen=True, slots=True)
class Part:
    """One program and its source.

    ``held``: bytes that stay alive while it runs. ``marks``: "saved" or "recomputed", by value.
    ``gradients``: the leaves of which a value is the gradient.
    """

    name: str
    program: Program
    source: str
    held: Terms
    marks: Mapping[str, str]
    gradients: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all steps of a page have in common; ``grids`` are sizes at which times are given."""

    formulas: Formulas
    nominal: Sizes
    rates: Rates
    grids: Sequence[Sequence[Sizes]]


def part_data(part: Part, setting: Setting, lineage: Lineage) -> dict[str, Any]:
    """A part's steps, those of loops after their loop."""
    program = part.program
    lineage.follow(program)
    flat = list(flat_steps(program))
    lines = lines_of(part.source, [one.step for one in flat])
    memory = iter(_memory(program))
    times = [[times_of(program, sizes, setting.rates) for sizes in grid] for grid in setting.grids]
    steps = []
    for number, one in enumerate(flat):
        made, freed, beside = (Terms(), Terms(), []) if one.loops else next(memory)
        steps.append(
            {
                **_shown(one, setting, part),
                "makes": setting.formulas.terms(made),
                "frees": setting.formulas.terms(freed),
                "beside": [setting.formulas.terms(terms) for terms in beside],
                "us": [[round_us(run[number]) for run in grid] for grid in times],
                "lines": lines[number],
                "nodes": lineage.made(one.step),
                "reads": [p for name in one.step.operands for p in lineage.of_value(name)],
            }
        )
    held = setting.formulas.terms(part.held)
    return {"name": part.name, "source": part.source, "held": held, "steps": steps}


def _shown(one: FlatStep, setting: Setting, part: Part) -> dict[str, Any]:
    """What a step is, and what it costs."""
    formulas, step = setting.formulas, one.step
    inner: Mapping[sympy.Symbol, int] = setting.nominal
    for loop in one.loops:
        inner = within(loop, inner)
    return {
        "text": step_equation(one.program, step),
        "depth": len(one.loops),
        "shape": [formulas.size(size, inner) for size in step.out.shape],
        "flops": formulas.terms(one.flops),
        "elementwise": formulas.terms(one.elementwise),
        "read": formulas.terms(one.bytes_read),
        "written": formulas.terms(one.bytes_written),
        "mark": part.marks.get(step.out.name, ""),
        "copies": ", ".join(copied_operands(one.program, step, inner)),
        "gradient": list(part.gradients.get(step.out.name, ())),
        "view": is_view(step),
    }


def _memory(program: Program) -> Iterator[tuple[Terms, Terms, list[Terms]]]:
    """For each step what it makes, what is free after it, and what it takes beside, in bytes."""
    taken = {step.out.name: made_bytes(program, step) for step in program.steps}
    for moment in moments(program):
        made = Terms.total(taken[name] for name in moment.made)
        freed = Terms.total(taken[name] for name in moment.freed)
        yield made, freed, list(scratch_terms(program, moment.step))


def times_of(program: Program, sizes: Sizes, rates: Rates) -> list[float]:
    """Predicted microseconds of each step and all its repetitions; a loop has what is left over."""
    return list(_times(program, sizes, rates, 1.0))


def _times(
    program: Program, sizes: Mapping[sympy.Symbol, int], rates: Rates, turns: float
) -> Iterator[float]:
    for step in program.steps:
        whole = turns * _us(program, step, sizes, rates)
        if isinstance(step.op, Loop | Scan):
            inner_turns = turns * evaluate(step.op.count, sizes)
            inner = list(_times(step.op.body, within(step.op, sizes), rates, inner_turns))
            yield max(whole - sum(inner), 0.0)
            yield from inner
        else:
            yield whole


def _us(program: Program, step: Step, sizes: Mapping[sympy.Symbol, int], rates: Rates) -> float:
    try:
        return step_us(program, step, dict(sizes), rates)
    except OverflowError:
        return _LONGEST_US


def round_us(us: float) -> float:
    """Four digits are plenty."""
    return float(f"{min(us, _LONGEST_US):.4g}")


def lines_of(source: str, steps: Sequence[Step]) -> list[tuple[int, int] | None]:
    """The first and last line that assigns each step's value.

    A value without a line of its own, as a view has, shows those of what is made of it.
    """
    found: dict[str, tuple[int, int]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign):
            place = node.lineno, node.end_lineno or node.lineno
            for name in (
                n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)
            ):
                found[name] = min(place, found.get(name, place))
    for step in reversed(steps):
        for name in step.operands:
            if step.out.name in found:
                found.setdefault(name, found[step.out.name])
    return [found.get(step.out.name) for step in steps]
