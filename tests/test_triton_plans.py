"""Which launches a layer becomes: by predicted time, in orders that one launch can run."""

from __future__ import annotations

import pytest
import torch

import tncompiler as tnc
from tests.fuzz import check_network
from tests.networks import fuzzed_network
from tests.test_triton import FORMATS, check_layer, launches
from tncompiler.backends.triton import stretches, training
from tncompiler.backends.triton.actions import count_launches
from tncompiler.backends.triton.atoms import Unfit
from tncompiler.backends.triton.bundle import Bundle
from tncompiler.backends.triton.fuse import Action, fuse, program_low_dtype
from tncompiler.backends.triton.launches import plan_launches, planned_us
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


def test_small_tensors_are_joined_before_a_sweep_from_the_innermost() -> None:
    """the two cores of one side that lie together, and none across from input to result"""
    b, r, *modes = tnc.indices("b r i j k o p", b=64, r=4, i=6, j=6, k=6, o=5, p=5)
    cores = [tnc.param(f"G{k}", mode, r) for k, mode in enumerate(modes)]
    i, j, k, o, p = modes
    y = tnc.contract(tnc.input("x", b, i, j, k), *cores, out=(b, o, p))
    f = tnc.compile(y, dtype="float32")
    logical = f.compilation.logical(f.compilation.default_dtypes("float32"))
    step = next(step for step in logical.steps if len(step.operands) > 2)
    (path,) = sweep_orders(logical, {}, joined=6 * 6 * 4).values()
    names = [logical.values[name].axes for name in step.operands]
    joined = [{*names[a], *names[c]} for a, c in path[:2]]
    assert joined == [{"o", "p", "r"}, {"j", "k", "r"}]
    (apart,) = sweep_orders(logical, {}, joined=5 * 5 * 4 - 1).values()
    assert apart == sweep_orders(logical, {})[step.out.name]


def test_gradients_of_joined_cores_are_made_before_programs_add_up() -> None:
    """what is linear in a program's sums costs no launch, and each core is made of the sums once"""
    cp = tnc.nn.Linear(
        512, 512, format=tnc.formats.CP(rank=8), in_shape=(8, 8, 8), out_shape=(8, 8, 8),
        implementation="factorized", backend="triton",
    )  # fmt: skip
    _, backward = programs("float16", cp)
    (bundle,) = (a for a in plan_launches(backward).actions if isinstance(a, Bundle))
    (whole,) = bundle.ways[0]
    assert any(len(step.operands) == 2 for step in whole.reduced)
    assert count_launches(plan_launches(backward).actions) == 2


def test_without_gradients_the_fastest_order_is_launched_too() -> None:
    cp = tnc.nn.Linear(
        512, 512, format=tnc.formats.CP(rank=8), in_shape=(8, 8, 8), out_shape=(8, 8, 8),
        implementation="factorized", backend="triton",
    )  # fmt: skip
    compilation = cp.cores.compilation
    given = compilation.default_dtypes("float16"), compilation.nominal({"b": 4096})
    planned = compilation.on("triton").inference(*given).fitted.program
    launched = compilation.inference_program(*given, "triton")
    times = [planned_us(plan_launches(program)) for program in (launched, planned)]
    assert times[0] < times[1]
    assert (
        compilation.inference_program(*given, "torch")
        == compilation.inference(*given).fitted.program
    )


def test_saving_activations_takes_a_clear_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """a forward pass that saves nothing has one result"""
    found = []
    for factor in (training.SAVING, 1.0):
        monkeypatch.setattr(training, "SAVING", factor)
        sides = {"in_shape": (16, 8, 8), "out_shape": (16, 8, 8)}
        cores = tnc.formats.TTMatrix(rank=8)
        made = tnc.nn.Linear(
            1024, 1024, format=cores, implementation="factorized", backend="triton", **sides
        )
        made.cores.compilation._cache.clear()  # layers of one structure share it
        found.append(len(programs("float16", made)[0].outputs))
        made.cores.compilation._cache.clear()
    assert found[0] == 1 < found[1]


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


def test_a_branch_sums_what_the_whole_sums() -> None:
    """Two indices of one size: a branch streamed the other one, and summed what the whole did not
    (found among 5,000 random networks)."""
    check_network(fuzzed_network(704_936), ("triton",))
