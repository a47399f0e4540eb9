"""Random networks: forward and every gradient, on every backend, within the error bound.

TNC_FUZZ_NETWORKS of them (default 200): the first half are always the same, the rest follow from
the seed of the commit. The helpers of the fuzzer are tested here as well: each of them can fail.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import tncompiler as tnc
from tests import fuzz, oracle
from tests.conftest import fuzz_seed
from tests.networks import random_network
from tncompiler.ir.reference import Bounded, evaluate

CHUNKS = 20  # so that workers share them
NETWORKS = int(os.environ.get("TNC_FUZZ_NETWORKS", "200"))


def fuzzed_seeds(count: int, rotation: int) -> list[int]:
    """The first half of the seeds is fixed; the other half starts where the rotation says."""
    fixed = count // 2
    start = 1_000_000 + rotation % 1_000_000 * 1_000
    return [*range(fixed), *range(start, start + count - fixed)]


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_networks(chunk: int) -> None:
    figures, failures = fuzz.Figures(), []
    for failure in fuzz.fuzz(figures, fuzzed_seeds(NETWORKS, fuzz_seed())[chunk::CHUNKS]):
        failures.append(failure)
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
    _, failure = fuzz.failure_of(3)
    assert failure is not None
    assert "python -m tests.fuzz --seed 3" in failure


def test_a_crash_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: oracle.Runner, arrays: oracle.Arrays) -> list[np.ndarray]:
        raise RuntimeError("planted crash")

    monkeypatch.setattr(oracle.Runner, "forward", crash)
    _, failure = fuzz.failure_of(3)
    assert failure is not None
    assert "planted crash" in failure


# ---------------------------------------------------------------------------- the command


def test_the_command_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state.json"
    for _ in range(2):
        assert fuzz.main(["--networks", "2", "--state", str(state)]) == 0
    assert fuzz.load_state(state).next == 4
    assert "4 networks" in capsys.readouterr().out


def test_the_command_fails_with_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "failure_of", lambda seed: ({}, f"planted {seed}"))
    state = tmp_path / "state.json"
    assert fuzz.main(["--networks", "1", "--start", "9", "--state", str(state)]) == 1
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


def test_reference_in_long_double() -> None:
    value = evaluate(EXPR, ARRAYS, extended=True).value
    assert value.dtype == np.longdouble


def test_reference_refuses_other_shapes() -> None:
    with pytest.raises(tnc.TncError, match="'B' has shape"):
        evaluate(EXPR, {**ARRAYS, "B": np.ones(4)})
