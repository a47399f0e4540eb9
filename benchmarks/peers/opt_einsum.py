"""opt_einsum.contract_expression, on NumPy arrays and on torch tensors."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.base import (
    Base,
    Contestant,
    ForwardOnly,
    read_array,
    refuse_long_path,
    tensors_of,
    torch_contestant,
)
from benchmarks.problems import Arrays, Problem


def _expression(problem: Problem):  # type: ignore[no-untyped-def]
    import opt_einsum

    _, found = opt_einsum.contract_path(problem.equation, *problem.shapes, shapes=True)
    refuse_long_path(float(found.opt_cost), float(found.largest_intermediate))
    return opt_einsum.contract_expression(problem.equation, *problem.shapes)


class OnNumpy(ForwardOnly):
    packages = ("opt_einsum",)

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        given = [arrays.operands[o.name] for o in problem.operands]
        return Contestant(partial(_expression(problem), *given), read_array)


class OnTorch(Base):
    packages = ("opt_einsum",)

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        leaves = tensors_of(problem, arrays)
        given = [leaves[o.name] for o in problem.operands]
        return torch_contestant(problem, arrays, partial(_expression(problem), *given), leaves)


ON_NUMPY, ON_TORCH = OnNumpy(), OnTorch()
