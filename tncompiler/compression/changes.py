"""Changes of a model's networks, prepared beside it and made all at once or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tncompiler.compression.edits import Edit
from tncompiler.compression.holders import Holder, wholes_of
from tncompiler.compression.optimizers import (
    as_optimizers,
    carried_states,
    replace_parameters,
    turned,
)
from tncompiler.formats.format import Format
from tncompiler.models.swapping import all_or_nothing


@dataclass(frozen=True, slots=True)
class Resized:
    """A weight of which bonds changed.

    ``name``: of the layer or parameter. ``bonds``: sizes before and after, of those that changed.
    ``parameters_before``, ``parameters_after``: numbers in its cores. ``error``: the Frobenius norm
    of the weight's change, over that of the weight as it was; 0 where bonds only grew.
    """

    name: str
    bonds: dict[str, tuple[int, int]]
    parameters_before: int
    parameters_after: int
    error: float = 0.0


@dataclass(slots=True, eq=False)
class Change:
    """What is to become of a holder: its format, its cores, and how they came about."""

    holder: Holder
    format: Format
    cores: dict[str, Tensor]
    edits: dict[str, list[Edit]] = field(default_factory=dict)
    bonds: dict[str, tuple[int, int]] = field(default_factory=dict)
    error: float = 0.0

    @staticmethod
    def of(holder: Holder, cores: Mapping[str, Tensor]) -> Change:
        return Change(holder, holder.format, dict(cores))

    def take(self, edits: Mapping[str, Edit]) -> None:
        """Change cores, after what has changed before."""
        for name, edit in edits.items():
            self.cores[name] = edit.value
            self.edits.setdefault(name, []).append(edit)

    def resize(self, bond: str, before: int, after: int) -> None:
        """Note a bond's new size."""
        self.format = self.format.resized(self.holder.modes, bond, after)
        self.bonds[bond] = (self.bonds.get(bond, (before, after))[0], after)

    def report(self) -> Resized:
        before = sum(core.numel() for core in self.holder.cores().values())
        after = sum(core.numel() for core in self.cores.values())
        return Resized(self.holder.name, dict(self.bonds), before, after, self.error)


def commit(model: nn.Module, changes: Sequence[Change], optimizer: Any) -> list[Resized]:
    """Make all changes: cores, what layers say of themselves, gradients, optimizers.

    On an error nothing has changed. Raises ArgumentError for optimizers that do not fit.
    """
    changed = [change for change in changes if change.bonds]
    reports = [change.report() for change in changed]
    new = [_parameters(change) for change in changed]
    edits: dict[nn.Parameter, Sequence[Edit]] = {}
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for change, cores in zip(changed, new, strict=True):
        for name, old in change.holder.cores().items():
            if name in change.edits:
                edits[old], replaced[old] = change.edits[name], cores[name]
    optimizers = as_optimizers(optimizer)
    states = carried_states(optimizers, edits)
    with all_or_nothing(model.modules()):
        for change, cores in zip(changed, new, strict=True):
            for place in change.holder.places:
                place.hold(change.format, cores)
        for whole in wholes_of(model) if changed else ():
            whole.parts_resized()
    replace_parameters(optimizers, states, replaced)
    return reports


def _parameters(change: Change) -> dict[str, nn.Parameter]:
    """Parameters for a change: those whose core is what it was are the same object."""
    made: dict[str, nn.Parameter] = {}
    for name, old in change.holder.cores().items():
        made[name] = old
        if name in change.edits:
            new = nn.Parameter(change.cores[name].to(old).contiguous(), old.requires_grad)
            new.__dict__.update(old.__dict__)
            if old.grad is not None:
                new.grad = turned(old.grad, change.edits[name])
            made[name] = new
    return made
