"""Products of a cell: counted, in their order, and timed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tncompiler as tnc
from benchmarks.attainable import calls, contestants, library_of, products, programs, times_of
from benchmarks.cases import Cell, load_cases, select
from benchmarks.peers.ours import expression
from benchmarks.problems import build_problem
from tncompiler.ir.program import Contract, contract_flops, operand_values
from tncompiler.planning.memory import is_view

CELLS = ("tucker-32x32-r8/b16/float32/forward", "ttm-32x32-r8/b256/float32/step")


def cells() -> list[Cell]:
    return [cell for cell in select(load_cases(), "all", "*") if cell.id in CELLS]


each_cell = pytest.mark.parametrize("cell", cells(), ids=lambda cell: cell.id)


@each_cell
def test_products_are_all_the_flops_of_a_call(cell: Cell) -> None:
    for made in programs(cell):
        flops = sum(
            contract_flops(step.op, operand_values(program, step), step.out).evaluate({})
            for program in made
            for step in program.steps
            if isinstance(step.op, Contract) and not is_view(step)
        )
        shapes = [one.shape for part in products(made) for one in part]
        counted = sum(2 * math.prod(shape[:4]) for shape in shapes)
        assert 0.95 * flops <= counted <= flops  # sums over one operand are no products


def test_products_of_a_step_are_what_it_is_said_to_cost() -> None:
    cell = next(cell for cell in cells() if cell.part == "step")
    problem = build_problem(cell)
    names = [operand.name for operand in problem.inputs]
    module = tnc.compile(expression(problem), inputs=names, dtype=cell.dtype)
    flops = sum(module.cost({}, part).flops for part in ("forward", "backward"))
    shapes = [one.shape for made in programs(cell) for part in products(made) for one in part]
    assert 0.95 * flops <= sum(2 * math.prod(shape[:4]) for shape in shapes) <= flops


def test_what_a_product_makes_is_what_later_ones_read() -> None:
    cell = next(cell for cell in cells() if cell.part == "step")
    (parts,) = programs(cell)
    forward, backward = products(parts)
    made = {one.out for one in (*forward, *backward)}
    given = {argument.value.name for argument in parts[0].arguments}
    given |= {a.value.name for a in parts[1].arguments if a.kind == "cotangent"}
    read = {name for one in (*forward, *backward) for name in one.operands}
    assert read <= made | given
    assert read & {one.out for one in forward} & {n for one in backward for n in one.operands}


@each_cell
def test_memory_is_written_again_after_its_last_reader(cell: Cell) -> None:
    found = [one for part in products(programs(cell)[0]) for one in part]
    made: dict[str, float] = {}  # all numbers of a value are equal, as all that is given is 1
    with np.errstate(over="ignore"):
        for one, call in zip(found, calls(found, "numpy"), strict=True):
            left, right = (made.get(name, 1.0) for name in one.operands)
            made[one.out] = left * right * one.shape[3]
            np.testing.assert_allclose(call(), np.float32(made[one.out]), rtol=1e-3)


@each_cell
def test_everybody_runs_and_takes_time(cell: Cell) -> None:
    runs = contestants(cell)
    assert len(runs) == (3 if cell.part == "step" else 6)
    for run in runs.values():
        run()
    timed = times_of(cell, budget_s=0.2)
    assert timed is not None
    assert all(0 < time_ms < math.inf for time_ms in timed)
    assert library_of((3, 4, 5, 6, "float32")) in ("numpy", "torch")
