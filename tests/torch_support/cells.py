"""A cell of the table, and what checks of cells share: calling by parameters, comparing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.torch_support.subjects import BATCH, Subject

Function = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Cell:
    """A network on a backend, to which one transform is applied."""

    subject: Subject
    backend: str

    def __str__(self) -> str:
        return f"{self.subject.name}-{self.backend}"

    def module(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The module, with the same parameters each time."""
        torch.manual_seed(0)
        return self.subject.make(self.backend, dtype)

    def input(self, batch: int = BATCH, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.subject.input(batch, dtype)

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self.subject.reference(parameters, x)


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters by name, which nothing else holds."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def calling(module: nn.Module) -> Function:
    """The module as a function of its parameters, by name, and its input."""

    def call(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(module, dict(parameters), (x,))
        return result

    return call


def in_order(function: Function, names: Sequence[str]) -> Function:
    """A function of parameters by name and input as one of the input and parameters in order."""

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return function(dict(zip(names, values, strict=True)), x)

    return call


@dataclass(frozen=True, slots=True)
class Pair:
    """A module and its reference as functions of the input and all parameters.

    ``leaves``: numbers for these, the input first, in double precision, requiring gradients.
    """

    ours: Function
    theirs: Function
    leaves: tuple[Tensor, ...]

    @classmethod
    def of(cls, cell: Cell) -> Pair:
        module = cell.module()
        held = parameters_of(module)
        leaves = tuple(leaf.requires_grad_() for leaf in (cell.input(), *held.values()))
        names = [*held]
        return cls(in_order(calling(module), names), in_order(cell.reference, names), leaves)

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The leaves without their requiring gradients."""
        return tuple(leaf.detach() for leaf in self.leaves)

    @property
    def everywhere(self) -> tuple[int, ...]:
        """The positions of all leaves, as torch.func takes them."""
        return tuple(range(len(self.leaves)))

    def tangents(self) -> tuple[Tensor, ...]:
        """A direction to move the leaves in."""
        generator = torch.Generator().manual_seed(7)
        return tuple(
            torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in self.leaves
        )


class Trivial(AssertionError):
    """What is compared is zero everywhere, so that agreement would show nothing."""


def agree(got: object, wanted: object, tolerance: float = 1e-8) -> None:
    """Tensors, or containers of them, are close; ``tolerance`` relative and absolute.

    Raises: AssertionError where they are not; Trivial where all that is wanted is zero.
    """
    tensors = torch.utils._pytree.tree_leaves(wanted)
    if not any(t.count_nonzero() for t in tensors):
        raise Trivial("everything wanted is zero")
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def gradients_of(result: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of a sum of squares."""
    return torch.autograd.grad(result.square().sum(), leaves)


def check_training(
    module: nn.Module,
    cell: Cell,
    x: Tensor,
    tolerance: float = 1e-8,
    call: Function | None = None,
) -> None:
    """Outputs and gradients of a module against the reference with the parameters it holds.

    ``call``: how the module is called, if not as it is.
    """
    held = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    inputs = [x.detach().clone(memory_format=torch.preserve_format) for _ in range(2)]
    mine, theirs = (each.requires_grad_() for each in inputs)
    module.zero_grad()
    result = (module if call is None else call)(mine)
    result.square().sum().backward()
    wanted = cell.reference(held, theirs)
    gradients = gradients_of(wanted, [theirs, *held.values()])
    got = [mine.grad, *(p.grad for p in module.parameters())]
    agree([result.detach(), *got], [wanted.detach(), *gradients], tolerance)
