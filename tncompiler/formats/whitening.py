"""Activation-weighted decomposition: a basis of input modes in which error is output error.

With second moments S of the inputs, the mean squared error of outputs is the norm of L^H (W - V),
S = L L^H. A weight is multiplied by L^H before it is decomposed and the cores are divided by it
afterwards; that needs modes that sit on one core together. Where they do not, S is replaced by the
product of its partial traces.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import scipy.linalg

from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.ir.errors import FormatError

_FLOOR = 1e-6  # added to S, in units of its mean diagonal: unseen directions still count a little


@dataclass(frozen=True)
class _Group:
    """Input modes on one core: their positions, the core with the axes there, and L."""

    modes: tuple[int, ...]
    core: str
    axes: tuple[int, ...]
    lower: np.ndarray


@dataclass(frozen=True)
class Whitening:
    """``groups`` of modes with the basis of each; ``moments`` as given, (inputs, inputs)."""

    groups: tuple[_Group, ...] = ()
    moments: np.ndarray | None = None

    @staticmethod
    def of(format: Format, modes: Modes, moments: Any) -> Whitening:
        """The bases for a format's cores. Raises FormatError for moments that do not fit."""
        if moments is None:
            return Whitening()
        sizes = [int(index.size) for index in modes.ins]
        full = _checked(moments, prod(sizes))
        groups = []
        probe = format if format.rank is not None or not format.bonds(modes) else _probe(format)
        leaves = probe.network(modes.ins, modes.outs).leaves
        homes = {index: [leaf for leaf in leaves if index in leaf.indices] for index in modes.ins}
        for leaf in leaves:
            own = [k for k, i in enumerate(modes.ins) if [h.name for h in homes[i]] == [leaf.name]]
            if own:
                axes = tuple(leaf.indices.index(modes.ins[k]) for k in own)
                lower = _lower(_partial_trace(full, sizes, own))
                groups.append(_Group(tuple(own), leaf.name, axes, lower))
        return Whitening(tuple(groups), full)

    def apply(self, weight: np.ndarray) -> np.ndarray:
        """The weight in the new bases."""
        for group in self.groups:
            weight = _along(weight, group.modes, lambda m, g=group: g.lower.conj().T @ m)
        return weight

    def undo(self, cores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The cores back in the weight's own bases."""
        result = dict(cores)
        for group in self.groups:
            result[group.core] = _along(
                result[group.core],
                group.axes,
                lambda m, g=group: scipy.linalg.solve_triangular(g.lower.conj().T, m, lower=False),
            )
        return result

    def relative_error(self, difference: np.ndarray, weight: np.ndarray) -> float:
        """The norm of the difference over that of the weight, weighted by the given moments."""
        rows = 1 if self.moments is None else len(self.moments)
        norms = []
        for array in (difference, weight):
            if self.moments is None:
                norms.append(float(np.linalg.norm(array)))
            else:
                flat = array.reshape(rows, -1)
                norms.append(float(np.sum(flat.conj() * (self.moments @ flat)).real) ** 0.5)
        return norms[0] / (norms[1] or 1.0)


def _probe(format: Format) -> Format:
    from dataclasses import replace

    return replace(format, rank=1)


def _checked(moments: Any, inputs: int) -> np.ndarray:
    array = np.asarray(moments.detach().cpu() if hasattr(moments, "detach") else moments)
    array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    if array.ndim == 1:
        array = np.diag(array)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.shape[0] > inputs:
        raise FormatError(
            f"moments have shape {np.shape(moments)} for {inputs} inputs",
            fix="give x.T @ x / len(x) of a calibration batch, or its diagonal",
        )
    if not np.isfinite(array).all() or not np.allclose(
        array, array.conj().T, atol=1e-6 * np.abs(array).max()
    ):
        raise FormatError("moments are not a finite symmetric matrix", fix="give x.T @ x / len(x)")
    padded = np.zeros((inputs, inputs), array.dtype)
    padded[: len(array), : len(array)] = array
    return padded


def _partial_trace(full: np.ndarray, sizes: list[int], own: list[int]) -> np.ndarray:
    """The moments of some modes, the others averaged."""
    count = len(sizes)
    rest = [k for k in range(count) if k not in own]
    tensor = full.reshape(*sizes, *sizes)
    labels = [*range(count), *(k if k in rest else k + count for k in range(count))]
    traced = np.einsum(tensor, labels, [*own, *(k + count for k in own)])
    size = prod(sizes[k] for k in own)
    mean: np.ndarray = traced.reshape(size, size) / max(prod(sizes[k] for k in rest), 1)
    return mean


def _lower(moments: np.ndarray) -> np.ndarray:
    """A triangular L with S = L L^H, S made definite."""
    floor = _FLOOR * max(float(np.trace(moments).real) / len(moments), np.finfo(float).tiny)
    shifted = moments + floor * np.eye(len(moments))
    lower: np.ndarray = np.linalg.cholesky(shifted)
    return lower


def _along(array: np.ndarray, axes: tuple[int, ...], change: Any) -> np.ndarray:
    """The array with a linear map applied to some axes, seen as one."""
    rest = [k for k in range(array.ndim) if k not in axes]
    order = [*axes, *rest]
    front = array.transpose(order)
    changed = change(front.reshape(prod(array.shape[k] for k in axes), -1)).reshape(front.shape)
    back: np.ndarray = changed.transpose(np.argsort(order))
    return back
