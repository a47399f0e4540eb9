"""tnc.prune: fewer numbers in the cores: single ones masked, or whole channels of bonds gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tncompiler.compression.changed import (
    Change,
    Changes,
    Filter,
    cores_in_double,
    count_numbers,
    dense,
    layer_bytes,
    layers_to_change,
    relative,
    sites_or_reason,
)
from tncompiler.formats.bonds import Cores, Sites, keep_channels
from tncompiler.formats.gauge import canonical_cores, spectra
from tncompiler.formats.modes import Modes
from tncompiler.ir.errors import ArgumentError, ShapeError, UnknownIndex
from tncompiler.models.storage import (
    Masked,
    check_mask,
    check_not_quantized,
    hold_plainly,
    store_core,
)
from tncompiler.nn.parts import Composite
from tncompiler.nn.tensorized import Tensorized

Kept = dict[str, list[int]]  # of some bonds, the channels that stay
Masks = dict[str, np.ndarray]  # of some cores, False where a number is to be zero


def prune(
    model: Any,
    amount: float | None = None,
    how: str = "bond",
    *,
    masks: Mapping[str, Any] | None = None,
    filter_fn: Filter | None = None,
) -> Changes:
    """Take numbers out of the cores of all tensorized layers, in place.

        report = tnc.prune(model, 0.5)                       # half of each layer's numbers
        report = tnc.prune(layer, masks={"r2": [True, True, False]})

    ``amount``: the share of a layer's numbers that goes, from 0 to 1 (at least one channel of each
    bond stays). ``how``: "bond" drops channels in the canonical gauge, each time the one that
    carries least for the numbers that it frees; "structured" drops channels of the cores as they
    stand, by the norms of their slices; "magnitude" sets the smallest numbers of all cores to zero
    and keeps them there. ``masks``, for a model that is one layer, says what stays: by bond, a
    boolean for each channel; by core, one for each number. ``filter_fn``: (layer, name) → whether.

    Channels that go make the bond smaller, so the layer stores and computes less; so do channels
    that a mask leaves without any number at one end. Make optimizers afterwards: parameters change.
    Layers whose cores are tied to another's are left as they are, and where bonds cannot be
    changed one by one (shared or constant cores) only numbers are masked.
    Raises: ArgumentError for another amount or way, FormatError for cores with NaN or infinity,
    DTypeError for layers that are quantized,
    UnknownIndex for masks of bonds or cores that there are not, ShapeError for masks that do not
    fit.
    """
    choose = _chooser(amount, how, masks)
    skipped: dict[str, str] = {}
    work = []
    for name, layer in layers_to_change(model, filter_fn, skipped):
        check_not_quantized(layer, "prune")
        sites, reason = sites_or_reason(layer)
        if sites is None:
            skipped[name] = reason
        elif how != "magnitude" and masks is None and not all(b.movable for b in sites.bonds):
            skipped[name] = "a core is shared or constant: its bonds cannot be made smaller"
        else:
            work.append((name, layer, sites))
    if masks is not None and (len(work) != 1 or work[0][1] is not model):
        raise ArgumentError("masks= are for one layer", fix="give the layer itself as the model")
    decided = [(name, layer, sites, *choose(sites, layer)) for name, layer, sites in work]
    changes = tuple(_pruned(*each) for each in decided)
    changed = {layer for _, layer, *_ in decided}
    for module in model.modules():
        if isinstance(module, Composite) and not changed.isdisjoint(module.modules()):
            module.parts_resized()
    return Changes(changes, skipped)


Chosen = tuple[Cores, Kept, Masks]  # the cores to start from, channels that stay, and masks


def _chooser(
    amount: Any, how: Any, masks: Mapping[str, Any] | None
) -> Callable[[Sites, Tensorized], Chosen]:
    """What decides for one layer. Raises ArgumentError."""
    if masks is not None:
        if amount is not None:
            raise ArgumentError("amount= and masks= are both given", fix="give one of them")
        return lambda sites, layer: _as_masked(sites, cores_in_double(layer), masks)
    if not isinstance(how, str) or how not in WAYS:
        raise ArgumentError(f"how is {how!r:.40}", fix=f"one of {', '.join(WAYS)}")
    whole = isinstance(amount, int | float) and not isinstance(amount, bool)
    if not whole or not 0 <= amount < 1:
        raise ArgumentError(f"amount is {amount!r:.40}", fix="give a share from 0 to below 1")
    way = WAYS[how]
    return lambda sites, layer: way(sites, cores_in_double(layer), float(amount))


# ---------------------------------------------------------------------------- what goes


def _by_bond(sites: Sites, cores: Cores, amount: float) -> Chosen:
    """Channels of the canonical gauge, by what they carry."""
    canonical = canonical_cores(sites, cores)
    values = {name: found.values for name, found in spectra(sites, canonical).items()}
    return canonical, _least(sites, canonical, values, amount), {}


def _by_slices(sites: Sites, cores: Cores, amount: float) -> Chosen:
    """Channels as they stand, by the product of the norms of their slices."""
    values = {}
    for bond in sites.bonds:
        rows = [np.moveaxis(cores[e.core], e.axis, 0).reshape(bond.size, -1) for e in bond.ends]
        values[bond.name] = np.prod([np.linalg.norm(row, axis=1) for row in rows], axis=0)
    return cores, _least(sites, cores, values, amount), {}


def _least(sites: Sites, cores: Cores, values: Mapping[str, np.ndarray], amount: float) -> Kept:
    """Channels that stay when, one by one, the one goes that counts least for what it frees."""
    shapes = {name: list(core.shape) for name, core in cores.items()}
    order = {name: [*np.argsort(-counts, kind="stable")] for name, counts in values.items()}
    goal = (1 - amount) * _count(shapes)
    while _count(shapes) > goal:
        costs = {
            bond.name: values[bond.name][order[bond.name][-1]] ** 2 / _freed(bond, shapes)
            for bond in sites.bonds
            if len(order[bond.name]) > 1
        }
        if not costs:
            break
        name = min(costs, key=costs.__getitem__)
        order[name].pop()
        for end in sites.bond(name).ends:
            shapes[end.core][end.axis] -= 1
    return {
        bond.name: sorted(map(int, order[bond.name]))
        for bond in sites.bonds
        if len(order[bond.name]) < bond.size
    }


def _count(shapes: Mapping[str, Sequence[int]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes.values())


def _freed(bond: Any, shapes: Mapping[str, Sequence[int]]) -> int:
    """How many numbers one channel of a bond takes."""
    return sum(int(np.prod(shapes[e.core])) // shapes[e.core][e.axis] for e in bond.ends)


def _by_magnitude(sites: Sites, cores: Cores, amount: float) -> Chosen:
    """The smallest numbers of all cores, and channels that have none left at one end."""
    every = np.concatenate([np.abs(core).ravel() for core in cores.values()])
    gone = int(amount * len(every))
    masks = dict(zip(cores, _largest(cores, len(every) - gone), strict=True))
    return _without_dead(sites, cores, masks)


def _largest(cores: Cores, count: int) -> list[np.ndarray]:
    """For each core where its numbers are among the `count` largest; ties by position."""
    every = np.concatenate([np.abs(core).ravel() for core in cores.values()])
    kept = np.zeros(len(every), bool)
    kept[np.argsort(-every, kind="stable")[:count]] = True
    sizes = [core.size for core in cores.values()]
    parts = np.split(kept, np.cumsum(sizes)[:-1])
    return [part.reshape(core.shape) for part, core in zip(parts, cores.values(), strict=True)]


def _without_dead(sites: Sites, cores: Cores, masks: Masks) -> Chosen:
    """Masks, and the channels of bonds that still have a number at every end; at least one."""
    kept: Kept = {}
    for bond in sites.bonds:
        alive = np.ones(bond.size, bool)
        for end in bond.ends:
            if end.core in masks:
                rows = np.moveaxis(masks[end.core], end.axis, 0).reshape(bond.size, -1)
                alive &= rows.any(axis=1)
        if bond.movable and not alive.all():
            kept[bond.name] = [*map(int, np.flatnonzero(alive))] or [0]
    masked = {name: core * masks.get(name, True) for name, core in cores.items()}
    return masked, kept, masks


WAYS: dict[str, Callable[[Sites, Cores, float], Chosen]] = {
    "bond": _by_bond,
    "structured": _by_slices,
    "magnitude": _by_magnitude,
}


def _as_masked(sites: Sites, cores: Cores, masks: Mapping[str, Any]) -> Chosen:
    """What a user's masks of bonds and cores leave."""
    bonds = {bond.name: bond for bond in sites.bonds}
    for name in masks:
        if name not in bonds and name not in cores:
            raise UnknownIndex(
                f"there is no bond or core {name!r:.40}",
                where=repr(sites.network),
                fix=f"name some of {', '.join((*bonds, *cores))}",
            )
    by_core = {
        name: check_mask(mask, name, cores[name].shape).cpu().numpy()
        for name, mask in masks.items()
        if name in cores
    }
    masked, kept, held = _without_dead(sites, cores, by_core)
    for name in masks:
        if name in bonds:
            size = sites.movable(name).size
            mask = check_mask(masks[name], name, (size,)).cpu().numpy()
            if not mask.any():
                raise ShapeError(
                    f"the mask of bond {name!r} leaves no channel", fix="keep one or more"
                )
            alive = kept.get(name, range(size))
            kept[name] = [k for k in alive if mask[k]] or [int(np.flatnonzero(mask)[0])]
    return masked, {k: v for k, v in kept.items() if len(v) < bonds[k].size}, held


# ---------------------------------------------------------------------------- doing it


@torch.no_grad()
def _pruned(
    name: str, layer: Tensorized, sites: Sites, cores: Cores, kept: Kept, masks: Masks
) -> Change:
    before = (count_numbers(layer), layer_bytes(layer))
    if not kept and not masks:  # not even into another gauge, which would round
        sizes = (before[0], before[0], before[1], before[1])
        return Change(name, layer.shown_ranks(), *sizes, 0.0, "nothing to take")
    whole = dense(sites, cores_in_double(layer))
    fewer = keep_channels(sites, cores, kept)
    full = {core: masks.get(core, np.ones(array.shape, bool)) for core, array in cores.items()}
    left_of = keep_channels(sites, full, kept)
    hold_plainly(layer)
    _hold(layer, sites, fewer, kept)
    for core, mask in left_of.items():
        if not mask.all():
            store_core(layer, core, Masked(torch.from_numpy(mask).to(layer._core(core).device)))
    error = relative(dense(Sites.of(layer._network), cores_in_double(layer)), whole)
    after = (count_numbers(layer), layer_bytes(layer))
    words = [f"{bond} {sites.bond(bond).size} → {len(left)}" for bond, left in kept.items()]
    how = ", ".join([*words, *(["masked"] if masks else [])]) or "nothing to take"
    return Change(name, layer.shown_ranks(), before[0], after[0], before[1], after[1], error, how)


def _hold(layer: Tensorized, sites: Sites, cores: Cores, kept: Kept) -> None:
    """Give a layer other cores, of a format with as many channels as stay."""
    names = dict.fromkeys(layer._table.parameters)
    if not kept:
        for name in names:
            layer._core(name).copy_(torch.from_numpy(np.ascontiguousarray(cores[name])))
        layer.decomposition = None
        return
    format, modes = layer.format, Modes.of(layer.in_shape, layer.out_shape)
    for bond, left in kept.items():
        format = format.resized(modes, bond, len(left))
    new = {}
    for name in names:
        old = layer._core(name)
        held = torch.from_numpy(np.ascontiguousarray(cores[name])).to(old)
        new[name] = nn.Parameter(held, old.requires_grad)
    layer.resize(format, new)
