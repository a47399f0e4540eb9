"""Tensorized models as plain torch (tnc.to_dense) and as ONNX."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tncompiler as tnc
from tests.model_zoo import MODELS, Language, Twice, mlp, rows
from tests.test_tensorize import assert_unchanged, config_of, snapshot
from tncompiler.formats import LowRank, TTMatrix
from tncompiler.ir.errors import ArgumentError
from tncompiler.nn.tensorized import Tensorized


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# ---------------------------------------------------------------------------- plain torch


@pytest.mark.parametrize("name", MODELS)
def test_dense_models_compute_the_same(name: str) -> None:
    case = MODELS[name]
    model, example = case.make().double(), case.example()
    example = example.double() if example.is_floating_point() else example
    tnc.tensorize_(model, config_of(case, TTMatrix(4, clamp=True)))
    before = snapshot(model)
    dense = tnc.to_dense(model)
    assert_unchanged(model, before)
    assert not any(type(part).__module__.startswith("tncompiler") for part in dense.modules())
    torch.testing.assert_close(dense(example), model(example), rtol=1e-10, atol=1e-10)


def test_ties_flags_and_modes_go_along() -> None:
    model = Language()
    tnc.tensorize_(model, LowRank(4))
    dense = tnc.to_dense(model)
    assert dense.lm_head.weight is dense.wte.weight
    twice = Twice()
    tnc.tensorize_(twice, LowRank(4))
    twice.first.cores.requires_grad_(False)
    twice.all[1].eval()
    dense = tnc.to_dense(twice)
    assert dense.first is dense.second is dense.all[0]
    assert not dense.first.weight.requires_grad and dense.all[1].weight.requires_grad
    assert dense.first.training and not dense.all[1].training


def test_one_layer_alone() -> None:
    layer = tnc.nn.Linear(24, 12, format=LowRank(4))
    dense = tnc.to_dense(layer)
    assert type(dense) is nn.Linear and isinstance(layer, Tensorized)
    x = rows()
    torch.testing.assert_close(dense(x), layer(x))
    with pytest.raises(ArgumentError, match="got a int"):
        tnc.to_dense(3)  # type: ignore[type-var]


# ---------------------------------------------------------------------------- ONNX


def onnx_result(model: nn.Module, example: Tensor, other: Tensor) -> Any:
    """What ONNX's reference evaluator makes of an input of another batch than was traced."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    evaluator = pytest.importorskip("onnx.reference", reason="onnx is not installed")
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=shapes)
    assert program is not None
    graph = program.model_proto
    (result,) = evaluator.ReferenceEvaluator(graph).run(
        None, {graph.graph.input[0].name: other.numpy()}
    )
    return torch.from_numpy(result)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", [LowRank(4, clamp=True), TTMatrix(4, clamp=True)])
def test_models_as_onnx(format: Any) -> None:
    model = mlp().eval()
    tnc.tensorize_(model, format)
    x = torch.randn(9, 24)
    torch.testing.assert_close(onnx_result(model, rows(), x), model(x).detach())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tied_embeddings_as_onnx() -> None:
    model = Language().eval()
    tnc.tensorize_(model, TTMatrix(4, clamp=True))
    tokens = torch.randint(60, (3, 7))
    result = onnx_result(model, torch.randint(60, (2, 7)), tokens)
    torch.testing.assert_close(result, model(tokens).detach(), rtol=1e-4, atol=1e-5)
