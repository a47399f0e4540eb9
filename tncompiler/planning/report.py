"""What `contract_path` shows: an equation's contraction order with its costs, as a table."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from math import prod

from rich import box
from rich.console import Console
from rich.table import Table

from tncompiler.ir.equation import Equation, show_terms
from tncompiler.planning.order import Pair, intermediate_labels, ssa_to_linear

WIDTH = 120


@dataclass(frozen=True, slots=True)
class PathStep:
    """One contraction: what it does, flops, elements of its result, and how many indices it runs
    over.
    """

    equation: str
    flops: int
    elements: int
    scaling: int


@dataclass(frozen=True, slots=True)
class PathInfo:
    """A contraction order and what it costs; prints as a report.

    ``flops`` counts a multiply-add as 2, as do ``naive_flops`` for all indices in one loop;
    ``largest_intermediate`` is in elements.
    """

    equation: str
    path: tuple[tuple[int, ...], ...]
    steps: tuple[PathStep, ...]
    naive_flops: int
    naive_scaling: int
    largest_intermediate: int

    @property
    def flops(self) -> int:
        return sum(step.flops for step in self.steps)

    @property
    def speedup(self) -> float:
        """Naive flops over flops."""
        return self.naive_flops / max(self.flops, 1)

    @property
    def scaling(self) -> int:
        """The largest number of indices that a step runs over."""
        return max((step.scaling for step in self.steps), default=0)

    # as opt_einsum calls them
    @property
    def eq(self) -> str:
        return self.equation

    @property
    def opt_cost(self) -> int:
        return self.flops

    @property
    def naive_cost(self) -> int:
        return self.naive_flops

    @property
    def scale_list(self) -> list[int]:
        return [step.scaling for step in self.steps]

    def __str__(self) -> str:
        facts = [
            ("complete contraction", self.equation),
            ("naive scaling", f"{self.naive_scaling} indices"),
            ("optimized scaling", f"{self.scaling} indices"),
            ("naive flops", f"{self.naive_flops:.3e}"),
            ("optimized flops", f"{self.flops:.3e}"),
            ("fewer flops", f"{self.speedup:.3g} times"),
            ("largest intermediate", f"{self.largest_intermediate:.3e} elements"),
        ]
        table = Table("step", "contraction", "indices", "flops", "elements", box=box.SIMPLE)
        for column in table.columns[2:]:
            column.justify = "right"
        for number, (positions, step) in enumerate(zip(self.path, self.steps, strict=True)):
            shown = f"{number} {tuple(positions)}"
            table.add_row(
                shown, step.equation, str(step.scaling), f"{step.flops:.3e}", f"{step.elements:.3e}"
            )
        console = Console(file=StringIO(), width=WIDTH, color_system=None)
        for name, value in facts:
            console.print(f"{name:>22}  {value}", markup=False, highlight=False)
        console.print(table)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()

    __repr__ = __str__


def path_info(equation: Equation, pairs: Sequence[Pair]) -> PathInfo:
    """The report of an order given as SSA pairs over all operands."""
    terms = intermediate_labels(equation.inputs, equation.output, pairs)
    count, sizes = len(equation.inputs), equation.sizes
    made: list[tuple[tuple[int, ...], int]] = [
        ((a, b), count + k) for k, (a, b) in enumerate(pairs)
    ] or [((0,), count)]
    terms[count + len(made) - 1] = equation.output
    steps = []
    for operands, out in made:
        given = [terms[k] for k in operands]
        steps.append(_step(given, terms[out], sizes))
    return PathInfo(
        show_terms(equation.inputs, equation.output),
        ssa_to_linear(pairs, count) or ((0,),),
        tuple(steps),
        _flops(sizes, _inner(equation.inputs, equation.output), count, sizes),
        len(sizes),
        max(step.elements for step in steps),
    )


def _step(
    given: Sequence[tuple[Hashable, ...]], out: tuple[Hashable, ...], sizes: dict[Hashable, int]
) -> PathStep:
    labels = dict.fromkeys(label for term in given for label in term)
    flops = _flops(labels, _inner(given, out), len(given), sizes)
    elements = prod(sizes[label] for label in out)
    return PathStep(show_terms(given, out), flops, elements, len(labels))


def _inner(given: Iterable[tuple[Hashable, ...]], out: tuple[Hashable, ...]) -> bool:
    return any(label not in out for term in given for label in term)


def _flops(
    labels: Iterable[Hashable], inner: bool, operands: int, sizes: dict[Hashable, int]
) -> int:
    """Multiplications (one less than operands) and, if anything is summed, one addition."""
    return prod(sizes[label] for label in labels) * (
        max(operands - 1, 1) + (inner and operands > 1)
    )
