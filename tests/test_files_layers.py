"""tnc.save and tnc.load of convolutions and of layers with several weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tncompiler as tnc
from tests.model_zoo import MODELS
from tncompiler import formats
from tncompiler.ir.errors import TncError


@pytest.mark.parametrize("name", ["vision", "encoder", "recurrent"])
def test_a_tensorized_model_comes_back_into_a_dense_one(name: str, tmp_path: Path) -> None:
    """Ranks that differ from weight to weight are found again."""
    torch.manual_seed(0)
    case = MODELS[name]
    model = case.make().eval()
    tnc.tensorize_(model, formats.TTMatrix(), tolerance=0.3)
    tnc.save(model, tmp_path / "model.safetensors")
    other = tnc.load(case.make(), tmp_path / "model.safetensors").eval()
    x = case.example()
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", ["vision", "encoder", "recurrent"])
def test_a_tensorized_model_goes_back_to_plain_torch(name: str) -> None:
    torch.manual_seed(0)
    case = MODELS[name]
    model = case.make().double().eval()
    tnc.tensorize_(model, formats.TTMatrix(), tolerance=0.3)
    dense = tnc.to_dense(model)
    assert not any(type(part).__module__.startswith("tncompiler") for part in dense.modules())
    x = case.example().double()
    torch.testing.assert_close(dense(x), model(x))


def test_layers_are_made_anew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 8)
    edges = torch.tensor([[0, 1], [1, 2]])
    dense = nn.Conv2d(4, 6, 3, groups=2, padding="same", padding_mode="circular")
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (tnc.nn.Conv2d.from_dense(dense, formats.TTMatrix(), tolerance=0.5), (x.reshape(4, 3, 4),)),
        (tnc.nn.LSTM.from_dense(nn.LSTM(8, 6, 2), formats.TT(), tolerance=0.5), (x,)),
        (tnc.nn.MultiheadAttention(8, 2, add_bias_kv=True, format=formats.LowRank(2)), (x, x, x)),
        (tnc.nn.GraphConv(8, 4, format=formats.LowRank(2), normalization="mean"), (x[:, 0], edges)),
    ]
    model = nn.ModuleList([layer for layer, _ in calls])
    with torch.no_grad():
        model[1].hh_l1.cores.G1.requires_grad_(False)
    tnc.save(model, tmp_path / "layers.safetensors")
    other = tnc.load(None, tmp_path / "layers.safetensors")
    assert repr(other) == repr(model)
    assert not other[1].hh_l1.cores.G1.requires_grad and other[1].hh_l0.cores.G1.requires_grad
    for made, (layer, given) in zip(other, calls, strict=True):
        torch.testing.assert_close(made(*given), layer(*given), rtol=0, atol=0)


def test_a_layer_of_other_sizes_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(tnc.nn.GRU(6, 4, format=formats.LowRank(2)))
    tnc.save(model, tmp_path / "gru.safetensors")
    for other in (nn.LSTM(6, 4), nn.Linear(6, 4)):
        with pytest.raises(TncError, match=r"(?s).+fix: "):
            tnc.load(nn.Sequential(other), tmp_path / "gru.safetensors")
