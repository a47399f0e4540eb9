"""tnc.Search: the knapsack, what is measured, budgets that hold, stopping and going on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tncompiler as tnc
from tests.model_zoo import MODELS, Language, rows
from tests.test_tensorize import assert_unchanged, snapshot
from tncompiler.compression import measuring
from tncompiler.compression.knapsack import Option, frontier, relaxed_loss, solve
from tncompiler.compression.store import Store
from tncompiler.formats import TT, Dense, LowRank, TTMatrix
from tncompiler.ir.errors import ArgumentError, BudgetError, FileFormatError
from tncompiler.models.timing import predicted_costs

FEW: dict[str, Any] = dict(formats=[LowRank(), TTMatrix()], levels=(0.2, 0.4, 0.7), modes=(2,))


def model() -> nn.Sequential:
    """Two layers of full rank and one that is nearly of rank 2, in the middle."""
    torch.manual_seed(0)
    made = nn.Sequential(
        *(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 24))
    )
    with torch.no_grad():
        made[2].weight.copy_(torch.randn(32, 2) @ torch.randn(2, 32) / 8)
    return made


def examples() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, 24, generator=generator) for _ in range(2)]


def error(changed: nn.Module, original: nn.Module) -> float:
    x = torch.cat(examples())
    with torch.no_grad():
        return float((changed(x) - original(x)).norm() / original(x).norm())


# ---------------------------------------------------------------------------- the knapsack


def random_groups(rng: np.random.Generator) -> list[list[Option]]:
    sizes = rng.integers(1, 5, size=rng.integers(1, 5))
    return [
        [Option(float(rng.integers(0, 50)), float(rng.random())) for _ in range(size)]
        for size in sizes
    ]


def best_of_all(groups: list[list[Option]], budget: float) -> float | None:
    losses = [
        sum(option.loss for option in choice)
        for choice in itertools.product(*groups)
        if sum(option.cost for option in choice) <= budget
    ]
    return min(losses, default=None)


def test_the_knapsack_is_exact_and_the_bound_is_one() -> None:
    rng = np.random.default_rng(0)
    unmet = 0
    for _ in range(200):
        groups, budget = random_groups(rng), float(rng.integers(1, 120))
        wanted = best_of_all(groups, budget)
        if wanted is None:
            unmet += 1
            with pytest.raises(BudgetError, match="cheapest"):
                solve(groups, budget)
            continue
        # costs are whole numbers: with that many steps none is rounded
        found = solve(groups, budget, grid=int(budget))
        assert found.loss == pytest.approx(wanted)
        assert found.cost <= budget and found.bound <= wanted + 1e-12
        assert solve(groups, budget).loss >= wanted - 1e-12
    assert unmet


def test_the_bound_is_reached_where_one_group_is_mixed() -> None:
    groups = [[Option(0, 1.0), Option(10, 0.0)]]
    assert relaxed_loss(groups, 5) == pytest.approx(0.5)
    assert relaxed_loss(groups, 10) == 0.0


def test_what_fits_only_without_rounding_is_found() -> None:
    groups = [[Option(1 / 3, 1.0)] for _ in range(3)]
    assert solve(groups, 1.0, grid=4).choice == (0, 0, 0)


def test_the_frontier_falls() -> None:
    groups = random_groups(np.random.default_rng(3))
    points = frontier(groups)
    for before, after in itertools.pairwise(points):
        assert after.cost >= before.cost and after.loss <= before.loss
    assert points[-1].loss == pytest.approx(sum(min(o.loss for o in g) for g in groups))


# ---------------------------------------------------------------------------- choosing


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.9, 1500])
def test_a_budget_holds_for_the_whole_model(budget: float) -> None:
    changed = model()
    report = tnc.tensorize_(changed, tnc.Search(budget, **FEW), calibration=examples())
    count = sum(p.numel() for p in changed.parameters())
    allowed = budget * report.parameters_before if budget <= 1 else budget
    assert count == report.parameters_after == report.search.cost <= allowed
    assert report.search.bound <= report.search.predicted_error


def test_formats_differ_where_that_pays() -> None:
    changed = model()
    report = tnc.tensorize_(changed, tnc.Search(0.6, **FEW), calibration=examples())
    (middle,) = [layer for layer in report.layers if layer.name == "2"]
    assert middle.parameters_after < 0.3 * middle.parameters_before
    uniform, counted = tnc.tensorize(model(), LowRank(), budget=0.63)
    assert report.parameters_after <= counted.parameters_after
    assert error(changed, model()) < 0.8 * error(uniform, model())


def test_each_trial_of_the_outer_loop_is_judged_by_the_model() -> None:
    pytest.importorskip("optuna")
    plain, tuned = model(), model()
    tnc.tensorize_(plain, tnc.Search(0.5, **FEW), calibration=examples())
    search = tnc.Search(0.5, trials=6, **FEW)
    report = tnc.tensorize_(tuned, search, calibration=examples())
    assert report.search.model_error == pytest.approx(error(tuned, model()), rel=1e-4)
    assert error(tuned, model()) <= error(plain, model()) * (1 + 1e-6)


@pytest.mark.parametrize("objective", ["latency", "memory"])
@pytest.mark.parametrize("timing", ["predicted", "measured"])
def test_other_objectives(objective: str, timing: str) -> None:
    # so wide that low rank is faster by more than other work changes what is measured
    wide = nn.Sequential(nn.Linear(640, 640), nn.Tanh(), nn.Linear(640, 640))
    search = tnc.Search(0.8, objective, [LowRank()], levels=(0.05, 0.1), timing=timing)
    found = search.run(wide, torch.randn(128, 640))
    assert 0 < found.cost <= found.budget and found.objective == objective
    assert found.rules and all(a.error >= b.error for a, b in itertools.pairwise(found.pareto))
    if timing == "predicted":
        rules = {name: found.rules.get(name, tnc.Rule(Dense())) for name in ("0", "2")}
        layers = [layer for layer in tnc.tensorize(wide, rules)[0] if hasattr(layer, "cores")]
        costs = [predicted_costs(layer)[1] for layer in layers]  # type: ignore[index]
        place = 0 if objective == "latency" else 1
        assert found.cost == pytest.approx(sum(cost[place] for cost in costs))


@pytest.mark.parametrize("name", ["vision", "encoder", "recurrent", "language", "the model itself"])
def test_every_kind_of_layer_is_searched(name: str) -> None:
    torch.manual_seed(0)
    case = MODELS[name]
    changed = case.make()
    search = tnc.Search(0.6, formats=[TT(), LowRank()], levels=(0.3, 0.6), modes=(2,))
    report = tnc.tensorize_(changed, search, calibration=case.example())
    assert report.layers and report.parameters_after <= 0.6 * report.parameters_before
    changed(case.example())


def test_tied_weights_are_one_weight() -> None:
    changed = Language()
    tokens = torch.randint(60, (4, 7))
    tnc.tensorize_(changed, tnc.Search(0.4, **FEW), calibration=tokens)
    assert changed.wte.cores is not changed.lm_head.cores
    assert changed.wte.held_cores()[0] is changed.lm_head.held_cores()[0]


def test_equal_arguments_equal_results_whatever_the_batches_hold() -> None:
    first, second = (tnc.Search(0.5, **FEW).run(model(), examples()) for _ in range(2))
    assert first == second
    weighted = tnc.Search(0.5, **FEW).run(model(), examples(), weighted=True)
    assert weighted.predicted_error < first.predicted_error


def test_what_was_found_prints_plots_and_is_json(tmp_path: Path) -> None:
    found = tnc.Search(0.5, **FEW).run(model(), examples())
    assert f"{len(found.rules)} weights" in str(found)
    data = json.loads(found.to_json())
    assert data["budget"] == found.budget and len(data["pareto"]) == len(found.pareto) > 5
    found.plot(tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    report = tnc.tensorize_(model(), tnc.Search(0.5, **FEW), calibration=examples())
    assert json.loads(report.to_json())["search"] == data
    assert tnc.tensorize_(model(), found.rules).parameters_after == found.cost


# ---------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("after", [0, 3, 9, 15])
def test_a_search_that_was_stopped_goes_on(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = tnc.Search(0.5, store=tmp_path / "search.jsonl", **FEW)
    wanted = tnc.Search(0.5, **FEW).run(model(), examples())
    made: list[Any] = []

    def counting(*args: Any) -> Any:
        made.append(args)
        if len(made) > after:
            raise KeyboardInterrupt
        return make(*args)

    make = measuring.make
    stopped, before = model(), None
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "make", counting)
        before = snapshot(stopped)
        with pytest.raises(KeyboardInterrupt):
            search.run(stopped, examples())
    assert_unchanged(stopped, before)
    found = search.run(model(), examples())
    assert (found.rules, found.cost, found.pareto) == (wanted.rules, wanted.cost, wanted.pareto)
    with monkeypatch.context() as patch:  # now all is known
        patch.setattr(measuring, "make", lambda *_: pytest.fail("measured twice"))
        assert search.run(model(), examples()) == found


def test_an_outer_loop_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    search = tnc.Search(0.5, trials=6, store=tmp_path / "search.jsonl", **FEW)
    wanted = tnc.Search(0.5, trials=6, **FEW).run(model(), examples())
    calls: list[Any] = []

    def counting(self: Any, outputs: Any) -> float:
        calls.append(outputs)
        if len(calls) == 6:  # three weights, and two trials
            raise KeyboardInterrupt
        return error(self, outputs)

    error = measuring.Laboratory.error
    with monkeypatch.context() as patch:
        patch.setattr(measuring.Laboratory, "error", counting)
        with pytest.raises(KeyboardInterrupt):
            search.run(model(), examples())
    assert search.run(model(), examples()) == wanted
    with monkeypatch.context() as patch:
        patch.setattr(measuring.Laboratory, "error", lambda *_: pytest.fail("measured twice"))
        assert search.run(model(), examples()) == wanted


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    search = tnc.Search(0.5, store=path, **FEW)
    wanted = search.run(model(), examples())
    path.write_bytes(path.read_bytes()[:-9])
    assert search.run(model(), examples()) == wanted


@pytest.mark.parametrize("text", ["nothing\n", "[]\n", '{"format": "tncompiler search"}\n{}\n'])
def test_a_store_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    path.write_text(text)
    with pytest.raises(FileFormatError, match="another"):
        Store(path, "this one")
    assert path.read_text() == text


def test_a_store_of_other_weights_is_refused(tmp_path: Path) -> None:
    search = tnc.Search(0.5, store=tmp_path / "search.jsonl", **FEW)
    search.run(model(), examples())
    other = model()
    with torch.no_grad():
        other[0].weight[0, 0] += 1
    with pytest.raises(FileFormatError, match="another search"):
        search.run(other, examples())


# ---------------------------------------------------------------------------- what is refused


def test_a_budget_that_nothing_meets_names_the_least() -> None:
    unchanged = model()
    before = snapshot(unchanged)
    with pytest.raises(BudgetError, match=r"the least is (\d+), of which 88 cannot be") as caught:
        tnc.tensorize_(unchanged, tnc.Search(0.02, **FEW), calibration=examples())
    assert_unchanged(unchanged, before)
    least = int(str(caught.value).split("the least is ")[1].split(",")[0])
    report = tnc.tensorize_(unchanged, tnc.Search(least, **FEW), calibration=examples())
    assert report.parameters_after == least


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(budget=0), "budget"),
        (dict(budget=True), "budget"),
        (dict(budget=0.5, objective="speed"), "latency"),
        (dict(budget=0.5, timing="guessed"), "measured"),
        (dict(budget=0.5, formats=[]), "formats"),
        (dict(budget=0.5, formats=["TT"]), "formats"),
        (dict(budget=0.5, levels=[2.0]), "level"),
        (dict(budget=0.5, levels=[]), "levels"),
        (dict(budget=0.5, levels=0.5), "levels"),
        (dict(budget=0.5, levels="0.5"), "levels"),
        (dict(budget=0.5, formats=TT()), "formats"),
        (dict(budget=0.5, modes=2), "modes"),
        (dict(budget=0.5, modes=(0,)), "number of modes is 0"),
        (dict(budget=0.5, trials=1.5), "trials"),
        (dict(budget=0.5, trials=-1), "trials"),
    ],
)
def test_arguments_that_mean_nothing(arguments: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        tnc.Search(**arguments)


@pytest.mark.parametrize("value", ["/no/such/folder/search.jsonl", "/"])
def test_a_store_that_cannot_be(value: str) -> None:
    with pytest.raises(ArgumentError, match="folder that is there"):
        tnc.Search(0.5, store=value, **FEW).run(model(), examples())


@pytest.mark.parametrize(
    ("x", "text"), [(torch.full((4, 24), torch.nan), "NaN"), (torch.zeros(0, 24), "no numbers")]
)
def test_batches_that_say_nothing(x: Tensor, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        tnc.Search(0.5, **FEW).run(model(), x)


def test_layers_that_make_zeros_can_become_anything_that_does() -> None:
    changed = model()
    with torch.no_grad():
        changed[0].weight.zero_()
        changed[0].bias.zero_()
    report = tnc.tensorize_(changed, tnc.Search(0.5, **FEW), calibration=examples())
    assert min(report.layers, key=lambda layer: layer.parameters_after).name == "0"


def test_a_layer_that_no_batch_reaches_is_named() -> None:
    changed = model()
    changed.register_module("unused", nn.Linear(64, 64))
    changed.forward = lambda x: changed[2](changed[0](x))
    with pytest.raises(BudgetError, match="'unused', which no format fits or no batch reaches"):
        tnc.Search(0.3, **FEW).run(changed, examples())


def test_a_search_needs_calls_and_weights() -> None:
    with pytest.raises(ArgumentError, match="calibration="):
        tnc.tensorize_(model(), tnc.Search(0.5))
    with pytest.raises(ArgumentError, match="no weight"):
        tnc.tensorize_(nn.Sequential(nn.ReLU()), tnc.Search(0.5), calibration=rows())
    with pytest.raises(ArgumentError, match="speed="):
        tnc.Search(0.5).run(model(), examples(), speed=1)
