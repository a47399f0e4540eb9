"""Outputs come as one expression, a tuple or list, or a dict; results in the same shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.origin import call_site


@dataclass(frozen=True, slots=True)
class Container:
    """``kind`` is "one", "tuple", "list" or "dict"; ``keys`` are those of a dict."""

    kind: str
    expressions: tuple[Expr, ...]
    keys: tuple[str, ...] = ()

    @classmethod
    def of(cls, outputs: Any) -> Container:
        """Take a container of expressions apart. Raises ArgumentError for anything else."""
        if isinstance(outputs, Expr):
            return cls("one", (outputs,))
        if isinstance(outputs, Mapping) and outputs:
            keys = tuple(map(str, outputs))
            return cls("dict", _checked(tuple(outputs.values())), keys)
        if isinstance(outputs, tuple | list) and outputs:
            return cls("list" if isinstance(outputs, list) else "tuple", _checked(tuple(outputs)))
        empty = isinstance(outputs, Mapping | tuple | list)
        raise ArgumentError(
            "the outputs are empty"
            if empty
            else f"the outputs are a {type(outputs).__name__}, not expressions",
            where=call_site(),
            fix="give an expression, a non-empty tuple, or a dict of name → expression",
        )

    def pack(self, results: Sequence[Any]) -> Any:
        """Results in the shape that the outputs came in."""
        if self.kind == "one":
            return results[0]
        if self.kind == "dict":
            return dict(zip(self.keys, results, strict=True))
        return list(results) if self.kind == "list" else tuple(results)

    def unpack(self, values: Any) -> tuple[Any, ...]:
        """Values given in that shape, in order. Raises ArgumentError."""
        count = len(self.expressions)
        if self.kind == "one":
            return (values,)
        if self.kind == "dict" and isinstance(values, Mapping) and set(values) == set(self.keys):
            return tuple(values[key] for key in self.keys)
        if self.kind != "dict" and isinstance(values, tuple | list) and len(values) == count:
            return tuple(values)
        raise ArgumentError(
            f"{count} values are needed, in a {self.kind} as the outputs were given",
            where=f"the network defined at {self.expressions[0].origin}",
            fix=f"give them for {', '.join(self.keys)}" if self.keys else "give one per output",
        )


def _checked(outputs: tuple[Any, ...]) -> tuple[Expr, ...]:
    for output in outputs:
        if not isinstance(output, Expr):
            raise ArgumentError(
                f"an output is a {type(output).__name__}, not an expression",
                where=call_site(),
                fix="outputs are made with tnc.input, tnc.param and the operations on them",
            )
    return outputs
