"""What the oracle makes of reads and sums at positions, or of the largest: one-hot matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tncompiler.ir.gather_nodes import Gather, Scatter
from tncompiler.ir.index import Index


def gather(node: Gather, source: Tensor, ids: Tensor) -> Tensor:
    """The source contracted with 1 at each position that is read."""
    letters = _numbers(node)
    chosen = _one_hot(ids, source.shape[node.axis], source.dtype)
    table = [-1 if k == node.axis else letters[i] for k, i in enumerate(node.source.indices)]
    at = [letters[i] for i in node.ids.indices]
    return _contract(source, table, chosen, [*at, -1], [letters[i] for i in node.indices])


def scatter(node: Scatter, source: Tensor, ids: Tensor, size: int) -> Tensor:
    """The source contracted with 1 at each position that it is added to."""
    letters = _numbers(node.source, node.ids)
    chosen = _one_hot(ids, size, source.dtype)
    values = [letters[i] for i in node.source.indices]
    at = [letters[i] for i in node.ids.indices]
    out = [-1 if k == node.axis else letters[i] for k, i in enumerate(node.indices)]
    if node.function == "sum":
        return _contract(source, values, chosen, [*at, -1], out)
    summed = [letters[node.ids.indices[k]] for k in node.summed]
    comes = _contract(torch.ones_like(source), values, chosen, [*at, -1], [*out, *summed])
    there = _contract(source, values, torch.ones_like(chosen), [*at, -1], [*out, *summed])
    kept, length = there.shape[: len(out)], math.prod(there.shape[len(out) :])
    there = torch.where(comes > 0, there, -torch.inf).reshape(*kept, length)
    top = torch.cat([there, there.new_full((*kept, 1), -torch.inf)], -1).amax(-1)
    return torch.where(comes.reshape(*kept, length).sum(-1) > 0, top, 0.0)


def _numbers(*nodes: object) -> dict[Index, int]:
    indices = dict.fromkeys(i for node in nodes for i in node.indices)  # type: ignore[attr-defined]
    return {index: number for number, index in enumerate(indices)}


def _one_hot(ids: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return (ids[..., None] == torch.arange(size)).to(dtype)


def _contract(
    source: Tensor, wires: list[int], chosen: Tensor, at: list[int], out: list[int]
) -> Tensor:
    """torch.einsum, -1 being the index of the positions."""
    last = max([*wires, *at, *out, 0]) + 1
    named = [[last if k == -1 else k for k in labels] for labels in (wires, at, out)]
    return torch.einsum(source, named[0], chosen, named[1], named[2])
