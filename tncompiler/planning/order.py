"""Contraction orders: how cotengra and users spell networks and paths, and how we do.

An order is pairs in SSA numbering, until one tensor is left: tensor n + k is the result of pair k.
Sizes 0 count as 1, since cotengra refuses them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from tncompiler.ir.errors import PlanError
from tncompiler.planning.options import PlanOptions

Pair = tuple[int, int]
Label = TypeVar("Label", bound=Hashable)


def spelled(
    terms: Iterable[Collection[int]], output: Collection[int], sizes: Mapping[int, int]
) -> tuple[list[list[str]], list[str], dict[str, float]]:
    """Terms, output and sizes as cotengra wants them, in one order in every process."""
    kept = frozenset(output)
    spelling: list[list[str]] = [[letter(k) for k in sorted(term)] for term in terms]
    known: dict[str, float] = {letter(k): float(max(sizes[k], 1)) for k in sorted(sizes)}
    return spelling, [letter(k) for k in sorted(kept)], known


class _Letter(str):
    """A character that hashes to its code: cotengra's sets then have one order in every process."""

    __slots__ = ()

    def __hash__(self) -> int:
        return ord(self)


def letter(label: int) -> _Letter:
    """One character per label, as cotengra's Rust half wants; surrogates are left out."""
    code = 0xC0 + label
    return _Letter(chr(code if code < 0xD800 else code + 0x800))


def asked_order(
    search: Callable[..., Any],
    terms: Sequence[Collection[int]],
    output: Collection[int],
    sizes: Mapping[int, int],
) -> tuple[Pair, ...]:
    """The order of a user's function with opt_einsum's signature."""
    inputs, out, known = spelled(terms, output, sizes)
    sets, integers = [set(term) for term in inputs], {name: int(n) for name, n in known.items()}
    path = PlanOptions(path=search(sets, set(out), integers, None)).path or ()
    return split_path(linear_to_ssa(path, len(inputs)), len(inputs))


def order_as_written(count: int) -> tuple[Pair, ...]:
    """The first two tensors, then one after the other."""
    return ((0, 1), *((k, count + k - 2) for k in range(2, count)))[: max(count - 1, 0)]


def check_order(pairs: Sequence[Pair], count: int) -> tuple[Pair, ...]:
    """The pairs themselves. Raises: PlanError unless they contract `count` tensors to one."""
    left = set(range(count))
    for made, (a, b) in enumerate(pairs, count):
        if a == b or not {a, b} <= left:
            raise PlanError(
                f"pair {made - count}, ({a}, {b}), takes a tensor that is not there",
                fix="a pair names two tensors that nothing has taken; result k is tensor n + k",
            )
        left -= {a, b}
        left.add(made)
    if len(left) != min(count, 1):
        raise PlanError(
            f"{len(pairs)} pairs leave {len(left)} of {count} tensors",
            fix="contract until one is left",
        )
    return tuple(pairs)


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
    left = deque(k for k in range(count + len(pairs)) if k not in used)
    while len(left) > 1:
        pairs.append((left.popleft(), left.popleft()))
        left.append(count + len(pairs) - 1)
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
    inputs: Sequence[tuple[Label, ...]], output: Iterable[Label], pairs: Sequence[Pair]
) -> dict[int, tuple[Label, ...]]:
    """The labels of every operand and of every pair's result, by SSA number."""
    terms: dict[int, tuple[Label, ...]] = dict(enumerate(inputs))
    uses = Counter(label for term in inputs for label in set(term))
    uses.update(set(output))
    for made, (a, b) in enumerate(pairs, start=len(inputs)):
        uses.subtract([*set(terms[a]), *set(terms[b])])
        terms[made] = tuple(k for k in dict.fromkeys((*terms[a], *terms[b])) if uses[k] > 0)
        uses.update(terms[made])
    return terms
