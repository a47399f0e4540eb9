"""Plans inside a limit of memory: what is kept, made again and sliced; peaks as measured."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tncompiler as tnc
from tests.networks import random_network
from tncompiler.function import NumpyFunction
from tncompiler.ir.errors import PlanError
from tncompiler.ir.passes.partition import inputs_of, partition
from tncompiler.ir.program import Literal, Loop, Permute, Program
from tncompiler.ir.sizes import evaluate
from tncompiler.planning.machine import as_machine
from tncompiler.planning.memory import step_peak
from tncompiler.planning.recompute import EXACT_UP_TO, choose_kept
from tncompiler.planning.timing import program_us

RATES = as_machine("reference").planning
I, J, O, P, R = tnc.indices("i j o p r", i=16, j=24, o=20, p=28, r=12)
(B,) = tnc.indices("b")
BATCH = 256


def layer() -> tnc.Expr:
    x = tnc.input("x", B, I, J)
    y = tnc.contract(x, tnc.param("G1", I, O, R), tnc.param("G2", R, J, P), out=(B, O, P))
    return tnc.gelu(y + tnc.param("bias", O, P))


def numpy_layer(**options: Any) -> NumpyFunction:
    plan = tnc.PlanOptions(**options) if options else None
    return tnc.compile(layer(), framework="numpy", seed=0, plan=plan)  # type: ignore[no-any-return]


def step_us(f: NumpyFunction, batch: int) -> float:
    """Predicted microseconds of a training step."""
    compilation = f.compilation
    nominal = compilation.nominal({next(iter(compilation.free_symbols)): batch})
    step = compilation.training(f._dtypes(), nominal, f._differentiable(None))
    return sum(program_us(program, nominal, RATES) for program in (step.forward, step.backward))


def data(batch: int = BATCH) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 16, 24)).astype("float32")


# ---------------------------------------------------------------------------- keep or make again


def joint_of(f: NumpyFunction, sizes: Any) -> tuple[Program, Any]:
    compilation = f.compilation
    nominal = compilation.nominal(sizes)
    return compilation.joint(f._dtypes(), nominal, f._differentiable(None)), nominal


def choices_of(joint: Program, count: int) -> list[str]:
    """The computed values that a set to keep may be made of."""
    forward = partition(joint, count).forward
    given = inputs_of(joint)  # copies of parameters and constants are worth keeping
    return [
        step.out.name
        for step in forward.steps
        if step.out.name not in joint.outputs[:count]
        and not isinstance(step.op, Literal)
        and not (isinstance(step.op, Permute) and given.issuperset(step.operands))
    ]


def brute_force(joint: Program, count: int, nominal: Any, limit: int) -> float | None:
    """The least time of all sets that fit; every set of values is tried, as programs."""
    times = []
    names = choices_of(joint, count)
    for size in range(len(names) + 1):
        for chosen in combinations(names, size):
            cut = partition(joint, count, {*chosen, *joint.outputs[:count]})
            if step_peak(cut, nominal) <= limit:
                times.append(program_us(cut.backward, nominal, RATES))
    return min(times, default=None)


def small_joints() -> Iterator[tuple[Program, int, Any]]:
    for seed in range(400):
        case = random_network(9_000 + seed, size=5, smooth=True, dtype="float64")
        f = tnc.compile(case.outputs, framework="numpy", dtype="float64", sizes=case.given)
        sizes = {symbol: case.sizes[symbol] for symbol in f.compilation.free_symbols}
        joint, nominal = joint_of(f, sizes)
        count = len(case.outputs)
        if 3 <= len(choices_of(joint, count)) <= 8 and partition(joint, count).saved:
            yield joint, count, {**f.compilation.binding, **nominal}


def test_what_is_kept_equals_brute_force() -> None:
    """it equals brute force on programs of up to 12 intermediates"""
    compared = tight = 0
    for joint, count, nominal in small_joints():
        most = step_peak(partition(joint, count), nominal)
        for share in (1.0, 0.8, 0.6, 0.4):
            limit = int(most * share)
            kept = choose_kept(joint, count, nominal, limit, RATES)
            expected = brute_force(joint, count, nominal, limit)
            if kept is None:
                assert expected is None
                continue
            cut = partition(joint, count, kept)
            assert step_peak(cut, nominal) <= limit
            assert program_us(cut.backward, nominal, RATES) == pytest.approx(expected)
            compared, tight = compared + 1, tight + (share < 1)
        if compared > 64 and tight > 20:
            break
    assert compared > 60 and tight > 20


@pytest.mark.slow
def test_twelve_intermediates_equal_brute_force() -> None:
    i = tnc.indices("i", size=64)[0]
    h = tnc.input("x", B, i)
    for number in range(5):
        j = tnc.Index(f"j{number}", 8 if number % 3 else 64)
        h = tnc.tanh(h) @ tnc.param(f"W{number}", h.indices[1], j)
    f = tnc.compile(h.sum(h.indices[1]), framework="numpy")
    joint, nominal = joint_of(f, {"b": 512})
    names = choices_of(joint, 1)
    assert 8 <= len(names) <= EXACT_UP_TO
    most = step_peak(partition(joint, 1), nominal)
    for share in (0.9, 0.7, 0.5):
        kept = choose_kept(joint, 1, nominal, int(most * share), RATES)
        expected = brute_force(joint, 1, nominal, int(most * share))
        if expected is None:
            assert kept is None
        else:
            found = program_us(partition(joint, 1, kept).backward, nominal, RATES)
            assert found == pytest.approx(expected)


def deep() -> tnc.Expr:
    h, i = tnc.input("x", B, I), I
    for number in range(12):
        o = tnc.Index(f"o{number}", 96 if number % 2 else 32)
        h, i = tnc.gelu(h @ tnc.param(f"W{number}", i, o)), o
    return h


def test_many_intermediates_are_dropped_until_the_step_fits() -> None:
    f = tnc.compile(deep(), framework="numpy")
    joint, nominal = joint_of(f, {"b": 256})
    assert len(choices_of(joint, 1)) > EXACT_UP_TO
    everything = partition(joint, 1)
    most, time = step_peak(everything, nominal), program_us(everything.backward, nominal, RATES)
    for share in (0.8, 0.6, 0.5):
        kept = choose_kept(joint, 1, nominal, int(most * share), RATES)
        assert kept is not None
        cut = partition(joint, 1, kept)
        assert step_peak(cut, nominal) <= most * share
        assert program_us(cut.backward, nominal, RATES) < 1.6 * time
        assert cut.recomputed


@pytest.mark.parametrize("recompute", ["auto", "never", "always"])
def test_recompute_says_what_is_saved(recompute: str) -> None:
    f = numpy_layer(recompute=recompute, training=True)
    plan = f.plan({"b": BATCH})
    assert bool(plan.saved) == (recompute != "always")
    assert bool(plan.recomputed) == (recompute == "always")
    y, gradients = values(f)
    expected, wanted = values(numpy_layer())
    np.testing.assert_array_equal(y, expected)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=2e-4, atol=2e-4)


# ---------------------------------------------------------------------------- inside the limit


def values(f: NumpyFunction, batch: int = BATCH) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    y, pull = f.vjp(data(batch))
    return y, pull(np.ones_like(y))


def numpy_peak(f: NumpyFunction, batch: int = BATCH) -> int:
    """The most bytes that NumPy holds during a training step, the cotangent left out."""
    x = data(batch)
    y, pull = f.vjp(x)
    cotangent = np.ones_like(y)
    pull(cotangent)
    del y, pull
    gc.collect()
    tracemalloc.start()
    try:
        _y, pull = f.vjp(x)
        pull(cotangent)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Allocations(TorchDispatchMode):
    """Bytes of new storages that are alive, and the most there were."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.seen = {t.untyped_storage().data_ptr() for t in known}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self.seen or not size:
            return
        self.seen.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, address, size)

    def _free(self, address: int, size: int) -> None:
        self.seen.discard(address)
        self.live -= size


def test_allocations_are_counted() -> None:
    x = torch.ones(1000)
    with Allocations([x]) as counted:
        y = x * 2
        z = y + 1
        del y
        z.view(10, 100)
    assert counted.peak == 8000 and counted.live == 4000


def torch_peak(module: torch.nn.Module, batch: int = BATCH) -> int:
    """The most bytes that torch holds during a training step, the cotangent left out."""
    x = torch.from_numpy(data(batch)).requires_grad_()
    cotangent = torch.ones_like(module(x))
    with Allocations([x, cotangent, *module.parameters()]) as counted:
        y = module(x)
        torch.autograd.grad(y, [x, *module.parameters()], cotangent)
    return counted.peak


LIMITS = (1.0, 0.75, 0.5, 0.4)


@pytest.fixture(scope="module")
def unlimited() -> int:
    return int(numpy_layer().cost({"b": BATCH}, part="step").peak_bytes)


@pytest.mark.parametrize("share", LIMITS)
def test_steps_fit_and_peaks_are_as_predicted(share: float, unlimited: int) -> None:
    """predicted peak within 10 % of measured, NumPy and torch allocations"""
    limit = int(unlimited * share)
    f = numpy_layer(memory_limit=limit)
    predicted = f.cost({"b": BATCH}, part="step").peak_bytes
    assert predicted <= limit
    assert predicted == pytest.approx(numpy_peak(f), rel=0.1)
    module = tnc.compile(layer(), backend="torch", seed=0, plan=tnc.PlanOptions(memory_limit=limit))
    assert predicted == pytest.approx(torch_peak(module), rel=0.1)
    y, gradients = values(f)
    expected, wanted = values(numpy_layer())
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-4)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], rtol=2e-3, atol=2e-3)


def test_a_limited_module_trains_as_an_unlimited_one(unlimited: int) -> None:
    plan = tnc.PlanOptions(memory_limit=unlimited // 2)
    free = tnc.compile(layer(), backend="torch", seed=0)
    limited = tnc.compile(layer(), backend="torch", seed=0, plan=plan)
    x = torch.from_numpy(data())
    for module in (free, limited):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    for one, other in zip(free.parameters(), limited.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_other_batch_sizes_run_inside_the_limit_too(unlimited: int) -> None:
    f, g = numpy_layer(memory_limit=unlimited // 2), numpy_layer()
    for batch in (0, 1, 3, 300):
        y, gradients = values(f, batch)
        expected, wanted = values(g, batch)
        np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(gradients["G1"], wanted["G1"], rtol=2e-3, atol=2e-3)
        assert f.cost({"b": batch}, part="step").peak_bytes <= unlimited // 2


def test_the_code_has_the_loop_and_the_plan_names_the_index(unlimited: int) -> None:
    f = numpy_layer(memory_limit=unlimited * 2 // 5, training=True)
    plan = f.plan({"b": BATCH})
    assert plan.sliced_indices and plan.peak_memory <= unlimited * 2 // 5
    source = f.source({"b": BATCH}, part="backward")
    assert "for start in range(0, " in source
    text = f.explain({"b": BATCH}, part="step")
    assert "loop over " in text and " at a time" in text
    cost = f.cost({"b": BATCH}, part="step")
    assert [step.kind for step in plan.steps].count("loop") > 0
    at = {B.size: BATCH}
    assert evaluate(plan.flops, at) == cost.flops
    assert evaluate(plan.total_write, at) == cost.bytes_written


# ---------------------------------------------------------------------------- large networks


def lattice(side: int, bond: int) -> tnc.Expr:
    def leg(a: tuple[int, int], b: tuple[int, int]) -> tnc.Index:
        return tnc.Index(f"k{a[0]}{a[1]}{b[0]}{b[1]}", bond)

    tensors = []
    for r in range(side):
        for c in range(side):
            near = [(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)]
            legs = [
                leg(*sorted([(r, c), other])) for other in near if all(0 <= k < side for k in other)
            ]
            tensors.append(tnc.input(f"x{r}{c}", *legs))
    return tnc.contract(*tensors, out=())


def test_a_lattice_that_does_not_fit_is_sliced() -> None:
    expr = lattice(4, 4)
    free = tnc.compile(expr, framework="numpy", dtype="float64")
    limit = free.cost().peak_bytes // 3
    plan = tnc.PlanOptions(memory_limit=limit)
    f = tnc.compile(expr, framework="numpy", dtype="float64", plan=plan)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal([int(i.size) for i in x.indices]) for x in f.compilation.inputs]
    assert f.cost().peak_bytes <= limit
    assert f.plan().sliced_indices
    np.testing.assert_allclose(f(*arrays), free(*arrays), rtol=1e-9)
    again = tnc.compile(expr, framework="numpy", dtype="float64", plan=plan)
    assert again.source() == f.source()


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize("limit", ["1GiB", "1.5 MB", 10**9, "200kb", "77"])
def test_limits_in_words(limit: Any) -> None:
    assert isinstance(tnc.PlanOptions(memory_limit=limit).memory_limit, int)


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "", "GiB", "1 parsec", "-3MB", "1e3", [1]])
def test_bad_limits(limit: Any) -> None:
    with pytest.raises(PlanError, match="memory_limit"):
        tnc.PlanOptions(memory_limit=limit)


@pytest.mark.parametrize("part", ["forward", "step"])
def test_the_error_names_the_smallest_limit_and_it_works(part: str) -> None:
    """names the smallest feasible one and the tensor that forces it"""
    f = numpy_layer(memory_limit=1000)
    with pytest.raises(PlanError) as caught:
        f.cost({"b": BATCH}, part=part)
    message = str(caught.value)
    least = int(message.split("memory_limit=")[1].split()[0])
    assert "takes" in message and "'t" in message
    assert numpy_layer(memory_limit=least).cost({"b": BATCH}, part=part).peak_bytes <= least
    with pytest.raises(PlanError):
        numpy_layer(memory_limit=least // 2).cost({"b": BATCH}, part=part)


def test_a_limit_that_is_not_needed_costs_nothing() -> None:
    """Under a limit more orders are looked at to the end; the step is as fast, or faster."""
    limited, free = numpy_layer(memory_limit=10**15), numpy_layer()
    made, wanted = (step_us(f, 64) for f in (limited, free))
    assert made <= wanted
    program = limited.program({"b": 64})
    assert not any(isinstance(step.op, Loop) for step in program.steps)
