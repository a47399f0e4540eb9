"""Build a program step by step: fresh names, inferred shapes and dtypes, trivial steps left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tncompiler.ir.dtypes import DEFAULT, is_real, kind, promote, real_part
from tncompiler.ir.errors import DTypeError, GradientError
from tncompiler.ir.functions import function
from tncompiler.ir.program import (
    Argument,
    Cast,
    Concat,
    Contract,
    Convolve,
    Fold,
    Labels,
    Literal,
    Map,
    Merge,
    Op,
    Pad,
    Program,
    Reduce,
    Slice,
    Split,
    Step,
    Unfold,
    Value,
    Window,
    canonical,
    canonical_convolve,
)
from tncompiler.ir.sizes import Equation, Size, plain
from tncompiler.ir.windows import Geometry


class Builder:
    """Collects steps. Every method returns the Value that its step makes.

    ``prefix`` is how names of new values begin; ``taken`` are the names in use.
    """

    def __init__(
        self, default_dtype: str = DEFAULT, like: Program | None = None, prefix: str = "t"
    ) -> None:
        self.default_dtype, self.prefix = default_dtype, prefix
        self.arguments: list[Argument] = []
        self.steps: list[Step] = []
        self.equations: list[Equation] = []
        self.taken: set[str] = set()
        self._windows: set[str] = set()  # values that are zeros and ones, whatever their dtype
        self._number = 0
        if like is not None:
            self.arguments = list(like.arguments)
            self.equations = list(like.equations)
            self.taken = set(like.values)

    def argument(self, value: Value, kind: str) -> Value:
        self.arguments.append(Argument(value, kind))
        self.taken.add(value.name)
        return value

    def program(self, outputs: Iterable[Value]) -> Program:
        return Program(
            tuple(self.arguments),
            tuple(self.steps),
            tuple(value.name for value in outputs),
            tuple(dict.fromkeys(self.equations)),
        )

    def emit(
        self,
        op: Op,
        operands: Sequence[Value],
        shape: Sequence[Size],
        dtype: str,
        axes: Sequence[str],
    ) -> Value:
        """Append a step as it is."""
        while f"{self.prefix}{self._number}" in self.taken:
            self._number += 1
        out = Value(f"{self.prefix}{self._number}", tuple(map(plain, shape)), dtype, tuple(axes))
        self._number += 1
        return self.copy(Step(out, op, ()), operands)

    def copy(self, step: Step, operands: Sequence[Value]) -> Value:
        """Append a step of another program under its own name."""
        self.taken.add(step.out.name)
        if isinstance(step.op, Window):
            self._windows.add(step.out.name)
        names = tuple([value.name for value in operands])
        self.steps.append(step if names == step.operands else Step(step.out, step.op, names))
        return step.out

    def literal(self, value: complex | float | int | Size, dtype: str) -> Value:
        return self.emit(Literal(value), (), (), dtype, ())

    def literal_like(self, value: complex | float | int | Size, others: Iterable[Value]) -> Value:
        """A literal that adapts to the operands it meets, as Python numbers do in NumPy."""
        return self.literal(value, self._weak_dtype(value, [other.dtype for other in others]))

    def window(
        self,
        geometry: Geometry,
        shape: Sequence[Size],
        axes: Sequence[str],
        others: Iterable[Value],
    ) -> Value:
        """Where the positions of three axes go together, in the dtype of what it meets."""
        dtypes = {other.dtype for other in others}
        dtype = "bool" if dtypes == {"bool"} else self._weak_dtype(1, sorted(dtypes))
        return self.emit(Window(geometry), (), shape, dtype, axes)

    def convolve(
        self,
        operands: Sequence[Value],
        op: Convolve,
        shape: Sequence[Size],
        axes: Sequence[str],
    ) -> Value:
        """A contraction with related labels."""
        dtype, same = self._unify(operands)
        return self.emit(canonical_convolve(op), same, shape, dtype, axes)

    def unfold(
        self,
        value: Value,
        axis: int,
        geometry: Geometry,
        sizes: tuple[Size, Size],
        names: Sequence[str],
    ) -> Value:
        """An axis seen through windows, as the axes `names` of the sizes (out, kernel)."""
        shape = (*value.shape[:axis], *sizes, *value.shape[axis + 1 :])
        axes = (*value.axes[:axis], *names, *value.axes[axis + 1 :])
        return self.emit(Unfold(axis, geometry), (value,), shape, value.dtype, axes)

    def fold(self, value: Value, axis: int, geometry: Geometry, size: Size, name: str) -> Value:
        """Two axes (out, kernel) summed into the one that they are windows of."""
        shape = (*value.shape[:axis], size, *value.shape[axis + 2 :])
        axes = (*value.axes[:axis], name, *value.axes[axis + 2 :])
        return self.emit(Fold(axis, geometry), (value,), shape, value.dtype, axes)

    def structural(
        self, output: Labels, shape: Sequence[Size], axes: Sequence[str], others: Iterable[Value]
    ) -> Value:
        """Ones, or a delta where `output` repeats a label, in the dtype of what it meets."""
        dtypes = {other.dtype for other in others}
        dtype = "bool" if dtypes == {"bool"} else self._weak_dtype(1, sorted(dtypes))
        return self.emit(Contract((), output), (), shape, dtype, axes)

    def _weak_dtype(self, value: object, others: Sequence[str]) -> str:
        strong = promote(*others) if others else None
        if isinstance(value, complex):
            if strong in (None, DEFAULT):
                return (
                    DEFAULT if self.default_dtype == DEFAULT else _complexified(self.default_dtype)
                )
            return _complexified(strong if kind(strong) != "int" else self.default_dtype)
        if strong is None or (isinstance(value, float) and kind(strong) in ("int", "bool")):
            return real_part(self.default_dtype)
        return "int64" if strong == "bool" else strong

    def contract(
        self,
        operands: Sequence[Value],
        inputs: Sequence[Labels],
        output: Labels,
        shape: Sequence[Size],
        axes: Sequence[str],
    ) -> Value:
        """A contraction; the operand itself if it changes nothing."""
        op = canonical(Contract(tuple(inputs), tuple(output)))
        if len(operands) == 1 and op.inputs[0] == op.output == tuple(range(len(op.output))):
            return operands[0]
        dtype, same = self._unify(operands)
        return self.emit(op, same, shape, dtype, axes)

    def map(
        self,
        name: str,
        operands: Sequence[Value],
        inputs: Sequence[Labels],
        shape: Sequence[Size],
        axes: Sequence[str],
    ) -> Value:
        """An elementwise function, with operands promoted and no-ops on real numbers left out."""
        rule = function(name)
        if name == "unit_cotangent" and operands[0].dtype != DEFAULT:
            return self._unit_cotangent(operands[0])
        if name in ("conj", "real") and (
            is_real(operands[0].dtype) or operands[0].name in self._windows
        ):
            return operands[0]
        if name == "project" and DEFAULT not in (operands[0].dtype, operands[1].dtype):
            return self._project(operands[0], operands[1].dtype, axes)
        if name == "project" and operands[0].dtype == operands[1].dtype:
            return operands[0]
        promoted, dtype = self._promoted(name, operands)
        for value in promoted:
            if kind(value.dtype) not in (*rule.domain, DEFAULT):
                raise DTypeError(
                    f"{name} is not defined for {value.dtype} numbers",
                    fix=f"it takes {' and '.join(rule.domain)} operands; convert with .astype(…)",
                )
        dtype = {"bool": "bool", "real": real_part(dtype)}.get(rule.result, dtype)
        return self.emit(Map(name, tuple(inputs)), promoted, shape, dtype, axes)

    def _unit_cotangent(self, value: Value) -> Value:
        if not is_real(value.dtype):
            raise GradientError(
                "the expression is not real, so its gradient is not unique",
                fix="differentiate expr.real, or give cotangent=…",
            )
        return self.literal(1.0, value.dtype)

    def _project(self, value: Value, dtype: str, axes: Sequence[str]) -> Value:
        """The value as a number of another kind: its real part, or itself as complex."""
        if is_real(dtype) and not is_real(value.dtype):
            wires = (tuple(range(len(value.shape))),)
            value = self.map("real", (value,), wires, value.shape, axes)
        return self.cast(value, dtype)

    def _unify(self, operands: Sequence[Value]) -> tuple[str, list[Value]]:
        """The common dtype and the operands in it; undecided dtypes are left as they are."""
        dtypes = [value.dtype for value in operands]
        dtype = promote(*dtypes) if dtypes else self.default_dtype
        if DEFAULT in dtypes:
            return dtype, list(operands)
        return dtype, [self.cast(value, dtype) for value in operands]

    def _promoted(self, name: str, operands: Sequence[Value]) -> tuple[list[Value], str]:
        """The operands in their common dtype, and that dtype."""
        if name in ("project", "shift_exponent"):
            return list(operands), operands[1].dtype
        start = 1 if name == "where" else 0
        dtype, same = self._unify(operands[start:])
        if kind(dtype) in ("int", "bool") and kind(dtype) not in function(name).domain:
            dtype = self.default_dtype
            same = [self.cast(value, dtype) for value in same]
        condition = [
            value if value.dtype == DEFAULT else self.cast(value, "bool")
            for value in operands[:start]
        ]
        return [*condition, *same], dtype

    def cast(self, value: Value, dtype: str) -> Value:
        """The value in another dtype; itself if it has it."""
        if value.dtype == dtype:
            return value
        producer = self.steps[-1] if self.steps and self.steps[-1].out == value else None
        if producer is not None and isinstance(producer.op, Literal):
            self.steps.pop()
            return self.literal(producer.op.value, dtype)
        return self.emit(Cast(), (value,), value.shape, dtype, value.axes)

    def reduce(self, name: str, value: Value, over: tuple[int, ...]) -> Value:
        if kind(value.dtype) == "complex":
            raise DTypeError(
                f"{name} is not defined for {value.dtype} numbers", fix="reduce .real or .abs()"
            )
        kept = [axis for axis in range(len(value.shape)) if axis not in over]
        shape = [value.shape[axis] for axis in kept]
        axes = [value.axes[axis] for axis in kept]
        return self.emit(Reduce(name, over), (value,), shape, value.dtype, axes)

    def zeros(self, like: Value) -> Value:
        """Zeros of the shape and dtype of another value."""
        labels = tuple(range(len(like.shape)))
        zero = self.literal(0.0 if kind(like.dtype) != "int" else 0, like.dtype)
        return self.contract((zero,), ((),), labels, like.shape, like.axes)

    def add(self, values: Sequence[Value]) -> Value:
        """The sum of values of one shape, in the order given."""
        total = values[0]
        wires = (tuple(range(len(total.shape))),) * 2
        for value in values[1:]:
            total = self.map("add", (total, value), wires, total.shape, total.axes)
        return total

    def split(self, value: Value, axis: int, sizes: Sequence[Size], names: Sequence[str]) -> Value:
        shape = (*value.shape[:axis], *sizes, *value.shape[axis + 1 :])
        axes = (*value.axes[:axis], *names, *value.axes[axis + 1 :])
        return self.emit(Split(axis, len(sizes)), (value,), shape, value.dtype, axes)

    def merge(self, value: Value, axis: int, count: int, size: Size, name: str) -> Value:
        shape = (*value.shape[:axis], size, *value.shape[axis + count :])
        axes = (*value.axes[:axis], name, *value.axes[axis + count :])
        return self.emit(Merge(axis, count), (value,), shape, value.dtype, axes)

    def slice(self, value: Value, axis: int, start: Size, stop: Size) -> Value:
        shape = (*value.shape[:axis], stop - start, *value.shape[axis + 1 :])
        return self.emit(Slice(axis, start, stop), (value,), shape, value.dtype, value.axes)

    def pad(self, value: Value, axis: int, before: Size, after: Size) -> Value:
        size = value.shape[axis] + before + after
        shape = (*value.shape[:axis], size, *value.shape[axis + 1 :])
        return self.emit(Pad(axis, before, after), (value,), shape, value.dtype, value.axes)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        dtype, same = self._unify(values)
        first = values[0]
        size = sum((value.shape[axis] for value in values), start=0)
        shape = (*first.shape[:axis], size, *first.shape[axis + 1 :])
        return self.emit(Concat(axis), same, shape, dtype, first.axes)


def _complexified(dtype: str) -> str:
    if dtype == DEFAULT or not is_real(dtype):
        return dtype
    return "complex128" if dtype in ("float64", "int64") else "complex64"
