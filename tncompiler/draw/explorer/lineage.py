"""Which nodes of contraction trees the values of a program stand for.

A node is known by the tensors under it: every tensor has a key by its name, a node the sum of those
under it. So a value is known whatever the program calls it and in whatever order its axes lie, and
a value that equal parts of a network share stands for all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from tncompiler.draw.tree import Node
from tncompiler.ir.network import TensorNetwork
from tncompiler.ir.program import (
    Cast,
    Concat,
    Contract,
    Convolve,
    Loop,
    Merge,
    Permute,
    Pick,
    Program,
    Scan,
    Split,
    Step,
)
from tncompiler.ir.stacking import Member

Keys = dict[int, int]  # by tree
Place = tuple[int, int]  # tree and node
_SAME = (Permute, Split, Merge, Cast)  # one operand, whose elements they keep


@dataclass
class Lineage:
    """``keys`` of values by name; ``stacks`` those of the members of a value that holds several;
    ``places`` the nodes that have a key."""

    keys: dict[str, Keys] = field(default_factory=dict)
    stacks: dict[str, list[Keys]] = field(default_factory=dict)
    places: dict[tuple[int, int], list[Place]] = field(default_factory=lambda: defaultdict(list))

    @staticmethod
    def of(trees: Iterable[tuple[TensorNetwork, Sequence[Node]]]) -> Lineage:
        """What is known before any step: the tensors of every tree."""
        lineage = Lineage()
        for which, (network, nodes) in enumerate(trees):
            names, made = network.tensors, list[int]()
            for k, node in enumerate(nodes):
                if node.tensor is None:
                    made.append(sum(made[part] for part in node.parts))
                else:
                    made.append(_key(names[node.tensor]))
                    lineage.keys.setdefault(names[node.tensor], {})[which] = made[-1]
                lineage.places[which, made[-1]].append((which, k))
        return lineage

    def of_value(self, name: str) -> list[Place]:
        """The nodes that a value stands for."""
        return [
            place for key in self.keys.get(name, {}).items() for place in self.places.get(key, ())
        ]

    def made(self, step: Step) -> list[Place]:
        """The nodes that a step is the first to make."""
        old = [place for name in step.operands for place in self.of_value(name)]
        return [place for place in self.of_value(step.out.name) if place not in old]

    def follow(self, program: Program) -> None:
        """Learn what the values of a program stand for; those of loops' bodies too."""
        for step in program.steps:
            if isinstance(step.op, Loop | Scan):
                self._enter(step, step.op)
            elif isinstance(step.op, Pick):
                loop = program.producers.get(step.operands[0])
                if loop is not None and isinstance(loop.op, Loop | Scan):
                    self._learn(step.out.name, self._known(loop.op.body.outputs[step.op.position]))
            elif isinstance(step.op, Member) and step.operands[0] in self.stacks:
                self._learn(step.out.name, self.stacks[step.operands[0]][step.op.position])
            else:
                self._learn(step.out.name, self._joined(program, step))
                self._stack(step)

    def _enter(self, step: Step, loop: Loop | Scan) -> None:
        for name, argument in zip(step.operands, loop.body.arguments, strict=True):
            self._learn(argument.value.name, self._known(name))
        self.follow(loop.body)

    def _stack(self, step: Step) -> None:
        """The members of what puts values beside each other, and of what is made of such values."""
        stacks = [self.stacks.get(name) for name in step.operands]
        counts = {len(stack) for stack in stacks if stack is not None}
        if isinstance(step.op, Concat):
            self.stacks[step.out.name] = [dict(self._known(name)) for name in step.operands]
        elif isinstance(step.op, (Contract, *_SAME)) and len(counts) == 1:
            whole = [self._known(name) for name in step.operands]
            members = (
                [
                    known if stack is None else stack[k]
                    for known, stack in zip(whole, stacks, strict=True)
                ]
                for k in range(*counts)
            )
            self.stacks[step.out.name] = [_sum(member) for member in members]

    def _known(self, name: str) -> Mapping[int, int]:
        return self.keys.get(name, {})

    def _learn(self, name: str, keys: Mapping[int, int]) -> None:
        self.keys[name] = {**keys, **self.keys.get(name, {})}  # a tensor's own keys stay

    def _joined(self, program: Program, step: Step) -> Keys:
        """The keys of a contraction's result; a factor without axes changes none."""
        if not isinstance(step.op, (Contract, Convolve, *_SAME)):
            return {}
        operands = [name for name in step.operands if program.values[name].shape]
        known = [self._known(name) for name in operands]
        if not known or len(known) > 2:
            return {}
        return _sum(known)


def _sum(known: Sequence[Mapping[int, int]]) -> Keys:
    """The keys of what is contracted of values with these."""
    common = set(known[0]).intersection(*known)
    return {tree: sum(keys[tree] for keys in known) for tree in common}


def _key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
