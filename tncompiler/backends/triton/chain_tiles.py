"""Tiles of a chain kernel: names, padded shapes, and the way from memory onto the chip and back.

A tile has one axis for each atom of its value, padded to a power of two; the streamed index has
ROWS positions. Arrays are dense, in the order of their axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sympy

from tncompiler.backends.naming import Names, comment_name
from tncompiler.backends.triton.atoms import Atom
from tncompiler.backends.triton.chain import Chain, pad
from tncompiler.backends.triton.pairwise_kernel import RESERVED
from tncompiler.ir.program import Value
from tncompiler.ir.sizes import Size, product, render_size

AT = "at"  # where a tile of an open index begins
WIDENING = ("widen", "widen_rows", "widen_batch", "widen_batch_rows", "split_columns", "split_rows")

Key = tuple[int, int]  # a label of a step, and which of its atoms


@dataclass(frozen=True, slots=True)
class Tile:
    """A value on chip.

    ``order``: the value's flat axes in the order of the tile's; ``dirty``: those (flat) along which
    padding may hold other numbers than zero. ``dtype`` is that of the variable.
    """

    variable: str
    order: tuple[int, ...]
    dtype: str
    dirty: frozenset[int] = frozenset()


class TileWriter:
    """Lines of one kernel, and the tiles that its values are held in."""

    def __init__(
        self, chain: Chain, name: str, variables: Mapping[str, str], precision: str
    ) -> None:
        self.chain, self.name, self.precision = chain, name, precision
        self.program = chain.program
        self.names = Names()
        self.names.reserve((*RESERVED, *WIDENING, "row", "parts", "ROWS", AT))
        self.pointers = {
            v.name: self.names(("array", v.name), variables[v.name], "a")
            for v in (*chain.inputs, *chain.outputs)
        }
        self.tiles: dict[str, Tile] = {}
        self.lines: list[str] = []
        self.after: list[str] = []  # sums get the shapes of their values when all is summed
        self.indent = 1
        self.resident = {step.out.name: step for step in chain.resident}
        self.steps = {step.out.name: step for step in self.program.steps}
        self.size_names: dict[sympy.Symbol, str] = {}
        self.extent = self.size(chain.stream.size)
        double = any(value.dtype == "float64" for value in self.program.values.values())
        self.dtype = "float64" if double else "float32"  # what sums are kept in

    def line(self, text: str, comment: str = "") -> None:
        self.lines.append("    " * self.indent + text + (f"  # {comment}" if comment else ""))

    def size(self, size: Size) -> str:
        if isinstance(size, int):
            return str(size)
        for symbol in sorted(size.free_symbols, key=lambda s: s.name):
            if symbol not in self.size_names:
                self.size_names[symbol] = self.names(symbol, f"{symbol.name}_size", "size")
        return render_size(size, self.size_names)

    def variable(self, value: Value) -> str:
        return self.names(
            ("tile", value.name),
            f"{value.name}_tile" if value.name in self.pointers else value.name,
            "t",
        )

    # ------------------------------------------------------------------ shapes

    def width(self, atom: Atom) -> int:
        """Positions of an index other than the streamed one that a tile has."""
        return self.chain.width if atom == self.chain.tile else pad(int(atom.size))

    def is_exact(self, atom: Atom) -> bool:
        """Whether a tile has no padding along the index."""
        if atom == self.chain.stream:
            return False
        return atom == self.chain.tile or pad(int(atom.size)) == atom.size

    def padded(self, atom: Atom) -> int | str:
        return "ROWS" if atom == self.chain.stream else self.width(atom)

    def count(self, atoms: Iterable[Atom], rows: int = 1) -> int:
        """Elements of a tile with so many rows."""
        return math.prod(rows if a == self.chain.stream else self.width(a) for a in atoms)

    def shape(self, atoms: Iterable[Atom | None]) -> str:
        texts = ["1" if a is None else str(self.padded(a)) for a in atoms]
        return f"({', '.join(texts)},)" if len(texts) == 1 else f"({', '.join(texts)})"

    def extent_text(self, atoms: Sequence[Atom]) -> str:
        """The product of padded sizes, ROWS as a name."""
        number = math.prod(self.width(a) for a in atoms if a != self.chain.stream)
        if self.chain.stream not in atoms:
            return str(number)
        return "ROWS" if number == 1 else f"ROWS * {number}"

    def comment(self, value: Value, order: Sequence[int]) -> str:
        flat = self.chain.flat(value.name)
        return f"({', '.join(comment_name(flat[k].name, k) for k in order)})"

    # ------------------------------------------------------------------ memory

    def groups(self, value: Value) -> list[list[int]]:
        """The flat axes in runs that one index steps through: all but a run's first are whole."""
        flat = self.chain.flat(value.name)
        runs: list[list[int]] = []
        for position, atom in enumerate(flat):
            whole = self.is_exact(atom) and atom != self.chain.tile
            if runs and whole and flat[runs[-1][0]] != self.chain.stream:
                runs[-1].append(position)
            else:
                runs.append([position])
        return runs

    def address(self, value: Value) -> tuple[str, str]:
        """Offsets of a whole tile into a dense array, and its mask."""
        flat, runs = self.chain.flat(value.name), self.groups(value)
        terms, masks = [], []
        for number, run in enumerate(runs):
            tail = ", ".join(":" if k == number else "None" for k in range(len(runs)))
            tail = f"[{tail}]" if len(runs) > 1 else ""
            stride = product(a.size for a in flat[run[-1] + 1 :])
            index, bound = self.run_index([flat[k] for k in run])
            scaled = index if stride == 1 else f"{index} * {self.size(stride)}"
            terms.append(f"({scaled}){tail}" if tail and stride != 1 else f"{scaled}{tail}")
            if bound:
                masks.append(f"({index} < {bound}){tail}")
        return " + ".join(terms) or "0", " & ".join(masks)

    def run_index(self, atoms: Sequence[Atom]) -> tuple[str, str]:
        """The positions of a tile along a run of axes; and their end, if padding goes beyond it."""
        if atoms[0] == self.chain.stream:
            return "row", self.extent
        steps, count = f"tl.arange(0, {self.count(atoms)})", math.prod(int(a.size) for a in atoms)
        if atoms[0] == self.chain.tile:
            inner = self.count(atoms[1:])
            return f"({AT} * {inner} + {steps})" if inner > 1 else f"({AT} + {steps})", ""
        return steps, "" if count == self.count(atoms) else str(count)

    def load(self, value: Value) -> None:
        flat = self.chain.flat(value.name)
        pointer = self.pointers[value.name]
        offset, mask = self.address(value)
        given = f", mask={mask}, other=0.0" if mask else ""
        text = f"tl.load({pointer} + {offset}{given})"
        if len(self.groups(value)) != len(flat):
            text = f"tl.reshape({text}, {self.shape(flat)})"
        variable = self.variable(value)
        order = tuple(range(len(flat)))
        self.line(f"{variable} = {text}", self.comment(value, order))
        self.tiles[value.name] = Tile(variable, order, value.dtype)

    def in_memory_order(self, value: Value) -> str:
        """The tile with its axes in the order of the array, in runs."""
        tile, flat = self.tiles[value.name], self.chain.flat(value.name)
        text = self.permuted(tile.variable, tile.order, tuple(range(len(flat))))
        runs = self.groups(value)
        if len(runs) != len(flat):
            sizes = [self.extent_text([flat[k] for k in run]) for run in runs]
            text = f"tl.reshape({text}, ({', '.join(sizes)},))"
        return text

    def store(self, value: Value) -> None:
        offset, mask = self.address(value)
        given = f", mask={mask}" if mask else ""
        pointer = self.pointers[value.name]
        self.line(f"tl.store({pointer} + {offset}, {self.in_memory_order(value)}{given})")

    # ------------------------------------------------------------------ axes

    def flat_axes(self, name: str) -> list[list[int]]:
        """The flat positions of each axis of a value."""
        found, position = [], 0
        for axis in self.chain.atoms[name]:
            found.append(list(range(position, position + len(axis))))
            position += len(axis)
        return found

    def keys(self, name: str, labels: Sequence[int]) -> list[Key]:
        """A key for each flat axis of a value whose axes have these labels."""
        axes = self.chain.atoms[name]
        return [
            (label, k) for label, atoms in zip(labels, axes, strict=True) for k in range(len(atoms))
        ]

    def permuted(self, text: str, have: Sequence[object], want: Sequence[object]) -> str:
        if tuple(have) == tuple(want):
            return text
        axes = ", ".join(str(list(have).index(k)) for k in want)
        return f"tl.permute({text}, ({axes}))"
