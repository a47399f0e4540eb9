"""One callable, many threads: every call gives what a single thread gives, cold start included."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch

import tncompiler as tnc

THREADS, CALLS, SHAPES = 16, 1_000, 7


def _expression() -> Any:
    b, i, o, p, r = tnc.indices("b i o p r", i=6, o=4, p=5, r=3)
    x, A = tnc.input("x", b, i), tnc.param("A", i, o, r)
    B = tnc.param("B", r, p)
    return tnc.tanh(tnc.contract(x, A, B, out=(b, o, p)))


def _numpy_function() -> Callable[[np.ndarray], Any]:
    g = tnc.compile(_expression(), framework="numpy", seed=0)

    def call(x: np.ndarray) -> tuple[np.ndarray, ...]:
        value, pull = g.vjp(x)
        return (value, *pull(np.ones_like(value)).values())

    return call


def _module(backend: str) -> Callable[[np.ndarray], Any]:
    f = tnc.compile(_expression(), backend=backend, seed=0)

    def call(x: np.ndarray) -> tuple[np.ndarray, ...]:
        value = f(torch.from_numpy(x))
        grads = torch.autograd.grad(value.sum(), tuple(f.parameters()))
        return tuple(t.detach().numpy() for t in (value, *grads))

    return call


def _einsum() -> Callable[[np.ndarray], Any]:
    rng = np.random.default_rng(1)
    A, B = rng.standard_normal((6, 4, 3)), rng.standard_normal((3, 5))
    return lambda x: (tnc.einsum("bi,ior,rp->bop", x, A, B),)


def _einsum_expression() -> Callable[[np.ndarray], Any]:
    rng = np.random.default_rng(1)
    A, B = rng.standard_normal((6, 4, 3)), rng.standard_normal((3, 5))
    made = [
        tnc.einsum_expression("bi,ior,rp->bop", (n + 1, 6), A, B, constants=[1, 2])
        for n in range(SHAPES)
    ]
    return lambda x: (made[len(x) - 1](x),)


CALLABLES: dict[str, Callable[[], Callable[[np.ndarray], Any]]] = {
    "numpy function": _numpy_function,
    "module on numpy": lambda: _module("numpy"),
    "module on torch": lambda: _module("torch"),
    "einsum": _einsum,
    "einsum_expression": _einsum_expression,
}


def mismatches(call: Callable[[np.ndarray], Any], one: Callable[[np.ndarray], Any]) -> int:
    """Wrong results of THREADS * CALLS calls of `call`, which nobody called before."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((n + 1, 6)).astype(np.float32) for n in range(SHAPES)]
    expected = [one(x) for x in inputs]
    start = Barrier(THREADS)

    def work(thread: int) -> int:
        start.wait()
        wrong = 0
        for k in range(CALLS):
            which = (thread + k) % SHAPES
            found = call(inputs[which])
            pairs = zip(found, expected[which], strict=True)
            wrong += not all(np.array_equal(a, b) for a, b in pairs)
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


@pytest.mark.parametrize("name", CALLABLES)
def test_sixteen_threads_agree_with_one(name: str) -> None:
    assert mismatches(CALLABLES[name](), CALLABLES[name]()) == 0


def test_a_shared_buffer_would_be_seen() -> None:
    """The helper counts what a callable with a common buffer gets wrong."""
    buffer = np.empty((SHAPES, 4, 5))
    right = _einsum()

    def call(x: np.ndarray) -> tuple[np.ndarray, ...]:
        (value,) = right(x)
        buffer[: len(x)] = value
        sleep(0)  # gives the interpreter to another thread, which comes between
        return (buffer[: len(x)],)

    assert mismatches(call, right) > 0
