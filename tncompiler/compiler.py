"""The whole pipeline: expressions → logical program → plan → scheduled → source → callable.

`Compilation` is the same for torch and NumPy users; it makes each stage on demand and keeps it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tncompiler.backends import emitter_of
from tncompiler.backends.source import Loaded, Source, load
from tncompiler.debug import show, watcher
from tncompiler.ir.dtypes import is_differentiable
from tncompiler.ir.errors import PlanError
from tncompiler.ir.interchange.graphs import from_network
from tncompiler.ir.lower import lower
from tncompiler.ir.network import TensorNetwork
from tncompiler.ir.passes import (
    LOGICAL_PASSES,
    MERGING_PASSES,
    SCHEDULED_PASSES,
    STABILIZING_PASSES,
    run_passes,
)
from tncompiler.ir.passes.adjoint import GradientOrder, adjoint
from tncompiler.ir.passes.partition import TrainingPrograms
from tncompiler.ir.passes.stabilize import scaled_outputs
from tncompiler.ir.passes.tangent import tangent
from tncompiler.ir.program import Contract, Program, operand_values
from tncompiler.planning.decide import decide
from tncompiler.planning.digest import program_digest
from tncompiler.planning.fit import UNLIMITED, FittedOrders, FittedStep, fastest, fit_step
from tncompiler.planning.keeping import Kept, cut_kept
from tncompiler.planning.machine import as_machine
from tncompiler.planning.memory import peak_bytes, step_peak
from tncompiler.planning.options import Path, PlanOptions
from tncompiler.planning.order import Pair, order_of_path
from tncompiler.planning.pick import Picker, nearest_powers
from tncompiler.planning.plan import ContractionPlan, make_plan
from tncompiler.planning.rates import Rates
from tncompiler.planning.replan import choose_gradients, joint_cost, orders_cost
from tncompiler.planning.reuse import Reused, reuse_orders
from tncompiler.planning.schedule import schedule
from tncompiler.planning.sliced_network import slice_program
from tncompiler.planning.slicing import (
    Cut,
    Fitted,
    apply_cuts,
    fit_program,
    largest_alive,
)
from tncompiler.planning.timing import program_us
from tncompiler.planning.workers import Budget
from tncompiler.problem import Nominal, Problem


@dataclass(frozen=True, slots=True)
class Executable:
    """A scheduled program with its source and callable."""

    program: Program
    source: Source
    loaded: Loaded

    @property
    def run(self) -> Callable[..., tuple[Any, ...]]:
        return self.loaded.run


@dataclass(frozen=True, slots=True)
class KeptExecutable:
    """``prepare`` makes of parameters and constants what ``rest`` reads after the arguments."""

    prepare: Executable
    rest: Executable


@dataclass(frozen=True, slots=True)
class TrainingExecutable:
    """Forward (outputs, then saved values) and backward, made from one joint program."""

    programs: TrainingPrograms
    forward: Executable
    backward: Executable
    output_count: int


class Compilation(Problem):
    """One set of outputs on its way down; stages are made on demand, once, under a lock."""

    def __init__(
        self,
        outputs: Any,
        inputs: Sequence[Any] | None,
        sizes: Mapping[Any, Any],
        plan: PlanOptions | ContractionPlan | None,
        parameters_known: bool = True,
        library: str = "torch",
    ) -> None:
        super().__init__(outputs, inputs, sizes)
        self.library = library  # whose rules promote mixed operands
        if plan is not None and not isinstance(plan, PlanOptions | ContractionPlan):
            raise PlanError(
                f"plan is a {type(plan).__name__}",
                where=self.place(),
                fix="give a tnc.PlanOptions or a saved plan",
            )
        self.fixed_plan = plan if isinstance(plan, ContractionPlan) else None
        self.options = plan if isinstance(plan, PlanOptions) else PlanOptions()
        self.reused: Reused | None = None  # orders that come from the plan of a similar network
        if parameters_known:
            self.check_parameters()
        self._cache: dict[object, Any] = {}
        self._lock = threading.RLock()
        self._paired = (False,) * len(self.outputs)  # which outputs come with a scale

    # ---------------------------------------------------------------- the pipeline, stage by stage

    def _once(self, key: object, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = make()
            return self._cache[key]

    def logical(self, dtypes: tuple[str, ...]) -> Program:
        """The simplified program; `dtypes` is the default, then one for each of `ordered`."""

        def make() -> Program:
            default, *own = dtypes
            named = {leaf.name: d for leaf, d in zip(self.ordered, own, strict=True)}
            program = lower(
                self.outputs,
                default_dtype=default,
                binding=self.binding,
                dtypes=named,
                leaves=self.ordered,
                library=self.library,
            )
            program = run_passes(program, LOGICAL_PASSES, watcher=watcher())
            if self.stabilized:  # here, as torch.compile can trace no lock when results are packed
                self._paired = scaled_outputs(program)
            return program

        return self._once(("logical", dtypes), make)  # type: ignore[no-any-return]

    def scheduled(
        self,
        dtypes: tuple[str, ...],
        nominal: Nominal,
        wrt: tuple[str, ...] = (),
        *,
        cached: bool = False,
    ) -> tuple[Program, Any]:
        """The program, ordered for gradients by the leaves in `wrt`, and its networks' orders.

        Free sizes are those of a call; the plan is that of `planned_sizes`. ``cached``: ordered
        for calls between which products of parameters are kept.
        """
        planned = self.planned_sizes(dtypes, nominal, wrt)
        return self._schedule(dtypes, planned, wrt, self.options, cached)

    def _schedule(
        self,
        dtypes: tuple[str, ...],
        nominal: Nominal,
        wrt: tuple[str, ...],
        options: PlanOptions,
        cached: bool = False,
    ) -> tuple[Program, Any]:
        def make() -> tuple[Program, Any]:
            logical = self.logical(dtypes)
            orders = self._orders(logical)
            if orders is None:
                orders = self._chosen(dtypes, nominal, wrt, options, cached)
            program, orders = schedule(logical, nominal, options, orders)
            finished = self._finished(program, nominal, self._passes())
            show(1, "orders", "\n".join(f"{name}: {pairs}" for name, pairs in orders.items()))
            show(3, "scheduled program", finished.to_text())
            return finished, orders

        return self._once(  # type: ignore[no-any-return]
            ("scheduled", dtypes, tuple(nominal.items()), wrt, options.minimize, cached), make
        )

    def _chosen(
        self,
        dtypes: tuple[str, ...],
        nominal: Nominal,
        wrt: tuple[str, ...],
        options: PlanOptions,
        cached: bool = False,
    ) -> Mapping[str, tuple[Pair, ...]]:
        """The best orders at these very sizes."""

        def make() -> Mapping[str, tuple[Pair, ...]]:
            wanted, budget = self._planned_for(wrt), self._budget(dtypes, nominal, wrt)
            logical = self.logical(dtypes)
            return decide(logical, nominal, options, wanted, cached=cached, budget=budget).orders

        return self._once(  # type: ignore[no-any-return]
            ("chosen", dtypes, tuple(nominal.items()), wrt, options.minimize, cached), make
        )

    def _finished(
        self, program: Program, nominal: Nominal, passes: tuple[str, ...] = SCHEDULED_PASSES
    ) -> Program:
        """A scheduled program after all passes; one value for sizes that come to the same."""

        def make() -> Program:
            return run_passes(program, passes, scheduled=True, watcher=watcher())

        return self._once(("finished", program), make) if nominal else make()

    def planned_sizes(
        self, dtypes: tuple[str, ...], sizes: Nominal, wrt: tuple[str, ...] = ()
    ) -> Nominal:
        """The sizes whose plan runs at `sizes`: powers of two around them; see planning/pick.py.

        Where orders are given, or come from a search that is not cheap, the nearest ones. Under a
        limit of memory the very sizes: what fits at others says nothing.
        """
        if not sizes or self.options.memory_limit is not None:
            return sizes
        if self._is_given or self.options.search != "auto":
            return nearest_powers(sizes)

        def make() -> Picker:
            program, wanted = self.logical(dtypes), self._planned_for(wrt)

            def cost(orders: Mapping[str, tuple[Pair, ...]], at: Nominal) -> float:
                return orders_cost(program, orders, at, self.options, wanted)

            return Picker(lambda at: self._chosen(dtypes, at, wrt, self.options), cost)

        picker: Picker = self._once(("picker", dtypes, wrt), make)
        return picker.pick(sizes)

    def inference(
        self, dtypes: tuple[str, ...], nominal: Nominal, *, keeps: bool = False
    ) -> FittedOrders[Fitted]:
        """The program that runs where no gradient is asked for, inside the limit of memory.

        ``keeps``: what parameters alone make may be kept between calls, as `kept` says.
        """
        nominal = self.planned_sizes(dtypes, nominal)
        if keeps and self.kept(dtypes, nominal) is not None:
            program, orders = self.scheduled(dtypes, nominal, cached=True)
            return FittedOrders(orders, fit_program(program, nominal, UNLIMITED, self._rates))

        def make() -> FittedOrders[Fitted]:
            limit, rates = self._limit, self._rates
            found = [
                FittedOrders(orders, fit_program(program, nominal, limit, rates, start=cuts))
                for program, orders, cuts in self._alternatives(dtypes, nominal, ())
            ]
            best = fastest(found, limit)
            if best.fitted.peak > limit:
                raise self._too_small(best.fitted.peak, best.fitted.program, nominal)
            return best

        return self._once(  # type: ignore[no-any-return]
            ("inference", dtypes, tuple(nominal.items())), make
        )

    @property
    def _limit(self) -> int:
        limit = self.options.memory_limit
        return UNLIMITED if limit is None else int(limit)

    @property
    def _rates(self) -> Rates:
        return as_machine(self.options.machine).planning

    def _alternatives(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> Iterator[tuple[Program, Any, tuple[Cut, ...]]]:
        """The scheduled program; under a limit also in other orders, and with cuts to start from.

        The others are the orders that other objectives give; where a network is large, cotengra's
        order for it sliced is the only one.
        """
        program, orders = self.scheduled(dtypes, nominal, wrt)
        fits = not wrt and peak_bytes(program, nominal) <= self._limit
        if self.options.memory_limit is None or self._is_given or fits:
            yield program, orders, ()
            return
        # blocks of a sum that carries exponents would have to be aligned
        networks = [] if self.stabilized else list(self._sliced_networks(dtypes, nominal, orders))
        yield from networks
        if networks:
            return
        yield program, orders, ()
        seen = [orders]
        for minimize in ("memory", "flops"):
            options = replace(self.options, minimize=minimize)
            program, others = self._schedule(dtypes, nominal, wrt, options)
            if others not in seen:
                seen.append(others)
                yield program, others, ()

    def _sliced_networks(
        self, dtypes: tuple[str, ...], nominal: Nominal, orders: Any
    ) -> Iterator[tuple[Program, Any, tuple[Cut, ...]]]:
        """The program with its largest network sliced by cotengra, aimed lower until it fits."""
        logical = self.logical(dtypes)
        for share in (1, 2, 4, 8, 16, 32, 64):
            target = max(self._limit // share, 1)
            sliced = slice_program(logical, orders, nominal, target, self.options.seed)
            if sliced is None:
                return
            program, made = schedule(logical, nominal, self.options, sliced.orders)
            program = run_passes(program, SCHEDULED_PASSES, scheduled=True, watcher=watcher())
            if peak_bytes(apply_cuts(program, sliced.cuts), nominal) <= self._limit or share == 64:
                yield program, made, sliced.cuts
                return

    @property
    def _is_given(self) -> bool:
        """Whether the user fixed the order."""
        given = self.options.path is not None or self.fixed_plan is not None
        return given or self.reused is not None

    def _too_small(self, least: int, program: Program, nominal: Nominal) -> PlanError:
        name, size = largest_alive(program, nominal)
        return PlanError(
            f"memory_limit {self._limit:,} B cannot be kept: the least that was found is "
            f"{least:,} B, where {name!r} takes {size:,} B",
            where=self.place(),
            fix=f"give memory_limit={least} or more",
        )

    def kept(self, dtypes: tuple[str, ...], nominal: Nominal) -> Kept | None:
        """The program cut for calls between which what parameters alone make is kept.

        None where that saves no time, takes too much memory, or memory is what was asked for.
        """

        def make() -> Kept | None:
            if self.options.minimize == "memory" or self.options.memory_limit is not None:
                return None
            cut = cut_kept(self.scheduled(dtypes, nominal, cached=True)[0])
            if cut is None:
                return None
            rates = self._rates
            whole, _ = self.scheduled(dtypes, nominal)
            saves = program_us(cut.rest, nominal, rates) < program_us(whole, nominal, rates)
            return cut if saves else None

        return self._once(("kept", dtypes, tuple(nominal.items())), make)  # type: ignore[no-any-return]

    @property
    def stabilized(self) -> bool:
        """Whether networks carry exponents, and come out as pairs of value and log10 scale."""
        return self.options.stabilize == "exponent"

    def _passes(self) -> tuple[str, ...]:
        before = STABILIZING_PASSES if self.stabilized else ()
        return (*before, *SCHEDULED_PASSES)

    def pack(self, results: Sequence[Any]) -> Any:
        """Results of a program in the container of the outputs, networks with their scales."""
        values, scales = results[: len(self.outputs)], iter(results[len(self.outputs) :])
        pairs = zip(values, self._paired, strict=True)
        return self.container.pack([(v, next(scales)) if pair else v for v, pair in pairs])

    def _budget(self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]) -> Budget:
        """The time that all searches for one plan have, from the first of them on."""
        key = ("budget", dtypes, tuple(nominal.items()), wrt)
        return self._once(key, lambda: Budget.of(self.options))  # type: ignore[no-any-return]

    def _planned_for(self, wrt: tuple[str, ...]) -> tuple[str, ...]:
        """The leaves whose gradients count when orders are compared."""
        if self.options.training == "auto":
            return wrt
        if not self.options.training:
            return ()
        leaves = (*self.inputs, *self.params)
        return wrt or tuple(leaf.name for leaf in leaves if is_differentiable(leaf.dtype))

    def _orders(self, logical: Program) -> Any:
        if self.reused is not None:
            return self.reused.orders
        if self.options.path is not None:
            return self._given_order(logical, self.options.path)
        if self.fixed_plan is None:
            return None
        if self.fixed_plan.digest != program_digest(logical):
            raise PlanError(
                "the plan was made for another network or other sizes",
                where=self.place(),
                fix="make one with tnc.plan(expr, sizes=…)",
            )
        steps = [s.out.name for s in logical.steps if isinstance(s.op, Contract) and s.operands]
        networks = self.fixed_plan.networks
        if len(steps) != len(networks):
            raise PlanError(
                f"the plan orders {len(networks)} networks, the expression has {len(steps)}",
                where=self.place(),
                fix="make one with tnc.plan(expr, sizes=…)",
            )
        return {name: network.pairs for name, network in zip(steps, networks, strict=True)}

    def _given_order(self, logical: Program, path: Path) -> dict[str, tuple[Pair, ...]]:
        """The order that the options fix, for the one network of the program."""
        steps = [s for s in logical.steps if isinstance(s.op, Contract) and len(s.operands) > 1]
        if len(steps) != 1:
            raise PlanError(
                f"PlanOptions.path fixes the order of one network, but there are {len(steps)}",
                where=self.place(),
                fix="leave path out, or pass a whole plan",
            )
        (step,) = steps
        operands = operand_values(logical, step)
        scalars = [k for k, value in enumerate(operands) if not value.shape]
        tensors = len(operands) - len(scalars)
        if len(path) < tensors or not scalars:  # as plan.path has it, scalars left out
            return {step.out.name: order_of_path(path, tensors, ())}
        return {step.out.name: order_of_path(path, len(operands), scalars)}

    def training(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> TrainingPrograms:
        """Forward and backward programs, for gradients by the leaves named in `wrt`."""
        return self.training_step(dtypes, nominal, wrt).fitted.programs

    def training_step(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> FittedOrders[FittedStep]:
        """Forward and backward programs inside the limit of memory, and how they were chosen."""
        nominal = self.planned_sizes(dtypes, nominal, wrt)

        def make() -> FittedOrders[FittedStep]:
            limit = self._limit
            recompute = str(self.options.recompute)
            found = []
            for joint, orders, cuts, count in self._joints(dtypes, nominal, wrt):
                show(3, "joint program", joint.to_text())
                step = fit_step(joint, count, nominal, limit, self._rates, recompute, cuts)
                found.append(FittedOrders(orders, step))
            best = fastest(found, limit)
            if best.fitted.peak > limit:
                programs = best.fitted.programs
                tallest = max(
                    (programs.forward, programs.backward),
                    key=lambda program: largest_alive(program, nominal)[1],
                )
                raise self._too_small(best.fitted.peak, tallest, nominal)
            return best

        return self._once(  # type: ignore[no-any-return]
            ("training", dtypes, tuple(nominal.items()), wrt), make
        )

    def _joints(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> list[tuple[Program, Any, tuple[Cut, ...], int]]:
        """Programs with their gradients, orders, cuts to start from, and outputs before gradients.

        The cheapest one; under a limit of memory all, since any may be the one that fits.
        """
        found, tried = [], []
        for program, orders, cuts in self._alternatives(dtypes, nominal, wrt):
            count = len(program.outputs)  # values, then scales
            found.append((self._differentiated(program, wrt, nominal), orders, cuts, count))
            tried += [] if cuts else [orders]
        alone = self.scheduled(dtypes, nominal)[1]  # for the value; gradients from other trees
        for orders in [*tried, *([] if alone in tried else [alone])]:
            if not self.stabilized:  # their trees are those of the network without exponents
                joints = self._replanned(dtypes, nominal, wrt, orders)
                found += [(joint, orders, (), len(self.outputs)) for joint in joints]
        if self.options.memory_limit is not None:
            return found
        return [min(found, key=lambda one: joint_cost(one[0], nominal, self.options))]

    def _replanned(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...], orders: Any
    ) -> Iterator[Program]:
        """The program in these orders with gradients on trees of their own; none if no gain."""
        logical, wanted = self.logical(dtypes), self._planned_for(wrt)
        gradients = choose_gradients(logical, orders, nominal, self.options, wanted)
        if gradients:
            ordered, _ = schedule(logical, nominal, self.options, orders)
            ordered = run_passes(ordered, MERGING_PASSES, scheduled=True, watcher=watcher())
            yield self._differentiated(ordered, wrt, nominal, gradients)

    def _differentiated(
        self,
        program: Program,
        wrt: tuple[str, ...],
        nominal: Nominal,
        gradients: Mapping[str, GradientOrder] | None = None,
    ) -> Program:
        """A scheduled program with its gradients, scheduled again."""
        reverse = adjoint(program, wrt, seeded=len(self.outputs), orders=gradients)
        joint, _ = schedule(reverse, nominal, self.options)
        return self._finished(joint, nominal)

    def joint(self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]) -> Program:
        """Forward and backward as one program."""
        cut = self.training(dtypes, nominal, wrt)
        cotangents = tuple(a for a in cut.backward.arguments if a.kind == "cotangent")
        count = len(cut.forward.outputs) - len(cut.saved)
        made = {step.out.name for step in cut.forward.steps}
        steps = [s for s in cut.backward.steps if s.out.name not in made]
        return Program(
            (*cut.forward.arguments, *cotangents),
            (*cut.forward.steps, *steps),
            (*cut.forward.outputs[:count], *cut.backward.outputs),
            cut.forward.equations,
        )

    def directional(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> Program:
        """The program for outputs and their tangents along `wrt`."""
        nominal = self.planned_sizes(dtypes, nominal)

        def make() -> Program:
            program, _ = self.scheduled(dtypes, nominal)
            moved, _ = schedule(tangent(program, wrt), nominal, self.options)
            return self._finished(moved, nominal)

        return self._once(  # type: ignore[no-any-return]
            ("tangent", dtypes, tuple(nominal.items()), wrt), make
        )

    # ---------------------------------------------------------------- source and callables

    def executable(self, program: Program, backend: str, entry: str) -> Executable:
        """The program as a callable; the same source is loaded once."""

        def make() -> Executable:
            source = emitter_of(backend)(program, entry)
            show(4, f"{entry} source", source.text)
            return Executable(program, source, load(source))

        return self._once(("executable", id(program), backend, entry), make)  # type: ignore[no-any-return]

    def inference_executable(
        self, dtypes: tuple[str, ...], nominal: Nominal, backend: str
    ) -> Executable:
        """What runs where no gradient is asked for."""
        program = self.inference(dtypes, nominal).fitted.program
        return self.executable(program, backend, "forward")

    def flat_executable(self, dtypes: tuple[str, ...], nominal: Nominal) -> Executable:
        """The whole program in aten operations, without loops, for torch to look into."""
        return self.executable(self.scheduled(dtypes, nominal)[0], "torch", "forward")

    def kept_executable(
        self, dtypes: tuple[str, ...], nominal: Nominal, backend: str
    ) -> KeptExecutable | None:
        """What parameters alone make, and the rest; None where nothing is kept."""
        cut = self.kept(dtypes, nominal)
        if cut is None:
            return None
        prepare = self.executable(cut.prepare, backend, "prepare")
        return KeptExecutable(prepare, self.executable(cut.rest, backend, "forward"))

    def training_executable(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...], backend: str
    ) -> TrainingExecutable:
        cut = self.training(dtypes, nominal, wrt)
        forward = self.executable(cut.forward, backend, "forward")
        backward = self.executable(cut.backward, backend, "backward")
        return TrainingExecutable(cut, forward, backward, len(cut.forward.outputs) - len(cut.saved))

    def plan(
        self,
        nominal: Nominal,
        dtypes: tuple[str, ...] | None = None,
        wrt: tuple[str, ...] | None = None,
        *,
        keeps: bool = False,
    ) -> ContractionPlan:
        """The plan that a call of these sizes runs; of a training step if `wrt` names leaves.

        ``keeps`` as in `inference`.
        """
        dtypes = dtypes or self.default_dtypes("float32")
        logical = self.logical(dtypes)
        wrt = self._planned_for(()) if wrt is None else wrt
        if wrt:
            step = self.training_step(dtypes, nominal, wrt)
            fitted = step.fitted
            joint = self.joint(dtypes, nominal, wrt)
            plan = make_plan(logical, joint, step.orders, nominal, self.options.minimize)
            return replace(
                plan,
                cut=self._budget(dtypes, self.planned_sizes(dtypes, nominal, wrt), wrt).cut,
                replanned=self._replanned_pairs,
                peak_memory=step_peak(fitted.programs, nominal),
                saved=fitted.programs.saved,
                recomputed=fitted.programs.recomputed,
                sliced_indices=fitted.sliced,
            )
        whole = self.inference(dtypes, nominal, keeps=keeps)
        program = whole.fitted.program
        plan = make_plan(logical, program, whole.orders, nominal, self.options.minimize)
        return replace(
            plan,
            sliced_indices=whole.fitted.sliced,
            cut=self._budget(dtypes, self.planned_sizes(dtypes, nominal), ()).cut,
            replanned=self._replanned_pairs,
        )

    @property
    def _replanned_pairs(self) -> int | None:
        return None if self.reused is None else self.reused.replanned

    def plan_from(self, plan: ContractionPlan) -> ContractionPlan:
        """The plan of the forward pass that keeps what it can of the plan of a similar network."""
        known = {s: plan.sizes[s.name] for s in self.free_symbols if s.name in plan.sizes}
        nominal = self.nominal(known)
        logical = self.logical(self.default_dtypes("float32"))
        self.reused = reuse_orders(plan.networks, logical, nominal, self.options)
        return self.plan(nominal)

    def default_dtypes(self, default: str) -> tuple[str, ...]:
        """The dtypes of a call in which undecided leaves have `default`."""
        own = (default if leaf.dtype == "default" else leaf.dtype for leaf in self.ordered)
        return (default, *own)


def replan(
    plan: ContractionPlan, edited: Any, sizes: Mapping[Any, Any] | None = None
) -> ContractionPlan:
    """What `plan.reuse(edited, sizes)` gives."""
    outputs = from_network(edited) if isinstance(edited, TensorNetwork) else edited
    options = PlanOptions(minimize=plan.minimize)
    given = {} if sizes is None else sizes
    return Compilation(outputs, None, given, options, parameters_known=False).plan_from(plan)
