"""A call of a module that is like the last one, seen with as few questions as possible.

What a call does beside its programs runs in cold caches, which large products have used, and takes
ten times as long there as in a loop of its own. `repeated_calls` is the same for NumPy functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tncompiler.autograd import Specialisation
from tncompiler.tensor_guards import Guard


class RepeatedStep:
    """A call and what it ran, which any call of the same kind can run again.

    ``training``: the module's mode, by which it keeps what parameters make.
    """

    __slots__ = ("_guard", "_training", "spec")

    def __init__(self, spec: Specialisation, tensors: Sequence[Tensor], training: bool) -> None:
        self.spec, self._training, self._guard = spec, training, Guard(tensors)

    @staticmethod
    def of(spec: Specialisation, tensors: Sequence[Tensor], training: bool) -> RepeatedStep:
        """That of a call which was not seen to be like the last one, but may be like an earlier."""
        known: RepeatedStep | None = spec.repeated
        if known is None or not (known.may_come_again(training) and known._guard.holds(tensors)):
            known = spec.repeated = RepeatedStep(spec, tensors, training)
        return known

    def may_come_again(self, training: bool) -> bool:
        """Whether the modes are the same and nothing sees what is asked of tensors next."""
        return self._training is training and self._guard.may_hold()

    def is_like(self, inputs: Sequence[Any], tensors: Sequence[Any]) -> bool:
        """Whether a call with these is of the same kind; ``inputs``: those of them that are."""
        if any(getattr(each, "is_nested", False) for each in inputs):
            return False
        return self._guard.holds(tensors)
