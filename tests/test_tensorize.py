"""tensorize_ on whole models: what becomes a network, what stays and why, and what is reported."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import parametrizations, prune, weight_norm

import tncompiler as tnc
from tests.model_zoo import MODELS, Case, Conv1D, FusedParameter, Language, Twice, mlp, rows
from tncompiler.formats import CP, TT, LowRank, TTMatrix
from tncompiler.ir.errors import ArgumentError, BudgetError, FormatError, UnsupportedModule
from tncompiler.models import making, swapping
from tncompiler.models.calibration import Moments
from tncompiler.models.kinds import KINDS
from tncompiler.nn import LAYERS
from tncompiler.nn.tensorized import Tensorized

FULL = 10**9  # a rank that no bond can carry, to be clamped


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def config_of(case: Case, format: Any) -> Any:
    return {**{pattern: format for pattern in case.patterns}, "*": format}


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    """All that a failure must not change: classes, objects, numbers."""
    modules = {name: (id(module), type(module)) for name, module in model.named_modules()}
    numbers = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    return modules, numbers


def assert_unchanged(model: nn.Module, before: tuple[Any, ...]) -> None:
    modules, numbers = snapshot(model)
    assert modules == before[0] and numbers.keys() == before[1].keys()
    for name, (identity, values) in numbers.items():
        assert identity == before[1][name][0]
        assert torch.equal(values.nan_to_num(), before[1][name][1].nan_to_num())


def test_the_snapshot_sees_changes() -> None:
    model = mlp()
    before = snapshot(model)
    model[1] = nn.Tanh()
    with pytest.raises(AssertionError):
        assert_unchanged(model, before)
    model, before = (again := mlp()), snapshot(again)
    model[0].weight.data[0, 0] += 1
    with pytest.raises(AssertionError):
        assert_unchanged(model, before)


# ---------------------------------------------------------------------------- what becomes what


@pytest.mark.parametrize("format", [LowRank, TT, TTMatrix])
@pytest.mark.parametrize("name", MODELS)
def test_full_rank_models_compute_the_same(name: str, format: Any) -> None:
    case = MODELS[name]
    model, example = case.make().double(), case.example()
    example = example.double() if example.is_floating_point() else example
    wanted = model(example)
    report = tnc.tensorize_(model, config_of(case, format(FULL, clamp=True)))
    assert tuple(layer.name for layer in report.layers) == case.becomes
    torch.testing.assert_close(model(example), wanted, rtol=1e-9, atol=1e-9)
    assert all(layer.error < 1e-12 for layer in report.layers)


@pytest.mark.parametrize("name", ["fused parameter", "language", "used twice", "vision"])
def test_gradients_of_full_rank_models(name: str) -> None:
    """The gradients of everything that is no weight: biases, norms, inputs."""
    case = MODELS[name]
    dense, example = case.make().double(), case.example()
    example = example.double() if example.is_floating_point() else example
    model, _ = tnc.tensorize(dense, config_of(case, LowRank(FULL, clamp=True)))
    for each in (dense, model):
        each(example).square().mean().backward()
    wanted = dict(dense.named_parameters())
    shared = [key for key in dict(model.named_parameters()) if key in wanted]
    for key in shared:
        torch.testing.assert_close(model.get_parameter(key).grad, wanted[key].grad)
    cores = [p for key, p in model.named_parameters() if key not in wanted]
    assert cores and all(core.grad is not None for core in cores)


def test_the_copy_leaves_the_model_alone() -> None:
    model = mlp()
    before = snapshot(model)
    copied, report = tnc.tensorize(model, LowRank(3))
    assert_unchanged(model, before)
    assert isinstance(copied[0], tnc.nn.Linear) and isinstance(model[0], nn.Linear)
    assert report.parameters_before == sum(p.numel() for p in model.parameters())
    assert report.parameters_after == sum(p.numel() for p in copied.parameters())


def test_tied_weights_stay_tied() -> None:
    model = Language()
    report = tnc.tensorize_(model, LowRank(5))
    assert report.layers[0].tied == ("lm_head",)
    assert isinstance(model.lm_head, tnc.nn.Linear) and isinstance(model.wte, tnc.nn.Embedding)
    for key, core in model.wte.cores.named_parameters():
        assert model.lm_head.cores.get_parameter(key) is core
    torch.testing.assert_close(model.lm_head.weight, model.wte.weight)


def test_shared_modules_stay_shared() -> None:
    model = Twice()
    report = tnc.tensorize_(model, LowRank(5))
    assert model.first is model.second is model.all[0] and isinstance(model.first, Tensorized)
    assert report.layers[0].tied == ("second", "all.0")


def test_a_tied_weight_that_stays_dense_somewhere_stays_dense() -> None:
    model = Language()
    report = tnc.tensorize_(model, {"lm_head": None, "*": LowRank(5)})
    assert model.lm_head.weight is model.wte.weight
    (skipped,) = (each for each in report.skipped if each.name == "wte")
    assert "also 'weight' of a Linear" in skipped.reason
    with pytest.raises(ArgumentError, match="share a weight"):
        tnc.tensorize_(Language(), {"lm_head": LowRank(4), "*": LowRank(5)})


def test_tied_linears_of_one_class() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    model[2].weight = model[0].weight
    x, wanted = rows(), None
    wanted = model(x)
    tnc.tensorize_(model, LowRank(24))
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    assert model[2].cores.A is model[0].cores.A and model[2].bias is not model[0].bias


def test_weights_tied_with_their_transpose_stay_dense() -> None:
    """A Conv1D holds (inputs, outputs), a Linear (outputs, inputs): layers cannot share that."""
    model = nn.Sequential(nn.Linear(24, 24), Conv1D(24, 24))
    model[1].weight = model[0].weight
    x = rows()
    wanted = model(x)
    report = tnc.tensorize_(model, LowRank(5))
    assert not report.layers and torch.equal(model(x), wanted)


def test_what_is_tensorized_already_is_left_alone() -> None:
    model = mlp()
    tnc.tensorize_(model, {"0": LowRank(3)})
    first = model[0]
    report = tnc.tensorize_(model, TT(4, clamp=True))
    assert model[0] is first and [layer.name for layer in report.layers] == ["2"]
    assert [(s.name, s.reason) for s in report.skipped] == [("0", "tensorized already")]


def test_every_layer_has_a_dense_class() -> None:
    torch_classes = {name.rpartition(".")[2]: kind.layer for name, kind in KINDS.items()}
    assert all(layer in torch_classes.values() for layer in LAYERS if hasattr(nn, layer))
    for name in KINDS:
        if name.startswith("torch."):
            module, _, cls = name.rpartition(".")
            assert getattr(nn, cls).__module__ == module


# ---------------------------------------------------------------------------- what is kept


def test_hooks_biases_modes_and_flags_are_kept() -> None:
    model, calls = mlp().double(), []
    model[2].eval()
    model[0].weight.requires_grad_(False)
    handle = model[0].register_forward_hook(lambda *_: calls.append("hook"))
    bias = model[0].bias
    tnc.tensorize_(model, LowRank(3), calibration=rows().double())
    calls.clear()
    model(rows().double())
    assert calls == ["hook"]
    handle.remove()
    model(rows().double())
    assert calls == ["hook"]
    assert model[0].training and not model[2].training
    assert model[0].bias is bias and bias.requires_grad
    assert not model[0].cores.A.requires_grad and model[2].cores.A.requires_grad
    assert all(p.dtype is torch.float64 for p in model.parameters())


def test_a_tied_bias_stays_tied() -> None:
    model = mlp()
    model.output_bias = model[2].bias
    tnc.tensorize_(model, LowRank(3))
    assert model[2].bias is model.output_bias


def test_tensorized_models_train_and_copy() -> None:
    model = Language()
    tnc.tensorize_(model, TTMatrix(6, clamp=True))
    tokens = torch.randint(60, (2, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(tokens), model(tokens))
    key, core = next(iter(copied.wte.cores.named_parameters()))
    assert copied.lm_head.cores.get_parameter(key) is core


# ---------------------------------------------------------------------------- configurations


def test_the_first_pattern_counts() -> None:
    model = MODELS["vision"].make()
    config = {"blocks.0.*": None, "*.attn.*": TT(4, clamp=True), "*.fc?": LowRank(3)}
    report = tnc.tensorize_(model, config)
    found = {layer.name: layer.format.partition("(")[0] for layer in report.layers}
    assert found == {
        "blocks.1.attn.qkv": "TT",
        "blocks.1.attn.proj": "TT",
        "blocks.1.mlp.fc1": "LowRank",
        "blocks.1.mlp.fc2": "LowRank",
    }
    reasons = {skipped.name: skipped.reason for skipped in report.skipped}
    assert reasons["head"] == reasons["blocks.0.mlp.fc1"] == "not chosen"


def test_filters_and_goals() -> None:
    model = mlp()
    seen = []

    def wide(module: nn.Module, name: str) -> bool:
        seen.append(name)
        return getattr(module, "out_features", 0) > 20

    report = tnc.tensorize_(model, LowRank(), wide, budget=0.5)
    assert seen == ["0", "2"] and [layer.name for layer in report.layers] == ["0"]
    assert 0.4 < report.layers[0].parameters_after / report.layers[0].parameters_before <= 0.5
    rules = {
        "0": tnc.Rule(TT(), tolerance=0.3, in_shape=(4, 6), out_shape=(6, 6)),
        "2": LowRank(2),
    }
    report = tnc.tensorize_(mlp(), rules)
    assert report.layers[0].error <= 0.3 and report.layers[0].in_shape == (4, 6)
    assert report.layers[1].ranks == {"r": 2}


@pytest.mark.parametrize(
    "config",
    [
        None,
        3,
        "TT",
        [LowRank(3)],
        {"0": 3},
        {0: LowRank(3)},
        LowRank,
        {"o": LowRank(3)},
        {"1": LowRank(3)},
    ],
)
def test_configurations_that_are_none(config: Any) -> None:
    model = mlp()
    before = snapshot(model)
    with pytest.raises(ArgumentError):
        tnc.tensorize_(model, config)
    assert_unchanged(model, before)


def test_arguments_that_are_none() -> None:
    with pytest.raises(ArgumentError, match="the model is a int"):
        tnc.tensorize_(3, LowRank(3))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="filter_fn"):
        tnc.tensorize_(mlp(), LowRank(3), "0")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="a rule has the format"):
        tnc.Rule(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="name one of its modules: '0'"):
        tnc.tensorize_(mlp(), {"O": LowRank(3)})
    for calibration in (3, [], [3], [rows(), None]):
        with pytest.raises(ArgumentError, match="calibration"):
            tnc.tensorize_(mlp(), LowRank(3), calibration=calibration)
    with pytest.raises(ArgumentError, match="calibration="):
        tnc.tensorize_(mlp(), LowRank(3), weighted=True)
    with pytest.raises(ArgumentError, match="budget= is given"):
        tnc.tensorize_(mlp(), LowRank(3), budget=0.5)


# ---------------------------------------------------------------------------- what stays, and why


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def pruned() -> nn.Module:
    linear = nn.Linear(24, 24)
    prune.random_unstructured(linear, "weight", 0.5)
    return linear


def eight_bit() -> nn.Module:
    linear = nn.Linear(24, 24, bias=False)
    linear.weight = nn.Parameter(torch.ones(24, 24, dtype=torch.int8), requires_grad=False)
    return linear


def quantized() -> nn.Module:
    return quantize_dynamic(nn.Sequential(nn.Linear(24, 24)))[0]


class Wrapped(Tensor):
    """A tensor subclass, as quantized and distributed weights are."""


def subclassed() -> nn.Module:
    linear = nn.Linear(24, 24)
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Wrapped))
    return linear


STAYS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forward of its own": (lambda: Doubled(24, 24), "a forward of its own"),
    "parametrized": (lambda: parametrizations.orthogonal(nn.Linear(24, 24)), "parametrized"),
    "weight_norm": (lambda: weight_norm(nn.Linear(24, 24)), "computed"),
    "pruned": (pruned, "computed"),
    "lazy": (lambda: nn.LazyLinear(24), "not initialised"),
    "meta": (lambda: nn.Linear(24, 24, device="meta"), "meta device"),
    "scripted": (lambda: torch.jit.script(nn.Linear(24, 24)), "torch.jit"),
    "quantized": (quantized, "quantized"),
    "eight bits": (eight_bit, "dtype int8"),
    "tensor subclass": (subclassed, "a Wrapped"),
    "max_norm": (lambda: nn.Embedding(9, 6, max_norm=1.0), "max_norm does not go"),
    "sparse": (lambda: nn.EmbeddingBag(9, 6, sparse=True), "sparse does not go"),
    "bilinear": (lambda: nn.Bilinear(4, 5, 6), "not chosen"),
}


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_be_replaced_stays_and_says_why(name: str) -> None:
    make, reason = STAYS[name]
    model = nn.ModuleDict({"odd": make(), "plain": nn.Linear(24, 12)})
    odd = model["odd"]
    report = tnc.tensorize_(model, LowRank(3))
    assert model["odd"] is odd and isinstance(model["plain"], Tensorized)
    (skipped,) = report.skipped
    assert skipped.name.startswith("odd") and reason in skipped.reason
    if reason != "not chosen":
        with pytest.raises(UnsupportedModule, match=re.escape("odd")):
            tnc.tensorize_(model, {"odd": LowRank(3)})


def test_parameters_of_other_modules_need_to_be_named() -> None:
    report = tnc.tensorize_(FusedParameter(), LowRank(3))
    assert [(s.name, s.reason) for s in report.skipped] == [("qkv_weight", "not chosen")]
    tied = nn.ModuleList([FusedParameter(), FusedParameter()])
    tied[1].qkv_weight = tied[0].qkv_weight
    report = tnc.tensorize_(tied, {"*.qkv_weight": LowRank(3)})
    assert not report.layers
    assert sum("cannot share" in skipped.reason for skipped in report.skipped) == 2


def test_copies_of_models_with_networks_for_parameters_are_apart() -> None:
    """torch's copies share a class, on which parametrizations are properties."""
    model = FusedParameter()
    model.extra = nn.Parameter(torch.randn(6, 6))
    tnc.tensorize_(model, {"qkv_weight": LowRank(3)})
    copied, _ = tnc.tensorize(model, {"extra": LowRank(3)})
    assert torch.equal(copied.qkv_weight, model.qkv_weight)
    assert "extra" in model._parameters and "extra" in copied.parametrizations
    dense = tnc.to_dense(copied)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(dense(x), model(x))
    assert torch.linalg.matrix_rank(copied.extra) == 3


def test_budgets_that_no_rank_meets() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 2))
    report = tnc.tensorize_(model, LowRank(), budget=0.2)
    assert [layer.name for layer in report.layers] == ["0"]
    assert "26 parameters at rank 1" in report.skipped[0].reason
    with pytest.raises(BudgetError, match="'1'"):
        tnc.tensorize_(
            nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 2)), {"1": LowRank()}, budget=0.2
        )


# ---------------------------------------------------------------------------- all or nothing


def with_nan() -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model[2].weight[3, 4] = float("nan")
    return model


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (with_nan, LowRank(3), "NaN"),
        (mlp, LowRank(13), "can carry at most 12"),
        (mlp, {"0": LowRank(3), "2": tnc.Rule(LowRank(3), out_shape=(5, 2))}, "less than the 12"),
        (mlp, {"0": LowRank(3), "2": TT()}, "no rank"),
        (mlp, {"0": LowRank(3), "2": CP(3)}, None),
    ],
)
def test_after_an_error_the_model_is_what_it_was(
    make: Callable[[], nn.Module], config: Any, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    before = snapshot(model)
    if message is None:
        monkeypatch.setattr(making, "put", failing_at_the_second())
        with pytest.raises(KeyboardInterrupt):
            tnc.tensorize_(model, config)
    else:
        with pytest.raises(FormatError, match=message) as caught:
            tnc.tensorize_(model, config)
        assert "'2'" in (caught.value.where or "")
    assert_unchanged(model, before)


def failing_at_the_second() -> Callable[..., None]:
    calls = []

    def put(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        swapping.put(*arguments)

    return put


def test_a_parameter_is_put_back_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList([FusedParameter(), nn.Linear(24, 24)])
    before = snapshot(model)
    monkeypatch.setattr(making, "put", failing_at_the_second())
    with pytest.raises(KeyboardInterrupt):
        tnc.tensorize_(model, {"*qkv_weight": LowRank(3), "*": LowRank(3)})
    assert_unchanged(model, before)
    assert "qkv_weight" in model[0]._parameters


def test_ranks_are_clamped_only_when_asked() -> None:
    report = tnc.tensorize_(mlp(), LowRank(13, clamp=True))
    assert [layer.ranks for layer in report.layers] == [{"r": 13}, {"r": 12}]


# ---------------------------------------------------------------------------- what is reported


def test_errors_and_bounds_are_those_of_the_weights() -> None:
    dense = mlp().double()
    model, report = tnc.tensorize(dense, LowRank(3), calibration=(x := rows().double()))
    for layer, old, new in zip(
        report.layers, (dense[0], dense[2]), (model[0], model[2]), strict=True
    ):
        weight = old.weight.detach().numpy()
        error = np.linalg.norm(new.weight.detach().numpy() - weight) / np.linalg.norm(weight)
        values = np.linalg.svd(weight, compute_uv=False)
        bound = np.linalg.norm(values[3:]) / np.linalg.norm(values)
        assert layer.error == pytest.approx(error) and layer.lower_bound == pytest.approx(bound)
        assert layer.parameters_before == old.weight.numel()
        assert layer.parameters_after == sum(p.numel() for p in new.cores.parameters()) - len(
            old.bias
        )
        assert layer.us_before is not None and layer.us_after is not None and layer.us_after > 0
        x = x if old is dense[0] else dense[:2](x)
        wanted = old(x)
        error = (new(x) - wanted).norm() / wanted.norm()
        assert layer.output_error == pytest.approx(error.item())


def test_the_report_as_text_and_json() -> None:
    report = tnc.tensorize_(MODELS["vision"].make(), LowRank(3))
    text = str(report)
    for layer in report.layers:
        assert layer.name in text
    assert "LowRank(rank=3)" in text and f"{report.parameters_after:,}" in text
    assert all(skipped.reason in text for skipped in report.skipped)
    data = json.loads(report.to_json())
    assert data["schema"] == 1 and len(data["layers"]) == len(report.layers)
    assert data["layers"][0]["ranks"] == {"r": 3}


def test_predicted_times_are_those_of_the_planner() -> None:
    """A layer of a tenth of the work is predicted to be faster than the dense one."""
    model = nn.Linear(1024, 1024)
    report = tnc.tensorize_(model, LowRank(16))
    (layer,) = report.layers
    assert layer.us_before is not None and layer.us_after is not None
    assert layer.us_after < layer.us_before


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "list", "generator"])
def test_calibration_in_every_form(form: str) -> None:
    x = rows()
    calls: dict[str, Any] = {
        "tensor": x,
        "tuple": (x,),
        "dict": {"input": x},
        "list": [x[:2], x[2:]],
        "generator": (part for part in (x[:2], x[2:])),
    }
    report = tnc.tensorize_(mlp(), LowRank(3), calibration=calls[form])
    torch.manual_seed(0)
    x = rows()
    assert all(layer.output_error is not None for layer in report.layers)


def test_calibration_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24), nn.Dropout(0.5), nn.Linear(24, 12))
    model[3].eval()
    tnc.tensorize_(model, LowRank(3), calibration=rows(), weighted=True)
    assert model[1].num_batches_tracked == 0 and torch.equal(model[1].running_mean, torch.zeros(24))
    assert [module.training for module in model] == [True, True, True, False]
    assert not model[0]._forward_hooks and all(p.grad is None for p in model.parameters())


def test_moments_of_few_rows_are_drawn_to_the_identity() -> None:
    """By the share that scikit-learn's estimator of Ledoit and Wolf takes."""
    for count in (5, 40, 4000):
        x = torch.randn(count, 24, dtype=torch.float64) @ torch.diag(
            torch.logspace(0, -1, 24).double()
        )
        moments = Moments()
        for part in x.split(7):
            moments(nn.Identity(), (part,), {}, part)
        wanted = LedoitWolf(assume_centered=True, store_precision=False).fit(x.numpy()).covariance_
        np.testing.assert_allclose(moments.value, wanted, rtol=1e-9)
    assert Moments().value is None


def test_weighting_by_activations_lowers_the_error_of_outputs() -> None:
    x = torch.randn(200, 24) @ torch.diag(torch.logspace(0, -2, 24)) @ torch.randn(24, 24)
    model = nn.Sequential(nn.Linear(24, 24))
    _, plain = tnc.tensorize(model, LowRank(4), calibration=x)
    _, weighted = tnc.tensorize(model, LowRank(4), calibration=x, weighted=True)
    assert weighted.layers[0].output_error < 0.8 * plain.layers[0].output_error


def test_a_bar_shows_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tnc.tensorize_(mlp(), LowRank(3))
    assert "tensorize" not in capsys.readouterr().err
    monkeypatch.setattr(making, "_PATIENCE_S", 0.0)
    tnc.tensorize_(mlp(), LowRank(3))
    assert "tensorize" in capsys.readouterr().err
    tnc.tensorize_(mlp(), LowRank(3), progress=False)
    assert "tensorize" not in capsys.readouterr().err
