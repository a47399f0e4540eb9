"""What is to be computed: outputs, their leaves in order, and the sizes that are known.

The part of a compilation that knows nothing of programs: it reads `inputs=` and `sizes=`, and
refuses what does not fit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import sympy

from tncompiler.container import Container
from tncompiler.ir.errors import (
    ArgumentError,
    BadSize,
    SizeClash,
    SizeEquationError,
    UnboundSize,
    UnknownIndex,
)
from tncompiler.ir.expressions import (
    Expr,
    Leaf,
    Reduce,
    Scan,
    Slice,
    equations_of,
    walk_within,
)
from tncompiler.ir.index import Index
from tncompiler.ir.lower import collect_leaves
from tncompiler.ir.names import SEED
from tncompiler.ir.origin import call_site
from tncompiler.ir.sizes import (
    Equation,
    Size,
    as_size,
    evaluate,
    render_size,
    size_symbol,
    solve_all,
    solve_for,
    substitute,
    symbols_of,
)

NOMINAL = 128  # stands for a free size until one is given
_MAX_ELEMENTS = 2**58  # of an array: 2**63 bytes hold no more of the largest dtype

Nominal = Mapping[sympy.Symbol, int]


class Problem:
    """Outputs as they were given, and all that follows from them and from the sizes."""

    def __init__(
        self, outputs: Any, inputs: Sequence[Any] | None, sizes: Mapping[Any, Any]
    ) -> None:
        self.container = Container.of(outputs)
        self.outputs: tuple[Expr, ...] = self.container.expressions
        self.all_leaves = collect_leaves(self.outputs)
        self.leaves = {leaf.name: leaf for leaf in self.all_leaves}
        self.inputs = self._input_order(inputs)
        self.params = tuple(leaf for leaf in self.all_leaves if leaf.kind == "param")
        self.constants = tuple(leaf for leaf in self.all_leaves if leaf.kind == "constant")
        self.ordered = (*self.inputs, *self.params, *self.constants)
        self.binding = self._bind_sizes(sizes)

    def place(self) -> str:
        """Where the network was written, for errors."""
        return f"the network defined at {self.outputs[0].origin}"

    def _input_order(self, wanted: Sequence[Any] | None) -> tuple[Leaf, ...]:
        own = tuple(leaf for leaf in self.all_leaves if leaf.kind == "input")
        if wanted is None:  # what need not be given comes last
            return tuple(sorted(own, key=lambda leaf: leaf.name == SEED))
        if not isinstance(wanted, list | tuple):
            raise ArgumentError(
                f"inputs= is {wanted!r:.40}",
                where=call_site(),
                fix="give a list of names or leaves",
            )
        names = [item.name if isinstance(item, Leaf) else str(item) for item in wanted]
        have = [leaf.name for leaf in own]
        if sorted(names) != sorted(have):
            raise ArgumentError(
                f"inputs= names {names}, but the network's inputs are {have}",
                where=call_site(),
                fix="name each input once",
            )
        return tuple(self.leaves[name] for name in names)

    @cached_property
    def indices(self) -> tuple[Index, ...]:
        """Every index of every node, for looking sizes up by name."""
        found: dict[Index, None] = {}
        for node in walk_within(*self.outputs):
            found.update(dict.fromkeys(node.indices))
            if isinstance(node, Scan):
                found[node.over] = None
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
            where=self.place(),
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
                f"sizes= is a {type(sizes).__name__}",
                where=call_site(),
                fix="give a dict of index or name → integer",
            )
        for key, value in sizes.items():
            self._bind_one(key, value, binding)

    @cached_property
    def equations(self) -> list[Equation]:
        """What splits, merges and windows say about sizes."""
        return equations_of(*self.outputs)

    def _bind_one(self, key: Any, value: Any, binding: dict[sympy.Symbol, int]) -> None:
        size, shown = self.symbol_of(key)
        number = as_size(value, shown)
        if not isinstance(number, int):
            raise BadSize(
                f"sizes= gives {shown} the value {value!r:.40}",
                where=self.place(),
                fix="give an integer",
            )
        size = substitute(size, binding)
        if isinstance(size, int):
            if size != number:
                raise SizeClash(
                    f"sizes= gives {shown} the size {number}, but it has size {size}",
                    where=self.place(),
                    fix="leave it out, or declare the index without a size",
                )
            return
        solve_for(size, number, binding, f"sizes={{{shown}: {number}}}")

    def check_parameters(self) -> None:
        """Refuse parameters that have no size yet, or more elements than an array can hold."""
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
            if math.prod(max(n, 1) for n in self.parameter_shape(leaf)) >= _MAX_ELEMENTS:
                raise BadSize(
                    f"parameter {leaf.name!r} has shape {self.parameter_shape(leaf)}, "
                    "which no array can have",
                    where=f"the parameter declared at {leaf.origin}",
                    fix="give smaller sizes",
                )

    def parameter_shape(self, leaf: Leaf) -> tuple[int, ...]:
        return tuple(evaluate(size, self.binding) for size in leaf.shape)

    @cached_property
    def slices(self) -> list[Slice]:
        """Slices whose bounds can only be checked once sizes are known."""
        return [
            node
            for node in walk_within(*self.outputs)
            if isinstance(node, Slice)
            and any(symbols_of(s) for s in (node.source.shape[node.axis], node.start, node.stop))
        ]

    @cached_property
    def reductions(self) -> list[Reduce]:
        """Maxima and minima, which have no value over an index of size 0."""
        return [node for node in walk_within(*self.outputs) if isinstance(node, Reduce)]

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
