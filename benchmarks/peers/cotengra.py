"""cotengra.array_contract_expression, on NumPy arrays and on torch tensors."""

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

_SEARCHED_UP_TO = 400  # tensors; beyond, its high-quality preset takes minutes


def _expression(problem: Problem):  # type: ignore[no-untyped-def]
    import cotengra

    preset = "auto-hq" if len(problem.operands) <= _SEARCHED_UP_TO else "auto"
    inputs = [tuple(term) for term in problem.terms]
    output, sizes = tuple(problem.output), dict(problem.sizes)
    tree = cotengra.array_contract_tree(inputs, output, sizes, optimize=preset)
    refuse_long_path(2.0 * tree.contraction_cost(), float(tree.max_size()))
    path = tree.get_path()
    return cotengra.array_contract_expression(inputs, output, sizes, optimize=path)


class OnNumpy(ForwardOnly):
    packages = ("cotengra",)

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        given = [arrays.operands[o.name] for o in problem.operands]
        return Contestant(partial(_expression(problem), *given), read_array)


class OnTorch(Base):
    packages = ("cotengra",)

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        leaves = tensors_of(problem, arrays)
        given = [leaves[o.name] for o in problem.operands]
        return torch_contestant(problem, arrays, partial(_expression(problem), *given), leaves)


ON_NUMPY, ON_TORCH = OnNumpy(), OnTorch()
