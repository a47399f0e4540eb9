"""Contractions with windows are torch's convolutions: values and all gradients, on every backend.

Random configurations in 1 to 3 dimensions, strided, dilated, padded, grouped, transposed, with
dense, CP, Tucker and TT kernels; torch gets the dense kernel, in double precision.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests import oracle
from tests.convolutions import (
    KERNELS,
    Convolution,
    arrays,
    network,
    random_convolution,
    torch_convolution,
)
from tests.test_memory_limit import Allocations
from tncompiler.ir.errors import SizeEquationError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.program import Convolve, Fold, Unfold
from tncompiler.ir.reference import Bounded, evaluate_all

RUNNERS = ("torch", "function", "numpy")
FEW, ALL, CHUNKS = 150, 1000, 10


def expected_of(
    case: Convolution, result: Expr, kernel: Expr, given: dict[str, np.ndarray], ct: np.ndarray
) -> dict[str, Bounded]:
    """torch's value and gradients by every leaf, with the bounds of the reference interpreter."""
    tensors = {
        n: torch.tensor(a, dtype=torch.float64, requires_grad=True) for n, a in given.items()
    }
    cores = {leaf.name: tensors[leaf.name] for leaf in kernel.leaves}
    (weight,) = oracle.walk_torch((kernel,), cores, {})
    value = torch_convolution(case, tensors["x"].flatten(1, 2), weight)
    value = value.reshape(ct.shape)
    found = torch.autograd.grad(value, list(tensors.values()), torch.tensor(ct).double())
    eps = oracle.epsilon("float32")
    (bound,) = evaluate_all((result,), given, {}, eps)
    bounds = oracle.gradient_bounds((result,), given, (ct,), tuple(given), {}, eps)
    gradients = dict(zip(tensors, found, strict=True))
    named = {n: Bounded(g.numpy(), bounds[n].bound) for n, g in gradients.items()}
    return {"value": Bounded(value.detach().numpy(), bound.bound), **named}


def worst_of(case: Convolution, runners: Sequence[str]) -> float:
    """The largest error / bound of values and gradients. Raises AssertionError above 1."""
    net = network(case)
    given = arrays(case, net.result.leaves, "float32")
    shape = (case.batch, case.groups, case.channels[1] // case.groups, *case.results)
    ct = np.random.default_rng([case.seed, 10]).standard_normal(shape).astype("float32")
    expected = expected_of(case, net.result, net.kernel, given, ct)
    worst = 0.0
    for name in runners:
        runner = oracle.Runner((net.result,), name, "float32", {})
        (trained,), gradients = runner.gradients(given, (ct,), tuple(given))
        for value in (trained, *runner.forward(given)):
            got = {"value": value, **gradients}
            ratio = oracle.compare_named(
                "convolution", (net.result,), got, expected, name, case.seed
            )
            worst = max(worst, ratio)
    return worst


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_torch_agrees(chunk: int) -> None:
    """Each on one of the backends, in turn."""
    for seed in range(FEW)[chunk::CHUNKS]:
        worst_of(random_convolution(seed), (RUNNERS[seed % len(RUNNERS)],))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_torch_agrees_everywhere(chunk: int) -> None:
    for seed in range(ALL)[chunk::CHUNKS]:
        worst_of(random_convolution(seed), RUNNERS)


def test_configurations_are_all_kinds() -> None:
    cases = [random_convolution(seed) for seed in range(FEW)]
    assert {case.kernel for case in cases} == set(KERNELS)
    assert {len(case.sizes) for case in cases} == {1, 2, 3}
    assert {case.transposed for case in cases} == {False, True}
    assert {case.groups for case in cases} == {1, 2, 3}
    assert any(any(case.more) for case in cases)
    beyond = (m >= s for c in cases for m, s in zip(c.more, c.stride, strict=True))
    assert any(beyond)  # which torch takes where the dilation is larger


def test_output_padding_that_another_window_fits_into() -> None:
    """torch leaves it out; here the count of windows is the most that fit, and the error says so"""
    one = Convolution(0, 1, (1, 1), 1, (4,), (2,), (1,), (3,), (0,), True, (2,), "dense", 1)
    image, weight = torch.ones(1, 1, 4), torch.ones(1, 1, 1, 2)
    assert torch_convolution(one, image, weight).shape == (1, 1, 9) == (1, 1, *one.results)
    with pytest.raises(SizeEquationError, match="there are 6 windows, not 4"):
        network(one)
    inside = replace(one, padding=(2,), more=(2,))
    worst_of(inside, RUNNERS)


def test_a_wrong_stride_is_noticed() -> None:
    case = random_convolution(0)
    while case.transposed or case.stride[0] == 1 or case.results[0] < 3:
        case = random_convolution(case.seed + 1)
    other = replace(case, stride=(1, *case.stride[1:]))
    given = arrays(case, network(case).result.leaves, "float32")
    ct = np.ones((case.batch, case.groups, case.channels[1] // case.groups, *other.results))
    expected = expected_of(other, network(other).result, network(other).kernel, given, ct)
    got = oracle.Runner((network(case).result,), "torch", "float32", {}).forward(given)
    assert oracle.worst_ratio(got[0], expected["value"].value, expected["value"].bound) > 1


# ---------------------------------------------------------------------------- how it is computed


def image_network(kernel: str, *, padding: int = 1, channels: int = 16) -> Expr:
    """A 3 × 3 convolution of images whose number and size are free."""
    case = Convolution(
        0,
        2,
        (channels, channels),
        1,
        (8, 8),
        (3, 3),
        (1, 1),
        (1, 1),
        (padding, padding),
        False,
        (0, 0),
        kernel,
        8,
    )
    return network(case).result


def steps_of(expr: Expr, sizes: dict[str, int], part: str = "forward") -> list[object]:
    """The operations that a call of these sizes runs."""
    compiled = tnc.compile(expr, framework="numpy")
    program = compiled.compilation.inference(
        compiled.compilation.default_dtypes("float32"), compiled.compilation.nominal(sizes)
    )
    return [step.op for step in program.fitted.program.steps]


IMAGES = {"b": 32, "s0": 24, "s1": 24}


@pytest.mark.parametrize("kernel", ["dense", "cp", "tucker", "tt"])
def test_no_format_unfolds_the_image(kernel: str) -> None:
    """no im2col"""
    ops = steps_of(image_network(kernel), IMAGES)
    assert any(isinstance(op, Convolve) for op in ops)
    assert not any(isinstance(op, Unfold | Fold) for op in ops)


def test_channels_are_mixed_before_the_image_is_convolved() -> None:
    """A CP convolution is ordered like any network: its kernel is not made first."""
    plan = tnc.plan(image_network("cp", channels=64), sizes=IMAGES)
    dense = tnc.plan(image_network("dense", channels=64), sizes=IMAGES)
    assert plan.flops < dense.flops / 8


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("kernel", ["dense", "cp", "tucker"])
def test_memory_holds_images_and_not_their_windows(kernel: str, framework: str) -> None:
    """Under padded input + output + results of cores, where unfolding would take 9 inputs."""
    x = np.random.default_rng(0).standard_normal((8, 1, 16, 32, 32)).astype("float32")
    unfolded = 9 * x.nbytes
    allowed = 1.25 * x.nbytes + 3 * x.nbytes  # padded input, output, one intermediate, one part
    compiled = tnc.compile(image_network(kernel), framework=framework, backend=framework, seed=0)
    peak = _numpy_peak(compiled, x) if framework == "numpy" else _torch_peak(compiled, x)
    assert x.nbytes / 2 < peak < allowed < unfolded


def _numpy_peak(compiled: object, x: np.ndarray) -> int:
    compiled(x)  # type: ignore[operator]
    tracemalloc.start()
    compiled(x)  # type: ignore[operator]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def _torch_peak(compiled: object, x: np.ndarray) -> int:
    """The most bytes of new tensors at once."""
    tensor = torch.from_numpy(x)
    with torch.no_grad(), Allocations([tensor]) as counted:
        compiled(tensor)  # type: ignore[operator]
    return counted.peak


def test_an_unfolded_image_would_be_noticed() -> None:
    """The measure of memory above sees what it must not miss."""
    x = np.ones((8, 1, 16, 32, 32), np.float32)

    def unfolded(array: np.ndarray) -> np.ndarray:
        return np.stack([array] * 9)

    assert _numpy_peak(unfolded, x) >= 9 * x.nbytes
    assert _torch_peak(lambda t: torch.stack([t] * 9), x) >= 9 * x.nbytes
