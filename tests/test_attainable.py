"""Products of a cell, counted and timed alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tncompiler as tnc
from benchmarks.attainable import product_s, products
from benchmarks.cases import Cell, load_cases, select
from benchmarks.peers.ours import expression
from benchmarks.problems import build_problem

CELLS = ("tucker-32x32-r8/b256/float32/forward", "ttm-1024-r8/b16/float32/step")


def cells() -> Iterator[Cell]:
    return (cell for cell in select(load_cases(), "all", "*") if cell.id in CELLS)


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: cell.id)
def test_products_are_all_the_flops_of_a_cell(cell: Cell) -> None:
    problem = build_problem(cell)
    names = [operand.name for operand in problem.inputs]
    module = tnc.compile(expression(problem), inputs=names, dtype=cell.dtype)
    parts = ("forward",) if cell.part == "forward" else ("forward", "backward")
    flops = sum(module.cost({}, part).flops for part in parts)
    counted = sum(n * 2 * b * m * k * c for (b, m, k, c, _), n in products(cell).items())
    assert 0.95 * flops <= counted <= flops  # sums over one operand are no products


def test_a_product_takes_time() -> None:
    assert 0 < product_s((3, 4, 5, 6, "float32")) < 1
