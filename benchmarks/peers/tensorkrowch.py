"""TensorKrowch's MPSLayer: a matrix product state with a label in the middle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Base, Contestant, torch_contestant
from benchmarks.problems import Arrays, Problem


class TensorKrowch(Base):
    packages = ("tensorkrowch",)

    def supports(self, problem: Problem) -> str | None:
        return None if problem.cell.case.kind == "mps" else "has the MPS classifier only"

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        import tensorkrowch

        names = [operand.name for operand in problem.parameters]
        cores = [torch.tensor(arrays.operands[name]) for name in names]
        layer = tensorkrowch.models.MPSLayer(tensors=cores, out_position=names.index("L"))
        x = torch.stack([torch.tensor(arrays.operands[o.name]) for o in problem.inputs], dim=1)
        wanted = problem.cell.part == "step"
        with torch.set_grad_enabled(wanted):
            layer.trace(x[:1])
        nodes = dict(zip(names, layer.mats_env, strict=True))
        forward = _without_gradients(layer, x, wanted)

        def read() -> dict[str, Tensor]:
            first, last = names[0], names[-1]
            found = {name: node.grad for name, node in nodes.items()}
            return {**found, first: found[first][0], last: found[last][..., 0]}

        leaves = dict(layer.named_parameters()) if wanted else {}
        return torch_contestant(problem, arrays, forward, leaves, read)


def _without_gradients(layer: Any, x: Tensor, wanted: bool) -> Any:
    """The call; a forward pass records nothing."""

    def forward() -> Tensor:
        with torch.set_grad_enabled(wanted):
            result: Tensor = layer(x)
        return result

    return forward


PEER = TensorKrowch()
