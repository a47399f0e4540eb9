"""tnc.interpret over every format and family of layers: what is seen is what the layer computes."""

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tncompiler as tnc
from tests.conftest import ROOT
from tests.oracle import epsilon, worst_ratio
from tests.test_formats import make
from tests.test_formats_gauge import random_gauge
from tncompiler import formats, interpret
from tncompiler.interpret.stacks import StackModule
from tncompiler.ir.errors import (
    ArgumentError,
    FormatError,
    PlanError,
    ShapeError,
    UnknownIndex,
)
from tncompiler.ir.reference import evaluate_all

SHAPES = ((3, 4), (2, 5))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def linear(name: str, dtype: torch.dtype = torch.float64, rank: int = 3) -> Any:
    form, modes = make(name, rank, clamp=True), dict(in_shape=SHAPES[0], out_shape=SHAPES[1])
    layer = tnc.nn.Linear(12, 10, dtype=dtype, format=form, **modes)
    with torch.no_grad():
        layer.bias.normal_()
    return layer


def rows(count: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 12, dtype=dtype)


def layers() -> Iterator[Any]:
    """Layers of all families, with what they are called with."""
    ring, double = formats.TensorRing(2), {"dtype": torch.float64}
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    for name in ("TT", "CP", "Monarch", "TTMatrix"):
        form = make(name, 2, clamp=True)
        yield f"conv-{name}", tnc.nn.Conv2d(4, 6, 3, padding=1, format=form, **double), (x,)
    strided = dict(stride=2, groups=2, padding=1, padding_mode="circular", format=ring)
    yield "conv-groups", tnc.nn.Conv2d(4, 6, 3, **strided, **double), (x,)
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    for outs in (6, 20):
        conv = tnc.nn.GraphConv(12, outs, format=formats.TT(2), **double)
        yield f"graph-{outs}", conv, (torch.randn(4, 12, dtype=torch.float64), edges)
    tokens = torch.randint(30, (2, 5))
    for form in (formats.TT(3, clamp=True), formats.TTMatrix(3), ring):
        table = tnc.nn.Embedding(30, 8, padding_idx=3, format=form, **double)
        yield f"embedding-{form}", table, (tokens,)


FAMILIES = [pytest.param(layer, given, id=name) for name, layer, given in layers()]
FORMATS = [*formats.FORMATS]


def close(a: Any, b: Any, most: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=most, atol=most)


# ---------------------------------------------------------------------------- capture


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_captured_makes_the_output(name: str) -> None:
    layer, x = linear(name), rows()
    for bond, found in interpret.bonds(layer).items():
        seen = interpret.capture(layer, bond, x)
        assert seen.axes[-1] == bond and seen.values.shape[-1] == found.size
        assert seen.values.shape[0] == len(x) and seen.channels.shape == (len(x), found.size)
        close(seen.output, layer(x))


@pytest.mark.parametrize("layer, given", FAMILIES)
def test_every_family_of_layers_can_be_captured(layer: Any, given: Any) -> None:
    for bond, found in interpret.bonds(layer).items():
        seen = interpret.capture(layer, bond, *given)
        assert seen.values.shape[-1] == found.size
        assert seen.values.shape[0] in (given[0].shape[0], given[0].numel())
        close(seen.output, layer(*given))


def test_a_bond_between_inputs_and_outputs_is_seen_alone() -> None:
    layer, x = linear("TT"), rows()
    seen = interpret.capture(layer, "r2", x)
    one, two = layer.cores.G1, layer.cores.G2
    wanted = torch.einsum("bij,ir,rjs->bs", x.reshape(6, 3, 4), one, two)
    close(seen.values, wanted)
    assert seen.cores == ("G1", "G2") and seen.axes == ("b", "r2")
    assert torch.equal(seen.channels, seen.values)
    inner = interpret.capture(layer, "r1", x)
    close(inner.values, torch.einsum("bij,ir->bjr", x.reshape(6, 3, 4), one))
    close(inner.channels, inner.values.norm(dim=1))
    other = interpret.capture(layer, "r2", x, before=("G1", "G2", "G4"))
    assert other.axes == ("b", "r3", "o2", "r2") and other.values.shape == (6, 3, 5, 3)
    close(other.output, layer(x))


def test_the_plan_goes_through_the_intermediate() -> None:
    layer = linear("TT")
    pinned = interpret.pin(layer, "r2")
    steps = pinned.program.plan(sizes={"b": 8}).steps
    (made,) = (step for step in steps if step.equation.startswith(f"{step.name}(b, r2) ="))
    assert made.shape == ("b", "3")
    output = next(step for step in steps if "(b, o1, o2) =" in step.equation)
    assert f" {made.name}(b, r2)" in output.equation
    assert f"{made.name}(b, r2)" in pinned.program.explain(sizes={"b": 8})


def test_captured_values_follow_training_and_have_gradients() -> None:
    layer, x = linear("TT"), rows()
    pinned = interpret.pin(layer, "r2")
    before = pinned(x).values
    before.square().sum().backward()
    assert layer.cores.G1.grad is not None and layer.cores.G4.grad is None
    with torch.no_grad():
        layer.cores.G1.mul_(2)
    close(pinned(x).values, 2 * before)


def test_layers_of_a_model_are_captured_in_one_call() -> None:
    model = nn.Sequential(linear("TT"), nn.Tanh(), tnc.nn.Linear(10, 4, format=formats.LowRank(2)))
    model.double()
    x = rows()
    seen = interpret.capture_in(model, {"0": "r2", "2": "r"}, x)
    close(seen["2"].output, model(x))
    close(seen["0"].output, model[0](x))
    with pytest.raises(ArgumentError, match="name some of 0, 2"):
        interpret.capture_in(model, {"3": "r"}, x)
    model.unused = linear("TT")
    model.forward = lambda x: model[2](model[1](model[0](x)))
    with pytest.raises(ArgumentError, match="did not call unused"):
        interpret.capture_in(model, {"unused": "r1"}, x)


def test_bad_requests_name_what_there_is() -> None:
    layer, x = linear("TT"), rows()
    with pytest.raises(UnknownIndex, match="name one of r1, r2, r3"):
        interpret.capture(layer, "s", x)
    with pytest.raises(UnknownIndex, match="name some of G1, G2, G3, G4"):
        interpret.pin(layer, "r1", before=("H",))
    for before in ((), ("G3",), ("G1", "G2")):
        with pytest.raises(PlanError, match="is not open"):
            interpret.pin(layer, "r1", before=before)
    with pytest.raises(ShapeError):
        interpret.capture(layer, "r1", x[:, :5])
    with pytest.raises(ArgumentError, match="no tensorized layer"):
        interpret.bonds(nn.Linear(2, 2))
    recurrent = tnc.nn.LSTM(4, 4, format=formats.LowRank(2))
    with pytest.raises(ArgumentError, match="weight_ih_l0"):
        interpret.bonds(recurrent)
    part = recurrent.parts()["weight_ih_l0"]
    assert interpret.capture(part, "r", torch.randn(3, 4)).values.shape == (3, 2)
    tied = tnc.nn.Embedding(16, 8, format=make("Custom", 2))
    assert interpret.bonds(tied)["bond"].size == 2


# ---------------------------------------------------------------------------- gauges


@pytest.mark.parametrize("name", FORMATS)
def test_gauges_never_change_the_function(name: str) -> None:
    layer, x = linear(name), rows()
    close(interpret.canonicalize(layer)(x), layer(x))
    for core in dict.fromkeys(layer._table.parameters):
        close(interpret.canonicalize(layer, core)(x), layer(x))
    for bond, found in interpret.bonds(layer).items():
        turned = interpret.regauge(layer, bond, random_gauge(found))
        close(turned(x), layer(x))
        close(interpret.canonicalize(turned)(x), layer(x))


@pytest.mark.parametrize("layer, given", FAMILIES)
def test_gauges_never_change_the_function_of_any_family(layer: Any, given: Any) -> None:
    close(interpret.canonicalize(layer)(*given), layer(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_canonical_layers_keep_their_dtype(dtype: torch.dtype) -> None:
    layer, x = linear("TT", dtype), rows(dtype=dtype)
    made = interpret.canonicalize(layer)
    assert made.cores.G1.dtype is dtype and made is not layer
    most = 1e-5 if dtype is torch.float32 else 0.1
    close(made(x), layer(x), most)


def test_spectrum_of_one_bond_and_of_all() -> None:
    layer = linear("TT")
    every = interpret.spectrum(layer)
    assert [*every] == [*interpret.bonds(layer)]
    one = interpret.spectrum(layer, "r2")
    wanted = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)[:3]
    np.testing.assert_allclose(one.values, wanted, rtol=1e-6)
    with pytest.raises(UnknownIndex, match="r1, r2, r3"):
        interpret.spectrum(layer, "r9")


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_cores_without_finite_numbers_have_no_gauge(number: float) -> None:
    layer = linear("TT")
    for matrix in (np.full((3, 3), number), np.full(3, number)):
        with pytest.raises(ShapeError, match="no inverse"):
            interpret.regauge(layer, "r2", matrix)
    with torch.no_grad():
        layer.cores.G1[0, 0] = number
    for look in (interpret.spectrum, interpret.canonicalize):
        with pytest.raises(FormatError, match="'G1' holds NaN or infinite"):
            look(layer)


# ---------------------------------------------------------------------------- channels


@pytest.mark.parametrize("name", FORMATS)
def test_channels_add_up_and_can_be_left_out(name: str) -> None:
    layer, x = linear(name), rows()
    for bond, found in interpret.bonds(layer).items():
        size = found.size
        without = [interpret.ablate(layer, bond, k)(x) for k in range(size)]
        rest = layer(x) - layer.bias
        close(sum(layer(x) - each for each in without), rest)
        close(interpret.ablate(layer, bond, range(size))(x), layer.bias.expand(6, -1))
        double = interpret.amplify(layer, bond, 0, 2.0)
        close(double(x) - layer(x), layer(x) - without[0])


def test_unknown_channels_are_refused() -> None:
    layer = linear("TT")
    for channel in (-1, 3, True, "0", (0, 3)):
        with pytest.raises(UnknownIndex, match="channels are 0 to 2"):
            interpret.ablate(layer, "r1", channel)
    with pytest.raises(UnknownIndex, match="name one of"):
        interpret.ablate(layer, "q", 0)
    with pytest.raises(ArgumentError, match="factor"):
        interpret.amplify(layer, "r1", 0, "2")


def test_top_inputs_are_those_with_the_largest_activations() -> None:
    layer, x = linear("TT"), rows(20)
    found = interpret.top_inputs(layer, "r2", x, count=3)
    strengths = interpret.capture(layer, "r2", x).values.abs()
    for channel in range(3):
        order = strengths[:, channel].argsort(descending=True)[:3]
        assert torch.equal(found.examples[channel], order)
        close(found.strengths[channel], strengths[order, channel])
    for count in (0, 21, True, 1.5):
        with pytest.raises(ArgumentError, match="from 1 to 20"):
            interpret.top_inputs(layer, "r2", x, count=count)


def test_similarity_of_channels() -> None:
    x = rows(40)
    one, other = linear("TT"), linear("Tucker")
    first = interpret.capture(one, "r2", x)
    with_itself = interpret.similarity(first, first)
    close(with_itself.diagonal(), torch.ones(3, dtype=torch.float64))
    values = first.values.detach().numpy()
    close(with_itself.numpy(), np.corrcoef(values.T) ** 2)
    wide = interpret.capture(other, "p1", x)  # a bond beside which an input mode is open
    across = interpret.similarity(first, wide)
    assert across.shape == (3, 3) and (across >= 0).all() and (across < 1).all()
    turned = interpret.regauge(one, "r2", np.array([-1.0, 3.0, 0.5]))
    close(interpret.similarity(interpret.capture(turned, "r2", x), wide), across)
    dead = interpret.capture(interpret.ablate(one, "r2", 1), "r2", x, before=("G1", "G2"))
    with pytest.raises(ShapeError, match="same batch"):
        interpret.similarity(first, interpret.capture(one, "r2", x[:5]))
    assert (interpret.similarity(dead, first)[1] == 0).all()
    none = interpret.capture(one, "r2", x[:0])
    with pytest.raises(ShapeError, match="of no example"):
        interpret.similarity(none, none)


# ---------------------------------------------------------------------------- stacks


@pytest.mark.parametrize("name", FORMATS)
def test_every_stack_computes_the_layer(name: str) -> None:
    layer = linear(name, torch.float32)
    x, bounded = reference(layer)
    view = interpret.stack_view(layer)
    count = len(layer._table.leaves)
    assert len(view.stacks) == (len([*permutations(range(count))]) if count < 5 else 24)
    assert [s.flops for s in view.stacks] == sorted(s.flops for s in view.stacks)
    for stack in view.stacks[:: max(len(view.stacks) // 6, 1)]:
        assert sorted(stack.cores) == sorted(layer._table.leaves)
        assert sum(stage.parameters for stage in stack.stages) == layer.core_count()
        within(stack.module()(x), bounded)


@pytest.mark.parametrize("name", FORMATS)
def test_the_sum_over_the_channels_of_a_bond_is_the_layer(name: str) -> None:
    layer = linear(name, torch.float32)
    x, bounded = reference(layer)
    view = interpret.stack_view(layer)
    for bond, found in interpret.bonds(layer).items():
        paths = view.paths(bond)
        assert len(paths) == found.size
        assert all(path.parameters_used < layer.core_count() for path in paths) or found.size == 1
        within(sum(path(x) for path in paths) + layer.bias, bounded)


@pytest.mark.parametrize("layer, given", FAMILIES)
def test_stacks_and_paths_of_every_family(layer: Any, given: Any) -> None:
    view = interpret.stack_view(layer, most=3)
    for stack in view.stacks:
        close(stack.module()(*given), layer(*given))
    bond = next(iter(interpret.bonds(layer)))
    total = sum(path(*given) for path in view.paths(bond))
    if layer.bias is not None:
        bias = layer.bias[:, None, None] if total.ndim == 4 else layer.bias
        total = total + bias
    mask = torch.ones_like(total, dtype=torch.bool)
    if isinstance(layer, tnc.nn.Embedding):
        mask[given[0] == layer.padding_idx] = False
    close(total[mask], layer(*given)[mask])


def reference(layer: Any) -> tuple[Tensor, Any]:
    """Inputs, and the layer's output in double precision with the bound of agreement."""
    x = rows(dtype=torch.float32)
    arrays = {name: layer._core(name).detach().numpy() for name in layer._table.leaves}
    arrays |= {"x": x.numpy(), "bias": layer.bias.detach().numpy()}
    (bounded,) = evaluate_all((layer._expression(),), arrays, {}, epsilon("float32"))
    return x, bounded


def within(y: Tensor, bounded: Any) -> None:
    assert worst_ratio(y.detach().numpy(), bounded.value, bounded.bound) <= 1


def test_the_bound_sees_a_missing_path() -> None:
    layer = linear("TT", torch.float32)
    x, bounded = reference(layer)
    paths = interpret.stack_view(layer).paths("r2")
    with pytest.raises(AssertionError):
        within(sum(path(x) for path in paths[1:]) + layer.bias, bounded)


def test_costs_of_a_stack_are_those_of_its_products() -> None:
    layer = linear("TT")
    stacks = {stack.cores: stack for stack in interpret.stack_view(layer).stacks}
    stack = stacks["G1", "G2", "G3", "G4"]
    sizes = [core.numel() for core in layer.held_cores()]
    assert [stage.parameters for stage in stack.stages] == sizes
    assert [stage.inputs for stage in stack.stages] == [12, 12, 3, 6]
    assert [stage.outputs for stage in stack.stages] == [12, 3, 6, 10]
    assert stack.flops == 2 * (12 * 3 + 4 * 3 * 3 + 3 * 2 * 3 + 2 * 3 * 5) and stack.widest == 12
    text = str(interpret.stack_view(layer))
    assert "G1 → G2 → G3 → G4" in text and "r2 (3)" in text


def test_a_stack_runs_in_its_order_and_trains_the_layer() -> None:
    layer, x = linear("TT"), rows()
    for stack in interpret.stack_view(layer).stacks[:2]:
        module = stack.module()
        assert isinstance(module, StackModule)
        module(x).sum().backward()
        flops = module.program.cost(sizes={"b": 1}, part="forward").flops
        assert int(flops) == stack.flops
    assert layer.cores.G1.grad is not None


def test_many_cores_are_searched_by_a_beam() -> None:
    modes = dict(in_shape=(2,) * 6, out_shape=(2,) * 6)
    layer = tnc.nn.Linear(64, 64, format=formats.TT(2), dtype=torch.float64, **modes)
    x = torch.randn(3, 64, dtype=torch.float64)
    view = interpret.stack_view(layer, most=2)
    assert len(view.stacks) == 2
    close(view.stacks[0].module()(x), layer(x))
    close(interpret.capture(layer, "r6", x).output, layer(x))
    for most in (0, True, "2"):
        with pytest.raises(ArgumentError, match="most is"):
            interpret.stack_view(layer, most=most)


def test_shared_cores_can_be_seen_but_not_changed() -> None:
    def uniform(ins: Any, outs: Any) -> Any:
        r, s = tnc.indices("r s", size=3)
        core = tnc.param("A", *ins, r)
        return tnc.contract(core, tnc.param("M", r, s), core(*outs, s))

    layer = tnc.nn.Linear(6, 6, format=formats.Custom(uniform), in_shape=6, out_shape=6)
    layer.double()
    x = torch.randn(4, 6, dtype=torch.float64)
    for bond in interpret.bonds(layer):
        close(interpret.capture(layer, bond, x).output, layer(x))
    assert len(interpret.spectrum(layer)) == 2
    for stack in interpret.stack_view(layer).stacks:
        close(stack.module()(x), layer(x))
    with pytest.raises(FormatError, match="stands at several places"):
        interpret.canonicalize(layer)
    with pytest.raises(FormatError, match="stands at several places"):
        interpret.ablate(layer, "r", 0)


def test_the_page_shows_what_the_layer_says() -> None:
    torch.manual_seed(0)
    modes = dict(in_shape=(4, 4, 4), out_shape=(4, 8, 8))
    layer = tnc.nn.Linear(64, 256, format=formats.TT(8, clamp=True), **modes)
    page = (ROOT / "docs" / "interpret.md").read_text(encoding="utf-8")
    assert str(interpret.stack_view(layer, most=3)) in page
