"""Decomposition to a rank, a tolerance or a budget: errors, bounds, weights, moments, refusals."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.test_formats import fitting, full, make, oracle, random_cores
from tncompiler import formats
from tncompiler.ir.errors import FormatError

SHAPES = [((4, 3), (3, 4)), ((2, 3, 2), (4, 3)), ((6,), (5,)), ((3, 4), (2, 5))]
RANKED = [name for name in formats.FORMATS if name not in ("Dense", "Custom")]
DIRECT = [name for name in RANKED if getattr(formats, name).direct]
ROUNDING = 1e-12


def cases(names: list[str] | None = None) -> Iterator[Any]:
    for name in names or list(formats.FORMATS):
        for shapes in fitting(name, SHAPES):
            yield pytest.param(name, *shapes, id=f"{name}-{shapes[0]}-{shapes[1]}")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def decaying(ins: tuple[int, ...], outs: tuple[int, ...]) -> np.ndarray:
    """A smooth weight: its singular values decay on every cut."""
    grids = np.meshgrid(*(np.linspace(0.1, 1, n) for n in (*ins, *outs)), indexing="ij")
    return 1 / sum(grid**2 for grid in grids) ** 0.5 + 0.01 * normal(*ins, *outs)


def of_format(name: str, rank: int, ins: tuple[int, ...], outs: tuple[int, ...]) -> np.ndarray:
    """A weight that the format holds with this rank."""
    network = make(name, rank, clamp=True).network(ins, outs)
    return oracle(network, random_cores(network, seed=5))


def check(found: Any, weight: np.ndarray) -> None:
    """The reported error is that of the cores, by another way, and lies between the bounds."""
    value = oracle(found.network, found.cores)
    measured = np.linalg.norm(weight - value) / (np.linalg.norm(weight) or 1)
    assert found.error == pytest.approx(measured, abs=ROUNDING)
    assert found.plain_error == pytest.approx(measured, abs=ROUNDING)
    assert found.error_bound is None or found.error <= found.error_bound + ROUNDING
    assert found.lower_bound is None or found.error >= found.lower_bound - ROUNDING


# ---------------------------------------------------------------------------- errors and bounds


@pytest.mark.parametrize("name, ins, outs", [*cases()])
def test_full_rank_reproduces_the_weight(
    name: str, ins: tuple[int, ...], outs: tuple[int, ...]
) -> None:
    weight = normal(*ins, *outs)
    found = full(name, ins, outs).decompose(weight, ins, outs)
    assert found.error < (1e-6 if name == "Custom" else 1e-13)  # Custom knows no exact construction
    np.testing.assert_allclose(found.reconstruct(), weight, atol=1e-5)


@pytest.mark.parametrize("kind", ["random", "decaying"])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name, ins, outs", [*cases()])
def test_error_is_measured_and_lies_between_the_bounds(
    name: str, ins: tuple[int, ...], outs: tuple[int, ...], rank: int, kind: str
) -> None:
    weight = normal(*ins, *outs) if kind == "random" else decaying(ins, outs)
    found = make(name, rank, clamp=True).decompose(weight, ins, outs)
    check(found, weight)
    assert found.error < 1
    assert found.parameters == found.format.parameters(ins, outs)
    assert {k: c.shape for k, c in found.cores.items()} == {
        leaf.name: leaf.shape for leaf in found.network.leaves
    }


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name, ins, outs", [*cases(DIRECT)])
def test_direct_formats_recover_their_own_weights(
    name: str, ins: tuple[int, ...], outs: tuple[int, ...], rank: int
) -> None:
    weight = of_format(name, rank, ins, outs)
    found = make(name, rank, clamp=True).decompose(weight, ins, outs)
    check(found, weight)
    assert found.error < 1e-12


@pytest.mark.parametrize("name", ["CP", "Kronecker", "TensorRing", "BlockTerm", "Custom"])
def test_least_squares_recovers_weights_of_low_rank(name: str) -> None:
    ins, outs = (3, 4, 3), (4, 3, 3)
    rank = 1 if name == "BlockTerm" else 2
    weight = of_format(name, rank, ins, outs)
    assert make(name, rank).decompose(weight, ins, outs).error < 1e-6


@pytest.mark.parametrize("name", RANKED)
def test_complex_weights(name: str) -> None:
    ins, outs = fitting(name, [((3, 4), (2, 5))])[0]
    weight = normal(*ins, *outs) + 1j * normal(*ins, *outs, seed=1)
    check(make(name, 2, clamp=True).decompose(weight, ins, outs), weight)
    exact = full(name, ins, outs).decompose(weight, ins, outs)
    assert exact.error < 1e-13
    assert all(core.dtype == np.complex128 for core in exact.cores.values())


def test_zero_weights_have_zero_error() -> None:
    for name in formats.FORMATS:
        ins, outs = fitting(name, [((3, 4), (2, 5))])[0]
        found = make(name, 2, clamp=True).decompose(np.zeros((*ins, *outs)), ins, outs)
        assert found.error == 0
        assert all(np.isfinite(core).all() for core in found.cores.values())


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_seed_gives_the_same_cores_again(name: str) -> None:
    ins, outs = fitting(name, [((3, 4), (2, 5))])[0]
    weight = normal(*ins, *outs)
    one, two = (make(name, 2).decompose(weight, ins, outs, seed=3) for _ in range(2))
    for key, core in one.cores.items():
        np.testing.assert_array_equal(core, two.cores[key])


def test_large_weights_are_sampled_within_the_bounds() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1500, 20)) @ rng.standard_normal((20, 1500))
    weight += 1e-3 * rng.standard_normal(weight.shape)
    found = formats.LowRank(20).decompose(weight, (1500,), (1500,))
    assert found.error <= found.error_bound + ROUNDING
    assert found.lower_bound <= found.error < 1.01 * found.lower_bound
    by_tolerance = formats.LowRank(40).decompose(weight, (1500,), (1500,), rank=20)
    assert by_tolerance.error == found.error


# ---------------------------------------------------------------------------- goals


@pytest.mark.parametrize("tolerance", [0.5, 0.05])
@pytest.mark.parametrize("name", RANKED)
def test_tolerance_is_met(name: str, tolerance: float) -> None:
    for ins, outs in fitting(name, [((4, 3), (3, 4)), ((3, 4), (2, 5))]):
        weight = decaying(ins, outs)
        found = make(name).decompose(weight, ins, outs, tolerance=tolerance)
        assert found.error <= tolerance
        check(found, weight)


@pytest.mark.parametrize("name", DIRECT)
def test_tolerance_finds_the_ranks_of_a_weight(name: str) -> None:
    for ins, outs in fitting(name, [((4, 3), (3, 4)), ((3, 4), (2, 5))]):
        weight = of_format(name, 2, ins, outs)
        noisy = weight + 1e-9 * np.linalg.norm(weight) * normal(*ins, *outs) / weight.size
        found = make(name).decompose(noisy, ins, outs, tolerance=1e-6)
        known = make(name, 2, clamp=True)
        assert found.parameters <= known.parameters(ins, outs)


@pytest.mark.parametrize("name", ["LowRank", "Monarch", "Kronecker"])
def test_optimal_formats_use_no_rank_too_many(name: str) -> None:
    ins, outs = (4, 3), (3, 4)
    weight = decaying(ins, outs)
    found = make(name).decompose(weight, ins, outs, tolerance=0.03)
    assert found.format.rank > 1
    less = make(name, found.format.rank - 1).decompose(weight, ins, outs)
    assert less.error > 0.03


@pytest.mark.parametrize("budget", [0.7, 100])
@pytest.mark.parametrize("name", RANKED)
def test_budget_is_met(name: str, budget: float) -> None:
    ins, outs = fitting(name, [((4, 3), (3, 4))])[0]
    weight = decaying(ins, outs)
    allowed = budget if budget > 1 else budget * weight.size
    found = make(name).decompose(weight, ins, outs, budget=budget)
    assert found.parameters <= allowed
    check(found, weight)


def test_fractions_are_of_the_weight_and_not_of_its_padding() -> None:
    weight = normal(13, 13)
    found = formats.LowRank().decompose(weight, (4, 4), (4, 4), budget=0.6)
    assert found.parameters <= 0.6 * 13 * 13
    assert formats.Dense().decompose(weight, (13,), (13,), budget=1.0).error == 0


def test_goals_that_cannot_be_met_are_refused() -> None:
    weight = normal(12, 12)
    with pytest.raises(FormatError, match="at rank 1"):
        formats.TT().decompose(weight, (4, 3), (3, 4), budget=5)
    with pytest.raises(FormatError, match="parameters"):
        formats.Dense().decompose(weight, (12,), (12,), budget=100)
    with pytest.raises(FormatError, match="reaches"):
        make("Custom", 2).decompose(weight, (12,), (12,), tolerance=0.01)


# ---------------------------------------------------------------------------- moments


def anisotropic(inputs: int, mixed: bool) -> np.ndarray:
    """A batch of inputs whose directions have very different scales."""
    batch = normal(400, inputs, seed=7) * np.logspace(0, -2, inputs)
    return batch @ normal(inputs, inputs, seed=8) if mixed else batch


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", RANKED)
def test_moments_lower_the_error_of_outputs(name: str, mixed: bool) -> None:
    ins, outs = (4, 3), (3, 4)
    weight, x = normal(12, 12), anisotropic(12, mixed)
    plain = make(name, 2).decompose(weight, ins, outs)
    found = make(name, 2).decompose(weight, ins, outs, moments=x.T @ x / len(x))

    def error(decomposition: Any) -> float:
        rest = weight - decomposition.reconstruct().reshape(12, 12)
        return float(np.linalg.norm(x @ rest) / np.linalg.norm(x @ weight))

    assert found.error == pytest.approx(error(found), rel=1e-6)
    assert found.error < error(plain)
    assert found.plain_error > plain.error - 1e-9
    assert found.error_bound is None or found.error <= found.error_bound + ROUNDING
    assert found.lower_bound is None or found.error >= found.lower_bound - ROUNDING


def test_moments_may_be_a_diagonal_or_a_tensor() -> None:
    weight, scales = normal(12, 12), np.logspace(0, -3, 12)
    one = formats.LowRank(3).decompose(weight, (4, 3), (12,), moments=scales)
    two = formats.LowRank(3).decompose(
        weight, (4, 3), (12,), moments=torch.diag(torch.tensor(scales))
    )
    assert one.error == pytest.approx(two.error)
    best = np.linalg.svd(np.sqrt(scales)[:, None] * weight, compute_uv=False)
    assert one.error == pytest.approx(np.linalg.norm(best[3:]) / np.linalg.norm(best), rel=1e-4)


@pytest.mark.parametrize("name", ["TT", "LowRank", "Kronecker", "Monarch"])
def test_tolerance_is_one_of_outputs_where_moments_are_given(name: str) -> None:
    weight, x = normal(12, 12), anisotropic(12, mixed=True)
    found = make(name).decompose(weight, (4, 3), (3, 4), tolerance=0.3, moments=x.T @ x / len(x))
    assert found.error <= 0.3


def test_complex_moments_of_a_real_weight() -> None:
    x = normal(100, 12) + 1j * normal(100, 12, seed=1)
    found = formats.TT(2).decompose(normal(12, 12), (4, 3), (3, 4), moments=x.conj().T @ x)
    assert all(core.dtype == np.float64 for core in found.cores.values())


@pytest.mark.parametrize(
    "moments",
    [
        np.ones(5),
        np.ones((12, 4)),
        np.full((12, 12), np.nan),
        np.zeros(12),
        -np.ones(12),
        "abc",
        np.triu(np.ones((12, 12))),
    ],
)
def test_bad_moments_are_refused(moments: Any) -> None:
    with pytest.raises(FormatError, match="moments"):
        formats.LowRank(2).decompose(normal(12, 12), (12,), (12,), moments=moments)


# ---------------------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("name", formats.FORMATS)
def test_torch_weights_keep_their_dtype(name: str, dtype: str) -> None:
    ins, outs = (4, 3), (3, 4)
    weight = torch.nn.Parameter(torch.randn(12, 12).to(getattr(torch, dtype)))
    found = make(name, 2).decompose(weight, ins, outs)
    wanted = "float32" if dtype == "bfloat16" else dtype  # NumPy has no bfloat16
    assert {core.dtype.name for core in found.cores.values()} == {wanted}
    assert found.error_bound is None or found.error <= found.error_bound + ROUNDING
    assert found.lower_bound is None or found.error >= found.lower_bound - ROUNDING


def test_smaller_weights_are_padded() -> None:
    weight = normal(11, 15)
    found = formats.TT(10**3, clamp=True).decompose(weight, (3, 4), (4, 4))
    value = found.reconstruct().reshape(12, 16)
    np.testing.assert_allclose(value[:11, :15], weight, atol=1e-12)
    np.testing.assert_allclose(value[11:], 0, atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", formats.FORMATS)
def test_weights_with_holes_are_refused(name: str, value: float) -> None:
    weight = normal(12, 12)
    weight[3, 4] = value
    with pytest.raises(FormatError, match="1 of the weight's 144 numbers"):
        make(name, 2).decompose(weight, (4, 3), (3, 4))


@pytest.mark.parametrize(
    "weight",
    [
        normal(13, 12),
        normal(12, 13),
        normal(12, 5),
        normal(12),
        normal(4, 3, 12),
        [[1.0], [1.0, 2]],
        np.ones((12, 12), int),
        np.zeros((0, 12)),
        "abc",
    ],
)
def test_weights_that_do_not_fit_are_refused(weight: Any) -> None:
    with pytest.raises(FormatError):
        formats.TT(2).decompose(weight, (4, 3), (3, 4))


def test_a_turned_weight_is_recognised() -> None:
    with pytest.raises(FormatError, match="transpose it"):
        formats.TT(2).decompose(normal(6, 30), (5, 6), (2, 3))


@pytest.mark.parametrize(
    "goal",
    [
        dict(rank=2, budget=0.5),
        dict(tolerance=0),
        dict(tolerance=1.5),
        dict(budget=-1),
        dict(tolerance=True),
        dict(budget="half"),
        dict(tolerance=math.nan),
        dict(rank=tnc.size("R")),
        dict(rank=10**5),
        {},
    ],
)
def test_bad_goals_are_refused(goal: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        formats.TT().decompose(normal(12, 12), (4, 3), (3, 4), **goal)


def test_symbolic_shapes_cannot_be_decomposed() -> None:
    with pytest.raises(FormatError, match="not all numbers"):
        formats.TT(2).decompose(normal(12, 12), (tnc.size("N"), 3), (3, 4))


# ---------------------------------------------------------------------------- custom networks

i, j = tnc.indices("i j", size=6)
r = tnc.Index("r", 3)


def test_custom_from_an_expression() -> None:
    weight = normal(6, 6)
    found = formats.Custom(tnc.param("A", i, r) @ tnc.param("B", r, j)).decompose(weight, 6, 6)
    best = formats.LowRank(3).decompose(weight, 6, 6)
    assert found.error == pytest.approx(best.error, rel=1e-3)


def test_custom_ignores_the_dtype_and_init_of_its_parameters_while_it_fits() -> None:
    a = tnc.param("A", i, r, init="zeros", dtype="float32")
    found = formats.Custom(a @ tnc.param("B", r, j)).decompose(
        of_format("LowRank", 3, (6,), (6,)), 6, 6
    )
    assert found.error < 1e-6


def test_custom_with_constants() -> None:
    eye = tnc.constant("K", i, j, value=np.eye(6))
    diagonal = formats.Custom(tnc.contract(tnc.param("d", i), eye, out=(i, j)))
    found = diagonal.decompose(np.diag(np.arange(1.0, 7)), 6, 6)
    assert found.error < 1e-12
    np.testing.assert_allclose(found.cores["d"], np.arange(1.0, 7))


def test_custom_with_shared_cores_and_sums_is_fitted_by_gradients() -> None:
    s = tnc.param("S", i, r)
    cores = normal(6, 3)
    shared = formats.Custom(tnc.contract(s, s(j, r), out=(i, j)))
    assert shared.decompose(cores @ cores.T, 6, 6).error < 1e-5
    weight = of_format("LowRank", 3, (6,), (6,)) + np.diag(np.arange(6.0))
    summed = tnc.param("A", i, r) @ tnc.param("B", r, j) + tnc.param("d", i) * tnc.delta(i, j)
    assert formats.Custom(summed).decompose(weight, 6, 6).error < 1e-5


def test_custom_binds_symbolic_open_sizes() -> None:
    rows, columns = tnc.Index("a", tnc.size("N")), tnc.Index("b", tnc.size("N"))
    custom = formats.Custom(tnc.param("A", rows, r) @ tnc.param("B", r, columns))
    assert custom.parameters(5, 5) == 30
    assert custom.network(5, 5).shape == (5, 5)
    assert custom.parameters(tnc.size("K"), tnc.size("K")) == 6 * tnc.size("K")
    with pytest.raises(FormatError, match="open indices"):
        custom.network(5, 6)


@pytest.mark.parametrize(
    "network, words",
    [
        (tnc.param("A", i, j), "open indices"),
        (tnc.input("x", *tnc.indices("a b", size=5)), "input 'x'"),
        (tnc.delta(*tnc.indices("a b", size=5)), "no parameters"),
        (tnc.param("A", i), "open indices"),
        (3, "Custom got"),
        (lambda ins, outs: 3, "Custom got"),
        (lambda ins, outs: tnc.param("A", *ins), "open indices"),
    ],
)
def test_custom_networks_that_do_not_fit_are_refused(network: Any, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        formats.Custom(network).network(5, 5)


# ---------------------------------------------------------------------------- the helpers can fail


def test_check_sees_a_wrong_error() -> None:
    weight = normal(4, 3, 3, 4)
    found = formats.TT(2).decompose(weight, (4, 3), (3, 4))
    with pytest.raises(AssertionError):
        check(found, weight + 1)
