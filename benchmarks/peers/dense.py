"""The dense torch layer that a format replaces: the same map of x, from a weight made ahead.

It is a reference, not a competitor: it has other parameters, and more of them.
"""

from __future__ import annotations

import torch

from benchmarks.peers.base import Base, Contestant, torch_contestant
from benchmarks.peers.reconstruct import weight_equation
from benchmarks.problems import Arrays, Problem


class Dense(Base):
    packages = ("opt_einsum",)
    reference = True

    def supports(self, problem: Problem) -> str | None:
        return None if problem.cell.case.kind == "layer" else "only a layer has a weight"

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        import opt_einsum

        cores = [arrays.operands[o.name] for o in problem.parameters]
        x = torch.tensor(arrays.operands["x"]).reshape(problem.sizes[problem.output[0]], -1)
        weight = opt_einsum.contract(weight_equation(problem), *cores).reshape(x.shape[1], -1)
        rows, columns = weight.shape
        layer = torch.nn.Linear(rows, columns, bias=False, dtype=x.dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.T))
        x.requires_grad_("x" in problem.gradients)
        leaves = {"x": x, "weight": layer.weight}

        def read() -> dict[str, torch.Tensor]:
            shape = arrays.operands["x"].shape
            return {} if x.grad is None else {"x": x.grad.reshape(shape)}

        return torch_contestant(problem, arrays, lambda: layer(x), leaves, read)


PEER = Dense()
