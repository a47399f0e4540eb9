"""NumPy functions in torch's operations: when, on which arrays, and what they then give."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tncompiler as tnc
from tests.large import crossing
from tncompiler import on_tensors
from tncompiler.backends.numpy import threads

B, I, J, K = tnc.indices("b i j k", i=3, j=4, k=5)
X, U, V = tnc.input("x", B, I), tnc.param("U", I, J), tnc.param("V", J, K)
Y = X @ U @ V


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many arrays each step of a call has entered as tensors."""
    counts: list[int] = []
    right = on_tensors.tensors_of

    def counted(arrays):  # type: ignore[no-untyped-def]
        counts.append(len(arrays))
        return right(arrays)

    monkeypatch.setattr(on_tensors, "tensors_of", counted)
    with crossing():
        yield counts


def function(**options):  # type: ignore[no-untyped-def]
    return tnc.compile(Y, framework="numpy", dtype="float64", seed=0, **options)


def rand(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def expected(f, x: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    return x @ f.parameters["U"] @ f.parameters["V"]


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": np.array,
    "read-only": _read_only,
    "transposed": lambda x: np.asfortranarray(x),
    "every second row": lambda x: np.repeat(x, 2, 0)[::2],
    "reversed": lambda x: np.flip(np.flip(x).copy()),
    "of another byte order": lambda x: x.astype(x.dtype.newbyteorder("S")),
    "inside records": lambda x: _in_records(x),
    "repeated": lambda x: np.broadcast_to(x[:1], x.shape),
    "empty": lambda x: x[:0],
    "a matrix": lambda x: x.view(np.matrix),
}


def _in_records(x: np.ndarray) -> np.ndarray:
    """Strides that are no multiple of an element."""
    records = np.zeros(x.shape, [("flag", "u1"), ("number", x.dtype)])
    records["number"] = x
    return records["number"]


@pytest.mark.parametrize("kind", ARRAYS)
def test_any_array_can_cross(kind: str, entered: list[int]) -> None:
    f, x = function(), ARRAYS[kind](rand(6, 3))
    before = np.array(x)
    found = f(x)
    assert entered, "the call stayed in NumPy"
    assert type(found) is np.ndarray and found.flags.writeable
    np.testing.assert_allclose(found, expected(f, np.array(x, "float64")), rtol=1e-12)
    np.testing.assert_array_equal(x, before)


def test_nothing_is_warned_of(entered: list[int]) -> None:
    """torch warns where it is given read-only memory; parameters are read-only"""
    f = function()
    with np.testing.assert_no_warnings():
        f(_read_only(rand(6, 3)))
    assert entered


def test_parameters_enter_once(entered: list[int]) -> None:
    f, x = function(), rand(6, 3)
    f(x)
    assert sum(entered) == 3
    f(x)
    assert sum(entered) == 4


def test_another_parameter_is_seen(entered: list[int]) -> None:
    f, x = function(), rand(6, 3)
    f(x)
    f.parameters["U"] = rand(3, 4)
    np.testing.assert_allclose(f(x), x @ rand(3, 4) @ f.parameters["V"], rtol=1e-12)
    given = {"V": rand(4, 5)}
    np.testing.assert_allclose(
        f(x, parameters=given), x @ f.parameters["U"] @ given["V"], rtol=1e-12
    )
    assert entered


def test_complex_results_are_plain_numbers(entered: list[int]) -> None:
    """tensors may be marked as conjugated, arrays cannot"""
    x = tnc.input("x", B, I, dtype="complex128")
    f = tnc.compile(x.conj(), framework="numpy")
    z = rand(4, 3) + 1j * rand(4, 3)
    np.testing.assert_array_equal(f(z), z.conj())
    assert entered


def test_results_of_a_call_are_not_those_of_the_next(entered: list[int]) -> None:
    f, x = function(), rand(6, 3)
    first = f(x)
    kept = first.copy()
    f(2 * x)
    np.testing.assert_array_equal(first, kept)


class _Looking(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        raise AssertionError("the call was seen by a mode of torch")


STAYS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "under a dispatch mode": _Looking,
    "under autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "where errors are raised": lambda: np.errstate(all="raise"),
    "where errors are told": lambda: np.errstate(all="call", call=lambda *_: None),
}


@pytest.mark.parametrize("where", STAYS)
def test_calls_stay_in_numpy(where: str, entered: list[int]) -> None:
    f, x = function(), rand(6, 3)
    f(x)
    assert entered
    entered.clear()
    with STAYS[where]():
        found = f(x)
    assert not entered
    np.testing.assert_allclose(found, expected(f, x), rtol=1e-12)


def test_calls_inside_a_transform_stay_in_numpy(entered: list[int]) -> None:
    f, x = function(), rand(6, 3)

    def inside(t: torch.Tensor) -> torch.Tensor:
        f(x)
        return t.sum()

    torch.func.grad(inside)(torch.ones(3))
    assert not entered


OPTIONS = {
    "the backend is named": dict(backend="numpy"),
    "memory counts": dict(plan=tnc.PlanOptions(minimize="memory")),
    "memory is limited": dict(plan=tnc.PlanOptions(memory_limit="1GB")),
    "the search takes long": dict(plan=tnc.PlanOptions(search="hyper", trials=2)),
    "time is limited": dict(plan=tnc.PlanOptions(max_seconds=10)),
}


@pytest.mark.parametrize("why", OPTIONS)
def test_functions_stay_in_numpy(why: str, entered: list[int]) -> None:
    f, x = function(**OPTIONS[why]), rand(6, 3)
    np.testing.assert_allclose(f(x), expected(f, x), rtol=1e-12)
    assert not entered


def test_integers_stay_in_numpy(entered: list[int]) -> None:
    n = tnc.input("n", B, I, dtype="int64")
    f = tnc.compile((n * n).sum(), framework="numpy")
    assert f(np.array([[1, 2, 3]])) == 14
    assert not entered


def test_small_calls_stay_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(arrays):  # type: ignore[no-untyped-def]
        raise AssertionError("a small call was made of tensors")

    monkeypatch.setattr(on_tensors, "tensors_of", refused)
    f, x = function(), rand(6, 3)
    np.testing.assert_allclose(f(x), expected(f, x), rtol=1e-12)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_stays_in_numpy(
    entered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP's threads are lost there, and torch would wait for them"""
    f, x = function(), rand(6, 3)
    f(x)
    entered.clear()
    child = os.fork()
    if not child:
        os._exit(0 if np.allclose(f(x), expected(f, x)) and not entered else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not threads.is_forked()


WITHOUT = """
import sys, numpy as np, tncompiler as tnc
from unittest.mock import patch
from tncompiler import function
b, i, j = tnc.indices("b i j", i=3, j=4)
f = tnc.compile(tnc.input("x", b, i) @ tnc.param("W", i, j), framework="numpy", seed=0)
always = {"_CROSSING_FROM_US": -1.0, "_CROSSING_SHARE": 1e9}
with patch.multiple(function, **always):
    f(np.ones((5, 3), "float32"))
print("torch" in sys.modules)
"""


def test_torch_is_not_loaded_for_it() -> None:
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
