"""What torch.compile makes of networks: operators as torch wants them, compiled once for equal
layers, keeping no more for the backward pass than eager mode does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from functorch.compile import min_cut_rematerialization_partition, nop
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

import tncompiler as tnc
from tests.torch_support.cells import Cell
from tests.torch_support.table import CELLS
from tncompiler import operators
from tncompiler.module import CompiledModule

OPAQUE_CELLS = [cell for cell in CELLS if cell.backend in operators.OPAQUE]
LAYERS = (3, 8)  # a first one, a last one, and those between
FORMATS = ("TTMatrix", "Tucker", "CP", "LowRank", "TensorRing", "BlockTerm", "Kronecker")
# what torch's partitioner keeps twice: a copy of a factor, which costs it no more than the factor
ALLOWED = {("torch", "BlockTerm"): 1.002}


@pytest.fixture(autouse=True)
def room_for_operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Other tests of this process may have used up the operators that it can hold."""
    monkeypatch.setattr(operators, "MOST", len(operators._operators) + 64)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def stack(backend: str, layers: int, width: int = 12) -> nn.Sequential:
    """Equal layers with a function between them."""
    torch.manual_seed(0)
    format = tnc.formats.TTMatrix(rank=2)
    made = []
    for _ in range(layers):
        shapes = dict(in_shape=(3, width // 3), out_shape=(3, width // 3))
        made += [tnc.nn.Linear(width, width, format=format, backend=backend, **shapes), nn.Tanh()]
    return nn.Sequential(*made)


# ---------------------------------------------------------------------------- operators


def compiled_parts(cell: Cell) -> list[tuple[CompiledModule, tuple[Tensor, ...]]]:
    """The compiled modules of a cell, each with what it is called with."""
    module = cell.module(torch.float32)
    found: list[tuple[CompiledModule, tuple[Tensor, ...]]] = []
    for part in module.modules():
        if isinstance(part, CompiledModule):
            part.register_forward_pre_hook(lambda own, given: found.append((own, given)))
    module(cell.input(dtype=torch.float32))
    return found


@pytest.mark.parametrize("cell", OPAQUE_CELLS, ids=str)
def test_every_operator_passes_torchs_own_check(cell: Cell) -> None:
    parts = compiled_parts(cell)
    assert parts
    for part, given in parts:
        leaves = [p.detach().clone().requires_grad_() for p in part._held()]
        assert part._operator is not None
        torch.library.opcheck(part._operator, (*given, *leaves))
        check_gradients_operator(part, (*given, *leaves))


def check_gradients_operator(part: CompiledModule, tensors: Sequence[Tensor]) -> None:
    """opcheck of the operator of gradients, which has none of its own."""
    assert part._operator is not None
    name = part._operator._schema.name.removeprefix("tncompiler::")  # type: ignore[attr-defined]
    backward = getattr(torch.ops.tncompiler, f"{name}_backward").default
    held = [tensor.detach() for tensor in tensors]
    cotangent = torch.randn_like(part._operator(*held))
    positions = [k for k, tensor in enumerate(held) if tensor.is_floating_point()]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(backward, (positions, [*held, cotangent]), test_utils=checks)


@pytest.mark.parametrize("backend", operators.OPAQUE)
def test_equal_layers_share_one_operator(backend: str) -> None:
    before = len(operators._operators)
    model = stack(backend, 6)
    assert len({layer.cores._operator for layer in model[::2]}) == 1
    assert len(operators._operators) <= before + 1


# ---------------------------------------------------------------------------- equal layers


@pytest.mark.parametrize("backend", ["torch", *operators.OPAQUE])
def test_equal_layers_are_compiled_once(backend: str) -> None:
    """Compiled one by one, as torch's advice for large models is."""
    model, counter = stack(backend, 6), CompileCounterWithBackend("aot_eager")
    for layer in model[::2]:
        layer.compile(backend=counter, fullgraph=True)
    model(torch.randn(4, 12, requires_grad=True)).square().sum().backward()
    assert counter.frame_count == 1
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@dataclass(frozen=True, slots=True)
class Size:
    """What TorchInductor writes for a forward and a backward pass: kernels, and calls of a library
    for products."""

    kernels: int
    products: int


def size_of(model: nn.Module, x: Tensor) -> Size:
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)

    def step() -> None:
        compiled(x).square().sum().backward()

    _, codes = run_and_get_code(step)
    kernels = sum(code.count("async_compile.") - 1 for code in codes)
    return Size(kernels, sum(code.count("extern_kernels.") for code in codes))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", *operators.OPAQUE])
def test_inductors_code_does_not_grow_with_equal_layers(backend: str) -> None:
    """All but a line or two a layer, which call what is there once."""
    few, many = (size_of(stack(backend, layers), torch.randn(4, 12)) for layers in LAYERS)
    assert few == many


@pytest.mark.slow
def test_code_that_grows_is_seen() -> None:
    few, many = (
        size_of(nn.Sequential(*(nn.Linear(12, 12) for _ in range(layers))), torch.randn(4, 12))
        for layers in LAYERS
    )
    assert few.products < many.products


# ---------------------------------------------------------------------------- memory


def kept_bytes(call: Callable[..., Tensor], x: Tensor, model: nn.Module) -> int:
    """What torch saves for the backward pass of a call, parameters and inputs apart."""
    held = {t.untyped_storage().data_ptr() for t in (*model.parameters(), x)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = call(x)
    result.square().sum().backward()
    return sum(kept.values())


def as_inductor_cuts() -> Any:
    """A backend that cuts training graphs as TorchInductor does and runs them as they are."""
    return aot_autograd(
        fw_compiler=nop, bw_compiler=nop, partition_fn=min_cut_rematerialization_partition
    )


@pytest.mark.parametrize(
    ("backend", "format"),
    [("torch", name) for name in FORMATS]
    + [(backend, name) for backend in operators.OPAQUE for name in ("TTMatrix", "Tucker")],
)
def test_compiled_training_keeps_no_more_than_eager(backend: str, format: str) -> None:
    layer = tnc.nn.Linear(96, 64, format=getattr(tnc.formats, format)(rank=4), backend=backend)
    x = torch.randn(50, 96, requires_grad=True)
    eager = kept_bytes(layer, x, layer)
    compiled = torch.compile(layer, fullgraph=True, backend=as_inductor_cuts())
    compiled(x)
    assert kept_bytes(compiled, x, layer) <= eager * ALLOWED.get((backend, format), 1)


def test_what_is_kept_is_counted() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    assert kept_bytes(layer, torch.randn(5, 8), layer) == 5 * 8 * 4
