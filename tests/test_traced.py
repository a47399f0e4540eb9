"""What torch.compile traces: planned for the call, shared by equal networks, apart where it may."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import tncompiler as tnc
from tncompiler import traced
from tncompiler.compiler import Compilation
from tncompiler.ir.errors import ArraySizeClash
from tncompiler.module import CompiledModule

I, J, R = tnc.indices("i j r", i=4, j=4, r=2)
B = tnc.Index("b")


@pytest.fixture(autouse=True)
def no_traces() -> None:
    torch._dynamo.reset()


def tucker(rows: int = 96) -> Any:
    format = tnc.formats.Tucker(rank=4, clamp=True)
    return tnc.nn.Linear(rows, 64, format=format, backend="torch")


def source_of(run: Any) -> str:
    inner = getattr(run, "__marked_compile_region_fn__", run)
    return str(inner.__code__.co_filename)


def planned(
    layer: Any, rows: int, wrt: tuple[int, ...], *, free: bool = False, columns: int = 96
) -> Any:
    """What is traced of a layer for so many rows."""
    cores = layer.cores
    shapes = ((rows, columns), *(tuple(p.shape) for p in cores.parameters()))
    dtypes = (torch.float32,) * len(shapes)
    run = cores._usual
    found = traced.prepare_planned(run, cores._network, cores._default, dtypes, wrt, shapes, free)
    return getattr(run, found)


def test_the_plan_is_that_of_the_sizes_and_the_gradients() -> None:
    layer = tucker()
    leaves = tuple(range(len(layer.cores.compilation.ordered)))
    made = [planned(layer, rows, wrt) for rows in (16, 128) for wrt in ((), leaves)]
    assert len({source_of(run) for run in made}) > 2
    assert planned(tucker(), 16, leaves) is made[1]


def test_free_sizes_are_planned_for_the_largest_that_was_traced() -> None:
    layer = tucker()
    leaves = tuple(range(len(layer.cores.compilation.ordered)))
    few, many = (planned(layer, rows, leaves) for rows in (16, 128))
    assert source_of(few) != source_of(many)
    assert planned(layer, 20, leaves, free=True) is many, "a shorter batch came last"
    assert source_of(planned(layer, 20, (), free=True)) != source_of(many), "other gradients"


def test_sizes_that_are_guessed_need_not_fit() -> None:
    """As torch guesses those that follow from data."""
    layer = tucker()
    assert callable(planned(layer, 16, (), free=True, columns=128))
    with pytest.raises(ArraySizeClash, match="axis 1"):
        planned(layer, 16, (), columns=128)


def test_as_many_rows_as_follow_from_data() -> None:
    module = tnc.compile(long_expression(), backend="torch", seed=0)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(
            lambda x, mask: module(x[mask]), fullgraph=True, backend="aot_eager"
        )
        for rows in (3, 5):
            x = torch.randn(7, 4)
            mask = torch.arange(7) < rows
            torch.testing.assert_close(compiled(x, mask), module(x[mask]))


def test_equal_networks_have_one_name_and_others_another() -> None:
    assert tucker().cores._network == tucker().cores._network
    assert tucker().cores._network != tucker(32).cores._network
    assert tucker().cores._network != tucker().double().cores._network


def test_networks_of_one_source_and_other_sizes_are_told_apart() -> None:
    """Chains of products: their code names no size."""

    def chain(size: int) -> CompiledModule:
        k, m, n = (tnc.Index(name, size) for name in "kmn")
        g, h = tnc.param("G", k, m), tnc.param("H", m, n)
        return tnc.compile(tnc.input("x", B, k) @ g @ h, backend="torch", seed=0)

    small, large = chain(3), chain(5)
    assert small._usual is large._usual
    for module, size in ((large, 5), (small, 3)):
        x = torch.randn(2, size, requires_grad=True)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x))


def test_equal_layers_share_what_is_compiled_under_autocast() -> None:
    """In dtypes that no layer has run in before."""
    layers = [tucker() for _ in range(3)]
    counter = CompileCounterWithBackend("aot_eager")
    for layer in layers:
        layer.compile(backend=counter, fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for layer in layers:
            assert layer(torch.randn(8, 96)).dtype == torch.bfloat16
    assert counter.frame_count == 1


# ---------------------------------------------------------------------------- regions


def program(outputs: Any) -> Any:
    compilation = Compilation(outputs, None, {}, None)
    dtypes = compilation.default_dtypes("float32")
    return compilation.scheduled(dtypes, compilation.nominal({}))[0]


def long_expression() -> tnc.Expr:
    x, g, h = tnc.input("x", B, I), tnc.param("G", I, R), tnc.param("H", R, J)
    return tnc.tanh(tnc.silu(x @ g) @ h) * 2


def test_what_is_compiled_apart() -> None:
    y = long_expression()
    x = tnc.input("x", B, I)
    assert traced.is_region(program(y))
    assert traced.is_region(program(y.transpose(J, B)))
    assert traced.is_region(program((y, y.sum(J))))
    assert not traced.is_region(program(x @ tnc.param("W", I, J))), "short"
    assert not traced.is_region(program((y, y))), "one value twice"
    assert not traced.is_region(program((y, y.transpose(J, B)))), "a view of another output"
    assert not traced.is_region(program((y, x.transpose(I, B)))), "a view of an argument"


@pytest.mark.parametrize("make", [lambda y: (y, y), lambda y: (y, y.transpose(J, B)), lambda y: y])
def test_outputs_under_compile(make: Any) -> None:
    module = tnc.compile(make(long_expression()), backend="torch", seed=0)
    x = torch.randn(5, 4, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


class InManyWays(nn.Module):
    """One layer, called with inputs of more shapes and strides than torch's limit of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = tnc.compile(long_expression(), backend="torch", seed=0)

    def forward(self, x: Tensor) -> Tensor:
        total = self.layer(x.t().contiguous().t()).sum()
        for rows in range(1, 10):
            total = total + self.layer(x[:rows]).sum()
        return total


def test_a_region_may_be_called_in_many_ways() -> None:
    module, x = InManyWays(), torch.randn(12, 4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------- einsum


def chained(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return tnc.einsum("ij,jk,kl->il", a, b, c).tanh()


def test_einsum_is_traced() -> None:
    """In full, with gradients, at fixed and at free sizes, and under autocast."""
    a, b, c = (torch.randn(s, requires_grad=True) for s in ((4, 5), (5, 6), (6, 7)))
    compiled = torch.compile(chained, fullgraph=True, backend="aot_eager")
    for rows in (4, 3):  # the second makes torch.compile try a free size
        got, wanted = compiled(a[:rows], b, c), chained(a[:rows], b, c)
        torch.testing.assert_close(got, wanted)
        gradients = [torch.autograd.grad(r.sum(), (a, b, c)) for r in (got, wanted)]
        torch.testing.assert_close(*gradients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(a, b, c).dtype == torch.bfloat16


def test_einsum_of_lists_and_ellipses_is_traced() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(4, 5)

    def both(a: Tensor, b: Tensor) -> Tensor:
        return tnc.einsum("...ij,jk", a, b) + tnc.einsum(a, [0, 1, 2], b, [2, 3], [0, 1, 3])

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), 2 * torch.einsum("hij,jk->hik", a, b))
