"""All that the page shows, as JSON: networks, and for inference and training the plans by ranges.

In: a compiled network and sizes. Out: a dict of plain values, the same for the same network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from tncompiler.draw.explorer.formulas import Formulas
from tncompiler.draw.explorer.lineage import Lineage
from tncompiler.draw.explorer.networks import network_data, tree_data
from tncompiler.draw.explorer.steps import Part, Setting, Sizes, part_data
from tncompiler.draw.tree import tree_of
from tncompiler.inspection import Inspection
from tncompiler.ir.errors import GradientError, PlanError
from tncompiler.ir.network import networks_of
from tncompiler.ir.passes.partition import again_names
from tncompiler.ir.scans.steps import programs_within
from tncompiler.ir.sizes import Terms
from tncompiler.planning.machine import as_machine
from tncompiler.planning.memory import held_terms
from tncompiler.planning.plan import NetworkOrder

HIGH = 65_536  # where sliders end
_TRAINED = 600  # tensors; of larger networks only the forward pass is shown
_RANGED = 64  # tensors; larger networks have one plan for all sizes
_FINE = 400  # steps; the times of longer programs are given at fewer sizes


def page_data(network: Inspection, sizes: Mapping[Any, Any] | None = None) -> dict[str, Any]:
    """What the page of a compiled network shows; `sizes` fixes free sizes or starts sliders."""
    return _Page(network, dict(sizes or {})).data()


@dataclass
class _Page:
    network: Inspection
    given: dict[Any, Any]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        compilation = self.network.compilation
        self.nominal: Sizes = dict(compilation.nominal(self.given))
        self.symbols = self._sliding()
        self.formulas = Formulas(self.symbols, {**compilation.binding, **self.nominal})
        logical = compilation.logical(compilation.default_dtypes("float32"))
        self.networks = [n for inner in programs_within(logical) for n in networks_of(inner)]
        self.tensors = sum(len(one.tensors) for one in self.networks)
        self.rates = as_machine(compilation.options.machine).planning

    def data(self) -> dict[str, Any]:
        modes = [self._mode("inference", "forward")]
        if self.tensors <= _TRAINED and (training := self._training()) is not None:
            modes.append(training)
        elif self.tensors > _TRAINED:
            self.notes.append("Only the forward pass is shown: the network is large.")
        fixed = [s for s in self.nominal if s not in self.symbols]
        if fixed:
            shown = ", ".join(f"{s.name} = {self.nominal[s]}" for s in fixed)
            self.notes.append(f"Other sizes follow or are fixed: {shown}.")
        if len(self.symbols) > 1:
            self.notes.append("Times between the sizes of several sliders are estimates.")
        self.notes.append("Times are predictions for one thread by the table of the machine.")
        return {
            "title": self._title(),
            "symbols": [self._symbol(symbol) for symbol in self.symbols],
            "networks": [network_data(network, self.formulas) for network in self.networks],
            "modes": modes,
            "notes": self.notes,
        }

    def _title(self) -> str:
        outputs = self.network.compilation.outputs
        results = [f"({', '.join(index.name for index in out.indices)})" for out in outputs]
        leaves = [leaf.name for leaf in self.network.compilation.ordered]
        shown = ", ".join(leaves if len(leaves) <= 8 else [*leaves[:7], f"{len(leaves) - 7} more"])
        return f"{shown} → {', '.join(results)}"

    # ---------------------------------------------------------------- sizes

    def _sliding(self) -> list[sympy.Symbol]:
        """The sizes that can be chosen freely: no equation speaks of them."""
        compilation = self.network.compilation
        bound = {
            symbol
            for equation in compilation.equations
            for size in equation.sizes
            for symbol in getattr(size, "free_symbols", ())
        }
        return [symbol for symbol in compilation.free_symbols if symbol not in bound]

    def _symbol(self, symbol: sympy.Symbol) -> dict[str, Any]:
        nominal = self.nominal[symbol]
        high = max(HIGH, nominal)
        return {"name": symbol.name, "nominal": nominal, "low": min(1, nominal), "high": high}

    def _grids(self, low: int, high: int, count: int) -> Iterator[list[Sizes]]:
        """Sizes at which times are given: along each symbol, the others as they are."""
        for number, symbol in enumerate(self.symbols):
            ends = (low, high) if not number else (min(1, self.nominal[symbol]), HIGH)
            places = _powers(*ends, self.nominal[symbol], 4 if count < _FINE else 64)
            yield [{**self.nominal, symbol: size} for size in places]
        if not self.symbols:
            yield [self.nominal]

    # ---------------------------------------------------------------- plans

    def _training(self) -> dict[str, Any] | None:
        """The training step; None if there is nothing to differentiate."""
        if not self.network._differentiable(None):
            return None
        try:
            return self._mode("training", "step")
        except GradientError:  # an output of integers, or what has no gradient
            return None

    def _mode(self, name: str, part: str) -> dict[str, Any]:
        views = [self._view(low, high, part) for low, high in self._ranges(part)]
        if self.symbols:
            views[-1]["high"] = None
        return {"name": name, "views": views}

    def _ranges(self, part: str) -> list[tuple[int, int]]:
        """The ranges of the first symbol in which one plan runs."""
        if not self.symbols:
            return [(1, HIGH)]
        first = self.symbols[0]
        high = max(HIGH, self.nominal[first])
        if self.tensors > _RANGED:
            self.notes.append(f"The plan is that of {first.name} = {self.nominal[first]}.")
            return [(min(1, self.nominal[first]), high)]
        given = {k: v for k, v in self.nominal.items() if k in self.symbols and k != first}
        low = min(1, self.nominal[first])
        try:
            family = self.network.plans(low, high, symbol=first, sizes=given, part=part)
        except PlanError:  # a limit of memory that no plan keeps at every size
            self.notes.append(f"Only the plan for {first.name} = {self.nominal[first]} is shown.")
            return [(low, high)]
        return [(member.low, member.high) for member in family.members]

    def _view(self, low: int, high: int, part: str) -> dict[str, Any]:
        """One plan: trees, programs and sources at a size of its range."""
        sizes = dict(self.nominal)
        if self.symbols and not low <= sizes[self.symbols[0]] <= high:
            sizes[self.symbols[0]] = round((max(low, 1) * high) ** 0.5)
        parts, orders = self._parts(sizes, part)
        trees = [
            (self.networks[which], tree_of(self.networks[which], order))
            for which, order in self._found(orders)
        ]
        lineage = Lineage.of(trees)
        count = sum(len(part.program.steps) for part in parts)
        grids = list(self._grids(low, high, count))
        setting = Setting(self.formulas, sizes, self.rates, grids)
        return {
            "low": low,
            "high": high if self.symbols else None,
            "grids": [self._grid(k, grid) for k, grid in enumerate(grids) if self.symbols],
            "trees": [
                tree_data(nodes, self.networks.index(network), self.formulas)
                for network, nodes in trees
            ],
            "parts": [part_data(part, setting, lineage) for part in parts],
        }

    def _grid(self, which: int, grid: Sequence[Sizes]) -> dict[str, Any]:
        symbol = self.symbols[which]
        sizes = [at[symbol] for at in grid]
        return {"symbol": which, "sizes": sizes, "nominal": self.nominal[symbol]}

    def _found(self, orders: Sequence[NetworkOrder]) -> Iterator[tuple[int, NetworkOrder]]:
        """The networks of a plan's orders that have a tensor to draw."""
        numbers = {network.name: k for k, network in enumerate(self.networks)}
        for order in orders:
            if order.tensors and order.name in numbers:
                yield numbers[order.name], order

    def _parts(self, sizes: Sizes, part: str) -> tuple[list[Part], Sequence[NetworkOrder]]:
        network, compilation = self.network, self.network.compilation
        known = {k: v for k, v in sizes.items() if k in self.symbols}
        if part == "forward":
            program = network.program(known)
            forward = Part(part, program, network.source(known), Terms(), {}, {})
            return [forward], network.plan(known).networks
        dtypes, wrt = network._dtypes(), network._differentiable(None)
        cut = compilation.training(dtypes, sizes, wrt)
        backend = "torch" if network.backend == "auto" else network.backend
        made = compilation.training_executable(dtypes, sizes, wrt, backend)
        gradients: dict[str, list[str]] = {}
        for name, leaf in zip(cut.backward.outputs, wrt, strict=True):
            gradients.setdefault(name, []).append(leaf)
        marks = dict.fromkeys(cut.saved, "saved")
        again = dict.fromkeys(again_names(cut), "recomputed")
        held = held_terms(cut.forward)
        parts = [
            Part("forward", cut.forward, made.forward.source.text, Terms(), marks, {}),
            Part("backward", cut.backward, made.backward.source.text, held, again, gradients),
        ]
        return parts, compilation.plan(sizes, dtypes, wrt).networks


def _powers(low: int, high: int, nominal: int, factor: int) -> list[int]:
    """Sizes from low to high, each so many times the last, and the nominal one if it is there."""
    sizes, size = {low, high}, max(low, 1)
    while size < high:
        sizes.add(size)
        size *= factor
    return sorted(sizes | ({nominal} if low <= nominal <= high else set()))
