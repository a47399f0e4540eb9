"""Two processes that train one module together: DDP, FSDP2, DTensor, on gloo.

Each check runs in both processes, inside of a process group; see `pair.py`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tests.torch_support.cells import Cell, agree, parameters_of

ROWS = 4  # of the whole batch, half of it for each process


def _mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def _own_half(x: Tensor) -> Tensor:
    return x.chunk(dist.get_world_size())[dist.get_rank()].clone()


def _whole(tensor: Tensor | None) -> Tensor:
    """All of a tensor that is spread over the processes."""
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _check_step(cell: Cell, called: nn.Module, held: nn.Module, tolerance: float = 1e-8) -> None:
    """Outputs of this process's rows, and gradients averaged over the processes."""
    wanted_by = {n: _whole(p).detach().clone() for n, p in held.named_parameters()}
    leaves = [p.requires_grad_() for p in wanted_by.values()]
    x = cell.input(ROWS, next(held.parameters()).dtype)
    wanted = cell.reference(wanted_by, x)
    gradients = torch.autograd.grad(wanted.square().sum() / dist.get_world_size(), leaves)
    result = called(_own_half(x))
    result.square().sum().backward()
    got = [_whole(p.grad) for p in held.parameters()]
    agree([result.detach(), *got], [_own_half(wanted.detach()), *gradients], tolerance)
    for parameter in held.parameters():
        parameter.grad = None


def ddp(cell: Cell) -> None:
    for how in ({}, dict(gradient_as_bucket_view=True), dict(static_graph=True)):
        module = cell.module()
        parallel = DistributedDataParallel(module, **how)
        for _ in range(2):
            _check_step(cell, parallel, module)


def ddp_compiled(cell: Cell) -> None:
    torch._dynamo.reset()
    module = cell.module()
    parallel = torch.compile(DistributedDataParallel(module), backend="aot_eager")
    for _ in range(2):
        _check_step(cell, parallel, module)


def fsdp(cell: Cell) -> None:
    """Parameters spread over the processes, gathered for a call, freed after it."""
    for free in (True, False):
        module = fully_shard(cell.module(), mesh=_mesh(), reshard_after_forward=free)
        assert all(isinstance(p, DTensor) for p in module.parameters())
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        for _ in range(2):
            _check_step(cell, module, module)
            module(_own_half(cell.input(ROWS))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def fsdp_evaluation(cell: Cell) -> None:
    """Parameters that change between calls in evaluation, without an optimizer."""
    module = fully_shard(cell.module(), mesh=_mesh()).eval()
    x = cell.input()
    for _ in range(3):
        held = {n: _whole(p).detach() for n, p in module.named_parameters()}
        with torch.no_grad():
            agree(module(x), cell.reference(held, x))
            for parameter in module.parameters():
                parameter.mul_(1.25)


def fsdp_compiled(cell: Cell) -> None:
    torch._dynamo.reset()
    module = cell.module()
    module.compile(backend="aot_eager")
    fully_shard(module, mesh=_mesh())
    for _ in range(2):
        _check_step(cell, module, module)


def fsdp_mixed_precision(cell: Cell) -> None:
    """Parameters gathered in bfloat16, and the module computes in it."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    module = cell.module(torch.float32)
    held = parameters_of(module)
    module = fully_shard(module, mesh=_mesh(), mp_policy=policy)
    x = cell.input(ROWS, torch.float32)
    result = module(_own_half(x))
    buffered = any(True for _ in module.buffers())  # in float32: the policy leaves them alone
    assert result.dtype == (torch.float32 if buffered else torch.bfloat16)
    result.float().square().sum().backward()
    leaves = [p.requires_grad_() for p in held.values()]
    wanted = cell.reference(held, x)
    gradients = torch.autograd.grad(wanted.square().sum() / dist.get_world_size(), leaves)
    got = [_whole(p.grad) for p in module.parameters()]
    pairs = zip(
        [result.detach().float(), *got], [_own_half(wanted.detach()), *gradients], strict=True
    )
    for mine, theirs in pairs:
        assert float((mine - theirs).abs().max()) <= 0.1 * float(theirs.abs().max())


def dtensor(cell: Cell) -> None:
    """Parameters on both processes, the batch split between them."""
    mesh = _mesh()
    module = cell.module()
    held = {n: p.requires_grad_() for n, p in parameters_of(module).items()}
    distribute_module(module, mesh)
    x = cell.input(ROWS)
    result = module(distribute_tensor(x, mesh, [Shard(0)]))
    assert isinstance(result, DTensor)
    wanted = cell.reference(held, x)
    agree(result.full_tensor().detach(), wanted.detach())
    result.square().sum().backward()
    gradients = torch.autograd.grad(wanted.square().sum(), [*held.values()])
    agree([_whole(p.grad) for p in module.parameters()], gradients)


def dtensor_replicated(cell: Cell) -> None:
    """Everything on both processes."""
    mesh = _mesh()
    module = distribute_module(cell.module(), mesh)
    held = {n: _whole(p).detach() for n, p in module.named_parameters()}
    x = cell.input()
    result = module(distribute_tensor(x, mesh, [Replicate()]))
    agree(_whole(result).detach(), cell.reference(held, x))
