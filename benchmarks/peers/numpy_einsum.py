"""numpy.einsum along a path that numpy.einsum_path found ahead.

Its search is told that memory does not matter: at its own limit (the largest operand) it contracts
layers in one step, which takes minutes.
"""

from __future__ import annotations

from functools import partial
from math import prod
from string import ascii_letters

import numpy as np

from benchmarks.peers.base import (
    ASCII_LETTERS,
    MAX_ELEMENTS,
    Contestant,
    ForwardOnly,
    read_array,
    refuse_long_path,
)
from benchmarks.problems import Arrays, Problem
from benchmarks.reference import as_pairs, intermediate_terms, tree_flops

_OPTIMAL_UP_TO = 6  # operands; NumPy's optimal search is exponential


class NumpyEinsum(ForwardOnly):
    """The better of NumPy's two searches, where it can be had."""

    def supports(self, problem: Problem) -> str | None:
        if len(problem.sizes) > ASCII_LETTERS:
            return f"knows {ASCII_LETTERS} indices only"
        return super().supports(problem)

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        given = [arrays.operands[o.name] for o in problem.operands]
        equation = in_ascii(problem)
        search = "optimal" if len(given) <= _OPTIMAL_UP_TO else "greedy"
        path, _ = np.einsum_path(equation, *given, optimize=(search, MAX_ELEMENTS))
        _check_path(problem, path)
        return Contestant(partial(np.einsum, equation, *given, optimize=path), read_array)


def in_ascii(problem: Problem) -> str:
    """The equation in letters that NumPy and torch know."""
    table = str.maketrans(dict(zip(problem.sizes, ascii_letters, strict=False)))
    return problem.equation.translate(table)


def _check_path(problem: Problem, path: object) -> None:
    """Raises Declined for a path that is too long."""
    left, steps = list(range(len(problem.operands))), []
    for number, step in enumerate(list(path)[1:], start=len(left)):  # type: ignore[call-overload]
        steps.append([left[position] for position in step])
        left = [k for position, k in enumerate(left) if position not in step] + [number]
    pairs = as_pairs(steps, len(problem.operands))
    terms = intermediate_terms(problem.terms, problem.output, pairs)
    largest = max(prod(problem.shape(term)) for term in terms.values())
    refuse_long_path(tree_flops(problem, pairs, "forward"), largest)


PEER = NumpyEinsum()
