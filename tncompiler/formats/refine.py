"""Cores fitted to moments that their bases only approximate: least squares in terms of outputs."""

from __future__ import annotations

import numpy as np

from tncompiler.dsl import constant, contract
from tncompiler.formats.als import Effort, als
from tncompiler.formats.least_squares import Cores
from tncompiler.formats.moments import FLOOR
from tncompiler.formats.whitening import Whitening
from tncompiler.ir.errors import FormatError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.program import fresh_name

_LARGEST = 1024  # inputs up to which the whole matrix of moments takes part in each sweep
_EFFORT = Effort(sweeps=40, gain=1e-3, patience=2, operations=1e10)


def refined(network: Expr, cores: Cores, weight: np.ndarray, white: Whitening) -> Cores:
    """Cores of the same shapes with less error in terms of outputs.

    Alternating least squares on the root of the moments times the network; where the network is
    not linear in its cores, or the inputs are many, they stay as they are.
    """
    if white.exact or np.prod(white.sizes) > _LARGEST:
        return cores
    names = [leaf.name for leaf in network.leaves]
    ins = network.indices[: len(white.sizes)]
    outs = network.indices[len(white.sizes) :]
    row = Index(
        fresh_name("x", [index.name for index in network.indices]), int(np.prod(white.sizes))
    )
    root = white.root(FLOOR)
    factor = constant(fresh_name("root", names), row, *ins, value=root.reshape(-1, *white.sizes))
    target = (root @ weight.reshape(len(root), -1)).reshape(-1, *weight.shape[len(ins) :])
    try:
        return als(contract(factor, network, out=(row, *outs)), target, [cores], _EFFORT)[0]
    except FormatError:
        return cores
