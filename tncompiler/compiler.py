"""The whole pipeline: expressions → logical program → plan → scheduled → source → callable.

`compile` is the public entry; `Compilation` holds what is the same for torch and NumPy users and
keeps every stage it has made.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy

from tncompiler.backends import emitter
from tncompiler.backends.source import Source, load
from tncompiler.container import Container
from tncompiler.debug import show, watcher
from tncompiler.ir.dtypes import dtype_name, is_differentiable
from tncompiler.ir.errors import (
    ArgumentError,
    BackendError,
    BadSize,
    DTypeError,
    PlanError,
    SizeClash,
    SizeEquationError,
    UnboundSize,
    UnknownIndex,
)
from tncompiler.ir.expressions import Expr, Leaf, Merge, Slice, Split, walk
from tncompiler.ir.index import Index
from tncompiler.ir.lower import collect_leaves, lower
from tncompiler.ir.passes import LOGICAL_PASSES, SCHEDULED_PASSES, run_passes
from tncompiler.ir.passes.adjoint import adjoint
from tncompiler.ir.passes.partition import TrainingPrograms, partition
from tncompiler.ir.passes.tangent import tangent
from tncompiler.ir.program import Contract, Program
from tncompiler.ir.sizes import (
    Size,
    SizeEquation,
    as_size,
    evaluate,
    render_size,
    size_symbol,
    solve_all,
    solve_for,
    substitute,
    symbols_of,
)
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.plan import ContractionPlan, make_plan, program_digest
from tncompiler.planning.schedule import schedule

NOMINAL = 128  # stands for a free size until one is given

Nominal = Mapping[sympy.Symbol, int]


def compile(
    outputs: Any,
    *,
    inputs: Sequence[Any] | None = None,
    sizes: Mapping[Any, Any] | None = None,
    backend: Any = "auto",
    framework: Any = "torch",
    dtype: Any = None,
    seed: int | None = None,
    plan: PlanOptions | ContractionPlan | None = None,
    share: Any = None,
    cuda_graph: bool = False,
    process_group: Any = None,
) -> Any:
    """Compile an expression, a tuple or a dict of them.

    Returns a torch module whose parameters are the network's, or with framework="numpy" a plain
    callable on NumPy arrays. ``sizes`` gives sizes by Index, symbol or name; those of parameters
    must be known. ``inputs`` fixes the order of positional arguments. ``backend``: "auto", "numpy"
    or "torch". ``seed`` fixes the initial parameters; ``share`` takes those of another compiled
    network. Raises a TncError that says what, where and how to mend it.
    """
    if cuda_graph or process_group is not None:
        raise BackendError("cuda_graph and process_group are not built yet", fix="leave them out")
    if not isinstance(backend, str) or backend != "auto":
        emitter(backend)  # raises on an unknown one
    name = None if dtype is None else dtype_name(dtype)
    if name is not None and not is_differentiable(name):
        raise DTypeError(
            f"dtype={name!r} cannot be that of parameters",
            fix="give a float or complex dtype here, and integer ones to single inputs",
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise ArgumentError(f"seed is {seed!r}", fix="give an integer, 0 or more")
    if share is not None and not isinstance(getattr(share, "compilation", None), Compilation):
        raise ArgumentError(
            f"share is a {type(share).__name__}", fix="give a network made by tnc.compile"
        )
    compilation = Compilation(outputs, inputs, {} if sizes is None else sizes, plan)
    if not isinstance(framework, str):
        framework = repr(framework)
    if framework == "numpy":
        from tncompiler.function import NumpyFunction

        return NumpyFunction(compilation, backend=backend, dtype=name, seed=seed, share=share)
    if framework == "torch":
        from tncompiler.module import CompiledModule

        return CompiledModule(compilation, backend=backend, dtype=name, seed=seed, share=share)
    raise BackendError(f"there is no framework {framework!r}", fix="choose torch or numpy")


def plan(
    expr: Any, sizes: Mapping[Any, Any] | None = None, options: PlanOptions | None = None
) -> ContractionPlan:
    """The plan for an expression at the given sizes (free sizes count as 128)."""
    given = {} if sizes is None else sizes
    compilation = Compilation(expr, None, given, options, parameters_known=False)
    return compilation.plan(compilation.nominal({}))


@dataclass(frozen=True, slots=True)
class Executable:
    """A scheduled program with its source and callable."""

    program: Program
    source: Source
    run: Callable[..., tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class TrainingExecutable:
    """Forward (outputs, then saved values) and backward, made from one joint program."""

    programs: TrainingPrograms
    forward: Executable
    backward: Executable
    output_count: int


class Compilation:
    """One set of outputs on its way down; stages are made on demand, once, under a lock."""

    def __init__(
        self,
        outputs: Any,
        inputs: Sequence[Any] | None,
        sizes: Mapping[Any, Any],
        plan: PlanOptions | ContractionPlan | None,
        parameters_known: bool = True,
    ) -> None:
        self.container = Container.of(outputs)
        self.outputs: tuple[Expr, ...] = self.container.expressions
        if plan is not None and not isinstance(plan, PlanOptions | ContractionPlan):
            raise PlanError(
                f"plan is a {type(plan).__name__}", fix="give a tnc.PlanOptions or a saved plan"
            )
        self.fixed_plan = plan if isinstance(plan, ContractionPlan) else None
        self.options = plan if isinstance(plan, PlanOptions) else PlanOptions()
        self.all_leaves = collect_leaves(self.outputs)
        self.leaves = {leaf.name: leaf for leaf in self.all_leaves}
        self.inputs = self._input_order(inputs)
        self.params = tuple(leaf for leaf in self.all_leaves if leaf.kind == "param")
        self.constants = tuple(leaf for leaf in self.all_leaves if leaf.kind == "constant")
        self.ordered = (*self.inputs, *self.params, *self.constants)
        self.binding = self._bind_sizes(sizes)
        if parameters_known:
            self._check_parameters()
        self._cache: dict[object, Any] = {}
        self._lock = threading.RLock()

    # ---------------------------------------------------------------- leaves and sizes

    def _input_order(self, wanted: Sequence[Any] | None) -> tuple[Leaf, ...]:
        own = tuple(leaf for leaf in self.all_leaves if leaf.kind == "input")
        if wanted is None:
            return own
        if not isinstance(wanted, list | tuple):
            raise ArgumentError(f"inputs= is {wanted!r}", fix="give a list of names or leaves")
        names = [item.name if isinstance(item, Leaf) else str(item) for item in wanted]
        have = [leaf.name for leaf in own]
        if sorted(names) != sorted(have):
            raise ArgumentError(
                f"inputs= names {names}, but the network's inputs are {have}",
                fix="name each input once",
            )
        return tuple(self.leaves[name] for name in names)

    @cached_property
    def indices(self) -> tuple[Index, ...]:
        """Every index of every node, for looking sizes up by name."""
        found: dict[Index, None] = {}
        for node in walk(*self.outputs):
            found.update(dict.fromkeys(node.indices))
        return tuple(found)

    def symbol_of(self, key: Any) -> tuple[Size, str]:
        """The size that a key of `sizes=` means, and how to call it."""
        known = {s for index in self.indices for s in symbols_of(index.size)}
        if isinstance(key, Index) and key in self.indices:
            return key.size, repr(key.name)
        if isinstance(key, sympy.Symbol) and key in known:
            return key, repr(key.name)
        matches = [index.size for index in self.indices if index.name == key]
        symbolic = [size for size in matches if not isinstance(size, int)]
        if symbolic or matches:
            return (symbolic or matches)[0], repr(key)
        if isinstance(key, str) and size_symbol(key) in known:
            return size_symbol(key), repr(key)
        names = ", ".join(sorted({index.name for index in self.indices}))
        shown = key.name if isinstance(key, Index) else str(key)
        raise UnknownIndex(
            f"sizes= names {shown!r}, which no index or size of the network is called",
            fix=f"the indices are: {names}",
        )

    def _bind_sizes(self, sizes: Mapping[Any, Any]) -> dict[sympy.Symbol, int]:
        binding: dict[sympy.Symbol, int] = {}
        self._bind_given(sizes, binding)
        solve_all(self.equations, binding)
        return binding

    def _bind_given(self, sizes: Mapping[Any, Any], binding: dict[sympy.Symbol, int]) -> None:
        if not isinstance(sizes, Mapping):
            raise ArgumentError(
                f"sizes= is a {type(sizes).__name__}", fix="give a dict of index or name → integer"
            )
        for key, value in sizes.items():
            self._bind_one(key, value, binding)

    @cached_property
    def equations(self) -> list[SizeEquation]:
        """What splits and merges say about sizes."""
        nodes = walk(*self.outputs)
        return [node.equation for node in nodes if isinstance(node, Split | Merge)]

    def _bind_one(self, key: Any, value: Any, binding: dict[sympy.Symbol, int]) -> None:
        size, shown = self.symbol_of(key)
        number = as_size(value, shown)
        if not isinstance(number, int):
            raise BadSize(f"sizes= gives {shown} the value {value!r}", fix="give an integer")
        if isinstance(size, int):
            if size != number:
                raise SizeClash(
                    f"sizes= gives {shown} the size {number}, but it has size {size}",
                    fix="leave it out, or declare the index without a size",
                )
            return
        solve_for(size, number, binding, f"sizes={{{shown}: {number}}}")

    def _check_parameters(self) -> None:
        for leaf in self.params:
            for axis, size in enumerate(leaf.shape):
                left = symbols_of(substitute(size, self.binding))
                if left:
                    index = leaf.indices[axis].name
                    raise UnboundSize(
                        f"parameter {leaf.name!r} has no size for index {index!r} (axis {axis}): "
                        f"{render_size(size)} is still a symbol",
                        where=f"the parameter declared at {leaf.origin}",
                        fix=f"compile(…, sizes={{{index!r}: …}})",
                    )

    def parameter_shape(self, leaf: Leaf) -> tuple[int, ...]:
        return tuple(evaluate(size, self.binding) for size in leaf.shape)

    @cached_property
    def slices(self) -> list[Slice]:
        """Slices whose bounds can only be checked once sizes are known."""
        return [
            node
            for node in walk(*self.outputs)
            if isinstance(node, Slice)
            and any(symbols_of(s) for s in (node.source.shape[node.axis], node.start, node.stop))
        ]

    @cached_property
    def free_symbols(self) -> tuple[sympy.Symbol, ...]:
        """Sizes that only a call makes known, in order of name."""
        found = {
            symbol
            for index in self.indices
            for symbol in symbols_of(substitute(index.size, self.binding))
        }
        return tuple(sorted(found, key=lambda symbol: symbol.name))

    def nominal(self, sizes: Mapping[Any, Any]) -> dict[sympy.Symbol, int]:
        """Integers for all free sizes: the given ones, what follows from them, and a stand-in."""
        binding = dict(self.binding)
        self._bind_given(sizes, binding)
        solve_all(self.equations, binding)
        parts = {s for e in self.equations for part in e.parts for s in symbols_of(part)}
        for symbol in sorted(self.free_symbols, key=lambda symbol: symbol not in parts):
            if symbol not in binding:
                binding[symbol] = NOMINAL
                with contextlib.suppress(SizeEquationError):  # only a stand-in: it need not fit
                    solve_all(self.equations, binding)
        return {symbol: binding[symbol] for symbol in self.free_symbols}

    def evaluated(self, size: Size, nominal: Nominal) -> int:
        return evaluate(size, {**self.binding, **nominal})

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
            )
            return run_passes(program, LOGICAL_PASSES, watcher=watcher())

        return self._once(("logical", dtypes), make)  # type: ignore[no-any-return]

    def scheduled(self, dtypes: tuple[str, ...], nominal: Nominal) -> tuple[Program, Any]:
        """The program for inference, and the orders of its networks."""

        def make() -> tuple[Program, Any]:
            logical = self.logical(dtypes)
            program, orders = schedule(logical, nominal, self.options, self._orders(logical))
            finished = run_passes(program, SCHEDULED_PASSES, scheduled=True, watcher=watcher())
            show(1, "orders", "\n".join(f"{name}: {pairs}" for name, pairs in orders.items()))
            show(3, "scheduled program", finished.to_text())
            return finished, orders

        return self._once(  # type: ignore[no-any-return]
            ("scheduled", dtypes, tuple(nominal.items())), make
        )

    def _orders(self, logical: Program) -> Any:
        if self.fixed_plan is None:
            return None
        if self.fixed_plan.digest != program_digest(logical):
            raise PlanError(
                "the plan was made for another network or other sizes",
                fix="make one with tnc.plan(expr, sizes=…)",
            )
        steps = [s.out.name for s in logical.steps if isinstance(s.op, Contract) and s.operands]
        return dict(
            zip(steps, (network.pairs for network in self.fixed_plan.networks), strict=True)
        )

    def training(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]
    ) -> TrainingPrograms:
        """Forward and backward programs, for gradients by the leaves named in `wrt`."""

        def make() -> TrainingPrograms:
            program, _ = self.scheduled(dtypes, nominal)
            joint, _ = schedule(adjoint(program, wrt), nominal, self.options)
            joint = run_passes(joint, SCHEDULED_PASSES, scheduled=True, watcher=watcher())
            show(3, "joint program", joint.to_text())
            return partition(joint, len(self.outputs))

        return self._once(  # type: ignore[no-any-return]
            ("training", dtypes, tuple(nominal.items()), wrt), make
        )

    def joint(self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...]) -> Program:
        """Forward and backward as one program."""
        cut = self.training(dtypes, nominal, wrt)
        cotangents = tuple(a for a in cut.backward.arguments if a.kind == "cotangent")
        count = len(self.outputs)
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

        def make() -> Program:
            program, _ = self.scheduled(dtypes, nominal)
            moved, _ = schedule(tangent(program, wrt), nominal, self.options)
            return run_passes(moved, SCHEDULED_PASSES, scheduled=True, watcher=watcher())

        return self._once(  # type: ignore[no-any-return]
            ("tangent", dtypes, tuple(nominal.items()), wrt), make
        )

    # ---------------------------------------------------------------- source and callables

    def executable(self, program: Program, backend: str, entry: str) -> Executable:
        """The program as a callable; the same source is loaded once."""

        def make() -> Executable:
            source = emitter(backend)(program, entry)
            show(4, f"{entry} source", source.text)
            run = self._once(("loaded", source.text), lambda: load(source))
            return Executable(program, source, run)

        return self._once(("executable", id(program), backend, entry), make)  # type: ignore[no-any-return]

    def inference_executable(
        self, dtypes: tuple[str, ...], nominal: Nominal, backend: str
    ) -> Executable:
        return self.executable(self.scheduled(dtypes, nominal)[0], backend, "forward")

    def training_executable(
        self, dtypes: tuple[str, ...], nominal: Nominal, wrt: tuple[str, ...], backend: str
    ) -> TrainingExecutable:
        cut = self.training(dtypes, nominal, wrt)
        forward = self.executable(cut.forward, backend, "forward")
        backward = self.executable(cut.backward, backend, "backward")
        return TrainingExecutable(cut, forward, backward, len(self.outputs))

    def plan(self, nominal: Nominal, dtypes: tuple[str, ...] | None = None) -> ContractionPlan:
        """The plan of the forward pass."""
        dtypes = dtypes or self.default_dtypes("float32")
        logical = self.logical(dtypes)
        program, orders = self.scheduled(dtypes, nominal)
        return make_plan(logical, program, orders, nominal, self.options.minimize)

    def default_dtypes(self, default: str) -> tuple[str, ...]:
        """The dtypes of a call in which undecided leaves have `default`."""
        own = (default if leaf.dtype == "default" else leaf.dtype for leaf in self.ordered)
        return (default, *own)
