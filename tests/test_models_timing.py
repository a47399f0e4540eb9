"""Predicted times of layers before and after: every kind has them, and they say what runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tncompiler as tnc
from tests.model_zoo import MODELS
from tests.test_nn_evaluation import CASES, FORMAT
from tncompiler.formats import LowRank, TTMatrix
from tncompiler.models.timing import NOMINAL, parts_us, predicted_costs, predicted_us
from tncompiler.nn.built import product_us
from tncompiler.nn.parts import Composite


@pytest.mark.parametrize("name", CASES)
def test_in_evaluation_no_layer_is_predicted_to_be_slower_than_the_dense_one(name: str) -> None:
    layer = CASES[name].make(format=FORMAT)
    times = predicted_us(layer)
    assert 0 < times.after <= times.before
    if isinstance(layer, Composite):
        assert parts_us(layer).keys() == layer.parts().keys()
    dense, own = predicted_costs(layer)
    assert (dense.us, own.us) == times and own.bytes < dense.bytes


@pytest.mark.parametrize("name", CASES)
def test_what_goes_from_core_to_core_is_predicted_as_such(name: str) -> None:
    layer = CASES[name].make(format=TTMatrix(2, clamp=True), implementation="factorized")
    times = predicted_us(layer)
    assert times.before == predicted_us(CASES[name].make(format=FORMAT)).before
    assert times.after > times.before  # of so small a layer


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "GraphConv", "MultiheadAttention", "LSTM"])
def test_few_numbers_are_predicted_to_be_faster(name: str) -> None:
    how: dict[str, Any] = dict(format=LowRank(4), device="meta")
    sizes = {"Conv2d": (256, 256, 3), "MultiheadAttention": (1024, 8)}.get(name, (1024, 1024))
    before, after = predicted_us(getattr(tnc.nn, name)(*sizes, **how))
    assert after < 0.7 * before


def test_a_sequence_has_one_product_and_a_product_for_each_position() -> None:
    layer = tnc.nn.LSTM(32, 32, format=FORMAT)
    times = parts_us(layer)
    assert times["weight_ih_l0"].before == product_us(layer.ih_l0, NOMINAL)
    assert times["weight_hh_l0"].before == NOMINAL * product_us(layer.hh_l0, 1)
    assert predicted_us(layer).before == sum(pair.before for pair in times.values())
    attention = tnc.nn.MultiheadAttention(32, 4, format=FORMAT)
    assert predicted_us(attention).before > sum(p.before for p in parts_us(attention).values())


def test_kernels_larger_than_the_image_have_times() -> None:
    assert predicted_us(tnc.nn.Conv1d(2, 2, 200, dilation=2, format=FORMAT)).after > 0


def test_a_table_too_large_to_be_kept_is_read_core_by_core(monkeypatch: Any) -> None:
    layer = tnc.nn.Embedding(30, 12, format=FORMAT)
    whole = predicted_us(layer).after
    monkeypatch.setattr("tncompiler.nn.built.LARGEST_KEPT", 10)
    assert predicted_us(layer).after > whole
    built = tnc.nn.Embedding(30, 12, format=FORMAT, implementation="reconstructed")
    assert predicted_us(built).after > whole


def test_what_is_no_layer_has_no_times() -> None:
    with pytest.raises(TypeError, match="Linear"):
        predicted_us(nn.Linear(2, 2))


@pytest.mark.parametrize("name", MODELS)
def test_the_report_has_times_for_every_weight_of_a_layer(name: str) -> None:
    torch.manual_seed(0)
    case = MODELS[name]
    config = {**{pattern: LowRank(2) for pattern in case.patterns}, "*": LowRank(2)}
    report = tnc.tensorize_(case.make(), config)
    for layer in report.layers:
        if layer.name.endswith("qkv_weight"):  # a parameter that its module reads itself
            assert layer.us_before is layer.us_after is None
        else:
            assert 0 < layer.us_after <= layer.us_before
