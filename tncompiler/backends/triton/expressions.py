"""Trees as lines of a kernel, over a tile whose axes are groups of labels.

Complex numbers are pairs of real tiles; arrays of them are addressed as real arrays of twice the
size, real and imaginary parts side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tncompiler.backends.triton.spelling import FUNCTIONS
from tncompiler.backends.triton.trees import Apply, Load, Number, Strides, Total, Tree
from tncompiler.ir.dtypes import kind
from tncompiler.ir.sizes import Size


@dataclass(frozen=True, slots=True)
class Parts:
    """Source of a number: its real part and, if it is complex, its imaginary part."""

    re: str
    im: str | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tile: the labels along it, how they broadcast, and what bounds them."""

    labels: tuple[int, ...]
    tail: str  # "[:, None]", or nothing for a tile of one axis
    bound: str  # "m < 100" where the last tile is cut short, else nothing


class Tile:
    """Writes trees over one tile.

    ``variables`` names each label's variable, ``write(name, text)`` appends a line and returns the
    name it gave; ``size`` renders a size.
    """

    def __init__(
        self,
        axes: tuple[Axis, ...],
        variables: Mapping[int, str],
        pointers: Mapping[str, str],
        write: Callable[[str, str], str],
        size: Callable[[Size], str],
        number: Callable[[Number], Parts],
        total: Parts | None = None,
    ) -> None:
        self.axes, self.variables, self.pointers = axes, variables, pointers
        self.write, self.size, self.number, self.total = write, size, number, total
        self.done: dict[Tree, Parts] = {}

    def parts(self, tree: Tree) -> Parts:
        """The tree as a variable, a number or a pair of them."""
        if tree not in self.done:
            self.done[tree] = self._parts(tree)
        return self.done[tree]

    def _parts(self, tree: Tree) -> Parts:
        match tree:
            case Number():
                return self.number(tree)
            case Total():
                assert self.total is not None
                return self.total
            case Load():
                return self._load(tree)
            case Apply(function, arguments, dtype):
                parts = [self.parts(argument) for argument in arguments]
                if function == "cast":
                    return self._cast(parts[0], arguments[0].dtype, dtype)
                if any(part.im is not None for part in parts) or kind(dtype) == "complex":
                    return self._complex(function, parts, dtype)
                if function in ("conj", "real", "project", "stop"):
                    return parts[0]
                texts = [
                    _widened(part.re, argument.dtype)
                    for part, argument in zip(parts, arguments, strict=True)
                ]
                text = FUNCTIONS[function].format(*texts)
                text = f"({text}).to(tl.bfloat16)" if dtype == "bfloat16" else text
                return Parts(self.write(function, text))
        raise TypeError(type(tree).__name__)

    def _load(self, load: Load) -> Parts:
        pointer = self.pointers[load.value.name]
        mask = self.mask(load.strides)
        given = f", mask={mask}, other=0" if mask else ""
        if kind(load.dtype) != "complex":
            return Parts(
                self.write(pointer, f"tl.load({self.address(pointer, load.strides)}{given})")
            )
        address = self.address(pointer, load.strides, 2)
        re = self.write(f"{pointer}_re", f"tl.load({address}{given})")
        return Parts(re, self.write(f"{pointer}_im", f"tl.load({address} + 1{given})"))

    @staticmethod
    def _cast(part: Parts, before: str, after: str) -> Parts:
        return part if before == after else Parts(f"{part.re}.to(tl.{after})")

    def _complex(self, function: str, parts: list[Parts], dtype: str) -> Parts:
        name, write = function, self.write
        first = parts[0]
        zero = "0.0"
        if function == "conj":
            return Parts(first.re, None if first.im is None else write(name, f"-{first.im}"))
        if function in ("real", "imag"):
            return Parts(first.re if function == "real" else first.im or zero)
        if function in ("project", "stop", "cast"):
            if kind(dtype) != "complex":
                return Parts(first.re)
            return Parts(first.re, first.im or write(name, f"{first.re} * 0.0"))
        if function == "neg":
            return Parts(write(name, f"-{first.re}"), write(name, f"-{first.im}"))
        a, b = parts
        if function in ("add", "sub"):
            sign = "+" if function == "add" else "-"
            re = write(f"{name}_re", f"{a.re} {sign} {b.re}")
            im = f"{a.im} {sign} {b.im}"
            if a.im is None or b.im is None:
                im = str(a.im) if b.im is None else f"{'-' if sign == '-' else ''}{b.im}"
            return Parts(re, write(f"{name}_im", im))
        if a.im is None or b.im is None:
            return Parts(
                write(f"{name}_re", f"{a.re} * {b.re}"),
                write(f"{name}_im", f"{a.im or a.re} * {b.im or b.re}"),
            )
        return Parts(
            write(f"{name}_re", f"{a.re} * {b.re} - {a.im} * {b.im}"),
            write(f"{name}_im", f"{a.re} * {b.im} + {a.im} * {b.re}"),
        )

    # ------------------------------------------------------------------ addresses

    def address(self, pointer: str, strides: Strides, width: int = 1) -> str:
        """The pointer and one offset for each axis of the tile, and one for labels off the tile."""
        terms = [pointer]
        off = self._offset(
            [s for s in strides if all(s[0] not in a.labels for a in self.axes)], width
        )
        if off:
            terms.append(off)
        for axis in self.axes:
            offset = self._offset([s for s in strides if s[0] in axis.labels], width)
            if offset:
                single = offset.isidentifier() or not axis.tail
                terms.append(f"{offset if single else f'({offset})'}{axis.tail}")
        return " + ".join(terms)

    def _offset(self, strides: list[tuple[int, Size]], width: int) -> str:
        texts = []
        for label, stride in strides:
            factor = self.size(stride * width)
            variable = self.variables[label]
            plain = factor.isidentifier() or factor.isdigit()
            texts.append(
                variable if factor == "1" else f"{variable} * {factor if plain else f'({factor})'}"
            )
        return " + ".join(texts)

    def mask(self, strides: Strides | None = None) -> str:
        """Which elements exist, along the axes that the strides have (all, if none are given)."""
        labels = None if strides is None else {label for label, _ in strides}
        bounds = [
            f"({axis.bound}){axis.tail}" if axis.tail else axis.bound
            for axis in self.axes
            if axis.bound and (labels is None or labels & set(axis.labels))
        ]
        return " & ".join(f"({b})" if len(bounds) > 1 and "[" not in b else b for b in bounds)


def is_zero_outside(tree: Tree, labels: tuple[int, ...]) -> bool:
    """Whether the tree is zero where an index along `labels` is out of bounds."""
    if isinstance(tree, Load):
        return bool({label for label, _ in tree.strides} & set(labels))
    if isinstance(tree, Apply) and tree.function in ("mul", "cast", "neg", "conj"):
        return all(is_zero_outside(argument, labels) for argument in tree.arguments)
    return False


def _widened(text: str, dtype: str) -> str:
    """A bfloat16 number in float32, as GPUs compute it: Triton's interpreter adds bit patterns."""
    return f"{text}.to(tl.float32)" if dtype == "bfloat16" else text
