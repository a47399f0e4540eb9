"""What the semantics tests share: run an expression, compare it, and proof that they can fail.

Oracles are numpy.einsum, plain NumPy in float64 and torch.autograd; never the package itself.
"""

from typing import Any

import numpy as np
import pytest

import tncompiler as tnc

TOLERANCE = 1e-10


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def crand(*shape: int, seed: int = 0) -> np.ndarray:
    return rand(*shape, seed=seed) + 1j * rand(*shape, seed=seed + 1000)


def evaluate(outputs: Any, arrays: dict[str, Any], *, sizes: Any = None, dtype: Any = None) -> Any:
    """The value of expressions in double precision, from arrays by leaf name."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    if dtype is None:
        is_complex = any(array.dtype.kind == "c" for array in arrays.values())
        dtype = "complex128" if is_complex else "float64"
    f = tnc.compile(outputs, framework="numpy", dtype=dtype, sizes=sizes)
    parameters = {name: arrays[name] for name in f.parameters}
    return f(*(arrays[name] for name in f.inputs), parameters=parameters)


def same(got: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Fail unless shape and values agree."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def check(expr: Any, expected: Any, **arrays: Any) -> None:
    """Fail unless the expression evaluates to `expected`."""
    same(evaluate(expr, arrays), expected)


def test_same_accepts_equal_arrays() -> None:
    same(np.eye(2), np.eye(2))


@pytest.mark.parametrize("wrong", [np.ones(2), np.eye(2) * 1.0001, np.eye(3), 1.0])
def test_same_fails(wrong: Any) -> None:
    with pytest.raises(AssertionError):
        same(wrong, np.eye(2))


def test_check_fails_on_a_wrong_value() -> None:
    i = tnc.Index("i", 3)
    with pytest.raises(AssertionError):
        check(tnc.input("x", i), np.zeros(3), x=np.ones(3))


def test_evaluate_takes_inputs_and_parameters_by_name() -> None:
    i = tnc.Index("i", 3)
    expr = tnc.input("x", i) - tnc.param("w", i)
    same(evaluate(expr, {"w": np.arange(3.0), "x": np.ones(3)}), 1 - np.arange(3.0))


def test_random_arrays_differ_by_seed() -> None:
    assert not np.allclose(rand(3, seed=0), rand(3, seed=1))
    assert np.abs(crand(3).imag).min() > 0
