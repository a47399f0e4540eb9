"""A program with loops run by several ranks: each does its slices, sums are added up between them.

Called with arrays and giving arrays back, as the generated function of a whole program does. Every
rank holds every argument and gets every result; what is outside of loops all of them carry out.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tncompiler.distributed.checkpoint import Checkpoint, checksum
from tncompiler.distributed.dealing import deal
from tncompiler.distributed.exchanges import gather, scatter
from tncompiler.distributed.looping import Arrays, Load, Looping, Nest, Sums, as_tensor
from tncompiler.distributed.options import Progress, Ranks
from tncompiler.distributed.owners import owners_of_results, owners_of_shard
from tncompiler.distributed.shards import Shard, held_in_parts, reads_in_parts
from tncompiler.distributed.stages import Common, Slices, stages_of
from tncompiler.distributed.sums import Total
from tncompiler.distributed.team import Team
from tncompiler.ir.errors import NotFinite
from tncompiler.ir.program import Program

_CHECK_S = 1.0  # how often a rank at work looks whether the others are alive


@dataclass(frozen=True)
class Work:
    """What all programs of a compiled network run with.

    ``load`` makes functions; ``is_numpy`` says whether these take NumPy's arrays; ``place`` is
    where the network was written.
    """

    team: Team
    ranks: Ranks
    load: Load
    is_numpy: bool
    place: str


class RankedRun:
    """A program, stage by stage.

    ``given``: arguments of which this rank is given its part; ``wanted``: outputs of which it may
    give its part. `parts` says how each value that is held in parts is cut.
    """

    def __init__(
        self,
        program: Program,
        work: Work,
        given: Mapping[str, Shard] | None = None,
        wanted: Collection[str] = (),
    ) -> None:
        self.work = work
        self.names = [argument.value.name for argument in program.arguments]
        self.outputs = program.outputs
        stages = stages_of(program)
        world = work.team.world
        self.parts = held_in_parts(stages, program.outputs, given or {}, wanted, world)
        digest = blake2b(program.to_text().encode(), digest_size=8).hexdigest()
        self.stages: list[_CommonRun | _SlicesRun] = [
            _CommonRun(stage.program, work)
            if isinstance(stage, Common)
            else _SlicesRun(stage, work, f"{digest}-{number}", self.parts)
            for number, stage in enumerate(stages)
        ]
        self.gathers = [
            [
                name
                for name in stage.reads
                if name in self.parts
                and not reads_in_parts(stages[number], name, self.parts[name], world)
            ]
            for number, stage in enumerate(self.stages)
        ]
        self.freed = self._freed()

    def _freed(self) -> list[list[str]]:
        """What nothing reads after each stage."""
        last = {name: k for k, stage in enumerate(self.stages) for name in stage.reads}
        last.update(dict.fromkeys(self.outputs, len(self.stages)))
        return [
            [name for name, when in last.items() if when == number]
            for number in range(len(self.stages))
        ]

    def __call__(self, *arrays: Any) -> tuple[Any, ...]:
        known = dict(zip(self.names, arrays, strict=True))
        with self.work.team.one_call():
            for stage, gathers, freed in zip(self.stages, self.gathers, self.freed, strict=True):
                whole = {name: self._gathered(name, known[name]) for name in gathers}
                known.update(stage({**known, **whole}))
                for name in freed:
                    del known[name]
        return tuple(known[name] for name in self.outputs)

    def _gathered(self, name: str, array: Any) -> Any:
        """The whole of a value that ranks hold in parts."""
        team = self.work.team
        owners = owners_of_shard(self.parts[name], team.world)
        (whole,) = gather(team, [as_tensor(array)], [owners])
        return whole.numpy() if self.work.is_numpy else whole


class _CommonRun:
    """Steps that every rank carries out."""

    def __init__(self, program: Program, work: Work) -> None:
        self.run = work.load(program, "common")
        self.reads = tuple(argument.value.name for argument in program.arguments)
        self.makes = program.outputs

    def __call__(self, known: Mapping[str, Any]) -> Arrays:
        results = self.run(*(known[name] for name in self.reads))
        return dict(zip(self.makes, results, strict=True))


class _SlicesRun:
    """A nest of loops: this rank's slices, then all ranks' sums."""

    def __init__(self, slices: Slices, work: Work, name: str, parts: Mapping[str, Shard]) -> None:
        self.slices, self.work, self.name, self.parts = slices, work, name, parts
        self.reads = slices.reads
        self.mine = deal(slices, work.team.world)[work.team.rank]
        rank = work.team.rank
        self.owners = owners_of_results(slices, work.team.world, parts)
        made = {name: own.made[rank] for name, own in self.owners.items()}
        self.nest = Nest(slices, work.load, parts, made, rank)

    def __call__(self, known: Mapping[str, Any]) -> Arrays:
        operands = {name: known[name] for name in self.reads}
        checkpoint = self._checkpoint(operands)
        restored = checkpoint and checkpoint.restore(self.mine, self._axes)
        following, sums = restored or (self.mine.start, None)
        watch = _Watch(self, checkpoint, following)
        left = range(following, self.mine.stop)
        looping = Looping(
            self.nest,
            left,
            _device(operands.values()),
            self.work.is_numpy,
            before=watch.begin,
            after=watch.end,
            sums=sums,
        )
        looping.run(operands)
        watch.close(looping.sums)
        return self._together(looping.sums[0])

    @property
    def _axes(self) -> list[list[int | None]]:
        """The axis along which each result of each loop is joined."""
        return [[result.joined for result in level.results] for level in self.slices.levels]

    def _together(self, sums: Sequence[Total]) -> Arrays:
        """The sums of all ranks."""
        dtypes = {r.value.name: getattr(torch, r.value.dtype) for r in self.slices.results}
        totals = {name: one.value() for name, one in zip(dtypes, sums, strict=True)}
        team, owners = self.work.team, [*self.owners.values()]
        whole = [name for name in totals if name not in self.parts and name not in self.owners]
        totals.update(zip(whole, team.add_up([totals[name] for name in whole]), strict=True))
        own = scatter(team, [totals[name] for name in self.owners], owners)
        totals.update(zip(self.owners, own, strict=True))
        found = {name: total.to(dtypes[name]) for name, total in totals.items()}
        gathered = gather(team, [found[name] for name in self.owners], owners)
        found.update(zip(self.owners, gathered, strict=True))
        return {k: v.numpy() for k, v in found.items()} if self.work.is_numpy else found

    def _checkpoint(self, operands: Mapping[str, Any]) -> Checkpoint | None:
        ranks, team = self.work.ranks, self.work.team
        if ranks.checkpoint is None or not self.mine:
            return None
        folder, own = Path(ranks.checkpoint), f"of{team.world}.safetensors"
        key = checksum({name: as_tensor(array) for name, array in operands.items()})
        made = Checkpoint(folder / f"{self.name}-rank{team.rank}{own}", key, ranks.every_s)
        known = sorted(folder.glob("*-rank*of*.safetensors"))
        made.check_others(path for path in known if not path.name.endswith(own))
        return made


class _Watch:
    """What happens beside the slices: checkpoints, progress, a look at the numbers and at ranks."""

    def __init__(self, run: _SlicesRun, checkpoint: Checkpoint | None, following: int) -> None:
        self.run, self.work, self.checkpoint = run, run.work, checkpoint
        self.following = following
        self.report = _Report(run.work, run.mine, following)
        self.checked = time.monotonic()

    def begin(self, number: int, sums: Sums) -> None:
        if self.checkpoint is not None and self.checkpoint.is_due():
            self.checkpoint.write(self.run.mine, number, sums)
        if time.monotonic() - self.checked > _CHECK_S:
            self.work.team.check()
            self.checked = time.monotonic()

    def end(self, number: int, results: Sequence[Tensor]) -> None:
        for part in results:
            self._look(part, number)
        self.report.tell(number + 1)

    def close(self, sums: Sums) -> None:
        self.report.close()
        if self.checkpoint is not None:
            self.checkpoint.write(self.run.mine, self.run.mine.stop, sums)

    def _look(self, part: Tensor, number: int) -> None:
        """Say, or refuse, what is not a number."""
        asked = self.work.ranks.not_finite
        if asked == "ignore" or not (part.is_floating_point() or part.is_complex()):
            return
        # reading a sum is several times as fast; infinities of both signs make one NaN as well
        if not (bool(torch.isnan(part.sum())) and bool(torch.isnan(part).any())):
            return
        error = NotFinite(
            f"{self.run.slices.name(number)} has NaN in it",
            where=self.work.place,
            fix="look at what the tensors hold there; Ranks(not_finite='ignore') lets it pass",
        )
        if asked == "raise":
            raise error
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)


class _Report:
    """Progress of one rank, as a bar or for a function."""

    def __init__(self, work: Work, mine: range, following: int) -> None:
        asked = work.ranks.progress
        self.mine, self.first, self.start = mine, following, time.monotonic()
        self.call = asked if callable(asked) else None
        self.bar: Any = None
        if asked is True and work.team.rank == 0:
            from tqdm import tqdm

            done = following - mine.start
            self.bar = tqdm(desc="slices of rank 0", total=len(mine), initial=done)

    def tell(self, following: int) -> None:
        if self.bar is not None:
            self.bar.update()
        if self.call is not None:
            elapsed = time.monotonic() - self.start
            done, left = following - self.first, self.mine.stop - following
            remaining = elapsed / done * left if done else None
            count = following - self.mine.start
            self.call(Progress(count, len(self.mine), elapsed, remaining))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _device(arrays: Iterable[Any]) -> torch.device:
    """Where the arrays are."""
    return next((a.device for a in arrays if isinstance(a, Tensor)), torch.device("cpu"))
