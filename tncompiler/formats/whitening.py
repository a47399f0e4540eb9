"""Activation-weighted decomposition: a basis of input modes in which error is output error.

With second moments S of the inputs, the mean squared error of outputs is the norm of L^H (W - V),
S = L L^H. A weight is multiplied by L^H before it is decomposed and the cores are divided by it
afterwards; that needs modes that sit on one core together. Where they do not, S is replaced by the
product of its partial traces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import scipy.linalg

from tncompiler.formats.format import Format
from tncompiler.formats.linear import rest_of
from tncompiler.formats.modes import Modes
from tncompiler.formats.moments import checked_moments, partial_trace, triangular_root
from tncompiler.ir.errors import FormatError
from tncompiler.ir.expressions import Expr, Leaf
from tncompiler.ir.index import Index

_COMPARED = 1024  # inputs up to which S is compared with what replaces it, for an error bound


@dataclass(frozen=True)
class _Group:
    """Input modes on one core: their positions, the core with the axes there, and L (its diagonal,
    where it has no more)."""

    modes: tuple[int, ...]
    core: str
    axes: tuple[int, ...]
    lower: np.ndarray

    def times(self, matrix: np.ndarray) -> np.ndarray:
        """L^H times a matrix."""
        if self.lower.ndim == 1:
            scaled: np.ndarray = self.lower[:, None] * matrix
            return scaled
        product: np.ndarray = self.lower.conj().T @ matrix
        return product

    def divide(self, matrix: np.ndarray) -> np.ndarray:
        """The matrix that `times` makes this one of."""
        if self.lower.ndim == 1:
            return self._divided(matrix)
        solved: np.ndarray = scipy.linalg.solve_triangular(self.lower.conj().T, matrix, lower=False)
        return solved

    def _divided(self, matrix: np.ndarray) -> np.ndarray:
        divided: np.ndarray = matrix / self.lower[:, None]
        return divided

    def divide_left(self, matrix: np.ndarray) -> np.ndarray:
        """L^-1 times a matrix."""
        if self.lower.ndim == 1:
            return self._divided(matrix)
        solved: np.ndarray = scipy.linalg.solve_triangular(self.lower, matrix, lower=True)
        return solved


@dataclass(frozen=True)
class Whitening:
    """``groups`` of modes with the basis of each; ``moments`` as given, (inputs, inputs) or the
    diagonal of that.

    ``sizes``: those of the input modes. Without moments nothing is changed.
    """

    groups: tuple[_Group, ...] = ()
    moments: np.ndarray | None = None
    sizes: tuple[int, ...] = ()

    @staticmethod
    def of(format: Format, modes: Modes, moments: Any, inputs: int, real: bool) -> Whitening:
        """The bases for a format's cores; `inputs` rows of the weight are not padding.

        Raises: FormatError for moments that do not fit.
        """
        if moments is None:
            return Whitening()
        sizes = modes.numbers()[: len(modes.ins)]
        full = checked_moments(moments, inputs, prod(sizes), real)
        probe = format if format.rank is not None else replace(format, rank=1)
        network = probe.network(modes.ins, modes.outs)
        groups = []
        for leaf in network.leaves:
            own = _own_modes(network, leaf, modes.ins)
            if own:
                axes = tuple(leaf.indices.index(modes.ins[k]) for k in own)
                lower = triangular_root(partial_trace(full, sizes, own))
                groups.append(_Group(own, leaf.name, axes, lower))
        return Whitening(tuple(groups), full, sizes)

    def apply(self, weight: np.ndarray) -> np.ndarray:
        """The weight in the new bases."""
        for group in self.groups:
            weight = _along(weight, group.modes, group.times)
        return weight

    def undo(self, cores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The cores back in the weight's own bases."""
        result = dict(cores)
        for group in self.groups:
            result[group.core] = _along(result[group.core], group.axes, group.divide)
        return result

    def norm(self, array: np.ndarray) -> float:
        """The norm of a weight, in terms of outputs where moments were given."""
        if self.moments is None:
            return float(np.linalg.norm(array))
        flat = array.reshape(len(self.moments), -1)
        if self.moments.ndim == 1:
            return _root(float(self.moments @ np.sum(np.abs(flat) ** 2, axis=1)))
        return _root(float(np.sum(flat.conj() * (self.moments @ flat)).real))

    def times_root(self, weight: np.ndarray) -> np.ndarray:
        """The weight times a root of the moments: its Frobenius norm is `norm` of the weight."""
        if self.moments is None:
            return weight
        flat = weight.reshape(len(self.moments), -1)
        if self.moments.ndim == 1:
            product: np.ndarray = np.sqrt(self.moments)[:, None] * flat
        else:
            product = self.root() @ flat
        return product.reshape(weight.shape)

    def root(self, floor: float = 0.0) -> np.ndarray:
        """A matrix R with R^H R the moments, plus `floor` times their mean in every direction."""
        assert self.moments is not None
        if self.moments.ndim == 1:
            return np.diag(np.sqrt(self.moments + floor * self.moments.mean()))
        values, vectors = np.linalg.eigh(self.moments)
        values = values + floor * values.mean()
        root: np.ndarray = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.conj().T
        return root

    @property
    def exact(self) -> bool:
        """Whether the new bases say all that the moments do."""
        return self.moments is None or any(len(g.modes) == len(self.sizes) for g in self.groups)

    def smallest(self) -> float:
        """The least that `norm` can be of a weight with norm 1."""
        if self.moments is None:
            return 1.0
        if self.moments.ndim == 1:
            return _root(float(self.moments.min()))
        return _root(float(np.linalg.eigvalsh(self.moments)[0]))

    def largest(self) -> float | None:
        """The most that `norm` can be of a weight that `apply` gives norm 1; None if not known."""
        if self.moments is None or self.exact:
            return 1.0
        if len(self.moments) > _COMPARED:
            return None
        full = np.diag(self.moments) if self.moments.ndim == 1 else self.moments
        half = self._divided(full).conj().T
        both = self._divided(half)
        return _root(float(np.linalg.eigvalsh((both + both.conj().T) / 2)[-1]))

    def _divided(self, matrix: np.ndarray) -> np.ndarray:
        """L^-1 times a matrix, L the product of all groups'."""
        tensor = matrix.reshape(*self.sizes, -1)
        for group in self.groups:
            tensor = _along(tensor, group.modes, group.divide_left)
        return tensor.reshape(matrix.shape)


def _root(square: float) -> float:
    return float(np.sqrt(max(square, 0.0)))


def _own_modes(network: Expr, leaf: Leaf, ins: Sequence[Index]) -> tuple[int, ...]:
    """Input modes that only this core has, which must stand in the network once, as a factor."""
    try:
        rest = rest_of(network, leaf)
    except FormatError:
        return ()
    return tuple(
        k for k, index in enumerate(ins) if index in leaf.indices and index not in rest.indices
    )


def _along(
    array: np.ndarray, axes: Sequence[int], change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The array with a linear map applied to some axes, seen as one."""
    rest = [k for k in range(array.ndim) if k not in axes]
    order = [*axes, *rest]
    front = array.transpose(order)
    changed = change(front.reshape(prod(array.shape[k] for k in axes), -1)).reshape(front.shape)
    back: np.ndarray = changed.transpose(np.argsort(order))
    return back
