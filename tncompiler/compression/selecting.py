"""A bond made smaller where it has no singular values: in rings, hyperedges and shared cores.

Channels are chosen, and then all cores are fitted to the weight that the network had.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tncompiler.compression.edits import Edit, Turn
from tncompiler.compression.truncating import Goal
from tncompiler.formats.als import Effort, als
from tncompiler.formats.conditioning import term_gram
from tncompiler.formats.descent import descend
from tncompiler.formats.joints import Joint
from tncompiler.formats.least_squares import Cores
from tncompiler.ir.errors import FormatError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.network import TensorNetwork

_EFFORT = Effort(sweeps=60, gain=1e-4, operations=5e9)


def choose_channels(
    graph: TensorNetwork, cores: Mapping[str, np.ndarray], joint: Joint, goal: Goal
) -> np.ndarray:
    """The positions of a bond that are kept, ascending.

    Where the weight is a sum of one term for each position, terms are taken one by one, each time
    the one that what is left resembles most (orthogonal matching pursuit, Pati et al. 1993,
    doi:10.1109/ACSSC.1993.342465). Where cores are shared, those with the largest slices.
    """
    if len(joint.labels) > 1:
        return _largest(cores, joint, goal)
    arrays = [cores[name] for name in graph.tensors]
    gram = term_gram(graph.inputs, graph.output, arrays, joint.labels[0]).T
    onto = gram.sum(axis=1)  # the weight is the sum of all terms
    total = float(onto.sum().real)
    scale = np.sqrt(np.maximum(np.diag(gram).real, np.finfo(float).tiny))
    chosen: list[int] = []
    rests, share = [max(total, 0.0) ** 0.5], np.zeros(0)
    while len(chosen) < joint.size:
        left = np.abs(onto - gram[:, chosen] @ share) / scale
        left[chosen] = -1.0
        chosen.append(int(np.argmax(left)))
        share = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], onto[chosen], rcond=None)[0]
        explained = float((onto[chosen].conj() @ share).real)
        rests.append(max(total - explained, 0.0) ** 0.5)
        if goal.to == len(chosen):
            break
    return np.sort(chosen[: goal.size(np.array(rests), rests[0])])


def _largest(cores: Mapping[str, np.ndarray], joint: Joint, goal: Goal) -> np.ndarray:
    sizes = np.ones(joint.size)
    for name, axis in joint.ends:
        sizes *= np.linalg.norm(np.moveaxis(cores[name], axis, 0).reshape(joint.size, -1), axis=1)
    if goal.to is None:
        raise FormatError(
            f"bond {joint.name} is on a core at several sites, where a tolerance says nothing",
            fix="give to=, the size that it is to have",
        )
    return np.sort(np.argsort(-sizes, kind="stable")[: goal.to])


def fit(network: Expr, weight: np.ndarray, start: Cores) -> Cores:
    """The cores of a network fitted to a weight, from a start."""
    try:
        return als(network, weight, [start], _EFFORT)[0]
    except FormatError:  # not linear in every core
        return descend(network, weight, [start])[0]


def selecting_edits(cores: Mapping[str, Tensor], joint: Joint, kept: np.ndarray) -> dict[str, Edit]:
    """All cores at a bond with some of its positions."""
    places = torch.from_numpy(kept)
    edits = {}
    for name, axes in joint.axes.items():
        turn = _picked(axes, places)
        edits[name] = Edit(turn(cores[name]), turn, turn)
    return edits


def fitted_edits(cores: Mapping[str, np.ndarray]) -> dict[str, Edit]:
    """Cores with other numbers; what optimizers keep stays."""
    return {name: Edit(torch.from_numpy(core), _same, _same) for name, core in cores.items()}


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _picked(axes: tuple[int, ...], places: Tensor) -> Turn:
    def pick(tensor: Tensor) -> Tensor:
        for axis in axes:
            tensor = tensor.index_select(axis, places.to(tensor.device))
        return tensor

    return pick
