"""Contraction trees of one shape, for layers: stream the data through, or build the weight first.

Functions with opt_einsum's signature (inputs, output, sizes, memory_limit) → linear path, to be
given as PlanOptions.search. The first operand is the data, the others are cores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import cotengrust

from tncompiler.planning.order import ssa_to_linear

Term = frozenset[str]
_EXACT_UP_TO = 12  # cores; the best order of more is found greedily


def stream_first(
    inputs: Sequence[Collection[str]],
    output: Collection[str],
    sizes: Mapping[str, int],
    memory_limit: object = None,
) -> tuple[tuple[int, ...], ...]:
    """The data absorbs one core after the other, in the order with the fewest flops."""
    terms = [frozenset(term) for term in inputs]
    out = frozenset(output)
    order = (
        _best(terms, out, sizes) if len(terms) <= _EXACT_UP_TO + 1 else _greedy(terms, out, sizes)
    )
    pairs, last = [], 0
    for number, core in enumerate(order):
        pairs.append((last, core))
        last = len(terms) + number
    return ssa_to_linear(pairs, len(terms))


def reconstruct_first(
    inputs: Sequence[Collection[str]],
    output: Collection[str],
    sizes: Mapping[str, int],
    memory_limit: object = None,
) -> tuple[tuple[int, ...], ...]:
    """The cores become the weight, in the order with the fewest flops; the data meets it last."""
    count = len(inputs)
    if count < 3:
        return ((0, 1),) if count == 2 else ()
    outside = {*inputs[0], *output}
    cores = [list(term) for term in inputs[1:]]
    carried = [k for k in dict.fromkeys(k for core in cores for k in core) if k in outside]
    known = {k: float(max(n, 1)) for k, n in sizes.items()}
    ssa = (
        cotengrust.optimize_optimal(cores, carried, known, minimize="flops", use_ssa=True)
        if (len(cores) <= _EXACT_UP_TO)
        else cotengrust.optimize_greedy(cores, carried, known, seed=0, use_ssa=True)
    )
    names = {k: k + 1 for k in range(len(cores))}
    pairs: list[tuple[int, int]] = []
    for made, step in enumerate(ssa, start=len(cores)):
        current = names[step[0]]
        for member in step[1:]:
            pairs.append((current, names[member]))
            current = count + len(pairs) - 1
        names[made] = current
    used = {k for pair in pairs for k in pair}
    left = [k for k in range(1, count + len(pairs)) if k not in used]
    for member in left[1:]:
        pairs.append((left[0], member))
        left[0] = count + len(pairs) - 1
    pairs.append((0, left[0]))
    return ssa_to_linear(pairs, count)


def _joined(
    state: Term, core: int, rest: Collection[int], terms: Sequence[Term], out: Term
) -> Term:
    """The indices of the data after it absorbed a core, those nobody needs any more summed."""
    needed = out.union(*(terms[k] for k in rest))
    return (state | terms[core]) & needed


def _best(terms: Sequence[Term], out: Term, sizes: Mapping[str, int]) -> list[int]:
    """The cheapest order, by sets of cores already absorbed."""
    cores = range(1, len(terms))
    best: dict[frozenset[int], tuple[int, list[int], Term]] = {frozenset(): (0, [], terms[0])}
    for _ in cores:
        following: dict[frozenset[int], tuple[int, list[int], Term]] = {}
        for done, (cost, order, state) in best.items():
            for core in cores:
                if core not in done:
                    rest = [k for k in cores if k != core and k not in done]
                    new = cost + prod(sizes[k] for k in state | terms[core])
                    key = done | {core}
                    if key not in following or new < following[key][0]:
                        following[key] = (
                            new,
                            [*order, core],
                            _joined(state, core, rest, terms, out),
                        )
        best = following
    ((_, order, _),) = best.values()
    return order


def _greedy(terms: Sequence[Term], out: Term, sizes: Mapping[str, int]) -> list[int]:
    """Always the core that makes the next result smallest."""
    left, state, order = list(range(1, len(terms))), terms[0], []
    while left:
        options = [
            (prod(sizes[k] for k in _joined(state, c, [k for k in left if k != c], terms, out)), c)
            for c in left
        ]
        _, core = min(options)
        left.remove(core)
        state = _joined(state, core, left, terms, out)
        order.append(core)
    return order


@dataclass(frozen=True, slots=True)
class InOrder:
    """A search whose tree takes the operands in a given order, what is left out before all others.

    ``order``: positions of operands. ``count``: how many operands the network has that is meant;
    others of the same program are contracted as they are written.
    """

    order: tuple[int, ...]
    count: int

    def __call__(
        self,
        inputs: Sequence[Collection[str]],
        output: Collection[str],
        sizes: Mapping[str, int],
        memory_limit: object = None,
    ) -> tuple[tuple[int, ...], ...]:
        """The linear path."""
        chosen = self.order if len(inputs) == self.count else ()
        whole = [*(k for k in range(len(inputs)) if k not in chosen), *chosen]
        pairs, last = [], whole[0]
        for number, operand in enumerate(whole[1:]):
            pairs.append((last, operand))
            last = len(inputs) + number
        return ssa_to_linear(pairs, len(inputs))
