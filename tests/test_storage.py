"""Cores in few bits: what codes hold, gauges that lose less, files, and bad requests."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tncompiler as tnc
from tests.test_formats import make
from tncompiler import formats
from tncompiler.compression.changed import layer_bytes
from tncompiler.formats.bonds import Sites
from tncompiler.formats.equalizing import equalized_cores, rounding_gauges
from tncompiler.ir.errors import (
    ArgumentError,
    DTypeError,
    FileFormatError,
    ShapeError,
    UnknownIndex,
    UnsupportedModule,
)
from tncompiler.models import storage
from tncompiler.models.storage import SCHEMES, Quantized, packed, stored_cores, unpacked

SHAPES: dict[str, Any] = dict(in_shape=(3, 4), out_shape=(2, 5))
WORST = {"int8": 0.02, "int4": 0.35, "fp8": 0.08}  # relative, of random weights


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def linear(name: str = "TT", rank: int = 3, **options: Any) -> Any:
    return tnc.nn.Linear(12, 10, format=make(name, rank, clamp=True), **SHAPES, **options)


def model() -> nn.Sequential:
    recurrent = tnc.nn.GRU(12, 6, format=formats.LowRank(2), batch_first=True)
    return nn.Sequential(linear("TTMatrix"), nn.Unflatten(1, (1, 10)), nn.Linear(10, 12), recurrent)


def error(new: Any, old: Any) -> float:
    a, b = new.weight.detach().double(), old.weight.detach().double()
    return float((a - b).norm() / b.norm())


# ---------------------------------------------------------------------------- codes


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_come_back_within_half_a_step(scheme: str, axis: int | None) -> None:
    core = torch.randn(3, 5, 4) * torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    made = Quantized(scheme, (3, 5, 4), axis)
    scale = made.right_inverse(core)
    back = made(scale)
    assert back.shape == core.shape and made.codes.dtype is SCHEMES[scheme].dtype
    assert scale.shape == tuple(n if k == axis else 1 for k, n in enumerate(core.shape))
    plain = SCHEMES[scheme]
    rest = [k for k in range(3) if k != axis]
    step = core.abs().amax(rest, keepdim=True) / plain.largest
    bound = step / 2 if plain.is_whole else core.abs() / 16 + step
    # clipping may only lower the squared error of a slice below that of plain rounding
    worst = (bound.square() * torch.ones_like(core)).sum(rest)
    assert ((back - core).square().sum(rest) <= worst * 1.001).all()


@pytest.mark.parametrize("count", [0, 1, 6, 7])
def test_two_codes_share_a_byte(count: int) -> None:
    codes = torch.arange(count) % 15 - 7
    held = packed(codes.float())
    assert held.dtype is torch.uint8 and len(held) == (count + 1) // 2
    assert torch.equal(unpacked(held, (count,)).long(), codes)


def test_cores_of_zeros_stay_zeros() -> None:
    for scheme in SCHEMES:
        made = Quantized(scheme, (2, 2), 0)
        assert not made(made.right_inverse(torch.zeros(2, 2))).any()


# ---------------------------------------------------------------------------- layers


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format_is_quantized_and_comes_back_from_a_file(
    name: str, scheme: str, tmp_path: Path
) -> None:
    layer, x = linear(name), torch.randn(4, 12)
    before = copy.deepcopy(layer)
    report = tnc.quantize(layer, scheme)
    (row,) = report.layers
    assert row.error == pytest.approx(error(layer, before), rel=1e-3, abs=1e-6)
    assert row.error < WORST[scheme]
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    codes = [made.codes for _, made in stored_cores(layer) if isinstance(made, Quantized)]
    scales = [p for n, p in layer.named_parameters() if n != "cores.bias"]
    assert len(codes) == len(scales) == len(layer._table.parameters)
    sizes = sum(t.numel() * t.element_size() for t in (*codes, *scales))
    assert row.bytes_after == sizes == layer_bytes(layer) and row.bytes_before == layer_bytes(
        before
    )
    if name == "Dense":
        assert row.bytes_after < 0.45 * row.bytes_before
    path = tmp_path / "layer.safetensors"
    tnc.save(layer, path)
    again = tnc.load(None, path)
    assert torch.equal(again(x), layer(x)) and [*again.state_dict()] == [*layer.state_dict()]
    loaded = tnc.load(linear(name), path)
    assert torch.equal(loaded(x), layer(x))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_gauge_never_costs_and_helps_where_cores_are_unbalanced(name: str, scheme: str) -> None:
    layer = linear(name)
    for bond, found in tnc.interpret.bonds(layer).items():
        layer = tnc.interpret.regauge(layer, bond, 10.0 ** np.linspace(-2, 2, found.size))
    plain, gauged = copy.deepcopy(layer), copy.deepcopy(layer)
    without = tnc.quantize(plain, scheme, scales="tensor", gauge=False).layers[0].error
    with_it = tnc.quantize(gauged, scheme, scales="tensor").layers[0].error
    assert with_it <= without
    if name != "Dense" and scheme != "fp8":
        assert with_it < 0.7 * without
    assert with_it < WORST[scheme]


@pytest.mark.parametrize("name", formats.FORMATS)
def test_gauges_for_rounding_are_gauges(name: str) -> None:
    layer = linear(name, dtype=torch.float64)
    sites = Sites.of(layer._network)
    cores = {
        name: core.detach().numpy()
        for name, core in zip(layer._table.parameters, layer.held_cores(), strict=True)
    }
    weight = layer.weight.detach()
    for made in rounding_gauges(sites, cores, 0):
        other = copy.deepcopy(layer)
        with torch.no_grad():
            for key, core in made.items():
                other._core(key).copy_(torch.from_numpy(core))
        torch.testing.assert_close(other.weight.detach(), weight, rtol=1e-9, atol=1e-9)
    even = equalized_cores(sites, cores)
    for bond in sites.bonds:
        tops = [
            np.abs(np.moveaxis(even[e.core], e.axis, 0).reshape(bond.size, -1)).max(1)
            for e in bond.ends
        ]
        np.testing.assert_allclose(tops[0], tops[-1], rtol=0.05)


def test_scales_along_bonds_and_modes_or_none() -> None:
    for scales, words in {"tensor": "nothing", "bond": "r1", "mode": "i1"}.items():
        layer = linear()
        how = tnc.quantize(layer, scales=scales).layers[0].how
        assert how.startswith(f"int8, scales along {words}")
    layer = linear()
    tnc.quantize(layer, scales={"G1": "r1", "G2": "r2"}, gauge=False)
    axes = {name: made.axis for name, made in stored_cores(layer)}
    assert axes == {"cores.G1": 1, "cores.G2": 2, "cores.G3": None, "cores.G4": None}


def test_scales_are_trained_and_codes_are_not(tmp_path: Path) -> None:
    layer, x = linear(), torch.randn(64, 12)
    goal = layer(x).detach()
    tnc.quantize(layer, "int4")
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    codes = {name: made.codes.clone() for name, made in stored_cores(layer)}
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(torch.equal(made.codes, codes[name]) for name, made in stored_cores(layer))
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_models_with_many_kinds_of_layers(tmp_path: Path) -> None:
    net, x = model(), torch.randn(3, 12)
    before = copy.deepcopy(net)
    report = tnc.quantize(net, "int8")
    assert len(report.layers) == 3 and not report.skipped
    assert report.bytes_after < report.bytes_before and "int8" in str(report)
    torch.testing.assert_close(net(x)[0], before(x)[0], rtol=0.1, atol=0.02)
    path = tmp_path / "model.safetensors"
    tnc.save(net, path)
    assert torch.equal(tnc.load(model(), path)(x)[0], net(x)[0])


def test_convolutions_and_embeddings(tmp_path: Path) -> None:
    conv = tnc.nn.Conv2d(4, 8, 3, format=formats.Tucker(3, clamp=True))
    table = tnc.nn.Embedding(30, 8, format=formats.TT(3, clamp=True))
    for layer, x in ((conv, torch.randn(2, 4, 6, 6)), (table, torch.randint(30, (5,)))):
        tnc.quantize(layer, "int8")
        with torch.no_grad():
            first = layer.eval()(x)
        path = tmp_path / "layer.safetensors"
        tnc.save(layer, path)
        torch.testing.assert_close(tnc.load(None, path)(x), first)


def test_copies_are_of_their_own(tmp_path: Path) -> None:
    layer, x = linear(), torch.randn(4, 12)
    tnc.quantize(layer)
    copied = copy.deepcopy(layer)
    assert torch.equal(copied(x), layer(x))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(2)
    assert not torch.equal(copied(x), layer(x))
    with pytest.raises(ArgumentError, match=r"tnc\.save"):
        pickle.dumps(layer)


def test_codes_keep_their_dtype_where_a_model_is_cast() -> None:
    for scheme in SCHEMES:
        layer, x = linear(), torch.randn(4, 12)
        tnc.quantize(layer, scheme)
        y = layer(x)
        layer.double()
        assert all(m.codes.dtype is SCHEMES[scheme].dtype for _, m in stored_cores(layer))
        torch.testing.assert_close(layer(x.double()).float(), y)


def test_quantized_layers_can_be_looked_into_and_copied_plainly() -> None:
    layer, x = linear(), torch.randn(4, 12)
    tnc.quantize(layer)
    torch.testing.assert_close(tnc.interpret.capture(layer, "r2", x).output, layer(x))
    torch.testing.assert_close(tnc.interpret.canonicalize(layer)(x), layer(x))
    less = tnc.interpret.ablate(layer, "r2", range(3))
    torch.testing.assert_close(less(x), layer.bias.expand(4, -1))
    assert not [*stored_cores(less)] and [*stored_cores(layer)]


def test_bonds_of_quantized_and_masked_layers_are_not_resized() -> None:
    for change in (tnc.quantize, lambda layer: tnc.prune(layer, 0.4, "magnitude")):
        layer = linear()
        change(layer)
        with pytest.raises(DTypeError, match="resize bonds before"):
            tnc.shrink(layer, "r2", 2)


def test_torch_looks_into_quantized_layers() -> None:
    layer, x = linear(), torch.randn(4, 12)
    tnc.quantize(layer, "int4")
    y = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), y)
    state = {name: tensor.detach() for name, tensor in layer.state_dict().items()}
    torch.testing.assert_close(torch.func.functional_call(layer, state, (x,)), y)


def test_tied_and_other_layers_are_left_alone() -> None:
    table = tnc.nn.Embedding(12, 10, format=formats.LowRank(2))
    head = tnc.nn.Linear(10, 12, format=formats.LowRank(2))
    head.tie(table)
    net = nn.ModuleList([table, head, linear(), linear("TT", dtype=torch.complex64)])
    report = tnc.quantize(net, filter_fn=lambda layer, name: name != "9")
    assert [row.name for row in report.layers] == ["2"]
    assert report.skipped["0"] == report.skipped["1"] == "its cores are tied to another layer's"
    assert report.skipped["3"] == "its cores are complex"
    assert tnc.quantize(nn.ModuleList([linear()]), filter_fn=lambda layer, name: False).layers == ()


def test_torchao_quantizes_what_stays_dense_beside(tmp_path: Path) -> None:
    """Its int8 is as near as ours, and it leaves our layers alone; cores it could not hold."""
    quantization = pytest.importorskip("torchao.quantization")
    net, x = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 10)), torch.randn(5, 12)
    tnc.tensorize_(net, {"2": formats.TT(3, clamp=True)})
    ours = copy.deepcopy(net)
    tnc.tensorize_(ours, {"0": formats.Dense()})
    tnc.quantize(ours, filter_fn=lambda layer, name: name == "0")
    before, weight = net(x), net[0].weight.detach().clone()
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    assert isinstance(net[2], tnc.nn.Linear) and type(net[0].weight.data) is not torch.Tensor
    both = (net[0].weight.dequantize(), ours[0].weight)
    errors = [(each - weight).norm() / weight.norm() for each in both]
    assert errors[0] < 0.01 and errors[1] < 1.05 * errors[0]
    torch.testing.assert_close(net(x), before, rtol=0.05, atol=0.02)
    report = tnc.tensorize_(net, formats.LowRank(2))
    assert not report.layers and "Int8Tensor" in report.skipped[0].reason
    with pytest.raises(NotImplementedError):  # what a contraction of cores begins with
        net[0].weight.permute(1, 0)
    with pytest.raises(UnsupportedModule, match="Int8Tensor"):
        tnc.save(net, tmp_path / "net.safetensors")
    with pytest.raises(UnsupportedModule, match="Int8Tensor"):
        tnc.heal(net, copy.deepcopy(net), [x], steps=1, checkpoint=tmp_path / "heal", every=9)
    assert not [*tmp_path.iterdir()]


def test_bad_requests() -> None:
    with pytest.raises(ArgumentError, match="int8, int4, fp8"):
        tnc.quantize(linear(), "int3")
    with pytest.raises(ArgumentError, match="best, bond, mode, tensor"):
        tnc.quantize(linear(), scales="row")
    with pytest.raises(UnknownIndex, match="G1, G2, G3, G4"):
        tnc.quantize(linear(), scales={"H": "r1"})
    with pytest.raises(UnknownIndex, match="r1, r2, r3"):
        tnc.quantize(linear(), scales={"G1": "q"})
    with pytest.raises(ShapeError, match="joins G3, G4"):
        tnc.quantize(linear(), scales={"G1": "r3"})
    with pytest.raises(ArgumentError, match="for one layer"):
        tnc.quantize(nn.Sequential(linear(), linear()), scales={"G1": "r1"})
    with pytest.raises(ArgumentError, match="nothing in it is tensorized"):
        tnc.quantize(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match=r"torch\.nn\.Module"):
        tnc.quantize(3)  # type: ignore[arg-type]
    layer = linear()
    tnc.quantize(layer)
    with pytest.raises(DTypeError, match="held as int8"):
        tnc.quantize(layer)


def test_files_with_other_ways_to_hold_cores_are_refused() -> None:
    layer = linear()
    with pytest.raises(FileFormatError, match="no way 'int2'"):
        storage.restore_storage(layer, [{"name": "cores.G1", "kind": "int2", "axis": None}])
    with pytest.raises(FileFormatError, match="no axis 7"):
        storage.restore_storage(layer, [{"name": "cores.G1", "kind": "int8", "axis": 7}])


def test_equality_sees_a_wrong_scale() -> None:
    layer = linear()
    before = copy.deepcopy(layer)
    tnc.quantize(layer)
    scale = layer.get_parameter("cores.parametrizations.G1.original")
    with torch.no_grad():
        scale.mul_(1.5)
    assert error(layer, before) > 0.3
