"""A table read by tokens: each core is indexed by the digits of its own modes, then contracted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tncompiler.dsl import contract
from tncompiler.ir.errors import EquationError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.interchange.networks import only_network
from tncompiler.ir.program import fresh_name
from tncompiler.nn.given import input_leaf

Slice = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class TokenReader:
    """``network``: the slices of all tensors in, (token, *output modes) out.

    ``slices``: for each input by name, the core it is read from, the axes that are indexed, and by
    which digits.
    """

    network: Expr
    token: Index
    slices: dict[str, Slice]


def token_reader(table: Expr, inputs: int) -> TokenReader | None:
    """How to read a table whose first `inputs` indices are digits of a token.

    None if the table is more than one contraction of cores, or has a mode that is input and output
    at once: it can then only be read as a whole.
    """
    try:
        network = only_network(table)
    except EquationError:
        return None
    digits, rest = network.output[:inputs], network.output[inputs:]
    names = {leaf.name for leaf in table.leaves}
    plain = len(set(network.output)) == len(network.output) and names.issuperset(network.tensors)
    if not plain or any(len(set(labels)) < len(labels) for labels in network.inputs):
        return None
    open_names = [index.name for index in table.indices]
    token = Index(fresh_name("token", open_names))
    known = {label: table.indices[axis] for axis, label in enumerate(network.output)}
    for label, size in network.sizes.items():
        taken = [token.name, *open_names, *(index.name for index in known.values())]
        known.setdefault(label, Index(fresh_name(network.index_name(label), taken), size))
    terms, slices = [], {}
    for number, (name, labels) in enumerate(zip(network.tensors, network.inputs, strict=True)):
        read = [axis for axis, label in enumerate(labels) if label in digits]
        kept = [known[label] for label in labels if label not in digits]
        terms.append(input_leaf(f"t{number}", [token, *kept] if read else kept))
        which = tuple(digits.index(labels[axis]) for axis in read)
        slices[terms[-1].name] = (name, tuple(read), which)
    rows = contract(*terms, out=(token, *(known[label] for label in rest)))
    return TokenReader(rows, token, slices)


def digits_of(tokens: Tensor, radix: Sequence[int]) -> list[Tensor]:
    """The digits of tokens in a mixed radix, the first one slowest."""
    digits = []
    for size in reversed(radix):
        digits.append(tokens % size)
        tokens = tokens // size
    return digits[::-1]


def read_slices(core: Tensor, axes: Sequence[int], digits: Sequence[Tensor]) -> Tensor:
    """The core read at digits along some axes, (tokens, *rest); itself if there are none."""
    if not axes:
        return core
    rest = [axis for axis in range(core.ndim) if axis not in axes]
    moved = core.permute(*axes, *rest)
    position = torch.zeros_like(digits[0])
    for axis, digit in zip(axes, digits, strict=True):
        position = position * core.shape[axis] + digit
    return moved.flatten(0, len(axes) - 1).index_select(0, position)
