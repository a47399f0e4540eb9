"""Networks as operators under torch.compile: used, right, shared, of contiguous outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import tncompiler as tnc
from tncompiler import operators
from tncompiler.ir.errors import GradientError
from tncompiler.module import CompiledModule

B, I, J, R, O = tnc.indices("b i j r o", i=6, j=5, r=4, o=7)
OPAQUE = pytest.mark.parametrize("backend", operators.OPAQUE)


pytestmark = pytest.mark.usefixtures("room_for_operators")


def network(backend: str, dtype: str = "float32") -> CompiledModule:
    cores = tnc.param("G1", I, R), tnc.param("G2", R, J, O)
    y = tnc.contract(tnc.input("x", B, I, J), *cores, out=(B, O)) + tnc.param("bias", O)
    return tnc.compile((tnc.silu(y), y.sum(O)), backend=backend, dtype=dtype, seed=0)


def nodes_of(module: CompiledModule, x: torch.Tensor) -> list[str]:
    """What torch.compile calls in the graph of a module."""
    found: list[str] = []

    def look(graph: torch.fx.GraphModule, example: Sequence[Any]) -> Any:
        found.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    torch.compile(module, fullgraph=True, backend=look)(x)
    return found


@OPAQUE
def test_compiled_modules_run_as_one_operator(backend: str) -> None:
    names = [n for n in nodes_of(network(backend), torch.randn(3, 6, 5)) if "getitem" not in n]
    assert len(names) == 1
    assert names[0].startswith("tncompiler.network_")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_aten_is_looked_into(backend: str) -> None:
    names = nodes_of(network(backend), torch.randn(3, 6, 5))
    assert len(names) > 1
    assert not any("tncompiler" in name for name in names)


@pytest.mark.parametrize("backend", ["torch", *operators.OPAQUE])
def test_outputs_and_gradients_under_compile(backend: str) -> None:
    f, x = network(backend), torch.randn(3, 6, 5, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    found = []
    for run in (f, compiled):
        f.zero_grad()
        x.grad = None
        y, z = run(x)
        (y.square().sum() + z.sum()).backward()
        found.append([y, z, x.grad, *(p.grad for p in f.parameters())])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@OPAQUE
def test_only_what_requires_it_gets_a_gradient(backend: str) -> None:
    f = network(backend)
    f.G1.requires_grad_(False)
    torch._dynamo.reset()
    torch.compile(f, fullgraph=True, backend="aot_eager")(torch.randn(3, 6, 5))[0].sum().backward()
    assert f.G1.grad is None
    assert f.G2.grad is not None


@OPAQUE
def test_second_derivatives_of_an_operator_are_refused(backend: str) -> None:
    f, x = network(backend), torch.randn(3, 6, 5, requires_grad=True)
    torch._dynamo.reset()
    y, _ = torch.compile(f, fullgraph=True, backend="eager")(x)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(GradientError, match="no second derivatives"):
        first.square().sum().backward()


@OPAQUE
def test_outputs_are_contiguous_and_no_views(backend: str) -> None:
    i, j = tnc.indices("i j", i=3, j=4)
    x = tnc.input("x", i, j)
    f = tnc.compile((x.transpose(j, i), x * 1, x * 1), backend=backend, dtype="float32")
    given = torch.randn(3, 4)
    results = f._operator(given)
    assert all(r.is_contiguous() for r in results)
    assert len({r.data_ptr() for r in (*results, given)}) == 4
    assert torch.equal(results[0], given.t())


@OPAQUE
def test_the_operator_passes_torchs_own_check(backend: str) -> None:
    f = network(backend)
    leaves = [p.detach().clone().requires_grad_() for p in (f.G1, f.G2, f.bias)]
    given = (torch.randn(3, 6, 5), *leaves)
    torch.library.opcheck(f._operator, given, test_utils=("test_schema", "test_faketensor"))


def test_networks_of_one_structure_share_an_operator() -> None:
    assert network("numpy")._operator is network("numpy")._operator
    assert network("numpy")._operator is not network("triton")._operator
    assert network("numpy")._operator is not network("numpy", "float64")._operator


def test_a_network_of_more_leaves_than_an_operator_may_have_is_traced() -> None:
    b = tnc.Index("b", 2)
    leaves = [tnc.param(f"p{k}", b, init="ones") for k in range(operators.MOST_LEAVES + 1)]
    module = tnc.compile(tnc.contract(*leaves, out=(b,)), backend="numpy")
    assert module().tolist() == [1.0, 1.0]
    assert torch.compile(module, backend="eager", fullgraph=True)().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_aten_needs_no_operator(backend: str) -> None:
    assert network(backend)._operator is None


@OPAQUE
def test_an_export_holds_aten(backend: str) -> None:
    """it must run where this package is not"""
    exported = torch.export.export(network(backend), (torch.randn(3, 6, 5),))
    names = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    assert names
    assert not any("network_" in name for name in names)


def test_there_are_no_more_operators_than_a_process_can_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operators, "MOST", 0)
    x = tnc.input("x", B, tnc.Index("i", 11))
    module = tnc.compile(x @ tnc.param("W", tnc.Index("i", 11), O), backend="numpy", seed=0)
    given = torch.randn(3, 11)
    assert not any("tncompiler" in name for name in nodes_of(module, given))
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(given), module(given))
