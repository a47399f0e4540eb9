"""The dense torch layer, or convolution, that a format replaces: the same map of x, from a weight
made ahead.

It is a reference, not a competitor: it has other parameters, and more of them.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.convolutions import dense_kernel
from benchmarks.peers.base import Base, Contestant, tensors_of, torch_contestant
from benchmarks.peers.reconstruct import weight_equation
from benchmarks.problems import Arrays, Problem


class Dense(Base):
    packages = ("opt_einsum",)
    reference = True
    convolves = True

    def supports(self, problem: Problem) -> str | None:
        has_weight = problem.cell.case.kind in ("layer", "conv")
        return None if has_weight else "only a layer has a weight"

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        if problem.windows:
            return _convolution(problem, arrays)
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


def _convolution(problem: Problem, arrays: Arrays) -> Contestant:
    leaves = tensors_of(problem, arrays)
    x, cores = leaves["x"], {o.name: leaves[o.name].detach() for o in problem.parameters}
    kernel = dense_kernel(problem.cell.case.fields["format"], cores).contiguous()
    kernel.requires_grad_(problem.cell.part == "step")
    forward = partial(torch.nn.functional.conv2d, x, kernel, padding=kernel.shape[-1] // 2)
    held = {"x": x, "kernel": kernel}

    def read() -> dict[str, torch.Tensor]:
        return {} if x.grad is None else {"x": x.grad}

    return torch_contestant(problem, arrays, forward, held, read)


PEER = Dense()
