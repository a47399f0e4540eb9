"""Weights of TensorLy-Torch, TensorKrowch and quimb: the same numbers, the same layers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import quimb.tensor as qtn
import tensorly as tl
import tltorch
import torch

import tncompiler as tnc
from tncompiler.formats import from_quimb, from_tensorkrowch, from_tensorly_torch
from tncompiler.ir.errors import ArgumentError, FormatError

INS, OUTS = (3, 4, 2), (2, 3, 5)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


def assert_same(found: Any, wanted: Any) -> None:
    """The weight of a decomposition and that of another library, as arrays."""
    np.testing.assert_allclose(found.reconstruct(), np.asarray(wanted), rtol=1e-12, atol=1e-12)


def test_the_comparison_sees_a_transpose() -> None:
    weight = tltorch.TensorizedTensor.new(((2, 3), (3, 2)), rank=2, factorization="CP")
    weight = weight.normal_(0, 1)
    with pytest.raises(AssertionError):
        assert_same(from_tensorly_torch(weight), weight.to_matrix().detach().reshape(3, 2, 2, 3))


# ---------------------------------------------------------------------------- TensorLy-Torch


def tensorized(kind: str, rank: Any, complex_: bool = False) -> Any:
    name = f"Complex{'TT' if kind == 'BlockTT' else kind}" if complex_ else kind
    dtype = torch.complex128 if complex_ else torch.float64
    weight = tltorch.TensorizedTensor.new((OUTS, INS), rank=rank, factorization=name, dtype=dtype)
    with torch.no_grad():
        for parameter in weight.parameters():
            parameter.normal_()
    return weight


KINDS: dict[str, tuple[Any, str]] = {
    "CP": (5, "CP"),
    "Tucker": ((2, 3, 2, 2, 2, 2), "Tucker"),
    "BlockTT": ((1, 4, 3, 1), "TTMatrix"),
    "Dense": (None, "Dense"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tensorized_matrices(kind: str) -> None:
    rank, format = KINDS[kind]
    weight = tensorized(kind, rank)
    found = from_tensorly_torch(weight)
    assert type(found.format).__name__ == format and found.error == 0.0
    matrix = weight.to_matrix().detach()
    assert_same(found, matrix.t().reshape(*INS, *OUTS))
    count = len(OUTS)
    table = from_tensorly_torch(weight, inputs=range(count))  # rows are inputs, as of an embedding
    assert_same(table, matrix.reshape(*OUTS, *INS))


@pytest.mark.parametrize("kind", ["CP", "Tucker", "BlockTT"])
def test_layers_of_the_same_cores(kind: str) -> None:
    """A FactorizedLinear and our layer from its weight: outputs, and gradients of the input."""
    weight = tensorized(kind, KINDS[kind][0])
    options: dict[str, Any] = dict(rank=weight.rank, dtype=torch.float64)
    theirs = tltorch.FactorizedLinear(INS, OUTS, factorization=weight, **options)
    with torch.no_grad():
        theirs.bias.normal_()
    ours = tnc.nn.Linear.from_cores(from_tensorly_torch(theirs), theirs.bias)
    x = torch.randn(7, 24, dtype=torch.float64, requires_grad=True)
    results = [layer(x) for layer in (ours, theirs)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in results]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-10)
    assert ours.cores.bias is not theirs.bias


@pytest.mark.parametrize("kind", ["CP", "Tucker", "TT"])
def test_plain_factorized_tensors(kind: str) -> None:
    rank = {"CP": 4, "Tucker": (2, 3, 2, 2), "TT": (1, 2, 5, 3, 1)}[kind]
    weight = tltorch.FactorizedTensor.new((3, 4, 5, 3), rank=rank, factorization=kind)
    with torch.no_grad():
        for parameter in weight.parameters():
            parameter.copy_(torch.randn_like(parameter))
    weight = weight.double()
    dense = weight.to_tensor().detach()
    first = from_tensorly_torch(weight, inputs=(0, 1))
    assert type(first.format).__name__ == kind
    assert_same(first, dense)
    other = from_tensorly_torch(weight, inputs=(3, 1))  # a train of another order has no format
    assert type(other.format).__name__ == ("Custom" if kind == "TT" else kind)
    order = (1, 3, 0, 2) if kind == "TT" else (3, 1, 0, 2)
    assert_same(other, dense.permute(*order))


def test_tensors_of_tensorly_itself() -> None:
    tensor = tl.tensor(torch.randn(3, 4, 5, dtype=torch.float64))
    cp = tl.decomposition.parafac(tensor, 3, init="random", random_state=0)
    assert_same(from_tensorly_torch(cp, inputs=(0,)), tl.cp_to_tensor(cp))
    tucker = tl.decomposition.tucker(tensor, (2, 2, 3))
    assert_same(
        from_tensorly_torch(tucker, inputs=(1,)), tl.tucker_to_tensor(tucker).permute(1, 0, 2)
    )
    train = tl.decomposition.tensor_train(tensor, (1, 2, 3, 1))
    assert_same(from_tensorly_torch(train, inputs=(0,)), tl.tt_to_tensor(train))


def test_complex_weights() -> None:
    weight = tensorized("CP", 4, complex_=True)
    assert_same(from_tensorly_torch(weight), weight.to_matrix().detach().t().reshape(*INS, *OUTS))


# ---------------------------------------------------------------------------- quimb


@pytest.mark.parametrize("cyclic", [False, True])
def test_states_of_quimb(cyclic: bool) -> None:
    state = qtn.MPS_rand_state(5, 3, phys_dim=2, cyclic=cyclic)
    state.exponent = 2.0
    dense = state.to_dense().reshape([2] * 5)
    found = from_quimb(state, inputs=(0, 1))
    assert type(found.format).__name__ == ("TensorRing" if cyclic else "TT")
    assert_same(found, dense)
    if not cyclic:  # bonds of 3 beside a mode of 2 carry 2
        assert found.format.rank == (2, 3, 3, 2)
    mixed = from_quimb(state, inputs=(1, 4))
    assert type(mixed.format).__name__ == "Custom"
    assert_same(mixed, dense.transpose(1, 4, 0, 2, 3))


@pytest.mark.parametrize("cyclic", [False, True])
def test_operators_of_quimb(cyclic: bool) -> None:
    """A layer from an operator does to a vector what the operator does to a state."""
    operator = qtn.MPO_rand(4, 3, phys_dim=2, cyclic=cyclic)
    found = from_quimb(operator)
    assert type(found.format).__name__ == ("Custom" if cyclic else "TTMatrix")
    layer = tnc.nn.Linear.from_cores(found)
    x = np.random.standard_normal(16)
    wanted = operator.to_dense() @ x
    np.testing.assert_allclose(layer(torch.tensor(x)[None]).detach()[0], wanted, rtol=1e-10)


# ---------------------------------------------------------------------------- TensorKrowch


@pytest.fixture
def krowch() -> Any:
    return pytest.importorskip("tensorkrowch", reason="tensorkrowch is not installed")


@pytest.mark.parametrize("boundary", ["obc", "pbc"])
def test_states_of_tensorkrowch(krowch: Any, boundary: str) -> None:
    mps = krowch.models.MPS(n_features=5, phys_dim=2, bond_dim=3, boundary=boundary)
    found = from_tensorkrowch(mps, inputs=(0, 1, 2))
    assert type(found.format).__name__ == ("TT" if boundary == "obc" else "TensorRing")
    letters, bonds = "abcde", "uvwxyz"
    cores = [tensor.detach().double() for tensor in mps.tensors]
    ends = [bonds[k - 1] + letters[k] + bonds[k] for k in range(5)]
    ends[0] = letters[0] + bonds[0] if boundary == "obc" else bonds[4] + letters[0] + bonds[0]
    ends[4] = bonds[3] + letters[4] + ("" if boundary == "obc" else bonds[4])
    dense = torch.einsum(f"{','.join(ends)}->{letters}", *cores)
    np.testing.assert_allclose(found.reconstruct(), dense, rtol=1e-4, atol=1e-6)


def test_layers_of_tensorkrowch(krowch: Any) -> None:
    """An MPSLayer, whose output site stands in the middle; its inputs are its features."""
    layer = krowch.models.MPSLayer(n_features=5, in_dim=2, out_dim=3, bond_dim=4, boundary="obc")
    found = from_tensorkrowch(layer)
    assert found.details == {"in_shape": (2, 2, 2, 2), "out_shape": (3,)}
    x = torch.randn(6, 4, 2)
    wanted = layer(x).detach()
    product = torch.einsum("na,nb,nc,nd->nabcd", *x.unbind(1)).reshape(6, -1)
    ours = tnc.nn.Linear.from_cores(found)(product).detach()
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)


def test_operators_of_tensorkrowch(krowch: Any) -> None:
    mpo = krowch.models.MPO(n_features=3, in_dim=2, out_dim=3, bond_dim=4, boundary="obc")
    found = from_tensorkrowch(mpo)
    assert type(found.format).__name__ == "TTMatrix"
    first, middle, last = (tensor.detach() for tensor in mpo.tensors)
    dense = torch.einsum("aub,ucvd,vef->aceb df".replace(" ", ""), first, middle, last)
    np.testing.assert_allclose(found.reconstruct(), dense, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------- bad input


def nan_weight() -> Any:
    weight = tensorized("CP", 3)
    with torch.no_grad():
        weight.factors[0][0, 0] = float("nan")
    return weight


BAD: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "no weight of theirs": (ArgumentError, lambda: from_tensorly_torch(torch.ones(3, 3))),
    "inputs not said": (
        ArgumentError,
        lambda: from_tensorly_torch(tltorch.FactorizedTensor.new((3, 4), 2, "CP")),
    ),
    "all modes inputs": (ArgumentError, lambda: from_tensorly_torch(tensorized("CP", 3), range(6))),
    "no such mode": (ArgumentError, lambda: from_tensorly_torch(tensorized("CP", 3), (0, 7))),
    "a mode twice": (ArgumentError, lambda: from_tensorly_torch(tensorized("CP", 3), (0, 0))),
    "several matrices": (
        ArgumentError,
        lambda: from_tensorly_torch(
            tltorch.TensorizedTensor.new((2, OUTS, INS), 3, factorization="CP")
        ),
    ),
    "pairs torn apart": (
        FormatError,
        lambda: from_tensorly_torch(tensorized("BlockTT", (1, 2, 2, 1)), (0, 4)),
    ),
    "NaN": (FormatError, lambda: from_tensorly_torch(nan_weight())),
    "no network of quimb": (ArgumentError, lambda: from_quimb(3)),
    "sites not said": (ArgumentError, lambda: from_quimb(qtn.MPS_rand_state(4, 2))),
    "no network of TensorKrowch": (ArgumentError, lambda: from_tensorkrowch(SimpleNamespace())),
    "modes not said": (
        FormatError,
        lambda: tnc.nn.Linear.from_cores(tnc.formats.LowRank(2).decompose(np.eye(4), (4,), (4,))),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_meets_typed_errors(name: str) -> None:
    error, call = BAD[name]
    with pytest.raises(error):
        call()
