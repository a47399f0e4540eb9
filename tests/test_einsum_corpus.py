"""opt_einsum's own equations and tests, and cotengra's generated ones, through `tnc.einsum`.

In: what the installed packages hold and generate. The oracle is numpy.einsum, or opt_einsum where
one loop is too long, in extended precision; the bound is that of the fuzzers. TNC_FUZZ_NETWORKS
sets how many seeds the generators get.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import cotengra as ctg
import numpy as np
import opt_einsum as oe
import pytest
import torch
from opt_einsum.tests import (
    test_backends,
    test_blas,
    test_contract,
    test_edge_cases,
    test_input,
    test_paths,
)

import tncompiler as tnc
from tncompiler.ir.errors import TncError

DTYPES = ("float32", "float64", "complex64")
SEEDS = max(2, int(os.environ.get("TNC_FUZZ_NETWORKS", "200")) // 500)
OPTIMIZERS = (True, False, None, "auto", "optimal", "dp", "dynamic-programming", "branch-all")
OPTIMIZERS += ("branch-2", "branch-1", "greedy", "eager", "opportunistic", "random-greedy")
LOOP = 2_000_000  # multiplications that one loop of numpy.einsum may take


# ---------------------------------------------------------------------------- oracle and bound


def exact(equation: Any, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The equation in extended precision."""
    if not all(a.size for a in arrays):  # NumPy 2.4 writes past the end of empty clongdouble
        return np.asarray(np.einsum(equation, *arrays))
    wide = [a.astype(np.result_type(a, np.longdouble)) for a in arrays]
    if isinstance(equation, str) and _loop(equation, wide) <= LOOP:
        return np.asarray(np.einsum(equation, *wide, optimize=False))
    return np.asarray(oe.contract(equation, *wide, optimize="greedy"))


def _loop(equation: str, arrays: Sequence[np.ndarray]) -> int:
    if not equation.isascii() or "." in equation:
        return LOOP if equation.isascii() else LOOP + 1
    terms = equation.split("->")[0].split(",")
    sizes = {
        k: n for t, a in zip(terms, arrays, strict=True) for k, n in zip(t, a.shape, strict=True)
    }
    return LOOP + 1 if len(sizes) > 30 else int(np.prod(list(sizes.values()), dtype=float))


def assert_agrees(got: Any, equation: Any, arrays: Sequence[np.ndarray], what: object) -> None:
    """|got - exact| <= 8 sqrt(max(1, n / 12)) eps einsum(|operands|) + tiny."""
    dtype = np.result_type(*arrays)
    found = got.detach().resolve_conj().numpy() if isinstance(got, torch.Tensor) else got
    assert np.asarray(found).dtype == dtype, what
    reference, size = exact(equation, arrays), exact(equation, [np.abs(a) for a in arrays])
    assert np.shape(found) == reference.shape, what
    info = np.finfo(dtype)
    bound = 8 * max(1, len(arrays) / 12) ** 0.5 * float(info.eps) * size + float(info.tiny)
    worst = np.max(np.abs(found - reference) / bound, initial=0.0)
    assert worst <= 1, f"{what}: error / bound = {worst}"


def drawn(shapes: Sequence[Sequence[int]], dtype: str, seed: int = 0) -> list[np.ndarray]:
    """Signed random arrays."""
    rng = np.random.default_rng(seed)
    arrays = []
    for shape in shapes:
        values = rng.standard_normal(shape)
        if dtype.startswith("complex"):
            values = values + 1j * rng.standard_normal(shape)
        arrays.append(np.asarray(values).astype(dtype))
    return arrays


def check_equation(equation: Any, shapes: Sequence[Sequence[int]], **options: Any) -> None:
    """NumPy and torch, in three dtypes, against the oracle."""
    for dtype in DTYPES:
        arrays = drawn(shapes, dtype)
        for library in (np.asarray, torch.from_numpy):
            got = tnc.einsum(equation, *(library(a) for a in arrays), **options)
            assert isinstance(got, torch.Tensor) == (library is torch.from_numpy)
            assert_agrees(got, equation, arrays, (equation, dtype, library.__name__, options))


def test_the_bound_finds_an_error() -> None:
    arrays = drawn([(5, 6), (6, 7)], "float32")
    right = np.einsum("ij,jk", *arrays)
    assert_agrees(right, "ij,jk", arrays, "right")
    wrongs = (right * np.float32(1 + 1e-3), right.astype("f8"), right.T, right[:-1])
    for wrong in wrongs:
        with pytest.raises(AssertionError):
            assert_agrees(wrong, "ij,jk", arrays, "wrong")


# ---------------------------------------------------------------------------- opt_einsum's lists


def parameters(test: Callable[..., Any], name: str) -> list[Any]:
    """The values that a test of opt_einsum is parametrised with."""
    for mark in test.pytestmark:  # type: ignore[attr-defined]
        names = [part.strip() for part in mark.args[0].split(",")]
        if name in names:
            at = names.index(name)
            return [v if len(names) == 1 else v[at] for v in mark.args[1]]
    raise LookupError(name)


def oe_equations() -> list[str]:
    found = [
        *test_contract.tests,
        *test_backends.tests,
        *parameters(test_contract.test_contract_expression_with_constants, "string"),
        *(case[1] for case in test_paths.path_edge_tests),
        *(case[0] for case in test_paths.path_scalar_tests),
        *parameters(test_input.test_compare, "string"),
        "abc,bdef,fghj,cem,mhk,ljk->adgl",  # test_memory_paths
        "a,ac,ab,ad,cd,bd,bc->",  # test_optimal_edge_cases
        "abc,cf,acf",  # test_greedy_edge_cases
        "",
        "->",
    ]
    for (terms, out, _), _ in parameters_of_blas():
        found.append(f"{','.join(terms)}->{out}")
    return list(dict.fromkeys(found))


def parameters_of_blas() -> list[Any]:
    return test_blas.blas_tests


SIZES = oe.testing._default_dim_dict


def shapes_of(equation: str) -> list[tuple[int, ...]]:
    terms = equation.replace("...", "ij").split("->")[0].split(",")
    return [tuple(SIZES[label] for label in term) for term in terms]


EQUATIONS = oe_equations()


@pytest.mark.parametrize("number", range(len(EQUATIONS)))
def test_equation(number: int) -> None:
    """Plain, with another optimizer each, in Greek and interleaved."""
    equation = EQUATIONS[number]
    shapes, optimize = shapes_of(equation), OPTIMIZERS[number % len(OPTIMIZERS)]
    check_equation(equation, shapes)
    arrays = drawn(shapes, "float64")
    for form in (equation, greek(equation)):
        got = tnc.einsum(form, *arrays, optimize=optimize)
        assert_agrees(got, form, arrays, (form, optimize))
    mixed = interleaved(equation, arrays)
    assert_agrees(tnc.einsum(*mixed), equation, arrays, mixed[1::2])
    tensors = interleaved(equation, [torch.from_numpy(a) for a in arrays])
    assert_agrees(tnc.einsum(*tensors), equation, arrays, mixed[1::2])


def greek(equation: str) -> str:
    return "".join(chr(ord(c) + 848) if c not in ",->." else c for c in equation)


def interleaved(equation: str, arrays: Sequence[Any]) -> list[Any]:
    left, arrow, out = equation.partition("->")
    lists = [label_list(term) for term in left.split(",")]
    mixed = [part for pair in zip(arrays, lists, strict=True) for part in pair]
    return [*mixed, label_list(out)] if arrow else mixed


def label_list(term: str) -> list[Any]:
    return [... if c == "." else ord(c) for c in term.replace("...", ".")]


def test_every_list_of_opt_einsum_is_read() -> None:
    assert len(EQUATIONS) > 110
    assert set(test_contract.tests) <= set(EQUATIONS)


# ---------------------------------------------------------------------------- its own tests


@contextmanager
def refused(*_: object) -> Iterator[Any]:
    """In place of pytest.raises: a TncError, or Python's own word on a keyword."""
    with pytest.raises((TncError, TypeError)) as caught:
        yield caught
    assert isinstance(caught.value, TncError) or "unexpected keyword" in str(caught.value)


def path_of_arrays(*arguments: Any, **options: Any) -> Any:
    """opt_einsum takes lists as arrays, and shapes=True for shapes."""
    if not options.get("shapes"):
        arguments = (*arguments[:1], *(np.asarray(a) for a in arguments[1:]))
    return tnc.contract_path(*arguments, **options)


OWN_TESTS: list[tuple[ModuleType, str]] = [
    *((test_input, name) for name in dir(test_input) if name.startswith("test_")),
    *((test_edge_cases, name) for name in dir(test_edge_cases) if "broadcasting_con" in name),
    (test_edge_cases, "test_pathinfo_for_empty_contraction"),
    (test_edge_cases, "test_contract_with_assumed_shapes"),
    (test_contract, "test_contract_plain_types"),
    (test_contract, "test_drop_in_replacement"),
    (test_contract, "test_some_non_alphabet_maintains_order"),
    (test_contract, "test_contract_expression_interleaved_input"),
    (test_contract, "test_contract_expression_with_constants"),
    (test_contract, "test_rand_equation"),
    (test_contract, "test_linear_vs_ssa"),
    (test_contract, "test_contract_path_supply_shapes"),
]


@pytest.mark.parametrize(("module", "name"), OWN_TESTS, ids=[name for _, name in OWN_TESTS])
def test_own_test(module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """opt_einsum's test functions with our functions in the place of its own."""
    ours = {
        "contract": tnc.einsum,
        "contract_path": path_of_arrays,
        "contract_expression": tnc.einsum_expression,
    }
    for own, function in ours.items():
        if hasattr(module, own):
            monkeypatch.setattr(module, own, function)
    monkeypatch.setattr(module, "pytest", SimpleNamespace(raises=refused))
    test = getattr(module, name)
    for values in combinations(test):
        if "contract_fn" in values:
            values["contract_fn"] = path_of_arrays if "path" in str(values) else tnc.einsum
        test(**values)


def combinations(test: Callable[..., Any]) -> list[dict[str, Any]]:
    """The keyword arguments of each run of a parametrised test."""
    found: list[dict[str, Any]] = [{}]
    for mark in getattr(test, "pytestmark", []):
        names = [part.strip() for part in mark.args[0].split(",")]
        rows = [values if len(names) > 1 else (values,) for values in mark.args[1]]
        found = [{**old, **dict(zip(names, row, strict=True))} for old in found for row in rows]
    assert all(set(values) == set(inspect.signature(test).parameters) for values in found)
    return found


def test_refused_finds_what_is_accepted_or_badly_refused() -> None:
    with pytest.raises(pytest.fail.Exception), refused(ValueError):
        pass
    with pytest.raises(AssertionError), refused(ValueError):
        raise TypeError("something raw")
    with pytest.raises(ValueError, match="raw"), refused(ValueError):
        raise ValueError("something raw")


def test_its_edge_cases_of_expressions() -> None:
    """test_contract_expression_checks, whose messages are opt_einsum's."""
    make, rand = tnc.einsum_expression, np.random.default_rng(0).random
    unplanned = make("ab,bc->ac", (2, 3), (3, 4), optimize=False)  # we need no planner
    assert unplanned(rand((2, 3)), rand((3, 4))).shape == (2, 4)
    with refused():
        make("ab,bc->ac", (2, 3), (3, 4), (42, 42))
    with refused():
        make("ab,bc->ac", (2, 3), (3, 4), out=np.empty((2, 4)))
    expr = make("ab,bc->ac", (2, 3), (3, 4))
    for shapes in ([(2, 3)], [(2, 3)] * 3, [(2, 3, 4), (3, 4)], [(2, 4), (3, 4, 5)]):
        with refused():
            expr(*map(rand, shapes))
    with refused():
        expr(rand((2, 3)), rand((3, 4)), out=rand((2, 4, 6)))
    with refused():
        expr(rand((2, 3)), rand((3, 4)), order="F")


# ---------------------------------------------------------------------------- cotengra's generators

Generated = tuple[Any, Any, Any, Any]
GENERATORS: dict[str, Callable[[int], Generated]] = {
    "random": lambda s: ctg.utils.rand_equation(8 + s % 5, 3, n_out=s % 3, seed=s),
    "hyper": lambda s: ctg.utils.rand_equation(
        9, 3, n_out=2, n_hyper_in=2, n_hyper_out=1, d_max=4, seed=s
    ),
    "outputs": lambda s: ctg.utils.rand_equation(5, 2, n_out=5, n_hyper_out=2, d_max=3, seed=s),
    "many": lambda s: ctg.utils.rand_equation(40, 3, n_hyper_in=2, d_max=2, seed=s),
    "lattice": lambda s: ctg.utils.lattice_equation([3 + s % 3, 4], d_max=3, seed=s),
    "cyclic": lambda s: ctg.utils.lattice_equation([3, 3], cyclic=True, d_max=3, seed=s),
    "cube": lambda s: ctg.utils.lattice_equation([2, 2, 2 + s % 2], d_max=3, seed=s),
    "regular": lambda s: ctg.utils.randreg_equation(10 + 2 * (s % 3), 3, d_max=3, seed=s),
    "tree": lambda s: ctg.utils.tree_equation(10 + s % 50, d_max=4, n_outer=s % 4, seed=s),
    "long tree": lambda s: ctg.utils.tree_equation(90, d_max=3, n_outer=3, seed=s),
    "perverse": lambda s: ctg.utils.perverse_equation(
        5 + s % 4, num_indices=4, max_rank=5, n_outer=s % 4, seed=s
    ),
}


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", GENERATORS)
def test_generated(name: str, seed: int) -> None:
    inputs, output, shapes, _ = GENERATORS[name](seed)
    output = [label for label in output if any(label in term for term in inputs)]
    check_equation(ctg.utils.inputs_output_to_eq(inputs, output), shapes)


def test_generated_graphs_and_optimizers() -> None:
    """One lattice by every kind of search, among them cotengra's own."""
    inputs, output, shapes, _ = GENERATORS["cube"](1)
    equation = ctg.utils.inputs_output_to_eq(inputs, output)
    arrays = drawn(shapes, "float64")
    hyper = ctg.HyperOptimizer(max_repeats=2, parallel=False, progbar=False)
    searches = (
        "auto-hq",
        "hyper-greedy",
        "random-greedy-128",
        hyper,
        ctg.RandomGreedyOptimizer(seed=0),
    )
    for search in searches:
        assert_agrees(tnc.einsum(equation, *arrays, optimize=search), equation, arrays, search)
