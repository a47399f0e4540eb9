"""What tnc.heal is asked for, checked before anything is trained."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from tncompiler.ir.errors import ArgumentError


def check_asked(
    steps: Any,
    every: Any,
    seed: Any,
    lr: Any,
    clip: Any,
    schedule: Any,
    optimizer: Any,
    checkpoint: Any,
    validation: Any,
) -> None:
    """Raises ArgumentError: what is wrong should not be found after a hundred steps."""
    for what, value, least in (("steps", steps, 1), ("every", every, 1), ("seed", seed, None)):
        if not (value is None and what == "steps"):
            _check_integer(what, value, least)
    _check_positive("lr", lr)
    if clip is not None:
        _check_positive("clip", clip)
    for what, value in (("schedule", schedule), ("optimizer", optimizer)):
        if value is not None and not callable(value):
            raise ArgumentError(f"{what} is {value!r:.40}", fix=_FUNCTIONS[what])
    if schedule is not None and steps is None:
        raise ArgumentError("a schedule needs to know how many steps there are", fix="give steps=")
    if isinstance(validation, str) and validation != "held":
        raise ArgumentError(f"validation is {validation!r:.40}", fix='give batches, "held" or None')
    if checkpoint is not None:
        _check_place(checkpoint)


_FUNCTIONS = {
    "schedule": "give a function from the part that is done, 0 to 1, to a factor of the rate",
    "optimizer": "give a function, as lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
}


def _check_integer(what: str, value: Any, least: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentError(f"{what} is {value!r:.40}", fix="give an integer")
    if least is not None and value < least:
        raise ArgumentError(f"{what} is {value}", fix=f"give {least} or more")


def _check_positive(what: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ArgumentError(f"{what} is {value!r:.40}", fix="give a number above 0")


def _check_place(checkpoint: str | os.PathLike[str]) -> None:
    """A file that can be written once there is something to write."""
    path = Path(checkpoint)
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentError(
            "there can be no checkpoint= there",
            where=str(path),
            fix="give a file in a folder that is there",
        )


def check_optimizer(optimizer: Any, parameters: Sequence[nn.Parameter]) -> None:
    """Raises ArgumentError for an optimizer that steps of ours are not for."""
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(
            f"optimizer= makes a {type(optimizer).__name__}", fix=_FUNCTIONS["optimizer"]
        )
    if isinstance(optimizer, LBFGS):
        raise ArgumentError(
            "LBFGS computes the loss again within a step", fix="use Adam, or another of one pass"
        )
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(parameters):
        raise ArgumentError(
            f"the {type(optimizer).__name__} holds none of the parameters that learn",
            fix="make it of those that the function is given",
        )
