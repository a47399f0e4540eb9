"""What looks at the operations of a module: compilers, exports, tracers, counters."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from tests.torch_support.cells import (
    Cell,
    Pair,
    agree,
    check_training,
    parameters_of,
)

SIZES = (2, 3, 5, 8)  # of batches that one compilation serves
FLOAT32 = 1e-4  # relative and absolute error of float32, with cancellation


def compile_once(cell: Cell) -> None:
    """Training at four batch sizes with one compilation, without breaks."""
    _check_compiled(cell, "aot_eager")


def compile_with_inductor(cell: Cell) -> None:
    _check_compiled(cell, "inductor")


def _check_compiled(cell: Cell, backend: str) -> None:
    torch._dynamo.reset()
    module, counter = cell.module(torch.float32), CompileCounterWithBackend(backend)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for size in SIZES:
        x = cell.input(size, torch.float32)
        check_training(module, cell, x, FLOAT32, call=compiled)
    assert compilations(counter) == 1


def compilations(counter: CompileCounterWithBackend) -> int:
    """How many graphs that compute something were compiled."""
    graphs = [graph.graph.nodes for graph in counter.graphs]
    return sum(any(node.op == "call_function" for node in nodes) for nodes in graphs)


def compile_evaluation(cell: Cell) -> None:
    """In evaluation without gradients, after an eager call has kept what parameters make."""
    torch._dynamo.reset()
    module, x = cell.module(torch.float32).eval(), cell.input(dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            module(x)
            agree(compiled(x), cell.reference(parameters_of(module), x), FLOAT32)
            for parameter in module.parameters():
                parameter.mul_(1.5)


def _check_compiled_transform(cell: Cell, transform: Callable[[Any, Pair], Any]) -> None:
    """A transform of torch.func inside of what is compiled."""
    torch._dynamo.reset()
    pair = Pair.of(cell)
    compiled = torch.compile(lambda: transform(pair.ours, pair), backend="aot_eager")
    agree(compiled(), transform(pair.theirs, pair))


def compiled_grad(cell: Cell) -> None:
    def gradients(function: Any, pair: Pair) -> Any:
        loss = lambda *leaves: function(*leaves).square().sum()  # noqa: E731
        return torch.func.grad(loss, pair.everywhere)(*pair.values)

    _check_compiled_transform(cell, gradients)


def compiled_jvp(cell: Cell) -> None:
    tangents = Pair.of(cell).tangents()
    _check_compiled_transform(
        cell, lambda function, pair: torch.func.jvp(function, pair.values, tangents)
    )


def compiled_vmap(cell: Cell) -> None:
    def mapped(function: Any, pair: Pair) -> Any:
        return torch.func.vmap(function)(*(torch.stack([v, 2 * v]) for v in pair.values))

    _check_compiled_transform(cell, mapped)


def compiled_second_derivatives(cell: Cell) -> None:
    """A penalty on gradients, differentiated, all inside of what is compiled."""

    def penalized(function: Any, pair: Pair) -> Any:
        def loss(*leaves: Tensor) -> Tensor:
            return function(*leaves).square().sum()

        def penalty(*leaves: Tensor) -> Tensor:
            first = torch.func.grad(loss, pair.everywhere)(*leaves)
            return torch.stack([g.square().sum() for g in first]).sum()

        return torch.func.grad(penalty, pair.everywhere)(*pair.values)

    _check_compiled_transform(cell, penalized)


def jvp_of_compiled(cell: Cell) -> None:
    """Forward mode from outside of a compiled module."""
    torch._dynamo.reset()
    module, x = cell.module(), cell.input()
    held = parameters_of(module)
    compiled = torch.compile(module, backend="aot_eager")
    compiled(x)
    along = torch.randn_like(x)
    got = torch.func.jvp(compiled, (x,), (along,))
    agree(got, torch.func.jvp(lambda z: cell.reference(held, z), (x,), (along,)))


def double_backward_of_compiled(cell: Cell) -> None:
    torch._dynamo.reset()
    module, x = cell.module(), cell.input().requires_grad_()
    held = parameters_of(module)
    compiled = torch.compile(module, backend="aot_eager")

    def penalty(function: Callable[[Tensor], Tensor]) -> Tensor:
        (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return second

    agree(penalty(compiled), penalty(lambda z: cell.reference(held, z)))


# ---------------------------------------------------------------------------- exports


def _exported(module: nn.Module, cell: Cell) -> torch.export.ExportedProgram:
    """A module exported at a free batch size."""
    x = cell.input(4, torch.float32)
    shapes = torch.export.ShapesCollection()
    shapes[x] = {0: torch.export.Dim("batch", min=2, max=1024)}
    return torch.export.export(module, (x,), dynamic_shapes=shapes)


def export(cell: Cell) -> None:
    """torch.export at a free batch size, saved, loaded and run at another one."""
    module = cell.module(torch.float32)
    file = io.BytesIO()
    torch.export.save(_exported(module, cell), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = cell.input(7, torch.float32)
    agree(loaded(x).detach(), cell.reference(parameters_of(module), x), FLOAT32)


def onnx(cell: Cell) -> None:
    """ONNX at a free batch size, in onnxruntime at another one."""
    import onnxruntime

    module = cell.module(torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(_exported(module, cell), dynamo=True, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    x = cell.input(7, torch.float32)
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    agree(torch.from_numpy(result), cell.reference(parameters_of(module), x), 1e-4)


def jit_trace(cell: Cell) -> None:
    """torch.jit.trace: what it records must depend on the input."""
    module = cell.module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, cell.input(), check_trace=False)
    x = 2 * cell.input()
    agree(traced(x).detach(), cell.reference(parameters_of(module), x))


# ---------------------------------------------------------------------------- tracers, modes


def fx_tracing(cell: Cell) -> None:
    """make_fx on real tensors, whose tracer no tensor shows."""
    module = cell.module()
    held = parameters_of(module)
    graph = make_fx(lambda x: torch.func.functional_call(module, held, (x,)))(cell.input())
    x = 2 * cell.input()
    agree(graph(x), cell.reference(held, x))


def fake_tensors(cell: Cell) -> None:
    """Shapes without data, of inputs that are fake and parameters that become so."""
    module, x = cell.module(), cell.input()
    wanted = cell.reference(parameters_of(module), x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        result = module(mode.from_tensor(x))
    assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
    assert type(result).__name__ == "FakeTensor"


def counted_flops(cell: Cell) -> None:
    """torch's counter sees the products of the forward and the backward pass."""
    module, x = cell.module(), cell.input().requires_grad_()
    counts = []
    for part in (lambda: module(x), lambda: module(x).square().sum().backward()):
        with FlopCounterMode(display=False) as counter:
            part()
        counts.append(counter.get_total_flops())
    forward, step = counts
    assert forward > 0
    assert step > forward


def saved_for_offloading(cell: Cell) -> None:
    """Hooks on saved tensors: all that is saved may be moved away and brought back."""
    module, moved = cell.module(), []

    def pack(tensor: Tensor) -> Tensor:
        moved.append(tensor)
        return tensor.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor.clone()):
        check_training(module, cell, cell.input())
    assert moved
