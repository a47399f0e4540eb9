"""Random networks: forward and every gradient, on every backend, within the error bound.

TNC_FUZZ_NETWORKS of them (default 200): the first half are always the same, the rest follow from
the seed of the commit. The helpers of the fuzzer are tested here as well: each of them can fail.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests import fuzz, oracle
from tests.block_networks import halved_square
from tests.conftest import fuzz_seed
from tests.networks import (
    INTEGERS,
    Case,
    as_dtype,
    fuzzed_network,
    integer_network,
    long_network,
    random_network,
)
from tncompiler.backends.numpy import runtime as numpy_runtime
from tncompiler.backends.torch import emit as torch_emit
from tncompiler.backends.torch import runtime as torch_runtime
from tncompiler.ir.reference import Bounded, evaluate

ROOT = Path(__file__).parents[1]
CHUNKS = 20  # so that workers share them
NETWORKS = int(os.environ.get("TNC_FUZZ_NETWORKS", "200"))


def fuzzed_seeds(count: int, rotation: int) -> list[int]:
    """The first half of the seeds is fixed; the other half starts where the rotation says."""
    fixed = count // 2
    start = 1_000_000 + rotation % 1_000_000 * 1_000
    return [*range(fixed), *range(start, start + count - fixed)]


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_networks(chunk: int) -> None:
    figures = fuzz.Figures()
    seeds = fuzzed_seeds(NETWORKS, fuzz_seed())[chunk::CHUNKS]
    failures = [r.failure for r in fuzz.fuzz(figures, seeds) if r.failure is not None]
    assert not failures, "\n\n".join([figures.report(), *failures[:3]])


def test_a_seed_gives_one_network() -> None:
    first, second = random_network(7), random_network(7)
    assert first.outputs == second.outputs
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)
    assert random_network(8).outputs != first.outputs


def test_the_rotating_half_follows_the_commit() -> None:
    assert fuzzed_seeds(10, 3)[:5] == fuzzed_seeds(10, 4)[:5] == [0, 1, 2, 3, 4]
    assert not set(fuzzed_seeds(10, 3)[5:]) & set(fuzzed_seeds(10, 4)[5:])


# ---------------------------------------------------------------------------- what it covers

WANTED = [
    "Leaf",
    "Literal",
    "Delta",
    "Ones",
    "Contract",
    "Map",
    "Reduce",
    "Reindex",
    "Split",
    "Merge",
    "Slice",
    "Pad",
    "Concat",
    "Gather",
    "Scatter",
    "Scatter max",
    "Arange",
    "relu",
    "gelu",
    "where",
    "maximum",
    "abs",
    "conj",
    "real",
    "imag",
    "exp",
    "tanh",
    "div",
    "sub",
    "stop",
    "max",
    "min",
    "size-0",
    "size-1",
    "symbol",
    "shared",
    "hyperedge",
    "trace",
    "outer",
    "several-outputs",
    "complex64",
    "complex128",
    "float64",
    "constant",
    "bare-sum",
]


def features(seed: int) -> set[str]:
    """What occurs in a network."""
    case = random_network(seed)
    nodes = list(tnc.ir.expressions.walk(*case.outputs))
    found = {type(node).__name__ for node in nodes} | {case.dtype}
    found |= {node.function for node in nodes if hasattr(node, "function")}
    found |= {f"{type(n).__name__} {n.function}" for n in nodes if hasattr(n, "function")}
    sizes = {size for node in nodes for size in node.shape}
    found |= {f"size-{size}" for size in sizes if isinstance(size, int)}
    found |= {"symbol"} if any(not isinstance(size, int) for size in sizes) else set()
    found |= {"several-outputs"} if len(case.outputs) > 1 else set()
    uses = {n.name: set() for n in nodes if isinstance(n, tnc.ir.expressions.Leaf)}
    for node in nodes:
        if isinstance(node, tnc.ir.expressions.Leaf):
            uses[node.name].add(node.indices)
            found.add(node.kind)
        elif isinstance(node, tnc.ir.expressions.Contract):
            found |= _wiring(node)
    return found | ({"shared"} if any(len(wires) > 1 for wires in uses.values()) else set())


def _wiring(node: tnc.ir.expressions.Contract) -> set[str]:
    found = set()
    sets = [set(term.indices) for term in node.terms]
    union = set().union(*sets)
    if any(sum(index in s for s in sets) >= 3 for index in union):
        found.add("hyperedge")
    if len(sets) == 2 and not sets[0] & sets[1] and all(sets):
        found.add("outer")
    summed = union - set(node.indices)
    for term in node.terms:
        if isinstance(term, tnc.ir.expressions.Delta) and set(term.indices) <= summed:
            found.add("trace")
        if isinstance(term, tnc.ir.expressions.Ones) and set(term.indices) & summed:
            found.add("bare-sum")
    return found


def test_the_networks_cover_the_language() -> None:
    found: set[str] = set()
    for seed in range(400):
        found |= features(seed)
        if found.issuperset(WANTED):
            break
    assert not set(WANTED) - found


def test_the_kinds_that_are_fuzzed() -> None:
    cases = [fuzzed_network(seed) for seed in range(400)]
    dtypes = {"float16", "bfloat16", "float32", "float64", "complex64", "complex128", *INTEGERS}
    assert {case.dtype for case in cases} == dtypes
    assert {case.kind for case in cases} == {"plain", "low", "positive", "integer", "long"}
    assert any(case.other is not None for case in cases)
    positive = [case for case in cases if case.kind == "positive"]
    assert all(np.all(array.real >= 0) for case in positive for array in case.arrays.values())
    assert max(case.longest for case in cases) > 100_000
    assert max(sum(a.nbytes for a in case.arrays.values()) for case in cases) < 50e6


def test_another_batch_size_changes_free_sizes_only() -> None:
    case = next(c for c in map(fuzzed_network, range(100)) if c.other is not None)
    assert case.other is not None
    assert case.other.sizes != case.sizes
    shapes = [{n: a.shape for n, a in c.arrays.items()} for c in (case, case.other)]
    assert shapes[0].keys() == shapes[1].keys()
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(1.0, 1.0), (1.00390625, 1.0), (1.01171875, 1.015625), (-3.14159, -3.140625), (0.0, 0.0)],
)
def test_bfloat16_is_rounded_as_torch_rounds(value: float, rounded: float) -> None:
    assert as_dtype([value], "bfloat16")[0] == rounded
    assert torch.tensor(value, dtype=torch.float32).bfloat16().float() == rounded


# ---------------------------------------------------------------------------- long sums


def errors(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Error / bound of a float32 product on NumPy and on torch."""
    exact = a.astype(np.float64) @ b.astype(np.float64)
    factor = 8 + np.sqrt(a.shape[-1]) / 16
    bound = factor * np.finfo(np.float32).eps * np.abs(exact)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    on_torch = (torch_runtime.long_mm if a.ndim == 2 else torch_runtime.long_bmm)(x, y).numpy()
    return (
        oracle.worst_ratio(numpy_runtime.long_matmul(a, b), exact, bound),
        oracle.worst_ratio(on_torch, exact, bound),
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 2), (4, 1), (0, 2)])
@pytest.mark.parametrize(
    ("batch", "length"),
    [
        ((), 257),
        ((), 1_000),
        ((), 1_000_003),
        ((3,), 513),
        ((3,), 65_521),
        ((3,), 2_000),
        ((0,), 1_000),
    ],
)
def test_long_products_stay_in_their_bound(
    shape: tuple[int, int], batch: tuple[int, ...], length: int
) -> None:
    rng = np.random.default_rng(length)
    a = rng.random((*batch, shape[0], length), dtype=np.float32)
    b = rng.random((*batch, length, shape[1]), dtype=np.float32)
    assert max(errors(a, b)) <= 1
    turned = np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)
    assert max(errors(turned, b)) <= 1


@pytest.mark.parametrize("length", [0, 1, 600])
@pytest.mark.parametrize("axes", [(0,), (2,), (0, 2), (2, 0), (1, 0, 2)])
def test_long_sums_are_sums(length: int, axes: tuple[int, ...]) -> None:
    x = np.arange(length * 3 * 5, dtype=np.float64).reshape(length, 3, 5)
    for array in (x, np.asfortranarray(x), x[::-1]):
        assert np.array_equal(numpy_runtime.long_sum(array, axes), array.sum(axes))
        tensor = torch.from_numpy(array.copy())
        assert torch.equal(torch_runtime.long_sum(tensor, axes), tensor.sum(axes))


def test_long_sums_stay_in_their_bound() -> None:
    x = np.random.default_rng(0).random((300_000, 4), dtype=np.float32)
    exact = x.sum(0, dtype=np.float64)
    bound = (8 + np.sqrt(len(x)) / 16) * np.finfo(np.float32).eps * exact
    assert oracle.worst_ratio(x.sum(0), exact, bound) > 1  # so the test can fail
    assert oracle.worst_ratio(numpy_runtime.long_sum(x, (0,)), exact, bound) <= 1


def test_torch_sees_through_long_products() -> None:
    a, b = torch.rand(2, 2, 700, dtype=torch.double), torch.rand(2, 700, 3, dtype=torch.double)
    assert torch.allclose(torch.vmap(torch_runtime.long_mm)(a, b), a @ b)
    both = (a.requires_grad_(), b.requires_grad_())
    found = torch.autograd.grad(torch_runtime.long_bmm(a, b).square().sum(), both)
    wanted = torch.autograd.grad((a @ b).square().sum(), both)
    assert all(map(torch.allclose, found, wanted))
    compiled = torch.compile(torch_runtime.long_mm, fullgraph=True, backend="eager", dynamic=True)
    for length in (700, 600, 20):
        assert torch.allclose(
            compiled(a[0, :, :length], b[0, :length]), a[0, :, :length] @ b[0, :length]
        )


def test_a_gpu_shares_out_the_long_sums_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """found on an H200: a gradient of a TT-matrix core took 12 ms"""
    r, i, o, k = tnc.indices("r i o k", r=3, i=16, o=20, k=10_000)
    stacked = tnc.contract(tnc.input("x", r, i, k), tnc.input("y", r, k, o), out=(r, i, o))
    assert "long_bmm" in tnc.compile(stacked, backend="torch").source()
    a = torch.rand(3, 16, 10_000, dtype=torch.double, requires_grad=True)
    b = torch.rand(3, 10_000, 20, dtype=torch.double)
    asked = []
    monkeypatch.setattr(torch_runtime, "_is_left_to_few", lambda *ab: asked.append(ab) or True)
    found = torch_runtime.long_bmm(a, b)
    assert len(asked) == 1 and torch.allclose(found, a @ b)
    monkeypatch.undo()
    nowhere = torch.empty(3, 16, 10_000, device="meta"), torch.empty(3, 10_000, 20, device="meta")
    assert torch_runtime._is_left_to_few(*nowhere) and not torch_runtime._is_left_to_few(a, b)
    many = nowhere[0].expand(3, 16, 10_000).repeat(50, 1, 1), nowhere[1].repeat(50, 1, 1)
    assert not torch_runtime._is_left_to_few(*many)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_product_of_two_numbers_has_a_dtype(framework: str) -> None:
    """found by seed 2039: 4 * b was a Python int, which autograd cannot save"""
    n, k, b = tnc.indices("n k b", n=2, k=4)
    a, c = tnc.input("a", n), tnc.input("c", b)
    outputs = (tnc.contract(a, tnc.ones(k, b), out=(n,)), 1 - c)
    runner = oracle.Runner(outputs, "function" if framework == "numpy" else "torch", "float32", {})
    arrays = {"a": np.ones(2, np.float32), "c": np.ones(3, np.float32)}
    values, found = runner.gradients(arrays, arrays.values(), ("a",))
    assert values[0].dtype == found["a"].dtype == np.float32
    assert np.array_equal(found["a"], [12, 12])


@pytest.mark.parametrize(
    ("length", "expected"), [(256, "torch.mm("), (100_000, "long_mm("), (None, "long_mm(")]
)
def test_only_long_products_are_split(length: int | None, expected: str) -> None:
    i, k = tnc.Index("i", 2), tnc.Index("k", length)
    function = tnc.compile(tnc.input("x", i, k) @ tnc.input("y", k), framework="numpy")
    assert expected in function.source(backend="torch")
    split = length != 256
    assert ("long_matmul(" in function.source(backend="numpy")) is split


# ---------------------------------------------------------------------------- helpers that fail

I, J = tnc.indices("i j", i=2, j=3)
A, B = tnc.input("A", I, J), tnc.param("B", J)
ARRAYS = {
    "A": np.arange(6, dtype=np.float32).reshape(2, 3),
    "B": np.array([1, -2, 3], dtype=np.float32),
}
EXPR = A @ tnc.tanh(B)


def off_by_little(value: np.ndarray) -> np.ndarray:
    """Wrong in one element by more than rounding explains."""
    wrong = np.array(value)
    wrong.flat[0] += 1e-3
    return wrong


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_check_forward_passes_and_fails(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert oracle.check_forward(EXPR, ARRAYS, runner, "float32", seed=5) <= 1
    right = oracle.Runner.forward
    monkeypatch.setattr(
        oracle.Runner, "forward", lambda self, arrays: [off_by_little(right(self, arrays)[0])]
    )
    with pytest.raises(AssertionError, match=r"(?s)forward of output 0.*seed 5.*Map\[tanh\]"):
        oracle.check_forward(EXPR, ARRAYS, runner, "float32", seed=5)


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_check_gradients_passes_and_fails(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> float:
        return oracle.check_gradients(
            EXPR,
            ARRAYS,
            runner,
            "float32",
            cotangents=[np.ones(2, np.float32)],
            wrt=("A", "B"),
            seed=6,
        )

    assert check() <= 1
    right = oracle.Runner.gradients

    def wrong(self, *args):  # type: ignore[no-untyped-def]
        values, found = right(self, *args)
        return values, {**found, "B": off_by_little(found["B"])}

    monkeypatch.setattr(oracle.Runner, "gradients", wrong)
    with pytest.raises(AssertionError, match=r"(?s)gradient of B on .*seed 6"):
        check()


def test_a_wrong_gradient_expression_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tnc, "grad", lambda expr, wrt, cotangent: tuple(2.0 * w for w in wrt))
    with pytest.raises(AssertionError, match=r"tnc\.grad expression"):
        oracle.expected_gradients((EXPR,), ARRAYS, [np.ones(2)], ("A", "B"), {}, 1e-7)


@pytest.mark.parametrize(
    ("value", "ratio"),
    [
        ([1.0, 2.0], 0.0),
        ([1.5, 2.0], 0.5),
        ([1.0, 2.1], np.inf),
        ([np.nan, 2.0], np.inf),
        ([1.0], np.inf),
    ],
)
def test_worst_ratio(value: list[float], ratio: float) -> None:
    bound = np.array([1.0, 0.0])
    assert oracle.worst_ratio(np.array(value), np.array([1.0, 2.0]), bound) == ratio


def test_compare_names_what_is_missing() -> None:
    expected = [Bounded(np.ones(2), np.zeros(2))]
    with pytest.raises(AssertionError, match="error / bound = inf"):
        oracle.compare("forward", [EXPR], [np.ones(3)], expected, "torch")


def test_a_failing_network_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    right = oracle.Runner.forward
    monkeypatch.setattr(
        oracle.Runner, "forward", lambda self, arrays: [v + 1 for v in right(self, arrays)]
    )
    failure = fuzz.result_of(3).failure
    assert failure is not None
    assert "python -m tests.fuzz --seed 3" in failure


@pytest.mark.parametrize("runner", ["function", "torch"])
def test_products_that_are_not_split_are_caught(
    runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = long_network(1)
    monkeypatch.setattr(fuzz, "LARGE", 1)  # blocks of a loop split it as well
    fuzz.check_network(case, [runner])
    on_torch = [(torch_runtime, "cut"), (torch_emit, "cut")]
    for module, name in [(numpy_runtime, "_cut")] if runner == "function" else on_torch:
        monkeypatch.setattr(module, name, lambda length: (1, length, length))
    with pytest.raises(AssertionError, match="forward of output 0"):
        fuzz.check_network(case, [runner])


@pytest.mark.parametrize("make", [integer_network, long_network])
def test_other_kinds_can_fail(make: Callable[[int], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in map(make, range(20)) if c.dtype in ("int32", "float32"))
    fuzz.check_network(case)
    right = oracle.Runner.forward
    monkeypatch.setattr(
        oracle.Runner, "forward", lambda self, arrays: [v + 1 for v in right(self, arrays)]
    )
    with pytest.raises(AssertionError, match="forward of output 0"):
        fuzz.check_network(case)


def test_another_dtype_of_integers_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in map(integer_network, range(20)) if c.dtype == "int8")
    right = oracle.Runner.forward
    monkeypatch.setattr(
        oracle.Runner,
        "forward",
        lambda self, arrays: [v.astype(np.int16) for v in right(self, arrays)],
    )
    with pytest.raises(AssertionError, match=r"gives .*int16.* for int8"):
        fuzz.check_network(case)


def test_another_batch_size_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in map(fuzzed_network, range(100)) if c.other is not None)
    assert case.other is not None
    first = {name: array.shape for name, array in case.arrays.items()}
    right = oracle.Runner.forward

    def wrong(self: oracle.Runner, arrays: oracle.Arrays) -> list[np.ndarray]:
        same = all(array.shape == first[name] for name, array in arrays.items())
        return [v if same else v + 1 for v in right(self, arrays)]

    monkeypatch.setattr(oracle.Runner, "forward", wrong)
    with pytest.raises(AssertionError, match="forward of output 0"):
        fuzz.check_network(case)


def test_half_precision_may_overflow_only_where_it_must() -> None:
    value, reference = np.array([np.inf], np.float16), np.array([7e4])
    assert oracle.worst_ratio(value, reference, np.array([10.0])) == 0
    assert oracle.worst_ratio(value, np.array([6e4]), np.array([10.0])) == np.inf


def test_a_crash_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: oracle.Runner, arrays: oracle.Arrays) -> list[np.ndarray]:
        raise RuntimeError("planted crash")

    monkeypatch.setattr(oracle.Runner, "forward", crash)
    failure = fuzz.result_of(3).failure
    assert failure is not None
    assert "planted crash" in failure


# ---------------------------------------------------------------------------- the command


def test_the_command_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state.json"
    for _ in range(2):
        assert fuzz.main(["--networks", "2", "--jobs", "1", "--state", str(state)]) == 0
    assert fuzz.load_state(state).next == 4
    printed = capsys.readouterr().out
    assert "4 networks" in printed
    assert re.search(r"longest axis \d", printed)
    assert re.search(r"\d of float32", printed)


@pytest.mark.slow
def test_processes_give_the_same_figures(tmp_path: Path) -> None:
    states = [tmp_path / "one.json", tmp_path / "two.json"]
    for jobs, state in enumerate(states, start=1):
        arguments = ["--networks", "40", "--start", "100", "--jobs", str(jobs)]
        command = [sys.executable, "-m", "tests.fuzz", *arguments, "--state", str(state)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    one, two = (fuzz.load_state(state) for state in states)
    assert replace(one, seconds=0.0) == replace(two, seconds=0.0)
    assert one.next == 140


def test_the_command_fails_with_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "result_of", lambda seed: fuzz.Result(seed, failure="planted"))
    state = tmp_path / "state.json"
    command = ["--networks", "1", "--start", "9", "--jobs", "1", "--state", str(state)]
    assert fuzz.main(command) == 1
    assert fuzz.load_state(state).failures == [9]
    assert "failures: 9" in capsys.readouterr().out


def test_one_seed_prints_its_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--seed", "1"]) == 0
    assert "outputs:" in capsys.readouterr().out


def test_a_broken_state_file_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text("[]", encoding="utf-8")
    with pytest.raises(SystemExit, match="delete it"):
        fuzz.load_state(state)


# ---------------------------------------------------------------------------- the reference


def test_reference_is_einsum_with_a_bound() -> None:
    result = evaluate(A @ B, ARRAYS)
    assert np.array_equal(result.value, np.einsum("ij,j->i", ARRAYS["A"], ARRAYS["B"]))
    magnitude = np.einsum("ij,j->i", np.abs(ARRAYS["A"]), np.abs(ARRAYS["B"])).astype(float)
    factor = 8 + np.sqrt(3) / 16
    assert np.allclose(result.bound, factor * np.finfo(np.float32).eps * magnitude)


def test_reference_is_exact_on_views() -> None:
    result = evaluate(A.transpose(J, I).slice(J, 1, 3).pad(I, 1, 0), ARRAYS)
    assert not result.bound.any()


def test_reference_widens_an_undecided_choice() -> None:
    close = {"A": ARRAYS["A"], "B": np.array([1, 1 + 1e-9, 3])}
    product = B * tnc.ones(I) * 1.1
    chosen = evaluate(tnc.where(product > 1.1, 5.0 * A, -5.0 * A), close)
    assert chosen.bound[1, 1] > 39  # axes (j, i)
    assert chosen.bound[2, 1] < 1e-3


def test_reference_bounds_a_users_function_by_what_it_computes() -> None:
    """x²/2 whose derivative is said to be tanh x: an error of x is passed on times x."""
    big = {**ARRAYS, "A": 1e4 * np.abs(ARRAYS["A"]) + 1e4}
    inner = evaluate(A * 1.1, big)
    result = evaluate(halved_square(A * 1.1), big)
    assert np.all(result.bound > inner.value * inner.bound)
    assert np.all(result.bound < 4 * inner.value * inner.bound)


def test_reference_in_long_double() -> None:
    value = evaluate(EXPR, ARRAYS, extended=True).value
    assert value.dtype == np.longdouble


def test_reference_refuses_other_shapes() -> None:
    with pytest.raises(tnc.TncError, match="'B' has shape"):
        evaluate(EXPR, {**ARRAYS, "B": np.ones(4)})
