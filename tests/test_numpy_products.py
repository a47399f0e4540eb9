"""Skinny products in pieces: right, and cut only where BLAS has one thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tncompiler.backends.numpy import products
from tncompiler.backends.numpy.products import MOST_ACROSS, in_pieces, multiply, product
from tncompiler.backends.numpy.threads import has_one_blas_thread, one_blas_thread

LONG = 4096 + 37  # no multiple of a piece
SHORT = {128: (8, 16), 1024: (32, 32), 4096: (64, 64)}  # two extents, by their product
CUT = [(axis, form) for axis, forms in MOST_ACROSS.items() for form in forms]


def matrix(
    rows: int, columns: int, turned: bool, dtype: str, lead: tuple[int, ...] = ()
) -> np.ndarray:
    rng = np.random.default_rng(rows * columns)
    if turned:
        return rng.random((*lead, columns, rows)).astype(dtype).swapaxes(-1, -2)
    return rng.random((*lead, rows, columns)).astype(dtype)


def pair(axis: str, form: str, across: int, dtype: str, long: int = LONG) -> tuple[np.ndarray, ...]:
    short, other = SHORT[across]
    m, k, n = {"m": (long, short, other), "k": (short, long, other), "n": (short, other, long)}[
        axis
    ]
    return matrix(m, k, form[0] == "t", dtype), matrix(k, n, form[1] == "t", dtype)


def check(made: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """All terms are positive, so that the error is one of the result's own size."""
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    bound = (8 + a.shape[-1] ** 0.5 / 16) * np.finfo(a.dtype).eps
    assert made.shape == exact.shape and made.dtype == a.dtype
    assert float(np.max(np.abs(made - exact) / exact)) <= bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("axis", "form"), CUT)
def test_pieces_add_up_to_the_product(axis: str, form: str, dtype: str) -> None:
    for across in (n for n in SHORT if n <= MOST_ACROSS[axis][form]):
        a, b = pair(axis, form, across, dtype, 3 * LONG if across == 128 else LONG)
        made = in_pieces(a, b)
        assert made is not None and made.flags.c_contiguous
        check(made, a, b)


@pytest.mark.parametrize("form", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("axis", ["m", "n", "k"])
def test_what_is_not_in_the_table_is_whole(axis: str, form: str) -> None:
    most = MOST_ACROSS[axis].get(form, 0)
    for across in (n for n in SHORT if n > most):
        assert in_pieces(*pair(axis, form, across, "float32", 3 * LONG)) is None


def test_small_broad_and_other_products_are_whole() -> None:
    ones = np.ones
    for a, b in (
        (ones((1000, 8)), ones((8, 16))),  # as few terms as BLAS does not copy for
        (ones((300, 300)), ones((300, 300))),
        (ones((9000, 16), complex), ones((16, 16), complex)),
        (ones((9000, 16)), ones((16, 16), np.float32)),
        (ones((0, 16)), ones((16, 16))),
        (ones((1, 2**21)), ones((2**21, 1))),
    ):
        assert in_pieces(a, b) is None
        assert np.array_equal(multiply(a, b), a @ b)


@pytest.mark.parametrize("lead", [((3,), ()), ((), (3,)), ((3,), (3,)), ((1,), (3,))])
@pytest.mark.parametrize("axis", ["m", "n", "k"])
def test_stacks_are_cut_too(axis: str, lead: tuple[tuple[int, ...], ...]) -> None:
    m, k, n = {"m": (LONG, 16, 32), "k": (16, LONG, 32), "n": (16, 32, LONG)}[axis]
    a, b = matrix(m, k, False, "float32", lead[0]), matrix(k, n, False, "float32", lead[1])
    made = in_pieces(a, b)
    assert made is not None
    check(made, a, b)


def test_a_long_sum_has_few_partial_sums() -> None:
    """Of 2²⁰ terms there would be 4,096 partial results of 1,024 elements: 16 MB."""
    assert in_pieces(np.ones((32, 2**20), np.float32), np.ones((2**20, 32), np.float32)) is None


def test_only_a_call_without_blas_threads_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    cut = products.in_pieces
    monkeypatch.setattr(products, "in_pieces", lambda *ab: seen.append(1) or cut(*ab))
    a, b = pair("m", "nn", 1024, "float32")
    assert np.allclose(multiply(a, b), a @ b) and not seen
    assert np.allclose(one_blas_thread(multiply)(a, b), a @ b) and seen


def test_calls_of_other_threads_change_nothing() -> None:
    """Whether a product is cut is told by the call that it is in, or its bits would vary."""
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        done.wait(10)

    other = threading.Thread(target=one_blas_thread(hold))
    other.start()
    try:
        assert inside.wait(10) and not has_one_blas_thread()
    finally:
        done.set()
        other.join()
    assert one_blas_thread(has_one_blas_thread)() and not has_one_blas_thread()


def test_a_block_takes_memory_that_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    fresh = products.fresh
    monkeypatch.setattr(products, "fresh", lambda *given: sizes.append(given[0]) or fresh(*given))
    for axis in "mn":
        a, b = pair(axis, "nn", 1024, "float32")
        check(product(a, b), a, b)
    check(product(a[:, :7], b[:7]), a[:, :7], b[:7])
    assert sizes == [(LONG, 32), (32, LONG), (32, LONG)]
    with pytest.raises(ValueError):
        product(a, b[:-1])
