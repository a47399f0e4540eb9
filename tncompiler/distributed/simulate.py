"""What a plan would take on so many ranks of some machine: a prediction, nothing is run.

By the model that cuts are chosen by: the rank that has most to do, and sums between ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tncompiler.compiler import Compilation
from tncompiler.distributed.cuts import (
    Setting,
    choose_cuts,
    slices_us,
)
from tncompiler.distributed.link import Cluster, as_cluster
from tncompiler.distributed.stages import Common, Slices, Stage, stages_of
from tncompiler.distributed.traffic import traffic_of
from tncompiler.inspection import Inspection
from tncompiler.ir.dtypes import ITEM_BYTES, is_differentiable
from tncompiler.ir.errors import ArgumentError, PlanError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.interchange.equations import from_einsum
from tncompiler.ir.origin import call_site
from tncompiler.ir.passes.partition import partition
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import evaluate
from tncompiler.planning.fit import UNLIMITED
from tncompiler.planning.memory import held_bytes, peak_bytes
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.plan import ContractionPlan, NetworkOrder
from tncompiler.planning.rates import Rates
from tncompiler.planning.slicing import Cut, apply_cuts
from tncompiler.planning.timing import program_us


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one rank would take, and what ranks would send. All of it is predicted.

    ``alone_us``: the same work on one rank; ``common_us``: steps that every rank carries out;
    ``slices_us``: those of the rank that has most; ``sending_us``: what ranks then send each other.
    ``peak_bytes``: computed values of a rank, beside ``held_bytes`` of inputs and parameters;
    ``sent_bytes``: what the busiest rank sends. ``fits``: whether a rank has the memory; None
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
) -> Prediction:
    """Predicted time, memory and traffic of a contraction or a training step on `world` ranks.

    ``plan``: a ContractionPlan (its networks, in its orders and sizes), an expression, or what
    `tnc.compile` returned. ``machine``: "8xH100" (nodes of so many; also A100, B200, MI300X), a
    `tnc.Machine`, or None for this computer. ``sizes``: of an expression; free ones count as 128.
    ``step``: whether gradients of all parameters, or of all inputs where there are none, are
    computed as well. ``memory_limit``: of computed values on a rank; by default what the machine
    has beside inputs and parameters. Raises: PlanError for an unknown machine, or if the limit
    cannot be kept.
    """
    if isinstance(world, bool) or not isinstance(world, int) or world < 1:
        raise ArgumentError(
            f"world is {world!r:.40}", where=call_site(), fix="give a number of ranks, 1 or more"
        )
    cluster = as_cluster(machine)
    limit = PlanOptions(memory_limit=memory_limit).memory_limit
    most = None if limit is None else int(limit)
    found = [
        _Simulated(compilation, dtype, cluster, world, step, most).prediction()
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
    """One problem on one cluster."""

    def __init__(
        self,
        compilation: Compilation,
        dtype: str,
        cluster: Cluster,
        world: int,
        step: bool,
        limit: int | None,
    ) -> None:
        self.compilation, self.cluster, self.world, self.step = compilation, cluster, world, step
        self.dtypes = compilation.default_dtypes(dtype)
        self.link = cluster.link(world)
        self.held = self._held_bytes()
        room = cluster.node.memory_bytes
        self.room = None if room is None else room - self.held
        self.given, self.limit = limit, limit if limit is not None else self.room
        if self.limit is not None and self.limit < 1:
            raise PlanError(
                f"inputs and parameters take {self.held:,} B, more than a rank has",
                where=call_site(),
                fix="cut them by tnc.parallelize, or take another machine",
            )

    def prediction(self) -> Prediction:
        programs = self._programs()
        stages = [stage for program in programs for stage in stages_of(program)]
        rates, turns = self.cluster.rates, self.cluster.turns(self.world)
        common = sum(_common_us(stage, rates) for stage in stages)
        nests = [stage for stage in stages if isinstance(stage, Slices)]
        sent = [traffic_of(nest, self.world) for nest in nests]
        one_rank = sum(slices_us(nest, 1, rates) for nest in nests)
        peak = self._peak(programs)
        if self.given is not None and peak > self.given:
            raise PlanError(
                f"memory_limit {self.given:,} B cannot be kept: the least that was found is "
                f"{peak:,} B",
                where=call_site(),
                fix=f"give memory_limit={peak} or more",
            )
        return Prediction(
            machine=self.cluster.name,
            world=self.world,
            slices=max((nest.count for nest in nests), default=1),
            alone_us=common + one_rank,
            common_us=turns * common,
            slices_us=turns * sum(slices_us(nest, self.world, rates) for nest in nests),
            sending_us=sum(traffic.time_us(self.link) for traffic in sent),
            held_bytes=self.held,
            peak_bytes=peak,
            sent_bytes=sum(traffic.sent_bytes for traffic in sent),
            fits=None if self.room is None else peak <= self.room,
        )

    def _held_bytes(self) -> int:
        leaves = zip(self.compilation.ordered, self.dtypes[1:], strict=True)
        return sum(
            ITEM_BYTES[dtype]
            * prod(evaluate(size, self.compilation.binding) for size in leaf.shape)
            for leaf, dtype in leaves
        )

    def _programs(self) -> tuple[Program, ...]:
        """What a rank runs, with its loops."""
        limit = UNLIMITED if self.limit is None else self.limit
        setting = Setting(self.world, self.world, False, limit, self.cluster.rates, self.link)
        if not self.step:
            program, start = self._forward(limit)
            return (apply_cuts(program, choose_cuts(program, setting, start)),)
        joint, count = self.compilation.cheapest_joint(self.dtypes, {}, self._wrt())
        cut = partition(joint, count)
        forward = apply_cuts(cut.forward, choose_cuts(cut.forward, setting))
        later = replace(setting, limit=max(limit - held_bytes(cut.forward, {}), 1))
        return forward, apply_cuts(cut.backward, choose_cuts(cut.backward, later))

    def _forward(self, limit: int) -> tuple[Program, tuple[Cut, ...]]:
        """The forward program, and cuts that bring it into the limit."""
        program, orders = self.compilation.scheduled(self.dtypes, {})
        if peak_bytes(program, {}) <= limit:
            return program, ()
        found = self.compilation.sliced(self.dtypes, orders, limit)
        return found or (program, ())

    def _wrt(self) -> tuple[str, ...]:
        leaves = self.compilation.params or self.compilation.inputs
        return tuple(leaf.name for leaf in leaves if is_differentiable(leaf.dtype))

    def _peak(self, programs: Sequence[Program]) -> int:
        if len(programs) == 1:
            return peak_bytes(programs[0], {})
        forward, backward = programs
        return max(peak_bytes(forward, {}), held_bytes(forward, {}) + peak_bytes(backward, {}))


def _common_us(stage: Stage, rates: Rates) -> float:
    return program_us(stage.program, {}, rates) if isinstance(stage, Common) else 0.0


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
