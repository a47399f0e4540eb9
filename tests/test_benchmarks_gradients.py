"""The bench of gradients on trees of their own: both ways agree, and it writes what it shows."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import plan_gradients
from benchmarks.plan_gradients import WAYS, compare, main, table
from benchmarks.plan_networks import gradient_networks
from tests.test_planned_gradients import FLOPS, compiled, cores, tucker_layer
from tncompiler.planning.cost import program_cost


def test_every_network_has_leaves_that_need_no_gradient() -> None:
    networks = gradient_networks()
    assert len({name for name, _, _ in networks}) == len(networks) >= 3
    for _, expr, wrt in networks:
        assert 0 < len(wrt) < len(expr.leaves)


def test_both_ways_give_the_same_gradients() -> None:
    layer = tucker_layer(8, 16)
    found = compare("small", layer, cores(layer), FLOPS, 0.0)
    assert found.off < 1e-5
    assert set(found.steps) == set(WAYS)
    assert (found.tensors, found.gradients) == (6, 5)
    assert all(step.flops > 0 and step.measured_ms > 0 for step in found.steps.values())
    console = Console(width=140, record=True, quiet=True)
    console.print(table([found]))


def test_the_reversed_way_takes_more_flops_where_own_trees_save_them() -> None:
    layer = tucker_layer()
    dtypes = compiled(layer)[1]
    flops = []
    for replan in (False, True):
        made = plan_gradients._compiled(layer, cores(layer), FLOPS, replan=replan)
        flops.append(program_cost(made.joint(dtypes, {}, cores(layer)), {}).flops)
    assert flops[0] > 1.2 * flops[1]


def test_it_writes_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tucker_layer(8, 16)
    networks = [("small", layer, cores(layer)), ("other", layer, cores(layer)[:1])]
    monkeypatch.setattr(plan_gradients, "gradient_networks", lambda: networks)
    assert main(["--network", "s*", "--seconds", "0", "--out", str(tmp_path)]) == 0
    (record,) = json.loads((tmp_path / "gradients.json").read_text())
    assert record["network"] == "small"
    assert set(record["steps"]) == set(WAYS)
