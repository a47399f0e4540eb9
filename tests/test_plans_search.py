"""Searches: drawn from the seed, equal wherever they run, cut on time, as good as cotengra's."""

import concurrent.futures as futures
import logging
import math
import re
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import cotengra
import networkx as nx
import numpy as np
import pytest

import tncompiler as tnc
from tests.oracle import exact
from tncompiler import compiler, scheduling
from tncompiler.ir.errors import PlanError
from tncompiler.ir.expressions import Expr
from tncompiler.planning import budget as budgets
from tncompiler.planning import hyper, workers
from tncompiler.planning.budget import Budget
from tncompiler.planning.candidates import Network
from tncompiler.planning.hyper import Trial, draw_trials, numbered_trials, run_trial
from tncompiler.planning.machine import load_machine
from tncompiler.planning.options import EXECUTORS
from tncompiler.planning.order import check_order, spelled
from tncompiler.planning.search import find_orders
from tncompiler.planning.tree_cost import tree_cost
from tncompiler.planning.workers import Processes


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every search is made."""
    monkeypatch.setenv("TNC_CACHE", "0")


def of_graph(graph: nx.Graph, size: int = 2) -> Expr:
    """A tensor for each node, an index of that size for each edge."""
    edges = {frozenset(edge): tnc.Index(f"e{n}", size) for n, edge in enumerate(graph.edges)}
    tensors = [
        tnc.input(f"T{n}", *(edges[frozenset((node, other))] for other in graph.neighbors(node)))
        for n, node in enumerate(graph)
    ]
    return tnc.contract(*tensors)


def regular(count: int, seed: int = 0) -> Expr:
    return of_graph(nx.random_regular_graph(3, count, seed=seed))


def network_of(inputs: Any, output: Any, sizes: Any) -> Network:
    """A network of cotengra's generators; operands without indices are applied apart."""
    labels = {name: number for number, name in enumerate(sizes)}
    terms = tuple(frozenset(labels[name] for name in term) for term in inputs if term)
    out = frozenset(labels[name] for name in output)
    return Network(terms, out, {labels[name]: n for name, n in sizes.items()}, "float32")


# the same plan wherever trials run ----------------------------------------------------------------


class Client:
    """An executor that we know nothing of but `submit`, as a Dask client's.

    Jobs run when somebody asks whether they are done.
    """

    def __init__(self) -> None:
        self.jobs: list[futures.Future[Any]] = []
        self.cancelled = 0

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        client, job = self, _Job(lambda: function(*args, **kwargs))
        job.on_cancel = lambda: setattr(client, "cancelled", client.cancelled + 1)
        self.jobs.append(job)
        return job


class _Job(futures.Future[Any]):
    on_cancel: Callable[[], None]

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self.work, self.asked = work, 0

    def done(self) -> bool:
        self.asked += 1
        if self.asked == 3 and not super().done():
            self.set_result(self.work())
        return super().done()

    def cancel(self) -> bool:
        self.on_cancel()
        return super().cancel()


def hyper_options(**options: Any) -> tnc.PlanOptions:
    return tnc.PlanOptions(search="hyper", minimize="flops", trials=5, **options)


@pytest.fixture(scope="module")
def alone() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNC_CACHE", "0")
        return tnc.plan(regular(24), options=hyper_options()).ssa_path


@pytest.mark.parametrize("parallel", [1, 2, True, False, None, "threads", "concurrent.futures"])
def test_parallel_gives_the_same_plan(parallel: Any, alone: Any) -> None:
    """reproducible from its seed also in parallel"""
    assert tnc.plan(regular(24), options=hyper_options(parallel=parallel)).ssa_path == alone


def test_executors_give_the_same_plan(alone: Any) -> None:
    """concurrent.futures pools, also a Dask client or Ray by duck type"""
    client = Client()
    with futures.ThreadPoolExecutor(3) as pool:
        for executor in (pool, client):
            plan = tnc.plan(regular(24), options=hyper_options(parallel=executor))
            assert plan.ssa_path == alone
            assert not plan.cut
    assert len(client.jobs) > 5
    assert client.cancelled == 0


def test_seeds_and_trials_matter() -> None:
    drawn = {seed: list(draw_trials(300, seed)) for seed in (0, 1)}
    assert drawn[0] == list(draw_trials(300, 0))
    assert drawn[0] != drawn[1]
    assert len({trial.settings["seed"] for trial in drawn[0]}) == len(drawn[0]) == 300


def test_trials_are_drawn_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers stand for the trials that the seed draws, in whatever order they are asked for."""
    network = network_of(*equation("reg", 0))
    drawn = list(draw_trials(9, 3))
    numbered = list(numbered_trials(9, 3))
    ran: list[Trial] = []
    note = lambda network, minimize, trial: ran.append(trial) or ()  # noqa: E731
    for method in ("greedy", "labels"):
        monkeypatch.setitem(hyper.METHODS, method, note)
    for number in (4, 0, 8, 4):
        assert not list(run_trial(network, "flops", numbered[number]))
        assert ran[-1] == drawn[number]


def test_kahypar_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {t.method for t in draw_trials(12, 0)} == {"greedy", "labels"}
    monkeypatch.setattr(hyper, "find_spec", lambda name: name == "kahypar")
    assert {t.method for t in draw_trials(12, 0)} == {"greedy", "labels", "kahypar"}


def test_a_trial_that_fails_finds_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("as some of cotengra's methods do")

    monkeypatch.setitem(hyper._TREES, "labels", broken)
    with caplog.at_level(logging.DEBUG, "tncompiler"):
        plan = tnc.plan(regular(24), options=hyper_options())
    assert "ZeroDivisionError" in caplog.text
    assert check_order(plan.ssa_path, 24)


def test_progress_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    tnc.plan(regular(16), options=hyper_options(progress=True))
    assert re.search(r"trials: +\d+%.* best ", capsys.readouterr().err)
    tnc.plan(regular(16), options=hyper_options())
    assert capsys.readouterr().err == ""


def test_values_are_right_after_every_search() -> None:
    expr = regular(12)
    rng = np.random.default_rng(0)
    arrays = {leaf.name: rng.standard_normal(leaf.shape) for leaf in expr.leaves}
    (expected,) = exact((expr,), arrays)
    for search in ("auto", "greedy", "optimal", "hyper", "left-to-right"):
        options = tnc.PlanOptions(search=search, trials=2)
        f = tnc.compile(expr, plan=options, framework="numpy", dtype="float64")
        assert np.allclose(f(**arrays), expected, rtol=1e-9)


# cut on time ----------------------------------------------------------------------------------


def processes_started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """Every process that a search starts from here on."""
    started: list[subprocess.Popen[str]] = []
    start = workers._start

    def noted() -> subprocess.Popen[str]:
        started.append(start())
        return started[-1]

    monkeypatch.setattr(workers, "_start", noted)
    return started


@pytest.mark.parametrize("search", ["optimal", "hyper"])
def test_a_stuck_trial_is_killed(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """a stuck trial is killed, best plan so far returned, `plan.cut` is true"""
    started = processes_started(monkeypatch)
    expr = regular(90)
    options = tnc.PlanOptions(search=search, max_seconds=1.0, trials=100_000)
    plan = tnc.plan(expr, options=options)
    assert plan.cut
    assert check_order(plan.ssa_path, 90)
    assert len(started) == 1
    assert started[0].wait(timeout=60) != 0  # killed, not ended
    threads = [t for t in threading.enumerate() if t.name == workers.THREAD]
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_at_least_the_greedy_plan() -> None:
    """at least the greedy plan always comes back"""
    greedy = tnc.plan(regular(60), options=tnc.PlanOptions(search="greedy", trials=1))
    for search in ("optimal", "hyper", "auto", "greedy"):
        plan = tnc.plan(regular(60), options=tnc.PlanOptions(search=search, max_seconds=1e-9))
        assert plan.cut
        assert len(plan.ssa_path) == len(greedy.ssa_path)


def test_a_cut_on_an_executor_cancels() -> None:
    client = Client()
    plan = tnc.plan(regular(40), options=hyper_options(parallel=client, max_seconds=1e-9))
    assert plan.cut
    assert client.cancelled == len(client.jobs) > 0


def test_time_enough_changes_nothing(alone: Any) -> None:
    plan = tnc.plan(regular(24), options=hyper_options(max_seconds=300))
    assert plan.ssa_path == alone
    assert not plan.cut


def test_small_networks_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started = processes_started(monkeypatch)
    plan = tnc.plan(regular(8), options=tnc.PlanOptions(max_seconds=60))
    assert not plan.cut
    assert started == []


class Clock:
    """Stands for time.monotonic: moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def slow(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        """The function, taking so long."""

        def slowly(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return slowly


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that budgets see."""
    clock = Clock()
    monkeypatch.setattr(budgets, "time", clock)
    return clock


@pytest.mark.parametrize("seconds", [5, 15])
def test_the_time_of_a_plan_begins_with_the_call(
    seconds: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lowering is counted in"""
    monkeypatch.setattr(scheduling, "lower", clock.slow(scheduling.lower, 10))
    for training in (False, True):
        options = tnc.PlanOptions(max_seconds=seconds, training=training)
        assert tnc.plan(regular(8), options=options).cut is (seconds < 10)


@pytest.mark.parametrize("seconds", [15, 25])
def test_plans_for_sizes_around_a_free_one_share_the_time(
    seconds: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size of 200 is planned for at 128 and at 256, in 10 seconds each."""
    monkeypatch.setattr(scheduling, "decide", clock.slow(scheduling.decide, 10))
    b, *bonds = tnc.indices("b i j k", i=8, j=8, k=8)
    chain = zip((b, *bonds), (*bonds, tnc.Index("l", 8)), strict=True)
    expr = tnc.contract(*(tnc.input(f"a{n}", *pair) for n, pair in enumerate(chain)))
    compilation = compiler.Compilation(expr, None, {}, tnc.PlanOptions(max_seconds=seconds))
    for _ in range(2):  # the second finds the searches of the first, and whether they were cut
        assert compilation.plan({b.size: 200}).cut is (seconds < 20)


def test_time_is_kept_for_what_comes_after_the_search(clock: Clock) -> None:
    """scheduling is counted in"""
    budget = Budget(deadline=10.0)
    budget.keep(3.0)
    budget.keep(2.0)
    assert budget.left == 7.0
    clock.now = 8.0
    assert budget.spent()
    short = Budget(deadline=9.0)
    short.keep(100.0)
    assert short.left == pytest.approx(0.15)
    endless = Budget()
    endless.keep(100.0)
    assert endless.left is None


def test_more_is_kept_for_larger_networks(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(Budget, "keep", lambda _, seconds: kept.append(seconds))
    for count, training in ((8, False), (80, False), (80, True)):
        tnc.plan(regular(count), options=tnc.PlanOptions(max_seconds=1, training=training))
    assert 0 < kept[0] < kept[1] < kept[2]


def test_what_was_found_before_the_cut_is_taken() -> None:
    """Orders stream in: the best of those that came in time."""
    network = network_of(*equation("reg", 3))
    budget = Budget(time.monotonic() + 60)
    found = []
    processes = Processes(network, "flops", budget, 1)
    for _, order in processes.run([Trial("one greedy", {"seed": 0}), Trial("exact")]):
        found.append(order)
        budget.deadline = time.monotonic()
    processes.close()
    assert found == list(run_trial(network, "flops", Trial("one greedy", {"seed": 0})))
    assert budget.cut


def test_a_process_that_dies_loses_its_trial_only(caplog: pytest.LogCaptureFixture) -> None:
    network = network_of(*equation("reg", 1))
    trials = [Trial("no such method"), Trial("one greedy", {"seed": 0})]
    processes = Processes(network, "flops", Budget(), 1)
    with caplog.at_level(logging.DEBUG, "tncompiler"):
        found = list(processes.run(trials))
    processes.close()
    assert [number for number, _ in found] == [1]
    assert "was lost with its process" in caplog.text


# never worse than cotengra's own default ----------------------------------------------------------

_KINDS = ("reg", "hyper", "tree", "lattice", "randreg", "perverse")


def equation(kind: str, seed: int) -> tuple[Any, Any, Any]:
    """A network of cotengra's generators: its inputs, output and sizes."""
    make = cotengra.utils
    inputs, output, _, sizes = {
        "reg": lambda: make.rand_equation(24, 3, n_out=2, seed=seed),
        "hyper": lambda: make.rand_equation(18, 3, n_hyper_in=4, n_out=1, seed=seed),
        "tree": lambda: make.tree_equation(30, d_max=5, n_outer=2, seed=seed),
        "lattice": lambda: make.lattice_equation([4, 3 + seed], d_max=3, seed=seed),
        "randreg": lambda: make.randreg_equation(20, 3, d_max=3, seed=seed),
        "perverse": lambda: make.perverse_equation(16, seed=seed),
    }[kind]()
    return inputs, output, sizes


def default_flops(network: Network, trials: int) -> float:
    """The flops of cotengra's own default hyper-search, with as many trials."""
    inputs, output, sizes = spelled(network.terms, network.output, network.sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kahypar is not installed
        optimizer = cotengra.HyperOptimizer(
            minimize="flops", max_repeats=trials, parallel=False, progbar=False
        )
        tree = optimizer.search(inputs, output, {name: int(n) for name, n in sizes.items()})
    return flops_of(network, tuple((a, b) for a, b in tree.get_ssa_path()))


def flops_of(network: Network, order: Any) -> float:
    return tree_cost(network, order, "flops", load_machine("reference").planning)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]
)
@pytest.mark.parametrize("kind", _KINDS)
def test_never_more_flops_than_cotengra(kind: str, seed: int) -> None:
    """with `minimize="flops"` never above cotengra's default at equal trials and seed"""
    network = network_of(*equation(kind, seed))
    options = tnc.PlanOptions(search="hyper", minimize="flops", trials=4)
    ours = find_orders(network, options)[0]
    assert flops_of(network, ours) <= default_flops(network, 4)


@pytest.mark.parametrize("seed", [9, *(pytest.param(s, marks=pytest.mark.slow) for s in range(8))])
def test_scalars_cost_no_more_than_in_cotengras_tree(seed: int) -> None:
    """Scalar operands are tensors of its tree; ours have them in their smallest tensor."""
    inputs, output, _, sizes = cotengra.utils.rand_equation(
        9, 3, n_out=1, d_min=2, d_max=4, seed=seed
    )
    inputs += [(), ()]
    indices = {name: tnc.Index(f"k{n}", size) for n, (name, size) in enumerate(sizes.items())}
    leaves = [tnc.input(f"x{n}", *(indices[k] for k in term)) for n, term in enumerate(inputs)]
    expr = tnc.contract(*leaves, out=tuple(indices[k] for k in output))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kahypar is not installed
        optimizer = cotengra.HyperOptimizer(
            minimize="flops", max_repeats=8, parallel=False, progbar=False
        )
        tree = optimizer.search(inputs, output, sizes)
    theirs = 0
    for parent, left, right in tree.traverse():
        joined = {*tree.get_legs(left), *tree.get_legs(right)}
        is_sum = joined != {*tree.get_legs(parent)}
        theirs += (1 + is_sum) * math.prod(sizes[k] for k in joined)
    options = tnc.PlanOptions(minimize="flops", search="hyper", trials=8)
    assert tnc.plan(expr, options=options).flops <= theirs


def test_scalars_go_into_the_smallest_tensor() -> None:
    """Here a result in the middle of the order, of two elements."""
    i, j, k = tnc.indices("i j k", i=8, j=2, k=8)
    s, a, b = tnc.input("s"), tnc.input("a", i), tnc.input("b", i, j)
    expr = tnc.contract(s, s, a, b, tnc.input("c", j, k), out=(k,))
    plan = tnc.plan(expr, options=tnc.PlanOptions(minimize="flops"))
    assert plan.flops == 2 * 8 * 2 + 1 + 2 + 2 * 2 * 8
    values = {leaf.name: np.full(leaf.shape, 2.0) for leaf in expr.leaves}
    g = tnc.compile(expr, framework="numpy", dtype="float64")
    assert np.array_equal(g(**values), np.full(8, 8 * 2 * 2.0**5))


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        *({"max_seconds": s} for s in (0, -1, float("nan"), float("inf"), "1", True)),
        *({"parallel": p} for p in (0, -2, "fortran", 1.5, [2], {})),
        *({"progress": p} for p in ("yes", 1, None)),
        *({"trials": t} for t in (True, -1, None)),
        *({"seed": s} for s in (True, -1, None)),
        *({"memory_limit": m} for m in (0, -1, "none of it")),
    ],
    ids=str,
)
def test_bad_options_raise(options: dict[str, Any]) -> None:
    """non-positive limits: typed errors"""
    with pytest.raises(PlanError, match=next(iter(options))):
        tnc.PlanOptions(**options)


@pytest.mark.parametrize("name", ["minimize", "search", "parallel"])
def test_unknown_names_list_the_valid_ones(name: str) -> None:
    """unknown objectives (the error lists the valid ones)"""
    valid = {
        "minimize": ("time", "flops", "memory"),
        "search": ("auto", "greedy", "optimal", "hyper"),
        "parallel": EXECUTORS,
    }
    with pytest.raises(PlanError) as raised:
        tnc.PlanOptions(**{name: "beauty"})
    assert all(word in str(raised.value) for word in valid[name])


def test_symbols_without_a_value_raise() -> None:
    """symbols without a value: typed errors"""
    b, i = tnc.indices("b i")
    expr = tnc.input("x", b, i) @ tnc.input("w", i)
    for sizes in ({"b": None}, {"c": 3}, {"b": "n"}, {"b": -1}):
        with pytest.raises(tnc.TncError):
            tnc.plan(expr, sizes=sizes)
