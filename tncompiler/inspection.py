"""What a compiled network shows of itself: explain, plan, cost, source, draw."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sympy

from tncompiler.backends import emitter_of
from tncompiler.compiler import Compilation
from tncompiler.ir.dtypes import is_differentiable
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.origin import call_site
from tncompiler.ir.program import Program
from tncompiler.planning.cost import Cost, program_cost
from tncompiler.planning.family import PlanFamily
from tncompiler.planning.keeping import Kept
from tncompiler.planning.memory import live_terms, peak_expression, step_peak, step_terms
from tncompiler.planning.plan import ContractionPlan
from tncompiler.problem import Nominal

if TYPE_CHECKING:
    from tncompiler.backends.triton.kernels import CompiledLaunch

PARTS = ("forward", "backward", "step")


class Inspection:
    """Mixin over `compilation` and `default_dtype`. ``sizes`` everywhere gives free sizes."""

    compilation: Compilation
    backend: str
    usual_backend = "torch"  # which can run every call; what "auto" takes depends on its sizes

    @property
    def compute_dtype(self) -> str:
        """The dtype of leaves that declare none."""
        raise TypeError(f"{type(self).__name__} does not say its dtype")

    @property
    def keeps(self) -> bool:
        """Whether a call as things are keeps what parameters alone make for the next one."""
        return False

    def kept(self, sizes: Mapping[Any, Any] | None = None) -> Kept | None:
        """What is made once for all calls, and the rest; None if every call makes everything."""
        nominal = self.compilation.nominal({} if sizes is None else sizes)
        return self.compilation.kept(self._dtypes(), nominal) if self.keeps else None

    def _dtypes(self) -> tuple[str, ...]:
        return self.compilation.default_dtypes(self.compute_dtype)

    def _differentiable(self, wrt: Sequence[str] | None) -> tuple[str, ...]:
        leaves = (*self.compilation.inputs, *self.compilation.params)
        if wrt is None:
            return tuple(leaf.name for leaf in leaves if is_differentiable(leaf.dtype))
        known = {leaf.name for leaf in leaves}
        for name in wrt:
            if name not in known:
                raise ArgumentError(
                    f"there is no input or parameter {name!r}",
                    where=call_site(),
                    fix=f"choose of {sorted(known)}",
                )
        return tuple(wrt)

    def program(
        self,
        sizes: Mapping[Any, Any] | None = None,
        part: str = "forward",
        wrt: Sequence[str] | None = None,
    ) -> Program:
        """The scheduled program of the forward pass, the backward pass, or a whole training step.

        The forward pass is that of `plan`, what is kept between calls included; `kept` cuts it.
        ``wrt`` names the leaves that require gradients; all inputs and parameters if not given.
        """
        if not isinstance(part, str) or part not in PARTS:
            raise ArgumentError(
                f"there is no part {part!r}", where=call_site(), fix=f"choose of {', '.join(PARTS)}"
            )
        nominal = self.compilation.nominal({} if sizes is None else sizes)
        if part == "forward":
            return self.compilation.inference(
                self._dtypes(), nominal, keeps=self.keeps
            ).fitted.program
        names = self._differentiable(wrt)
        if part == "backward":
            return self.compilation.training(self._dtypes(), nominal, names).backward
        return self.compilation.joint(self._dtypes(), nominal, names)

    def plan(self, sizes: Mapping[Any, Any] | None = None) -> ContractionPlan:
        """The plan that a call of these sizes without gradients runs.

        Free sizes that are not given count as 128; `plans` lists the ranges. Where a call keeps
        what parameters alone make (a module after `eval()`, a NumPy function), products of
        parameters counted as free.
        """
        nominal = self.compilation.nominal({} if sizes is None else sizes)
        return self.compilation.plan(nominal, self._dtypes(), keeps=self.keeps)

    def plans(
        self,
        low: int = 1,
        high: int = 65536,
        *,
        symbol: Any = None,
        sizes: Mapping[Any, Any] | None = None,
        part: str = "forward",
    ) -> PlanFamily:
        """The plans that calls run for the sizes low … high of the free size, by ranges.

        ``symbol`` names the size if several are free, ``sizes`` gives the others. ``part``:
        "forward", or "step" for calls that ask for all gradients.
        """
        from tncompiler.families import free_size, make_family

        if part not in ("forward", "step"):
            raise ArgumentError(
                f"there are no plans of part {part!r:.40}",
                where=call_site(),
                fix="choose of forward, step",
            )
        wrt = self._differentiable(None) if part == "step" else ()
        wanted = free_size(self.compilation, symbol)
        bounds, keeps = (low, high), self.keeps
        return make_family(
            self.compilation, self._dtypes(), wanted, bounds, wrt, sizes, keeps=keeps
        )

    def cost(self, sizes: Mapping[Any, Any] | None = None, part: str = "forward") -> Cost:
        """Flops, bytes and peak of all outputs together; symbolic in the sizes that are free.

        The peak of a step counts outputs and saved values as alive until its end. A forward pass is
        the first call's, where what parameters alone make is kept for those that follow.
        """
        program = self.program(sizes, part)
        nominal = self.compilation.nominal({} if sizes is None else sizes)
        cost = program_cost(program, nominal)
        if part == "step":
            names = self._differentiable(None)
            cut = self.compilation.training(self._dtypes(), nominal, names)
            cost = replace(cost, peak_bytes=step_peak(cut, nominal))
        return cost.at(self.compilation.nominal(sizes)) if sizes else cost

    def predicted_us(
        self, sizes: Mapping[Any, Any] | None = None, *, keeps: bool | None = None
    ) -> float:
        """Predicted microseconds of a call without gradients on a CPU, by torch's table.

        Free sizes that are not given count as 128. What parameters alone make is left out where a
        call keeps it: as things are, unless ``keeps`` says (a module keeps after `eval()`).
        """
        nominal, dtypes = self.compilation.nominal({} if sizes is None else sizes), self._dtypes()
        is_kept = self.keeps if keeps is None else keeps
        cut = self.compilation.kept(dtypes, nominal) if is_kept else None
        program = None if cut is None else cut.rest
        return self.compilation.predicted_us(dtypes, nominal, (), "torch", program)

    @property
    def flops(self) -> sympy.Expr | int:
        """Flops of the forward pass in the free sizes."""
        return self.cost().flops

    @property
    def peak_memory(self) -> int:
        """Peak bytes of computed values in the forward pass, with free sizes at 128."""
        return self.cost().peak_bytes

    def peak_expression(self, part: str = "forward") -> sympy.Expr:
        """The peak in bytes as an unevaluated Max in the free sizes (plan for sizes of 128)."""
        program = self.program(None, part)
        if part != "step":
            return peak_expression(live_terms(program))
        nominal, names = self.compilation.nominal({}), self._differentiable(None)
        return peak_expression(
            step_terms(self.compilation.training(self._dtypes(), nominal, names))
        )

    def source(
        self,
        sizes: Mapping[Any, Any] | None = None,
        part: str = "forward",
        backend: str | None = None,
        wrt: Sequence[str] | None = None,
    ) -> str:
        """The generated code of the forward or the backward pass.

        Where a call keeps what parameters alone make, first the function that makes it.
        """
        chosen = self.backend if backend is None else backend
        if isinstance(chosen, str) and chosen == "auto":
            chosen = self.usual_backend
        emitter_of(chosen)  # raises BackendError
        cut = self.kept(sizes) if part == "forward" else None
        if cut is not None:
            programs = [(cut.prepare, "prepare"), (cut.rest, part)]
        else:
            programs = [(self._run_program(sizes, part, wrt, chosen), part)]
        planned = self._planned(sizes, () if part == "forward" else self._differentiable(wrt))
        tiled = [(self.compilation.tiled(p, planned, chosen), entry) for p, entry in programs]
        texts = [self.compilation.executable(p, chosen, e).source.text for p, e in tiled]
        return "\n\n".join(texts)

    def _planned(self, sizes: Mapping[Any, Any] | None, wrt: tuple[str, ...]) -> Nominal:
        """The sizes whose plan a call runs."""
        nominal = self.compilation.nominal({} if sizes is None else sizes)
        return self.compilation.planned_sizes(self._dtypes(), nominal, wrt)

    def _run_program(
        self, sizes: Mapping[Any, Any] | None, part: str, wrt: Sequence[str] | None, backend: str
    ) -> Program:
        """The program of a part as a backend runs it."""
        nominal = self.compilation.nominal({} if sizes is None else sizes)
        compilation = self.compilation.on(backend)
        if part != "backward" and backend != "triton":
            return self.program(sizes, part, wrt)
        if part != "backward":
            return compilation.inference_program(self._dtypes(), nominal, backend, keeps=self.keeps)
        names = self._differentiable(wrt)
        return compilation.training_programs(self._dtypes(), nominal, names, backend).backward

    def kernels(
        self,
        target: str = "sm_90",
        sizes: Mapping[Any, Any] | None = None,
        part: str = "forward",
        wrt: Sequence[str] | None = None,
    ) -> list[CompiledLaunch]:
        """The launches of the "forward" pass, the "backward" pass or both ("step"), compiled.

        No GPU is needed. ``target``: "sm_80", "sm_90", "sm_100" or "gfx942"; free sizes that are
        not given count as 128. Each has `.name`, `.registers` and `.spill_bytes` of a thread,
        `.shared_bytes`, `.grid`, `.asm` and `.binary`. They are those of the fastest plan that
        spills nothing there: a chain that does in each configuration is cut, or made pairwise.
        Cost: seconds a kernel, in a child process. Raises: BackendError for an unknown target.
        """
        from tncompiler.backends.triton.kernels import compile_program

        nominal = self.compilation.nominal({} if sizes is None else sizes)
        known = {**self.compilation.binding, **nominal}
        precision = self.compilation.options.precision
        launches: list[CompiledLaunch] = []
        for name in ("forward", "backward") if part == "step" else (part,):
            program = self._run_program(sizes, name, wrt, "triton")
            launches += compile_program(program, name, precision, known, target).launches
        return launches

    def explain(self, sizes: Mapping[Any, Any] | None = None, part: str = "forward") -> str:
        """A text table: one line a step with equation, sizes, flops and bytes; totals below."""
        from tncompiler.explain import explain

        return explain(self, sizes or {}, part)

    def draw(
        self,
        what: str = "network",
        *,
        ax: Any = None,
        sizes: Mapping[Any, Any] | None = None,
        **options: Any,
    ) -> Any:
        """A matplotlib picture; returns the Axes.

        ``what``: "network" (``without=`` the name of a tensor leaves it out, as the gradient does;
        ``layout="own"`` looks the same with and without Graphviz, "graphviz" demands it),
        "tree", "memory" over the steps, "roofline" (``part=``), or "family": the plans of a range
        of sizes (``symbol=, low=, high=, part=``).
        """
        from tncompiler.draw import draw

        return draw(self, what, ax=ax, sizes=sizes, **options)

    def to_html(self, path: str | os.PathLike[str], sizes: Mapping[Any, Any] | None = None) -> Path:
        """Write the plan explorer: one page that needs nothing but a browser; returns its path.

        The network beside the tree beside the generated source, for inference and training: step
        through it, move the sliders of free sizes, look for an index. ``sizes``: where the sliders
        start. Raises: ArgumentError if the page would take more than 2 MB.
        """
        from tncompiler.draw.explorer import write_page

        return write_page(self, path, sizes)

    def _repr_svg_(self) -> str | None:
        """The network, for notebooks."""
        from tncompiler.draw.notebook import compiled_svg

        return compiled_svg(self)
