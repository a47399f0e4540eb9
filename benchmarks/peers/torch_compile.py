"""torch.compile of torch.einsum."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.peers.base import Contestant, tensors_of, torch_contestant
from benchmarks.peers.numpy_einsum import in_ascii
from benchmarks.peers.torch_einsum import TorchEinsum, check_path
from benchmarks.problems import Arrays, Problem


class TorchCompile(TorchEinsum):
    slow_start = True

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        check_path(problem)
        torch.compiler.reset()
        equation = in_ascii(problem)

        def einsum(*operands: Tensor) -> Tensor:
            return torch.einsum(equation, *operands)

        compiled = torch.compile(einsum, dynamic=False)
        leaves = tensors_of(problem, arrays)
        forward = partial(compiled, *(leaves[o.name] for o in problem.operands))
        return torch_contestant(problem, arrays, forward, leaves)


PEER = TorchCompile()
