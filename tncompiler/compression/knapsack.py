"""One option for each group under a common budget, at the least loss: a multiple-choice knapsack.

In: costs and losses. Out: a choice, its cost and loss, and a loss that no choice can undercut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tncompiler.ir.errors import BudgetError

_GRID = 20_000  # steps that a budget is divided into; costs are rounded up to whole ones


@dataclass(frozen=True, slots=True)
class Option:
    """``cost`` and ``loss``, both at least 0."""

    cost: float
    loss: float


@dataclass(frozen=True, slots=True)
class Solution:
    """``choice``: the position of an option in each group. ``bound``: the loss of the relaxation in
    which options may be mixed: no choice within the budget has less."""

    choice: tuple[int, ...]
    cost: float
    loss: float
    bound: float


Groups = Sequence[Sequence[Option]]


def solve(groups: Groups, budget: float, grid: int = _GRID) -> Solution:
    """The choice of least loss whose costs are together at most `budget`.

    Cost:   options · grid additions (dynamic programming over the budget).
    Source: Kellerer, Pferschy & Pisinger 2004, doi:10.1007/978-3-540-24777-7, chapter 11.
    Raises: BudgetError where even the cheapest options cost more.
    """
    least = sum(min(option.cost for option in group) for group in groups)
    if least > budget:
        raise BudgetError(
            f"the cheapest choice costs {least:g}, more than the budget of {budget:g}",
            fix=f"allow {least:g}, or smaller options",
        )
    choice = _Table(groups, budget / grid, grid).choice(grid)
    if choice is None:  # it fits, but not once every cost is rounded up
        choice = tuple(_cheapest(group) for group in groups)
    return _solution(groups, choice, budget)


def frontier(groups: Groups, points: int = 60, grid: int = _GRID) -> list[Solution]:
    """The best choices for budgets from the cheapest to what everything costs, rising."""
    most = sum(max(option.cost for option in group) for group in groups)
    least = sum(min(option.cost for option in group) for group in groups)
    if most <= 0:
        return [solve(groups, most)]
    # so many steps more as may be lost by rounding costs up
    table = _Table(groups, most / grid, grid + len(groups))
    found: dict[tuple[int, ...], Solution] = {}
    for budget in np.linspace(least, most, points):
        choice = table.choice(int(budget / most * grid) + len(groups))
        if choice is not None:
            found.setdefault(choice, _solution(groups, choice, float(budget)))
    return [*found.values()]


class _Table:
    """For every whole number of steps the least loss, and by which options it came about."""

    def __init__(self, groups: Groups, step: float, count: int) -> None:
        step, best = step or 1.0, np.zeros(count + 1)
        self.steps: list[np.ndarray] = []
        self.taken: list[np.ndarray] = []
        for group in groups:
            steps = np.array([int(np.ceil(option.cost / step - 1e-9)) for option in group])
            best, taken = _add_group(best, steps, [option.loss for option in group])
            self.steps.append(steps)
            self.taken.append(taken)
        self.best = best

    def choice(self, left: int) -> tuple[int, ...] | None:
        """The options of least loss for so many steps; None where nothing fits."""
        if not np.isfinite(self.best[left]):
            return None
        chosen: list[int] = []
        for steps, taken in zip(self.steps[::-1], self.taken[::-1], strict=True):
            chosen.append(int(taken[left]))
            left -= int(steps[chosen[-1]])
        return tuple(chosen[::-1])


def _add_group(
    best: np.ndarray, steps: np.ndarray, losses: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    new, taken = np.full_like(best, np.inf), np.zeros(len(best), np.int32)
    for position, (step, loss) in enumerate(zip(steps, losses, strict=True)):
        if step < len(best):
            made = best[: len(best) - step] + loss
            is_less = made < new[step:]
            new[step:][is_less] = made[is_less]
            taken[step:][is_less] = position
    return new, taken


def _cheapest(group: Sequence[Option]) -> int:
    return min(range(len(group)), key=lambda k: (group[k].cost, group[k].loss))


def _solution(groups: Groups, choice: tuple[int, ...], budget: float) -> Solution:
    chosen = [group[k] for group, k in zip(groups, choice, strict=True)]
    cost = sum(option.cost for option in chosen)
    return Solution(choice, cost, sum(o.loss for o in chosen), relaxed_loss(groups, budget))


# ---------------------------------------------------------------------------- the bound


def relaxed_loss(groups: Groups, budget: float) -> float:
    """The least loss where a group may mix its options: steps along convex hulls, best first."""
    hulls = [_hull(group) for group in groups]
    loss = sum(hull[0].loss for hull in hulls)
    left = budget - sum(hull[0].cost for hull in hulls)
    steps = [
        (after.cost - before.cost, before.loss - after.loss)
        for hull in hulls
        for before, after in pairwise(hull)
    ]
    for cost, gain in sorted(steps, key=lambda step: -step[1] / step[0]):
        share = min(max(left, 0.0) / cost, 1.0)
        loss, left = loss - share * gain, left - share * cost
    return float(loss)


def _hull(group: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull, by rising cost and falling loss."""
    hull: list[Option] = []
    for option in sorted(group, key=lambda each: (each.cost, each.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], option) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _slope(a: Option, b: Option) -> float:
    return (b.loss - a.loss) / (b.cost - a.cost)
