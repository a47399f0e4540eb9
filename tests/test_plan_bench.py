"""The comparison of plans: different, whole trees; scores as counted by hand; a whole run."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import tncompiler as tnc
from benchmarks import plan, plan_memory, plan_race, plan_trees
from benchmarks.plan_flops import SEEDS, compare_flops
from benchmarks.plan_networks import plan_networks
from benchmarks.plan_race import CHOICES, Race, Tree, only_network, run_race
from benchmarks.plan_score import gains, mean_gain, scores, summarise
from benchmarks.plan_trees import TREES, sample_trees
from tncompiler.planning.exchange import shape_of
from tncompiler.planning.machine import load_machine

B, I, J, K, L = tnc.indices("b i j k l", b=6, i=4, j=3, k=5, l=2)
CHAIN = tnc.contract(
    tnc.input("x", B, I),
    tnc.param("F", I, J),
    tnc.param("G", J, K),
    tnc.param("H", K, L),
    out=(B, L),
)
KEYS = [f"{backend} {part}" for backend in plan_race.BACKENDS for part in plan_race.PARTS]


def tree(predicted: float, measured: float, flops: float = 1.0) -> Tree:
    return Tree(
        ((0, 1),),
        {"forward": flops, "step": 3 * flops},
        dict.fromkeys(KEYS, predicted),
        dict.fromkeys(KEYS, measured),
    )


def race(pairs: list[tuple[float, float]], **chosen: int) -> Race:
    trees = tuple(tree(p, m, flops=k + 1) for k, (p, m) in enumerate(pairs))
    picks = {choice: chosen.get(choice.replace(", ", "_"), 0) for choice in CHOICES}
    return Race("made up", 4, trees, picks)


# ---------------------------------------------------------------------------- trees


def test_networks_have_names_of_their_own() -> None:
    names = [name for name, _ in plan_networks()]
    assert len(names) == len(set(names)) >= 30


def test_trees_are_different_and_the_chosen_come_first() -> None:
    network = only_network(dict(plan_networks())["tree-9"])
    chosen = [next(iter(sample_trees(network, [((0, 1), *_rest(9))])))]
    orders = sample_trees(network, chosen)
    assert orders[0] == chosen[0]
    assert 12 <= len(orders) <= TREES
    assert len({shape_of(pairs, 9) for pairs in orders}) == len(orders)
    assert all(len(pairs) == 8 for pairs in orders)
    assert orders == sample_trees(network, chosen)


def _rest(count: int) -> list[tuple[int, int]]:
    return [(k + 2, count + k) for k in range(count - 2)]


def test_a_network_of_three_has_three_trees_at_most() -> None:
    expr = tnc.contract(
        tnc.input("x", B, I), tnc.param("F", I, J), tnc.param("G", J, K), out=(B, K)
    )
    assert len(sample_trees(only_network(expr), [((0, 1), (2, 3))])) <= 3


# ---------------------------------------------------------------------------- scores


def test_correlation_and_regret() -> None:
    ordered = [(float(k), 10.0 * k) for k in range(1, 13)]
    perfect = scores([race(ordered)])
    assert [(s.spearman, s.regret, s.span) for s in perfect] == [(1.0, 1.0, 12.0)] * 4
    reversed_order = [(float(-k), 10.0 * k) for k in range(1, 13)]
    assert [s.spearman for s in scores([race(reversed_order)])] == [-1.0] * 4
    picked = scores([race(ordered, time_forward=2, flops_step=4)])
    forward, step = picked[0], picked[1]
    assert (forward.regret, forward.flops_regret) == (3.0, 1.0)
    assert (step.regret, step.flops_regret) == (1.0, 5.0)


def test_few_trees_or_close_ones_are_not_ranked() -> None:
    few = [(float(k), 10.0 * k) for k in range(1, 12)]
    close = [(float(k), 100.0 + k) for k in range(1, 13)]
    assert {s.spearman for s in scores([race(few), race(close)])} == {None}


def test_the_summary_takes_medians_and_percentiles() -> None:
    ordered = [(float(k), 10.0 * k) for k in range(1, 13)]
    found = scores([race(ordered, time_forward=pick) for pick in (0, 0, 1)])
    row = summarise(found)[0]
    assert (row["networks"], row["ranked"], row["spearman"], row["regret"]) == (3, 3, 1.0, 1.0)
    assert row["regret_95"] == pytest.approx(1.9)
    assert summarise([]) == []


def test_gains_of_training_orders() -> None:
    made = race([(1.0, 10.0), (2.0, 40.0)], time_step=0, flops_forward=1, time_forward=0)
    by_flops, by_time = gains([made])[:2]
    assert (by_flops.flops, by_flops.predicted, by_flops.measured) == (2.0, 2.0, 4.0)
    assert (by_time.flops, by_time.predicted, by_time.measured) == (1.0, 1.0, 1.0)
    assert mean_gain(gains([made]), "numpy", "flops") == pytest.approx(4.0)
    assert math.isnan(mean_gain([], "numpy", "flops"))


# ---------------------------------------------------------------------------- the run


def test_fewer_flops_than_cotengra_or_as_many() -> None:
    for name in ("lattice-4x4", "mpo-6"):
        duels = compare_flops(name, dict(plan_networks())[name])
        assert [duel.seed for duel in duels] == list(SEEDS)
        assert all(duel.ours <= duel.cotengra * (1 + 1e-9) for duel in duels)


def ticking() -> Any:
    """A clock that goes on by itself."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    return clock


def test_a_race_runs_every_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_trees, "TREES", 6)
    found = run_race("chain", CHAIN, load_machine("reference"), 0.0, ticking())
    assert found.tensors == 4 and len(found.trees) >= 5
    assert found.chosen.keys() == CHOICES.keys()
    for entry in found.trees:
        assert entry.measured_us.keys() == entry.predicted_us.keys() == set(KEYS)
        assert entry.flops["step"] > entry.flops["forward"] > 0
        assert all(value > 0 for value in entry.predicted_us.values())


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = [("chain", CHAIN)]
    monkeypatch.setattr("benchmarks.plan_networks.plan_networks", lambda: named)
    monkeypatch.setattr("benchmarks.run.set_threads", lambda count: 1)
    monkeypatch.setattr(plan, "set_threads", lambda count: 1)
    monkeypatch.setattr(plan, "MOST_S", 0.0)
    monkeypatch.setattr(plan_trees, "TREES", 4)
    monkeypatch.setattr(plan_memory, "BATCH", 64)
    monkeypatch.setattr(plan_memory, "SHARES", (1.0, 0.5))
    monkeypatch.setattr(plan_memory, "FAMILIES", {"TTMatrix": (4, (4, 4), (4, 4))})
    assert plan.main(["--out", str(tmp_path), "--minutes", "5"]) == 0
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["format"] == "tncompiler bench-plan"
    assert [r["name"] for r in record["races"]] == ["chain"] and record["skipped"] == []
    assert {p.name for p in tmp_path.iterdir()} == {
        "plan.json",
        "plan_forward.png",
        "plan_step.png",
        "plan_memory.png",
        "plan_families.png",
    }
    page = _page(tmp_path, monkeypatch)
    assert "| chain |" in page and "What is promised" in page
    assert "Memory against time" in page and "| TTMatrix |" in page


def _page(directory: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page made from a run, beside it."""
    import importlib.util

    source = Path(__file__).parent.parent / "docs" / "build_planning.py"
    spec = importlib.util.spec_from_file_location("build_planning", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, path in (("HERE", ""), ("PICTURES", "pictures"), ("DATA", "planning.json")):
        monkeypatch.setattr(module, name, directory / path)
    module.main(directory)
    return (directory / "planning.md").read_text()


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("ran")

    monkeypatch.setattr(plan_race, "run_race", never)
    found = plan.run_races([("chain", CHAIN)], load_machine("reference"), 0.0, ticking())
    assert found == ([], [], ["chain"])


def test_an_unknown_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--network", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().out


def test_records_are_data() -> None:
    found = race([(1.0, 10.0), (2.0, 40.0)])
    assert json.loads(json.dumps(asdict(found)))["name"] == "made up"
