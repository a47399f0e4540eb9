"""Which indices to cut so that ranks have slices: the fastest by predicted time.

In: a scheduled program whose sizes are numbers, how many ranks, a limit of memory. Out: cuts. Each
further cut is tried on the indices that carry the most work; it stays if ranks are faster with it,
what they send each other included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tncompiler.distributed.dealing import deal, work_before
from tncompiler.distributed.link import Cluster
from tncompiler.distributed.owners import owners_of_results
from tncompiler.distributed.stages import Level, Result, Slices, Stage, stages_of
from tncompiler.distributed.traffic import traffic_of
from tncompiler.ir.passes.slicing import Axis, linked_axes
from tncompiler.ir.passes.uses import part_uses
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.memory import nbytes, peak_bytes, within
from tncompiler.planning.rates import Rates
from tncompiler.planning.slicing import Cut, apply_cuts, fit_program
from tncompiler.planning.timing import copy_us, far_bytes, program_us, step_us

_TRIED = 6  # indices that are looked at for one cut
_MOST_CUTS = 12
_GAIN = 0.98  # a cut stays where it brings the time below so much of what it was


@dataclass(frozen=True, slots=True)
class Setting:
    """Where slices are to run.

    ``slices``: how many there should be; ``asked``: whether the user wants so many, fast or not.
    ``cluster``: with the rates of the ``backend`` that is to run them.
    """

    world: int
    slices: int
    asked: bool
    limit: int
    cluster: Cluster
    backend: str = "torch"

    def on(self, backend: str) -> Setting:
        """The same for slices that another library runs."""
        return replace(self, cluster=self.cluster.on(backend), backend=backend)


def choose_cuts(program: Program, setting: Setting, start: tuple[Cut, ...] = ()) -> tuple[Cut, ...]:
    """Cuts for a program without loops; none where nothing can be cut, or it would not pay.

    ``start``: cuts that bring it into the limit of memory, if any must.
    """
    fitted = fit_program(program, {}, setting.limit, setting.cluster.rates, start=start)
    cuts = fitted.cuts
    best = _Look.at(program, cuts, setting)
    axes = _axes(program, setting) if best.count < setting.slices else []
    for _ in range(_MOST_CUTS):
        if best.count >= setting.slices:
            break
        tried = [
            (_Look.at(program, more, setting), more)
            for more in _tried(cuts, axes, -(-setting.slices // best.count))
        ]
        better = [one for one in tried if one[0].improves(best, setting)]
        if not better:
            break
        best, cuts = min(better)
    return cuts


@dataclass(frozen=True, slots=True, order=True)
class _Look:
    """What a program with some cuts comes to. ``count``: the most slices that a stage has."""

    time_us: float
    peak: int
    count: int

    @staticmethod
    def at(program: Program, cuts: tuple[Cut, ...], setting: Setting) -> _Look:
        looped = apply_cuts(program, cuts)
        counts = [nest.count for nest in slices_of(looped)]
        time = ranks_us(looped, setting.world, setting.cluster)
        return _Look(time, peak_bytes(looped, {}), max(counts, default=1) or 1)

    def improves(self, before: _Look, setting: Setting) -> bool:
        """Whether a further cut is worth it; it must not take it out of the limit of memory."""
        if self.peak > max(setting.limit, before.peak):
            return False
        if setting.asked and self.count > before.count:
            return True
        return self.time_us < _GAIN * before.time_us


def _axes(program: Program, setting: Setting) -> list[tuple[Axis, int]]:
    """The indices that may be cut with their sizes, those that carry the most work first."""
    parted, _ = part_uses(program)
    links = linked_axes(parted)
    work: dict[Axis, float] = {}
    for step in parted.steps:
        time = step_us(parted, step, {}, setting.cluster.rates)
        names = (*step.operands, step.out.name)
        for axis in {links[n, k] for n in names for k in range(len(parted.values[n].shape))}:
            work[axis] = work.get(axis, 0.0) + time
    found = [(axis, evaluate(parted.values[axis[0]].shape[axis[1]], {})) for axis in work]
    return sorted((one for one in found if one[1] > 1), key=lambda one: (-work[one[0]], one[0]))


def _tried(
    cuts: tuple[Cut, ...], axes: list[tuple[Axis, int]], blocks: int
) -> Iterator[tuple[Cut, ...]]:
    """The cuts with one more, into so many blocks as are still missing, or a few more."""
    done = {(cut.value, cut.axis) for cut in cuts}
    left = [entry for entry in axes if entry[0] not in done]
    for (name, axis), size in left[:_TRIED]:
        width = -(-size // blocks)
        if -(-size // width) < blocks:
            width = max(size // blocks, 1)
        for sink in (True, False):
            yield *cuts, Cut(name, axis, width, sink)


def ranks_us(program: Program, world: int, cluster: Cluster) -> float:
    """Predicted microseconds until the last rank has the results of a program with loops."""
    own = sum(stage_us(stage, world, cluster) for stage in stages_of(program))
    return own + sent_us(program, world, cluster)


def sent_us(program: Program, world: int, cluster: Cluster) -> float:
    """Those in which ranks send each other what their slices come to."""
    nests = slices_of(program)
    return sum(traffic_of(nest, world).time_us(cluster.link(world)) for nest in nests)


def stage_us(stage: Stage, world: int, cluster: Cluster) -> float:
    """What the rank that has most to do takes for a stage, while others are at it too."""
    if isinstance(stage, Slices):
        own = cluster.crowding(world, held_by_slice(stage)) * slices_us(stage, world, cluster)
        alone = own + _results_us(stage, world, cluster.rates)
    else:
        alone = program_us(stage.program, {}, cluster.rates)
    far = stage_far_bytes(stage, world) if cluster.far else 0.0
    return cluster.turns(world) * alone + cluster.far_us(world, far)


def stage_far_bytes(stage: Stage, world: int) -> float:
    """The bytes that the rank that has most to do reads and writes of arrays beyond FAR_BYTES."""
    if not isinstance(stage, Slices):
        return far_bytes(stage.program, {})
    binding: Binding = {}
    for level in stage.levels:
        binding = within(level.loop, binding)
    return _most_slices(stage, world) * far_bytes(stage.levels[-1].loop.body, binding)


def held_by_slice(slices: Slices) -> int:
    """The bytes that a slice reads, with the most that it makes and has at one time."""
    binding: Binding = {}
    for level in slices.levels:
        binding = within(level.loop, binding)
    body = slices.levels[-1].loop.body
    read = sum(nbytes(argument.value).evaluate(binding) for argument in body.arguments)
    return read + peak_bytes(body, binding)


def slices_of(program: Program) -> list[Slices]:
    """The nests of loops of a program."""
    return [stage for stage in stages_of(program) if isinstance(stage, Slices)]


def _results_us(slices: Slices, world: int, rates: Rates) -> float:
    """Memory for what a rank adds up, and for the whole of what is sent."""
    owners = owners_of_results(slices, world) if world > 1 else {}
    total = 0.0
    for result in slices.results:
        size = float(nbytes(result.value).evaluate({}))
        own = owners.get(result.value.name)
        part = size if own is None else size * max(map(len, own.made)) / max(own.size, 1)
        total += rates.fresh_us(part) + rates.pass_us(part)
        if world > 1:  # a sum is packed, parts are put together
            total += rates.fresh_us(size)
        if own is not None and own.axis:
            total += rates.pass_us(2.0 * size)
    return total


def slices_us(slices: Slices, world: int, cluster: Cluster) -> float:
    """The slices of the rank that has most to do, if it were alone."""
    most = _most_slices(slices, world)
    return most * slice_us(slices, cluster) if most else 0.0


def _most_slices(slices: Slices, world: int) -> float:
    """How many whole slices' work the rank has that has most."""
    whole = work_before(slices, slices.count)
    if not whole:
        return 0.0
    shares = deal(slices, world)
    most = max(work_before(slices, s.stop) - work_before(slices, s.start) for s in shares)
    return most / whole * slices.count


def slice_us(slices: Slices, cluster: Cluster) -> float:
    """One slice of whole blocks, with its share of what the blocks around it make."""
    binding: Binding = {}
    rates = cluster.rates
    total, inner = cluster.slice_us, slices.count
    for level in slices.levels:
        binding = within(level.loop, binding)
        inner //= max(level.count, 1)
        block = sum(_adding_us(level, result, binding, rates) for result in level.results)
        for program in (level.before, level.after):
            block += 0.0 if program is None else program_us(program, binding, rates)
        total += block / max(inner, 1)
    return total + program_us(slices.levels[-1].loop.body, binding, rates)


def _adding_us(level: Level, result: Result, binding: Binding, rates: Rates) -> float:
    """To add what a block makes of a result to the others', or to put it where it belongs."""
    body = level.loop.body
    name = body.outputs[result.output]
    written = float(nbytes(body.values[name]).evaluate(binding))
    return rates.step_us + copy_us(body, name, binding, rates) + rates.pass_us(written)
