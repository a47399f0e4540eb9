"""The pairwise kernel: one readable template, with holes for indices, addresses and functions.

In: a launch and its tiles. Out: the source of a kernel and of the line that launches it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sympy

from tncompiler.backends.naming import Names, comment_name
from tncompiler.backends.triton.expressions import Axis, Parts, Tile, is_zero_outside
from tncompiler.backends.triton.pairwise import Pairwise
from tncompiler.backends.triton.spelling import HELPERS
from tncompiler.backends.triton.tiles import Tiles
from tncompiler.backends.triton.trees import Apply, Number, Strides, Tree
from tncompiler.ir.dtypes import kind, real_part
from tncompiler.ir.program import Labels
from tncompiler.ir.sizes import Size, product, render_size, symbols_of

RESERVED: tuple[str, ...] = (
    "tl",
    "triton",
    "dot",
    "tile",
    "split",
    "start",
    "BLOCK_M",
    "BLOCK_N",
    "BLOCK_K",
)
RESERVED += ("SPLITS", "WIDE", *HELPERS)


@dataclass(frozen=True, slots=True)
class KernelSource:
    """``arrays``: names of the values that are passed, in order; ``symbols``: sizes after them.

    ``grid``: (how sizes are written, the variable of a configuration) → source of the number of
    programs along each axis. ``constants`` without a value are for the host to fill in.
    """

    name: str
    text: str
    arrays: tuple[str, ...]
    symbols: tuple[sympy.Expr, ...]
    constants: tuple[tuple[str, str], ...]
    grid: Callable[[Callable[[Size], str], str], tuple[str, ...]]


def pairwise_kernel(
    pairwise: Pairwise,
    tiles: tuple[Tiles, ...],
    name: str,
    variables: Mapping[str, str],
    precision: str = "ieee",
) -> KernelSource:
    """The kernel of a launch, for any of the tiles, of which the first are the largest.

    ``variables``: the host's names of values.
    """
    return _Template(pairwise, tiles, name, variables, precision).kernel()


class _Template:
    def __init__(
        self,
        pairwise: Pairwise,
        tiles: tuple[Tiles, ...],
        name: str,
        variables: Mapping[str, str],
        precision: str,
    ) -> None:
        self.pairwise, self.tiles, self.name = pairwise, tiles[0], name
        self.is_fixed = len(tiles) == 1
        self.precision = precision
        self.names = Names()
        self.names.reserve(RESERVED)
        self.symbols: dict[sympy.Expr, str] = {}  # sizes that the host passes
        values = {load.value.name: load.value for load in pairwise.loads}
        values[pairwise.out.name] = pairwise.out
        self.pointers = {v: self.names(("array", v), variables[v], "a") for v in values}
        self.index = {
            label: self.names(label, comment_name(text, label), f"i{label}")
            for label, text in pairwise.names.items()
        }
        self.axis_names: dict[str, str] = {}  # the flat index of a group
        self.bounds: dict[str, str] = {}  # and what it stays below, where a tile may be cut short
        self.lines: list[str] = []
        self.indent = 1

    # ------------------------------------------------------------------ the kernel as a whole

    def kernel(self) -> KernelSource:
        self._tile_numbers()
        total = self._reduce()
        self._store(total)
        wide = self._needs_wide()
        widened = [f"        {s} = tl.full((), {s}, tl.int64)" for s in self.symbols.values()]
        self.lines[self.widening : self.widening] = widened
        parameters = [*self.pointers.values(), *self.symbols.values()]
        constants = self._constants(wide)
        parameters += [f"{constant}: tl.constexpr" for constant, _ in constants]
        head = ["@triton.jit", f"def {self.name}({', '.join(parameters)}):"]
        body = [f'    """{self.describe()}"""', *self.lines]
        return KernelSource(
            self.name,
            "\n".join([*head, *body]),
            tuple(self.pointers),
            tuple(self.symbols),
            constants,
            self._grid,
        )

    def _constants(self, wide: str) -> tuple[tuple[str, str], ...]:
        """The constants of every launch; a value that is left out comes from a configuration."""
        blocks = blocks_of(self.pairwise, self.tiles)
        found = [(name, str(number) if self.is_fixed else "") for name, number in blocks]
        if self.tiles.splits > 1:
            found.append(("SPLITS", str(self.tiles.splits)))
        return (*found, ("WIDE", wide))

    def _needs_wide(self) -> str:
        """Whether offsets take 64 bits: known, or for the host to see ("")."""
        shapes = [load.value.shape for load in self.pairwise.loads] + [self.pairwise.out.shape]
        extents = [product(shape) for shape in shapes]
        if all(isinstance(extent, int) for extent in extents):
            return str(max(int(e) for e in extents) * 2 >= 2**31)
        return ""

    def _grid(self, size: Callable[[Size], str], config: str) -> tuple[str, ...]:
        p, t = self.pairwise, self.tiles
        terms = [self._tiles(p.m, "BLOCK_M", size, "triton.cdiv", f'{config}["BLOCK_M"]')]
        if p.reduction == "dot":
            terms.append(self._tiles(p.n, "BLOCK_N", size, "triton.cdiv", f'{config}["BLOCK_N"]'))
            if p.batch:
                terms.append(_factor(size(p.extent(p.batch))))
        text = " * ".join(term for term in terms if term != "1") or "1"
        return (text, str(t.splits)) if t.splits > 1 else (text,)

    def _tiles(
        self,
        group: Labels,
        block: str,
        size: Callable[[Size], str],
        cdiv: str = "tl.cdiv",
        chosen: str = "",
    ) -> str:
        """Source of the number of tiles along a group of labels."""
        extent = self.pairwise.extent(group)
        number = dict(blocks_of(self.pairwise, self.tiles))[block]
        if not self.is_fixed:
            return f"{cdiv}({size(extent)}, {chosen or block})"
        if isinstance(extent, int):
            return str(-(-extent // number))
        return f"{cdiv}({size(extent)}, {number})"

    def describe(self) -> str:
        p = self.pairwise
        out = f"{self.pointers[p.out.name]}({self._labels(p.out_strides)})"
        factors = [
            f"{self.pointers[load.value.name]}({self._labels(load.strides)})" for load in p.loads
        ]
        kinds = {"dot": "sum over ", "sum": "sum over ", "max": "max over ", "min": "min over "}
        over = ", ".join(self.index[k] for k in p.k)
        what = f"{kinds[p.reduction]}{over} of " if p.k else ""
        return f"{out} = {what}{' , '.join(factors).replace(' , ', ', ')}"

    def _labels(self, strides: Strides) -> str:
        return ", ".join(self.index[label] for label, _ in strides)

    # ------------------------------------------------------------------ lines

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def write(self, name: str, text: str) -> str:
        """A line that gives a name to a text."""
        variable = self.names(("line", len(self.lines)), name, f"{name}_")
        self.line(f"{variable} = {text}")
        return variable

    def size(self, size: Size) -> str:
        if not isinstance(size, int) and size.atoms(sympy.Pow):  # the host raises to powers
            return self.symbols.setdefault(size, self.names(size, "size", "size"))
        for symbol in sorted(symbols_of(size), key=lambda s: s.name):
            if symbol not in self.symbols:
                self.symbols[symbol] = self.names(symbol, f"{symbol.name}_size", "size")
        return render_size(size, self.symbols)

    def number(self, number: Number) -> Parts:
        """A literal as it stands in a kernel."""
        value = number.step.op.value  # type: ignore[union-attr]
        if isinstance(value, complex):
            return Parts(*(number_text(v, number.dtype) for v in (value.real, value.imag)))
        if isinstance(value, int | float):
            return Parts(number_text(value, number.dtype))
        return Parts(_factor(self.size(value)))

    # ------------------------------------------------------------------ which tile

    def _tile_numbers(self) -> None:
        p = self.pairwise
        self.line("tile = tl.program_id(0)")
        self.line("if WIDE:")
        self.line("    tile = tile.to(tl.int64)  # an offset may not fit into 32 bits")
        self.widening = len(self.lines)
        if p.reduction == "dot":
            tiles_n = self._tiles(p.n, "BLOCK_N", self.size)
            if tiles_n != "1":
                self.line(f"tile_n = tile % {tiles_n}")
                self.line(f"tile = tile // {tiles_n}")
            if p.batch:
                tiles_m = self._tiles(p.m, "BLOCK_M", self.size)
                self._indices("item", f"tile // {tiles_m}", p.batch)
                self.line(f"tile = tile % {tiles_m}")
            self._range("n", p.n, "tile_n" if tiles_n != "1" else "0", "BLOCK_N")
        self._range("m", p.m, "tile", "BLOCK_M")

    def _range(self, name: str, labels: Labels, tile: str, block: str) -> None:
        extent = self.pairwise.extent(labels)
        number = {"BLOCK_M": self.tiles.m, "BLOCK_N": self.tiles.n}[block]
        whole = tile == "0" or (self.is_fixed and extent == number)
        start = "" if whole else f"{tile} * {block} + "
        self._indices(name, f"{start}tl.arange(0, {block})", labels)
        self._bound(name, extent, number)

    def _bound(self, name: str, extent: Size, block: int) -> None:
        if not _divides(block, extent):
            self.bounds[name] = f"{self.axis_names[name]} < {_factor(self.size(extent))}"

    def _indices(self, name: str, text: str, labels: Labels) -> None:
        """Lines that take a flat index apart: the last label varies fastest."""
        if len(labels) == 1:
            self.axis_names[name] = self.index[labels[0]]
            self.line(f"{self.index[labels[0]]} = {text}")
            return
        flat = self.names(("axis", name), name, f"{name}_")
        self.axis_names[name] = flat
        if not labels:
            self.line(f"{flat} = {text}")
            return
        self.line(f"{flat} = {text}  # ({', '.join(self.index[k] for k in labels)})")
        for position, label in enumerate(labels):
            inner = product(self.pairwise.sizes[k] for k in labels[position + 1 :])
            part = flat if inner == 1 else f"{flat} // {_factor(self.size(inner))}"
            if position:
                part = f"{part} % {_factor(self.size(self.pairwise.sizes[label]))}"
            self.line(f"{self.index[label]} = {part}")

    # ------------------------------------------------------------------ the reduction

    def tile(self, *axes: str, total: Parts | None = None) -> Tile:
        tails = {1: ("",), 2: ("[:, None]", "[None, :]")}[len(axes)]
        made = tuple(
            Axis(getattr(self.pairwise, axis), tail, self.bounds.get(axis, ""))
            for axis, tail in zip(axes, tails, strict=True)
        )
        return Tile(made, self.index, self.pointers, self.write, self.size, self.number, total)

    def _reduce(self) -> Parts:
        p = self.pairwise
        if p.reduction == "map":
            return self.tile("m").parts(p.left)
        dtype = real_part(p.dtype)
        dtype = dtype if dtype == "float64" else "float32"
        shape = "(BLOCK_M, BLOCK_N)" if p.reduction == "dot" else "(BLOCK_M, BLOCK_K)"
        start = {"max": 'float("-inf")', "min": 'float("inf")'}.get(p.reduction, "0.0")
        totals = ["total_re", "total_im"] if kind(p.dtype) == "complex" else ["total"]
        for total in totals:
            self.line(f"{total} = tl.full({shape}, {start}, tl.{dtype})")
        looping = self._loop_over_k()
        if p.reduction == "dot":
            self._accumulate_products(totals)
        elif p.reduction == "sum":
            self._accumulate_sums(totals)
        else:
            self._accumulate_extrema()
        self.indent -= looping
        return self._finished(totals)

    def _loop_over_k(self) -> bool:
        p, tiles = self.pairwise, self.tiles
        extent = p.extent(p.k)
        looping = not (isinstance(extent, int) and extent <= tiles.k) or tiles.splits > 1
        if looping:
            text = _factor(self.size(extent))
            if tiles.splits > 1:
                self.line(
                    f"for start in range(tl.program_id(1) * BLOCK_K, {text}, SPLITS * BLOCK_K):"
                )
            else:
                self.line(f"for start in range(0, {text}, BLOCK_K):")
            self.indent += 1
        self._indices("k", ("start + " if looping else "") + "tl.arange(0, BLOCK_K)", p.k)
        if self._wide_k():
            self.line("if WIDE:")
            for label in p.k:
                self.line(f"    {self.index[label]} = {self.index[label]}.to(tl.int64)")
        self._bound("k", extent, tiles.k)
        return looping

    def _wide_k(self) -> bool:
        return self._needs_wide() != "False"

    def _accumulate_products(self, totals: list[str]) -> None:
        p = self.pairwise
        assert p.right is not None
        x = self._dot_operand(self.tile("m", "k"), p.left)
        y = self._dot_operand(self.tile("k", "n"), p.right)
        tf32 = self.precision == "tf32" and p.low is None and p.dtype != "float64"
        how = ', "tf32"' if tf32 or self._exceeds_low() else ""

        def add(total: str, a: str, b: str) -> None:
            self.line(f"{total} = dot({a}, {b}, {total}{how})")

        add(totals[0], x.re, y.re)
        if x.im is not None and y.im is not None:
            add(totals[0], f"-{x.im}", y.im)
        if y.im is not None:
            add(totals[1], x.re, y.im)
        if x.im is not None:
            add(totals[1], x.im, y.re)

    def _exceeds_low(self) -> bool:
        """Whether the product reads what float16 has no range for, an intermediate.

        TF32 has as many digits as float16 and the range of float32.
        """
        p = self.pairwise
        stored = all(_is_stored_in("float16", tree) for tree in (p.left, p.right))
        return p.low == "float16" and p.dtype == "float32" and not stored

    def _dot_operand(self, tile: Tile, tree: Tree) -> Parts:
        p = self.pairwise
        low = p.low if p.dtype == "float32" and not self._exceeds_low() else None
        if low and _is_stored_in(low, tree):
            assert isinstance(tree, Apply)
            (source,) = tree.arguments
            return self._zeroed(tile, source, tile.parts(source))
        parts = self._zeroed(tile, tree, tile.parts(tree))
        wanted = low or (real_part(p.dtype) if real_part(tree.dtype) != real_part(p.dtype) else "")
        if not wanted:
            return parts
        im = None if parts.im is None else f"{parts.im}.to(tl.{wanted})"
        return Parts(f"{parts.re}.to(tl.{wanted})", im)

    def _zeroed(self, tile: Tile, tree: Tree, parts: Parts) -> Parts:
        """Zero beyond the last term, where a function of zeros, or of what is there, is not."""
        bound = next((a for a in tile.axes if a.labels == self.pairwise.k and a.bound), None)
        if bound is None or is_zero_outside(tree, self.pairwise.k):
            return parts
        mask = f"({bound.bound}){bound.tail}"
        im = None if parts.im is None else self.write("part", f"tl.where({mask}, {parts.im}, 0.0)")
        return Parts(self.write("part", f"tl.where({mask}, {parts.re}, 0.0)"), im)

    def _accumulate_sums(self, totals: list[str]) -> None:
        tile = self.tile("m", "k")
        part = self._zeroed(tile, self.pairwise.left, tile.parts(self.pairwise.left))
        self.line(f"{totals[0]} += {part.re}")
        if part.im is not None:
            self.line(f"{totals[1]} += {part.im}")

    def _accumulate_extrema(self) -> None:
        tile = self.tile("m", "k")
        part = tile.parts(self.pairwise.left).re
        bound = tile.axes[1]
        name = {"max": "maximum", "min": "minimum"}[self.pairwise.reduction]
        if bound.bound:
            worst = 'float("-inf")' if name == "maximum" else 'float("inf")'
            part = f"tl.where(({bound.bound}){bound.tail}, {part}, {worst})"
        self.line(f"total = tl.{name}(total, {part}, propagate_nan=tl.PropagateNan.ALL)")

    def _finished(self, totals: list[str]) -> Parts:
        """The sum or extremum over what a tile holds side by side."""
        p = self.pairwise
        if p.reduction in ("max", "min"):
            self.line("invalid = tl.sum((total != total).to(tl.int32), axis=1) > 0")
            self.line(f"total = tl.where(invalid, float('nan'), tl.{p.reduction}(total, axis=1))")
        elif p.reduction == "sum":
            for total in totals:
                self.line(f"{total} = tl.sum({total}, axis=1)")
        return Parts(*totals)

    # ------------------------------------------------------------------ the result

    def _store(self, total: Parts) -> None:
        p = self.pairwise
        tile = self.tile(*(("m", "n") if p.reduction == "dot" else ("m",)), total=total)
        result = total if p.epilogue is None else tile.parts(p.epilogue)
        pointer = self.pointers[p.out.name]
        is_complex = kind(p.out.dtype) == "complex"
        address = tile.address(pointer, p.out_strides, 2 if is_complex else 1)
        if not p.out_strides:
            address += f" + {self.axis_names['m']}"  # the one element there is
        if self.tiles.splits > 1:
            whole = self.size(product((*p.out.shape[1:], 2 if is_complex else 1)))
            address += f" + tl.program_id(1) * {_factor(whole)}"
        mask = tile.mask()
        given = f", mask={mask}" if mask else ""
        self.line(f"tl.store({address}, {result.re}{given})")
        if is_complex:
            self.line(f"tl.store({address} + 1, {result.im or '0.0'}{given})")


def number_text(value: float, dtype: str) -> str:
    """A number in a kernel: Triton would round a plain one to float32."""
    if real_part(dtype) == "float64":
        text = repr(value) if math.isfinite(value) else f'float("{value!r}")'
        return f"tl.full((), {text}, tl.float64)"
    if not math.isfinite(value):
        return f'float("{value!r}")'
    return f"({value!r})" if value < 0 else repr(value)


def _divides(block: int, extent: Size) -> bool:
    if isinstance(extent, int):
        return extent % block == 0
    return bool(sympy.Mod(extent, block) == 0)


def _factor(text: str) -> str:
    return text if text.isidentifier() or text.isdigit() else f"({text})"


def blocks_of(pairwise: Pairwise, tiles: Tiles) -> tuple[tuple[str, int], ...]:
    """The block sizes that a kernel takes, by name."""
    if pairwise.reduction == "dot":
        return (("BLOCK_M", tiles.m), ("BLOCK_N", tiles.n), ("BLOCK_K", tiles.k))
    if pairwise.reduction == "map":
        return (("BLOCK_M", tiles.m),)
    return (("BLOCK_M", tiles.m), ("BLOCK_K", tiles.k))


def _is_stored_in(dtype: str, tree: Tree | None) -> bool:
    """Whether the numbers are read as they are stored, in that dtype, and only widened."""
    if not isinstance(tree, Apply) or tree.function != "cast":
        return False
    return tree.arguments[0].dtype == dtype
