"""Trees one exchange away: ((a b) c) becomes ((a c) b) or ((b c) a).

SSA pairs in and out; the lower number of a pair comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tncompiler.planning.order import Pair


def neighbours(pairs: Sequence[Pair], count: int) -> Iterator[tuple[Pair, ...]]:
    """Every tree that differs in one exchange, of a tree over so many tensors."""
    children = dict(enumerate(pairs, count))
    root = count + len(pairs) - 1
    for top, (left, right) in children.items():
        for below, other in ((left, right), (right, left)):
            if below >= count:
                a, b = children[below]
                yield _renumbered({**children, below: (a, other), top: (below, b)}, root, count)
                yield _renumbered({**children, below: (b, other), top: (below, a)}, root, count)


def shape_of(pairs: Sequence[Pair], count: int) -> frozenset[frozenset[int]]:
    """The sets of tensors that are joined: equal for orders that differ in sequence only."""
    members = [frozenset([k]) for k in range(count)]
    for a, b in pairs:
        members.append(members[a] | members[b])
    return frozenset(members)


def _renumbered(children: dict[int, Pair], root: int, count: int) -> tuple[Pair, ...]:
    """The pairs of a tree, each after those that it reads."""
    number = {k: k for k in range(count)}
    pairs: list[Pair] = []
    stack = [root]
    while stack:
        node = stack[-1]
        missing = [k for k in children[node] if k not in number]
        if missing:
            stack += missing
            continue
        stack.pop()
        a, b = (number[k] for k in children[node])
        pairs.append((min(a, b), max(a, b)))
        number[node] = count + len(pairs) - 1
    return tuple(pairs)
