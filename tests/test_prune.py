"""tnc.prune and tnc.recipe: what goes, what stays, and what refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tncompiler as tnc
from tests.model_zoo import FusedParameter
from tests.test_storage import error, linear, model
from tncompiler import formats
from tncompiler.compression.pruning import WAYS
from tncompiler.ir.errors import (
    ArgumentError,
    DTypeError,
    FormatError,
    ShapeError,
    UnknownIndex,
)
from tncompiler.models.storage import Masked, Quantized, stored_cores


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def masks_of(layer: Any) -> dict[str, Masked]:
    return {name: made for name, made in stored_cores(layer) if isinstance(made, Masked)}


def agrees(layer: Any) -> None:
    """The layer computes what its weight says."""
    x = torch.randn(4, 12)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


# ---------------------------------------------------------------------------- every format


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format_is_pruned_and_comes_back_from_a_file(
    name: str, how: str, tmp_path: Path
) -> None:
    layer = linear(name)
    before = copy.deepcopy(layer)
    (row,) = tnc.prune(layer, 0.3, how).layers
    agrees(layer)
    assert row.error == pytest.approx(error(layer, before), rel=1e-3, abs=1e-6)
    assert row.numbers_before == before.core_count()
    if how == "magnitude":
        assert row.numbers_after <= round(0.7 * row.numbers_before) + 1
        assert masks_of(layer) or layer.core_count() < before.core_count()
    else:
        assert row.numbers_after == layer.core_count() and not masks_of(layer)
        single = all(bond.size == 1 for bond in tnc.interpret.bonds(layer).values())
        assert row.numbers_after <= 0.7 * row.numbers_before or single
    path = tmp_path / "layer.safetensors"
    tnc.save(layer, path)
    again = tnc.load(None, path)
    x = torch.randn(3, 12)
    assert torch.equal(again(x), layer(x)) and masks_of(again).keys() == masks_of(layer).keys()


@pytest.mark.parametrize("name", formats.FORMATS)
def test_channels_that_carry_nothing_go_without_loss(name: str) -> None:
    layer = linear(name)
    bonds = tnc.interpret.bonds(layer)
    if not bonds:
        return
    bond = max(bonds, key=lambda each: bonds[each].size)
    if bonds[bond].size < 2:
        return
    layer = tnc.interpret.ablate(layer, bond, bonds[bond].size - 1)
    before, count = copy.deepcopy(layer), layer.core_count()
    rows = tnc.prune(layer, 0.01, "bond").layers
    assert layer.core_count() < count and rows[0].error < 1e-3 and error(layer, before) < 1e-3
    agrees(layer)


# ---------------------------------------------------------------------------- what goes


def test_the_bond_that_carries_least_gets_smaller() -> None:
    layer = linear("TT", dtype=torch.float64)
    spectrum = tnc.interpret.spectrum(layer, "r2")
    weakest = tnc.interpret.canonicalize(layer)
    weakest = tnc.interpret.amplify(weakest, "r2", 2, 1e-6)
    other = copy.deepcopy(weakest)
    (row,) = tnc.prune(weakest, 0.05, "bond").layers
    assert row.how == "r2 3 → 2" and row.error < 1e-5 and error(weakest, other) < 1e-5
    expected = spectrum.discarded(2)
    assert error(weakest, layer) == pytest.approx(expected, rel=1e-3)


def test_bond_beats_structured_in_a_bad_gauge() -> None:
    layer = linear("TT", dtype=torch.float64)
    for bond, found in tnc.interpret.bonds(layer).items():
        rng = np.random.default_rng(3)
        layer = tnc.interpret.regauge(layer, bond, rng.standard_normal((found.size, found.size)))
    one, other = copy.deepcopy(layer), copy.deepcopy(layer)
    tnc.prune(one, 0.3, "bond")
    tnc.prune(other, 0.3, "structured")
    assert error(one, layer) < error(other, layer)


def test_magnitude_takes_the_smallest_numbers_of_all_cores() -> None:
    layer = linear("TT")
    numbers = torch.cat([core.detach().abs().flatten() for core in layer.held_cores()])
    kept = numbers.numel() - int(0.2 * numbers.numel())
    least = numbers.sort(descending=True).values[kept - 1]
    cores = [core.detach().clone() for core in layer.held_cores()]
    tnc.prune(layer, 0.2, "magnitude")
    for old, new in zip(cores, layer.held_cores(), strict=True):
        assert torch.equal(new.detach(), torch.where(old.abs() >= least, old, 0.0))


def test_masked_numbers_stay_zero_in_training() -> None:
    layer, x = linear("TT"), torch.randn(32, 12)
    tnc.prune(layer, 0.4, "magnitude")
    zeros = [core.detach() == 0 for core in layer.held_cores()]
    assert any(zero.any() for zero in zeros)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2, weight_decay=0.1)
    before = layer(x).detach()
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    assert not torch.equal(layer(x), before)
    for zero, core in zip(zeros, layer.held_cores(), strict=True):
        assert not core.detach()[zero].any()
    agrees(layer)


def test_masks_that_empty_a_channel_shrink_the_network() -> None:
    layer = linear("TT")
    shapes = {name: layer._core(name).shape for name in layer._table.parameters}
    mask = torch.ones(shapes["G2"], dtype=torch.bool)
    mask[1] = False
    goal = tnc.interpret.ablate(layer, "r1", 1)
    (row,) = tnc.prune(layer, masks={"G2": mask}).layers
    assert row.how.startswith("r1 3 → 2") and layer.cores.G1.shape == (3, 2)
    assert layer.cores.G2.shape == (2, 4, 3) and not masks_of(layer)
    torch.testing.assert_close(layer.weight, goal.weight)
    sizes = {name: bond.size for name, bond in tnc.interpret.bonds(layer).items()}
    assert sizes == {"r1": 2, "r2": 3, "r3": 3}


def test_masks_of_bonds_and_cores_together() -> None:
    layer = linear("TT")
    mask = torch.ones(layer.cores.G1.shape, dtype=torch.bool)
    mask[0, 0] = False
    tnc.prune(layer, masks={"r2": [True, False, True], "G1": mask})
    assert layer.cores.G2.shape == (3, 4, 2) and masks_of(layer).keys() == {"cores.G1"}
    assert layer.cores.G1[0, 0] == 0
    again = copy.deepcopy(layer)
    tnc.prune(again, masks={"G1": torch.ones(3, 3, dtype=torch.bool)})
    assert not masks_of(again)  # numbers are free once no mask holds them


def test_nothing_to_take_leaves_the_layer_as_it_is() -> None:
    layer = linear("Dense")
    (row,) = tnc.prune(layer, 0.5, "bond").layers
    assert row.how == "nothing to take" and row.error == 0
    layer = linear("TT")
    before = [core.detach().clone() for core in layer.held_cores()]
    assert tnc.prune(layer, 0).layers[0].error == 0
    assert all(map(torch.equal, before, layer.held_cores()))


def test_one_channel_always_stays() -> None:
    layer = linear("TT")
    tnc.prune(layer, 0.99)
    assert all(bond.size == 1 for bond in tnc.interpret.bonds(layer).values())
    agrees(layer)


def test_models_with_composites_tied_and_shared_cores() -> None:
    net, x = model(), torch.randn(3, 12)
    report = tnc.prune(net, 0.4)
    assert len(report.layers) == 3 and net[3].format is not None
    assert net(x)[0].shape == (3, 1, 6) and "→" in str(report)
    table = tnc.nn.Embedding(12, 10, format=formats.LowRank(2))
    head = tnc.nn.Linear(10, 12, format=formats.LowRank(2))
    head.tie(table)

    def uniform(ins: Any, outs: Any) -> Any:
        r, s = tnc.indices("r s", size=3)
        core = tnc.param("A", *ins, r)
        return tnc.contract(core, tnc.param("M", r, s), core(*outs, s))

    shared = tnc.nn.Linear(6, 6, format=formats.Custom(uniform), in_shape=6, out_shape=6)
    report = tnc.prune(nn.ModuleList([table, head, shared]), 0.4)
    assert not report.layers and "shared or constant" in report.skipped["2"]
    (row,) = tnc.prune(shared, 0.3, "magnitude").layers
    assert row.numbers_after < row.numbers_before


def test_fused_parameters_are_left_with_a_reason() -> None:
    net = FusedParameter()
    tnc.tensorize_(net, {"qkv_weight": formats.LowRank(2)})
    for report in (tnc.prune(net, 0.5), tnc.quantize(net)):
        (reason,) = report.skipped.values()
        assert not report.layers and "as a whole" in reason


def test_convolutions_and_embeddings() -> None:
    conv = tnc.nn.Conv2d(4, 8, 3, format=formats.Tucker(3, clamp=True))
    table = tnc.nn.Embedding(30, 8, format=formats.TT(3, clamp=True))
    for layer, x in ((conv, torch.randn(2, 4, 6, 6)), (table, torch.randint(30, (5,)))):
        whole = layer(x).shape
        count = layer.core_count()
        tnc.prune(layer, 0.3)
        assert layer(x).shape == whole and layer.core_count() <= 0.7 * count
        dense = layer.to_dense()
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-5)


def test_bad_requests() -> None:
    layer = linear("TT")
    for amount in (None, -0.1, 1.0, True, "half"):
        with pytest.raises(ArgumentError, match="amount is"):
            tnc.prune(layer, amount)
    with pytest.raises(ArgumentError, match="bond, structured, magnitude"):
        tnc.prune(layer, 0.5, "random")
    with pytest.raises(ArgumentError, match="give one of them"):
        tnc.prune(layer, 0.5, masks={})
    with pytest.raises(ArgumentError, match="for one layer"):
        tnc.prune(nn.Sequential(layer), masks={"r1": [True] * 3})
    with pytest.raises(UnknownIndex, match="r1, r2, r3, G1, G2, G3, G4"):
        tnc.prune(layer, masks={"q": [True]})
    for mask in ([True, False], [1, 0, 1], torch.ones(3)):
        with pytest.raises(ShapeError, match="one boolean for each number"):
            tnc.prune(layer, masks={"r1": mask})
    for nothing in (None, "abc", [[True], [True, False]]):
        with pytest.raises(ShapeError, match="the mask of 'G1' is"):
            tnc.prune(layer, masks={"G1": nothing})
    with pytest.raises(ArgumentError, match="filter_fn is 3"):
        tnc.prune(layer, 0.5, filter_fn=3)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="one boolean for each number"):
        tnc.prune(layer, masks={"G1": [True] * 3})
    with pytest.raises(ShapeError, match="leaves no channel"):
        tnc.prune(layer, masks={"r1": [False] * 3})
    tnc.quantize(layer)
    with pytest.raises(DTypeError, match="prune before quantizing"):
        tnc.prune(layer, 0.5)


@pytest.mark.parametrize("change", [lambda m: tnc.prune(m, 0.3), tnc.quantize])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_cores_without_finite_numbers_change_nothing(change: Any, number: float) -> None:
    net = nn.Sequential(linear("TT"), linear("TT"))
    with torch.no_grad():
        net[1].cores.G1[0, 0] = number
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(FormatError, match="'G1' holds NaN or infinite"):
        change(net)
    for old, new in zip(before, net.parameters(), strict=True):
        torch.testing.assert_close(old, new, equal_nan=True, rtol=0, atol=0)
    with pytest.raises(ArgumentError, match="meta device"):
        change(tnc.nn.Linear(12, 10, format=formats.TT(2), device="meta"))


# ---------------------------------------------------------------------------- in a row


def trained() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))


def test_a_recipe_does_its_steps_in_order(tmp_path: Path) -> None:
    net, batches = trained(), [torch.randn(64, 12) for _ in range(60)]
    before = copy.deepcopy(net)
    done = tnc.recipe(
        net,
        tensorize=dict(config=formats.TTMatrix(), budget=0.9),
        prune=dict(amount=0.2, how="magnitude"),
        quantize="int8",
        heal=dict(batches=batches, loss="output", lr=3e-3, progress=False),
    )
    assert [*done.steps] == ["tensorize", "prune", "quantize", "heal"]
    losses = done.steps["heal"].losses
    assert sum(losses[-10:]) < sum(losses[:10])
    held = [made for _, made in stored_cores(net)]
    assert held and all(isinstance(made, Quantized) for made in held)
    assert "quantize" in str(done)
    x = torch.randn(5, 12)
    assert (net(x) - before(x)).norm() < 0.8 * before(x).norm()
    path = tmp_path / "net.safetensors"
    tnc.save(net, path)
    assert torch.equal(tnc.load(trained(), path)(x), net(x))
    zeros = [(core == 0).any() for core in net[0].held_cores()]
    assert any(zeros)  # those of the mask, as codes


def test_recipes_with_unknown_steps_change_nothing() -> None:
    net = trained()
    with pytest.raises(ArgumentError, match="tensorize, prune, quantize, heal"):
        tnc.recipe(net, tensorize=formats.LowRank(2), polish={})
    assert type(net[0]) is nn.Linear
    with pytest.raises(ArgumentError, match="torch"):
        tnc.recipe(3)  # type: ignore[arg-type]


def test_the_helper_sees_a_layer_that_disagrees() -> None:
    layer = linear("TT")
    layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight)
    with pytest.raises(AssertionError):
        agrees(layer)
