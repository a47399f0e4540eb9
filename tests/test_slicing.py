"""Loops over blocks of an index: the same values, exact costs, memory as predicted."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.networks import Case, random_network
from tncompiler.backends import emitter_of
from tncompiler.backends.source import load
from tncompiler.backends.sums import RADIX, RunningSum
from tncompiler.function import NumpyFunction
from tncompiler.ir.errors import InvalidProgram
from tncompiler.ir.passes.slicing import linked_axes, slice_index
from tncompiler.ir.program import Loop, Program
from tncompiler.ir.sizes import evaluate
from tncompiler.ir.validate import validate
from tncompiler.planning.cost import program_cost
from tncompiler.planning.memory import SUM_RADIX, peak_bytes
from tncompiler.planning.slicing import Cut, apply_cuts

B, I, J, O, R = tnc.indices("b i j o r", i=6, j=5, o=4, r=3)


def layer() -> tnc.Expr:
    x, bias = tnc.input("x", B, I, J), tnc.param("bias", O)
    y = tnc.contract(x, tnc.param("G1", I, R), tnc.param("G2", R, J, O), out=(B, O))
    return tnc.softmax(tnc.gelu(y + bias), over=O) * y.mean(B)


def programs_of(f: NumpyFunction, sizes: dict[str, int]) -> tuple[Program, Program, Program]:
    """Inference, forward and backward."""
    compilation = f.compilation
    dtypes, nominal = f._dtypes(), compilation.nominal(sizes)
    cut = compilation.training(dtypes, nominal, f._differentiable(None))
    return compilation.scheduled(dtypes, nominal)[0], cut.forward, cut.backward


POSITIONS = ("int32", "int64")  # 0 is one in every index


def arguments_of(program: Program, binding: dict) -> list[np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    shapes = [[evaluate(s, binding) for s in a.value.shape] for a in program.arguments]
    return [
        (rng.standard_normal(shape) * (a.value.dtype not in POSITIONS)).astype(a.value.dtype)
        for shape, a in zip(shapes, program.arguments, strict=True)
    ]


def run(program: Program, arrays: list[np.ndarray], backend: str) -> list[np.ndarray]:
    run = load(emitter_of(backend)(program, "go")).run
    if backend == "numpy":
        return [np.asarray(out) for out in run(*arrays)]
    return [out.numpy() for out in run(*map(torch.from_numpy, arrays))]


def close(got: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    """Whether values agree as different orders of the same sums do in double precision."""
    return all(
        g.shape == w.shape and np.allclose(g, w, rtol=1e-9, atol=1e-9, equal_nan=True)
        for g, w in zip(got, wanted, strict=True)
    )


def test_close_tells_values_apart() -> None:
    one = [np.ones(3)]
    assert close(one, [np.ones(3)])
    assert not close(one, [np.ones(3) + 1e-6])
    assert not close(one, [np.ones((3, 1))])


def every_cut(program: Program, binding: dict, widths: tuple[int, ...]) -> Iterator[Cut]:  # type: ignore[type-arg]
    for name, axis in dict.fromkeys(linked_axes(program).values()):
        if evaluate(program.values[name].shape[axis], binding) > 1:
            for width in widths:
                yield from (Cut(name, axis, width, sink) for sink in (False, True))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_every_index_of_a_layer_can_be_gone_through_in_blocks(backend: str, batch: int) -> None:
    f = tnc.compile(layer(), framework="numpy", dtype="float64", seed=0)
    binding = f.compilation.nominal({"b": batch})
    loops = 0
    for program in programs_of(f, {"b": 7}):
        arrays = arguments_of(program, binding)
        with np.errstate(invalid="ignore", divide="ignore"):
            wanted = run(program, arrays, "numpy")
            for cut in every_cut(program, f.compilation.nominal({"b": 7}), (1, 3)):
                sliced = validate(apply_cuts(program, [cut]), scheduled=True)
                loops += any(isinstance(step.op, Loop) for step in sliced.steps)
                assert close(run(sliced, arrays, backend), wanted), cut
    assert loops > 20


def check_random_network(seed: int, changed: Callable[[Program], Program] = lambda p: p) -> None:
    """Some cuts of a random network, alone and two together, give the values of the whole.

    ``changed``: what is made of the cut programs before they run.
    """
    case = random_network(seed, dtype="float64")
    f = tnc.compile(case.outputs, framework="numpy", dtype="float64", sizes=case.given)
    sizes = {key: case.sizes[key] for key in f.compilation.free_symbols}
    binding = f.compilation.nominal(sizes)
    for program in programs_of(f, sizes)[1:]:
        arrays = arguments_of(program, {**f.compilation.binding, **binding})
        with np.errstate(all="ignore"):
            wanted = run(program, arrays, "numpy")
            cuts = list(every_cut(program, binding, (1, 2)))
            for cut in cuts[:: max(1, len(cuts) // 6)]:
                sliced = validate(changed(apply_cuts(program, [cut])), scheduled=True)
                assert close(run(sliced, arrays, "numpy"), wanted), cut
            pair = [cuts[0], cuts[-1]] if cuts else []
            assert close(run(changed(apply_cuts(program, pair)), arrays, "numpy"), wanted)


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_in_blocks(seed: int) -> None:
    check_random_network(5_000 + seed)


def test_nested_cuts_on_a_lattice_reach_tiny_peaks() -> None:
    legs = tnc.indices(" ".join(f"k{n}" for n in range(12)), size=3)
    names = "ab ac bd cde ef dg egh fhi gj hjk ikl l"
    letters = dict(zip(sorted(set(names) - {" "}), legs, strict=True))
    tensors = [
        tnc.input(f"x{n}", *(letters[c] for c in term)) for n, term in enumerate(names.split())
    ]
    f = tnc.compile(tnc.contract(*tensors, out=()), framework="numpy", dtype="float64")
    program = f.compilation.scheduled(f._dtypes(), {})[0]
    arrays = arguments_of(program, {})
    wanted = run(program, arrays, "numpy")
    cuts = [Cut(name, axis, 1, True) for name, axis in linked_axes(program).values()]
    sliced = apply_cuts(program, dict.fromkeys(cuts))
    assert peak_bytes(sliced, {}) * 2 < peak_bytes(program, {})
    assert close(run(sliced, arrays, "numpy"), wanted)


def test_axes_that_are_needed_whole_stay_outside() -> None:
    x = tnc.input("x", I, J)
    f = tnc.compile(tnc.softmax(x, over=I), framework="numpy")
    program = f.compilation.scheduled(f._dtypes(), {})[0]
    by_rows = slice_index(program, ("x", 1), 2)
    over_all = slice_index(program, ("x", 0), 2)
    assert sum(isinstance(s.op, Loop) for s in by_rows.steps) == 1
    assert sum(isinstance(s.op, Loop) for s in over_all.steps) > 1  # the maximum comes first
    merged = tnc.compile(tnc.exp(x.merge((I, J), tnc.Index("k", 30))), framework="numpy")
    whole = merged.compilation.scheduled(merged._dtypes(), {})[0]
    assert not any(isinstance(s.op, Loop) for s in slice_index(whole, ("x", 0), 2).steps)


def test_a_body_that_does_not_fit_is_refused() -> None:
    f = tnc.compile(layer(), framework="numpy")
    program = slice_index(programs_of(f, {"b": 7})[0], ("x", 0), 2)
    loop = next(step for step in program.steps if isinstance(step.op, Loop))
    from dataclasses import replace

    broken = replace(loop, op=replace(loop.op, sliced=(None,) * len(loop.op.sliced)))
    steps = tuple(broken if step is loop else step for step in program.steps)
    with pytest.raises(InvalidProgram):
        validate(replace(program, steps=steps), scheduled=True)


# ---------------------------------------------------------------------------- costs


@pytest.mark.parametrize("width", [1, 3, 4, 100])
def test_flops_of_blocks_are_exact(width: int) -> None:
    f = tnc.compile(layer(), framework="numpy", seed=0)
    for program in programs_of(f, {"b": 7}):
        sliced = slice_index(program, ("x", 0), width)
        for batch in (0, 1, 7, 12):
            binding = f.compilation.nominal({"b": batch})
            whole, blocks = program_cost(program, binding), program_cost(sliced, binding)
            assert blocks.at(binding).flops == whole.at(binding).flops
            assert blocks.at(binding).elementwise == whole.at(binding).elementwise


def measured_peak(program: Program, arrays: list[np.ndarray]) -> int:
    """The most bytes that NumPy holds at once while a program runs."""
    run(program, arrays, "numpy")
    loaded = load(emitter_of("numpy")(program, "go")).run
    tracemalloc.start()
    try:
        loaded(*arrays)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_peak_is_what_numpy_allocates() -> None:
    i, j, o, p, r = tnc.indices("i j o p r", i=32, j=24, o=20, p=28, r=12)
    x = tnc.input("x", B, i, j)
    y = tnc.contract(x, tnc.param("G1", i, o, r), tnc.param("G2", r, j, p), out=(B, o, p))
    f = tnc.compile(tnc.gelu(y), framework="numpy", seed=0)
    binding = f.compilation.nominal({"b": 512})
    for program in programs_of(f, {"b": 512}):
        arrays = arguments_of(program, binding)
        cuts = list(every_cut(program, binding, (2, 16)))
        for cut in [None, *cuts[::5]]:
            sliced = program if cut is None else apply_cuts(program, [cut])
            predicted = peak_bytes(sliced, binding)
            assert predicted == pytest.approx(measured_peak(sliced, arrays), rel=0.1), cut


# ---------------------------------------------------------------------------- running sums


@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
@pytest.mark.parametrize("count", [0, 1, RADIX, RADIX + 1, RADIX**2 + 3, 1000])
def test_running_sums_add_up(make: object, count: int) -> None:
    total = RunningSum(make((2, 3)))  # type: ignore[operator]
    for number in range(count):
        total.add(make((2, 3)) + number)  # type: ignore[operator]
    levels = len(total.levels)
    assert np.asarray(total.total).tolist() == [[count * (count - 1) / 2] * 3] * 2
    assert levels == {0: 1, 1: 1, RADIX: 1, RADIX + 1: 2, RADIX**2 + 3: 2, 1000: 3}[count]
    assert RADIX == SUM_RADIX


def test_running_sums_of_positive_numbers_keep_their_digits() -> None:
    parts = np.random.default_rng(0).random((20_000, 8)).astype(np.float32)
    running, naive = RunningSum(np.zeros(8, np.float32)), np.zeros(8, np.float32)
    for part in parts:
        running.add(part)
        naive += part
    exact = parts.astype(np.float64).sum(axis=0)
    off = np.abs(running.total - exact).max() / exact.max()
    assert off < 2e-6 < np.abs(naive - exact).max() / exact.max()


def test_running_sums_pass_infinities_on() -> None:
    total = RunningSum(np.zeros(3))
    for part in ([1.0, np.inf, np.nan], *([[1.0, 1.0, 1.0]] * 40)):
        total.add(np.asarray(part))
    assert total.total[0] == 41 and total.total[1] == np.inf and np.isnan(total.total[2])


def test_cases_are_the_networks_of_the_fuzzer() -> None:
    assert isinstance(random_network(5_000, dtype="float64"), Case)
