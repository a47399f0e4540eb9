"""torch.einsum, which takes its path from opt_einsum where that is installed."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.peers.base import (
    ASCII_LETTERS,
    Base,
    Contestant,
    refuse_long_path,
    tensors_of,
    torch_contestant,
)
from benchmarks.peers.numpy_einsum import in_ascii
from benchmarks.problems import Arrays, Problem


class TorchEinsum(Base):
    def supports(self, problem: Problem) -> str | None:
        if len(problem.sizes) > ASCII_LETTERS:
            return f"knows {ASCII_LETTERS} indices only"
        return None

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        check_path(problem)
        leaves = tensors_of(problem, arrays)
        given = [leaves[o.name] for o in problem.operands]
        forward = partial(torch.einsum, in_ascii(problem), *given)
        return torch_contestant(problem, arrays, forward, leaves)


def check_path(problem: Problem) -> None:
    """Raises Declined where the path that opt_einsum would give torch is too long."""
    if torch.backends.opt_einsum.is_available():
        import opt_einsum

        _, found = opt_einsum.contract_path(problem.equation, *problem.shapes, shapes=True)
        refuse_long_path(float(found.opt_cost), float(found.largest_intermediate))


PEER = TorchEinsum()
