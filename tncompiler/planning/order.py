"""The contraction order of one network, from cotengra: exact for small networks.

In: labels of each tensor, output labels, integer sizes. Out: pairs in SSA numbering, until one
tensor is left. Sizes 0 count as 1, since cotengra refuses them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import cotengrust

from tncompiler.ir.errors import PlanError
from tncompiler.ir.program import Labels
from tncompiler.planning.options import PlanOptions

Pair = tuple[int, int]

_OPTIMAL_UP_TO = 9  # tensors; beyond, exact search can take seconds
_RANDOM_UP_TO = 2000  # tensors; beyond, one greedy run
_OBJECTIVES = {"time": "combo-32", "flops": "flops", "memory": "write"}


def contraction_order(
    inputs: Sequence[Labels],
    output: Labels,
    sizes: Mapping[int, int],
    options: PlanOptions,
) -> tuple[Pair, ...]:
    """Which two tensors to contract next, as SSA pairs; tensor n + k is the result of pair k."""
    if len(inputs) < 3:
        return ((0, 1),) if len(inputs) == 2 else ()
    terms: list[list[str]] = [[letter(label) for label in labels] for labels in inputs]
    known: dict[str, float] = {letter(k): float(max(size, 1)) for k, size in sizes.items()}
    out: list[str] = [letter(label) for label in dict.fromkeys(output)]
    return split_path(_search(terms, out, known, options), len(inputs))


class _Letter(str):
    """A character that hashes to its code: cotengra's sets then have one order in every process."""

    __slots__ = ()

    def __hash__(self) -> int:
        return ord(self)


def letter(label: int) -> _Letter:
    """One character per label, as cotengra's Rust half wants; surrogates are left out."""
    code = 0xC0 + label
    return _Letter(chr(code if code < 0xD800 else code + 0x800))


def _search(
    terms: list[list[str]], out: list[str], sizes: dict[str, float], options: PlanOptions
) -> Sequence[Sequence[int]]:
    search = options.search
    if callable(search):
        return _asked(search, terms, out, sizes)
    if search == "left-to-right":
        return [(0, 1), *((k, len(terms) + k - 2) for k in range(2, len(terms)))]
    if search == "auto":
        search = "optimal" if len(terms) <= _OPTIMAL_UP_TO else "greedy"
    if search == "optimal":
        objective = _OBJECTIVES[options.minimize]
        return cotengrust.optimize_optimal(terms, out, sizes, minimize=objective, use_ssa=True)
    if search == "hyper":
        from tncompiler.planning.hyper import hyper_order  # cotengra takes a second to import

        return hyper_order(
            terms,
            out,
            {name: int(size) for name, size in sizes.items()},
            minimize=_OBJECTIVES[options.minimize],
            trials=options.trials,
            seed=options.seed,
            progress=options.progress,
        )
    if len(terms) > _RANDOM_UP_TO:
        return cotengrust.optimize_greedy(terms, out, sizes, seed=options.seed, use_ssa=True)
    path, _ = cotengrust.optimize_random_greedy_track_flops(
        terms, out, sizes, ntrials=options.trials, seed=options.seed, use_ssa=True
    )
    return path


def _asked(
    search: Callable[..., Any], terms: list[list[str]], out: list[str], sizes: dict[str, float]
) -> Sequence[Sequence[int]]:
    """The path of a user's function with opt_einsum's signature."""
    sets, integers = [set(term) for term in terms], {name: int(n) for name, n in sizes.items()}
    path = PlanOptions(path=search(sets, set(out), integers, None)).path or ()
    return linear_to_ssa(path, len(terms))


def linear_to_ssa(path: Sequence[Sequence[int]], count: int) -> list[tuple[int, ...]]:
    """A linear path (positions in what is left; results go last) in SSA numbers.

    Raises: PlanError if a step names a position that is not there.
    """
    left, steps = list(range(count)), []
    for number, step in enumerate(path):
        if any(position >= len(left) for position in step):
            raise PlanError(
                f"step {number} of the path, {tuple(step)}, names a position among {len(left)} "
                f"tensors that are left of {count}",
                fix="positions count from 0; a result goes to the end of the list",
            )
        steps.append(tuple(left[position] for position in step))
        for position in sorted(step, reverse=True):
            left.pop(position)
        left.append(count + number)
    return steps


def order_of_path(
    path: Sequence[Sequence[int]], count: int, scalars: Collection[int]
) -> tuple[Pair, ...]:
    """A linear path over `count` operands as SSA pairs over those that are no scalars."""
    alias: dict[int, int | None] = dict.fromkeys(scalars)
    kept = [k for k in range(count) if k not in scalars]
    alias.update({old: new for new, old in enumerate(kept)})
    pairs: list[Pair] = []
    for old, (left, right) in enumerate(split_path(linear_to_ssa(path, count), count), start=count):
        a, b = alias[left], alias[right]
        if a is not None and b is not None:
            pairs.append((a, b))
            alias[old] = len(kept) + len(pairs) - 1
        else:
            alias[old] = b if a is None else a
    return tuple(pairs)


def split_path(path: Sequence[Sequence[int]], count: int) -> tuple[Pair, ...]:
    """The path with single-tensor steps followed through and larger ones split into pairs."""
    alias: dict[int, int] = {}
    pairs: list[Pair] = []
    following = count
    for step in path:
        members = [alias.get(member, member) for member in step]
        current = members[0]
        for member in members[1:]:
            pairs.append((current, member))
            current = count + len(pairs) - 1
        alias[following] = current
        following += 1
    return _joined(pairs, count)


def _joined(pairs: list[Pair], count: int) -> tuple[Pair, ...]:
    """Disconnected remainders are multiplied at the end."""
    used = {member for pair in pairs for member in pair}
    left = [k for k in range(count + len(pairs)) if k not in used]
    while len(left) > 1:
        pairs.append((left[0], left[1]))
        left = [*left[2:], count + len(pairs) - 1]
    return tuple(pairs)


def ssa_to_linear(pairs: Sequence[Pair], count: int) -> tuple[tuple[int, ...], ...]:
    """SSA pairs as a linear path: positions in the list of what is left, results at its end."""
    left, path = list(range(count)), []  # always ascending
    for number, pair in enumerate(pairs):
        positions = tuple(sorted(bisect_left(left, member) for member in pair))
        for position in reversed(positions):
            left.pop(position)
        left.append(count + number)
        path.append(positions)
    return tuple(path)


def intermediate_labels(
    inputs: Sequence[tuple[Hashable, ...]], output: Iterable[Hashable], pairs: Sequence[Pair]
) -> dict[int, tuple[Hashable, ...]]:
    """The labels of every operand and of every pair's result, by SSA number."""
    terms: dict[int, tuple[Hashable, ...]] = dict(enumerate(inputs))
    uses = Counter(label for term in inputs for label in set(term))
    uses.update(set(output))
    for made, (a, b) in enumerate(pairs, start=len(inputs)):
        uses.subtract([*set(terms[a]), *set(terms[b])])
        terms[made] = tuple(k for k in dict.fromkeys((*terms[a], *terms[b])) if uses[k] > 0)
        uses.update(terms[made])
    return terms
