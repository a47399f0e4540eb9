"""`max_seconds` after the search: what can be left out is, and what is made is right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tncompiler as tnc
from tests.test_layout import RATES, chain, layer, merged
from tests.test_memory_limit import deep, joint_of
from tests.test_plans_search import Clock, regular
from tncompiler import scheduling
from tncompiler.compiler import Compilation
from tncompiler.function import NumpyFunction
from tncompiler.ir.errors import PlanError
from tncompiler.ir.validate import validate
from tncompiler.planning import budget as budgets
from tncompiler.planning.budget import Budget
from tncompiler.planning.layout import lay_out
from tncompiler.planning.memory import peak_bytes, step_peak
from tncompiler.planning.order import check_order
from tncompiler.planning.recompute import choose_kept
from tncompiler.planning.sliced_network import slice_program
from tncompiler.planning.slicing import fit_program
from tncompiler.planning.ways import Ways


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that budgets see; nothing is looked up."""
    clock = Clock()
    monkeypatch.setattr(budgets, "time", clock)
    monkeypatch.setenv("TNC_CACHE", "0")
    return clock


def late() -> Budget:
    return Budget(deadline=0.0)


def after(count: int) -> Callable[[], bool]:
    """A deadline that passes once it was asked about so many times."""
    left = iter(range(count))
    return lambda: next(left, None) is None


def test_late_is_when_all_the_time_is_over(clock: Clock) -> None:
    """What is kept for later is time that searches do not have, but layouts do."""
    budget = Budget(deadline=10.0)
    budget.keep(4.0)
    clock.now = 7.0
    assert not budget.late()
    assert not budget.cut
    assert budget.spent()
    clock.now = 10.0
    assert budget.late()
    assert not Budget().late()


def test_a_layout_that_is_not_ready_in_time_is_dropped() -> None:
    program = merged(chain(64))
    assert lay_out(program, {}, Ways(RATES), lambda: True) is None
    whole = lay_out(program, {}, Ways(RATES))
    found = [lay_out(program, {}, Ways(RATES), after(count)) for count in range(60)]
    assert found[0] is None and found[-1] == whole
    for one in found:
        assert one is None or validate(one, scheduled=True)


@pytest.mark.parametrize("training", [False, True])
def test_layouts_are_not_searched_for_when_it_is_late(
    training: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """plan.cut is true, the plan is whole"""
    looked = []
    search = scheduling.lay_out
    monkeypatch.setattr(scheduling, "LAYOUT_FROM_US", 0.0)
    monkeypatch.setattr(scheduling, "lay_out", lambda *args: looked.append(1) or search(*args))
    monkeypatch.setattr(scheduling, "decide", clock.slow(scheduling.decide, 10))
    for seconds, cut in ((100.0, False), (1.0, True)):
        looked.clear()
        options = tnc.PlanOptions(max_seconds=seconds, training=training)
        plan = tnc.plan(layer("HT", 64), options=options)
        assert plan.cut is cut
        assert bool(looked) is not cut
        assert check_order(plan.ssa_path, len(plan.networks[0].tensors))


def test_values_and_gradients_are_right_in_a_plan_that_came_late(clock: Clock) -> None:
    expr = layer("Tucker", 8)
    reference = tnc.compile(expr, framework="numpy", dtype="float64", seed=0)
    plan = tnc.PlanOptions(max_seconds=1e-9)
    clock.monotonic = iter(range(10**6)).__next__  # type: ignore[method-assign]
    hurried = tnc.compile(expr, framework="numpy", dtype="float64", seed=0, plan=plan)
    x = np.random.default_rng(0).standard_normal((8, 4, 5))
    (value, pull), (wanted, pull_wanted) = hurried.vjp(x), reference.vjp(x)
    np.testing.assert_allclose(value, wanted, rtol=1e-9, atol=1e-9)
    ours, theirs = pull(np.ones_like(value)), pull_wanted(np.ones_like(value))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, atol=1e-9)


def test_cuts_are_not_looked_for_when_it_is_late() -> None:
    program = merged(chain(64))
    limit = peak_bytes(program, {}) // 4
    assert fit_program(program, {}, limit, RATES).cuts
    budget = late()
    assert not fit_program(program, {}, limit, RATES, budget=budget).cuts
    assert budget.cut
    roomy = late()
    fit_program(program, {}, 10 * limit, RATES, budget=roomy)
    assert not roomy.cut  # nothing was left out


def test_values_to_keep_are_not_looked_for_when_it_is_late() -> None:
    """Both the exact choice and the one by one."""
    small = tnc.gelu(chain(16)) * 2.0
    for expr, sizes in ((small, {}), (deep(), {"b": 64})):
        f = tnc.compile(expr, framework="numpy")
        joint, nominal = joint_of(f, sizes)
        limit = int(0.9 * step_peak_of(f, sizes))
        budget = late()
        assert choose_kept(joint, 1, nominal, limit, RATES, budget) is None
        assert budget.cut


def step_peak_of(f: NumpyFunction, sizes: dict[str, int]) -> int:
    compilation, dtypes = f.compilation, f._dtypes()
    nominal = compilation.nominal(sizes)
    cut = compilation.training(dtypes, nominal, f._differentiable(None))
    return step_peak(cut, nominal)


def test_no_index_is_sliced_when_it_is_late() -> None:
    compilation = Compilation(regular(24), None, {}, None)
    dtypes = compilation.default_dtypes("float32")
    orders = compilation.scheduled(dtypes, {})[1]
    logical = compilation.logical(dtypes)
    for budget, expected in ((Budget(), True), (late(), False)):
        sliced = slice_program(logical, orders, {}, 64, 0, budget)
        assert sliced is not None
        assert bool(sliced.cuts) is expected


def test_a_limit_that_was_given_up_says_so() -> None:
    """An error for want of time names the way out."""
    options = tnc.PlanOptions(memory_limit=3_000, max_seconds=1e-9)
    with pytest.raises(PlanError, match="max_seconds"):
        tnc.plan(chain(64), options=options)
