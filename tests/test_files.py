"""tnc.save and tnc.load: what comes back is bitwise what was written, or a typed error."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import tncompiler as tnc
from tests.model_zoo import MODELS, Case, FusedParameter, Language, Twice, mlp, rows
from tests.test_tensorize import assert_unchanged, config_of, snapshot
from tncompiler.formats import FORMATS, LowRank, TTMatrix
from tncompiler.ir.errors import ArgumentError, FileFormatError
from tncompiler.models.files import sealed
from tncompiler.nn import LAYERS

FULL = 10**9


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def saved(model: nn.Module, folder: Path) -> Path:
    path = folder / "model.safetensors"
    tnc.save(model, path)
    return path


def content_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["tncompiler"])


def equal(ours: Any, theirs: Any) -> bool:
    """Whether results are bitwise the same."""
    if isinstance(ours, Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    return all(equal(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None)


def test_equality_sees_the_last_bit() -> None:
    x = torch.ones(3)
    assert equal((x, x), (x, x.clone()))
    assert not equal(x, torch.nextafter(x, 2 * x)) and not equal(x, x.double())


# ---------------------------------------------------------------------------- into a model


@pytest.mark.parametrize("format", [LowRank, TTMatrix])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_bitwise_the_same(name: str, format: Any, tmp_path: Path) -> None:
    case: Case = MODELS[name]
    model, example = case.make(), case.example()
    tnc.tensorize_(model, config_of(case, format(4, clamp=True)))
    path = saved(model, tmp_path)
    again = tnc.load(case.make(), path)
    assert equal(again(example), model(example))
    assert equal(again.eval()(example), model.eval()(example))
    assert [*again.state_dict()] == [*model.state_dict()]
    once_more = tnc.load(again, path)  # into a tensorized one
    assert once_more is again and equal(once_more(example), model(example))


def test_tied_and_shared_cores_come_back_so(tmp_path: Path) -> None:
    model = Language()
    tnc.tensorize_(model, TTMatrix(4, clamp=True))
    path = saved(model, tmp_path)
    again = tnc.load(Language(), path)
    for key, core in again.wte.cores.named_parameters():
        assert again.lm_head.cores.get_parameter(key) is core
    assert sum(key.startswith(("wte", "lm_head")) for key in content_of(path)["state"]) == 6
    with safe_open(path, framework="pt") as file:
        assert sum(key.startswith(("wte", "lm_head")) for key in file.keys()) == 3  # noqa: SIM118
    twice = Twice()
    tnc.tensorize_(twice, LowRank(4))
    again = tnc.load(Twice(), saved(twice, tmp_path))
    assert again.first is again.second is again.all[0]


def test_activations_without_arguments_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Sigmoid(), nn.Linear(24, 24))
    tnc.tensorize_(model, {"3": LowRank(4)})
    x = rows()
    assert equal(tnc.load(None, saved(model, tmp_path))(x), model(x))


def test_two_linears_of_one_weight(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    model[2].weight = model[0].weight
    tnc.tensorize_(model, LowRank(4))
    again = tnc.load(None, saved(model, tmp_path))
    assert again[2].cores.A is again[0].cores.A and again[2].bias is not again[0].bias
    x = rows()
    assert equal(again(x), model(x))


def test_dense_weights_and_biases_that_are_tied(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24))
    model[1].weight, model[2].bias = model[0].weight, model[1].bias
    tnc.tensorize_(model, {"2": LowRank(4)})
    path = saved(model, tmp_path)
    given = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24))
    for again in (tnc.load(None, path), tnc.load(given, path)):
        assert again[1].weight is again[0].weight and again[2].bias is again[1].bias
        assert len([*again.parameters()]) == len([*model.parameters()])
    with safe_open(path, framework="pt") as file:
        assert len([*file.keys()]) == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    layer = nn.Linear(24, 12, dtype=dtype)
    tnc.tensorize_(layer, LowRank(4))
    again = tnc.load(None, saved(layer, tmp_path))
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert equal(dict(again.state_dict()).values(), dict(layer.state_dict()).values())
    x = torch.randn(3, 24).to(dtype)
    assert equal(again(x), layer(x))


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        tnc.save(mlp(), tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_flags_and_modes(tmp_path: Path) -> None:
    model = mlp()
    tnc.tensorize_(model, LowRank(4))
    model[0].cores.A.requires_grad_(False)
    model[2].eval()
    path = saved(model, tmp_path)
    for again in (tnc.load(None, path), tnc.load(mlp(), path)):
        assert not again[0].cores.A.requires_grad and again[0].cores.B.requires_grad
    again = tnc.load(None, path)
    assert [part.training for part in again] == [True, True, False]
    assert tnc.load(mlp(), path)[2].training  # a model given has modes of its own


def test_parameters_that_are_networks(tmp_path: Path) -> None:
    model = nn.ModuleDict({"odd": FusedParameter()})
    tnc.tensorize_(model, {"odd.qkv_weight": TTMatrix(4, clamp=True), "*": LowRank(3)})
    path = saved(model, tmp_path)
    again = tnc.load(nn.ModuleDict({"odd": FusedParameter()}), path)
    x = torch.randn(2, 7, 24)
    assert equal(again["odd"](x), model["odd"](x))
    assert "qkv_weight" in again["odd"].parametrizations
    with pytest.raises(ArgumentError, match="how to make FusedParameter"):
        tnc.load(None, path)


# ---------------------------------------------------------------------------- without a model


def custom() -> Any:
    """A network with a shared core and a constant."""

    def network(ins: Any, outs: Any) -> Any:
        (i1, i2), (o,), r = ins, outs, tnc.Index("r", 3)
        core, last = tnc.param("A", i1, r), tnc.param("B", r, tnc.Index("s", 3), o)
        scale = tnc.constant("c", r, value=[1.0, 2.0, 3.0])
        s = last.indices[1]
        return tnc.contract(core(i1, r), core(i2, s), last, scale, out=(i1, i2, o))

    return tnc.formats.Custom(network)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_comes_back(name: str, tmp_path: Path) -> None:
    if name == "Custom":
        layer = tnc.nn.Linear(16, 6, format=custom(), in_shape=(4, 4), out_shape=(6,))
    else:
        form = getattr(tnc.formats, name)(rank=2)
        shapes: dict[str, Any] = dict(in_shape=(4, 4), out_shape=(2, 3))
        layer = tnc.nn.Linear(16, 6, format=form, **shapes)
    again = tnc.load(None, saved(layer, tmp_path))
    x = torch.randn(5, 16)
    assert equal(again(x), layer(x)) and repr(again) == repr(layer)
    if name != "Custom":
        assert again.format == layer.format


LAYER_CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "Linear": (
        lambda: tnc.nn.Linear(23, 11, bias=False, format=TTMatrix(2)),
        lambda: torch.randn(4, 23),
    ),
    "Conv1d": (
        lambda: tnc.nn.Conv1d(4, 6, 3, stride=2, padding=1, format=LowRank(2)),
        lambda: torch.randn(2, 4, 9),
    ),
    "Conv2d": (
        lambda: tnc.nn.Conv2d(4, 6, (3, 2), groups=2, padding="same", format=TTMatrix(2)),
        lambda: torch.randn(2, 4, 5, 6),
    ),
    "Conv3d": (
        lambda: tnc.nn.Conv3d(3, 4, 2, dilation=2, bias=False, format=LowRank(2)),
        lambda: torch.randn(2, 3, 4, 5, 6),
    ),
    "LSTM": (
        lambda: tnc.nn.LSTM(8, 6, 2, bidirectional=True, proj_size=3, format=LowRank(2)),
        lambda: torch.randn(5, 2, 8),
    ),
    "GRU": (
        lambda: tnc.nn.GRU(8, 6, batch_first=True, bias=False, format=TTMatrix(2)),
        lambda: torch.randn(2, 5, 8),
    ),
    "MultiheadAttention": (
        lambda: tnc.nn.MultiheadAttention(8, 2, kdim=6, vdim=4, format=LowRank(2)),
        lambda: (torch.randn(3, 2, 8), torch.randn(5, 2, 6), torch.randn(5, 2, 4)),
    ),
    "GraphConv": (
        lambda: tnc.nn.GraphConv(8, 4, format=LowRank(2)),
        lambda: (torch.randn(4, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])),
    ),
    "Embedding": (
        lambda: tnc.nn.Embedding(30, 12, padding_idx=3, format=TTMatrix(2)),
        lambda: torch.arange(30).reshape(5, 6),
    ),
    "EmbeddingBag": (
        lambda: tnc.nn.EmbeddingBag(30, 12, mode="sum", padding_idx=3, format=TTMatrix(2)),
        lambda: torch.arange(30).reshape(5, 6),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_comes_back(name: str, tmp_path: Path) -> None:
    make, example = LAYER_CASES[name]
    layer, x = make(), example()
    again = tnc.load(None, saved(layer, tmp_path))
    assert type(again) is type(layer) and repr(again) == repr(layer)
    given = x if isinstance(x, tuple) else (x,)
    assert equal(again(*given), layer(*given))


def test_models_of_simple_modules(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Linear(24, 36), nn.LayerNorm(36), nn.GELU("tanh"), nn.Dropout(0.3),
        nn.ModuleDict({"last": nn.Linear(36, 12)})["last"], nn.Flatten(), nn.BatchNorm1d(12),
    ).eval()  # fmt: skip
    tnc.tensorize_(model, {"0": LowRank(3)})
    again = tnc.load(None, saved(model, tmp_path))
    assert str(again) == str(model) and not again.training
    x = rows()
    assert equal(again(x), model(x))


# ---------------------------------------------------------------------------- broken files


def small_file(folder: Path) -> Path:
    layer = nn.Linear(6, 4)
    tnc.tensorize_(layer, LowRank(2))
    return saved(layer, folder)


def test_any_altered_byte_is_seen(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    whole = path.read_bytes()
    draw = random.Random(0)
    for place in {*range(16), *draw.sample(range(len(whole)), 250), len(whole) - 1}:
        altered = bytearray(whole)
        altered[place] ^= 1 << draw.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(FileFormatError):
            tnc.load(None, path)
    path.write_bytes(whole)
    tnc.load(None, path)


def test_cut_and_strange_files(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    whole = path.read_bytes()
    for cut in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileFormatError, match=r"model\.safetensors"):
            tnc.load(None, path)
    for other in (whole + b"\0", b"\xff" * 100, b'{"a": 1}' * 20):
        path.write_bytes(other)
        with pytest.raises(FileFormatError):
            tnc.load(None, path)
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(FileFormatError, match=r"no file of tnc\.save"):
        tnc.load(None, path)
    with pytest.raises(FileNotFoundError):
        tnc.load(None, tmp_path / "none")


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_file(tmp_path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        tnc.save(nn.Linear(3, 3), path)
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == before


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no layers": lambda c: c.pop("layers"),
    "layers of another kind": lambda c: c.update(layers=3),
    "a layer of no kind": lambda c: c["layers"][0].update(kind="os.system"),
    "a layer's class by its dunder": lambda c: c["layers"][0].update(kind="__class__"),
    "a format of no kind": lambda c: c["layers"][0]["arguments"]["format"].update(kind="eval"),
    "a format's rank": lambda c: c["layers"][0]["arguments"]["format"].update(rank="9**9**9"),
    "an expression": lambda c: c["layers"][0]["arguments"].update(
        format={"kind": "Custom", "expression": {"format": "x"}}
    ),
    "an argument too many": lambda c: c["layers"][0]["arguments"].update(hook="print"),
    "a dtype": lambda c: c["layers"][0].update(dtype="save"),
    "sizes": lambda c: c["layers"][0]["arguments"].update(in_features=-3),
    "a name": lambda c: c["layers"][0].update(names=["__class__"]),
    "a tie to nothing": lambda c: c["layers"][0].update(tied="other"),
    "a tie to itself in a circle": lambda c: c["layers"][0].update(tied=[]),
    "no state": lambda c: c.update(state={}),
    "a state of nothing": lambda c: c["state"].update({"cores.A": "missing"}),
    "more state": lambda c: c["state"].update({"more": "cores.A"}),
    "two states crossed": lambda c: c["state"].update({"cores.A": "cores.B"}),
    "complex numbers": lambda c: c["complex"].update({"cores.A": "complex64"}),
    "a module of no kind": lambda c: c.update(model={"module": "Module", "arguments": {}}),
    "a model of another kind": lambda c: c.update(model=[]),
    "a layer that is not there": lambda c: c["model"].update(layer=7),
    "another schema": lambda c: c.update(schema=99),
    "another format": lambda c: c.update(format="something"),
    "a parameter": lambda c: c["parameters"].append({"name": "weight"}),
    "deep nesting": lambda c: c.update(model=nested(300)),
}
UNSEEN_ALONE = ("a parameter", "a name")  # of use only where a model is given
UNSEEN_IN_A_MODEL = (
    *("a module of no kind", "a model of another kind", "a layer that is not there"),
    "deep nesting",
)


def nested(depth: int) -> Any:
    data: Any = {"layer": 0}
    for _ in range(depth):
        data = {"container": "Sequential", "parts": {"0": data}, "training": True}
    return data


@pytest.mark.parametrize("name", HOSTILE)
def test_sealed_files_of_other_content_meet_our_errors(name: str, tmp_path: Path) -> None:
    """Whoever wrote the checksum: what the file says is looked up, not believed."""
    path = small_file(tmp_path)
    content, tensors = sealed.read(path)
    HOSTILE[name](content)
    content.pop("checksum")
    sealed.write(path, content, tensors)
    for model in (None, nn.Linear(6, 4)):
        if name in (UNSEEN_ALONE if model is None else UNSEEN_IN_A_MODEL):
            continue
        before = None if model is None else snapshot(model)
        with pytest.raises((FileFormatError, ArgumentError)):
            tnc.load(model, path)
        if model is not None and before is not None:
            assert_unchanged(model, before)


# ---------------------------------------------------------------------------- other models


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(24, 30), nn.ReLU(), nn.Linear(30, 12)), "out_features"),
        (lambda: nn.Sequential(nn.Linear(24, 36), nn.ReLU()), "a layer '2'"),
        (lambda: nn.Sequential(nn.Linear(24, 36), nn.ReLU(), nn.Identity()), "is a Linear in the"),
        (lambda: nn.Sequential(*mlp(), nn.Linear(12, 3)), "lacks 2 tensors"),
        (lambda: nn.Sequential(nn.Linear(24, 36, bias=False), *mlp()[1:]), "bias of '0'"),
        (lambda: nn.Sequential(nn.Embedding(24, 36), *mlp()[1:]), "and a Embedding in"),
        (lambda: mlp().to("meta"), "meta"),
    ],
)
def test_models_that_the_file_is_not_of(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    model = mlp()
    tnc.tensorize_(model, LowRank(4))
    path = saved(model, tmp_path)
    other = make()
    modules = snapshot(other)[0]
    with pytest.raises(FileFormatError, match=message):
        tnc.load(other, path)
    assert snapshot(other)[0] == modules


def test_dense_parts_are_strict_too(tmp_path: Path) -> None:
    model = mlp()
    tnc.tensorize_(model, {"0": LowRank(4)})
    path = saved(model, tmp_path)
    other = mlp()
    other[2].double()
    before = snapshot(other)
    with pytest.raises(FileFormatError, match=r"float32 in the file, and \(12, 36\) float64"):
        tnc.load(other, path)
    assert_unchanged(other, before)
    tied = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    path = saved(tied, tmp_path)
    tied[1].weight = tied[0].weight
    with pytest.raises(FileFormatError, match="tied in the model"):
        tnc.load(tied, path)


def test_arguments_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="got a int"):
        tnc.save(3, tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="to load into"):
        tnc.load(3, small_file(tmp_path))  # type: ignore[call-overload]
    with pytest.raises(FileFormatError, match="meta device"):
        tnc.save(nn.Linear(3, 3, device="meta"), tmp_path / "x")


def test_what_a_file_cannot_hold(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"step": 3}

    class Own(tnc.nn.Linear):
        pass

    with pytest.raises(FileFormatError, match="extra_state"):
        tnc.save(Extra(3, 3), tmp_path / "x")
    with pytest.raises(FileFormatError, match="no layer of tnc"):
        tnc.save(Own(4, 4, format=LowRank(2)), tmp_path / "x")
    assert not [*tmp_path.iterdir()]


def test_the_plan_is_written_down(tmp_path: Path) -> None:
    layer = tnc.nn.Linear(24, 12, format=TTMatrix(2))
    content = content_of(saved(layer, tmp_path))
    (plan,) = (entry["plan"] for entry in content["layers"])
    assert plan["sizes"] == {"b": 128}
    (network,) = plan["networks"]
    assert network["tensors"][1:] == ["G1", "G2", "G3"] and len(network["pairs"]) == 3
    assert content["version"] == tnc.__version__
