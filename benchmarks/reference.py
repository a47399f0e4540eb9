"""The reference that is no contestant: a fixed search, its flops, and a double-precision oracle.

In: a Problem. Out: pairwise trees as SSA pairs, the flops of a forward pass or a training step
along one, and the result and gradients, computed with torch in float64 along the cheapest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import cotengra
import cotengrust
import numpy as np
import torch

from benchmarks.convolutions import conv_flops, convolve
from benchmarks.problems import Arrays, Problem

Pair = tuple[int, int]

OPTIMAL_UP_TO = 10  # tensors
GREEDY_TRIALS = 256
REFINED_UP_TO = 400  # tensors; refining takes a second or two at that
SEED = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The output, and gradients by operand name (none of a forward pass)."""

    value: np.ndarray
    gradients: Mapping[str, np.ndarray]


# ---------------------------------------------------------------------------- trees and flops


def intermediate_terms(terms: Sequence[str], output: str, pairs: Sequence[Pair]) -> dict[int, str]:
    """The letters of every operand and of the result of every pair, by SSA number."""
    found = dict(enumerate(terms))
    uses = Counter(letter for term in terms for letter in set(term)) + Counter(set(output))
    for number, (a, b) in enumerate(pairs, start=len(terms)):
        both = [*found[a], *found[b]]
        uses.subtract([*set(found[a]), *set(found[b])])
        found[number] = "".join(k for k in dict.fromkeys(both) if uses[k] > 0)
        uses.update(set(found[number]))
    return found


def product_flops(a: str, b: str, out: str, sizes: Mapping[str, int]) -> int:
    """Flops of one pairwise product: a multiplication each, and an addition where it sums."""
    letters = {*a, *b}
    return (1 if letters == set(out) else 2) * prod(sizes[letter] for letter in letters)


def tree_flops(problem: Problem, pairs: Sequence[Pair], part: str) -> int:
    """Flops of a forward pass along a tree, or of that and the products of its adjoint."""
    sizes, found = problem.sizes, intermediate_terms(problem.terms, problem.output, pairs)
    wanted = {k for k, o in enumerate(problem.operands) if o.name in problem.gradients}
    total = 0
    for number, (a, b) in enumerate(pairs, start=len(problem.terms)):
        terms = found[a], found[b], found[number]
        total += product_flops(*terms, sizes)
        if part == "forward":
            continue
        for own, other in ((a, b), (b, a)):
            if own in wanted:
                total += product_flops(found[number], found[other], found[own], sizes)
                wanted.add(number)
    return total


@lru_cache(maxsize=256)
def _trees(
    terms: tuple[str, ...], output: str, sizes: tuple[tuple[str, int], ...]
) -> tuple[tuple[Pair, ...], ...]:
    """Candidate trees of the fixed search: optimal, or greedy and refined; the same every time."""
    inputs, out, known = [list(t) for t in terms], list(output), dict(sizes)
    if len(terms) < 3:
        return (tuple([(0, 1)] if len(terms) == 2 else []),)
    floats = {k: float(n) for k, n in known.items()}
    if len(terms) <= OPTIMAL_UP_TO:
        path = cotengrust.optimize_optimal(inputs, out, floats, minimize="flops", use_ssa=True)
        return (as_pairs(path, len(terms)),)
    path, _ = cotengrust.optimize_random_greedy_track_flops(
        inputs, out, floats, ntrials=GREEDY_TRIALS, seed=SEED, use_ssa=True
    )
    found = [as_pairs(path, len(terms))]
    if len(terms) <= REFINED_UP_TO:
        tree = cotengra.ContractionTree.from_path(inputs, out, known, ssa_path=path)
        tree.subtree_reconfigure_(minimize="flops", seed=SEED)
        found.append(as_pairs(tree.get_ssa_path(), len(terms)))
    return tuple(found)


def as_pairs(path: Sequence[Sequence[int]], count: int) -> tuple[Pair, ...]:
    """An SSA path with steps of one tensor followed through and larger ones split."""
    alias: dict[int, int] = {}
    pairs: list[Pair] = []
    for number, step in enumerate(path, start=count):
        current, *others = (alias.get(member, member) for member in step)
        for other in others:
            pairs.append((current, other))
            current = count + len(pairs) - 1
        alias[number] = current
    left = set(range(count + len(pairs))) - {member for pair in pairs for member in pair}
    current, *others = sorted(left)
    for other in others:  # parts that are not connected
        pairs.append((current, other))
        current = count + len(pairs) - 1
    return tuple(pairs)


def best_tree(problem: Problem, part: str) -> tuple[int, tuple[Pair, ...]]:
    """The fewest flops that the fixed search finds for a part, and the tree."""
    trees = _trees(problem.terms, problem.output, tuple(sorted(problem.sizes.items())))
    return min((tree_flops(problem, pairs, part), pairs) for pairs in trees)


def least_flops(problem: Problem) -> int:
    """The fewest flops of the cell's part that are found."""
    if problem.windows:
        return conv_flops(problem.cell.case.fields["format"], problem.sizes, problem.cell.part)
    return best_tree(problem, problem.cell.part)[0]


# ---------------------------------------------------------------------------- oracle


def oracle(problem: Problem, arrays: Arrays) -> Outcome:
    """Result and gradients in double precision."""
    step = problem.cell.part == "step"
    leaves = {
        name: torch.tensor(array, dtype=torch.float64) for name, array in arrays.operands.items()
    }
    for name in problem.gradients if step else ():
        leaves[name].requires_grad_()
    if problem.windows:
        value = convolve(problem.cell.case.fields["format"], leaves["x"], leaves)
    else:
        _, pairs = best_tree(problem, "forward")
        value = contract(problem, [leaves[o.name] for o in problem.operands], pairs)
    if not step:
        return Outcome(value.numpy(), {})
    wanted = [leaves[name] for name in problem.gradients]
    cotangent = torch.tensor(arrays.cotangent, dtype=torch.float64)
    found = torch.autograd.grad(value, wanted, cotangent)
    gradients = {n: g.numpy() for n, g in zip(problem.gradients, found, strict=True)}
    return Outcome(value.detach().numpy(), gradients)


def contract(
    problem: Problem, tensors: Sequence[torch.Tensor], pairs: Sequence[Pair]
) -> torch.Tensor:
    """The network along a tree, two tensors at a time."""
    terms = intermediate_terms(problem.terms, problem.output, pairs)
    held = dict(enumerate(tensors))
    last = 0
    for last, (a, b) in enumerate(pairs, start=len(tensors)):
        held[last] = _pair((terms[a], terms[b]), terms[last], held.pop(a), held.pop(b))
    return _pair((terms[last],), problem.output, held[last])


def _pair(inputs: Sequence[str], output: str, *tensors: torch.Tensor) -> torch.Tensor:
    """torch.einsum of letters beyond the 52 that it knows."""
    numbers = {letter: k for k, letter in enumerate(dict.fromkeys("".join(inputs)))}
    given: list[object] = []
    for term, tensor in zip(inputs, tensors, strict=True):
        given += [tensor, [numbers[letter] for letter in term]]
    return torch.einsum(*given, [numbers[letter] for letter in output])
