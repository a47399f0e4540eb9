"""What others compute of a cell's layer on the GPU, forward: the same network, without the bias.

To add a peer: a function of (cell, layer, input) that makes a run, and one line in PEERS. It raises
`Unsupported` where the peer has no such layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.layers import Cell, Run
from benchmarks.gpu.stacks import Stack
from benchmarks.layer_shapes import SHAPES

_TENSORLY = {"TTMatrix": "BlockTT", "Tucker": "Tucker", "CP": "CP"}


class Unsupported(Exception):
    """The peer is not installed, or has nothing like the cell."""


def einsum(cell: Cell | Stack, layer: Any, x: Tensor) -> Run:
    """torch.einsum over input and cores, in its own order."""
    equation, operands = _equation(cell, layer, x)
    shape = (x.shape[0], math.prod(SHAPES[cell.format][cell.shape][1]))
    return lambda: torch.einsum(equation, *operands).reshape(shape)


def cotengra(cell: Cell | Stack, layer: Any, x: Tensor) -> Run:
    """cotengra's expression on torch tensors, from its high-quality preset."""
    import cotengra as ctg

    equation, operands = _equation(cell, layer, x)
    shapes = [tuple(operand.shape) for operand in operands]
    contract = ctg.einsum_expression(equation, *shapes, optimize="auto-hq")
    return lambda: contract(*operands)


def cutensornet(cell: Cell | Stack, layer: Any, x: Tensor) -> Run:
    """NVIDIA's cuTensorNet, its path searched and its kernels tuned before, where installed."""
    if not find_spec("cuquantum"):
        raise Unsupported
    from cuquantum.tensornet import Network

    equation, operands = _equation(cell, layer, x)
    network = Network(equation, *operands)
    network.contract_path()
    network.autotune(iterations=3)
    return network.contract


def tensorly_torch(cell: Cell | Stack, layer: Any, x: Tensor) -> Run:
    """TensorLy-Torch's FactorizedLinear of the same format and rank, its own numbers."""
    if not isinstance(cell, Cell) or cell.format not in _TENSORLY or not find_spec("tltorch"):
        raise Unsupported
    import tltorch

    ins, outs = SHAPES[cell.format][cell.shape]
    ranks = {"TTMatrix": (1, *[cell.rank] * (len(ins) - 1), 1), "CP": cell.rank}
    theirs = tltorch.FactorizedLinear(
        tuple(ins),
        tuple(outs),
        bias=False,
        factorization=_TENSORLY[cell.format],
        rank=ranks.get(cell.format, (cell.rank,) * (len(ins) + len(outs))),
        implementation="factorized",
    ).to(x)
    return lambda: theirs(x)


def compiled(cell: Cell | Stack, layer: Any, x: Tensor) -> Run:
    """torch.compile of this network's own steps on aten."""
    run = torch.compile(cell.layer("torch").cores, fullgraph=True)
    return lambda: run(x)


PEERS: dict[str, Callable[[Cell | Stack, Any, Tensor], Run]] = {
    "torch.einsum": einsum,
    "cotengra": cotengra,
    "cuTensorNet": cutensornet,
    "TensorLy-Torch": tensorly_torch,
    "torch.compile": compiled,
}


def _equation(cell: Cell | Stack, layer: Any, x: Tensor) -> tuple[str, Sequence[Tensor]]:
    if not isinstance(cell, Cell):
        raise Unsupported  # more than one contraction
    text = layer._network.to_einsum()
    modes = len(SHAPES[cell.format][cell.shape][0])
    inputs, out = text.split("->")
    letter = next(c for c in "zyxwvutsrqponmlkjihgfedcbaZYXWVU" if c not in text)
    held = dict(layer.cores.named_parameters())
    operands = [held[leaf.name] for leaf in text.operands]
    rows = x.reshape(-1, *SHAPES[cell.format][cell.shape][0])
    return f"{letter}{out[:modes]},{inputs}->{letter}{out[modes:]}", [rows, *operands]
