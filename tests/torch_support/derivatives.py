"""Derivatives: torch.autograd's and torch.func's, each against the reference in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from tests.torch_support.cells import (
    Cell,
    Function,
    Pair,
    agree,
    calling,
    check_training,
    gradients_of,
    parameters_of,
)


def backward(cell: Cell) -> None:
    check_training(cell.module(), cell, cell.input())


def finite_differences(cell: Cell) -> None:
    pair = Pair.of(cell)
    assert gradcheck(pair.ours, pair.leaves, fast_mode=True, check_batched_grad=True)


def second_finite_differences(cell: Cell) -> None:
    pair = Pair.of(cell)
    assert gradgradcheck(pair.ours, pair.leaves, fast_mode=True, check_batched_grad=True)


def double_backward(cell: Cell) -> None:
    pair = Pair.of(cell)

    def penalty(result: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(result.square().sum(), pair.leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), pair.leaves)

    agree(penalty(pair.ours(*pair.leaves)), penalty(pair.theirs(*pair.leaves)))


def batched_gradients(cell: Cell) -> None:
    pair = Pair.of(cell)
    outputs = pair.ours(*pair.leaves), pair.theirs(*pair.leaves)
    cotangents = torch.randn(4, *outputs[0].shape, dtype=torch.float64)
    got, wanted = (
        torch.autograd.grad(out, pair.leaves, cotangents, is_grads_batched=True) for out in outputs
    )
    agree(got, wanted)


def forward_mode(cell: Cell) -> None:
    pair = Pair.of(cell)
    with forward_ad.dual_level():
        moved = zip(pair.values, pair.tangents(), strict=True)
        dual = pair.ours(*(forward_ad.make_dual(value, along) for value, along in moved))
        got = forward_ad.unpack_dual(dual)
        assert got.tangent is not None
    wanted = torch.func.jvp(pair.theirs, pair.values, pair.tangents())
    agree((got.primal, got.tangent), wanted)


def forward_finite_differences(cell: Cell) -> None:
    pair = Pair.of(cell)
    how = dict(check_forward_ad=True, check_backward_ad=False, check_batched_forward_grad=True)
    assert gradcheck(pair.ours, pair.leaves, fast_mode=True, **how)


def forward_over_reverse(cell: Cell) -> None:
    pair = Pair.of(cell)
    how = dict(check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False)
    assert gradgradcheck(pair.ours, pair.leaves, fast_mode=True, **how)


# ---------------------------------------------------------------------------- torch.func


def func_grad(cell: Cell) -> None:
    pair = Pair.of(cell)

    def gradients(function: Function) -> tuple[Tensor, ...]:
        def loss(*leaves: Tensor) -> Tensor:
            return function(*leaves).square().sum()

        return torch.func.grad(loss, pair.everywhere)(*pair.values)

    agree(gradients(pair.ours), gradients(pair.theirs))


def func_vjp(cell: Cell) -> None:
    pair = Pair.of(cell)
    got, pull = torch.func.vjp(pair.ours, *pair.values)
    wanted, reference_pull = torch.func.vjp(pair.theirs, *pair.values)
    cotangent = torch.randn_like(got)
    agree((got, *pull(cotangent)), (wanted, *reference_pull(cotangent)))


def func_jvp(cell: Cell) -> None:
    pair = Pair.of(cell)
    got, wanted = (
        torch.func.jvp(function, pair.values, pair.tangents())
        for function in (pair.ours, pair.theirs)
    )
    agree(got, wanted)


def func_linearize(cell: Cell) -> None:
    pair = Pair.of(cell)
    value, push = torch.func.linearize(pair.ours, *pair.values)
    wanted = torch.func.jvp(pair.theirs, pair.values, pair.tangents())
    agree((value, push(*pair.tangents())), wanted)


def jacrev(cell: Cell) -> None:
    pair = Pair.of(cell)
    got, wanted = (
        torch.func.jacrev(function, pair.everywhere)(*pair.values)
        for function in (pair.ours, pair.theirs)
    )
    agree(got, wanted)


def jacfwd(cell: Cell) -> None:
    pair = Pair.of(cell)
    got, wanted = (
        torch.func.jacfwd(function, pair.everywhere[1:])(*pair.values)
        for function in (pair.ours, pair.theirs)
    )
    agree(got, wanted)


def hessian(cell: Cell) -> None:
    pair = Pair.of(cell)

    def second(function: Function) -> object:
        def loss(*leaves: Tensor) -> Tensor:
            return function(*leaves).square().sum()

        return torch.func.hessian(loss, pair.everywhere[1:3])(*pair.values)

    agree(second(pair.ours), second(pair.theirs))


def per_sample_gradients(cell: Cell) -> None:
    module = cell.module()
    held, x = parameters_of(module), cell.input()

    def gradients(function: Function) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
            return function(parameters, sample[None]).square().sum()

        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(held, x)

    agree(gradients(calling(module)), gradients(cell.reference))


# ---------------------------------------------------------------------------- vmap


def vmap(cell: Cell) -> None:
    module = cell.module()
    held = parameters_of(module)
    x = torch.stack([cell.input(), 2 * cell.input()], 1)
    got = torch.func.vmap(module, in_dims=1, out_dims=1)(x)
    wanted = torch.func.vmap(lambda each: cell.reference(held, each), in_dims=1, out_dims=1)(x)
    agree(got.detach(), wanted)


def vmap_in_chunks(cell: Cell) -> None:
    module = cell.module()
    held = parameters_of(module)
    x = torch.stack([cell.input() * k for k in (1, 2, 3)])
    got = torch.func.vmap(module, chunk_size=2)(x)
    agree(got.detach(), torch.stack([cell.reference(held, each) for each in x]))


def ensemble(cell: Cell) -> None:
    modules = [cell.module() for _ in range(3)]
    for k, module in enumerate(modules):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1 + k)
    held, buffers = torch.func.stack_module_state(modules)  # type: ignore[arg-type]
    x = cell.input()

    def call(parameters: dict[str, Tensor], own: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(modules[0], (parameters, own), (x,))
        return result

    got = torch.func.vmap(call)(held, buffers)
    wanted = [cell.reference(dict(module.named_parameters()), x) for module in modules]
    agree(got, torch.stack(wanted))


def backward_through_vmap(cell: Cell) -> None:
    pair = Pair.of(cell)
    doubled = [torch.stack([leaf, 2 * leaf]) for leaf in pair.values]
    leaves = [leaf.requires_grad_() for leaf in doubled]
    got, wanted = (
        gradients_of(torch.func.vmap(function)(*leaves), leaves)
        for function in (pair.ours, pair.theirs)
    )
    agree(got, wanted)
