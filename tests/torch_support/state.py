"""What holds a module's numbers: devices, files, copies, processes, optimizers, parametrizing."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel

from tests.torch_support.cells import Cell, agree, check_training, parameters_of

STEPS = 3


# ---------------------------------------------------------------------------- without numbers


def meta_device(cell: Cell) -> None:
    """Shapes of outputs and gradients without data."""
    module, x = cell.module().to("meta"), cell.input().to("meta").requires_grad_()
    result = module(x)
    assert result.is_meta
    assert result.shape == cell.reference(parameters_of(module), x).shape
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.is_meta
    assert all(p.grad.shape == p.shape for p in module.parameters())


def deferred_initialisation(cell: Cell) -> None:
    """Made on the meta device, given memory and then numbers."""
    wanted = cell.module()
    with torch.device("meta"):
        module = cell.module()
    assert all(p.is_meta for p in module.parameters())
    module.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    getattr(module, "reset_parameters")()  # noqa: B009  not every nn.Module has one
    assert all(p.isfinite().all() and not p.is_meta for p in module.parameters())
    module.load_state_dict(wanted.state_dict())
    check_training(module, cell, cell.input())


def assigned_state(cell: Cell) -> None:
    """Made on the meta device, its parameters taken from a state."""
    with torch.device("meta"):
        module = cell.module()
    done = module.load_state_dict(cell.module().state_dict(), assign=True)
    assert (done.missing_keys, done.unexpected_keys) == ([], [])
    check_training(module, cell, cell.input())


# ---------------------------------------------------------------------------- files, copies


def state_dict(cell: Cell) -> None:
    """A strict round trip through a file, after which both compute the same."""
    module, other, file = cell.module(), cell.module(), io.BytesIO()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    torch.save(module.state_dict(), file)
    file.seek(0)
    done = other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert (done.missing_keys, done.unexpected_keys) == ([], [])
    assert list(other.state_dict()) == list(module.state_dict())
    assert torch.equal(other(cell.input()), module(cell.input()))
    check_training(other, cell, cell.input())


def deepcopy(cell: Cell) -> None:
    _check_copy(cell, copy.deepcopy)


def pickled(cell: Cell) -> None:
    _check_copy(cell, lambda module: pickle.loads(pickle.dumps(module)))


def saved_whole(cell: Cell) -> None:
    def through_file(module: nn.Module) -> nn.Module:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        loaded: nn.Module = torch.load(file, weights_only=False)
        return loaded

    _check_copy(cell, through_file)


def _check_copy(cell: Cell, copier: Callable[[nn.Module], nn.Module]) -> None:
    """A copy computes the same, trains, and leaves the original alone."""
    module = cell.module()
    check_training(module, cell, cell.input())
    before = parameters_of(module)
    copied = copier(module)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    check_training(copied, cell, cell.input())
    agree(parameters_of(module), before)


def averaged_model(cell: Cell) -> None:
    """The running mean of a model that torch keeps of copies."""
    module = cell.module()
    averaged = AveragedModel(module)
    averaged.update_parameters(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    averaged.update_parameters(module)
    mean = {name: p * (2 / 3) for name, p in parameters_of(module).items()}
    agree(averaged(cell.input()).detach(), cell.reference(mean, cell.input()))


# ---------------------------------------------------------------------------- processes


def train_elsewhere(cell: Cell, module: nn.Module) -> None:
    """Run in another process: what came from the parent is right there."""
    check_training(module, cell, cell.input())


def fork(cell: Cell) -> None:
    """A forked child trains the parent's module, which has run before."""
    module = cell.module()
    check_training(module, cell, cell.input())
    _in_child("fork", cell, module)


def spawn(cell: Cell) -> None:
    """A spawned child trains a module that is sent to it."""
    _in_child("spawn", cell, cell.module())


def _in_child(method: str, cell: Cell, module: nn.Module) -> None:
    context: Any = multiprocessing.get_context(method)
    arguments = (cell, module)
    child = context.Process(target=train_elsewhere, args=arguments, daemon=True)
    child.start()
    child.join(120)
    if child.is_alive():
        child.kill()
        raise AssertionError("the child hangs")
    assert child.exitcode == 0, "the child failed: its error is above"


# ---------------------------------------------------------------------------- optimizers

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda ps, **how: torch.optim.SGD(ps, lr=0.01, momentum=0.9, **how),
    "Adam": lambda ps, **how: torch.optim.Adam(ps, lr=0.01, **how),
    "AdamW": lambda ps, **how: torch.optim.AdamW(ps, lr=0.01, **how),
}


def foreach_optimizers(cell: Cell) -> None:
    _check_optimizers(cell, foreach=True)


def fused_optimizers(cell: Cell) -> None:
    _check_optimizers(cell, fused=True)


def _check_optimizers(cell: Cell, **how: bool) -> None:
    """Training, with a look in evaluation between steps, against the reference."""
    for make in OPTIMIZERS.values():
        module, x = cell.module(), cell.input()
        held = {n: p.requires_grad_() for n, p in parameters_of(module).items()}
        ours = make(list(module.parameters()), **how)
        theirs = make([*held.values()], foreach=False)
        pairs = ((ours, module), (theirs, partial(cell.reference, held)))
        for _ in range(STEPS):
            for optimizer, call in pairs:
                optimizer.zero_grad()
                call(x).square().mean().backward()
                optimizer.step()
            with torch.no_grad():
                agree(module.eval()(x), cell.reference(held, x), 1e-6)
            module.train()
        agree(parameters_of(module), {n: p.detach() for n, p in held.items()}, 1e-6)


def clipped_gradients(cell: Cell) -> None:
    """Norms of all gradients at once, and a scaled loss."""
    module = cell.module()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(module(cell.input()).square().sum()).backward()
    held = {n: p.requires_grad_() for n, p in parameters_of(module).items()}
    loss = cell.reference(held, cell.input()).square().sum()
    gradients = torch.autograd.grad(loss, [*held.values()])
    norm = torch.stack([g.norm() for g in gradients]).norm()
    agree(nn.utils.clip_grad_norm_(module.parameters(), 1.0), 8 * norm)


# ---------------------------------------------------------------------------- parametrizations


class Doubled(nn.Module):
    """A parametrization that holds half of what is read."""

    def forward(self, half: Tensor) -> Tensor:
        return 2 * half

    def right_inverse(self, whole: Tensor) -> Tensor:
        return whole / 2


def parametrized(cell: Cell) -> None:
    """Every parameter read through a parametrization, in training and in evaluation."""
    module = cell.module()
    wanted = parameters_of(module)
    for owner, name in owners_of(module):
        parametrize.register_parametrization(owner, name, Doubled())
    _check_read(module, cell, wanted)
    with parametrize.cached():
        _check_read(module, cell, wanted)


def weight_norm(cell: Cell) -> None:
    module = cell.module()
    wanted = parameters_of(module)
    for owner, name in owners_of(module):
        if getattr(owner, name).ndim > 1:
            nn.utils.parametrizations.weight_norm(owner, name)
    _check_read(module, cell, wanted)


def owners_of(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every parameter by the module that holds it."""
    return [
        (owner, name)
        for owner in [*module.modules()]
        for name, _ in [*owner.named_parameters(recurse=False)]
    ]


def _check_read(module: nn.Module, cell: Cell, wanted: dict[str, Tensor]) -> None:
    """Outputs for parameters that read as wanted, and a gradient by everything that is held."""
    x = cell.input()
    module.zero_grad()
    result = module(x)
    agree(result.detach(), cell.reference(wanted, x))
    result.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    with torch.no_grad():
        agree(module.eval()(x), cell.reference(wanted, x))
    module.train()


def pruned(cell: Cell) -> None:
    """torch's pruning puts a plain tensor, made before every call, where a parameter was."""
    module, x = cell.module(), cell.input()
    held = parameters_of(module)
    (owner, name), *_ = owners_of(module)
    before = getattr(owner, name).detach().clone()
    prune.l1_unstructured(owner, name, amount=0.5)
    after = getattr(owner, name).detach()
    assert not torch.equal(before, after)
    key = next(key for key, value in held.items() if torch.equal(value, before))
    wanted = cell.reference({**held, key: after}, x)
    agree(module(x).detach(), wanted)
    module(x).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def swapped_tensors(cell: Cell) -> None:
    """Parameters replaced by torch's swap when a module changes its dtype."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module = cell.module(torch.float32).double()
        check_training(module, cell, cell.input())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def other_dtypes(cell: Cell) -> None:
    """A module moved to another precision after it has run."""
    module = cell.module(torch.float32)
    module(cell.input(dtype=torch.float32)).sum().backward()
    check_training(module.double(), cell, cell.input())
