"""The parts that formats share: truncated SVD, least squares on networks, optimal formats."""

import numpy as np
import pytest

import tncompiler as tnc
from tests.test_formats import make, random_cores
from tests.test_formats_decompose import normal
from tncompiler import formats
from tncompiler.formats import least_squares, svd
from tncompiler.formats.als import als
from tncompiler.formats.svd import TailBudget, Truncation, singular_values, truncated_svd
from tncompiler.ir.errors import FormatError


def low(rows: int, columns: int, rank: int, noise: float = 0.0) -> np.ndarray:
    made = normal(rows, rank) @ normal(rank, columns, seed=1)
    return made + noise * normal(rows, columns, seed=2)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("rank, tail", [(3, 0.0), (8, 0.0), (8, 1.0), (8, 8.0), (2, 1e-6)])
def test_truncated_svd(
    rank: int, tail: float, sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svd, "_LARGE", 1 if sampled else 10**9)
    matrix = low(120, 130, 5, noise=1e-2)
    u, s, vh, dropped = truncated_svd(matrix, Truncation(rank, tail))
    assert len(s) <= rank
    assert dropped == pytest.approx(np.linalg.norm(matrix - (u * s) @ vh), rel=1e-9)
    np.testing.assert_allclose(u.conj().T @ matrix, s[:, None] * vh, atol=1e-9)
    values = np.linalg.svd(matrix, compute_uv=False)
    if tail and len(s) < rank:
        assert dropped <= tail
        assert np.linalg.norm(values[len(s) - 1 :]) > tail * (1 - 1e-9)  # one less is too few


def test_what_was_not_sampled_counts_in_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svd, "_LARGE", 1)
    matrix = normal(200, 200)  # flat spectrum: what 8 values leave out is nearly all
    *_, dropped = truncated_svd(matrix, Truncation(8, 1e-3))
    assert dropped > 100


def test_singular_values_of_large_matrices_are_lower_bounds() -> None:
    exact = singular_values(low(450, 430, 6))
    assert np.all(exact[6:] == 0)
    noisy = low(450, 430, 6, noise=1e-3)
    wanted = np.linalg.svd(noisy, compute_uv=False)
    found = singular_values(noisy)
    assert np.all(found <= wanted * (1 + 1e-9))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_tail_is_shared_by_the_steps_that_are_left() -> None:
    budget = TailBudget(1.0, 4)
    assert budget.share() == pytest.approx(0.5)
    budget.spend(0.0)
    assert budget.share() == pytest.approx(3**-0.5)
    budget.spend(1.0)
    assert budget.share() == 0
    assert budget.dropped == 1


# ---------------------------------------------------------------------------- least squares

i, j, k = tnc.indices("i j k", size=4)
r = tnc.Index("r", 3)


def test_als_needs_cores_that_stand_once() -> None:
    a = tnc.param("A", i, r)
    for network in (
        tnc.contract(a, a(j, r), out=(i, j)),
        tnc.relu(a),
        a @ tnc.param("B", r, j) + 1,
    ):
        with pytest.raises(FormatError, match="not linear in 'A'"):
            als(network, normal(*map(int, network.shape)), [random_cores(network)])


def test_als_never_lets_the_error_grow() -> None:
    network = make("CP", 3).network((4, 3), (3, 4))
    weight = normal(4, 3, 3, 4)
    start = random_cores(network)
    first = np.linalg.norm(
        weight - tnc.compile(network, framework="numpy", dtype="float64")(parameters=start)
    )
    cores, error = als(network, weight, [start])
    assert error < first
    _again, after = als(network, weight, [cores])
    assert after <= error * (1 + 1e-12)


def test_als_solves_cores_with_batch_and_column_axes_exactly() -> None:
    a, b = tnc.param("A", i, j, r), tnc.param("B", i, r, k)  # i is a batch axis, j and k columns
    network = tnc.contract(a, b, out=(i, j, k))
    weight = normal(4, 4, 4)
    _, error = als(network, weight, [random_cores(network)])
    tails = np.linalg.svd(weight, compute_uv=False)[:, 3:]
    assert error == pytest.approx(np.linalg.norm(tails), rel=1e-3)


def test_als_with_a_diagonal_between_a_core_and_its_open_index() -> None:
    network = tnc.contract(tnc.param("d", i), tnc.delta(i, j), tnc.param("M", j, k), out=(i, k))
    weight = normal(4, 4)
    assert als(network, weight, [random_cores(network)])[1] < 1e-9


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_large_cores_are_solved_without_their_gram_matrix(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "_WHOLE", 0)
    a, b = tnc.param("A1", i, j, r), tnc.param("B1", i, r, k)
    network = tnc.contract(a, b, out=(i, j, k))
    weight = normal(4, 4, 4) + (1j * normal(4, 4, 4, seed=1) if kind == "complex" else 0)
    start = {name: core.astype(weight.dtype) for name, core in random_cores(network).items()}
    _, error = als(network, weight, [start])
    tails = np.linalg.svd(weight, compute_uv=False)[:, 3:]
    assert error == pytest.approx(np.linalg.norm(tails), rel=1e-3)


# ---------------------------------------------------------------------------- what theory says


@pytest.mark.parametrize("name", ["LowRank", "Kronecker", "Monarch"])
def test_formats_that_are_optimal_reach_their_lower_bound(name: str) -> None:
    found = make(name, 2).decompose(normal(12, 12), (4, 3), (3, 4))
    assert found.error == pytest.approx(found.lower_bound, rel=1e-9)
    assert found.error == pytest.approx(found.error_bound, rel=1e-9)


def test_the_nearest_kronecker_product_is_that_of_van_loan_and_pitsianis() -> None:
    weight = normal(12, 12)
    rearranged = weight.reshape(4, 3, 3, 4).transpose(0, 2, 1, 3).reshape(12, 12)
    values = np.linalg.svd(rearranged, compute_uv=False)
    found = formats.Kronecker(2).decompose(weight, (4, 3), (3, 4))
    assert found.error == pytest.approx(np.linalg.norm(values[2:]) / np.linalg.norm(values))


@pytest.mark.parametrize("name", ["TT", "HT"])
def test_trees_of_projections_leave_exactly_their_bound(name: str) -> None:
    found = make(name, 2).decompose(normal(12, 12), (4, 3), (3, 4))
    assert found.error == pytest.approx(found.error_bound, rel=1e-9)


def test_orthogonal_iteration_improves_on_hosvd() -> None:
    found = formats.Tucker(2).decompose(normal(16, 16), (4, 4), (4, 4))
    assert found.error < found.error_bound * 0.99


def test_identity_is_one_kronecker_product_and_a_train_of_rank_one() -> None:
    for name in ("Kronecker", "TTMatrix", "CP"):
        rank = 12 if name == "CP" else 1
        assert make(name, rank).decompose(np.eye(12), (4, 3), (4, 3)).error < 1e-9
