"""The chain kernel: a program's steps on tiles that stay on chip, a few rows at a time.

In: a chain and its tiles. Out: the source of one kernel, and where in the array of partial sums
each sum lies. A tile has one axis for each atom of its value, padded to a power of two; padding is
zero wherever a sum would see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from tncompiler.backends.naming import comment_name
from tncompiler.backends.triton.atoms import Atom
from tncompiler.backends.triton.chain import LEAST_DEPTH, LEAST_SIDE, Chain, renames
from tncompiler.backends.triton.chain_tiles import AT, Key, Tile, TileWriter
from tncompiler.backends.triton.pairwise_kernel import number_text
from tncompiler.backends.triton.spelling import FUNCTIONS, ZERO_AT_ZERO
from tncompiler.ir.dtypes import LOW_PRECISION
from tncompiler.ir.program import (
    Cast,
    Contract,
    Literal,
    Map,
    Merge,
    Permute,
    Split,
    Step,
    Value,
)

MIN_DEPTH = 16  # terms that tl.dot wants; shorter sums get zeros in between
ROWS = 16  # stands for the rows when products are weighed
WARPS = 8  # that share a long sum
HELD_SUMS = 2**12  # elements of its parts together: 16 in a thread
SMALL_PRODUCT = 2**12  # multiplications of a product too small for tl.dot


@dataclass(frozen=True, slots=True)
class Parts:
    """What a program has summed: ``offsets`` where each sum begins, ``total`` elements."""

    offsets: Mapping[str, int]
    total: int

    @staticmethod
    def of(sums: Iterable[Value]) -> Parts:
        offsets, total = {}, 0
        for value in sums:
            offsets[value.name] = total
            total += math.prod(int(size) for size in value.shape)
        return Parts(offsets, total)


@dataclass(frozen=True, slots=True)
class ChainSource:
    """A function on tiles. ``arrays`` are the values that it is given, ``symbols`` the sizes;
    ``sums``: whether it is given room for sums; ``dtype`` is that of a sum."""

    name: str
    text: str
    arrays: tuple[str, ...]
    symbols: tuple[sympy.Symbol, ...]
    sums: bool
    dtype: str


def chain_function(
    chain: Chain, name: str, variables: Mapping[str, str], parts: Parts, precision: str = "ieee"
) -> ChainSource:
    """The kernel of a chain, ROWS positions of the streamed index at a time."""
    return _Template(chain, name, variables, parts, precision).source()


class _Template(TileWriter):
    """Writes the steps of a chain."""

    def __init__(
        self, chain: Chain, name: str, variables: Mapping[str, str], parts: Parts, precision: str
    ) -> None:
        super().__init__(chain, name, variables, precision)
        self.parts = parts
        self.early: set[str] = set()  # what is made of cores before the loop
        self.tile_in_sums = any(chain.tile in chain.flat(v.name) for v in chain.sums)

    # ------------------------------------------------------------------ the kernel as a whole

    def source(self) -> ChainSource:
        chain = self.chain
        if chain.sums:
            self.make_cores()
        if chain.tile is None:
            self.all_rows()
        elif not chain.sums:
            self.rows_in_tiles(chain.tile)
        elif not self.tile_in_sums:
            self.start_sums()
            self.open_tiles(chain.tile)
            self.rows()
            self.indent -= 1
            self.store_sums()
        else:
            self.open_tiles(chain.tile)
            self.all_rows()
        parameters = [*self.pointers.values(), *(["parts"] if chain.sums else [])]
        parameters += [*self.size_names.values(), "ROWS: tl.constexpr", "WIDE: tl.constexpr"]
        head = ["@triton.jit", f"def {self.name}({', '.join(parameters)}):"]
        text = "\n".join([*head, f'    """{self.describe()}"""', *self.lines])
        return ChainSource(
            self.name,
            text,
            tuple(self.pointers),
            tuple(self.size_names),
            bool(chain.sums),
            self.dtype,
        )

    def make_cores(self) -> None:
        """What is made of cores alone is made before the loop; cores are loaded where they are
        read, for they would take registers for the whole loop.
        """
        pending = [name for step in self.chain.streamed for name in step.operands]
        while pending:
            step = self.resident.get(pending.pop())
            if step is None or self._is_tiled(step.out.name):
                continue
            if renames(step):
                pending += step.operands
            else:
                self.need(step.out.name)
                self.early.add(step.out.name)
        self.forget_cores()

    def _is_tiled(self, name: str) -> bool:
        """Whether a value of cores is made anew for each tile of an open index."""
        operands = self.resident[name].operands if name in self.resident else ()
        own = name in self.chain.atoms and self.chain.tile in self.chain.flat(name)
        return own or any(self._is_tiled(operand) for operand in operands)

    def forget_cores(self) -> None:
        """What is loaded in a loop is known in it alone."""
        for name in [*self.tiles]:
            if name in {*self.pointers, *self.resident} - self.early:
                del self.tiles[name]

    def open_tiles(self, tile: Atom) -> None:
        """A loop over the tiles of an open index."""
        name = comment_name(tile.name, 0)
        self.line(f"for {AT} in range(0, {tile.size}, {self.chain.width}):  # {name}")
        self.indent += 1

    def all_rows(self) -> None:
        """All rows, with what is done before and after them."""
        if not self.chain.sums:  # beside sums, cores would take registers for the whole loop
            self.load_cores()
        self.start_sums()
        self.rows()
        if self.chain.sums:
            self.store_sums()

    def load_cores(self) -> None:
        """Load or make what all rows, and all tiles of an open index, read."""
        for step in self.chain.streamed:
            for name in step.operands:
                if self.chain.stream not in self.chain.flat(name) and not self._is_tiled(name):
                    self.need(name)

    def rows_in_tiles(self, tile: Atom) -> None:
        """All rows, for each all tiles of an open index: what has not the index is read and made
        once, and only the tiles' part of the cores anew for other rows.
        """
        self.load_cores()
        self.open_rows()
        inner = [s for s in self.chain.streamed if tile in self.chain.flat(s.out.name)]
        self.run([step for step in self.chain.streamed if step not in inner])
        self.open_tiles(tile)
        self.run(inner)
        self.indent -= 2

    def start_sums(self) -> None:
        """Here go the zeros of the sums."""
        self.sum_lines, self.sum_indent = len(self.lines), "    " * self.indent

    def rows(self) -> None:
        """The loop over rows."""
        self.open_rows()
        self.run(self.chain.streamed)
        self.indent -= 1

    def open_rows(self) -> None:
        """The head of the loop over rows."""
        chain = self.chain
        first, stride = "tl.program_id(0) * ROWS", "tl.num_programs(0) * ROWS"
        self.line(f"for start in tl.range({first}, {self.extent}, {stride}, disable_licm=True):")
        self.indent += 1
        self.line(f"row = start + tl.arange(0, ROWS)  # {comment_name(chain.stream.name, 0)}")
        self.line("if WIDE:")
        self.line("    row = row.to(tl.int64)  # an offset may not fit into 32 bits")

    def run(self, steps: Iterable[Step]) -> None:
        """Steps on the rows at hand; results are written as they are made."""
        for step in steps:
            for name in step.operands:
                self.need(name)
            self.step(step)
            if step.out in self.chain.outputs:
                self.store(step.out)

    def describe(self) -> str:
        made = [*self.chain.outputs, *self.chain.sums]
        return f"{', '.join(self.signature(v) for v in made)}, each program some rows of " + (
            comment_name(self.chain.stream.name, 0)
        )

    @staticmethod
    def signature(value: Value) -> str:
        axes = ", ".join(comment_name(name, k) for k, name in enumerate(value.axes))
        return f"{comment_name(value.name, 0)}({axes})"

    def need(self, name: str) -> None:
        """Load a value, or make it of resident ones, where a step first reads it."""
        if name in self.tiles:
            return
        if name in self.pointers:
            self.load(self.program.values[name])
        elif name in self.resident:
            for operand in self.resident[name].operands:
                self.need(operand)
            self.step(self.resident[name])

    # ------------------------------------------------------------------ sums over all rows

    def start_sum(self, variable: str, shape: str) -> None:
        """Zeros before the loop, for a sum that the loop adds to."""
        text = f"{self.sum_indent}{variable} = tl.zeros({shape}, tl.{self.dtype})"
        self.lines.insert(self.sum_lines, text)
        self.sum_lines += 1

    def is_sum(self, step: Step) -> bool:
        """Whether the step sums over the streamed index."""
        return step in self.chain.streamed and self.chain.stream not in self.chain.flat(
            step.out.name
        )

    def store_sums(self) -> None:
        """Write what this program has summed to its own part."""
        for line in self.after:
            self.line(line)
        self.forget_cores()
        for step in self.chain.reduced:
            for name in step.operands:
                self.need(name)
            self.step(step)
        for value in self.chain.sums:
            offset, mask = self.address(value)
            given = f", mask={mask}" if mask else ""
            start = f"tl.program_id(0) * {self.parts.total} + {self.parts.offsets[value.name]}"
            text = self.in_memory_order(value)
            self.line(f"tl.store(parts + {start} + {offset}, {text}{given})")

    # ------------------------------------------------------------------ steps

    def step(self, step: Step) -> None:
        match step.op:
            case Permute(axes):
                self._rename(step, [(axis, position) for position, axis in enumerate(axes)])
            case Cast():
                self._cast(step)
            case Split() | Merge():
                self.tiles[step.out.name] = self.tiles[step.operands[0]]
            case Map(function, wires):
                self._pointwise(step, function, wires, tuple(range(len(step.out.shape))))
            case Contract():
                self._contract(step, step.op)

    def _rename(self, step: Step, moves: Iterable[tuple[int, int]]) -> None:
        """The operand's axis `a` is the result's axis `b`, for each (a, b)."""
        source = self.flat_axes(step.operands[0])
        target = self.flat_axes(step.out.name)
        place: dict[int, int] = {}
        for a, b in moves:
            place.update(zip(source[a], target[b], strict=True))
        tile = self.tiles[step.operands[0]]
        self.tiles[step.out.name] = replace(
            tile,
            order=tuple(place[k] for k in tile.order),
            dirty=frozenset(place[k] for k in tile.dirty),
        )

    def _cast(self, step: Step) -> None:
        """Nothing happens: products take the low numbers as they are, maps widen, stores narrow."""
        self.tiles[step.out.name] = self.tiles[step.operands[0]]

    # ------------------------------------------------------------------ elementwise

    def _pointwise(
        self, step: Step, function: str, wires: Sequence[Sequence[int]], output: Sequence[int]
    ) -> None:
        value = step.out
        keys = self.keys(value.name, output)
        lead = max(
            (n for n in step.operands if n in self.tiles), key=lambda n: len(self.tiles[n].order)
        )
        lead_keys = self.keys(lead, wires[step.operands.index(lead)])
        wanted = [lead_keys[k] for k in self.tiles[lead].order]
        wanted += [key for key in keys if key not in wanted]
        flat = dict(zip(keys, self.chain.flat(value.name), strict=True))
        texts = []
        for name, wire in zip(step.operands, wires, strict=True):
            texts.append(self._aligned(name, self.keys(name, wire), wanted, flat, function))
        variable = self.variable(value)
        order = tuple(keys.index(key) for key in wanted)
        self.line(f"{variable} = {FUNCTIONS[function].format(*texts)}", self.comment(value, order))
        dirty = self._dirty_after(step, function, wires, keys)
        self.tiles[value.name] = Tile(variable, order, self._wide(value), dirty)

    def _wide(self, value: Value) -> str:
        """What elementwise steps compute in: the interpreter would add a bfloat16's bits."""
        return self.dtype if value.dtype in LOW_PRECISION else value.dtype

    def _aligned(
        self,
        name: str,
        keys: list[Key],
        wanted: Sequence[Key],
        flat: Mapping[Key, Atom],
        function: str = "",
    ) -> str:
        """An operand with its axes in the wanted order, ones where it has none, widened."""
        tile = self.tiles.get(name)
        if tile is None:
            return self.number(name)
        own = [keys[k] for k in tile.order]
        kept = [key for key in wanted if key in own]
        text = self.permuted(tile.variable, tuple(own), tuple(kept))
        if len(kept) != len(wanted) and kept:
            shape = self.shape(flat[key] if key in own else None for key in wanted)
            text = f"tl.reshape({text}, {shape})"
        wide = self._wide(self.program.values[name])
        return text if tile.dtype == wide or function == "cast" else f"{text}.to(tl.{wide})"

    def number(self, name: str) -> str:
        step = self.steps[name]
        assert isinstance(step.op, Literal)
        value = step.op.value
        if isinstance(value, int | float):
            return number_text(value, step.out.dtype)
        return f"({self.size(value)})"

    def _dirty_after(
        self, step: Step, function: str, wires: Sequence[Sequence[int]], keys: list[Key]
    ) -> frozenset[int]:
        """The flat axes along which the result's padding may be other than zero."""
        clean: list[set[Key]] = []
        marked: set[Key] = set()
        for name, wire in zip(step.operands, wires, strict=True):
            tile = self.tiles.get(name)
            own = self.keys(name, wire)
            dirty = set() if tile is None else {own[n] for n in tile.dirty}
            clean.append(set(own) - dirty)
            marked |= dirty
        if function not in (*ZERO_AT_ZERO, "relu_gate", "gelu_gate"):
            kept: set[Key] = set()
        elif function == "mul":  # zero, unless it meets infinity or NaN
            kept = set().union(*clean) - marked
        elif function in ("add", "sub"):
            kept = set.intersection(*clean)
        else:
            kept = clean[0]
        return frozenset(n for n, key in enumerate(keys) if key not in kept)

    # ------------------------------------------------------------------ contractions

    def _contract(self, step: Step, op: Contract) -> None:
        summed = {k for labels in op.inputs for k in labels} - set(op.output)
        if not summed:
            if len(op.inputs) == 1:
                labels = op.inputs[0]
                moves = [(labels.index(label), k) for k, label in enumerate(op.output)]
                self._rename(step, moves)
            else:
                self._pointwise(step, "mul", op.inputs, op.output)
            return
        wires = [self.keys(n, w) for n, w in zip(step.operands, op.inputs, strict=True)]
        out = self.keys(step.out.name, op.output)
        if len(wires) == 1:
            self._sum(step, wires, out)
            return
        a, b = wires
        batch = [k for k in out if k in a and k in b]
        m = [k for k in out if k in a and k not in b]
        n = [k for k in out if k in b and k not in a]
        depth = [k for k in a if k in b and k not in out]
        private = [k for k in (*a, *b) if k not in out and k not in depth]
        atoms = self._atoms_of(step, wires)
        sides = [self.count((atoms[k] for k in g), ROWS) for g in (batch, m, n, depth)]
        short = sides[3] < LEAST_DEPTH or min(sides[1], sides[2]) < LEAST_SIDE
        if private or short or math.prod(sides) <= SMALL_PRODUCT:
            self._sum(step, wires, out)
        else:
            self._dot(step, wires, out, (batch, m, n, depth), atoms)

    def _atoms_of(self, step: Step, wires: Sequence[list[Key]]) -> dict[Key, Atom]:
        found: dict[Key, Atom] = {}
        for name, keys in zip(step.operands, wires, strict=True):
            found.update(zip(keys, self.chain.flat(name), strict=True))
        return found

    def _sum(self, step: Step, wires: Sequence[list[Key]], out: list[Key]) -> None:
        """Multiply, then add up; for products with a side too short for tl.dot."""
        atoms = self._atoms_of(step, wires)
        depth = list(dict.fromkeys(k for keys in wires for k in keys if k not in out))
        for name, keys in zip(step.operands, wires, strict=True):
            self.clean(name, [keys.index(k) for k in depth if k in keys])
        lead = max(range(len(wires)), key=lambda k: self.count(atoms[key] for key in wires[k]))
        tile = self.tiles[step.operands[lead]]
        own = [wires[lead][k] for k in tile.order]
        kept = [k for k in own if k in out] + [k for k in out if k not in own]
        wanted = [*kept, *depth]
        texts = [
            self._aligned(n, keys, wanted, atoms)
            for n, keys in zip(step.operands, wires, strict=True)
        ]
        text = " * ".join(texts)
        variable = self.variable(step.out)
        summed = text
        for axis in reversed(range(len(kept), len(wanted))):
            summed = f"tl.sum({summed}, axis={axis})"
        if self.is_sum(step):
            self.start_sum(variable, self.shape(atoms[k] for k in kept))
            self.line(f"{variable} += {summed}", self.comment_keys(kept, atoms))
        else:
            self.line(f"{variable} = {summed}", self.comment_keys(kept, atoms))
        self._place(step, variable, kept, out, wires)

    def comment_keys(self, keys: Sequence[Key], atoms: Mapping[Key, Atom]) -> str:
        return f"({', '.join(comment_name(atoms[k].name, n) for n, k in enumerate(keys))})"

    def _place(
        self, step: Step, variable: str, kept: list[Key], out: list[Key], wires: Sequence[list[Key]]
    ) -> None:
        """The result of a contraction, dirty where an operand was."""
        dirty = {
            keys[k]
            for name, keys in zip(step.operands, wires, strict=True)
            for k in self.tiles[name].dirty
        }
        order = tuple(out.index(key) for key in kept)
        marked = frozenset(n for n, key in enumerate(out) if key in dirty)
        self.tiles[step.out.name] = Tile(variable, order, self.dtype, marked)

    def clean(self, name: str, positions: Iterable[int]) -> None:
        """Zeros in the padding along these flat axes, if anything else may be there."""
        tile, flat = self.tiles[name], self.chain.flat(name)
        masks = []
        for k in positions:
            atom = flat[k]
            if k in tile.dirty and not self.is_exact(atom):
                tail = ", ".join(":" if k == other else "None" for other in tile.order)
                index = "row" if atom == self.chain.stream else f"tl.arange(0, {self.padded(atom)})"
                masks.append(f"({index} < {self.size(atom.size)})[{tail}]")
        if masks:
            variable = self.names(("clean", len(self.lines)), f"{tile.variable}_clean", "t")
            self.line(f"{variable} = tl.where({' & '.join(masks)}, {tile.variable}, 0.0)")
            dirty = tile.dirty - frozenset(positions)
            self.tiles[name] = replace(tile, variable=variable, dirty=dirty)

    def _matrix(
        self,
        name: str,
        keys: list[Key],
        groups: Sequence[Sequence[Key]],
        atoms: dict[Key, Atom],
        low: str | None,
    ) -> str:
        """The tile as a matrix (or a batch of them) of the low dtype, or of its own."""
        tile = self.tiles[name]
        have = [keys[k] for k in tile.order]
        want = [key for group in groups for key in group]
        text = self.permuted(tile.variable, have, want)
        shaped = [g for g in groups if g or g is not groups[0]]
        if [len(g) for g in shaped] != [1] * len(want):
            sizes = ", ".join(self.extent_text([atoms[k] for k in g]) for g in shaped)
            text = f"tl.reshape({text}, ({sizes}))"
        wanted = low or self.program.values[name].dtype
        return text if tile.dtype == wanted else f"{text}.to(tl.{wanted})"

    def _parts(self, m: list[Key], n: list[Key], terms: int, atoms: dict[Key, Atom]) -> int:
        """Into how many parts a product that sums over rows is cut, which warps share.

        A warp holds all operands of what it makes, and all warps make the same small result.
        """
        made = self.count(atoms[k] for k in (*m, *n))
        parts = min(WARPS, HELD_SUMS // made, terms // MIN_DEPTH)
        return 1 << max(parts, 1).bit_length() - 1

    def _dot(
        self,
        step: Step,
        wires: Sequence[list[Key]],
        out: list[Key],
        groups: tuple[list[Key], list[Key], list[Key], list[Key]],
        atoms: dict[Key, Atom],
    ) -> None:
        batch, m, n, depth = groups
        left, right = step.operands
        for name, keys in zip(step.operands, wires, strict=True):
            self.clean(name, [keys.index(k) for k in depth])
        ordered = [
            [wires[0][k] for k in self.tiles[left].order],
            [wires[1][k] for k in self.tiles[right].order],
        ]
        m = [k for k in ordered[0] if k in m]
        n = [k for k in ordered[1] if k in n]
        larger = max((0, 1), key=lambda k: self.count(atoms[key] for key in wires[k]))
        depth = [k for k in ordered[larger] if k in depth]
        low = None if step in self.chain.reduced else self.chain.low  # sums have a wide range
        single: list[Key] = []  # of a batch each warp has matrices of its own: too much in 32 bits
        if not self.chain.low and self.count((atoms[k] for k in batch), ROWS) == 1:
            batch, single = [], batch
        x = self._matrix(left, wires[0], (batch, [*single, *m], depth), atoms, low)
        y = self._matrix(right, wires[1], (batch, [*single, *depth], n), atoms, low)
        terms = self.count(atoms[k] for k in depth)
        while terms < MIN_DEPTH:
            kind = "widen_batch" if batch else "widen"
            x, y, terms = f"{kind}({x})", f"{kind}_rows({y})", 2 * terms
        m = [*single, *m]
        kept = [*batch, *m, *n]
        sides = (batch, m, n) if batch else (m, n)
        zeros = f"({', '.join(self.extent_text([atoms[k] for k in side]) for side in sides)})"
        how = ', "tf32"' if self.precision == "tf32" and not low else ""
        variable, shape = self.variable(step.out), self.shape(atoms[k] for k in kept)
        comment = self.comment_keys(kept, atoms)
        if self.is_sum(step):
            total = self.names(("sum", step.out.name), f"{variable}_sum", "s")
            parts = 1 if batch else self._parts(m, n, terms, atoms)
            added = total
            if parts > 1:
                x, y = f"split_columns({x}, {parts})", f"split_rows({y}, {parts})"
                zeros, added = f"({parts}, {zeros[1:]}", f"tl.sum({total}, axis=0)"
            self.start_sum(total, zeros)
            self.line(f"{total} = dot({x}, {y}, {total}{how})", comment)
            self.after.append(f"{variable} = tl.reshape({added}, {shape})")
        else:
            text = f"dot({x}, {y}, tl.zeros({zeros}, tl.{self.dtype}){how})"
            if len(kept) != len(sides):
                text = f"tl.reshape({text}, {shape})"
            self.line(f"{variable} = {text}", comment)
        self._place(step, variable, kept, out, wires)
