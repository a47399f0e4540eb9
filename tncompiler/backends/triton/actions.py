"""What a plan of launches is made of: steps for the host, pairwise launches and chains."""

from __future__ import annotations

from collections.abc import Sequence

from tncompiler.backends.triton.bundle import Bundle
from tncompiler.backends.triton.fuse import Action
from tncompiler.backends.triton.pairwise import Pairwise

Launch = Action | Bundle


def read_by(action: Launch) -> list[str]:
    """The values that an action reads."""
    match action:
        case Pairwise():
            return [load.value.name for load in action.loads]
        case Bundle():
            return [value.name for value in action.inputs]
    return list(action.operands)


def made_by(action: Launch) -> list[str]:
    """The values that an action leaves in memory."""
    return [*action.done] if isinstance(action, Bundle) else [action.out.name]


def last_uses(actions: Sequence[Launch]) -> dict[str, int]:
    """By value, the position of the last action that makes or reads it."""
    last: dict[str, int] = {}
    for position, action in enumerate(actions):
        last.update(dict.fromkeys((*made_by(action), *read_by(action)), position))
    return last


def count_launches(actions: Sequence[Launch]) -> int:
    """How many kernels the actions launch; a chain adds up its sums in one more."""
    chains = sum(1 + bool(a.sums) for a in actions if isinstance(a, Bundle))
    return chains + sum(isinstance(a, Pairwise) for a in actions)
