"""Write a scheduled program as one NumPy function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from tncompiler.backends.emitter import Emitter
from tncompiler.backends.gathering import HELPERS as POSITIONS
from tncompiler.backends.numpy.products import LEAST_ACROSS, MOST_ACROSS, MOST_TERMS
from tncompiler.backends.pairing import HELPERS as PAIRS
from tncompiler.backends.source import Source
from tncompiler.backends.spelling import Blocks, ProductShape
from tncompiler.ir.attention_body import expand_attention
from tncompiler.ir.errors import BackendError
from tncompiler.ir.functions import function
from tncompiler.ir.program import Labels, Loop, Program, Value
from tncompiler.ir.sizes import Size

# More positive terms than this, added one by one, may leave the error bound (5 deviations).
# OpenBLAS adds so in products of at most SMALL_PRODUCT multiplications and with vectors.
LONG_SUM = 256
SMALL_PRODUCT = 2**20
_MOST_ACROSS = max(most for forms in MOST_ACROSS.values() for most in forms.values())
# functions that can write their result into an operand
UFUNCS = {
    "add": "np.add",
    "sub": "np.subtract",
    "mul": "np.multiply",
    "div": "np.divide",
    "neg": "np.negative",
    "maximum": "np.maximum",
    "minimum": "np.minimum",
    **{name: f"np.{name}" for name in ("exp", "log", "log1p", "expm1", "sqrt", "sin", "cos")},
    "tanh": "np.tanh",
    "relu": "np.maximum",
    "sigmoid": "expit",
    "erf": "erf",
}
_MORE = {"relu": ("0",)}  # further operands
# helpers by the module that has them; the others are in runtime.py
MODULES = {
    "run_blocks": "threads",
    "one_blas_thread": "threads",
    "fresh": "memory",
    "product": "products",
    "multiplied": "products",
    "multiply": "products",
    "copied": "memory",
}


def emit(program: Program, entry: str, precision: str = "ieee", *, reuses: bool = False) -> Source:
    """NumPy source of a scheduled program; its products are exact to the dtype in any precision.

    ``reuses``: large arrays take memory that earlier ones have left.
    """
    emitter = NumpyEmitter(program, entry)
    emitter.reuses = reuses
    return emitter.source()


class NumpyEmitter(Emitter):
    """NumPy's spelling of each operation."""

    library = "numpy"
    long_sum = LONG_SUM
    lanes = True
    helpers = (
        *PAIRS,
        *POSITIONS,
        *(
            "embed_diagonal",
            "exponent",
            "gate",
            "gelu",
            "gelu_gate",
            "long_matmul",
            "long_sum",
            "power_of_two",
        ),
        *(
            "copied",
            "fresh",
            "multiplied",
            "multiply",
            "one_blas_thread",
            "product",
            "rsqrt",
            "run_blocks",
            "scramble",
            "shift_exponent",
            "take_diagonal",
            "two_terms",
        ),
    )

    def __init__(self, program: Program, entry: str) -> None:
        super().__init__(expand_attention(program), entry)
        self.special: set[str] = set()  # functions of scipy.special
        loops = (step.op for step in program.steps if isinstance(step.op, Loop))
        self.in_blocks = any(loop.lanes > 1 for loop in loops)  # which threads take turns at

    def nested(self, body: Program) -> Self:
        inner = super().nested(body)
        inner.special, inner.in_blocks = self.special, self.in_blocks
        return inner

    def beside(self, body: Program, entry: str) -> Self:
        other = super().beside(body, entry)
        other.special, other.in_blocks = self.special, self.in_blocks
        return other

    def prelude(self) -> list[str]:
        lines = ["import numpy as np"]
        if self.special:
            lines.append(f"from scipy.special import {', '.join(sorted(self.special))}")
        modules: dict[str, list[str]] = {}
        for name in sorted({*self.imports, *self._guard}):
            modules.setdefault(MODULES.get(name, "runtime"), []).append(name)
        for module, names in sorted(modules.items()):
            lines.append(f"from tncompiler.backends.numpy.{module} import {', '.join(names)}")
        return lines

    @property
    def _guard(self) -> tuple[str, ...]:
        """Where blocks are shared out, BLAS must have no threads of its own."""
        return ("one_blas_thread",) if "run_blocks" in self.imports else ()

    @property
    def decorators(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"@{name}" for name in self._guard)

    def import_for(self, name: str) -> None:
        rule = function(name)
        self.special.update(rule.scipy)
        if rule.helper:
            self.imports.add(rule.helper)

    def template(self, name: str) -> str:
        return function(name).numpy

    def in_place(self, function: str, texts: Sequence[str], out: str | None) -> str | None:
        name = UFUNCS.get(function)
        if name is None or out is None or not self.in_blocks:  # else peaks are not as predicted
            return None
        return f"{name}({', '.join((*texts, *_MORE.get(function, ())))}{self._into(out)})"

    def dtype(self, dtype: str) -> str:
        if dtype == "bfloat16":
            raise BackendError(
                "NumPy has no bfloat16", fix="use float32, or backend='torch' for bfloat16"
            )
        return "np.bool_" if dtype == "bool" else f"np.{dtype}"

    def scalar(self, number: str, dtype: str) -> str:
        return f"{self.dtype(dtype)}({number})"

    def result(self, value: Value) -> str:
        name = self.ref(value)
        return name if value.shape else f"np.asarray({name})"

    def permute(self, text: str, axes: Sequence[int]) -> str:
        if list(axes) == [1, 0]:
            return f"{text}.T"
        return f"{text}.transpose({', '.join(map(str, axes))})"

    def _takes_left_memory(self) -> bool:
        """Whether the current step's array may take memory that earlier ones have left."""
        return self.in_blocks or self.makes_large()

    @property
    def _product(self) -> str:
        """The helper for a product in memory that earlier arrays have left."""
        return "product" if self.in_blocks else "multiplied"

    def _into(self, out: str | None) -> str:
        """The argument that has a result put in its place."""
        if out is None:
            return ""
        self.filled_in.add(out)
        return f", out={out}"

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
        if long_k:
            name = "long_matmul"
        elif self._takes_left_memory():
            name = self._product
        elif _may_be_cut(shape):
            name = "multiply"
        else:
            return f"{a} @ {b}"
        self.imports.add(name)
        return f"{name}({a}, {b}{self._into(out) if name == 'product' else ''})"

    def outer(self, a: str, b: str, batched: bool, *, broad: bool) -> str:
        if not broad:
            return self.matmul(a, b, batched, (1, 1, 1), long_k=False)
        self.imports.add("two_terms")
        multiply = self._product if self._takes_left_memory() else "np.matmul"
        self.imports.update({multiply} - {"np.matmul"})
        return f"{multiply}(*two_terms({a}, {b}))"

    def is_long(self, length: float, rows: float, columns: float) -> bool:
        terms = LONG_SUM if math.isinf(length) else length
        small = rows * terms * columns <= SMALL_PRODUCT or min(rows, columns) == 1
        return length > LONG_SUM and small

    def swap(self, text: str, batched: bool) -> str:
        return f"{text}.transpose(0, 2, 1)" if batched else f"{text}.T"

    def sum(self, text: str, axes: Sequence[int], dtype: str, *, long: bool) -> str:
        if long:
            self.imports.add("long_sum")
            return f"long_sum({text}, {tuple(axes)})"
        where = str(axes[0]) if len(axes) == 1 else str(tuple(axes))
        kept = "" if dtype.startswith(("float", "complex")) else f", dtype={self.dtype(dtype)}"
        return f"{text}.sum(axis={where}{kept})"

    def reduce(self, text: str, name: str, axes: Sequence[int]) -> str:
        return f"{text}.{name}(axis={tuple(axes)})"

    def broadcast(self, text: str, dims: str) -> str:
        return f"np.broadcast_to({text}, ({dims},))"

    def copy(self, text: str, out: str | None = None) -> str:
        if self._takes_left_memory():
            self.imports.add("copied")
            return f"copied({text}{self._into(out)})"
        return f"{text}.copy()"

    def ones_of(self, sizes: Sequence[Size], dtype: str) -> str:
        dims = self.dims([(s,) for s in sizes])
        return f"np.ones(({dims and f'{dims},'}), dtype={self.dtype(dtype)})"

    def arange(self, size: str) -> str:
        return f"np.arange({size}, dtype=np.int64)"

    def filled(self, value: Value, zeros: bool) -> str:
        dims = self.shape(value)
        shape = f"({dims},)" if dims else "()"
        if self._takes_left_memory() and not zeros:
            self.imports.add("fresh")
            return f"fresh({shape}, {self.dtype(value.dtype)})"
        return f"np.{'zeros' if zeros else 'empty'}({shape}, dtype={self.dtype(value.dtype)})"

    def diagonal(self, text: str, labels: Labels, distinct: Labels) -> str:
        self.imports.add("take_diagonal")
        return f"take_diagonal({text}, {labels}, {distinct})"

    def embed(self, text: str, distinct: Labels, labels: Labels) -> str:
        self.imports.add("embed_diagonal")
        return f"embed_diagonal({text}, {tuple(distinct.index(label) for label in labels)})"

    def pad(self, value: Value, axis: int, before: str, after: str) -> str:
        widths = ["(0, 0)"] * len(value.shape)
        widths[axis] = f"({before}, {after})"
        return f"np.pad({self.ref(value)}, ({', '.join(widths)},))"

    def concat(self, parts: str, axis: int) -> str:
        return f"np.concatenate(({parts},), axis={axis})"

    def stack(self, parts: str) -> str:
        return f"np.stack({parts})"

    def cast(self, text: str, dtype: str) -> str:
        return f"{text}.astype({self.dtype(dtype)})"


def _may_be_cut(shape: ProductShape) -> bool:
    """Whether a product, of extents that may be known at run time only, is skinny and long."""
    short, middle, long = sorted(shape)
    if math.isinf(middle):
        return 0 < short <= _MOST_ACROSS
    return LEAST_ACROSS <= short * middle <= _MOST_ACROSS and short * middle * long > MOST_TERMS
