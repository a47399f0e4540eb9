"""Values that elementwise functions join, which change the order of their axes together.

One of them alone would gain nothing: what it no longer copies, its neighbours copy instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from tncompiler.ir.program import Labels, Map, Step

# by value: for each of its axes, that of the first value of the group which it runs along with
Group = dict[str, Labels]


def joined_groups(steps: Mapping[str, Step], movable: Collection[str]) -> Iterator[Group]:
    """The groups of two values or more; ``movable`` are those that may have any order."""
    links = _links(steps, set(movable))
    seen: set[str] = set()
    for name in links:
        if name not in seen:
            group = _reached(name, links, len(steps[name].out.shape))
            seen.update(group)
            yield group


def _links(steps: Mapping[str, Step], movable: set[str]) -> dict[str, list[tuple[str, Labels]]]:
    """By value, others with the axis of the value for each axis of theirs."""
    links: dict[str, list[tuple[str, Labels]]] = {}
    for name, step in steps.items():
        if not isinstance(step.op, Map) or name not in movable:
            continue
        for operand, wires in zip(step.operands, step.op.inputs, strict=True):
            if operand in movable and len(wires) == len(step.out.shape):
                back = tuple(wires.index(axis) for axis in range(len(wires)))
                links.setdefault(name, []).append((operand, wires))
                links.setdefault(operand, []).append((name, back))
    return links


def _reached(first: str, links: dict[str, list[tuple[str, Labels]]], rank: int) -> Group:
    group: Group = {first: tuple(range(rank))}
    pending = [first]
    while pending:
        name = pending.pop()
        for other, axes in links[name]:
            if other not in group:
                group[other] = tuple([group[name][axis] for axis in axes])
                pending.append(other)
    return group


def own_order(places: Labels, wanted: Labels) -> Labels:
    """The axes of a member in the order of the group's axes that is wanted."""
    return tuple([places.index(axis) for axis in wanted])
