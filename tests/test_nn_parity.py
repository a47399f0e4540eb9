"""tnc.nn.Linear against TensorLy-Torch's FactorizedLinear that holds the same cores."""

from collections.abc import Mapping
from typing import Any

import pytest
import tltorch
import torch
from torch import Tensor

import tncompiler as tnc
from tncompiler import formats
from tncompiler.nn.checks import IMPLEMENTATIONS

INS, OUTS = (3, 4, 2), (2, 3, 5)
# name: (rank of ours, their name, their ranks)
PAIRS: dict[str, tuple[Any, str, Any]] = {
    "CP": (5, "CP", 5),
    "Tucker": (2, "Tucker", (2,) * 6),
    "TTMatrix": ((4, 3), "BlockTT", (1, 4, 3, 1)),
}


def mine(name: str, implementation: str) -> Any:
    torch.manual_seed(0)
    form = getattr(formats, name)(PAIRS[name][0])
    shapes: dict[str, Any] = dict(in_shape=INS, out_shape=OUTS, dtype=torch.float64)
    return tnc.nn.Linear(24, 30, format=form, implementation=implementation, **shapes)


def theirs(name: str, implementation: str) -> Any:
    _, kind, rank = PAIRS[name]
    weight = tltorch.TensorizedTensor.new(
        (OUTS, INS), rank=rank, factorization=kind, dtype=torch.float64
    )
    if kind == "CP":
        with torch.no_grad():
            weight.weights.fill_(1.0)
    options: dict[str, Any] = dict(rank=weight.rank, dtype=torch.float64)
    return tltorch.FactorizedLinear(
        INS, OUTS, factorization=weight, implementation=implementation, **options
    )


def as_theirs(name: str, cores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our cores, or gradients by them, under their names and in their order of axes.

    They have outputs first; a core of a tensor train is (bond, output, input, bond).
    """
    found = {"bias": cores["bias"]}
    if name == "TTMatrix":
        first, second, last = (cores[f"G{k}"] for k in (1, 2, 3))
        trains = (first[None], second, last[..., None])
        turned = (core.transpose(1, 2) for core in trains)
        return found | {f"weight.factors.factor_{k}": core for k, core in enumerate(turned)}
    factors = [*(cores[f"V{k}"] for k in (1, 2, 3)), *(cores[f"U{k}"] for k in (1, 2, 3))]
    found |= {f"weight.factors.factor_{k}": factor for k, factor in enumerate(factors)}
    return found if name == "CP" else found | {"weight.core": cores["C"].permute(3, 4, 5, 0, 1, 2)}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", [*PAIRS])
def test_same_cores_same_layer(name: str, implementation: str) -> None:
    """Outputs and the gradients of the data, the bias and every core."""
    layer = mine(name, implementation)
    cores = {key.removeprefix("cores."): core for key, core in layer.named_parameters()}
    x = torch.randn(2, 7, 24, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    cotangent = torch.randn_like(out)
    by_x, *by_cores = torch.autograd.grad(out, [x, *cores.values()], cotangent)
    wanted = {"x": by_x, **as_theirs(name, dict(zip(cores, by_cores, strict=True)))}
    for their_way in ("factorized", "reconstructed"):
        other = theirs(name, their_way)
        held = dict(other.named_parameters())
        with torch.no_grad():
            for key, core in as_theirs(name, cores).items():
                held[key].copy_(core)
        result = other(x)
        torch.testing.assert_close(out, result, rtol=1e-12, atol=1e-12)
        leaves = {"x": x, **{key: held[key] for key in wanted if key != "x"}}
        gradients = torch.autograd.grad(result, [*leaves.values()], cotangent)
        for key, gradient in zip(leaves, gradients, strict=True):
            torch.testing.assert_close(wanted[key], gradient, rtol=1e-12, atol=1e-12, msg=key)
