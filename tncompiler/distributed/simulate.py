"""What a plan would take on so many ranks of some machine: a prediction, nothing is run.

By the model that cuts are chosen by: the rank that has most to do, and sums between ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tncompiler.binding import Call
from tncompiler.compiler import Compilation
from tncompiler.distributed.cuts import stage_far_bytes, stage_us
from tncompiler.distributed.link import Cluster, as_cluster
from tncompiler.distributed.options import Ranks
from tncompiler.distributed.planning import RankPlanner, RankPrograms, backends_on_cpu
from tncompiler.distributed.shard_planner import ShardPlanner, parts_of
from tncompiler.distributed.stages import Slices, stages_of
from tncompiler.distributed.traffic import traffic_of
from tncompiler.inspection import Inspection
from tncompiler.ir.dtypes import ITEM_BYTES, is_differentiable
from tncompiler.ir.errors import ArgumentError, PlanError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.interchange.equations import from_einsum
from tncompiler.ir.origin import call_site
from tncompiler.ir.sizes import evaluate
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.plan import ContractionPlan, NetworkOrder


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one rank would take, and what ranks would send. All of it is predicted.

    ``alone_us``: the same work on one rank; ``common_us``: steps that every rank carries out;
    ``slices_us``: those of the rank that has most; ``sending_us``: what ranks then send each other,
    and before that to see whether all are at the same work.
    ``peak_bytes``: computed values of a rank, beside ``held_bytes`` of inputs and parameters;
    ``sent_bytes``: what the busiest rank sends; ``far_bytes``: what its steps read and write of
    arrays that a core's own caches have no room for. ``fits``: whether a rank has the memory; None
    where that of the machine is not known.
    """

    machine: str
    world: int
    slices: int
    alone_us: float
    common_us: float
    slices_us: float
    sending_us: float
    held_bytes: int
    peak_bytes: int
    sent_bytes: int
    far_bytes: int
    fits: bool | None

    @property
    def time_us(self) -> float:
        """Until the last rank has the results."""
        return self.common_us + self.slices_us + self.sending_us

    @property
    def efficiency(self) -> float:
        """The time on one rank, over that on all ranks times their number."""
        return self.alone_us / (self.time_us * self.world) if self.time_us else 1.0

    def __str__(self) -> str:
        fits = {True: ", fits", False: ", DOES NOT FIT", None: ""}[self.fits]
        return "\n".join(
            [
                f"predicted, not measured: {self.world:,} ranks of {self.machine}, "
                f"{self.slices:,} slices",
                f"  time      {_time(self.time_us)}: slices {_time(self.slices_us)}, on every rank "
                f"{_time(self.common_us)}, sums {_time(self.sending_us)}",
                f"  one rank  {_time(self.alone_us)}, efficiency {self.efficiency:.2f}",
                f"  memory    {_bytes(self.peak_bytes)} beside {_bytes(self.held_bytes)} of inputs "
                f"and parameters{fits}",
                f"  traffic   {_bytes(self.sent_bytes)} sent by the busiest rank",
            ]
        )


def simulate(
    plan: Any,
    machine: Any = None,
    world: int = 1,
    *,
    sizes: Mapping[Any, Any] | None = None,
    dtype: str = "float32",
    step: bool = False,
    memory_limit: int | str | None = None,
    index: Any = None,
) -> Prediction:
    """Predicted time, memory and traffic of a contraction or a training step on `world` ranks.

    ``plan``: a ContractionPlan (its networks, in its orders and sizes), an expression, or what
    `tnc.compile` returned. ``machine``: "8xH100" (nodes of so many; also A100, B200, MI300X), a
    `tnc.Machine`, what `calibrate_ranks` measured, or None for this computer. ``sizes``: of an
    expression; free ones count as 128. ``step``: whether gradients of all parameters, or of all
    inputs where there are none, are computed as well. ``memory_limit``: of computed values on a
    rank; by default what the machine has beside inputs and parameters. ``index``: parameters are
    cut along it, as `tnc.parallelize` does, instead of slices being shared out. Raises: PlanError
    for an unknown machine, or if the limit cannot be kept.
    """
    if isinstance(world, bool) or not isinstance(world, int) or world < 1:
        raise ArgumentError(
            f"world is {world!r:.40}", where=call_site(), fix="give a number of ranks, 1 or more"
        )
    cluster = as_cluster(machine)
    limit = PlanOptions(memory_limit=memory_limit).memory_limit
    most = None if limit is None else int(limit)
    cut = None if index is None else str(getattr(index, "name", index))
    found = [
        _Simulated(compilation, dtype, cluster, world, step, most, cut).prediction()
        for compilation in _compilations(plan, sizes)
    ]
    return _added(found)


def _compilations(plan: Any, sizes: Mapping[Any, Any] | None) -> list[Compilation]:
    """The problems that a plan, an expression or a compiled network stands for."""
    if isinstance(plan, ContractionPlan):
        return [_of_network(network) for network in plan.networks if network.wires]
    given = {} if sizes is None else sizes
    if isinstance(plan, Expr):
        return [_bound(Compilation(plan, None, given, None, parameters_known=False), {})]
    if isinstance(plan, Inspection):
        return [_bound(plan.compilation, given)]
    raise ArgumentError(
        f"plan is a {type(plan).__name__}",
        where=call_site(),
        fix="give what tnc.plan or tnc.compile returned, or an expression",
    )


def _of_network(order: NetworkOrder) -> Compilation:
    """A network of a plan, in its order: an expression anew, as each tensor stands at one site."""
    given: list[Any] = []
    for labels in order.wires:
        given += [tuple(order.sizes[label] for label in labels), list(labels)]
    on_tensors = {label for labels in order.wires for label in labels}
    output = [label for label in dict.fromkeys(order.output) if label in on_tensors]
    options = PlanOptions(path=order.linear())
    return Compilation(from_einsum(*given, output), None, {}, options, parameters_known=False)


def _bound(compilation: Compilation, sizes: Mapping[Any, Any]) -> Compilation:
    """The problem with a number for every size."""
    return Compilation(
        compilation.container.pack(compilation.outputs),
        [leaf.name for leaf in compilation.inputs],
        {**compilation.binding, **compilation.nominal(sizes)},
        compilation.fixed_plan or compilation.options,
        parameters_known=False,
        library=compilation.library,
    )


class _Simulated:
    """One problem on one cluster; ``given``: the limit of memory that was asked for."""

    def __init__(
        self,
        compilation: Compilation,
        dtype: str,
        cluster: Cluster,
        world: int,
        step: bool,
        given: int | None,
        index: str | None,
    ) -> None:
        self.compilation, self.cluster, self.world = compilation, cluster, world
        dtypes = compilation.default_dtypes(dtype)
        self.call = Call(dtypes, {}, {})
        self.wrt = self._wrt() if step else ()
        self.given, self.index = given, index
        self.link = cluster.link(world)
        self.held = self._held_bytes()
        room = cluster.node.memory_bytes
        self.room = None if room is None else room - self.held
        if given is None and self.room is not None and self.room < 1:
            raise PlanError(
                f"inputs and parameters take {self.held:,} B, more than a rank has",
                where=call_site(),
                fix="cut them by tnc.parallelize, or take another machine",
            )

    def prediction(self) -> Prediction:
        planner, programs = self._planned()
        cluster, world = self.cluster.on(programs.plan.backend), self.world
        stages = [stage for program in programs.passes for stage in stages_of(program)]
        common = [stage for stage in stages if not isinstance(stage, Slices)]
        nests = [stage for stage in stages if isinstance(stage, Slices)]
        if isinstance(planner, ShardPlanner):
            sent = [message.traffic(world) for message in planner.messages(programs)]
        else:
            sent = [traffic_of(nest, world) for nest in nests]
        return Prediction(
            machine=cluster.name,
            world=world,
            slices=max((nest.count for nest in nests), default=1),
            alone_us=sum(stage_us(stage, 1, cluster) for stage in stages),
            common_us=sum(stage_us(stage, world, cluster) for stage in common),
            slices_us=sum(stage_us(nest, world, cluster) for nest in nests),
            sending_us=cluster.call_us(world) + sum(one.time_us(self.link) for one in sent),
            held_bytes=self.held,
            peak_bytes=programs.peak,
            sent_bytes=sum(traffic.sent_bytes for traffic in sent),
            far_bytes=round(sum(stage_far_bytes(stage, world) for stage in stages)),
            fits=None if self.room is None else programs.peak <= self.room,
        )

    def _planned(self) -> tuple[RankPlanner, RankPrograms]:
        """What ranks run; where it does not go into the memory of a rank, without a limit."""
        if self.given is not None or self.room is None:
            return self._planned_in(self.given)
        try:
            return self._planned_in(self.room)
        except PlanError:
            return self._planned_in(None)

    def _planned_in(self, limit: int | None) -> tuple[RankPlanner, RankPrograms]:
        given = self.compilation, self.call, self.wrt, Ranks(machine=self.cluster), self.world
        self.compilation.options = replace(self.compilation.options, memory_limit=limit)
        known = backends_on_cpu(self.call.dtypes) if self.cluster.libraries else ("torch",)
        planner = (
            RankPlanner(*given, known) if self.index is None else ShardPlanner(self.index, *given)
        )
        return planner, planner.made(planner.planned())

    def _held_bytes(self) -> int:
        """Inputs and parameters of the rank that has most of them."""
        leaves = zip(self.compilation.ordered, self.call.dtypes[1:], strict=True)
        parts = {} if self.index is None else parts_of(self.compilation, self.index, self.world)
        total = 0
        for leaf, dtype in leaves:
            shape = [evaluate(size, self.compilation.binding) for size in leaf.shape]
            if leaf.name in parts:
                shape[parts[leaf.name].axis] = parts[leaf.name].width
            total += ITEM_BYTES[dtype] * prod(shape)
        return total

    def _wrt(self) -> tuple[str, ...]:
        leaves = self.compilation.params or self.compilation.inputs
        return tuple(leaf.name for leaf in leaves if is_differentiable(leaf.dtype))


def _added(found: Sequence[Prediction]) -> Prediction:
    """One prediction for networks that run one after the other."""
    first, *others = found
    for other in others:
        first = replace(
            first,
            slices=max(first.slices, other.slices),
            alone_us=first.alone_us + other.alone_us,
            common_us=first.common_us + other.common_us,
            slices_us=first.slices_us + other.slices_us,
            sending_us=first.sending_us + other.sending_us,
            held_bytes=first.held_bytes + other.held_bytes,
            peak_bytes=max(first.peak_bytes, other.peak_bytes),
            sent_bytes=first.sent_bytes + other.sent_bytes,
            far_bytes=first.far_bytes + other.far_bytes,
            fits=None if first.fits is None else bool(first.fits and other.fits),
        )
    return first


def _time(us: float) -> str:
    for unit, size in (("us", 1.0), ("ms", 1e3), ("s", 1e6), ("min", 6e7), ("h", 3.6e9)):
        if us < 1000 * size or unit == "h":
            break
    return f"{us / size:,.3g} {unit}"


def _bytes(count: int) -> str:
    for power, unit in enumerate(("B", "kB", "MB", "GB", "TB")):
        if count < 1000 ** (power + 1) or unit == "TB":
            break
    return f"{count / 1000**power:,.3g} {unit}"
