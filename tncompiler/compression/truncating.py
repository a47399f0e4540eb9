"""A bond made smaller by singular values, in the gauge where they are those of the weight.

In: the network of a weight, its cores in double precision and a bond that divides it in two. Out:
the matrices that take the bond's index to a smaller one on either side. The sides are seen through
their Gram matrices, which are contractions of the cores: no dense weight is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from tncompiler.compression.edits import Edit, Turn
from tncompiler.drop_in.einsum import einsum
from tncompiler.formats.joints import Joint
from tncompiler.ir.network import TensorNetwork

_NOISE = 1e-13  # eigenvalues of a Gram matrix under this part of the largest are rounding


@dataclass(frozen=True, slots=True)
class Goal:
    """``to``: the size that is wanted; or ``tolerance``: what may be left out, a relative norm."""

    to: int | None = None
    tolerance: float | None = None

    def size(self, rests: np.ndarray, norm: float) -> int:
        """The new size; ``rests[k]`` is the norm of what is left out where k are kept."""
        if self.to is not None:
            return self.to
        allowed = (self.tolerance or 0.0) * norm
        return max(int(np.count_nonzero(rests > allowed)), 1)


@dataclass(frozen=True, slots=True)
class Sides:
    """What a bond divides a network into, by position of tensors.

    ``shared``: labels that both ends of the bond have besides it: each of their positions has
    singular values of its own.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    shared: tuple[int, ...]


def sides_of(graph: TensorNetwork, joint: Joint) -> Sides | None:
    """The sides of a bond; None where taking it out leaves its ends connected (in a ring)."""
    if not joint.is_plain:
        return None
    (bond,) = joint.labels
    near, far = (k for k, labels in enumerate(graph.inputs) if bond in labels)
    rest: nx.Graph = nx.Graph()
    rest.add_nodes_from(range(len(graph.tensors)))
    for label, places in _places(graph).items():
        # an index on three tensors is no bond of a tree: what it joins is divided position-wise
        if label != bond and label not in graph.output and len(places) == 2:
            rest.add_edge(*places)
    left = nx.node_connected_component(rest, near)
    if far in left:
        return None
    both = set(graph.inputs[near]) & set(graph.inputs[far]) - {bond}
    right = tuple(k for k in rest if k not in left)
    return Sides(tuple(sorted(left)), right, tuple(sorted(both)))


def _places(graph: TensorNetwork) -> dict[int, list[int]]:
    """The tensors at every label, by position."""
    places: dict[int, list[int]] = {label: [] for label in graph.sizes}
    for position, labels in enumerate(graph.inputs):
        for label in dict.fromkeys(labels):
            places[label].append(position)
    return places


def truncate(
    graph: TensorNetwork, cores: Mapping[str, np.ndarray], joint: Joint, sides: Sides, goal: Goal
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices (*shared, bond, kept) for the left core and (*shared, kept, bond) for the right.

    In a tree the error is the root of the sum of squares of the singular values that are left out,
    the least there is (Eckart & Young 1936, doi:10.1007/BF02288367).
    """
    left = _gram(graph, cores, joint, sides.left, sides.shared)
    right = _gram(graph, cores, joint, sides.right, sides.shared).conj()
    (d_left, v_left), (d_right, v_right) = np.linalg.eigh(left), np.linalg.eigh(right)
    middle = _rooted(d_left)[..., :, None] * (v_left.conj().swapaxes(-1, -2) @ v_right)
    u, s, vh = np.linalg.svd(middle * _rooted(d_right)[..., None, :])
    size = min(goal.size(*_rests(s)), s.shape[-1])
    root = np.sqrt(s[..., :size])
    onto_left = v_left @ (_inverse_rooted(d_left)[..., :, None] * u[..., :size])
    onto_right = vh[..., :size, :] * _inverse_rooted(d_right)[..., None, :]
    right_vectors = v_right.conj().swapaxes(-1, -2)
    return onto_left * root[..., None, :], root[..., :, None] * (onto_right @ right_vectors)


def _gram(
    graph: TensorNetwork,
    cores: Mapping[str, np.ndarray],
    joint: Joint,
    side: Sequence[int],
    shared: Sequence[int],
) -> np.ndarray:
    """Products of the side at every two positions of the bond, (*shared, conjugate, plain)."""
    (bond,) = joint.labels
    apart = 1 + max(graph.sizes)
    inside = {label for label, places in _places(graph).items() if set(places) <= set(side)}
    inside = (inside - set(graph.output)) | {bond}
    terms: list[object] = []
    for position in side:
        core, labels = cores[graph.tensors[position]], graph.inputs[position]
        terms += [core, labels]
        terms += [core.conj(), tuple(k + apart if k in inside else k for k in labels)]
    gram: np.ndarray = einsum(*terms, (*shared, bond + apart, bond))
    return gram


def _rooted(values: np.ndarray) -> np.ndarray:
    roots: np.ndarray = np.sqrt(np.maximum(values, 0.0))
    return roots


def _inverse_rooted(values: np.ndarray) -> np.ndarray:
    floor = _NOISE * values.max(axis=-1, keepdims=True)
    is_known = values > np.maximum(floor, 0.0)
    return np.where(is_known, 1 / np.sqrt(np.where(is_known, values, 1.0)), 0.0)


def _rests(s: np.ndarray) -> tuple[np.ndarray, float]:
    """For each size from 0 the norm of what is beyond it, over all shared positions; the norm."""
    squares = np.square(s).reshape(-1, s.shape[-1]).sum(axis=0)
    rests = np.sqrt(np.cumsum(squares[::-1])[::-1])
    return rests, float(rests[0])


def truncating_edits(
    graph: TensorNetwork, cores: Mapping[str, Tensor], joint: Joint, sides: Sides, goal: Goal
) -> dict[str, Edit]:
    """Both cores at a bond with the bond as small as the goal asks for."""
    (bond,) = joint.labels
    arrays = {name: core.numpy(force=True) for name, core in cores.items()}
    left, right = map(torch.from_numpy, truncate(graph, arrays, joint, sides, goal))
    # a gradient of one side is what the other side made of the cotangent: it goes the other's way
    matrices = [(left, right.mH), (right.mT, left.conj())]
    edits = {}
    for position, (value, gradient) in zip(_ends(graph, bond, sides), matrices, strict=True):
        name, labels = graph.tensors[position], graph.inputs[position]
        axis, own = labels.index(bond), [labels.index(label) for label in sides.shared]
        edits[name] = Edit(
            _along(value, axis, own)(cores[name]),
            _along(gradient, axis, own),
            _along(gradient.abs().square(), axis, own),
        )
    return edits


def _ends(graph: TensorNetwork, bond: int, sides: Sides) -> tuple[int, int]:
    """The tensors at the bond, that of the left side first."""
    first, second = (k for k, labels in enumerate(graph.inputs) if bond in labels)
    return (first, second) if first in sides.left else (second, first)


def _along(matrix: Tensor, axis: int, shared: Sequence[int]) -> Turn:
    """Multiplies an axis of a tensor by matrices (*shared, old, new), one for each position."""

    def turn(tensor: Tensor) -> Tensor:
        rest = [k for k in range(tensor.ndim) if k != axis and k not in shared]
        order = [*shared, *rest, axis]
        front = tensor.permute(order)
        flat = front.flatten(len(shared), -2) if rest else front.unsqueeze(-2)
        made = flat @ matrix.to(tensor)
        sizes = [tensor.shape[k] for k in (*shared, *rest)]
        made = made.reshape(*sizes, -1)
        back: Tensor = made.permute([order.index(k) for k in range(tensor.ndim)])
        return back

    return turn
