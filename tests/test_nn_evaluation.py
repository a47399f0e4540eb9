"""Layers in evaluation: what is built of cores is kept, and never stale; where it is not used."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import tncompiler as tnc
from tncompiler.formats import TT, LowRank, TTMatrix
from tncompiler.ir.errors import ArgumentError, PositionError, ShapeError, StaleValues
from tncompiler.nn import LAYERS
from tncompiler.nn.built import _REMEMBERED, may_keep
from tncompiler.nn.parts import Composite
from tncompiler.tensor_marks import Snapshot

FORMAT = TTMatrix(2, clamp=True)


@dataclass(frozen=True)
class Case:
    """``make``: a layer by what else it takes. ``given``: what it is called with."""

    make: Callable[..., Any]
    given: Callable[[], tuple[Tensor, ...]]


def tokens(*shape: int) -> Tensor:
    return torch.randint(30, shape)


def attended(x: Tensor) -> tuple[Tensor, ...]:
    return x, x, x


def graph() -> tuple[Tensor, ...]:
    return torch.randn(5, 12), torch.randint(5, (2, 9))


CASES = {
    "Linear": Case(lambda **how: tnc.nn.Linear(12, 10, **how), lambda: (torch.randn(3, 12),)),
    "Conv1d": Case(lambda **how: tnc.nn.Conv1d(4, 6, 3, **how), lambda: (torch.randn(2, 4, 7),)),
    "Conv2d": Case(
        lambda **how: tnc.nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", **how),
        lambda: (torch.randn(2, 4, 5, 5),),
    ),
    "Conv3d": Case(
        lambda **how: tnc.nn.Conv3d(4, 6, 2, **how), lambda: (torch.randn(2, 4, 3, 3, 3),)
    ),
    "Embedding": Case(
        lambda **how: tnc.nn.Embedding(30, 12, padding_idx=3, **how), lambda: (tokens(2, 5),)
    ),
    "EmbeddingBag": Case(
        lambda **how: tnc.nn.EmbeddingBag(30, 12, padding_idx=3, **how), lambda: (tokens(4, 5),)
    ),
    "MultiheadAttention": Case(
        lambda **how: tnc.nn.MultiheadAttention(12, 2, batch_first=True, **how),
        lambda: attended(torch.randn(2, 4, 12)),
    ),
    "LSTM": Case(
        lambda **how: tnc.nn.LSTM(12, 8, proj_size=4, **how), lambda: (torch.randn(3, 2, 12),)
    ),
    "GRU": Case(lambda **how: tnc.nn.GRU(12, 8, 2, **how), lambda: (torch.randn(3, 2, 12),)),
    "GraphConv": Case(lambda **how: tnc.nn.GraphConv(12, 10, **how), graph),
}


def made(name: str, **how: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """A layer in evaluation that was called once, and what it was called with."""
    torch.manual_seed(0)
    layer = CASES[name].make(**{"format": FORMAT, "implementation": "reconstructed", **how}).eval()
    given = CASES[name].given()
    with torch.no_grad():
        layer(*given)
    return layer, given


def first(result: Any) -> Tensor:
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out


def assert_fresh(layer: Any, given: tuple[Tensor, ...]) -> Tensor:
    """A call without gradients gives what the cores say now."""
    with torch.no_grad():
        got, wanted = first(layer(*given)), first(layer.to_dense()(*given))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    return got


def kept_of(layer: Any, given: tuple[Tensor, ...]) -> Any:
    """What a call without gradients would use at once; None if there is nothing."""
    with torch.no_grad():
        return layer._built.ready(layer, given[0])


def core_of(layer: Any) -> tuple[nn.Module, str]:
    """The last core of a layer: its owner and its name."""
    parts = [*layer.parts().values()] if isinstance(layer, Composite) else [layer]
    return parts[0].cores, parts[0]._table.parameters[-1]


def test_every_layer_has_a_case() -> None:
    assert CASES.keys() == LAYERS.keys()


@pytest.mark.parametrize("implementation", ["auto", "reconstructed"])
@pytest.mark.parametrize("name", CASES)
def test_weights_are_built_once(
    name: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, given = made(name, implementation=implementation)
    kept = kept_of(layer, given)
    assert kept is not None
    monkeypatch.setattr(type(layer), "reconstruct", lambda self: pytest.fail("built once more"))
    with torch.no_grad():
        assert torch.equal(first(layer(*given)), first(layer(*given)))
    assert kept_of(layer, given) is kept


def test_staleness_would_be_noticed() -> None:
    """The check can fail: a write that nobody sees, as documented."""
    layer, given = made("Linear")
    layer.cores.G1.data.mul_(2)
    with pytest.raises(AssertionError):
        assert_fresh(layer, given)


# ---------------------------------------------------------------------------- changes


def _in_place(layer: Any) -> None:
    with torch.no_grad():
        getattr(*core_of(layer)).mul_(2)


def _replaced(layer: Any) -> None:
    owner, key = core_of(layer)
    setattr(owner, key, nn.Parameter(2 * getattr(owner, key).detach()))


def _data(layer: Any) -> None:
    core = getattr(*core_of(layer))
    core.data = 2 * core.data


def _data_written(layer: Any) -> None:
    getattr(*core_of(layer)).data.mul_(2)
    layer.invalidate()


def _numpy_written(layer: Any) -> None:
    getattr(*core_of(layer)).detach().numpy()[...] *= 2
    layer.invalidate()


def _loaded(layer: Any) -> None:
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})


def _loaded_assigned(layer: Any) -> None:
    state = {name: 2 * value for name, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def _fused_step(layer: Any) -> None:
    core = getattr(*core_of(layer))
    core.grad = torch.ones_like(core)
    torch.optim.Adam([core], lr=0.5, fused=True).step()


def _swapped(layer: Any) -> None:
    core = getattr(*core_of(layer))
    torch.utils.swap_tensors(core, nn.Parameter(2 * core.detach()))


def _drawn(layer: Any) -> None:
    layer.reset_parameters()


def _another_network(layer: Any) -> None:
    """Other modules in the places of those that hold cores."""
    other = copy.deepcopy(layer)
    _in_place(other)
    for key in [*layer._modules]:
        layer._modules[key] = other._modules[key]


def _moved(layer: Any) -> None:
    layer.double()
    _in_place(layer)
    layer.float()


CHANGES = [
    *(_in_place, _replaced, _data, _data_written, _numpy_written, _loaded, _loaded_assigned),
    *(_fused_step, _swapped, _drawn, _another_network, _moved),
]


def changes() -> Iterator[Any]:
    """All of them on one layer of each kind, the commonest on all."""
    for name in CASES:
        for change in CHANGES:
            if name in ("Linear", "Embedding", "GRU") or change in (_in_place, _replaced, _data):
                yield pytest.param(name, change, id=f"{name}{change.__name__}")


@pytest.mark.parametrize("name, change", [*changes()])
def test_a_change_is_seen(name: str, change: Callable[[Any], None]) -> None:
    layer, given = made(name)
    before = assert_fresh(layer, given)
    assert kept_of(layer, given) is not None
    change(layer)
    assert not torch.equal(assert_fresh(layer, given), before)


@pytest.mark.parametrize("name", ["Linear", "Conv1d", "LSTM", "MultiheadAttention", "GraphConv"])
def test_a_changed_bias_is_seen(name: str) -> None:
    layer, given = made(name)
    owner, _ = core_of(layer)
    before = assert_fresh(layer, given)
    with torch.no_grad():
        owner.bias.add_(1)
    moved = assert_fresh(layer, given)
    owner.bias = nn.Parameter(-3 * owner.bias.detach())
    assert not torch.equal(moved, before)
    assert not torch.equal(assert_fresh(layer, given), moved)


def test_a_changed_row_of_padding_is_seen() -> None:
    layer, _ = made("Embedding")
    layer.padding_row.fill_(7.0)
    assert (layer(torch.tensor([3, 3])) == 7).all()
    with torch.no_grad():
        assert_fresh(layer, (torch.tensor([3, 4]),))
        layer.padding_row = torch.ones(12)
        assert_fresh(layer, (torch.tensor([3, 4]),))


def test_tied_to_another() -> None:
    layer, given = made("Linear", format=LowRank(3))
    other = tnc.nn.Linear(12, 10, format=LowRank(3))
    before = assert_fresh(layer, given)
    layer.tie(other)
    assert not torch.equal(assert_fresh(layer, given), before)
    _in_place(other)
    assert_fresh(layer, given)


def test_parts_that_are_tied_or_replaced() -> None:
    layer, given = made("GRU")
    layer.hh_l0.tie(layer.hh_l1)
    assert_fresh(layer, given)
    layer.hh_l1 = copy.deepcopy(layer.hh_l1)
    _in_place(layer.hh_l1)
    assert_fresh(layer, given)


def test_bonds_that_grow() -> None:
    layer, given = made("Conv2d", format=TT(2))
    before = assert_fresh(layer, given)
    tnc.inflate(layer, "r1", 3)
    assert layer._built._ready is None
    torch.testing.assert_close(assert_fresh(layer, given), before, rtol=1e-4, atol=1e-5)


def test_a_snapshot_sees_what_has_no_tensor_yet() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    snapshot = Snapshot(module)
    assert snapshot.holds(module) and snapshot.asks_gradients()
    module[0].bias = nn.Parameter(torch.zeros(2))
    assert not snapshot.holds(module)
    snapshot = Snapshot(module)
    module[1].running_mean.add_(1)
    assert not snapshot.holds(module)
    assert not Snapshot(module.requires_grad_(False)).asks_gradients()


# ---------------------------------------------------------------------------- where it is off


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_never_lost(name: str) -> None:
    """Where gradients of cores can be asked for, nothing that is kept is used."""
    layer, given = made(name)
    out = first(layer(*given))
    assert out.requires_grad
    owner, key = core_of(layer)
    (gradient,) = torch.autograd.grad(out.square().sum(), getattr(owner, key))
    assert gradient.abs().max() > 0
    assert layer._built.ready(layer, given[0]) is None


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "LSTM", "MultiheadAttention", "GraphConv"])
def test_frozen_layers_pass_gradients_on(name: str) -> None:
    layer, given = made(name)
    layer.requires_grad_(False)
    x = given[0].clone().requires_grad_()
    given = (x,) * 3 if name == "MultiheadAttention" else (x, *given[1:])
    for _ in range(2):
        (mine,) = torch.autograd.grad(first(layer(*given)).square().sum(), x)
        (theirs,) = torch.autograd.grad(first(layer.to_dense()(*given)).square().sum(), x)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert layer._built.ready(layer, x) is not None


def test_training_drops_it_whoever_switches() -> None:
    layer, given = made("Linear")
    layer.training = True  # as some code does, past train()
    assert kept_of(layer, given) is None
    layer.eval().train()
    assert layer._built._ready is layer._built._kept._entry is None


@pytest.mark.parametrize("how", ["factorized", "backend", "too large"])
def test_what_was_asked_for_runs(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {
        "factorized": dict(implementation="factorized"),
        "backend": dict(backend="torch"),
        "too large": {},
    }[how]
    monkeypatch.setattr("tncompiler.nn.built.LARGEST_KEPT", 100 if how == "too large" else 10**9)
    for name in ("Linear", "Conv2d", "Embedding", "MultiheadAttention", "GraphConv"):
        layer, given = made(name, **options)
        assert layer._built._ready is None
        assert_fresh(layer, given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["functional_call", "compile", "export", "trace", "vmap"])
def test_off_where_torch_looks_inside(how: str) -> None:
    layer, (x,) = made("Linear")
    doubled = {name: 2 * p.detach() for name, p in layer.named_parameters()}
    wanted = layer.to_dense()(x).detach()
    with torch.no_grad():
        if how == "functional_call":
            got = torch.func.functional_call(layer, doubled, (x,))
            cores = len(layer.held_cores())
            wanted = x @ (2**cores * layer.weight).T + 2 * layer.bias
        elif how == "compile":
            torch._dynamo.reset()
            compiled = torch.compile(layer, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(x), wanted)
            _in_place(layer)
            got, wanted = compiled(x), layer.to_dense()(x)
        elif how == "export":
            got = torch.export.export(layer, (x,)).module()(x)
        elif how == "trace":
            traced = torch.jit.trace(layer, (x,))
            assert len([*traced.parameters()]) == len([*layer.parameters()])
            _in_place(layer)
            got, wanted = traced(x), layer.to_dense()(x)
        else:
            got = torch.func.vmap(layer)(x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_parametrized_cores_are_read_at_each_call() -> None:
    class Double(nn.Module):
        def forward(self, core: Tensor) -> Tensor:
            return 2 * core

    layer, given = made("Linear")
    owner, key = core_of(layer)
    parametrize.register_parametrization(owner, key, Double())
    assert_fresh(layer, given)
    assert kept_of(layer, given) is None
    with torch.no_grad():
        layer.cores.parametrizations[key].original.mul_(3)
    assert_fresh(layer, given)


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "MultiheadAttention", "LSTM"])
def test_autocast_casts_as_for_the_dense_layer(name: str) -> None:
    layer, given = made(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, wanted = first(layer(*given)), first(layer.to_dense()(*given))
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.05)


def test_inference_mode_builds_what_other_calls_can_use() -> None:
    torch.manual_seed(0)
    layer = tnc.nn.Linear(12, 10, format=FORMAT).eval().requires_grad_(False)
    x = torch.randn(3, 12)
    with torch.inference_mode():
        layer(x)
    y = x.clone().requires_grad_()
    layer(y).sum().backward()
    torch.testing.assert_close(y.grad, layer.weight.sum(0).expand(3, 12))


@pytest.mark.parametrize("name", ["Linear", "GRU"])
def test_debugging_compares_checksums(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNC_DEBUG", "1")
    layer, given = made(name)
    getattr(*core_of(layer)).data.mul_(2)
    with torch.no_grad(), pytest.raises(StaleValues, match="invalidate"):
        layer(*given)
    layer.invalidate()
    assert_fresh(layer, given)


# ---------------------------------------------------------------------------- inputs


def test_bad_input_after_good_meets_the_same_errors() -> None:
    layer, _ = made("Linear")
    for x in (torch.randn(3, 11), torch.randn(3, 12).double(), torch.randn(3, 12).long()):
        with torch.no_grad(), pytest.raises(tnc.TncError):
            layer(x)
    with pytest.raises(ArgumentError):
        layer([1.0])
    for name in ("Embedding", "EmbeddingBag"):
        layer, given = made(name)
        for token in (-1, 30, 10**9):
            wrong = given[0].clone()
            wrong[0, 1] = token
            with torch.no_grad(), pytest.raises(ShapeError, match=f"token {token}"):
                layer(wrong)
    layer, (x, edges) = made("GraphConv")
    for node in (-1, 5):
        for place in ((0, 3), (1, 3)):
            wrong = edges.clone()
            wrong[place] = node
            with torch.no_grad(), pytest.raises(PositionError):
                layer(x, wrong)
    with torch.no_grad(), pytest.raises(tnc.TncError):
        layer(x, edges, torch.ones(9, dtype=torch.float64))
    layer, (x,) = made("LSTM")
    with torch.no_grad(), pytest.raises(ShapeError, match="states are"):
        layer(x, (torch.zeros(1, 2, 3), torch.zeros(1, 2, 8)))


def test_inputs_of_many_shapes_and_kinds() -> None:
    layer, _ = made("Linear")
    with torch.no_grad():
        for shape in ((12,), (0, 12), (2, 3, 12), (1, 2, 3, 12)):
            for _ in range(2):
                assert_fresh(layer, (torch.randn(shape),))
        for count in range(_REMEMBERED + 2):
            layer(torch.randn(count, 12))
        assert_fresh(layer, (torch.randn(12, 3).t(),))
    assert len(layer._built._ready.shapes) <= _REMEMBERED
    bag, (ids,) = made("EmbeddingBag")
    offsets = torch.tensor([0, 2, 2])
    for _ in range(2):
        assert_fresh(bag, (ids.flatten().int(), offsets.int()))
        assert_fresh(bag, (ids[:0].flatten(), offsets[:1]))
        assert_fresh(bag, (ids[:0],))


def test_attention_that_is_masked_or_crosses_is_the_same() -> None:
    layer, (x, *_) = made("MultiheadAttention")
    mask = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
    dense, y = layer.to_dense(), torch.randn(2, 4, 12)
    with torch.no_grad():
        for given, how in (((x, y, y), {}), ((x, x, x), dict(attn_mask=mask))):
            mine, theirs = layer(*given, **how), dense(*given, **how)
            for a, b in zip(mine, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_cores_run_where_they_are_much_faster() -> None:
    layer = tnc.nn.Linear(1024, 1024, format=LowRank(2)).eval()
    assert not layer.is_whole_faster(1024) and tnc.nn.Linear(8, 8, format=FORMAT).is_whole_faster(4)
    x = torch.randn(1024, 1024)
    assert not may_keep(layer, x, lambda: layer.is_whole_faster(1024))


def test_copies_build_their_own() -> None:
    layer, given = made("Linear")
    other = copy.deepcopy(layer)
    assert other._built._ready is None
    _in_place(other)
    assert not torch.equal(assert_fresh(other, given), assert_fresh(layer, given))
    shallow = copy.copy(layer)
    assert_fresh(shallow, given)
