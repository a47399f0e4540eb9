"""tnc.quantize: cores held in 8 or 4 bits, in the gauge that loses least."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from tncompiler.formats.bonds import Sites
from tncompiler.formats.equalizing import rounding_gauges
from tncompiler.ir.errors import ArgumentError, ShapeError, UnknownIndex
from tncompiler.models.storage import (
    Quantized,
    Scheme,
    check_not_quantized,
    hold_plainly,
    is_masked,
    scheme_of,
    store_core,
)
from tncompiler.nn.tensorized import Tensorized

SCALES = ("best", "bond", "mode", "tensor")
Axes = dict[str, int | None]  # of each core, the axis along which scales differ


def quantize(
    model: Any,
    scheme: str = "int8",
    *,
    scales: Any = "best",
    gauge: bool = True,
    filter_fn: Filter | None = None,
    seed: int = 0,
) -> Changes:
    """Hold the cores of all tensorized layers as codes and scales, in place.

        report = tnc.quantize(model, "int4")

    ``scheme``: "int8", "int4" (two codes in a byte) or "fp8" (e4m3). ``scales``: "tensor" (one for
    each core), "bond" (one for each channel of the bond where that is best), "mode" (for each
    position of an input or output mode), "best" of all these, or a dict from cores to bonds, for a
    model that is one layer. ``gauge``: bring the cores into the gauge, of those tried, in which the
    weight loses least; the function is the same before rounding. ``seed``: of the rotations tried.
    ``filter_fn``: (layer, name) → whether it is quantized.

    Codes are buffers, scales become the parameters: training afterwards (`tnc.heal`) adjusts them
    and the biases. Zeros of a mask stay zeros, as codes. Layers compute in the dtype that they had;
    `tnc.save` writes the codes. Layers whose cores are tied to another's are left as they are.
    Cost: the dense weight some ten times for each layer, once with gauge=False.
    Raises: ArgumentError for unknown schemes, scales and models without tensorized layers;
    DTypeError for layers that are quantized already; FormatError for cores with NaN or infinity;
    UnknownIndex for unknown cores or bonds; ShapeError for a bond that a core does not have.
    """
    chosen = scheme_of(scheme)
    if not isinstance(scales, dict) and scales not in SCALES:
        raise ArgumentError(
            f"scales is {scales!r:.40}", fix=f"one of {', '.join(SCALES)}, or a dict of bonds"
        )
    skipped: dict[str, str] = {}
    work = []
    for name, layer in layers_to_change(model, filter_fn, skipped):
        check_not_quantized(layer, "quantize once, or undo it by loading the model")
        sites, reason = sites_or_reason(layer)
        if sites is None or layer._core_dtype().is_complex:
            skipped[name] = reason or "its cores are complex"
            continue
        work.append((name, layer, sites, _axes_asked(sites, scales)))
    if isinstance(scales, dict) and (len(work) != 1 or work[0][1] is not model):
        raise ArgumentError(
            "scales= by core are for one layer", fix="give the layer itself as the model"
        )
    changed = [_quantized(*each, chosen, gauge, seed) for each in work]
    return Changes(tuple(changed), skipped)


@torch.no_grad()
def _quantized(
    name: str,
    layer: Tensorized,
    sites: Sites,
    axes: dict[str, list[int | None]],
    scheme: Scheme,
    gauge: bool,
    seed: int,
) -> Change:
    before = (count_numbers(layer), layer_bytes(layer))
    cores = cores_in_double(layer)
    whole = dense(sites, cores)
    like = layer._core(layer._table.parameters[0])
    masked = is_masked(layer)  # scales keep zeros, rotations do not
    hold_plainly(layer)
    gauges = rounding_gauges(sites, cores, seed, turn=not masked) if gauge else iter([cores])
    tries = [(tried, *_rounded(tried, axes, scheme, like)) for tried in gauges]
    errors = [relative(dense(sites, held), whole) for _, held, _ in tries]
    error = min(errors)
    tried, _, taken = tries[errors.index(error)]
    for core, axis in taken.items():
        layer._core(core).copy_(torch.from_numpy(tried[core]))
        store_core(layer, core, Quantized(scheme.name, tried[core].shape, axis).to(like.device))
    after = (count_numbers(layer), layer_bytes(layer))
    how = f"{scheme.name}, scales along {_shown_axes(sites, taken)}"
    return Change(name, layer.shown_ranks(), before[0], after[0], before[1], after[1], error, how)


def _rounded(
    cores: dict[str, np.ndarray], axes: dict[str, list[int | None]], scheme: Scheme, like: Tensor
) -> tuple[dict[str, np.ndarray], Axes]:
    """The cores as they come back, and for each the axis whose scales lose least."""
    held: dict[str, np.ndarray] = {}
    taken: Axes = {}
    for name, core in cores.items():
        tensor = torch.from_numpy(core).to(like)
        least = np.inf
        for axis in axes[name]:
            made = Quantized(scheme.name, core.shape, axis).to(like.device)
            back = made(made.right_inverse(tensor)).double().cpu().numpy()
            error = float(np.linalg.norm(back - core))
            if error < least or name not in held:
                held[name], taken[name], least = back, axis, error
    return held, taken


def _axes_asked(sites: Sites, scales: Any) -> dict[str, list[int | None]]:
    """For each core the axes along which its scales may differ; None is one scale for all."""
    wires = dict(zip(sites.tensors, sites.inputs, strict=True))
    own = {name: labels for name, labels in wires.items() if name not in sites.constants}
    if isinstance(scales, dict):
        return _axes_named(sites, own, scales)
    bonds = {bond.label for bond in sites.bonds}
    asked: dict[str, list[int | None]] = {}
    for name, labels in own.items():
        along_bonds: list[int | None] = [k for k, label in enumerate(labels) if label in bonds]
        along_modes: list[int | None] = [k for k, label in enumerate(labels) if label not in bonds]
        ways = {"bond": along_bonds, "mode": along_modes, "tensor": []}
        asked[name] = ways.get(scales, [None, *along_bonds, *along_modes]) or [None]
    return asked


def _axes_named(
    sites: Sites, own: dict[str, tuple[int, ...]], scales: dict[Any, Any]
) -> dict[str, list[int | None]]:
    for core in scales:
        if core not in own:
            raise UnknownIndex(
                f"scales= names a core {core!r:.40} that is not there",
                where=repr(sites.network),
                fix=f"name some of {', '.join(own)}",
            )
    found: dict[str, list[int | None]] = {name: [None] for name in own}
    for core, name in scales.items():
        bond = sites.bond(name)
        axes = [end.axis for end in bond.ends if end.core == core]
        if not axes:
            raise ShapeError(
                f"core {core!r} has no bond {name!r} to scale along",
                where=repr(sites.network),
                fix=f"that bond joins {', '.join(bond.cores)}",
            )
        found[core] = [axes[0]]
    return found


def _shown_axes(sites: Sites, taken: Axes) -> str:
    wires = dict(zip(sites.tensors, sites.inputs, strict=True))
    words = [
        "nothing" if axis is None else sites.names[wires[core][axis]]
        for core, axis in taken.items()
    ]
    return ", ".join(words)
