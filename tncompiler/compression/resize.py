"""tnc.inflate and tnc.shrink: bonds of layers and models that grow and shrink, in training too."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tncompiler.compression.changes import Change, Resized, commit
from tncompiler.compression.edits import grow
from tncompiler.compression.holders import Holder, holders_of
from tncompiler.compression.selecting import choose_channels, fit, fitted_edits, selecting_edits
from tncompiler.compression.truncating import Goal, sides_of, truncating_edits
from tncompiler.formats.evaluate import evaluate
from tncompiler.formats.joints import Joint, graph_of, joints_of
from tncompiler.formats.weights import as_array, check_finite
from tncompiler.ir.errors import ArgumentError, FormatError, RankError

Matched = dict[Holder, list[Joint]]


@torch.no_grad()
def inflate(
    layer_or_model: nn.Module,
    bond: str,
    to: int,
    *,
    optimizer: Any = None,
    clamp: bool = False,
    seed: int = 0,
) -> list[Resized]:
    """Let bonds grow, without changing what the model computes.

        tnc.inflate(layer, "r1", 16, optimizer=adam)
        tnc.inflate(model, "encoder.*.query.*", 24, optimizer=adam, clamp=True)

    ``bond``: a bond's name as `layer.condition_numbers()` lists them, alone or after the name of
    its layer; with * and ? as in fnmatch. A hyperedge (CP's r, the blocks of BlockTerm) is a bond
    as any other; so is the bond of a core that stands at several sites. ``to``: its new size; bonds
    that have it or more stay. ``clamp``: grow to what a bond can carry where that is less.
    ``optimizer``: that of the model, or several: what it keeps (Adam's moments) is carried over,
    with zeros for gradients of new channels and the mean for their squares, and the same training
    loop goes on. Parameters change: make optimizers that are not given anew, and what else holds
    parameters (DistributedDataParallel, averaged models).

    New channels are zero at one end of the bond and random at the others, drawn from ``seed``: the
    weight is the same to rounding, and each new channel gets a gradient of its own. Layers that
    share cores go on sharing them: give the model that holds them all.
    Raises: RankError where no matched bond is smaller, or one cannot carry so much; ArgumentError
    for bonds, models and optimizers that do not fit. After an error nothing has changed.
    """
    size = _checked_size(to)
    matched = _matched(layer_or_model, bond)
    known = [joint.size for joints in matched.values() for joint in joints]
    if min(known) > size:
        raise RankError(
            f"bond {bond!r} has size {min(known)} and cannot grow to {size}", fix="use tnc.shrink"
        )
    generator = torch.Generator().manual_seed(seed)
    changes = []
    for holder, joints in matched.items():
        change = Change.of(holder, holder.cores())
        for old in joints:
            goal = _carried(holder, old, size, clamp)
            if goal > old.size:
                joint = joints_of(change.format.network(*_shapes(holder)))[old.name]
                change.resize(old.name, old.size, goal)
                change.take(grow(change.cores, joint, goal, generator))
        changes.append(change)
    return commit(layer_or_model, changes, optimizer)


@torch.no_grad()
def shrink(
    layer_or_model: nn.Module,
    bond: str = "*",
    to: int | None = None,
    *,
    tolerance: float | None = None,
    optimizer: Any = None,
) -> list[Resized]:
    """Make bonds smaller, at the least change of the weight; the reports state it.

        tnc.shrink(layer, "r1", 8, optimizer=adam)
        tnc.shrink(model, tolerance=0.02, optimizer=adam)

    ``bond``, ``optimizer``: as `inflate`. ``to``: the new size; bonds that have it or less stay.
    ``tolerance``: instead, the relative change of each weight that all its bonds together may make;
    bonds then get the smallest sizes that singular values allow.

    A bond that divides the network (TT, TTMatrix, Tucker, HT, LowRank, and position by position
    Monarch and BlockTerm) is cut by the singular values that the weight itself has there, in its
    canonical gauge: for one bond of a tree the change is the least there is. A ring's bond, and an
    index on more than two cores (CP, Kronecker), has no such values: the terms that explain most
    are kept, and all cores fitted to the weight by alternating least squares.
    Raises: RankError for sizes below 1, or where no matched bond is larger; FormatError for NaN or
    infinity; ArgumentError. After an error nothing has changed.
    """
    goal = _goal(to, tolerance)
    matched = _matched(layer_or_model, bond)
    known = [joint.size for joints in matched.values() for joint in joints]
    if goal.to is not None and max(known) < goal.to:
        raise RankError(
            f"bond {bond!r} has size {max(known)} and cannot shrink to {goal.to}",
            fix="use tnc.inflate",
        )
    changes = [_shrunk(holder, joints, goal) for holder, joints in matched.items()]
    return commit(layer_or_model, changes, optimizer)


# ---------------------------------------------------------------------------- shrinking


def _shrunk(holder: Holder, joints: list[Joint], goal: Goal) -> Change:
    change = Change.of(holder, {name: _wide(core) for name, core in holder.cores().items()})
    arrays = {name: core.numpy() for name, core in change.cores.items()}
    check_finite(arrays, f"{holder.name or 'the layer'}: {holder.format}")
    if goal.tolerance is not None:  # squares of what bonds leave out add up
        goal = Goal(tolerance=goal.tolerance / len(joints) ** 0.5)
    before = dict(change.cores)
    for joint in joints:
        _shrink_bond(change, joint.name, goal, before)
    if change.bonds:
        weight = _weight(holder, holder.format, before)
        rest = weight - _weight(holder, change.format, change.cores)
        change.error = float(np.linalg.norm(rest) / (np.linalg.norm(weight) or 1.0))
    return change


def _shrink_bond(change: Change, name: str, goal: Goal, before: dict[str, Tensor]) -> None:
    """One bond of a weight, after those that were shrunk before it."""
    holder = change.holder
    network = change.format.network(*_shapes(holder))
    joint, graph = joints_of(network)[name], graph_of(network)
    if goal.to is not None and joint.size <= goal.to:
        return
    constants = {leaf.name: leaf.value for leaf in network.leaves if leaf.kind == "constant"}
    held = change.cores | {name: _wide(torch.tensor(value)) for name, value in constants.items()}
    sides = sides_of(graph, joint)
    if sides is not None:
        edits = truncating_edits(graph, held, joint, sides, goal)
    else:
        arrays = {name: core.numpy() for name, core in held.items()}
        edits = selecting_edits(held, joint, choose_channels(graph, arrays, joint, goal))
    core, axes = next(iter(joint.axes.items()))
    size = edits[core].value.shape[axes[0]]
    if size == joint.size:
        return
    change.resize(name, joint.size, size)
    change.take(edits)
    if sides is None:
        weight = _weight(holder, holder.format, before)
        start = {core: tensor.numpy() for core, tensor in change.cores.items()}
        change.take(fitted_edits(fit(change.format.network(*_shapes(holder)), weight, start)))


def _weight(holder: Holder, format: Any, cores: dict[str, Tensor]) -> np.ndarray:
    arrays = {name: core.numpy() for name, core in cores.items()}
    return evaluate(format.network(*_shapes(holder)), arrays)


def _wide(core: Tensor) -> Tensor:
    """In double precision, where NumPy reads it."""
    array = as_array(core)
    return torch.from_numpy(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64))


def _goal(to: Any, tolerance: Any) -> Goal:
    if (to is None) == (tolerance is None):
        raise ArgumentError("shrink takes to= or tolerance=", fix="give one of them")
    if to is not None:
        return Goal(to=_checked_size(to))
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise ArgumentError(f"tolerance is {tolerance!r:.40}", fix="give a number from 0 to 1")
    if not 0 <= tolerance < 1:
        raise ArgumentError(f"tolerance is {tolerance!r}", fix="give a number from 0 to below 1")
    return Goal(tolerance=float(tolerance))


# ---------------------------------------------------------------------------- which bonds


def _checked_size(to: Any) -> int:
    if isinstance(to, bool) or not isinstance(to, int):
        raise ArgumentError(f"to is {to!r:.40}", fix="give the new size as an integer")
    if to < 1:
        raise RankError(f"a bond cannot have size {to}", fix="1 is the least: it is no bond then")
    return to


def _matched(model: Any, bond: Any) -> Matched:
    """The bonds that are meant. Raises ArgumentError where there are none that can change."""
    if not isinstance(bond, str):
        raise ArgumentError(f"bond is {bond!r:.40}", fix='give a name or a pattern, as "r1" or "*"')
    known = {holder: _joints(holder, bond) for holder in holders_of(model)}
    meant = {
        holder: [joint for joint in joints if _means(bond, holder, joint)]
        for holder, joints in known.items()
    }
    fixed = next((j for joints in meant.values() for j in joints if j.fixed), None)
    free = {
        holder: [joint for joint in joints if joint.fixed is None]
        for holder, joints in meant.items()
    }
    found = {holder: joints for holder, joints in free.items() if joints}
    if not found and fixed is not None:
        raise FormatError(
            f"bond {fixed.name} cannot be resized: {fixed.fixed}", fix="choose another bond"
        )
    if not found:
        raise _no_bond(bond, known)
    return found


def _joints(holder: Holder, pattern: str) -> list[Joint]:
    """The bonds of a weight; where a pattern is for many, none of one that has no bonds at all."""
    shown = holder.name or "the layer"
    if any(core.is_meta for core in holder.cores().values()):
        raise ArgumentError(f"{shown} is on the meta device", fix="load its numbers first")
    if not all(isinstance(core, nn.Parameter) for core in holder.cores().values()):
        raise ArgumentError(
            f"{shown} has cores that are computed (a parametrization, pruning)",
            fix="make that permanent first, as torch.nn.utils.parametrize.remove_parametrizations",
        )
    try:
        return [*joints_of(holder.network).values()]
    except FormatError:
        if not any(sign in pattern for sign in "*?["):
            raise
        return []


def _means(pattern: str, holder: Holder, joint: Joint) -> bool:
    names = [joint.name, *(f"{place.name}.{joint.name}" for place in holder.places)]
    return any(fnmatchcase(name, pattern) for name in names)


def _no_bond(bond: str, known: Matched) -> ArgumentError:
    names = list(dict.fromkeys(joint.name for joints in known.values() for joint in joints))
    near = get_close_matches(bond, names, 3, 0.1) or names[:3]
    listed = ", ".join(map(repr, near)) or "none: it is dense"
    return ArgumentError(f"there is no bond {bond!r}", fix=f"its bonds are {listed}")


def _carried(holder: Holder, joint: Joint, size: int, clamp: bool) -> int:
    """What a bond is to grow to. Raises RankError above what it can carry."""
    bonds = holder.format.bonds(holder.modes)
    capacity = next((b.capacity for b in bonds if b.name == joint.name), None)
    if capacity is None or size <= capacity:
        return size
    if not clamp:
        raise RankError(
            f"bond {joint.name} can carry at most {capacity}, not {size}",
            where=f"{holder.name or 'the layer'}: {holder.format}",
            fix=f"use {capacity}, or clamp=True",
        )
    return capacity


def _shapes(holder: Holder) -> tuple[Any, Any]:
    return holder.modes.ins, holder.modes.outs
