"""tnc.recipe: the steps of a compression one after the other, in the order in which they stand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from tncompiler.ir.errors import ArgumentError

# name of a step → the function that carries it out in place, and the name of its main argument
STEPS: dict[str, tuple[str, str]] = {
    "tensorize": ("tncompiler.models.tensorize:tensorize_", "config"),
    "prune": ("tncompiler.compression.pruning:prune", "amount"),
    "quantize": ("tncompiler.compression.quantizing:quantize", "scheme"),
    "heal": ("tncompiler.compression.heal:heal", "batches"),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What each step of a recipe gave, by its name, in order."""

    steps: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n\n".join(f"{name}\n{result}" for name, result in self.steps.items())


def recipe(model: nn.Module, *, teacher: nn.Module | None = None, **steps: Any) -> Recipe:
    """Carry out steps of compression on a model, in place, in the order in which they are written.

        done = tnc.recipe(
            model,
            tensorize=dict(config=tnc.formats.TTMatrix(), budget=0.3),
            prune=dict(amount=0.3, how="bond"),
            quantize="int8",
            heal=dict(batches=batches),
        )

    Each of "tensorize" (`tnc.tensorize_`), "prune", "quantize" and "heal" takes the arguments of
    that function as a dict, or its main one (config, amount, scheme, batches) alone. ``teacher``:
    what healing compares with; by default a copy of the model as it is given. Order matters:
    dropping channels needs cores that can be changed, so pruning comes before quantizing, and after
    quantizing, healing adjusts scales and biases only.
    Raises: ArgumentError for unknown steps; what the steps raise, before which the steps that stand
    before them are done.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"the model is a {type(model).__name__}", fix="give a torch.nn.Module")
    for name in steps:
        if name not in STEPS:
            raise ArgumentError(
                f"there is no step {name!r:.40}", fix=f"the steps are {', '.join(STEPS)}"
            )
    if "heal" in steps and teacher is None:
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
    done: dict[str, Any] = {}
    for name, asked in steps.items():
        place, main = STEPS[name]
        module, function = place.split(":")
        given = dict(asked) if isinstance(asked, dict) and main in asked else {main: asked}
        if name == "heal":
            given.setdefault("teacher", teacher)
        done[name] = getattr(import_module(module), function)(model, **given)
    return Recipe(done)
