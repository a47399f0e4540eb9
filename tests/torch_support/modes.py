"""Modes around a call, and tensors that lie otherwise in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as checkpointing

from tests.torch_support.cells import Cell, Function, agree, check_training, parameters_of

LOW = {torch.bfloat16: 0.08, torch.float16: 0.02}  # errors relative to the largest number


def autocast_bfloat16(cell: Cell) -> None:
    _check_autocast(cell, torch.bfloat16)


def autocast_float16(cell: Cell) -> None:
    _check_autocast(cell, torch.float16)


def _check_autocast(cell: Cell, dtype: torch.dtype) -> None:
    """The result in the low precision, gradients in that of what they belong to."""
    module = cell.module(torch.float32)
    _check_low(cell, module, module, dtype)


def autocast_compiled(cell: Cell) -> None:
    torch._dynamo.reset()
    module = cell.module(torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    _check_low(cell, module, compiled, torch.bfloat16)


def _check_low(cell: Cell, module: nn.Module, called: Function, dtype: torch.dtype) -> None:
    x = cell.input(dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        result = called(x)
        loss = result.float().square().sum()
    assert result.dtype == dtype
    loss.backward()
    held = {n: p.double().requires_grad_() for n, p in parameters_of(module).items()}
    exact = x.detach().double().requires_grad_()
    wanted = cell.reference(held, exact)
    gradients = torch.autograd.grad(wanted.square().sum(), [exact, *held.values()])
    got = [result.detach(), x.grad, *(p.grad for p in module.parameters())]
    for mine, theirs in zip(got, (wanted.detach(), *gradients), strict=True):
        assert mine is not None
        _near(mine.double(), theirs, LOW[dtype])


def _near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Errors below a part of the largest number."""
    largest = float(wanted.abs().max())
    assert largest > 0
    assert float((got - wanted).abs().max()) <= tolerance * largest


def autocast_leaves_float64(cell: Cell) -> None:
    module, x = cell.module(), cell.input()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = module(x)
    assert result.dtype == torch.float64
    agree(result.detach(), cell.reference(parameters_of(module), x))


# ---------------------------------------------------------------------------- checkpoints


def checkpointed(module: nn.Module, **how: Any) -> Function:
    """The module, called so that it keeps nothing but its input."""
    return lambda x: checkpointing.checkpoint(module, x, **how)


def checkpoint(cell: Cell) -> None:
    for reentrant in (False, True):
        module = cell.module()
        call = checkpointed(module, use_reentrant=reentrant)
        check_training(module, cell, cell.input(), call=call)


def selective_checkpoint(cell: Cell) -> None:
    """A policy decides for each operation of torch whether its result is kept."""
    module, asked = cell.module(), []

    def policy(_: object, operation: object, *args: object, **kwargs: object) -> Any:
        asked.append(operation)
        return checkpointing.CheckpointPolicy.MUST_SAVE

    contexts = partial(checkpointing.create_selective_checkpoint_contexts, policy)
    call = checkpointed(module, use_reentrant=False, context_fn=contexts)
    check_training(module, cell, cell.input(), call=call)
    assert asked


def checkpoint_autocast(cell: Cell) -> None:
    """What is made again in the backward pass is made again in low precision."""
    module = cell.module(torch.float32)
    _check_low(cell, module, checkpointed(module, use_reentrant=False), torch.bfloat16)


# ---------------------------------------------------------------------------- gradients off


def no_gradients(cell: Cell) -> None:
    module, x = cell.module(), cell.input()
    wanted = cell.reference(parameters_of(module), x)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            result = module(x)
        assert not result.requires_grad
        agree(result, wanted)


def evaluation(cell: Cell) -> None:
    """After `eval()` what parameters make is kept, and never out of date."""
    module, x = cell.module().eval(), cell.input()
    for mode in (torch.no_grad, torch.inference_mode):
        for _ in range(2):
            with mode():
                agree(module(x), cell.reference(parameters_of(module), x))
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1.25)


def frozen_parameters(cell: Cell) -> None:
    """Parameters without `requires_grad` get no gradient; the others keep theirs."""
    module = cell.module()
    first, *others = module.parameters()
    first.requires_grad_(False)
    result = module(cell.input())
    result.square().sum().backward()
    assert first.grad is None
    held = {n: p.requires_grad_() for n, p in parameters_of(module).items()}
    wanted = cell.reference(held, cell.input()).square().sum()
    agree([p.grad for p in others], torch.autograd.grad(wanted, [*held.values()][1:]))


def anomaly_detection(cell: Cell) -> None:
    with torch.autograd.detect_anomaly(check_nan=True):
        check_training(cell.module(), cell, cell.input())


def changes_in_place(cell: Cell) -> None:
    """Parameters that change between a forward pass and its backward pass, which reads them."""
    module, x = cell.module(), cell.input().requires_grad_()
    held = parameters_of(module)
    (wanted,) = torch.autograd.grad(cell.reference(held, x).square().sum(), x)
    result = module(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    (got,) = torch.autograd.grad(result.square().sum(), x)
    agree(got, wanted)


def outputs_in_place(cell: Cell) -> None:
    module, x = cell.module(), cell.input().requires_grad_()
    held = parameters_of(module)
    (wanted,) = torch.autograd.grad(torch.relu(cell.reference(held, x)).sum(), x)
    (got,) = torch.autograd.grad(module(x).relu_().sum(), x)
    agree(got, wanted)


def deterministic_algorithms(cell: Cell) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        check_training(cell.module(), cell, cell.input())
    finally:
        torch.use_deterministic_algorithms(False)


# ---------------------------------------------------------------------------- memory


def strided(x: Tensor) -> dict[str, Tensor]:
    """The same numbers, lying otherwise in memory."""
    last = x.transpose(0, -1).contiguous().transpose(0, -1)
    spread = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., 1::2]
    spread.copy_(x)
    behind = torch.zeros(x.numel() + 3, dtype=x.dtype)[3:].view(x.shape)
    behind.copy_(x)
    repeated = x[:1].expand_as(x)
    return {"transposed": last, "spread": spread, "behind": behind, "expanded": repeated}


def strided_inputs(cell: Cell) -> None:
    for x in strided(cell.input()).values():
        check_training(cell.module(), cell, x)


def strided_parameters(cell: Cell) -> None:
    module = cell.module()
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.ndim > 1:
                turned = parameter.detach().transpose(0, -1).contiguous().transpose(0, -1)
                setattr(owner, name, nn.Parameter(turned))
    check_training(module, cell, cell.input())


def channels_last(cell: Cell) -> None:
    """Inputs and parameters of four axes with the second one last in memory."""
    module, x = cell.module().to(memory_format=torch.channels_last), cell.input()
    x = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
    check_training(module, cell, x)


def strided_cotangents(cell: Cell) -> None:
    module, x = cell.module(), cell.input().requires_grad_()
    held = parameters_of(module)
    for cotangent in strided(torch.randn_like(cell.reference(held, x))).values():
        (got,) = torch.autograd.grad(module(x), x, cotangent)
        (wanted,) = torch.autograd.grad(cell.reference(held, x), x, cotangent)
        agree(got, wanted)


def empty_batch(cell: Cell) -> None:
    module, x = cell.module(), cell.input()[:0].requires_grad_()
    result = module(x)
    assert result.shape == cell.reference(parameters_of(module), x).shape
    result.sum().backward()
    assert x.grad is not None
    assert all(not p.grad.any() for p in module.parameters())


# ---------------------------------------------------------------------------- profiler


def profiler_ranges(cell: Cell) -> None:
    """The profiler's ranges have the names of the network's tensors."""
    module, x = cell.module(), cell.input().requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(x).square().sum().backward()
    names = {event.key for event in profile.key_averages()}
    ranges = [name for name in names if name.startswith("tnc.")]
    for part in ("forward", "backward"):
        assert any(f"tnc.{part}" in name for name in ranges), sorted(names)
    leaves = {name.rsplit(".", 1)[-1] for name, _ in module.named_parameters()}
    assert any(leaf in name for leaf in leaves for name in ranges), sorted(ranges)


def hooks(cell: Cell) -> None:
    """Hooks of modules and tensors run once each, with what they should see."""
    module, x, seen = cell.module(), cell.input().requires_grad_(), []
    handles = [
        module.register_forward_pre_hook(lambda *_: seen.append("forward_pre")),
        module.register_forward_hook(lambda *_: seen.append("forward")),
        module.register_full_backward_pre_hook(lambda *_: seen.append("backward_pre")),
        module.register_full_backward_hook(lambda *_: seen.append("backward")),
        x.register_hook(lambda _: seen.append("input")),
    ]
    for name, parameter in module.named_parameters():
        note = f"gradient of {name}"
        handles.append(parameter.register_hook(lambda _, note=note: seen.append(note)))
        note = f"accumulated {name}"
        after = parameter.register_post_accumulate_grad_hook
        handles.append(after(lambda _, note=note: seen.append(note)))
    module(x).square().sum().backward()
    wanted = ["forward_pre", "forward", "backward_pre", "backward", "input"]
    for name, _ in module.named_parameters():
        wanted += [f"gradient of {name}", f"accumulated {name}"]
    assert sorted(seen) == sorted(wanted)
    for handle in handles:
        handle.remove()
    module(x).sum().backward()
    assert len(seen) == len(wanted)


def hooks_that_change(cell: Cell) -> None:
    """What hooks return takes the place of inputs, outputs and gradients."""
    module = cell.module()
    module.register_forward_pre_hook(lambda _, given: (2 * given[0],))
    module.register_forward_hook(lambda _, given, result: 3 * result)
    held = {n: p.requires_grad_() for n, p in parameters_of(module).items()}
    for parameter in module.parameters():
        parameter.register_hook(lambda gradient: 5 * gradient)
    x = cell.input()
    result = module(x)
    wanted = 3 * cell.reference(held, 2 * x)
    agree(result.detach(), wanted.detach())
    result.square().sum().backward()
    gradients = torch.autograd.grad(wanted.square().sum(), [*held.values()])
    agree([p.grad for p in module.parameters()], [5 * g for g in gradients])
