"""Reconstruct-then-dense: contract the cores to the weight, then one matrix product."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from benchmarks.peers.base import (
    Base,
    Contestant,
    ForwardOnly,
    read_array,
    tensors_of,
    torch_contestant,
)
from benchmarks.problems import Arrays, Problem


def weight_equation(problem: Problem) -> str:
    """The cores' equation for a weight of axes (ins, outs)."""
    (x,) = problem.inputs
    terms = ",".join(operand.term for operand in problem.parameters)
    return f"{terms}->{x.term[1:]}{problem.output[1:]}"


def forward_of(problem: Problem) -> Callable[..., Any]:
    """A function of x and the cores, on arrays or tensors."""
    import opt_einsum

    shapes = [problem.shape(operand.term) for operand in problem.parameters]
    weight_of = opt_einsum.contract_expression(weight_equation(problem), *shapes)
    out_shape = problem.shape(problem.output)
    batch, columns = out_shape[0], prod(out_shape[1:])

    def forward(x: Any, *cores: Any) -> Any:
        flat = x.reshape(batch, -1)
        weight = weight_of(*cores).reshape(flat.shape[1], columns)
        return (flat @ weight).reshape(out_shape)

    return forward


def _not_a_layer(problem: Problem) -> str | None:
    return None if problem.cell.case.kind == "layer" else "only a layer has a weight"


class OnNumpy(ForwardOnly):
    packages = ("opt_einsum",)

    def supports(self, problem: Problem) -> str | None:
        return _not_a_layer(problem) or super().supports(problem)

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        forward = forward_of(problem)
        given = [arrays.operands[o.name] for o in (*problem.inputs, *problem.parameters)]
        return Contestant(lambda: forward(*given), read_array)


class OnTorch(Base):
    packages = ("opt_einsum",)

    def supports(self, problem: Problem) -> str | None:
        return _not_a_layer(problem)

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        forward = forward_of(problem)
        leaves = tensors_of(problem, arrays)
        given = [leaves[o.name] for o in (*problem.inputs, *problem.parameters)]
        return torch_contestant(problem, arrays, lambda: forward(*given), leaves)


ON_NUMPY, ON_TORCH = OnNumpy(), OnTorch()
