"""Plans of 10,000 and 100,000 tensors: made at all, right in number, in bounded memory.

No time is asserted; `docs/planning.md` holds the figures.
"""

import subprocess
import sys
from dataclasses import replace

import networkx as nx
import pytest

import tncompiler as tnc
from tests.conftest import ROOT
from tests.test_plans_search import of_graph
from tncompiler.ir.sizes import Terms
from tncompiler.planning.order import check_order

GRAPHS = {
    "chain": nx.path_graph,
    "regular": lambda count: nx.random_regular_graph(3, count, seed=1),
    "lattice": lambda count: nx.grid_2d_graph(round(count**0.5), round(count**0.5)),
}


def check_plan(kind: str, count: int) -> tnc.ContractionPlan:
    plan = tnc.plan(of_graph(GRAPHS[kind](count)))
    (network,) = plan.networks
    assert check_order(network.pairs, len(network.tensors))
    assert len(network.tensors) >= 0.99 * count
    assert len(plan.steps) >= len(network.pairs)
    return plan


def test_ten_thousand_tensors() -> None:
    """10⁴ tensors"""
    plan = check_plan("chain", 10_000)
    assert plan.contraction_width < 8
    assert plan.flops < 10_000 * 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["regular", "lattice"])
def test_ten_thousand_tensors_joined_more(kind: str) -> None:
    check_plan(kind, 10_000)


def test_numbers_beyond_what_python_prints() -> None:
    """A random regular graph of 10⁵ tensors has a value of 2**24140 elements; its plan a file."""
    plan = tnc.plan(of_graph(nx.path_graph(4)))
    huge = 2**24_140
    step = replace(plan.steps[0], flops=Terms.of(huge, ()))
    plan = replace(plan, largest=huge, peak_memory=4 * huge, steps=(step, *plan.steps[1:]))
    assert tnc.ContractionPlan.from_json(plan.to_json()) == plan
    assert plan.contraction_width == 24_140


def test_many_tensors_that_touch_nothing() -> None:
    count = 1_000
    expr = tnc.contract(*(tnc.input(f"a{n}", tnc.Index(f"i{n}", 2)) for n in range(count)), out=())
    assert tnc.plan(expr).contraction_width == 0


SCRIPT = """
import resource, sys
sys.path.insert(0, ROOT)
from tests.test_plans_scale import check_plan
check_plan(sys.argv[1], 100_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRAPHS)
def test_a_hundred_thousand_tensors(kind: str) -> None:
    """10⁵ tensors in at most 2 GB"""
    done = subprocess.run(
        [sys.executable, "-c", f"ROOT = {str(ROOT)!r}\n{SCRIPT}", kind],
        capture_output=True,
        text=True,
        check=True,
    )
    kilobytes = int(done.stdout)
    assert 50_000 < kilobytes < 2_000_000
