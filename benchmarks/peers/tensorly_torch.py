"""TensorLy-Torch's FactorizedLinear, factorized and reconstructed: TT-matrix, Tucker and CP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Contestant, LayerPeer, silence
from benchmarks.peers.layers import core_names, layer_contestant, train_core, train_core_back
from benchmarks.problems import Arrays, Problem

_NAMES = {"TTMatrix": "BlockTT", "Tucker": "Tucker", "CP": "CP"}


class TensorlyTorch(LayerPeer):
    packages = ("tensorly", "tltorch")
    formats = tuple(_NAMES)

    def __init__(self, implementation: str) -> None:
        self.implementation = implementation

    def supports(self, problem: Problem) -> str | None:
        fields = problem.cell.case.fields
        refused = super().supports(problem)
        if refused is None and len(fields["ins"]) != len(fields["outs"]):
            return "needs as many input as output modes"
        return refused

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        with silence():
            weight = _weight(problem, arrays)
            layer = _layer(problem, weight, self.implementation)
        kind = problem.cell.case.fields["format"]
        names = core_names(problem, "G")
        modes = len(problem.cell.case.fields["outs"])

        def theirs(name: str, core: Tensor) -> list[Tensor]:
            if kind == "TTMatrix":
                return [train_core(names.index(name), len(names), core)]
            return [_turned(core, modes) if name == "C" else core]

        def ours(name: str, found: Sequence[Tensor]) -> Tensor:
            if kind == "TTMatrix":
                return train_core_back(names.index(name), len(names), found[0])
            return _turned(found[0], modes) if name == "C" else found[0]

        flat = (arrays.operands["x"].shape[0], -1)
        parameters = _parameters(problem, layer.weight)
        return layer_contestant(problem, arrays, layer, parameters, theirs, ours, flat)


def _turned(core: Tensor, modes: int) -> Tensor:
    """Input axes and output axes of a Tucker core exchanged: theirs has outputs first."""
    count = core.ndim
    return core.permute(*range(modes, count), *range(modes))


def _weight(problem: Problem, arrays: Arrays) -> Any:
    """An empty weight of theirs, outputs first."""
    from tltorch import TensorizedTensor

    fields = problem.cell.case.fields
    kind = fields["format"]
    held = arrays.operands
    if kind == "TTMatrix":
        names = core_names(problem, "G")
        rank: Any = (1, *(held[name].shape[-1] for name in names[:-1]), 1)
    elif kind == "Tucker":
        rank = (*held["C"].shape[len(fields["ins"]) :], *held["C"].shape[: len(fields["ins"])])
    else:
        rank = held["U1"].shape[-1]
    shape = (tuple(fields["outs"]), tuple(fields["ins"]))
    dtype = getattr(torch, problem.cell.dtype)
    return TensorizedTensor.new(shape, rank=rank, factorization=_NAMES[kind], dtype=dtype)


def _layer(problem: Problem, weight: Any, implementation: str) -> Any:
    from tltorch import FactorizedLinear

    fields = problem.cell.case.fields
    if problem.cell.case.fields["format"] == "CP":
        with torch.no_grad():
            weight.weights.fill_(1.0)
    return FactorizedLinear(
        tuple(fields["ins"]),
        tuple(fields["outs"]),
        bias=False,
        factorization=weight,
        rank=weight.rank,
        implementation=implementation,
        dtype=getattr(torch, problem.cell.dtype),
    )


def _parameters(problem: Problem, weight: Any) -> dict[str, list[Any]]:
    """Their parameter for each core of ours."""
    if problem.cell.case.fields["format"] == "TTMatrix":
        names, core = core_names(problem, "G"), {}
    else:
        names = [*core_names(problem, "V"), *core_names(problem, "U")]
        core = {"C": [weight.core]} if "C" in {o.name for o in problem.parameters} else {}
    pairs = zip(names, list(weight.factors), strict=True)
    return {**core, **{name: [factor] for name, factor in pairs}}


FACTORIZED = TensorlyTorch("factorized")
RECONSTRUCTED = TensorlyTorch("reconstructed")
