"""Which launches a layer becomes: by predicted time, in orders that one launch can run."""

from __future__ import annotations

import pytest
import torch

import tncompiler as tnc
from tests.test_triton import FORMATS, check_layer, launches
from tncompiler.backends.triton import stretches, training
from tncompiler.backends.triton.actions import count_launches
from tncompiler.backends.triton.atoms import Unfit
from tncompiler.backends.triton.bundle import Bundle
from tncompiler.backends.triton.fuse import Action, fuse, program_low_dtype
from tncompiler.backends.triton.launches import plan_launches
from tncompiler.backends.triton.predict import LAUNCH_US, predicted_us
from tncompiler.ir.program import Program
from tncompiler.planning.schedule import schedule
from tncompiler.planning.sweep import sweep_orders


def programs(dtype: str, layer: tnc.nn.Linear | None = None) -> tuple[Program, Program]:
    """Forward and backward; if no other, of a layer whose cheapest order first joins two cores."""
    if layer is None:
        layer = tnc.nn.Linear(1024, 1024, format=tnc.formats.TTMatrix(rank=8), backend="triton")
    compilation = layer.cores.compilation
    wrt = tuple(leaf.name for leaf in (*compilation.inputs, *compilation.params))
    dtypes, nominal = compilation.default_dtypes(dtype), compilation.nominal({"b": 256})
    made = compilation.training_programs(dtypes, nominal, wrt, "triton")
    return made.forward, made.backward


def pairwise(program: Program) -> list[Action]:
    """The program without a chain."""
    return fuse(program, program_low_dtype(program))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_default_factors_take_one_launch_forward_and_two_backward(dtype: str) -> None:
    assert [count_launches(plan_launches(program).actions) for program in programs(dtype)] == [1, 2]


@pytest.fixture
def stepwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is a chain."""

    def refuse(program: Program, low: str | None) -> Bundle:
        raise Unfit("not today")

    monkeypatch.setattr(stretches, "find_bundle", refuse)
    monkeypatch.setattr(training, "find_bundle", refuse)


@pytest.mark.usefixtures("stepwise")
@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_in_pairwise_steps_agrees_with_float64(name: str) -> None:
    check_layer(name, torch.float16, batch=7)


@pytest.mark.usefixtures("stepwise")
def test_reshapes_and_casts_take_no_launch() -> None:
    """two products forward; backward three, the sum for the bias, and one for what both read"""
    layer = tnc.nn.Linear(1024, 512, format=tnc.formats.LowRank(rank=32), backend="triton").half()
    assert launches(layer.cores.source({"b": 256})) == 2
    made = programs("float16", layer)
    assert [count_launches(plan_launches(p).actions) for p in made] == [2, 5]
    kept = [a.value for a in made[1].arguments if a.kind == "saved"]
    assert [value.shape[1:] for value in kept] == [(32,)], "x and the cores are read again"


def test_an_axis_apart_in_two_ways_stays_as_it_is() -> None:
    i = tnc.Index("i", 12)
    x = tnc.input("x", i)
    a = x.split(i, (tnc.Index("a", 3), tnc.Index("b", 4)))
    b = x.split(i, (tnc.Index("c", 4), tnc.Index("d", 3)))
    f = tnc.compile((tnc.relu(a), tnc.relu(b)), backend="triton")
    given = torch.randn(12)
    for got, shape in zip(f(given), ((3, 4), (4, 3)), strict=True):
        torch.testing.assert_close(got, given.relu().reshape(shape))


def test_the_plan_is_the_faster_one_by_prediction() -> None:
    for program in programs("float16"):
        chained = plan_launches(program).actions
        assert any(isinstance(action, Bundle) for action in chained)
        assert predicted_us(chained, program) < predicted_us(pairwise(program), program)


def test_every_launch_costs_its_start() -> None:
    forward, _ = programs("float16")
    actions = pairwise(forward)
    assert predicted_us(actions, forward) >= LAUNCH_US * count_launches(actions)
    assert predicted_us([], forward) == 0


def test_a_sweep_takes_the_largest_operand_through_the_others() -> None:
    b, i, j, r, o = tnc.indices("b i j r o", b=64, i=6, j=5, r=4, o=7)
    cores = tnc.param("G1", i, r), tnc.param("G2", r, j, o)
    y = tnc.contract(cores[0], tnc.input("x", b, i, j), cores[1], out=(b, o))
    f = tnc.compile(y, dtype="float32")
    logical = f.compilation.logical(f.compilation.default_dtypes("float32"))
    (path,) = sweep_orders(logical, {}).values()
    assert all(max(pair) >= 1 for pair in path)
    held = [pair[0] for pair in path]
    sizes = [len(logical.values[name].shape) for name in logical.steps[-1].operands]
    assert held == [sizes.index(3), 3]


def test_a_sweep_does_not_count_scalars() -> None:
    i, j, k = tnc.indices("i j k", i=6, j=5, k=4)
    scale, other = tnc.param("s"), tnc.param("G", j, k)
    two = tnc.compile(tnc.contract(scale, tnc.input("x", i, j), other, out=(i, k)))
    three = tnc.contract(scale, tnc.input("x", i, j), other, tnc.param("H", k, i), out=(i,))
    for f, lengths in ((two, []), (tnc.compile(three), [2])):
        logical = f.compilation.logical(f.compilation.default_dtypes("float32"))
        orders = sweep_orders(logical, {})
        assert [len(path) for path in orders.values()] == lengths
        schedule(logical, {}, f.compilation.options, orders)


def test_between_launches_float16_keeps_the_range_of_float32() -> None:
    """a product of a product that is far over what float16 holds; two free sizes are no chain"""
    b, c, j, k = tnc.indices("b c j k", j=24, k=24)
    x, y = tnc.input("x", b, j), tnc.input("y", j, k)
    first = tnc.relu(tnc.contract(x, y, out=(b, k)))
    f = tnc.compile(
        tnc.contract(first, tnc.input("z", c, k), out=(b, c)), backend="triton", dtype="float16"
    )
    given = [torch.full((5, 24), 200.0), torch.full((24, 24), 200.0), torch.full((7, 24), 1e-4)]
    given = [g.half() for g in given]
    wanted = given[0].double() @ given[1].double() @ given[2].double().t()
    torch.testing.assert_close(f(*given).double(), wanted, rtol=2e-3, atol=0)
    assert launches(f.source()) == 2
    assert '"tf32")' in f.source()
