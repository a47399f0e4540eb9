"""A cell made concrete: terms, sizes and arrays of one network, the same for all contestants.

In: a Cell. Out: a Problem, whose operands are named tensors with letters for axes, and its Arrays.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from benchmarks import networks
from benchmarks.cases import Case, CaseError, Cell
from benchmarks.convolutions import (
    CORES,
    INPUT,
    OUTPUT,
    WindowLetters,
    sizes_of,
    windows_of,
)


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor: its name, a letter for each axis, and whether it is an input or a parameter."""

    name: str
    term: str
    is_input: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """``operands`` contracted to the letters ``output``; ``sizes`` of all letters, the batch too.

    ``gradients``: names of the operands that a training step differentiates. ``positive``: draw
    positive numbers, so that a long sum cancels nothing. ``windows``: letters whose positions go
    together; with any, the equation alone does not say what is computed.
    """

    cell: Cell
    operands: tuple[Operand, ...]
    output: str
    sizes: Mapping[str, int]
    positive: bool = False
    windows: tuple[WindowLetters, ...] = ()

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(operand.term for operand in self.operands)

    @property
    def equation(self) -> str:
        return f"{','.join(self.terms)}->{self.output}"

    @property
    def inputs(self) -> tuple[Operand, ...]:
        return tuple(operand for operand in self.operands if operand.is_input)

    @property
    def parameters(self) -> tuple[Operand, ...]:
        return tuple(operand for operand in self.operands if not operand.is_input)

    @property
    def gradients(self) -> tuple[str, ...]:
        whole = self.cell.case.input_gradient
        return tuple(o.name for o in self.operands if whole or not o.is_input)

    def shape(self, term: str) -> tuple[int, ...]:
        return tuple(self.sizes[letter] for letter in term)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self.shape(term) for term in self.terms)

    @property
    def numbers_moved(self) -> int:
        """Elements of inputs, parameters and output; in a step those of their gradients too."""
        operands = sum(map(prod, self.shapes))
        output = prod(self.shape(self.output))
        if self.cell.part == "forward":
            return operands + output
        named = {o.name: prod(self.shape(o.term)) for o in self.operands}
        return operands + 2 * output + sum(named[name] for name in self.gradients)


@dataclass(frozen=True, slots=True)
class Arrays:
    """``operands`` by name, and the ``cotangent`` of the output, in the cell's dtype."""

    operands: Mapping[str, np.ndarray]
    cotangent: np.ndarray


def build_problem(cell: Cell) -> Problem:
    """The network of a cell. Raises: CaseError if its description makes no sense."""
    try:
        operands, output, sizes = _BUILDERS[cell.case.kind](cell.case, cell.batch)
        positive = cell.case.kind in _POSITIVE
        windows = windows_of(cell.case.fields) if cell.case.kind == "conv" else ()
        return _checked(Problem(cell, operands, output, sizes, positive, windows))
    except CaseError:
        raise
    except Exception as error:  # of whatever library builds it; the case is to be named
        what = f"cannot be built: {type(error).__name__}: {error}"
        raise CaseError(cell.case.id, "*", what, "mend the case, or wait for its format") from error


Network = tuple[tuple[Operand, ...], str, dict[str, int]]
_POSITIVE = ("peps", "regular")


def _layer(case: Case, batch: int) -> Network:
    """x (b, ins) times a weight in a format: (b, outs)."""
    import tncompiler as tnc
    from tncompiler.ir.interchange.equations import to_einsum

    options = {key: case.fields[key] for key in ("rank", "blocks") if key in case.fields}
    weight = getattr(tnc.formats, case.fields["format"])(**options).network(
        case.fields["ins"], case.fields["outs"]
    )
    count = len(case.fields["ins"])
    rows = tnc.Index("batch", batch)
    x = tnc.input("x", rows, *weight.indices[:count])
    equation = to_einsum(tnc.contract(x, weight, out=(rows, *weight.indices[count:])))
    left, output = equation.split("->")
    pairs = list(zip(equation.operands, left.split(","), strict=True))
    sizes = {k: int(n) for leaf, t in pairs for k, n in zip(t, leaf.shape, strict=True)}
    return tuple(Operand(leaf.name, t, leaf.kind == "input") for leaf, t in pairs), output, sizes


def _einsum(case: Case, batch: int) -> Network:
    """An equation; its letter B, if any, is the batch; the first `inputs` operands are inputs."""
    left, arrow, output = case.fields["equation"].partition("->")
    if not arrow:
        raise CaseError(case.id, "equation", "has no '->'", "write the output out")
    terms = left.split(",")
    inputs = case.fields.get("inputs", 0)
    operands = (Operand(f"T{k}", term, k < inputs) for k, term in enumerate(terms))
    sizes = {**case.fields["sizes"], **({"B": batch} if batch else {})}
    return tuple(operands), output, sizes


def _mps(case: Case, batch: int) -> Network:
    operands, output, sizes = networks.mps(**case.fields)
    named = tuple(Operand(name, term, name.startswith("x")) for name, term in operands)
    return named, output, {**sizes, "B": batch}


def _conv(case: Case, batch: int) -> Network:
    fields = case.fields
    cores = (Operand(name, term, False) for name, term in CORES[fields["format"]].items())
    return (Operand("x", INPUT, True), *cores), OUTPUT, {**sizes_of(fields), "B": batch}


def _closed(case: Case, batch: int) -> Network:
    """A network with no open index; all tensors are parameters."""
    terms, sizes = getattr(networks, case.kind)(**case.fields)
    return tuple(Operand(f"T{k}", term, False) for k, term in enumerate(terms)), "", sizes


_BUILDERS: dict[str, Any] = {
    "layer": _layer,
    "einsum": _einsum,
    "mps": _mps,
    "conv": _conv,
    "peps": _closed,
    "regular": _closed,
    "circuit": _closed,
}


def _checked(problem: Problem) -> Problem:
    """Letters have sizes, and the batch is where the case says."""
    case = problem.cell.case
    seen = "".join(window.out for window in problem.windows)  # through windows
    used = set("".join((*problem.terms, seen)))
    for letter in sorted(used | set(problem.output)):
        if not problem.sizes.get(letter):
            fix = "give it in sizes, or list batch sizes for B"
            raise CaseError(case.id, "sizes", f"letter {letter!r} has no size", fix)
    for letter in problem.output:
        if letter not in used:
            fix = "an output letter stands in an operand too"
            raise CaseError(case.id, "equation", f"no operand has {letter!r}", fix)
    if unused := sorted(set(problem.sizes) - used):
        fix = "remove it; without a letter B a case has no batch"
        raise CaseError(case.id, "sizes", f"no operand has {unused[0]!r}", fix)
    return problem


def draw_arrays(problem: Problem) -> Arrays:
    """Arrays of a problem, the same in every run; results are of the order of one."""
    rng = np.random.default_rng(zlib.crc32(problem.cell.case.id.encode()))
    dtype = problem.cell.dtype
    drawn = {o.name: _draw(problem, o, rng).astype(dtype) for o in problem.operands}
    cotangent = rng.standard_normal(problem.shape(problem.output)).astype(dtype)
    return Arrays(drawn, cotangent if problem.output else np.ones((), dtype))


def _draw(problem: Problem, operand: Operand, rng: np.random.Generator) -> np.ndarray:
    shape = problem.shape(operand.term)
    kind = problem.cell.case.kind
    if kind == "circuit":
        return networks.draw_gate(shape, rng)
    if kind == "mps":
        return networks.draw_site(operand.name, shape, rng)
    if problem.positive:
        return rng.uniform(0.5, 1.5, shape) / np.sqrt(prod(shape))
    kept = {*problem.output, *(window.source for window in problem.windows)}
    summed = prod(n for k, n in problem.sizes.items() if k not in kept)
    scale = 1.0 if operand.is_input else summed ** (-0.5 / max(len(problem.parameters), 1))
    return np.asarray(rng.standard_normal(shape) * scale)
