"""What libraries of layers share: our cores in their modules, their gradients under our names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.peers.base import Contestant, torch_contestant
from benchmarks.problems import Arrays, Problem

Convert = Callable[[Tensor], Tensor]


def core_names(problem: Problem, letter: str) -> list[str]:
    """Names of the cores that start with a letter, in order."""
    return [o.name for o in problem.parameters if o.name.startswith(letter)]


def train_core(position: int, count: int, core: Tensor) -> Tensor:
    """Core k of a TTMatrix as (r, out, in, r), with bonds of size 1 at the ends."""
    left = core.unsqueeze(0) if position == 0 else core
    whole = left.unsqueeze(-1) if position == count - 1 else left
    return whole.transpose(1, 2)


def train_core_back(position: int, count: int, core: Tensor) -> Tensor:
    """What `train_core` does, undone."""
    whole = core.transpose(1, 2)
    right = whole.squeeze(-1) if position == count - 1 else whole
    return right.squeeze(0) if position == 0 else right


def layer_contestant(
    problem: Problem,
    arrays: Arrays,
    layer: nn.Module,
    parameters: Mapping[str, Sequence[nn.Parameter]],
    to_theirs: Callable[[str, Tensor], Sequence[Tensor]],
    to_ours: Callable[[str, Sequence[Tensor]], Tensor],
    x_shape: tuple[int, ...],
) -> Contestant:
    """A layer holding our cores.

    ``parameters``: theirs for each core of ours; ``to_theirs`` and ``to_ours`` convert between a
    core and their tensors. Parameters that are not named there are left as they are, untrained.
    """
    held = {id(p) for own in parameters.values() for p in own}
    for parameter in layer.parameters():
        parameter.requires_grad_(id(parameter) in held)
    with torch.no_grad():
        for name, own in parameters.items():
            values = to_theirs(name, torch.tensor(arrays.operands[name]))
            for parameter, value in zip(own, values, strict=True):
                parameter.copy_(value)
    x = torch.tensor(arrays.operands["x"]).reshape(x_shape)
    x.requires_grad_("x" in problem.gradients)
    leaves = {f"{name}.{k}": p for name, own in parameters.items() for k, p in enumerate(own)}

    def read() -> dict[str, Tensor]:
        found = {
            name: to_ours(name, [p.grad for p in own if p.grad is not None])
            for name, own in parameters.items()
        }
        if x.grad is not None:
            found["x"] = x.grad.reshape(arrays.operands["x"].shape)
        return found

    return torch_contestant(problem, arrays, lambda: layer(x), {"x": x, **leaves}, read)
