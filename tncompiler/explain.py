"""A compiled network as a text table: one row a step, then totals and the dense layer it replaces.

In: a compiled network, sizes, and which part of it. Out: plain text, the same on every terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import sympy
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tncompiler.inspection import Inspection
from tncompiler.ir.errors import GradientError
from tncompiler.ir.expressions import Leaf
from tncompiler.ir.matmul import is_product, matmul_form
from tncompiler.ir.program import (
    Cast,
    Contract,
    Loop,
    Map,
    Merge,
    Permute,
    Program,
    Scan,
    Split,
    Step,
    Value,
    label_sizes,
    operand_values,
)
from tncompiler.ir.sizes import as_size, evaluate, render_size, solve_all, solve_for
from tncompiler.planning.cost import FlatStep, flat_steps, program_cost
from tncompiler.planning.memory import is_view, nbytes, within
from tncompiler.planning.plan import step_equation

WIDTH = 140
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_DENSE_PRODUCTS = {"forward": 1, "backward": 2, "step": 3}  # matrix products of a dense layer


def explain(network: Inspection, sizes: Mapping[Any, Any], part: str) -> str:
    """The report for `part`: "forward", "backward" or "step", at `sizes` and assumed sizes.

    Raises: ArgumentError for an unknown part, GradientError if a backward part does not exist.
    """
    program = network.program(sizes, part)
    report = _Report(network, program, network.compilation.nominal(sizes), part)
    assumed = _assumed(network, sizes)
    lines = [*report.header(assumed), "", *report.steps(), "", *report.totals()]
    return "\n".join(lines)


def quantity(number: int | float, unit: str = "") -> str:
    """A number in engineering units: quantity(3211264, "FLOP") is "3.21 MFLOP"."""
    power, scaled = 0, float(number)
    while abs(scaled) >= 999.5 and power < len(_PREFIXES) - 1:
        scaled, power = scaled / 1000, power + 1
    if abs(scaled) >= 999.5:
        return f"{number:.3g} {unit}".rstrip()
    text = f"{scaled:.3g}" if power else f"{number:g}"
    return f"{text} {_PREFIXES[power]}{unit}".rstrip()


def copied_operands(program: Program, step: Step, nominal: Mapping[sympy.Symbol, int]) -> list[str]:
    """The operands that a step copies in another axis order, itself or before a matrix product."""
    if isinstance(step.op, Permute):
        return list(step.operands)
    if not isinstance(step.op, Contract):
        return []
    sizes = label_sizes(step.op, operand_values(program, step), step.out)
    numbers = {label: evaluate(s, nominal) for label, s in sizes.items()}
    if not is_product(step.op, numbers, step.out.dtype):
        return []
    form = matmul_form(step.op, numbers, stacks=True)
    flags = zip(step.operands, (form.a_copied, form.b_copied), strict=True)
    return [name for name, copied in flags if copied]


def _assumed(network: Inspection, sizes: Mapping[Any, Any]) -> frozenset[sympy.Symbol]:
    """The free sizes that neither the caller nor an equation gives."""
    compilation = network.compilation
    known = dict(compilation.binding)
    for key, value in sizes.items():
        size, shown = compilation.symbol_of(key)
        number = as_size(value, shown)
        if isinstance(number, int):
            solve_for(size, number, known, f"sizes={{{shown}: {number}}}")
    solve_all(compilation.equations, known)
    return frozenset(compilation.free_symbols) - known.keys()


@dataclass(frozen=True)
class _Report:
    network: Inspection
    program: Program
    nominal: Mapping[sympy.Symbol, int]
    part: str

    def header(self, assumed: frozenset[sympy.Symbol]) -> list[str]:
        compilation = self.network.compilation
        keys = compilation.container.keys or ("",) * len(compilation.outputs)
        named = zip(keys, compilation.outputs, strict=True)
        outputs = [f"{key} {self._shape(node.indices)}".lstrip() for key, node in named]
        total = sum(math.prod(compilation.parameter_shape(leaf)) for leaf in compilation.params)
        rows = [
            ("part", [self.part]),
            ("outputs", outputs),
            ("inputs", [self._leaf(leaf) for leaf in compilation.inputs]),
            ("parameters", [self._parameter(leaf) for leaf in compilation.params]),
            ("", [f"{total:,} elements in all"] if len(compilation.params) > 1 else []),
            ("constants", [self._leaf(leaf) for leaf in compilation.constants]),
            ("sizes", [self._size(symbol, assumed) for symbol in self.nominal]),
        ]
        for kind in ("saved", "cotangent"):
            found = [a.value for a in self.program.arguments if a.kind == kind]
            rows.append((kind, [f"{value.name}{self._value(value)}" for value in found]))
        return [line for title, items in rows for line in _block(title, items)]

    def _shape(self, indices: Iterable[Any]) -> str:
        evaluated = self.network.compilation.evaluated
        return f"({', '.join(f'{i.name}:{evaluated(i.size, self.nominal)}' for i in indices)})"

    def _value(self, value: Value) -> str:
        axes = zip(value.axes, self._sizes(value), strict=True)
        return f"({', '.join(f'{axis}:{size}' for axis, size in axes)})"

    def _leaf(self, leaf: Leaf) -> str:
        dtype = self.network.compute_dtype if leaf.dtype == "default" else leaf.dtype
        return f"{leaf.name}{self._shape(leaf.indices)} {dtype}"

    def _parameter(self, leaf: Leaf) -> str:
        count = math.prod(self.network.compilation.parameter_shape(leaf))
        return f"{self._leaf(leaf)}  {count:,} elements"

    def _size(self, symbol: sympy.Symbol, assumed: frozenset[sympy.Symbol]) -> str:
        note = "  (assumed: it was not given)" if symbol in assumed else ""
        return f"{render_size(symbol)} = {self.nominal[symbol]}{note}"

    def _sizes(self, value: Value) -> list[int]:
        return [evaluate(size, self.nominal) for size in value.shape]

    def steps(self) -> list[str]:
        if not self.program.steps:
            return ["no steps: every output is an argument"]
        columns = ["#", "step", "result", "work", "bytes moved"]
        notes = self.part != "backward"
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in [*columns, *(["backward"] if notes else []), "copies"]:
            right = name in ("#", "work", "bytes moved")
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        kept = self.kept() if notes else ()
        for number, flat in enumerate(flat_steps(self.program), start=1):
            nominal = self.nominal
            for loop in flat.loops:
                nominal = within(loop, nominal)
            mark = ["kept" if flat.step.out.name in kept else ""] if notes else []
            copies = ", ".join(copied_operands(flat.program, flat.step, nominal))
            row = [str(number), *self._row(flat, nominal), *mark, copies]
            table.add_row(*(Text(cell) for cell in row))
        return _rendered(table)

    def _row(self, flat: FlatStep, nominal: Mapping[sympy.Symbol, int]) -> list[str]:
        step = flat.step
        flops = flat.flops.evaluate(self.nominal)
        elements = flat.elementwise.evaluate(self.nominal)
        moved = flat.bytes_read.evaluate(self.nominal) + flat.bytes_written.evaluate(self.nominal)
        work = quantity(flops, "FLOP") if flops else quantity(elements, "elem") if elements else ""
        shape = "×".join(str(evaluate(size, nominal)) for size in step.out.shape) or "scalar"
        bytes_text = "view" if is_view(step) else quantity(moved, "B")
        if isinstance(step.op, Loop | Scan):
            shape = f"{evaluate(step.op.count, nominal)} times"
        equation = "  " * len(flat.loops) + step_equation(flat.program, step)
        return [equation, shape, work, bytes_text]

    def kept(self) -> tuple[str, ...]:
        """The steps shown whose values a training step keeps; it may be planned otherwise."""
        program, saved = self._training()
        trained = {step.out.name: step for step in program.steps}
        shown = {step.out.name: step for step in self.program.steps}
        return tuple(name for name in saved if shown.get(name) == trained[name])

    def _training(self) -> tuple[Program, tuple[str, ...]]:
        names = self.network._differentiable(None)
        try:
            cut = self.network.compilation.training(self.network._dtypes(), self.nominal, names)
        except GradientError:
            return self.program, ()
        return cut.forward, cut.saved

    def kept_bytes(self) -> int:
        """Bytes of kept values; two kept views of one array count once."""
        program, saved = self._training()
        arguments = {argument.value.name for argument in program.arguments}
        owners = {_memory(program, name) for name in saved} - arguments
        return sum(nbytes(program.values[name]).evaluate(self.nominal) for name in owners)

    def blocks(self) -> list[str]:
        """The loops that threads share where arrays or tensors are on a CPU."""
        compilation = self.network.compilation
        planned = compilation.planned_sizes(self.network._dtypes(), self.nominal)
        tiled = compilation.tiled(self.program, planned, "numpy")
        loops = [step.op for step in tiled.steps if isinstance(step.op, Loop) and step.op.lanes > 1]
        return [f"{o.width} of {o.index} at a time, on {o.lanes} threads" for o in loops]

    def totals(self) -> list[str]:
        cost = self.network.cost(self.nominal, self.part)
        moved = f"{cost.bytes_read:,} read, {cost.bytes_written:,} written"
        rows = [
            ("flops", _exact(cost.flops, "FLOP")),
            ("elementwise", _exact(cost.elementwise, "elem")),
            ("bytes moved", f"{quantity(cost.bytes_read + cost.bytes_written, 'B')} ({moved})"),
            ("peak", f"{_exact(cost.peak_bytes, 'B')}, arguments not counted"),
            ("kept", f"{_exact(self.kept_bytes(), 'B')} of computed values, for backward"),
        ]
        cut = self.network.kept(self.nominal) if self.part == "forward" else None
        if cut is not None:
            once = program_cost(cut.prepare, {}).at({})
            held = f"{_exact(cut.kept_bytes(), 'B')} ({', '.join(cut.kept)})"
            rows.append(("once", f"{_exact(once.flops, 'FLOP')} of these; kept: {held}"))
        blocks = self.blocks()
        if blocks:
            rows.append(("blocks", f"on the NumPy backend {', '.join(blocks)}"))
        dense = dense_layer(self.network, self.nominal)
        if dense is not None:
            rows.append(("dense layer", dense.compared(cost.flops, _DENSE_PRODUCTS[self.part])))
        return [f"{title:<12}{text}" for title, text in rows]


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """The matrix that a network replaces: its sizes, and the parameter elements in its place."""

    batch: int
    in_size: int
    out_size: int
    stored: int

    def compared(self, flops: int, products: int) -> str:
        """The layer against the network; a layer takes `products` matrix products."""
        elements = self.in_size * self.out_size
        work = 2 * products * self.batch * elements
        stored = f"parameters {self.stored:,} against {elements:,}"
        done = f"flops {quantity(flops, 'FLOP')} against {quantity(work, 'FLOP')}"
        ratios = _ratio(self.stored, elements), _ratio(flops, work)
        title = f"{self.in_size}→{self.out_size}"
        return f"{title}: {stored}{ratios[0]}; {done}{ratios[1]}"


def dense_layer(network: Inspection, nominal: Mapping[sympy.Symbol, int]) -> DenseLayer | None:
    """The dense layer that does the same, if the output is one input contracted with parameters.

    Maps, casts and reshapes may follow. An index of the input that is on a parameter and on the
    output too belongs to both sides of the matrix, which then is block diagonal.
    """
    program = network.compilation.logical(network._dtypes())
    moving = _moving(program)
    step = _only_contraction(program, moving) if len(program.outputs) == 1 else None
    if step is None or not isinstance(step.op, Contract):
        return None
    data = [k for k, name in enumerate(step.operands) if name in moving]
    if len(data) != 1 or not _is_input(program, step.operands[data[0]]):
        return None
    own = set(step.op.inputs[data[0]])
    weights = {k for n, labels in enumerate(step.op.inputs) if n != data[0] for k in labels}
    out = set(step.op.output)
    if not own - out or not weights:
        return None
    numbers = label_sizes(step.op, operand_values(program, step), step.out)

    def count(labels: Iterable[int]) -> int:
        return math.prod(evaluate(numbers[label], nominal) for label in labels)

    used = _ancestors(program, [n for k, n in enumerate(step.operands) if k != data[0]])
    stored = (a.value for a in program.arguments if a.kind == "param" and a.value.name in used)
    elements = sum(math.prod(evaluate(s, nominal) for s in value.shape) for value in stored)
    shared = own & weights & out
    batch = (own & out) - weights
    return DenseLayer(count(batch), count(own - batch), count(out - own | shared), elements)


def _moving(program: Program) -> frozenset[str]:
    """The values that depend on an input."""
    moving = {a.value.name for a in program.arguments if a.kind == "input"}
    for step in program.steps:
        if moving & set(step.operands):
            moving.add(step.out.name)
    return frozenset(moving)


def _only_contraction(program: Program, moving: frozenset[str]) -> Step | None:
    """The one contraction of inputs that maps and reshapes make the output of."""
    pending, found = [program.outputs[0]], dict[str, Step]()
    while pending:
        step = program.producers.get(pending.pop())
        if step is None:
            return None
        if isinstance(step.op, Contract):
            found[step.out.name] = step
        elif isinstance(step.op, Map | Cast | Split | Merge):
            pending += [name for name in step.operands if name in moving]
        else:
            return None
    return next(iter(found.values())) if len(found) == 1 else None


def _is_input(program: Program, name: str) -> bool:
    """Whether a value is an input, perhaps reshaped."""
    step = program.producers.get(name)
    while step is not None and isinstance(step.op, Split | Merge | Cast):
        name = step.operands[0]
        step = program.producers.get(name)
    return any(a.kind == "input" and a.value.name == name for a in program.arguments)


def _ancestors(program: Program, names: Sequence[str]) -> frozenset[str]:
    """The names and everything they are made of."""
    seen, pending = set[str](), list(names)
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            step = program.producers.get(name)
            pending += step.operands if step is not None else ()
    return frozenset(seen)


def _memory(program: Program, name: str) -> str:
    """The value in whose memory a value lives."""
    step = program.producers.get(name)
    while step is not None and step.operands and is_view(step):
        name = step.operands[0]
        step = program.producers.get(name)
    return name


def _exact(number: int, unit: str) -> str:
    short = quantity(number, unit)
    return short if abs(number) < 1000 else f"{short} ({number:,})"


def _ratio(mine: int, theirs: int) -> str:
    if not mine or not theirs:
        return ""
    if mine == theirs:
        return " (the same)"
    more = mine > theirs
    factor = mine / theirs if more else theirs / mine
    return f" ({factor:.3g} times {'more' if more else 'fewer'})"


def _block(title: str, items: Sequence[str]) -> list[str]:
    """Items below each other, the title beside the first."""
    return [f"{title if not k else '':<12}{item}" for k, item in enumerate(items)]


def _rendered(table: Table) -> list[str]:
    text = StringIO()
    console = Console(
        file=text, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(table)
    return [line.rstrip() for line in text.getvalue().rstrip().splitlines()]
