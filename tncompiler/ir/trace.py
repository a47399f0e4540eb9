"""Run a function's derivative rule on program values: operators and `call` append steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import promote
from tncompiler.ir.program import Labels, Value


@dataclass(frozen=True, slots=True)
class Traced:
    """A value with its axes wired to the axes of a common shape; absent axes broadcast."""

    tracer: Tracer
    value: Value
    labels: Labels

    def __add__(self, other: Any) -> Any:
        return self.tracer.call("add", self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self.tracer.call("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.tracer.call("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return self.tracer.multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self.tracer.call("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self.tracer.call("div", other, self)

    def __neg__(self) -> Any:
        return self.tracer.call("neg", self)


class Tracer:
    """Traces rules of one step: `shape_of` is the value whose axes labels refer to."""

    def __init__(self, builder: Builder, shape_of: Value, literal_dtype: str) -> None:
        self.builder, self.shape_of, self.literal_dtype = builder, shape_of, literal_dtype

    def wrap(self, value: Value, labels: Labels | None = None) -> Traced:
        return Traced(self, value, tuple(range(len(value.shape))) if labels is None else labels)

    def _lift(self, arguments: Sequence[Any], weak_from: int = 0) -> list[Traced]:
        strong = [a.value.dtype for a in arguments[weak_from:] if isinstance(a, Traced)]
        dtype = promote(*strong) if strong else self.literal_dtype
        return [
            a if isinstance(a, Traced) else self.wrap(self._literal(a, dtype), ())
            for a in arguments
        ]

    def _literal(self, number: Any, dtype: str) -> Value:
        if isinstance(number, complex):
            return self.builder.literal_like(number, [Value("", (), dtype)])
        return self.builder.literal(number, dtype)

    def call(self, name: str, *arguments: Any) -> Traced:
        """An elementwise function of traced values and numbers."""
        lifted = self._lift(arguments, weak_from=1 if name == "where" else 0)
        union = tuple(sorted({label for a in lifted for label in a.labels}))
        wires = [tuple(union.index(label) for label in a.labels) for a in lifted]
        shape = [self.shape_of.shape[label] for label in union]
        axes = [self.shape_of.axes[label] for label in union]
        values = [a.value for a in lifted]
        out = self.builder.map(name, values, wires, shape, axes)
        return self.wrap(out, union)

    def multiply(self, *arguments: Any, keep: Labels | None = None) -> Traced:
        """The product, summed over the labels not in `keep`."""
        lifted = self._lift(arguments)
        union = tuple(sorted({label for a in lifted for label in a.labels}))
        out = union if keep is None else keep
        value = self.builder.contract(
            [a.value for a in lifted],
            [a.labels for a in lifted],
            out,
            [self.shape_of.shape[label] for label in out],
            [self.shape_of.axes[label] for label in out],
        )
        return self.wrap(value, out)
