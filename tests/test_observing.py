"""What is seen of weights' inputs on calibration batches, and what weighting by it is good for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import tncompiler as tnc
from tests.model_zoo import FusedParameter, Language
from tncompiler.formats import TT, LowRank, TTMatrix
from tncompiler.ir.errors import FormatError, UnsupportedModule
from tncompiler.models.calibration import Moments
from tncompiler.models.kinds import KINDS
from tncompiler.models.observing import OBSERVERS, given
from tncompiler.nn import LAYERS


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def seen(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """An observer of a module after a call of it."""
    observer = OBSERVERS[type(module).__name__.removeprefix("Dense")]()
    module.double()
    with torch.no_grad():
        observer(module, args, kwargs, module(*args, **kwargs))
    return observer


def mean(moments: Moments) -> Tensor:
    """The plain mean, which the value is drawn to the identity from."""
    return moments.total / moments.rows


def energy(weight: Tensor, moments: Moments) -> Tensor:
    """The mean square of outputs that the moments of the inputs tell."""
    return ((weight.double() @ mean(moments)) * weight).sum()


def square(rows: Tensor) -> Tensor:
    """The mean over the rows of their squared norms."""
    return rows.reshape(-1, rows.shape[-1]).square().sum(1).mean()


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_every_layer_is_watched() -> None:
    assert OBSERVERS.keys() == LAYERS.keys() == {kind.layer for kind in KINDS.values()}


def test_calls_by_name() -> None:
    module = nn.Linear(2, 2)
    assert given(module, (1,), {}) == given(module, (), {"input": 1}) == {"input": 1}


# ---------------------------------------------------------------------------- what is seen


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("groups", [1, 2])
def test_patches_are_those_of_unfold(groups: int, padding_mode: str) -> None:
    module = nn.Conv2d(4, 6, (2, 3), (1, 2), (2, 1), (2, 1), groups, padding_mode=padding_mode)
    x = normal(3, 4, 7, 8)
    found = seen(module, x)
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = F.pad(x, (1, 1, 2, 2), mode=mode)
    patches = F.unfold(padded, (2, 3), (2, 1), 0, (1, 2)).transpose(1, 2)  # channels first
    rows = patches.unflatten(-1, (groups, -1)).flatten(0, -2)
    close(mean(found), rows.T @ rows / len(rows))


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d"])
@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_patches_tell_the_outputs_of_any_kernel(
    name: str, padding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tncompiler.models.observing._AT_ONCE", 100)  # in parts
    module = getattr(nn, name)(3, 4, 3, padding=padding, bias=False)
    x = normal(2, 3, *(6, 5, 4)[: int(name[4])])
    close(energy(module.weight.flatten(1), seen(module, x)), square(module(x).movedim(1, -1)))
    one = seen(module, input=x[0])
    close(energy(module.weight.flatten(1), one), square(module(x[0]).movedim(0, -1)))


def test_tokens_are_counted() -> None:
    tokens = torch.tensor([[0, 3, 3], [3, 1, 0]])
    found = seen(nn.Embedding(6, 4, padding_idx=1), tokens)
    close(found.value, torch.tensor([3, 0, 1, 4, 1, 1]).double() / 10)
    bags = OBSERVERS["EmbeddingBag"]()
    bag = nn.EmbeddingBag(6, 4)
    for _ in range(2):
        bags(bag, (tokens.flatten().int(),), {"offsets": torch.tensor([0, 2])}, None)
    close(bags.value, torch.tensor([5, 3, 1, 7, 1, 1]).double() / 18)
    assert OBSERVERS["Embedding"]().value is None


@pytest.mark.parametrize("batch_first", [True, False])
def test_projections_of_attention(batch_first: bool) -> None:
    module = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=batch_first)
    query, key, value = normal(3, 4, 8), normal(3, 4, 6), normal(3, 4, 5)
    found = seen(module, query, key, value=value)
    for name, x in (("q_proj_weight", query), ("k_proj_weight", key), ("v_proj_weight", value)):
        rows = x.reshape(-1, x.shape[-1])
        close(mean(found.parts[name]), rows.T @ rows / len(rows))
    out = module(query, key, value)[0] - module.out_proj.bias
    close(energy(module.out_proj.weight, found.parts["out_proj.weight"]), square(out))


def states_before(module: nn.Module, x: Tensor, layer: int, **how: Any) -> Tensor:
    """The hidden states before all positions, as calls on the beginnings of a sequence end."""
    states = [module(x[:count], **how)[1] for count in range(1, len(x))]
    states = [state[0] if isinstance(state, tuple) else state for state in states]
    return torch.stack([state[layer] for state in states])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_states_of_recurrences(kind: str) -> None:
    module = getattr(nn, kind)(5, 4, 2, dropout=0.5).double().eval()
    x = normal(6, 3, 5)
    found = seen(module, x)
    close(mean(found.parts["weight_ih_l0"]), x.flatten(0, 1).T @ x.flatten(0, 1) / 18)
    for layer in (0, 1):
        rows = states_before(module, x, layer).flatten(0, 1)  # zeros before the first position
        close(found.parts[f"weight_hh_l{layer}"].total, rows.T @ rows)
        assert found.parts[f"weight_hh_l{layer}"].rows == 18
    below = getattr(nn, kind)(5, 4).double()
    below.load_state_dict({k: v for k, v in module.state_dict().items() if k.endswith("l0")})
    close(found.parts["weight_ih_l1"].total, (r := below(x)[0].flatten(0, 1)).T @ r)


def test_states_given_and_sequences_alone() -> None:
    module = nn.LSTM(5, 4, bidirectional=True, batch_first=True).double()
    x, states = normal(6, 5), (normal(2, 4), normal(2, 4))
    found = seen(module, x, states)
    before = torch.cat([states[0][:1], module(x, states)[0][:-1, :4]])
    close(found.parts["weight_hh_l0"].total, before.T @ before)
    after = torch.cat([module(x, states)[0][1:, 4:], states[0][1:]])
    close(found.parts["weight_hh_l0_reverse"].total, after.T @ after)
    many = seen(module, x[None], tuple(state[:, None] for state in states))
    for name, moments in many.parts.items():
        close(moments.total, found.parts[name].total)


def test_states_before_a_projection() -> None:
    module = nn.LSTM(5, 6, proj_size=2).double()
    x = normal(4, 3, 5)
    found = seen(module, x)
    close(energy(module.weight_hr_l0, found.parts["weight_hr_l0"]), square(module(x)[0]))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_packed_sequences_are_seen_one_by_one(kind: str) -> None:
    module = getattr(nn, kind)(5, 4, bidirectional=True)
    x, lengths = normal(6, 3, 5), torch.tensor([2, 6, 3])
    states: Any = normal(2, 3, 4)
    states = (states, normal(2, 3, 4)) if kind == "LSTM" else states
    packed = seen(module, pack_padded_sequence(x, lengths, enforce_sorted=False), states)
    apart = OBSERVERS[kind]()
    for k, length in enumerate(lengths):
        own = [s[:, k : k + 1] for s in (states if kind == "LSTM" else (states,))]
        apart(module, (x[:length, k : k + 1], tuple(own) if kind == "LSTM" else own[0]), {}, None)
    for name, moments in apart.parts.items():
        close(packed.parts[name].total, moments.total)


def test_features_after_they_were_propagated() -> None:
    module = tnc.nn.DenseGraphConv(nn.Linear(5, 3, bias=False), "mean")
    x, edges = normal(6, 5), torch.randint(6, (2, 14))
    close(energy(module.linear.weight, seen(module, x, edges)), square(module(x, edges)))


# ---------------------------------------------------------------------------- what it is good for


@dataclass(frozen=True)
class Case:
    """``make``: a dense layer. ``given``: what it is called with, far from white."""

    make: Callable[[], nn.Module]
    given: Callable[[], tuple[Any, ...]]


def skewed(*shape: int) -> Tensor:
    """Numbers whose last axis has directions of very different size, not along the axes."""
    mixing = torch.randn(shape[-1], shape[-1], generator=torch.Generator().manual_seed(1))
    return torch.randn(shape) * torch.logspace(0, -2, shape[-1]) @ mixing


def images(channels: int, *image: int) -> Tensor:
    return skewed(6, *image, channels).movedim(-1, 1).contiguous()


def frequent() -> Tensor:
    return (torch.rand(400) ** 6 * 40).long().reshape(40, 10)


CASES = {
    "Linear": Case(lambda: nn.Linear(16, 16), lambda: (skewed(200, 16),)),
    "Conv1d": Case(lambda: nn.Conv1d(16, 12, 3), lambda: (images(16, 20),)),
    "Conv2d": Case(lambda: nn.Conv2d(12, 12, 3, groups=2), lambda: (images(12, 9, 9),)),
    "Conv3d": Case(lambda: nn.Conv3d(8, 12, 2), lambda: (images(8, 5, 5, 5),)),
    "Embedding": Case(lambda: nn.Embedding(40, 12), lambda: (frequent(),)),
    "EmbeddingBag": Case(lambda: nn.EmbeddingBag(40, 12), lambda: (frequent(),)),
    "MultiheadAttention": Case(
        lambda: nn.MultiheadAttention(16, 2), lambda: (skewed(9, 5, 16),) * 3
    ),
    "LSTM": Case(lambda: nn.LSTM(16, 8), lambda: (3 * skewed(9, 12, 16),)),
    "GRU": Case(lambda: nn.GRU(16, 8, 2, bidirectional=True), lambda: (skewed(9, 12, 16),)),
    "DenseGraphConv": Case(
        lambda: tnc.nn.DenseGraphConv(nn.Linear(16, 16)),
        lambda: (skewed(60, 16), torch.randint(60, (2, 150))),
    ),
}


def test_every_layer_has_a_case() -> None:
    assert {name.removeprefix("Dense") for name in CASES} == LAYERS.keys()


class Holder(nn.Module):
    """A model of one layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        return self.inner(*args)


def errors(model: nn.Module, batch: Any, config: Any, **how: Any) -> list[float]:
    """The error of the outputs of the first layer, without and with weighting."""
    found = []
    for weighted in (False, True):
        how |= dict(calibration=batch, weighted=weighted, progress=False)
        _, report = tnc.tensorize(model, config, **how)
        assert all(row.weighted == weighted for row in report.layers)
        found.append(report.layers[0].output_error)
    return found


@pytest.mark.parametrize("name", CASES)
def test_weighting_lowers_the_error_of_outputs(name: str) -> None:
    case = CASES[name]
    plain, weighted = errors(Holder(case.make()), case.given(), LowRank(), budget=0.5)
    assert weighted < 0.9 * plain


def test_parameters_that_their_module_multiplies_by() -> None:
    config = {"qkv_weight": LowRank(6), "proj": None}
    model, x = FusedParameter(), skewed(4, 30, 24)
    _, report = tnc.tensorize(model, config, calibration=x, weighted=True)
    plain_model, plain = tnc.tensorize(model, config)
    assert report.layers[0].weighted and not plain.layers[0].weighted
    weighted_model, _ = tnc.tensorize(model, config, calibration=x, weighted=True)
    wanted = model(x)
    differences = [(m(x) - wanted).norm().item() for m in (weighted_model, plain_model)]
    assert differences[0] < 0.9 * differences[1]


def test_parameters_used_otherwise_are_an_error() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(12, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.table.t()

    with pytest.raises(UnsupportedModule, match=r"(?s)'table'.+fix: leave it out"):
        tnc.tensorize_(Other(), {"table": LowRank(3)}, calibration=torch.randn(3, 8), weighted=True)


def test_linears_of_one_weight_are_seen_together() -> None:
    """The error that counts is that of both: rows of the two calls in one matrix of moments."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    x = skewed(100, 16)
    tied, report = tnc.tensorize(model, LowRank(5), calibration=x, weighted=True)
    rows = torch.cat([x, model[:2](x)]).detach()
    moments = Moments()
    moments.add(rows)
    alone = tnc.nn.Linear.from_dense(model[0], LowRank(5), moments=moments.value)
    assert report.layers[0].weighted
    torch.testing.assert_close(tied[0].weight, alone.weight)


def test_a_weight_of_layers_of_two_kinds_is_not_weighted() -> None:
    tokens = torch.randint(60, (4, 9))
    report = tnc.tensorize_(Language(), LowRank(4), calibration=tokens, weighted=True)
    flags = {layer.name: layer.weighted for layer in report.layers}
    assert flags == {"wte": False, "c_fc": True, "c_proj": True}


def test_zeros_say_nothing() -> None:
    """A layer behind units that are dead on these batches is no reason to fail."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    nn.init.constant_(model[0].bias, -100.0)
    report = tnc.tensorize_(model, LowRank(3), calibration=torch.randn(9, 8), weighted=True)
    assert [layer.weighted for layer in report.layers] == [True, False]


def test_what_no_batch_reaches_is_not_weighted() -> None:
    model = Holder(nn.Linear(8, 8))
    model.unused = nn.LSTM(8, 8)
    report = tnc.tensorize_(model, LowRank(3), calibration=torch.randn(9, 8), weighted=True)
    assert [layer.weighted for layer in report.layers] == [True, False, False]


def test_torchs_transformer_runs_its_layers_while_it_is_watched() -> None:
    """In evaluation it has a kernel for a whole block, past the modules in it."""
    block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model, padding = nn.TransformerEncoder(block, 2), torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    batch = dict(src=torch.randn(3, 6, 16), src_key_padding_mask=padding)
    report = tnc.tensorize_(model, LowRank(4), calibration=batch, weighted=True)
    assert len(report.layers) == 12
    assert all(layer.weighted and layer.output_error for layer in report.layers)
    assert torch.backends.mha.get_fastpath_enabled()


# ---------------------------------------------------------------------------- moments of parts


def test_moments_by_the_names_of_parts() -> None:
    dense, moments = nn.GRU(8, 6), torch.diag(torch.logspace(0, -3, 6))
    layer = tnc.nn.GRU.from_dense(dense, LowRank(3), moments={"weight_hh_l0": moments})
    found = layer.decomposition.parts
    assert found["weight_hh_l0"].is_weighted and not found["weight_ih_l0"].is_weighted
    with pytest.raises(FormatError, match=r"(?s)names \['weight_hh'\].+fix: "):
        tnc.nn.GRU.from_dense(dense, LowRank(3), moments={"weight_hh": moments})


@pytest.mark.parametrize("format", [LowRank, TT, TTMatrix])
def test_a_diagonal_is_a_matrix_of_moments(format: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((21, 10))
    frequencies = np.random.default_rng(1).random(21) ** 4
    shapes = ((2, 3, 4), (2, 5)) if format is not LowRank else ((21,), (10,))
    for goal in (dict(rank=3), dict(tolerance=0.3)):
        how = dict(goal)
        made = format(clamp=True)
        by_row = made.decompose(weight, *shapes, moments=frequencies, **how)
        by_matrix = made.decompose(weight, *shapes, moments=np.diag(frequencies), **how)
        assert by_row.format == by_matrix.format
        for name in ("error", "lower_bound", "error_bound"):
            mine, theirs = getattr(by_row, name), getattr(by_matrix, name)
            assert (mine is None) == (theirs is None)
            assert mine is None or mine == pytest.approx(theirs, rel=1e-3, abs=1e-9)


def test_diagonals_that_are_none() -> None:
    for bad in (np.array([1.0, -1, 1, 1]), np.ones(4) * 1j, np.ones(5), np.zeros(4)):
        with pytest.raises(FormatError, match="the moments"):
            LowRank(2).decompose(np.eye(4).astype(complex), (4,), (4,), moments=bad)


def test_tables_of_many_rows_take_no_matrix_of_them() -> None:
    """30,000 rows would need 7 GB for their second moments as a matrix."""
    dense = nn.Embedding(30_000, 16)
    layer = tnc.nn.Embedding.from_dense(dense, LowRank(4), moments=torch.rand(30_000))
    assert layer.decomposition.is_weighted
