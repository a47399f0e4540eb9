"""`stabilize="exponent"`: networks whose values no float holds, and the bound on those it does.

The oracle of the long chain works in float64 with a logarithm of its own, site by site; that of
short networks is the one of the fuzzer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests import oracle
from tests.networks import random_network
from tests.test_corpus import (
    CORPUS,
    arrays_of,
    einsum,
    expression,
    gradient,
    operands_of,
    random_array,
)
from tncompiler.backends.numpy import runtime as numpy_runtime
from tncompiler.backends.torch import runtime as torch_runtime
from tncompiler.function import NumpyFunction
from tncompiler.ir.builder import Builder
from tncompiler.ir.errors import DTypeError, PlanError
from tncompiler.ir.lower import lower
from tncompiler.ir.passes.stabilize import carry_exponents, networks_of
from tncompiler.ir.program import Value
from tncompiler.ir.scaled import Scaled, add_scaled, plain
from tncompiler.module import CompiledModule

STABLE = tnc.PlanOptions(stabilize="exponent")
BATCH, BOND, SITES, CLASSES = 32, 16, 784, 10


# ---------------------------------------------------------------------------- a long chain


def mps(sites: int, bond: int, classes: int = 0) -> tnc.Expr:
    """An MPS on two features a site; with classes, they stand on the core in the middle."""
    batch = tnc.Index("b")
    inputs, cores = [], []
    bonds = [tnc.Index(f"a{k}", bond) for k in range(sites - 1)]
    label = (tnc.Index("c", classes),) if classes else ()
    for k in range(sites):
        feature = tnc.Index(f"p{k}", 2)
        own = label if k == sites // 2 else ()
        inputs.append(tnc.input(f"x{k}", batch, feature))
        cores.append(
            tnc.param(f"A{k}", *bonds[max(k - 1, 0) : k], feature, *own, *bonds[k : k + 1])
        )
    return tnc.contract(*inputs, *cores, out=(batch, *label))


@dataclass(frozen=True)
class Chain:
    """Features (site, batch, 2) and cores (left, 2, right), the outer bonds of size 1."""

    features: np.ndarray
    cores: list[np.ndarray]

    def inputs(self) -> list[np.ndarray]:
        return list(self.features)

    def parameters(self) -> dict[str, np.ndarray]:
        first, last = self.cores[0][0], self.cores[-1][..., 0]
        return {f"A{k}": core for k, core in enumerate([first, *self.cores[1:-1], last])}


def chain(sites: int, bond: int, batch: int, std: float) -> Chain:
    rng = np.random.default_rng(0)
    angles = rng.random((sites, batch)) * np.pi / 2
    features = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    sizes = [1, *[bond] * (sites - 1), 1]
    cores = [
        (std * rng.standard_normal((left, 2, right))).astype(np.float32)
        for left, right in pairwise(sizes)
    ]
    return Chain(features, cores)


def log_oracle(known: Chain) -> tuple[np.ndarray, list[np.ndarray]]:
    """log |psi| of each sample, and the gradient of their sum by each core, in float64.

    Environments from the left and the right are brought to norm 1 at every site.
    """
    features, cores = known.features.astype(float), [core.astype(float) for core in known.cores]
    lefts, rights = [np.ones((features.shape[1], 1))], [np.ones((features.shape[1], 1))]
    log_norm = np.zeros(features.shape[1])
    for x, core in zip(features, cores, strict=True):
        moved = np.einsum("bl,bp,lpr->br", lefts[-1], x, core)
        norm = np.linalg.norm(moved, axis=1)
        lefts.append(moved / norm[:, None])
        log_norm += np.log(norm)
    for x, core in zip(features[::-1], cores[::-1], strict=True):
        moved = np.einsum("br,bp,lpr->bl", rights[-1], x, core)
        rights.append(moved / np.linalg.norm(moved, axis=1)[:, None])
    gradients = []
    for k, (x, core) in enumerate(zip(features, cores, strict=True)):
        left, right = lefts[k], rights[len(cores) - 1 - k]
        whole = np.einsum("bl,bp,lpr,br->b", left, x, core, right)
        gradients.append(np.einsum("bl,bp,br,b->lpr", left, x, right, 1 / whole))
    return log_norm + np.log(np.abs(lefts[-1][:, 0])), gradients


def assert_near(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Close in the norm of the whole array."""
    error = np.linalg.norm(np.ravel(got - expected)) / np.linalg.norm(np.ravel(expected))
    assert error < tolerance, f"relative error {error:.3g}"


def test_the_oracle_agrees_with_a_short_chain() -> None:
    known = chain(4, 3, 5, 1.0)
    value, gradients = log_oracle(known)
    x, cores = (
        known.features.astype(float),
        [torch.tensor(c, dtype=torch.float64) for c in known.cores],
    )
    for core in cores:
        core.requires_grad_()
    equation = "ba,bc,bd,be,iaj,jck,kdl,lem->b"
    psi = torch.einsum(equation, *torch.tensor(x), *cores)
    psi.abs().log().sum().backward()
    assert_near(value, psi.detach().abs().log().numpy(), 1e-12)
    for core, wanted in zip(cores, gradients, strict=True):
        assert_near(core.grad.numpy(), wanted, 1e-10)
    with pytest.raises(AssertionError):
        assert_near(2 * value, value, 1e-3)


@pytest.fixture(scope="module")
def long_chain() -> tuple[Chain, NumpyFunction]:
    known = chain(SITES, BOND, BATCH, 0.1)
    g = tnc.compile(tnc.log(mps(SITES, BOND).abs()), framework="numpy", plan=STABLE)
    g.parameters.update(known.parameters())
    return known, g


def test_without_it_the_chain_is_zero_in_float32(long_chain) -> None:
    """exactly 0.0 in float32"""
    known, _ = long_chain
    plain_chain = tnc.compile(mps(SITES, BOND), framework="numpy")
    plain_chain.parameters.update(known.parameters())
    assert not np.any(plain_chain(*known.inputs()))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_784_sites_give_their_log_value_and_gradients(long_chain, backend: str) -> None:
    """a 784-site MPS on cos/sin features gives its log-value and right gradients in float32

    To round its cores once moves these gradients by up to 4e-4.
    """
    known, g = long_chain
    expected, gradients = log_oracle(known)
    if backend == "numpy":
        assert_near(g(*known.inputs()), expected, 1e-6)
    f = CompiledModule(g.compilation, backend=backend)
    f.load_state_dict({name: torch.from_numpy(core) for name, core in known.parameters().items()})
    value = f(*map(torch.from_numpy, known.inputs()))
    value.sum().backward()
    assert_near(value.detach().numpy(), expected, 1e-6)
    for (_, parameter), wanted in zip(f.named_parameters(), gradients, strict=True):
        assert_near(parameter.grad.numpy(), wanted.reshape(parameter.shape), 2e-3)


@pytest.mark.parametrize("std", [1e-3, 1e3], ids=["underflow", "overflow"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_classes_come_as_values_with_scales(std: float, backend: str) -> None:
    """outputs come as (value, log10 scale); overflow as well as underflow"""
    known = chain(60, 4, 5, std)
    rng = np.random.default_rng(1)
    middle = (std * rng.standard_normal((4, 2, CLASSES, 4))).astype(np.float32)
    f = tnc.compile(mps(60, 4, CLASSES), backend=backend, plan=STABLE)
    state = {**known.parameters(), "A30": middle}
    f.load_state_dict({name: torch.from_numpy(core) for name, core in state.items()})
    value, scale = f(*map(torch.from_numpy, known.inputs()))
    assert scale.dtype == torch.float64
    assert scale.shape == value.shape == (5, CLASSES)
    assert not scale.requires_grad
    for label in range(CLASSES):
        cores = [*known.cores[:30], middle[:, :, label], *known.cores[31:]]
        expected, _ = log_oracle(Chain(known.features, cores))
        logs = value[:, label].double().abs().log() + scale[:, label] * np.log(10.0)
        assert_near(logs.detach().numpy(), expected, 1e-6)


# ---------------------------------------------------------------------------- networks that fit


def worth(result) -> np.ndarray:
    """value * 10**scale."""
    if not isinstance(result, tuple):
        return np.asarray(result)
    value, scale = (np.asarray(part) for part in result)
    wide = "complex128" if np.iscomplexobj(value) else "float64"
    return (value.astype(wide) * 10.0**scale).astype(value.dtype)


def against(result, cotangent: np.ndarray) -> np.ndarray:
    """The cotangent of a value whose worth has this one."""
    if not isinstance(result, tuple):
        return cotangent
    return (cotangent * 10.0 ** result[1]).astype(cotangent.dtype)


class Stable(oracle.Runner):
    """Outputs and gradients of a stabilised function, scales multiplied in."""

    def __init__(self, outputs: Sequence[tnc.Expr], dtype: str, sizes) -> None:
        self.name, self.dtype = "function", dtype
        self.compiled = tnc.compile(
            tuple(outputs), sizes=dict(sizes), framework="numpy", dtype=dtype, seed=0, plan=STABLE
        )

    def forward(self, arrays):
        return [worth(result) for result in super().forward(arrays)]

    def gradients(self, arrays, cotangents, wrt):
        results, pull = self.compiled.vjp(*self._inputs(arrays), parameters=self._params(arrays))
        given = [against(r, np.asarray(c)) for r, c in zip(results, cotangents, strict=True)]
        found = pull(tuple(given))
        return [worth(result) for result in results], {name: found[name] for name in wrt}


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus(name: str) -> None:
    known = CORPUS[name]
    arrays = arrays_of(known)
    cotangent = random_array(np.random.default_rng(6), known, known.out)
    runner = Stable((expression(known),), known.dtype, {})
    expected = einsum(known, operands_of(known, arrays), known.out)
    (value,), found = runner.gradients(arrays, [cotangent], tuple(arrays))
    tolerance = 1e-4 if known.dtype in ("float32", "complex64") else 1e-11
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)
    for leaf in arrays:
        wanted = gradient(known, arrays, cotangent, leaf)
        wanted = wanted if known.dtype.startswith("complex") else wanted.real
        np.testing.assert_allclose(found[leaf], wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seed", range(40))
def test_the_agreement_bound_holds_on_random_networks(seed: int) -> None:
    """the bound, forward and every gradient, as without scales"""
    case = random_network(seed)
    eps = oracle.epsilon(case.dtype)
    runner = Stable(case.outputs, case.dtype, case.given)
    expected = oracle.evaluate_all(case.outputs, case.arrays, case.sizes, eps)
    values, found = runner.gradients(case.arrays, case.cotangents, case.wrt)
    oracle.compare("forward", case.outputs, values, expected, "stabilised", seed)
    wanted = oracle.expected_gradients(
        case.outputs, case.arrays, case.cotangents, case.wrt, case.sizes, eps, seed
    )
    oracle.compare_named("gradient", case.outputs, found, wanted, "stabilised", seed)


def test_a_scale_that_is_left_out_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above can fail."""
    monkeypatch.setattr("tests.test_stabilize.worth", lambda r: r[0] if isinstance(r, tuple) else r)
    failed = 0
    for seed in range(8):
        try:
            test_the_agreement_bound_holds_on_random_networks(seed)
        except AssertionError:
            failed += 1
    assert failed


# ---------------------------------------------------------------------------- single samples


def three(b: int = 4) -> tuple[tnc.Expr, dict[str, np.ndarray]]:
    """x(b, i) A(i, j) B(j): the product x A is divided, each sample by a scale of its own."""
    batch, i, j = tnc.Index("b"), tnc.Index("i", 3), tnc.Index("j", 5)
    expr = tnc.contract(
        tnc.input("x", batch, i), tnc.input("y", batch, j), tnc.param("A", i, j), out=(batch,)
    )
    rng = np.random.default_rng(3)
    arrays = {"x": rng.standard_normal((b, 3)), "y": rng.standard_normal((b, 5))}
    arrays["A"] = rng.standard_normal((3, 5))
    return expr, {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("first", [None, (0, 1), (0, 2), (1, 2)])
def test_one_bad_sample_stays_alone(
    first: tuple[int, int] | None, bad: float, backend: str
) -> None:
    """zeros and non-finite values left alone; each sample has a scale of its own

    In every order: x y alone is zero in float32.
    """
    expr, arrays = three()
    order = STABLE if first is None else replace(STABLE, path=(first, (0, 1)))
    arrays["x"] *= np.float32(1e-30)
    arrays["y"] *= np.float32(1e-30)
    arrays["x"][2] = bad
    f = tnc.compile(expr, backend=backend, plan=order)
    f.load_state_dict({"A": torch.from_numpy(arrays["A"])})
    value, scale = f(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))
    double = {name: array.astype(float) for name, array in arrays.items()}
    with np.errstate(invalid="ignore"):
        expected = np.einsum("bi,ij,bj->b", double["x"], double["A"], double["y"])
    got = value.detach().double().numpy() * 10.0 ** scale.numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert np.isfinite(scale.numpy()).all()
    value.sum().backward()
    assert np.isfinite(f.A.grad.numpy()).all() == (bad == 0.0)


def test_zero_has_the_log_of_zero() -> None:
    expr, arrays = three()
    arrays["x"][2] = 0
    g = tnc.compile(tnc.log(expr.abs()), framework="numpy", plan=STABLE)
    g.parameters["A"] = arrays["A"]
    with np.errstate(divide="ignore"):
        value = g(arrays["x"], arrays["y"])
    assert value[2] == -np.inf
    assert np.isfinite(value[[0, 1, 3]]).all()


# ---------------------------------------------------------------------------- what is on top


def tiny(value: float, name: str, *indices: tnc.Index) -> tnc.Expr:
    """A network of four factors, worth value**4 at each position of the indices."""
    shape = [index.size for index in indices]
    bonds = [tnc.Index(f"{name}{k}", 1) for k in range(3)]
    leaves = [
        tnc.constant(
            f"{name}_{k}",
            *indices,
            *bonds[max(k - 1, 0) : k + 1],
            value=np.full((*shape, *[1] * len(bonds[max(k - 1, 0) : k + 1])), value),
        )
        for k in range(4)
    ]
    return tnc.contract(*leaves, out=indices)


def of(expr: tnc.Expr, **options):
    return tnc.compile(expr, framework="numpy", plan=STABLE, **options)()


LOG = np.log(1e-15) * 4


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda p, q: tnc.log(p), LOG),
        (lambda p, q: tnc.log(p + p), LOG + np.log(2)),
        (lambda p, q: tnc.log(p + q), LOG + 4 * np.log(2) + np.log1p(1 / 16)),
        (lambda p, q: tnc.log((p - q).abs()), LOG + 4 * np.log(2) + np.log1p(-1 / 16)),
        (lambda p, q: tnc.log((-p).abs()), LOG),
        (lambda p, q: tnc.log(p / q), -4 * np.log(2)),
        (lambda p, q: tnc.log(1 / p), -LOG),
        (lambda p, q: tnc.log(p @ q if p.indices else p * q), 2 * LOG + 4 * np.log(2)),
        (lambda p, q: p / q, 1 / 16),
        (lambda p, q: p, 0.0),
        (lambda p, q: tnc.exp(p), 1.0),
        (lambda p, q: p + 1.0, 1.0),
    ],
)
def test_what_stands_on_a_network(build, expected: float) -> None:
    """a log takes the scale in; sums align; anything else multiplies back"""
    got = worth(of(build(tiny(1e-15, "p"), tiny(2e-15, "q"))))
    assert got == pytest.approx(expected, rel=2e-6)


def test_a_sum_over_samples_aligns_their_scales() -> None:
    """sliced sums align exponents"""
    batch = tnc.Index("b", 3)
    names = [tnc.Index(f"k{k}", 1) for k in range(2)]
    scales = np.array([1e-15, 0.0, 3e-15])
    factors = [
        tnc.constant(
            f"f{k}",
            batch,
            *names[max(k - 1, 0) : k + 1],
            value=scales.reshape(3, *[1] * len(names[max(k - 1, 0) : k + 1])),
        )
        for k in range(3)
    ]
    psi = tnc.contract(*factors, out=(batch,))
    total = of(tnc.log((psi + psi).sum(batch)))
    assert total == pytest.approx(np.log(2) + np.log(28.0) + 3 * np.log(1e-15), rel=1e-6)


def test_a_running_total_may_start_at_zero() -> None:
    """`add_scaled` is what an accumulation needs: the exponent of zero does not count."""
    builder = Builder("float32")
    number = Value("x", (), "float32", ())
    power = Value("e", (), "float32", ())
    zero = Value("z", (), "float32", ())
    for value in (number, power, zero):
        builder.argument(value, "input")
    total = add_scaled(builder, Scaled(zero), Scaled(number, power))
    total = add_scaled(builder, total, Scaled(number, power))
    assert total.exponent is not None
    program = builder.program([total.value, total.exponent, plain(builder, total)])
    from tncompiler.backends.numpy.emit import emit
    from tncompiler.backends.source import load

    run = load(emit(program, "total")).run
    value, exponent, alone = run(np.float32(1.5), np.float32(-400), np.float32(0))
    assert (value, exponent, alone) == (3.0, -400.0, 0.0)


@pytest.mark.parametrize("dtype", ["float64", "complex64", "complex128"])
def test_other_dtypes(dtype: str) -> None:
    small = 1e-100 if dtype in ("float64", "complex128") else 1e-15
    i = [tnc.Index(f"i{k}", 2) for k in range(5)]
    leaves = [tnc.input(f"m{k}", i[k], i[k + 1], dtype=dtype) for k in range(4)]
    rng = np.random.default_rng(2)
    arrays = [(rng.standard_normal((2, 2)) + 1j * rng.standard_normal((2, 2))) for _ in range(4)]
    if not dtype.startswith("complex"):
        arrays = [array.real for array in arrays]
    f = tnc.compile(tnc.contract(*leaves, out=(i[0], i[4])), framework="numpy", plan=STABLE)
    value, scale = f(*((small * array).astype(dtype) for array in arrays))
    assert value.dtype == dtype
    expected = np.linalg.multi_dot(arrays)
    moved = value.astype(np.result_type(dtype, "float64")) * 10.0 ** (scale - 4 * np.log10(small))
    np.testing.assert_allclose(moved, expected, rtol=1e-5 if dtype == "complex64" else 1e-12)
    logs = tnc.compile(tnc.log(tnc.contract(*leaves, out=())), framework="numpy", plan=STABLE)
    whole = (
        logs(*((small * array).astype(dtype) for array in arrays)) if dtype != "float64" else None
    )
    if whole is not None:
        wanted = np.log(expected.sum()) + 4 * np.log(small)
        np.testing.assert_allclose(whole, wanted, rtol=1e-5)


def test_bfloat16_keeps_float32_scales() -> None:
    f = tnc.compile(mps(30, 3), dtype="bfloat16", seed=0, plan=STABLE)
    with torch.no_grad():
        for parameter in f.parameters():
            parameter.mul_(1e-20)
    value, scale = f(*(torch.ones(2, 2, dtype=torch.bfloat16) for _ in range(30)))
    assert value.dtype == torch.bfloat16
    assert (scale < -500).all()
    assert (value != 0).all()


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_integers_are_refused(dtype: str) -> None:
    """integers refused with a typed error"""
    i, j, k = tnc.Index("i", 2), tnc.Index("j", 2), tnc.Index("k", 2)
    leaves = [tnc.input("a", i, j, dtype=dtype), tnc.input("b", j, k, dtype=dtype)]
    g = tnc.compile(tnc.contract(*leaves, out=(i, k)), framework="numpy", plan=STABLE)
    with pytest.raises(DTypeError, match="stabilize"):
        g(np.ones((2, 2), dtype), np.ones((2, 2), dtype))


def test_an_einsum_has_no_place_for_a_scale() -> None:
    with pytest.raises(PlanError, match="scale"):
        tnc.einsum("ij,jk->ik", np.ones((2, 2)), np.ones((2, 2)), optimize=STABLE)


# ---------------------------------------------------------------------------- torch and derivatives


@pytest.fixture(scope="module")
def short() -> tuple[CompiledModule, list[torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
    known = chain(12, 3, 4, 1e-6)
    f = tnc.compile(mps(12, 3), plan=STABLE, backend="torch")
    f.load_state_dict({name: torch.from_numpy(core) for name, core in known.parameters().items()})
    value, gradients = log_oracle(known)
    inputs = [torch.from_numpy(x) for x in known.inputs()]
    named = dict(zip(known.parameters(), map(torch.from_numpy, gradients), strict=True))
    return f, inputs, torch.from_numpy(value), named


def log_of(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    value, scale = pair
    return value.abs().log().double() + scale * np.log(10.0)


def assert_logs(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert_near(got.detach().numpy(), expected.numpy(), 1e-6)


@pytest.mark.parametrize("how", ["eager", "compile", "export", "vmap"])
def test_pairs_everywhere(short, how: str) -> None:
    f, inputs, expected, _ = short
    if how == "compile":
        f = torch.compile(f, fullgraph=True, backend="aot_eager")
    elif how == "export":
        f = torch.export.export(f, tuple(inputs)).module()
    if how == "vmap":
        single = torch.func.vmap(lambda *xs: log_of(f(*(x[None] for x in xs)))[0])
        assert_logs(single(*inputs), expected)
        return
    assert_logs(log_of(f(*inputs)), expected)


@pytest.mark.parametrize("how", ["backward", "compile", "func"])
def test_gradients_everywhere(short, how: str) -> None:
    """gradients (torch backward, flat aten under torch.compile / functorch) must be right"""
    f, inputs, _, expected = short
    parameters = dict(f.named_parameters())
    f.zero_grad()
    if how == "func":

        def loss(held: dict[str, torch.Tensor]) -> torch.Tensor:
            return log_of(torch.func.functional_call(f, held, tuple(inputs))).sum()

        found = torch.func.grad(loss)(parameters)
    else:
        run = torch.compile(f, fullgraph=True, backend="aot_eager") if how == "compile" else f
        log_of(run(*inputs)).sum().backward()
        found = {name: parameter.grad for name, parameter in parameters.items()}
    for name, wanted in expected.items():
        assert_near(found[name].detach().numpy(), wanted.reshape(found[name].shape).numpy(), 1e-4)


@pytest.mark.parametrize("how", ["func", "numpy"])
def test_forward_mode_agrees_with_reverse_mode(short, how: str) -> None:
    f, inputs, _, gradients = short
    expected = sum(float(gradient.sum()) for gradient in gradients.values()) * 1e-6
    if how == "func":
        held = {name: p.detach() for name, p in f.named_parameters()}

        def loss(held: dict[str, torch.Tensor]) -> torch.Tensor:
            return log_of(torch.func.functional_call(f, held, tuple(inputs))).sum()

        moved = {name: torch.full_like(p, 1e-6) for name, p in held.items()}
        _, tangent = torch.func.jvp(loss, (held,), (moved,))
        assert float(tangent) == pytest.approx(expected, rel=1e-3)
        return
    g = tnc.compile(mps(12, 3), framework="numpy", plan=STABLE)
    g.parameters.update({name: p.detach().numpy() for name, p in f.named_parameters()})
    tangents = {name: np.full_like(p, 1e-6) for name, p in g.parameters.items()}
    (value, _), tangent = g.jvp(*(x.numpy() for x in inputs), tangents=tangents)
    assert (tangent / value).sum() == pytest.approx(expected, rel=1e-3)


def test_second_derivatives() -> None:
    """d²/dx² log psi(x), through values that float32 does not hold"""
    j, k = tnc.Index("j", 2), tnc.Index("k", 2)
    x = tnc.input("x", j)
    c = [
        tnc.constant(f"c{n}", *axes, value=np.full([2] * len(axes), 1e-18))
        for n, axes in enumerate([(j, k), (k,), ()])
    ]
    f = tnc.compile(tnc.log(tnc.contract(x, *c, out=())), plan=STABLE)
    point = torch.tensor([1.0, 3.0], requires_grad=True)
    (first,) = torch.autograd.grad(f(point), point, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), point)
    assert torch.allclose(first, torch.tensor([0.25, 0.25]))
    assert torch.allclose(second, torch.tensor([-0.125, -0.125]))


def test_value_and_grad_of_a_pair() -> None:
    expr, arrays = three()
    g = tnc.compile(expr.sum("b"), framework="numpy", plan=STABLE)
    g.parameters["A"] = arrays["A"]
    (value, scale), grads = g.value_and_grad(arrays["x"], arrays["y"])
    double = {name: array.astype(float) for name, array in arrays.items()}
    np.testing.assert_allclose(
        grads["A"] * 10.0**scale, np.einsum("bi,bj->ij", double["x"], double["y"]), rtol=1e-5
    )
    assert value.shape == scale.shape == ()


# ---------------------------------------------------------------------------- programs


@pytest.mark.parametrize("factor", [1e-30, 1e30])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_two_tensors_may_have_a_product_that_no_float_holds(backend: str, factor: float) -> None:
    """leaves are renormalised where they meet"""
    expr, arrays = three()
    x, A = expr.terms[0], expr.terms[2]
    f = tnc.compile(x @ A, backend=backend, plan=STABLE)
    scaled = arrays["A"] * np.float32(factor)
    f.load_state_dict({"A": torch.from_numpy(scaled)})
    given = torch.from_numpy(arrays["x"] * np.float32(factor)).requires_grad_()
    value, scale = f(given)
    shift = 2 * np.log10(factor)
    got = value.detach().double().numpy() * 10.0 ** (scale.numpy() - shift)
    np.testing.assert_allclose(got, arrays["x"].astype(float) @ arrays["A"], rtol=1e-5, atol=1e-6)
    value.sum().backward()
    expected = 10.0 ** -scale.numpy() @ scaled.astype(float).T  # of the value, its scale held fixed
    np.testing.assert_allclose(given.grad.double().numpy(), expected, rtol=1e-4)


def test_the_smaller_tensor_is_divided_once() -> None:
    """A parameter that meets two inputs, here and there, has one scale."""
    expr, _ = three()
    x, _, A = expr.terms
    both = (x @ A, tnc.input("z", x.indices[0], A.indices[0]) @ A)
    g = tnc.compile(both, framework="numpy", plan=STABLE)
    assert g.program().to_text().count("power_of_two A") <= 1
    assert g.program().to_text().count("= power_of_two") == 1


def test_reports_still_work() -> None:
    """f.cost/explain/plan must still work"""
    f = tnc.compile(mps(6, 3), plan=STABLE)
    bare = tnc.compile(mps(6, 3))
    for part in ("forward", "backward", "step"):
        assert f.cost({"b": 4}, part).flops > bare.cost({"b": 4}, part).flops
        assert ("power_of_two" in f.explain(part=part)) == (part != "backward")
    assert f.plan().networks[0].pairs == bare.plan().networks[0].pairs
    assert f.cost({"b": 4}).peak_bytes > 0


@pytest.mark.parametrize("limit", [7000, 5000])
def test_inside_a_limit_of_memory(limit: int) -> None:
    """slices over a batch, values made again: the same numbers"""
    known = chain(5, 8, 64, 1e-3)
    options = tnc.PlanOptions(stabilize="exponent", memory_limit=limit)
    g = tnc.compile(tnc.log(mps(5, 8).abs()), framework="numpy", plan=options)
    g.parameters.update(known.parameters())
    expected, gradients = log_oracle(known)
    assert_near(g(*known.inputs()), expected, 1e-6)
    value, pull = g.vjp(*known.inputs())
    assert_near(value, expected, 1e-6)
    assert_near(pull(np.ones(64, np.float32))["A3"], gradients[3], 1e-4)
    assert g.plan({"b": 64}).sliced_indices == (("b",) if limit == 5000 else ())


def test_sizes_of_zero() -> None:
    """Correctness holds at every size, 0 included."""
    a, b, i = tnc.Index("a"), tnc.Index("b"), tnc.Index("i", 2)
    expr = tnc.contract(
        tnc.input("x", a, b),
        tnc.input("y", b, i),
        tnc.input("z", a, i),
        tnc.param("w", i),
        out=(a,),
    )
    g = tnc.compile(expr, framework="numpy", plan=STABLE)
    for rows, inner in ((0, 2), (2, 0), (0, 0), (2, 3)):
        given = [np.ones(shape, np.float32) for shape in ((rows, inner), (inner, 2), (rows, 2))]
        value, scale = g(*given)
        np.testing.assert_allclose(
            value * 10.0**scale, inner * g.parameters["w"].sum() * np.ones(rows), rtol=1e-5
        )


def test_the_pass_marks_networks_alike_before_and_after_planning() -> None:
    expr, _ = three()
    for outputs in ((expr,), (-expr, tnc.exp(expr)), (expr / expr, expr + 1.0)):
        program = lower(outputs, default_dtype="float32")
        marks = [name in networks_of(program) for name in program.outputs]
        scaled = carry_exponents(program)
        assert len(scaled.outputs) == len(marks) + sum(marks)
        assert carry_exponents(scaled) is scaled


# ---------------------------------------------------------------------------- powers of two


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_powers_are_exact(library: str, dtype: type) -> None:
    info = np.finfo(dtype)
    rng = np.random.default_rng(0)
    normal = np.ldexp(rng.random(200) + 1, rng.integers(info.minexp, info.maxexp, 200))
    x = np.array(
        [*normal, 1.0, 2.0, info.tiny, info.max, 0.0, info.tiny / 2, np.inf, np.nan], dtype
    )
    runtime = numpy_runtime if library == "numpy" else torch_runtime
    given = x if library == "numpy" else torch.from_numpy(x)
    power = runtime.power_of_two(given)
    exponents = np.asarray(runtime.exponent(power))
    power = np.asarray(power)
    assert np.array_equal(power[-4:], np.ones(4))
    kept = slice(None, -4)
    assert (power[kept] <= x[kept]).all()
    assert (x[kept] / 2 < power[kept]).all()
    assert np.array_equal(np.ldexp(dtype(1), exponents.astype(int)), power)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_shifts_are_exact_and_never_overflow_on_the_way(library: str, dtype: type) -> None:
    real = np.real(dtype(0)).dtype
    info = np.finfo(real)
    rng = np.random.default_rng(1)
    numbers = [1.5, -3.0, info.tiny, info.max, 0.0, -1e-30, 1e30]
    x = np.array(numbers if np.iscomplexobj(dtype(0)) else [*numbers, np.inf], dtype)
    for e in (*rng.integers(-5000, 5000, 40), 0, 1, -1, 2 * info.maxexp, -2 * info.maxexp):
        powers = np.full(x.shape, e, real)
        with np.errstate(all="ignore"):
            wanted = np.ldexp(x.real, int(e))
            if library == "numpy":
                got = numpy_runtime.shift_exponent(powers, x)
            else:
                got = torch_runtime.shift_exponent(torch.tensor(powers), torch.tensor(x)).numpy()
        near = np.abs(wanted) < info.tiny  # a subnormal result may be rounded twice
        assert np.array_equal(got.real[~near], wanted[~near]), e
        np.testing.assert_allclose(
            got.real[near], wanted[near], rtol=0, atol=info.smallest_subnormal
        )
    assert np.isnan(np.asarray(numpy_runtime.shift_exponent(np.float32(9), np.float32(np.nan))))
