"""Programs in which everything is cut along one index, in a block for every rank.

In: a compilation, an index of its parameters. Out: forward and backward programs, which values a
rank has its part of, and what ranks add up between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tncompiler.compiler import Compilation
from tncompiler.distributed.cuts import stage_us
from tncompiler.distributed.link import Link
from tncompiler.distributed.owners import owners_of_results
from tncompiler.distributed.planning import RankPlanner, RankPrograms
from tncompiler.distributed.rank_plan import RankPlan
from tncompiler.distributed.shards import Shard, held_in_parts, reads_in_parts
from tncompiler.distributed.stages import Slices, Stage, stages_of
from tncompiler.distributed.traffic import Traffic
from tncompiler.ir.dtypes import ITEM_BYTES
from tncompiler.ir.program import Program
from tncompiler.planning.memory import nbytes
from tncompiler.planning.plan import ContractionPlan
from tncompiler.planning.slicing import Cut
from tncompiler.planning.timing import program_us


class ShardPlanner(RankPlanner):
    """One call's plan. ``plans``: the orders to choose of, if they are known already."""

    def __init__(self, index: str, *given: Any, plans: Sequence[ContractionPlan] = ()) -> None:
        super().__init__(*given)
        self.index = index
        self._plans = tuple(plans)

    @property
    def plans(self) -> tuple[ContractionPlan, ...]:
        """The orders that are best by time, by arithmetic and by memory: one that is slower on one
        rank may send less."""
        self._plans = self._plans or tuple(plan for _, plan in self.orders(self.setting.limit))
        return self._plans

    def planned(self) -> RankPlan:
        """The orders that are fastest with the index cut wherever a parameter has it, what ranks
        send included."""
        return min(map(self._cut, self.plans), key=lambda plan: self.ranks_us(self.made(plan)))

    def ranks_us(self, programs: RankPrograms) -> float:
        """Predicted microseconds of a call on all ranks."""
        world, cluster = self.setting.world, self.setting.cluster
        stages = [stage for program in programs.passes for stage in stages_of(program)]
        link = cluster.link(world)
        sent = sum(message.time_us(link, world) for message in self.messages(programs))
        return sum(stage_us(stage, world, cluster) for stage in stages) + sent

    def _cut(self, plan: ContractionPlan) -> RankPlan:
        """A plan's orders with the index cut."""
        if not self.wrt:
            program = self._twin(plan).scheduled(self.call.dtypes, {})[0]
            return RankPlan(plan, self._cuts(program, ()), (), True, self.setting.backend)
        programs = self._partition(plan, saves=True)
        cuts = self._cuts(programs.forward, ()), self._cuts(programs.backward, self.wrt)
        return RankPlan(plan, *cuts, True, self.setting.backend)

    def _cuts(self, program: Program, gradients: Sequence[str]) -> tuple[Cut, ...]:
        """The index wherever a parameter, or the gradient of one, has it."""
        made = dict(zip(gradients, program.outputs, strict=False))
        cuts = []
        for name, part in parts_of(self.compilation, self.index, self.setting.world).items():
            named = [n for n in (name, made.get(name, "")) if n in program.values]
            cuts += [Cut(n, part.axis, part.width) for n in named]
        return tuple(dict.fromkeys(cuts))

    def report(self) -> ShardReport:
        """How a call, or a training step, would be; planned on this rank."""
        programs, world = self.made(self.planned()), self.setting.world
        return ShardReport(
            index=self.index,
            world=world,
            parameters=tuple(parts_of(self.compilation, self.index, world)),
            messages=self.messages(programs),
            held_bytes=sum(self.parameter_bytes(world).values()),
            whole_bytes=sum(self.parameter_bytes(1).values()),
            alone_us=self._alone_us(programs.plan),
            ranks_us=self.ranks_us(programs),
        )

    def messages(self, programs: RankPrograms) -> tuple[Message, ...]:
        """What ranks make whole between them."""
        world = self.setting.world
        held = Held.of(programs, parts_of(self.compilation, self.index, world), world, self.wrt)
        parts = (held.forward, "forward"), (held.backward, "backward")
        passes = zip(programs.passes, parts, strict=False)
        return tuple(m for program, part in passes for m in _messages(program, *part, world))

    def _alone_us(self, plan: RankPlan) -> float:
        """The programs as one process runs them, without loops."""
        rates = self.setting.cluster.rates
        if not self.wrt:
            program = self._twin(plan.plan).scheduled(self.call.dtypes, {})[0]
            return program_us(program, {}, rates)
        whole = self._partition(plan.plan, saves=True)
        return program_us(whole.forward, {}, rates) + program_us(whole.backward, {}, rates)

    def parameter_bytes(self, world: int) -> dict[str, int]:
        """Bytes of each parameter on the rank that has most of it."""
        dtypes = dict(
            zip((k.name for k in self.compilation.ordered), self.call.dtypes[1:], strict=True)
        )
        parts = parts_of(self.compilation, self.index, world)
        found = {}
        for leaf in self.compilation.params:
            count = ITEM_BYTES[dtypes[leaf.name]]
            for axis, size in enumerate(self.compilation.parameter_shape(leaf)):
                part = parts.get(leaf.name)
                count *= part.width if part is not None and part.axis == axis else size
            found[leaf.name] = count
        return found


def parts_of(compilation: Compilation, index: str, world: int) -> dict[str, Shard]:
    """The parameters that have an index, with its axis and how wide a rank's block of it is."""
    found: dict[str, Shard] = {}
    for leaf in compilation.params:
        shape = compilation.parameter_shape(leaf)
        for axis, own in enumerate(leaf.indices):
            if own.name == index:
                found.setdefault(leaf.name, Shard(axis, shape[axis], -(-shape[axis] // world)))
    return found


@dataclass(frozen=True, slots=True)
class Held:
    """What a rank has its part of, in the forward and in the backward program, and in between."""

    forward: Mapping[str, Shard]
    backward: Mapping[str, Shard]
    saved: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()

    @staticmethod
    def of(
        programs: RankPrograms, given: Mapping[str, Shard], world: int, wrt: Sequence[str]
    ) -> Held:
        """``given``: the parameters that come in parts; ``wrt``: the leaves with gradients."""
        stages, outputs = stages_of(programs.forward), programs.forward.outputs
        if programs.training is None:
            return Held(held_in_parts(stages, outputs, given, (), world), {})
        backward = programs.training.backward
        later = stages_of(backward)
        results = outputs[: len(outputs) - len(programs.training.saved)]
        inner = [name for name in programs.training.saved if name not in results]
        possible = held_in_parts(stages, outputs, given, inner, world)
        saved = tuple(
            name
            for name in inner
            if name in possible
            and all(reads_in_parts(stage, name, possible[name], world) for stage in later)
        )
        forward = held_in_parts(stages, outputs, given, saved, world)
        made = dict(zip(wrt, backward.outputs, strict=True))
        wanted = tuple(made[name] for name in given if name in made)
        known = {**given, **{name: forward[name] for name in saved}}
        parts = held_in_parts(later, backward.outputs, known, wanted, world)
        return Held(forward, parts, saved, wanted)


@dataclass(frozen=True, slots=True)
class Message:
    """What ranks make whole between them: a value, its bytes, in which pass, and how.

    ``is_sum``: whether ranks have partial sums, which are added up; else each has its part.
    """

    name: str
    size_bytes: int
    part: str
    is_sum: bool = True

    @property
    def how(self) -> str:
        return "added up" if self.is_sum else "gathered"

    def time_us(self, link: Link, world: int) -> float:
        """Predicted microseconds."""
        return self.traffic(world).time_us(link)

    def traffic(self, world: int) -> Traffic:
        """What ranks send each other for it."""
        if self.is_sum:
            return Traffic(world, summed=self.size_bytes)
        return Traffic(world, gathered=self.size_bytes * (world - 1) / world)


@dataclass(frozen=True, slots=True)
class ShardReport:
    """How a module is cut along an index.

    ``alone_us``, ``ranks_us``: predicted microseconds of a training step on one rank and on all;
    ``held_bytes``, ``whole_bytes``: parameters of a rank, and all of them.
    """

    index: str
    world: int
    parameters: tuple[str, ...]
    messages: tuple[Message, ...]
    held_bytes: int
    whole_bytes: int
    alone_us: float
    ranks_us: float

    @property
    def sent_bytes(self) -> int:
        """Bytes of all that is made whole between ranks."""
        return sum(message.size_bytes for message in self.messages)

    def __str__(self) -> str:
        lines = [
            f"index {self.index} over {self.world} ranks: {', '.join(self.parameters)} in parts",
            f"parameters: {self.held_bytes:,} of {self.whole_bytes:,} B on a rank",
            f"predicted: {self.ranks_us:,.0f} us, and {self.alone_us:,.0f} us on one rank",
        ]
        lines += [f"{m.how}, {m.part}: {m.name}, {m.size_bytes:,} B" for m in self.messages]
        return "\n".join(lines)


def _messages(program: Program, held: Mapping[str, Shard], part: str, world: int) -> list[Message]:
    found = []
    for stage in stages_of(program):
        whole = [
            name
            for name in _reads(stage)
            if name in held and not reads_in_parts(stage, name, held[name], world)
        ]
        sums = dict.fromkeys(whole, False)
        if isinstance(stage, Slices):
            owned = owners_of_results(stage, world, held)
            made = [result.value.name for result in stage.results]
            sums.update((name, name not in owned) for name in made if name not in held)
        for name, is_sum in sums.items():
            size = nbytes(program.values[name]).evaluate({})
            found.append(Message(name, size, part, is_sum))
    return found


def _reads(stage: Stage) -> tuple[str, ...]:
    if isinstance(stage, Slices):
        return stage.reads
    return tuple(argument.value.name for argument in stage.program.arguments)
