"""The whole pipeline: expressions → logical program → plan → scheduled → source → callable.

`Scheduling` goes as far as scheduled programs, `Limiting` makes those that may fit into memory,
`Training` differentiates them; `Compilation`, the same for torch and NumPy users, makes callables.
Each stage is made on demand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from tncompiler.backends import code_of
from tncompiler.backends.source import Code, Source
from tncompiler.debug import show
from tncompiler.ir.interchange.graphs import from_network
from tncompiler.ir.network import TensorNetwork
from tncompiler.ir.passes.partition import TrainingPrograms
from tncompiler.ir.passes.segments import write_traced
from tncompiler.ir.program import Program
from tncompiler.planning.budget import Budget
from tncompiler.planning.fit import UNLIMITED, FittedOrders, fastest
from tncompiler.planning.keeping import Kept, cut_kept
from tncompiler.planning.machine import as_machine
from tncompiler.planning.memory import peak_bytes, step_peak
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.plan import ContractionPlan, make_plan
from tncompiler.planning.rates import Rates
from tncompiler.planning.reuse import reuse_orders
from tncompiler.planning.schedule import schedule
from tncompiler.planning.slicing import (
    Fitted,
    fit_program,
)
from tncompiler.planning.sweep import JOINED, sweep_orders
from tncompiler.planning.tiling import Tiled, tile_program
from tncompiler.planning.timing import HOP_US, LANES_US, is_faster_alone, program_us, threaded_us
from tncompiler.problem import Nominal
from tncompiler.training import Training


@dataclass(frozen=True, slots=True)
class Executable:
    """A scheduled program with its source and callable."""

    program: Program
    loaded: Code

    @property
    def source(self) -> Source:
        return self.loaded.source

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


class Compilation(Training):
    """One set of outputs on its way down; stages are made on demand, once, under a lock."""

    def on(self, backend: str) -> Compilation:
        """The same problem for programs of a backend: kernels read axes in any order."""
        if backend != "triton" or not self.places_by_time:
            return self

        def make() -> Compilation:
            twin = copy(self)
            twin.places_by_time, twin._cache = False, {}
            return twin

        return self._once(("twin",), make)  # type: ignore[no-any-return]

    def led_by(self, library: str) -> Compilation:
        """The same problem with its plans made by the rates of another of the CPU's libraries."""

        def make() -> Compilation:
            twin = copy(self)
            machine = as_machine(self.options.machine).cpu.led_by(library)
            twin.options, twin._cache = replace(self.options, machine=machine), {}
            return twin

        return self._once(("led by", library), make)  # type: ignore[no-any-return]

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
            with self._one_call() as budget:
                found = [
                    FittedOrders(
                        orders,
                        fit_program(program, nominal, limit, rates, start=cuts, budget=budget),
                    )
                    for program, orders, cuts in self._alternatives(dtypes, nominal, ())
                ]
            best = fastest(found, limit)
            if best.fitted.peak > limit:
                raise self._too_small(best.fitted.peak, best.fitted.program, nominal)
            return replace(best, cut=self._was_cut(dtypes, nominal))

        return self._once(  # type: ignore[no-any-return]
            ("inference", dtypes, tuple(nominal.items())), make
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

    def pack(self, results: Sequence[Any]) -> Any:
        """Results of a program in the container of the outputs, networks with their scales."""
        if len(results) == 1 and self.container.kind == "one":
            return results[0]
        values, scales = results[: len(self.outputs)], iter(results[len(self.outputs) :])
        pairs = zip(values, self._paired, strict=True)
        return self.container.pack([(v, next(scales)) if pair else v for v, pair in pairs])

    # ---------------------------------------------------------------- training

    def training_programs(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...], backend: str
    ) -> TrainingPrograms:
        """What a backend runs: where a backward pass fits on chip, nothing need be saved for it."""
        if self.on(backend) is not self:
            return self.on(backend).training_programs(dtypes, nominal, wrt, backend)
        saving = self.training(dtypes, nominal, wrt)
        if backend != "triton":
            return saving

        def make() -> TrainingPrograms:
            from tncompiler.backends.triton.training import fastest_step

            joints = self._joints_on_chip(dtypes, nominal, wrt, saving)
            return fastest_step(joints, saving, nominal)

        return self._once(  # type: ignore[no-any-return]
            ("on chip", dtypes, tuple(nominal.items()), wrt), make
        )

    def _joints_on_chip(
        self,
        dtypes: tuple[str, ...],
        nominal: Nominal,
        wrt: tuple[str, ...],
        saving: TrainingPrograms,
    ) -> list[tuple[Program, int]]:
        """Joint programs that may run as chains, with the number of their outputs."""
        count = len(saving.forward.outputs) - len(saving.saved)
        swept = [self._differentiated(p, wrt, nominal) for p in self._swept(dtypes, nominal)]
        return [(joint, count) for joint in (self.joint(dtypes, nominal, wrt), *swept)]

    def _swept(self, dtypes: tuple[str, ...], nominal: Nominal) -> list[Program]:
        """Forward programs in the orders of sweeps, which may be slower step by step and are faster
        in one launch; none where an order is given, or memory is limited.
        """
        if self.options.memory_limit is not None or self._is_given or self.stabilized:
            return []
        logical = self.logical(dtypes)
        sweeps = [sweep_orders(logical, nominal, joined) for joined in JOINED]
        orders = [order for k, order in enumerate(sweeps) if order and order not in sweeps[:k]]
        made = (schedule(logical, nominal, self.options, order)[0] for order in orders)
        return [self._finished(program, nominal, self._passes()) for program in made]

    # ---------------------------------------------------------------- source and callables

    def executable(
        self, program: Program, backend: str, entry: str, *, flat: bool = False
    ) -> Executable:
        """The program as a callable; the same source is loaded once.

        ``flat``: in operations that torch differentiates, each of which gives a new tensor.
        """
        reuses = self.tiles and not flat

        def make() -> Executable:
            precision = self.options.precision
            code = code_of(backend, program, entry, precision, reuses=reuses)
            show(4, f"{entry} source", lambda: code.source.text)
            return Executable(program, code)

        return self._once(("executable", id(program), backend, entry, reuses), make)  # type: ignore[no-any-return]

    def tiled(self, program: Program, nominal: Nominal, backend: str) -> Program:
        """The program as a backend runs it: NumPy's in blocks, where that is predicted to pay."""
        if backend != "numpy" or not self.tiles:
            return program
        return self._tiled(program, nominal).program

    def _tiled(self, program: Program, nominal: Nominal) -> Tiled:
        lanes = self.lanes
        rates = self._rates_in("numpy")

        def make() -> tuple[Tiled, Program]:  # the program is kept, so that its id is its own
            start_us, threads = LANES_US[self.library], lanes if self.library == "numpy" else 1
            return tile_program(program, nominal, rates, lanes, start_us, threads), program

        return self._once(("tiled", id(program), tuple(nominal.items()), lanes), make)[0]  # type: ignore[no-any-return]

    def predicted_us(
        self,
        dtypes: tuple[str, ...],
        nominal: Nominal,
        wrt: tuple[str, ...],
        backend: str,
        program: Program | None = None,
    ) -> float:
        """Predicted microseconds of a call, or of a step, on a CPU, with entering the library.

        ``program``: what runs where no gradient is asked for, if not the whole forward program.
        """
        planned = self.planned_sizes(dtypes, nominal, wrt)
        if wrt:
            step = self.training(dtypes, nominal, wrt)
            programs: tuple[Program, ...] = (step.forward, step.backward)
        else:
            programs = (program or self.inference(dtypes, nominal).fitted.program,)
        rates = self._rates_in(backend)
        trains = bool(wrt) and self.library == "torch"
        entering = len(programs) * ((trains and rates.training_us) or rates.call_us)
        if backend != self.library:
            entering += HOP_US * sum(len(p.arguments) + len(p.outputs) for p in programs)
        if backend == "numpy" and self.tiles:
            return entering + sum(self._tiled(p, planned).time_us for p in programs)
        threads = _torch_threads() if backend == "torch" else 1

        def one(program: Program) -> float:
            if threads > 1 and is_faster_alone(program, planned, rates):
                return program_us(program, planned, rates.one_thread)
            return threaded_us(program, planned, rates, threads)

        return entering + sum(map(one, programs))

    def _rates_in(self, backend: str) -> Rates:
        """The rates that programs of a backend have: among tensors NumPy's BLAS has one thread."""
        rates = as_machine(self.options.machine).cpu.libraries[backend]
        return rates.one_thread if (backend, self.library) == ("numpy", "torch") else rates

    def runs_alone(self, program: Program, sizes: Nominal, backend: str) -> bool:
        """Whether a program at the sizes of a call is to have one of its library's threads; NumPy's
        programs say themselves what they share out."""
        return backend == "torch" and is_faster_alone(program, sizes, self._rates_in(backend))

    @property
    def tiles(self) -> bool:
        """Whether time is what counts; under a limit of memory loops are cut for memory."""
        return self.options.minimize != "memory" and self.options.memory_limit is None

    @property
    def lanes(self) -> int:
        """How many threads a call may take: as many as the user's library has."""
        if self.library == "torch":
            return _torch_threads()
        from tncompiler.backends.numpy.threads import blas_threads

        return blas_threads()

    def inference_program(
        self, dtypes: tuple[str, ...], nominal: Nominal, backend: str, *, keeps: bool = False
    ) -> Program:
        """The program of a backend where no gradient is asked for; ``keeps`` as for `inference`."""
        twin = self.on(backend)
        planned = twin.inference(dtypes, nominal, keeps=keeps).fitted.program
        if backend != "triton":
            return planned

        def make() -> Program:
            from tncompiler.backends.triton.launches import fastest

            return fastest([planned, *twin._swept(dtypes, nominal)], nominal)

        return twin._once(("launched", planned, tuple(nominal.items())), make)  # type: ignore[no-any-return]

    def inference_executable(
        self, dtypes: tuple[str, ...], nominal: Nominal, backend: str
    ) -> Executable:
        """What runs where no gradient is asked for."""
        program = self.inference_program(dtypes, nominal, backend)
        nominal = self.planned_sizes(dtypes, nominal)
        return self.executable(self.tiled(program, nominal, backend), backend, "forward")

    def flat_executable(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...] = ()
    ) -> Executable:
        """The whole program in aten operations, which change nothing, for torch to look into.

        ``wrt``: the leaves by which torch will differentiate it, as the order of its steps shows.
        """
        program = self.scheduled(dtypes, nominal, wrt)[0]
        traced = self._once(("traced", program), lambda: write_traced(program))
        return self.executable(traced, "torch", "forward", flat=True)

    def kept_executable(
        self, dtypes: tuple[str, ...], nominal: Nominal, backend: str
    ) -> KeptExecutable | None:
        """What parameters alone make, and the rest; None where nothing is kept."""
        cut = self.on(backend).kept(dtypes, nominal)
        if cut is None:
            return None
        prepare = self.executable(cut.prepare, backend, "prepare")
        rest = self.tiled(cut.rest, self.planned_sizes(dtypes, nominal), backend)
        return KeptExecutable(prepare, self.executable(rest, backend, "forward"))

    def training_executable(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...], backend: str
    ) -> TrainingExecutable:
        cut = self.training_programs(dtypes, nominal, wrt, backend)
        planned = self.planned_sizes(dtypes, nominal, wrt)
        count = len(cut.forward.outputs) - len(cut.saved)
        forward, backward = (
            self.executable(self.tiled(program, planned, backend), backend, entry)
            for program, entry in ((cut.forward, "forward"), (cut.backward, "backward"))
        )
        return TrainingExecutable(cut, forward, backward, count)

    # ---------------------------------------------------------------- plans to look at

    def plan(
        self,
        nominal: Nominal,
        dtypes: tuple[str, ...] | None = None,
        wrt: tuple[str, ...] | None = None,
        *,
        keeps: bool = False,
        budget: Budget | None = None,
    ) -> ContractionPlan:
        """The plan that a call of these sizes runs; of a training step if `wrt` names leaves.

        ``keeps`` as in `inference`. ``budget``: the time it may take, if that runs already.
        """
        with self._one_call(budget):
            dtypes = dtypes or self.default_dtypes("float32")
            return self._plan(nominal, dtypes, wrt, keeps)

    def _plan(
        self, nominal: Nominal, dtypes: tuple[str, ...], wrt: tuple[str, ...] | None, keeps: bool
    ) -> ContractionPlan:
        logical = self.logical(dtypes)
        wrt = self._planned_for(()) if wrt is None else wrt
        minimize = self.options.minimize
        is_planned = nominal == self.planned_sizes(dtypes, nominal, wrt)  # else at others
        if wrt:
            step = self.training_step(dtypes, nominal, wrt)
            fitted = step.fitted
            joint = self.joint(dtypes, nominal, wrt)
            peak = fitted.peak if is_planned else step_peak(fitted.programs, nominal)
            plan = make_plan(logical, joint, step.orders, nominal, minimize, peak)
            return replace(
                plan,
                cut=step.cut,
                replanned=self._replanned_pairs,
                saved=fitted.programs.saved,
                recomputed=fitted.programs.recomputed,
                sliced_indices=fitted.sliced,
            )
        whole = self.inference(dtypes, nominal, keeps=keeps)
        program = whole.fitted.program
        peak = whole.fitted.peak if is_planned else peak_bytes(program, nominal)
        plan = make_plan(logical, program, whole.orders, nominal, minimize, peak)
        return replace(
            plan,
            sliced_indices=whole.fitted.sliced,
            cut=whole.cut,
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


def _torch_threads() -> int:
    """How many threads torch shares an operation out among; NumPy's where it is not loaded."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()  # type: ignore[no-any-return]
    from tncompiler.backends.numpy.threads import blas_threads

    return blas_threads()


def replan(
    plan: ContractionPlan, edited: Any, sizes: Mapping[Any, Any] | None = None
) -> ContractionPlan:
    """What `plan.reuse(edited, sizes)` gives."""
    outputs = from_network(edited) if isinstance(edited, TensorNetwork) else edited
    options = PlanOptions(minimize=plan.minimize)
    given = {} if sizes is None else sizes
    return Compilation(outputs, None, given, options, parameters_known=False).plan_from(plan)
