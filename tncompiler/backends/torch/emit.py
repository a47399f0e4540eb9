"""Write a scheduled program as one function of flat aten operations."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tncompiler.backends.attending import HELPERS as ATTENTION
from tncompiler.backends.blocks import GIVEN
from tncompiler.backends.contracting import aligned
from tncompiler.backends.emitter import LARGE, Emitter
from tncompiler.backends.gathering import HELPERS as POSITIONS
from tncompiler.backends.pairing import HELPERS as PAIRS
from tncompiler.backends.source import Source
from tncompiler.backends.spelling import Blocks, ProductShape
from tncompiler.backends.torch.long_sums import IN_TURN, LONG_SUM, NARROW, STACKS_IN_TURN, cut
from tncompiler.backends.torch.views import Shape, with_fewer_views
from tncompiler.ir.functions import function
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.program import (
    Cast,
    Contract,
    Labels,
    Map,
    Op,
    Permute,
    Program,
    Reduce,
    Step,
    Value,
)
from tncompiler.ir.sizes import Size
from tncompiler.ir.strides import TURNED, TURNED_BYTES

# Products of a batch with at most so many rows and columns are one program each on a GPU, whose
# library does not share out a long sum of theirs.
ONE_TILE = 64
_RESHAPED = re.compile(r"\.reshape\([\d, ]+\)$")
# helpers of memory.py
IN_LEFT_MEMORY = {"copied", "elementwise", "left"}
# maps that torch can write to where they are wanted
_ELEMENTWISE = {"add", "sub", "mul", "div", "neg", "exp", "log", "log1p", "expm1", "sqrt"}
_ELEMENTWISE |= {"sin", "cos", "tanh", "sigmoid", "erf", "maximum", "minimum"}


def emit(program: Program, entry: str, precision: str = "ieee", *, reuses: bool = False) -> Source:
    """Torch source of a scheduled program; its products are exact to the dtype in any precision.

    ``reuses``: large arrays take memory that earlier ones have left; torch cannot differentiate
    such code.
    """
    emitter = TorchEmitter(program, entry)
    emitter.reuses = reuses
    return emitter.source()


def is_below_maximum(program: Program, value: Value) -> bool:
    """Whether a maximum was taken from the numbers, as a softmax does, so that many may be low."""
    made = program.producers.get(value.name)
    if made is None or not isinstance(made.op, Map) or made.op.function != "sub":
        return False
    top = program.producers.get(made.operands[1])
    while top is not None and _passes_on(top.op):
        top = program.producers.get(top.operands[0])
    return top is not None and isinstance(top.op, Reduce | Scatter) and top.op.function == "max"


def _passes_on(op: Op) -> bool:
    """Whether a step gives the numbers of its first operand, in places of their own."""
    match op:
        case Contract(inputs):
            return len(inputs) == 1
        case Map(name):
            return name == "stop"
    return isinstance(op, Cast | Gather | Permute)


class TorchEmitter(Emitter):
    """Torch's spelling of each operation."""

    library = "torch"
    long_sum = LONG_SUM
    vectors_in_rows = True  # in a batch four times as fast as vectors in columns
    helpers: tuple[str, ...] = (
        *ATTENTION,
        *PAIRS,
        *POSITIONS,
        *("embed_diagonal", "exp_below", "gelu_gate"),
        *("long_bmm", "long_mm", "long_sum", "take_diagonal"),
        *("exponent", "power_of_two", "scramble", "shift_exponent"),
        *IN_LEFT_MEMORY,
    )

    def __init__(self, program: Program, entry: str) -> None:
        super().__init__(program, entry)
        self.last_product = "", ""  # that was written, and its shape
        self.shapes: dict[str, Shape] = {}  # of variables

    def prelude(self) -> list[str]:
        lines = ["import torch"]
        for module, names in (
            ("memory", self.imports & IN_LEFT_MEMORY),
            ("runtime", self.imports - IN_LEFT_MEMORY),
        ):
            if names:
                listed = ", ".join(sorted(names))
                lines.append(f"from tncompiler.backends.torch.{module} import {listed}")
        return lines

    def _in_left_memory(self, name: str, least: int = LARGE) -> bool:
        """Whether what the current step makes is to be made by such a helper."""
        large = self.makes_large(least)
        self.imports.update((name,) if large else ())
        return large

    def template(self, name: str) -> str:
        return function(name).torch

    def _map(self, step: Step, op: Map, operands: tuple[Value, ...]) -> str:
        if op.function != "exp" or not is_below_maximum(self.program, operands[0]):
            return super()._map(step, op, operands)
        self.imports.add("exp_below")
        wanted = tuple(range(len(step.out.shape)))
        return f"exp_below({aligned(self, operands[0], op.inputs[0], wanted)})"

    def in_place(self, function: str, texts: Sequence[str], out: str | None) -> str | None:
        value = self.making
        if texts[0] in self.numbers and function in ("add", "mul"):
            texts = texts[::-1]
        if function not in _ELEMENTWISE or value is None or texts[0] in self.numbers:
            return None
        inexact = value.dtype.startswith(("float", "bfloat", "complex"))
        if not inexact or not self._in_left_memory("elementwise"):
            return None
        return f"elementwise(torch.{function}, {', '.join(texts)})"

    def import_for(self, name: str) -> None:
        helper = function(name).torch_helper
        if helper:
            self.imports.add(helper)

    @property
    def device(self) -> str:
        """Where new tensors go: to the first argument's device, of those that stay."""
        arguments = [self.name(a.value) for a in self.program.arguments if a.kind != GIVEN]
        return f", device={arguments[0]}.device" if arguments else ""

    def scalar(self, number: str, dtype: str) -> str:
        return f"torch.full((), {number}, dtype=torch.{dtype}{self.device})"

    def result(self, value: Value) -> str:
        return self.ref(value)

    def permute(self, text: str, axes: Sequence[int]) -> str:
        if list(axes) == [1, 0]:
            return f"{text}.t()"
        return f"{text}.permute({', '.join(map(str, axes))})"

    def matmul(
        self,
        a: str,
        b: str,
        batched: bool,
        shape: ProductShape,
        *,
        long_k: bool,
        blocks: Blocks | None = None,
        out: str | None = None,
    ) -> str:
        name, (rows, length, columns) = "bmm" if batched else "mm", shape
        is_alone = batched and length > LONG_SUM and max(rows, columns) <= ONE_TILE
        if not (long_k or is_alone):
            large = blocks is not None and self._in_left_memory("left")
            place = f", out=left({a.split('.')[0]}, {self.dims(blocks or ())})" if large else ""
            return self._shaped(f"torch.{name}({a}, {b}{place})", blocks)
        written = self._in_blocks(a, b, batched, shape, blocks or ()) if long_k else None
        if written is None:
            self.imports.add(f"long_{name}")
            written = f"long_{name}({a}, {b})"
        return self._shaped(written, blocks)

    def _in_blocks(
        self, a: str, b: str, batched: bool, shape: ProductShape, blocks: Blocks
    ) -> str | None:
        """A long sum by blocks as `long_mm` and `long_bmm` make it, where all sizes are known;
        None where they do something else."""
        sizes = [size for block in blocks for size in block]
        if not self.reuses or not all(isinstance(size, int) for size in (*sizes, *shape)):
            return None
        rows, length, columns = map(int, shape)
        count, block, whole = cut(length)
        in_turn = LONG_SUM * (STACKS_IN_TURN if batched else IN_TURN)
        if length <= in_turn or whole != length or rows == columns == 1:
            return None
        if not batched:
            left = f"{_reshaped(a, rows, count, block)}.transpose(0, 1)"
            return f"torch.bmm({left}, {_reshaped(b, count, block, columns)}).sum(0)"
        batch = math.prod(map(int, blocks[0]))
        stack = batch * count
        left = f"{_reshaped(a, batch, rows, count, block)}.transpose(1, 2)"
        left = f"{left}.reshape({stack}, {rows}, {block})"
        product = f"torch.bmm({left}, {_reshaped(b, stack, block, columns)})"
        return f"{_reshaped(product, batch, count, rows, columns)}.sum(1)"

    def _shaped(self, product: str, blocks: Blocks | None) -> str:
        """The text of a product, noted with the shape it has."""
        sizes = [size for block in blocks or () for size in block]
        if blocks is not None and all(isinstance(size, int) for size in sizes):
            self.last_product = product, ", ".join(str(math.prod(block)) for block in blocks)
        return product

    def assign(self, step: Step, text: str, comment: str) -> None:
        if self.reuses and all(isinstance(size, int) for size in step.out.shape):
            declared = ", ".join(map(str, step.out.shape))
            product, dims = self.last_product
            made = dims if text == f"{product}.reshape({declared})" else declared
            self.shapes[self.name(step.out)] = Shape(made, declared)
        super().assign(step, text, comment)

    def finished(self, lines: Sequence[str], results: Sequence[str]) -> Sequence[str]:
        return with_fewer_views(lines, self.shapes, results) if self.reuses else lines

    def outer(self, a: str, b: str, batched: bool, *, broad: bool) -> str:
        return self.in_place("mul", (a, b), None) or f"torch.mul({a}, {b})"

    def dot(self, a: str, b: str) -> str:
        return f"torch.dot({a}, {b})"

    def repeated(self, matrix: str, times: str) -> str:
        return f"{matrix}.expand({times}, -1, -1)"

    def is_long(self, length: float, rows: float, columns: float) -> bool:
        return length > LONG_SUM and min(rows, columns) < NARROW

    def swap(self, text: str, batched: bool) -> str:
        return f"{text}.transpose(1, 2)" if batched else f"{text}.t()"

    def sum(self, text: str, axes: Sequence[int], dtype: str, *, long: bool) -> str:
        if long and len(axes) > 1:  # torch splits a sum over one axis itself
            self.imports.add("long_sum")
            return f"long_sum({text}, {tuple(axes)})"
        kept = "" if dtype.startswith(("float", "complex", "bfloat")) else f", dtype=torch.{dtype}"
        return f"{text}.sum(dim={tuple(axes)}{kept})"

    def reduce(self, text: str, name: str, axes: Sequence[int]) -> str:
        return f"torch.a{name}({text}, dim={tuple(axes)})"

    def broadcast(self, text: str, dims: str) -> str:
        return f"{text}.expand({dims})"

    def copy(self, text: str, out: str | None = None) -> str:
        may_turn = self.making is not None and self.making.dtype == TURNED
        helps = self._in_left_memory("copied", TURNED_BYTES if may_turn else LARGE)
        return f"copied({text})" if helps else f"{text}.contiguous()"

    def ones_of(self, sizes: Sequence[Size], dtype: str) -> str:
        dims = self.dims([(s,) for s in sizes])
        return f"torch.ones(({dims and f'{dims},'}), dtype=torch.{dtype}{self.device})"

    def arange(self, size: str) -> str:
        return f"torch.arange({size}{self.device})"

    def filled(self, value: Value, zeros: bool) -> str:
        dims = self.shape(value)
        shape = f"({dims},)" if dims else "()"
        name = "zeros" if zeros else "empty"
        return f"torch.{name}({shape}, dtype=torch.{value.dtype}{self.device})"

    def diagonal(self, text: str, labels: Labels, distinct: Labels) -> str:
        self.imports.add("take_diagonal")
        return f"take_diagonal({text}, {labels}, {distinct})"

    def embed(self, text: str, distinct: Labels, labels: Labels) -> str:
        self.imports.add("embed_diagonal")
        return f"embed_diagonal({text}, {tuple(distinct.index(label) for label in labels)})"

    def pad(self, value: Value, axis: int, before: str, after: str) -> str:
        widths = ["0", "0"] * (len(value.shape) - 1 - axis) + [before, after]
        return f"torch.nn.functional.pad({self.ref(value)}, ({', '.join(widths)}))"

    def concat(self, parts: str, axis: int) -> str:
        return f"torch.cat(({parts},), dim={axis})"

    def stack(self, parts: str) -> str:
        return f"torch.stack({parts})"

    def members(self, stack: str) -> str:
        return f"{stack}.unbind()"

    def cast(self, text: str, dtype: str) -> str:
        return f"{text}.to(torch.{dtype})"


def _reshaped(text: str, *sizes: int) -> str:
    """The text of a tensor in another shape, whatever shape the text gave it."""
    return f"{_RESHAPED.sub('', text)}.reshape({', '.join(map(str, sizes))})"
