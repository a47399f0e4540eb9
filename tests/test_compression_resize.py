"""Bonds that grow and shrink: every format, whole models, optimizers that go on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tncompiler as tnc
from tests.model_zoo import MODELS, Case, Language, mlp, rows
from tests.test_tensorize import assert_unchanged, config_of, snapshot
from tncompiler import formats
from tncompiler.compression.holders import holders_of
from tncompiler.formats import CP, TT, Custom, LowRank, TTMatrix
from tncompiler.formats.joints import joints_of
from tncompiler.ir.errors import ArgumentError, FormatError, RankError

INS, OUTS = (3, 4), (4, 5)
TREES = ("TT", "TTMatrix", "Tucker", "HT", "LowRank")  # whose every bond divides the network


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def shared_ring(ins: Any, outs: Any) -> Any:
    """One core at all four sites of a ring."""
    b = [tnc.Index(f"b{k}", 3) for k in range(4)]
    axes = (*ins, *outs)
    terms = [tnc.param("A", b[k - 1], axes[k], b[k]) for k in range(4)]
    return tnc.contract(*terms, out=axes)


def two_bonds(ins: Any, outs: Any) -> Any:
    r, s = tnc.indices("r s", r=2, s=3)
    left, middle = tnc.param("A", *ins, r), tnc.param("B", r, s)
    return tnc.contract(left, middle, tnc.param("C", s, *outs), out=(*ins, *outs))


def make(name: str, rank: int = 2) -> Any:
    if name == "Custom":
        return Custom(two_bonds)
    if name == "shared ring":
        return Custom(shared_ring)
    return getattr(formats, name)(rank=rank, clamp=True)


def linear(name: str, dtype: torch.dtype = torch.float64, rank: int = 2) -> Any:
    ins, outs = ((4, 4), (4, 4)) if name == "shared ring" else (INS, OUTS)
    size = (int(np.prod(ins)), int(np.prod(outs)))
    shapes: Any = dict(in_shape=ins, out_shape=outs, dtype=dtype)
    return tnc.nn.Linear(*size, format=make(name, rank), **shapes)


def bonds_of(layer: Any) -> dict[str, int]:
    """The sizes of all bonds."""
    (holder,) = holders_of(layer)
    return {name: joint.size for name, joint in joints_of(holder.network).items()}


def bonds() -> list[Any]:
    names = [n for n in formats.FORMATS if n != "Dense"] + ["shared ring"]
    return [
        pytest.param(name, bond, id=f"{name}-{bond}")
        for name in names
        for bond in bonds_of(linear(name))
    ]


def trained(layer: nn.Module, make_optimizer: Any = torch.optim.Adam, steps: int = 3) -> Any:
    """The layer after some steps, with its optimizer."""
    optimizer = make_optimizer(layer.parameters(), lr=1e-3)
    for _ in range(steps):
        step(layer, optimizer)
    return optimizer


def step(layer: nn.Module, optimizer: Any, x: Tensor | None = None) -> float:
    p = next(layer.parameters())
    x = torch.randn(7, layer.in_features, dtype=p.dtype) if x is None else x  # type: ignore[arg-type,call-overload]
    loss = (layer(x) - x.sum(-1, keepdim=True)).abs().square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def assert_same(layer: nn.Module, x: Tensor, wanted: Tensor, within: float) -> None:
    drift = float((layer(x).detach() - wanted).abs().max() / wanted.abs().max())
    assert drift <= within, drift


def test_the_drift_is_seen() -> None:
    layer = linear("TT")
    x = torch.randn(5, 12, dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_same(layer, x, layer(x).detach() * (1 + 1e-9), 1e-10)


# ---------------------------------------------------------------------------- growing


def test_every_bond_of_every_format_is_found() -> None:
    for name in formats.FORMATS:
        if name in ("Dense", "Custom"):
            continue
        layer = linear(name)
        ranks = layer.format.sizes(holders_of(layer)[0].modes)
        found = bonds_of(layer)
        assert {bond: found[bond] for bond in ranks} == ranks
        assert set(found) - set(ranks) == ({"b"} if name == "BlockTerm" else set())


@pytest.mark.parametrize(("name", "bond"), bonds())
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_growth_changes_nothing_but_learns(name: str, bond: str, dtype: torch.dtype) -> None:
    layer = linear(name, dtype)
    optimizer = trained(layer)
    x = torch.randn(5, layer.in_features, dtype=dtype)
    wanted, before = layer(x).detach(), bonds_of(layer)
    found = tnc.inflate(layer, bond, before[bond] + 2, optimizer=optimizer, clamp=True)
    if not found:  # the bond carries all that it can
        assert (name, before[bond]) == ("HT", 2)
        return
    (report,) = found
    old, new = report.bonds[bond]
    assert (old, bonds_of(layer)[bond]) == (before[bond], new) and new > old
    assert report.error == 0.0
    assert_same(layer, x, wanted, 1e-5 if dtype == torch.float32 else 1e-13)
    assert_channels_learn(layer, bond, old, optimizer)


def assert_channels_learn(layer: Any, bond: str, old: int, optimizer: Any) -> None:
    """Every new channel gets a gradient, no two the same; after two steps all its ends have."""
    (holder,) = holders_of(layer)
    joint = joints_of(holder.network)[bond]
    step(layer, optimizer)
    cores = holder.cores()
    gradients = [_channels(cores[name].grad, axis, old) for name, axis in joint.ends]
    seen = torch.cat(gradients, dim=1)
    assert (seen.abs().amax(dim=1) > 0).all()
    assert len(seen) < 2 or not torch.allclose(seen[0], seen[1])
    step(layer, optimizer)
    for name, axis in joint.ends:
        assert (_channels(cores[name].grad, axis, old).abs().amax(dim=1) > 0).all()


def _channels(gradient: Any, axis: int, old: int) -> Tensor:
    return gradient.movedim(axis, 0)[old:].flatten(1)


def test_channels_that_do_not_learn_are_seen() -> None:
    layer = linear("LowRank")
    tnc.inflate(layer, "r", 4)
    with torch.no_grad():
        layer.cores.A[..., 2:] = 0
    with pytest.raises(AssertionError):
        assert_channels_learn(layer, "r", 2, torch.optim.SGD(layer.parameters(), lr=1e-3))


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_grow_and_shrink_back(name: str) -> None:
    case = MODELS[name]
    model, example = tensorized(case, TT(2, clamp=True))
    wanted = model(example).detach()
    places = {key: type(module) for key, module in model.named_modules()}
    grown = tnc.inflate(model, "*", 4, clamp=True)
    assert grown and all(report.parameters_after > report.parameters_before for report in grown)
    assert {key: type(module) for key, module in model.named_modules()} == places
    torch.testing.assert_close(model(example), wanted, rtol=1e-10, atol=1e-10)
    shrunk = tnc.shrink(model, "*", 2)
    assert [r.name for r in shrunk] == [r.name for r in grown]
    assert max(report.error for report in shrunk) < 1e-6
    torch.testing.assert_close(model(example), wanted, rtol=1e-5, atol=1e-5)


def tensorized(case: Case, format: Any) -> tuple[nn.Module, Any]:
    model, example = case.make().double(), case.example()
    tnc.tensorize_(model, config_of(case, format))
    return model, example.double() if example.is_floating_point() else example


def test_a_grown_model_is_saved_and_loaded(tmp_path: Any) -> None:
    for name in ("vision", "recurrent", "encoder", "fused parameter"):
        model, example = tensorized(MODELS[name], TT(2, clamp=True))
        tnc.inflate(model, "*r1", 3, clamp=True)
        tnc.save(model, tmp_path / "model.tnc")
        again, _ = tensorized(MODELS[name], TT(2, clamp=True))
        tnc.load(again, tmp_path / "model.tnc")
        assert torch.equal(again(example), model(example))


def test_tied_weights_stay_tied() -> None:
    model = Language()
    tnc.tensorize_(model, TT(4, clamp=True))
    adam = torch.optim.Adam(model.parameters())
    tokens = torch.randint(60, (2, 7))
    model(tokens).square().mean().backward()
    adam.step()
    wanted = model(tokens).detach()
    tnc.inflate(model, "wte.*", 8, optimizer=adam, clamp=True)
    assert model.wte.cores.G1 is model.lm_head.cores.G1
    torch.testing.assert_close(model(tokens), wanted)
    held = {id(p) for group in adam.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


# ---------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p, lr: torch.optim.Adam(p, lr=lr, amsgrad=True),
        lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=True),
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
        lambda p, lr: torch.optim.RMSprop(p, lr=lr),
        lambda p, lr: torch.optim.Adagrad(p, lr=lr),
    ],
    ids=["amsgrad", "fused", "momentum", "rmsprop", "adagrad"],
)
def test_state_is_carried(make_optimizer: Callable[..., Any]) -> None:
    layer = linear("TTMatrix")
    optimizer = trained(layer, make_optimizer)
    before = {
        name: {k: v.clone() for k, v in optimizer.state[core].items() if torch.is_tensor(v)}
        for name, core in holders_of(layer)[0].cores().items()
    }
    tnc.inflate(layer, "r1", 5, optimizer=optimizer)
    for name, core in holders_of(layer)[0].cores().items():
        for key, old in before[name].items():
            new = optimizer.state[core][key]
            inside = new[tuple(slice(size) for size in old.shape)]
            assert torch.equal(inside, old)
            assert old.ndim == 0 or new.shape == core.shape
    step(layer, optimizer)


def test_moments_of_new_channels() -> None:
    layer = linear("LowRank")
    adam = trained(layer)
    old = adam.state[layer.cores.A]["exp_avg_sq"].mean()
    tnc.inflate(layer, "r", 3, optimizer=adam)
    state = adam.state[layer.cores.A]
    assert (state["exp_avg"][..., 2:] == 0).all()
    assert torch.allclose(state["exp_avg_sq"][..., 2:], old)


def test_the_loop_goes_on_and_learns_what_it_could_not() -> None:
    target = torch.randn(20, 12, dtype=torch.float64) @ torch.randn(12, 20, dtype=torch.float64)
    layer = tnc.nn.Linear(20, 20, format=LowRank(2), dtype=torch.float64)
    adam = torch.optim.Adam(layer.parameters(), lr=2e-2)
    x = torch.randn(100, 20, dtype=torch.float64)

    def train(steps: int) -> float:
        for _ in range(steps):
            loss = (layer(x) - x @ target).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return float(loss.detach())

    stuck = train(300)
    tnc.inflate(layer, "r", 12, optimizer=adam)
    assert train(1) < stuck * 1.01
    assert train(600) < 0.3 * stuck


def test_a_lossless_cut_takes_gradients_along() -> None:
    """What a gradient of the old cores becomes is the gradient of the new ones."""
    for name in (*TREES, "Monarch"):
        layer = linear(name, torch.complex128)
        bond = next(iter(bonds_of(layer)))
        size = bonds_of(layer)[bond]
        if not tnc.inflate(layer, bond, size + 1, clamp=True):
            continue
        x = torch.randn(7, layer.in_features, dtype=torch.complex128)
        cotangent = torch.randn(7, layer.out_features, dtype=torch.complex128)
        layer(x).backward(cotangent)
        (report,) = tnc.shrink(layer, bond, size)
        assert report.error < 1e-6
        carried = {key: p.grad.clone() for key, p in layer.named_parameters() if p.grad is not None}
        layer.zero_grad()
        layer(x).backward(cotangent)
        for key, p in layer.named_parameters():
            torch.testing.assert_close(carried[key], p.grad, rtol=1e-5, atol=1e-5)


def test_random_numbers_of_the_loop_stay() -> None:
    layer = linear("TT")
    torch.manual_seed(3)
    wanted = torch.randn(3)
    torch.manual_seed(3)
    tnc.inflate(layer, "*", 3, clamp=True)
    assert torch.equal(torch.randn(3), wanted)


# ---------------------------------------------------------------------------- shrinking


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_cores_without_finite_numbers_are_not_cut(number: float) -> None:
    model = nn.Sequential(linear("TT"), linear("TT"))
    with torch.no_grad():
        model[1].cores.G1[0, 0] = number
    before = snapshot(model)
    with pytest.raises(FormatError, match="'G1' holds NaN or infinite"):
        tnc.shrink(model, "r2", 1)
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", TREES)
def test_a_cut_is_the_best_there_is(name: str) -> None:
    """The error of one bond's cut is the tail of the weight's own singular values there."""
    for bond, size in bonds_of(linear(name, rank=3)).items():
        layer = linear(name, rank=3)
        weight = layer.weight.detach().t().reshape(*INS, *OUTS).numpy()
        (holder,) = holders_of(layer)
        ranks = holder.format.sizes(holder.modes)
        if size == 1:
            continue
        cuts = dict(zip(ranks, holder.format.cuts(holder.modes, ranks), strict=True))
        rest = [k for k in range(4) if k not in cuts[bond].modes]
        rows_ = int(np.prod([weight.shape[k] for k in cuts[bond].modes]))
        values = np.linalg.svd(
            weight.transpose([*cuts[bond].modes, *rest]).reshape(rows_, -1), compute_uv=False
        )
        (report,) = tnc.shrink(layer, bond, size - 1)
        wanted = np.linalg.norm(values[size - 1 :]) / np.linalg.norm(values)
        assert report.error == pytest.approx(wanted, rel=1e-6, abs=1e-9)
        after = layer.weight.detach().t().reshape(*INS, *OUTS).numpy()
        change = np.linalg.norm(after - weight) / np.linalg.norm(weight)
        assert report.error == pytest.approx(change, rel=1e-9)


@pytest.mark.parametrize("name", ["CP", "Kronecker", "TensorRing", "BlockTerm", "Monarch"])
def test_other_bonds_lose_less_than_their_last_channel_is(name: str) -> None:
    layer = linear(name, rank=3)
    for bond, size in bonds_of(layer).items():
        if size == 1:
            continue
        own = copy.deepcopy(layer)
        weight = own.weight.detach().clone()
        (report,) = tnc.shrink(own, bond, size - 1)
        change = float((own.weight - weight).norm() / weight.norm())
        assert report.error == pytest.approx(change, rel=1e-6)
        assert change <= _without_last(layer, bond, weight) + 1e-9


def _without_last(layer: Any, bond: str, weight: Tensor) -> float:
    cut = copy.deepcopy(layer)
    (holder,) = holders_of(cut)
    with torch.no_grad():
        for name, axis in joints_of(holder.network)[bond].ends:
            holder.cores()[name].select(axis, -1).zero_()
    return float((cut.weight - weight).norm() / weight.norm())


def test_a_tolerance_is_kept_with_few_parameters() -> None:
    dense = nn.Linear(24, 24).double()
    with torch.no_grad():
        u, s, vh = torch.linalg.svd(dense.weight)
        dense.weight.copy_(u @ torch.diag(s * 0.7 ** torch.arange(24)) @ vh)
    for format in (TT, TTMatrix, LowRank):
        layer = tnc.nn.Linear.from_dense(dense, format(99, clamp=True))
        (report,) = tnc.shrink(layer, tolerance=0.1)
        assert 0.01 < report.error <= 0.1
        assert report.parameters_after < report.parameters_before
    assert tnc.shrink(layer, tolerance=1e-12) == []


def test_a_shared_core_is_shrunk_at_all_its_sites() -> None:
    layer = linear("shared ring")
    (report,) = tnc.shrink(layer, "b3", 2)
    assert report.bonds == {"b3": (3, 2)} and layer.cores.A.shape == (2, 4, 2)


# ---------------------------------------------------------------------------- what is refused


def square(ins: Any, outs: Any) -> Any:
    r = tnc.Index("r", 2)
    return tnc.contract(tnc.param("A", *ins, r), tnc.param("A", *outs, r), out=(*ins, *outs))


def with_constant(ins: Any, outs: Any) -> Any:
    r = tnc.Index("r", 2)
    known = tnc.constant("K", r, value=np.ones(2))
    return tnc.contract(tnc.param("A", *ins, r), known, tnc.param("B", r, *outs), out=(*ins, *outs))


def squared(ins: Any, outs: Any) -> Any:
    r = tnc.Index("r", 2)
    return tnc.tanh(tnc.param("A", *ins, r) @ tnc.param("B", r, *outs))


def pruned() -> Any:
    layer = linear("TT")
    prune.l1_unstructured(layer.cores, "G1", 0.5)
    return layer


def of_custom(network: Any) -> Any:
    return tnc.nn.Linear(6, 6, format=Custom(network), in_shape=(6,), out_shape=(6,))


CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "below one": (lambda: tnc.shrink(linear("TT"), "r1", 0), RankError, "size 0"),
    "no larger bond": (lambda: tnc.shrink(linear("TT"), "r1", 9), RankError, "cannot shrink"),
    "no smaller bond": (lambda: tnc.inflate(linear("TT"), "r1", 1), RankError, "cannot grow"),
    "too much to carry": (lambda: tnc.inflate(linear("TT"), "r1", 4), RankError, "at most 3"),
    "no number": (lambda: tnc.inflate(linear("TT"), "r1", 2.5), ArgumentError, "2.5"),  # type: ignore[arg-type]
    "unknown bond": (lambda: tnc.inflate(linear("TT"), "r9", 3), ArgumentError, "'r1'"),
    "no text": (lambda: tnc.inflate(linear("TT"), 1, 3), ArgumentError, "pattern"),  # type: ignore[arg-type]
    "dense": (lambda: tnc.inflate(mlp(), "r1", 3), ArgumentError, "tensorized"),
    "no module": (lambda: tnc.inflate("layer", "r1", 3), ArgumentError, "str"),  # type: ignore[arg-type]
    "dense format": (lambda: tnc.inflate(linear("Dense"), "r", 3), ArgumentError, "it is dense"),
    "a core with itself": (lambda: tnc.inflate(of_custom(square), "r", 3), FormatError, "itself"),
    "a constant": (lambda: tnc.inflate(of_custom(with_constant), "r", 3), FormatError, "constant"),
    "no numbers": (
        lambda: tnc.inflate(linear("TT").to("meta"), "r1", 3),
        ArgumentError,
        "meta device",
    ),
    "computed cores": (lambda: tnc.inflate(pruned(), "r1", 3), ArgumentError, "computed"),
    "more than one contraction": (
        lambda: tnc.inflate(of_custom(squared), "r", 3),
        FormatError,
        "no bonds to resize",
    ),
    "no goal": (lambda: tnc.shrink(linear("TT")), ArgumentError, "tolerance="),
    "two goals": (lambda: tnc.shrink(linear("TT"), to=1, tolerance=0.1), ArgumentError, "one of"),
    "all of it": (lambda: tnc.shrink(linear("TT"), tolerance=1.5), ArgumentError, "1.5"),
    "a tolerance for a shared core": (
        lambda: tnc.shrink(linear("shared ring"), tolerance=0.1),
        FormatError,
        "several sites",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_refused(case: str) -> None:
    call, kind, text = CALLS[case]
    with pytest.raises(kind, match=text) as caught:
        call()
    assert "fix:" in str(caught.value)


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.Adam(mlp().parameters()),
        "adam",
        lambda model: torch.optim.LBFGS(model.parameters()),
    ],
    ids=["another model's", "text", "state of another shape"],
)
def test_after_an_error_nothing_has_changed(optimizer: Any) -> None:
    model = mlp().double()
    tnc.tensorize_(model, CP(4))
    x = rows().double()
    if callable(optimizer):
        optimizer = optimizer(model)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    before, wanted = snapshot(model), model(x)
    with pytest.raises(ArgumentError):
        tnc.inflate(model, "*", 5, optimizer=optimizer)
    assert_unchanged(model, before)
    assert torch.equal(model(x), wanted)


def test_an_error_in_the_middle_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp().double()
    tnc.tensorize_(model, CP(4))
    before = snapshot(model)
    resize = tnc.nn.Linear.resize

    def failing(layer: Any, *args: Any) -> None:
        resize(layer, *args)
        if layer is model[2]:
            raise RuntimeError("stop")

    monkeypatch.setattr(tnc.nn.Linear, "resize", failing)
    with pytest.raises(RuntimeError, match="stop"):
        tnc.inflate(model, "*", 5)
    assert_unchanged(model, before)
    assert model(rows().double()).shape == (5, 12)


# ---------------------------------------------------------------------------- while training


def test_adaptive_ranks_find_a_low_rank() -> None:
    target = torch.randn(24, 3) @ torch.randn(3, 24) / 5
    layer = tnc.nn.Linear(24, 24, format=LowRank(12))
    adam = torch.optim.Adam(layer.parameters(), lr=2e-2)
    ranks = tnc.AdaptiveRank(layer, adam, tolerance=0.1, every=50, last=300)
    x = torch.randn(200, 24)
    for _ in range(400):
        loss = (layer(x) - x @ target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        ranks.step()
    assert bonds_of(layer)["r"] == 3
    assert float(loss.detach()) < 1e-3 * float((x @ target).square().mean())
    assert [number for number, _ in ranks.history] == sorted(n for n, _ in ranks.history)


def test_adaptive_ranks_follow_their_schedule() -> None:
    layer = linear("LowRank", rank=6)
    asked: list[float] = []

    def tolerance(part: float) -> float:
        asked.append(part)
        return 0.0

    ranks = tnc.AdaptiveRank(layer, tolerance=tolerance, every=2, last=4)
    for _ in range(9):
        ranks.step()
    assert asked == [0.5, 1.0]
    again = tnc.AdaptiveRank(layer, tolerance=0.1, every=2, last=4)
    again.load_state_dict(ranks.state_dict())
    assert again.steps == 9 and again.step() == []
    for bad in (dict(tolerance=2.0), dict(tolerance=0.1, every=0), dict(tolerance=True)):
        with pytest.raises(ArgumentError):
            tnc.AdaptiveRank(layer, **bad)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError):
        tnc.AdaptiveRank(mlp(), tolerance=0.1)
    with pytest.raises(ArgumentError, match="optimizer= is a str"):
        tnc.AdaptiveRank(layer, "adam", tolerance=0.1)
