"""What the array backends share: walk a scheduled program, write one readable statement a step.

A backend subclasses Emitter with its spelling of each operation (`spelling.py`); what a contraction
becomes is decided in `contracting.py`, the same for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import sympy

from tncompiler.backends.attending import write_attention
from tncompiler.backends.blocks import GIVEN
from tncompiler.backends.contracting import aligned, write_contraction
from tncompiler.backends.gathering import write_gather
from tncompiler.backends.loops import write_loop
from tncompiler.backends.naming import Names, comment_name
from tncompiler.backends.pairing import write_pairs
from tncompiler.backends.scans import write_scan
from tncompiler.backends.sharing import Shared, signature
from tncompiler.backends.sizes import size_header
from tncompiler.backends.source import Source
from tncompiler.backends.spelling import Spelling
from tncompiler.backends.stacking import write_members
from tncompiler.backends.windows import HELPERS, write_window_step
from tncompiler.ir.arange import Positions
from tncompiler.ir.attention import Attention
from tncompiler.ir.dtypes import ITEM_BYTES
from tncompiler.ir.errors import InvalidProgram
from tncompiler.ir.function_body import expand_functions
from tncompiler.ir.functions import function
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.pairs import Pairs, PairsAdjoint
from tncompiler.ir.program import (
    Cast,
    Concat,
    Contract,
    Convolve,
    Fold,
    Labels,
    Literal,
    Loop,
    Map,
    Merge,
    Pad,
    Permute,
    Pick,
    Program,
    Reduce,
    Scan,
    Slice,
    Split,
    Step,
    Unfold,
    Value,
    Window,
    operand_values,
)
from tncompiler.ir.sizes import Size, render_size, symbols_of
from tncompiler.ir.stacking import Member

# functions whose template is a plain operator: numbers can stand in them as they are
_OPERATORS = {"add", "sub", "div", "neg", "less", "less_equal", "greater", "greater_equal"}
_OPERATORS |= {"equal", "not_equal", "floordiv", "mod"}
# bytes of an array from which on memory that others have left is worth it: smaller ones come from
# the C library, which mostly keeps what is freed
LARGE = 2**20
MANY = 1024  # what a size may come to that only a call brings
# what an emitter for the body of a loop has in common with that of the whole
_SHARED = ("names", "symbols", "bound", "imports", "extra", "scope", "aliases", "functions")
# maps whose result may share memory with an operand
_ALIASING = {"conj", "real", "imag", "project", "stop"}


def makes_new(step: Step) -> bool:
    """Whether a step's array is certainly none of its operands, nor a view of one."""
    match step.op:
        case Contract(inputs):
            return len(inputs) == 2
        case Map(name):  # a user's function may give its argument
            return name not in _ALIASING and function(name).recipe is None
    return False


class Emitter(Spelling):
    """Writes one program as one function.

    ``long_sum``: a sum of more terms goes to a helper that splits it, as the library may add the
    terms one after the other; for positive terms that leaves the agreed error bound.
    ``vectors_in_rows``: whether matrices of a batch meet vectors from the left, as rows of one.
    """

    library: str  # the backend whose runtime the code calls
    long_sum: int
    helpers: tuple[str, ...]  # what the runtime module offers: no variable is called so
    decorators: tuple[str, ...] = ()  # lines above the function
    vectors_in_rows = False
    reuses = False  # whether large arrays may take memory that earlier ones have left
    lanes = False  # whether the blocks of a loop can be given to threads
    shares = True  # whether equal runs of steps become calls of one function

    def __init__(self, program: Program, entry: str) -> None:
        self.program, self.entry = expand_functions(program), entry
        self.names = Names()
        self.names.reserve((*self.helpers, *HELPERS))
        self.symbols: dict[sympy.Symbol, str] = {}
        self.bound: set[sympy.Symbol] = set()  # sizes of blocks, set in loops
        self.imports: set[str] = set()
        self.extra: set[str] = set()  # further lines of the prelude
        self.lines: list[str] = []
        self.functions: list[str] = []  # lines of those that the function calls
        self.hidden: set[str] = set()  # values that only functions know which it calls
        self.scope = ""  # of which scan this is the body
        self.aliases: dict[str, str] = {}  # values that are called as they are outside the body
        self.literals = {
            step.out.name: step for step in self.program.steps if isinstance(step.op, Literal)
        }
        self.written: set[str] = set()
        self.places: dict[str, str] = {}  # where values of a block belong in the whole
        self.filled_in: set[str] = set()  # of these, what steps have written to
        self.unpacked: set[str] = set()  # members of stacks that have their variables
        self.owned: set[str] = set()  # arrays that are new and nobody else's
        self.dying: frozenset[str] = frozenset()  # arrays that the current step is the last to read
        self.making: Value | None = None  # by the current step
        self.numbers: set[str] = set()  # texts of operands that are Python's numbers, no arrays

    # ------------------------------------------------------------------ the function as a whole

    def source(self) -> Source:
        """The whole source text."""
        function = self.function()
        prelude = [*self.prelude(), *sorted(self.extra)]
        lines = [*prelude, "", "", *self.functions, *self.decorators, *function, ""]
        return Source("\n".join(lines), self.entry)

    def function(self) -> list[str]:
        """The lines of the function alone."""
        arguments, first = signature(self)
        self.write_steps()
        results = [self.result(self.program.values[name]) for name in self.program.outputs]
        returned = ", ".join(results) + ("," if len(results) == 1 else "")
        wanted = {k: name for k, name in self.symbols.items() if k not in self.bound}
        header = size_header(self.program, wanted, self.names_of_arguments(), self.symbol_name)
        lines = self.finished(self.lines, results)
        body = [*first, *header, *lines, f"return {returned}" if results else "return ()"]
        return [f"def {self.entry}({', '.join(arguments)}):", *(f"    {x}" for x in body)]

    def finished(self, lines: Sequence[str], results: Sequence[str]) -> Sequence[str]:
        """The lines of a function that returns these variables, as a backend wants them."""
        return lines

    def beside(self, body: Program, entry: str) -> Self:
        """An emitter for another function of the same source."""
        other = self.for_body(body, entry)
        other.imports, other.extra, other.shares = self.imports, self.extra, False
        return other

    def nested(self, body: Program) -> Self:
        """An emitter for the body of a loop: names, sizes and imports are those of the whole."""
        inner = self.for_body(body, self.entry)
        for shared in _SHARED:
            setattr(inner, shared, getattr(self, shared))
        return inner

    def for_body(self, body: Program, entry: str) -> Self:
        """A new emitter with the options of this one."""
        made = type(self)(body, entry)
        made.reuses = self.reuses
        return made

    def write_steps(self) -> None:
        """Append the lines of all steps; what is not needed any more is let go."""
        last_use = self._last_uses()
        last = len(self.program.steps) - 1
        shared = Shared(self) if self.shares else None
        if shared is not None:
            self.hidden = shared.hidden
        for position, step in enumerate(self.program.steps):
            if isinstance(step.op, Literal):
                continue
            self.dying = frozenset(last_use.get(position, ()))
            self.making = step.out
            if shared is None or position not in shared.covered:
                self._step(step)
                self._own(step)
            elif position in shared.calls:
                shared.write_call(shared.calls[position])
            if position < last:
                self.release(last_use.get(position, ()))

    def _own(self, step: Step) -> None:
        """Note whether the step's array is new and nobody else's, and which arrays are not."""
        if makes_new(step) or isinstance(step.op, Permute):
            self.owned.add(step.out.name)
        else:
            self.owned.difference_update(step.operands)

    def spare(self, step: Step, inputs: tuple[Labels, ...]) -> int | None:
        """The operand whose array the step's value may take: it is as large, and last read here."""
        wanted = tuple(range(len(step.out.shape)))
        for position, (name, labels) in enumerate(zip(step.operands, inputs, strict=True)):
            value = self.program.values[name]
            same = value.shape == step.out.shape and value.dtype == step.out.dtype
            if wanted and labels == wanted and same and name in self.dying & self.owned:
                return position
        return None

    def makes_large(self, least: int = LARGE) -> bool:
        """Whether the current step may make an array of so many bytes; by default, for memory that
        earlier ones have left."""
        value = self.making
        if not self.reuses or value is None:
            return False
        extents = (extent if isinstance(extent, int) else MANY for extent in value.shape)
        return ITEM_BYTES[value.dtype] * math.prod(extents) >= least

    def place(self, step: Step, texts: Sequence[str], inputs: tuple[Labels, ...]) -> str | None:
        """The array that the step's value may be written to: where it belongs, or an operand's."""
        spare = self.spare(step, inputs)
        return self.places.get(step.out.name) or (None if spare is None else texts[spare])

    def read_last(self) -> list[str]:
        """The computed values that the last step still needs."""
        return self._last_uses().get(len(self.program.steps) - 1, [])

    def names_of_arguments(self) -> dict[str, str]:
        return {a.value.name: self.name(a.value) for a in self.program.arguments}

    def _last_uses(self) -> dict[int, list[str]]:
        """By step position, the computed values that are not needed after it."""
        last: dict[str, int] = {}
        for position, step in enumerate(self.program.steps):
            for name in (*step.operands, step.out.name):
                last[name] = position
        kept = {*self.program.outputs, *self.literals}
        kept.update(a.value.name for a in self.program.arguments if a.kind != GIVEN)
        released: dict[int, list[str]] = {}
        for name, position in last.items():
            if name not in kept:
                released.setdefault(position, []).append(name)
        return released

    def release(self, names: Sequence[str]) -> None:
        values = [self.program.values[n] for n in names if n not in self.hidden]
        large = [self.name(value) for value in values if value.shape]
        if large:
            self.lines.append(f"del {', '.join(large)}")

    def _step(self, step: Step) -> None:
        operands = operand_values(self.program, step)
        match step.op:
            case Contract():
                write_contraction(self, step, step.op, operands)
            case Map():
                self.assign(step, self._map(step, step.op, operands), step.op.function)
            case Reduce(name, axes):
                text = self.reduce(self.ref(operands[0]), name, axes)
                self.assign(step, text, f"{name} over {self._axis_names(operands[0], axes)}")
            case Permute(axes):
                permuted = self.permute(self.ref(operands[0]), axes)
                text = self.copy(permuted, out=self.places.get(step.out.name))
                comment = f"{self._tuple(step.out)} = {self._tuple(operands[0])}, copied"
                self.assign(step, text, comment)
            case Split() | Merge():
                text = self.reshape(self.ref(operands[0]), self.shape(step.out))
                self.assign(step, text, f"{self._tuple(step.out)} = {self._tuple(operands[0])}")
            case Slice(axis, start, stop):
                index = ", ".join([":"] * axis + [f"{self.size(start)}:{self.size(stop)}"])
                self.assign(step, f"{self.ref(operands[0])}[{index}]", self._tuple(step.out))
            case Pad(axis, before, after):
                text = self.pad(operands[0], axis, self.size(before), self.size(after))
                self.assign(step, text, self._tuple(step.out))
            case Member():
                write_members(self, step)
            case Concat(axis):
                parts = ", ".join(self.ref(value) for value in operands)
                self.assign(step, self.concat(parts, axis), self._tuple(step.out))
            case Convolve() | Unfold() | Fold() | Window():
                write_window_step(self, step, operands)
            case Positions():
                self.assign(step, self.arange(self.size(step.out.shape[0])), self._tuple(step.out))
            case Attention():
                write_attention(self, step)
            case Pairs() | PairsAdjoint():
                write_pairs(self, step)
            case Gather() | Scatter():
                write_gather(self, step)
            case Loop():
                write_loop(self, step, step.op)
            case Scan():
                write_scan(self, step, step.op)
            case Pick():
                """The loop has put it in place."""
            case Cast():
                self.assign(step, self.cast(self.ref(operands[0]), step.out.dtype), "cast")
            case _:
                raise InvalidProgram(f"no emitter for the step '{step.text()}'")

    def assign(self, step: Step, text: str, comment: str) -> None:
        self.lines.append(f"{self.name(step.out)} = {text}  # {comment}")

    # ------------------------------------------------------------------ names and sizes

    def name(self, value: Value) -> str:
        alias = self.aliases.get(value.name)
        return alias or self.names(("value", self.scope, value.name), value.name, "v")

    def ref(self, value: Value) -> str:
        """The variable that holds a value; a literal is written where it is first needed."""
        literal = self.literals.get(value.name)
        name = self.name(value)
        if literal is not None and value.name not in self.written:
            self.written.add(value.name)
            self.lines.append(f"{name} = {self.scalar(self._number(literal), value.dtype)}")
        return name

    def inline(self, value: Value) -> str:
        """A finite number as it is, anything else as a variable."""
        literal = self.literals.get(value.name)
        if literal is not None and self._is_finite(literal):
            number = self._number(literal)
            self.numbers.add(number)
            return number
        return self.ref(value)

    @staticmethod
    def _is_finite(step: Step) -> bool:
        value = step.op.value  # type: ignore[union-attr]
        return not isinstance(value, float | complex) or (
            math.isfinite(value.real) and math.isfinite(value.imag)
        )

    def _number(self, step: Step) -> str:
        value = step.op.value  # type: ignore[union-attr]
        if isinstance(value, complex):
            return f"complex({self._float(value.real)}, {self._float(value.imag)})"
        if isinstance(value, float):
            text = self._float(value)
            return f"({text})" if value < 0 else text
        if isinstance(value, int):
            return f"({value})" if value < 0 else str(value)
        text = self.size(value)
        return text if text.isidentifier() else f"({text})"

    @staticmethod
    def _float(value: float) -> str:
        return repr(value) if math.isfinite(value) else f'float("{value!r}")'

    def symbol_name(self, symbol: sympy.Symbol) -> str:
        return self.names(symbol, symbol.name, "n")

    def size(self, size: Size) -> str:
        """Source of a size; its symbols become variables read off the arguments."""
        for symbol in symbols_of(size):
            self.symbols[symbol] = self.symbol_name(symbol)
        return render_size(size, self.symbols)

    def product(self, sizes: Sequence[Size]) -> str:
        """Source of a product of sizes."""
        number = math.prod(size for size in sizes if isinstance(size, int))
        if number == 0:
            return "0"
        texts = [self.size(size) for size in sizes if not isinstance(size, int)]
        factors = [text if text.isidentifier() else f"({text})" for text in texts]
        return " * ".join([*factors, *([str(number)] if number != 1 or not factors else [])])

    def shape(self, value: Value) -> str:
        return self.dims([(size,) for size in value.shape])

    def dims(self, groups: Sequence[Sequence[Size]]) -> str:
        return ", ".join(self.product(group) for group in groups)

    def _tuple(self, value: Value) -> str:
        return f"({', '.join(comment_name(n, k) for k, n in enumerate(value.axes))})"

    def _axis_names(self, value: Value, axes: Sequence[int]) -> str:
        return ", ".join(comment_name(value.axes[axis], axis) for axis in axes)

    # ------------------------------------------------------------------ maps

    def _map(self, step: Step, op: Map, operands: tuple[Value, ...]) -> str:
        template = self.template(op.function)
        wanted = tuple(range(len(step.out.shape)))
        keep_numbers = op.function in _OPERATORS and any(
            v.name not in self.literals for v in operands
        )
        texts = []
        for value, labels in zip(operands, op.inputs, strict=True):
            if not labels:
                texts.append(self.inline(value) if keep_numbers else self.ref(value))
            else:
                texts.append(aligned(self, value, labels, wanted))
        self.import_for(op.function)
        out = self.place(step, texts, op.inputs)
        return self.in_place(op.function, texts, out) or template.format(*texts)
