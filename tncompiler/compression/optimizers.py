"""Optimizers whose parameters change their shapes: state carried over, groups kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tncompiler.compression.edits import Edit
from tncompiler.ir.errors import ArgumentError

Edits = Sequence[Edit]  # of one core, in order
# what optimizers call means and sums of squared gradients, and of squared steps
_SQUARES = frozenset(
    {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "exp_avg_sq_diff"}
)


def as_optimizers(optimizer: Any) -> list[Optimizer]:
    """One optimizer, several, or none as a list. Raises ArgumentError for anything else."""
    if optimizer is None:
        return []
    given = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise _no_optimizer(optimizer)
    found = list(given)
    if not all(isinstance(each, Optimizer) for each in found):
        raise _no_optimizer(optimizer)
    return found


def _no_optimizer(value: Any) -> ArgumentError:
    return ArgumentError(
        f"optimizer= is a {type(value).__name__}", fix="give a torch.optim.Optimizer, or a list"
    )


def carried_states(
    optimizers: Sequence[Optimizer], edits: Mapping[nn.Parameter, Edits]
) -> list[dict[nn.Parameter, Any]]:
    """For each optimizer the state of the parameters that change, as it is afterwards.

    Raises: ArgumentError for an optimizer that holds none of them (it was made for others), and
    for state that has neither the parameter's shape nor one number.
    """
    states = []
    for optimizer in optimizers:
        held = {p for group in optimizer.param_groups for p in group["params"]}
        mine = [p for p in edits if p in held]
        if edits and not mine:
            raise ArgumentError(
                f"the {type(optimizer).__name__} holds none of the cores that change",
                fix="give the optimizer of this model, made after it was tensorized",
            )
        states.append(
            {p: _carried(optimizer.state[p], p, edits[p]) for p in mine if p in optimizer.state}
        )
    return states


def _carried(state: Mapping[str, Any], parameter: Tensor, edits: Edits) -> dict[str, Any]:
    new = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            new[key] = value
            continue
        if value.shape != parameter.shape:
            raise ArgumentError(
                f"the optimizer keeps {key!r} of shape {tuple(value.shape)} for a core of shape "
                f"{tuple(parameter.shape)}",
                fix="use an optimizer whose state has the shape of its parameters, as Adam or SGD",
            )
        new[key] = turned(value, edits, squares=key in _SQUARES)
    return new


def turned(tensor: Tensor, edits: Edits, squares: bool = False) -> Tensor:
    """What was kept for a core, for what the core became."""
    with torch.no_grad():
        for edit in edits:
            tensor = (edit.second if squares else edit.first)(tensor)
    return tensor.contiguous()


def replace_parameters(
    optimizers: Sequence[Optimizer],
    states: Sequence[Mapping[nn.Parameter, Any]],
    new: Mapping[nn.Parameter, nn.Parameter],
) -> None:
    """Let optimizers hold new parameters where they held old ones, in the same groups."""
    for optimizer, known in zip(optimizers, states, strict=True):
        for group in optimizer.param_groups:
            group["params"] = [new.get(p, p) for p in group["params"]]
        for old in new:
            optimizer.state.pop(old, None)
        for old, state in known.items():
            optimizer.state[new[old]] = state
