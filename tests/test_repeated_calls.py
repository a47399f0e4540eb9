"""Calls of NumPy functions like the last one: what differs is seen, and done as by a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.large import crossing
from tests.situations import outcome
from tncompiler.function import NumpyFunction

b, i, h, o = tnc.indices("b i h o", i=64, h=256, o=48)
DATA = np.random.default_rng(0).standard_normal((2048, 64)).astype("float32")
FIRST = np.random.default_rng(1).standard_normal((64, 256)).astype("float32")


def network(backend: str, share: NumpyFunction | None = None) -> NumpyFunction:
    x = tnc.input("x", b, i)
    weight = tnc.contract(tnc.param("A", i, h), tnc.param("B", h, o), out=(i, o))
    made: NumpyFunction = tnc.compile(
        tnc.tanh(tnc.contract(x, weight, out=(b, o))),
        framework="numpy",
        backend=backend,
        seed=0,
        share=share,
    )
    return made


def called(backend: str) -> NumpyFunction:
    function = network(backend)
    for _ in range(2):
        function(DATA)
    return function


def same(f: NumpyFunction) -> Any:
    return f(DATA)


def fewer_rows(f: NumpyFunction) -> Any:
    return f(DATA[:100])


def strided(f: NumpyFunction) -> Any:
    return f(np.repeat(DATA, 2, axis=1)[:, ::2])


def read_only(f: NumpyFunction) -> Any:
    data = DATA.copy()
    data.flags.writeable = False
    return f(data)


def other_byte_order(f: NumpyFunction) -> Any:
    return f(DATA.astype(">f4"))


def lists(f: NumpyFunction) -> Any:
    return f(DATA.tolist())


def subclass(f: NumpyFunction) -> Any:
    return f(DATA.view(np.recarray))


def in_double(f: NumpyFunction) -> Any:
    return f(DATA.astype("float64"))


def by_name(f: NumpyFunction) -> Any:
    return f(x=DATA)


def too_many(f: NumpyFunction) -> Any:
    return f(DATA, DATA)


def none_at_all(f: NumpyFunction) -> Any:
    return f()


def wrong_size(f: NumpyFunction) -> Any:
    return f(DATA[:, :63])


def given_parameters(f: NumpyFunction) -> Any:
    made = [f(DATA, parameters={"A": FIRST}), f(DATA)]
    return np.concatenate(made)


def replaced(f: NumpyFunction) -> Any:
    f.parameters["A"] = FIRST
    return f(DATA)


def replaced_by_one_that_shares(f: NumpyFunction) -> Any:
    other = network(f.backend, share=f)
    other.parameters["A"] = FIRST
    return f(DATA)


def drawn_anew(f: NumpyFunction) -> Any:
    f.reset_parameters(seed=3)
    return f(DATA)


def written_to(f: NumpyFunction) -> Any:
    array = f.parameters["A"]
    array.flags.writeable = True
    array *= 2
    f.invalidate()
    return f(DATA)


def raising_errors(f: NumpyFunction) -> Any:
    with np.errstate(all="raise"):
        return f(DATA)


def autocast(f: NumpyFunction) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return f(DATA)


SITUATIONS: list[Callable[[NumpyFunction], Any]] = [
    same, fewer_rows, strided, read_only, other_byte_order, lists, subclass, in_double, by_name,
    too_many, none_at_all, wrong_size, given_parameters, replaced, replaced_by_one_that_shares,
    drawn_anew, written_to, raising_errors, autocast,
]  # fmt: skip


@pytest.fixture(params=["numpy", "auto"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """With "auto" calls run in torch's operations."""
    with crossing():
        yield request.param


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda f: f.__name__)
def test_it_is_done_as_by_a_function_without_a_past(
    situation: Callable[[NumpyFunction], Any], backend: str
) -> None:
    warm, new = called(backend), network(backend)
    assert warm._last is not None and new._last is None
    assert (warm._last._crossing is not None) == (backend == "auto")
    got, expected = outcome(situation, warm), outcome(situation, new)
    assert type(got) is type(expected)
    if isinstance(got, np.ndarray):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    else:
        assert got == expected


def test_such_a_call_asks_for_nothing_again(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = called(backend)
    expected = function(DATA)
    monkeypatch.setattr(NumpyFunction, "_results", None)
    results = [function(DATA) for _ in range(3)]
    for result in results:
        np.testing.assert_array_equal(result, expected)
    assert not np.shares_memory(results[0], results[1])


def test_a_debugger_sees_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNC_DEBUG", "1")
    assert called("numpy")._last is None


def test_what_is_dropped_during_a_call_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    function = called("numpy")
    right = function._kept.get

    def dropped(*given: Any) -> Any:
        made = right(*given)
        function.invalidate()  # as another thread may
        return made

    monkeypatch.setattr(function._kept, "get", dropped)
    function(DATA[:500])
    monkeypatch.undo()
    array = function.parameters["A"]
    array.flags.writeable = True
    array *= 2
    new = network("numpy")
    new.parameters["A"] = array
    np.testing.assert_array_equal(function(DATA[:500]), new(DATA[:500]))


def test_parameters_are_replaced_one_by_one() -> None:
    with pytest.raises(AttributeError, match="parameters"):
        called("numpy").parameters = {}  # type: ignore[misc]
