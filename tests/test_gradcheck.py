"""Derivatives against finite differences, forward mode against reverse mode, in double precision.

On random networks without corners: torch.autograd.gradcheck and gradgradcheck of the modules,
<ct, J v> == <Jᵀ ct, v> of the NumPy functions, and tnc.jvp against both.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import tncompiler as tnc
from tests.networks import Case, random_network
from tests.oracle import compare, epsilon
from tncompiler.ir.reference import evaluate_all

NETWORKS = int(os.environ.get("TNC_GRADCHECKS", "100"))  # each is checked on both backends
CHUNKS = 10
BACKENDS = ("numpy", "torch")
MOST_ELEMENTS = 40
LARGEST = 30.0  # finite differences of larger values say little


@functools.cache
def smooth_cases() -> tuple[Case, ...]:
    """Small smooth networks with tame values, half of them complex."""
    return tuple(case for case, _ in zip(_smooth_cases(), range(NETWORKS), strict=False))


def _smooth_cases() -> Iterator[Case]:
    seed = 0
    while True:
        dtype = "complex128" if seed % 2 else "float64"
        case = random_network(seed, 3, smooth=True, dtype=dtype)
        seed += 1
        if case.wrt and is_tame(case):
            yield case


def is_tame(case: Case) -> bool:
    arrays = [*case.arrays.values(), *case.cotangents]
    if any(array.size == 0 for array in arrays) or sum(a.size for a in arrays) > MOST_ELEMENTS:
        return False
    with np.errstate(all="ignore"):
        results = evaluate_all(case.outputs, case.arrays, case.sizes)
    return all(np.abs(r.value).max() < LARGEST and r.bound.max() < 1e-3 for r in results)


def module_of(case: Case, backend: str) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    """The compiled module, and its differentiable leaves as tensors: inputs, then parameters."""
    module = tnc.compile(case.outputs, backend=backend, dtype=case.dtype, sizes=case.given, seed=0)
    parameters = [name for name, _ in module.named_parameters()]
    names = (*module.inputs, *parameters)
    arrays = [case.arrays[name] for name in names]
    return module, tuple(torch.tensor(a, requires_grad=a.dtype.kind in "fc") for a in arrays)


def call(module: torch.nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The outputs that can be differentiated, as a function of all leaves."""
    count = len(module.inputs)
    names = [name for name, _ in module.named_parameters()]
    held = dict(zip(names, tensors[count:], strict=True))
    outputs = torch.func.functional_call(module, held, tensors[:count])
    return tuple(output for output in outputs if output.requires_grad)


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str, chunk: int) -> None:
    for case in smooth_cases()[chunk::CHUNKS]:
        module, tensors = module_of(case, backend)
        run = functools.partial(call, module)
        if not run(*tensors):
            continue
        assert torch.autograd.gradcheck(run, tensors, fast_mode=True, atol=1e-4), case.seed
        assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True, atol=1e-3), case.seed


def test_gradcheck_can_fail() -> None:
    """A module whose backward pass loses a factor."""
    case = next(c for c in smooth_cases() if c.dtype == "float64")
    module, tensors = module_of(case, "numpy")

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x * 2

        @staticmethod
        def backward(ctx, ct):  # type: ignore[no-untyped-def]
            return ct

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(Wrong.apply(output) for output in call(module, *given))

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(run, tensors, fast_mode=True, atol=1e-4)


# ---------------------------------------------------------------------------- both modes


def cases_of_both_modes(chunk: int) -> list[Case]:
    """Networks with corners too, in double precision."""
    seeds = range(chunk, NETWORKS, CHUNKS)
    found = [
        random_network(seed, 5, dtype="complex128" if seed % 3 == 0 else "float64")
        for seed in seeds
    ]
    return [case for case in found if case.wrt]


def function_of(case: Case) -> tuple[tnc.function.NumpyFunction, list[np.ndarray]]:
    """The NumPy function with the case's parameters in it, and its inputs."""
    made = tnc.compile(case.outputs, framework="numpy", dtype=case.dtype, sizes=case.given, seed=0)
    for name in made.parameters:
        made.parameters[name] = case.arrays[name]
    return made, [case.arrays[name] for name in made.inputs]


def tangents_of(case: Case) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(case.seed)
    found = {}
    for name in case.wrt:
        array = case.arrays[name]
        values = rng.standard_normal(array.shape)
        if array.dtype.kind == "c":
            values = values + 1j * rng.standard_normal(array.shape)
        found[name] = np.asarray(values).astype(array.dtype)
    return found


def inner(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Re <a, b>, and the sum of absolute products."""
    products = np.conj(a) * b
    return float(np.sum(products.real)), float(np.sum(np.abs(products)))


def disagreement(
    cotangents: tuple[np.ndarray, ...],
    moved: tuple[np.ndarray, ...],
    grads: dict[str, np.ndarray],
    tangents: dict[str, np.ndarray],
) -> float:
    """|<ct, J v> - <Jᵀ ct, v>| relative to the absolute products.

    A hundredth of the cotangents counts as well: where the derivative is 0 (a centred mean, the
    imaginary part of a square), both sides are rounding of numbers around one.
    """
    left = [inner(c, m) for c, m in zip(cotangents, moved, strict=True)]
    right = [inner(grads[name], tangents[name]) for name in tangents]
    floor = 1e-2 * sum(float(np.abs(c).sum()) for c in cotangents)
    scale = sum(s for _, s in (*left, *right)) + floor + 1e-300
    return abs(sum(v for v, _ in left) - sum(v for v, _ in right)) / scale


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_forward_and_reverse_mode_agree(chunk: int) -> None:
    for case in cases_of_both_modes(chunk):
        function, inputs = function_of(case)
        tangents = tangents_of(case)
        _, moved = function.jvp(*inputs, tangents=tangents)
        _, pull = function.vjp(*inputs)
        grads = pull(case.cotangents)
        assert disagreement(case.cotangents, moved, grads, tangents) < 1e-9, case.seed


def test_disagreement_is_seen() -> None:
    case = cases_of_both_modes(1)[0]
    function, inputs = function_of(case)
    tangents = tangents_of(case)
    _, moved = function.jvp(*inputs, tangents=tangents)
    grads = function.vjp(*inputs)[1](case.cotangents)
    wrong = {name: 1.01 * gradient for name, gradient in grads.items()}
    assert disagreement(case.cotangents, moved, wrong, tangents) > 1e-6


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_jvp_expression_agrees_with_jvp(chunk: int) -> None:
    for case in cases_of_both_modes(chunk):
        function, inputs = function_of(case)
        tangents = tangents_of(case)
        _, moved = function.jvp(*inputs, tangents=tangents)
        leaves = {leaf.name: leaf for output in case.outputs for leaf in output.leaves}
        given = {f"d{k}": tangents[name] for k, name in enumerate(case.wrt)}
        for output, values in zip(case.outputs, moved, strict=True):
            own = {leaf.name for leaf in output.leaves}
            along = {
                leaves[name]: tnc.input(f"d{k}", *leaves[name].indices)
                for k, name in enumerate(case.wrt)
                if name in own
            }
            if not along:
                assert not np.any(values)
                continue
            expr = tnc.jvp(output, along)
            arrays = {**case.arrays, **given}
            expected = evaluate_all((expr,), arrays, case.sizes, epsilon(case.dtype))
            compare("jvp", (output,), [values], expected, "function", case.seed)
