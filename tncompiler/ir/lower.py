"""Expressions → logical program: names become positions, every leaf name one argument.

In: expressions, the dtype that "default" stands for, known sizes. Out: a valid program whose
contractions still have as many operands as were written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import sympy

from tncompiler.ir import expressions as ex
from tncompiler.ir.arange import Arange, Positions
from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import DEFAULT, kind, promote, promote_as_numpy
from tncompiler.ir.errors import NameClash, ScanError, TncError
from tncompiler.ir.expressions import Expr, Leaf
from tncompiler.ir.functions import function as rule_of
from tncompiler.ir.gather_nodes import Gather, Scatter
from tncompiler.ir.gather_rules import lower_gather, lower_scatter
from tncompiler.ir.pairs import Leading, LeadingAdjoint
from tncompiler.ir.pairs_rules import lower_leading
from tncompiler.ir.program import Labels, Program, Value
from tncompiler.ir.scans.lower import lower_scan, lower_scan_result
from tncompiler.ir.scans.make import SLOT
from tncompiler.ir.sizes import Size, render_size, substitute

Binding = Mapping[sympy.Symbol, Size]

_WEAK = (
    ex.Literal,
    ex.Ones,
    ex.Delta,
    ex.Window,
)  # they take the dtype of what they are combined with


def lower(
    outputs: Sequence[Expr],
    *,
    default_dtype: str = DEFAULT,
    binding: Binding | None = None,
    dtypes: Mapping[str, str] | None = None,
    leaves: Sequence[Leaf] | None = None,
    library: str = "torch",
) -> Program:
    """The logical program of several expressions at once; shared nodes are computed once.

    ``dtypes`` overrides the dtype of leaves by name; ``leaves`` fixes the arguments and their order
    (the default is order of first appearance). Mixed operands are promoted as ``library`` does.
    """
    lowering = _Lowering(default_dtype, binding or {}, dtypes or {}, library)
    for leaf in leaves if leaves is not None else collect_leaves(outputs):
        lowering.declare(leaf)
    lowering.nodes(outputs)
    return lowering.builder.program([lowering.operand(output) for output in outputs])


def collect_leaves(outputs: Sequence[Expr]) -> tuple[Leaf, ...]:
    """Every leaf name once, in order of first appearance.

    Raises: NameClash on two identities; ScanError on a state or slice outside of its cell.
    """
    found: dict[str, Leaf] = {}
    for node in ex.walk(*outputs):
        if isinstance(node, Leaf):
            if node.kind == SLOT:
                raise _leaked(node)
            first = found.setdefault(node.name, node)
            if first.digest != node.digest:
                raise name_clash(first, node)
    return tuple(found.values())


def name_clash(first: Leaf, second: Leaf) -> NameClash:
    """The error about one name for two tensors."""
    described = []
    for leaf in (first, second):
        shape = ", ".join(render_size(size) for size in leaf.shape)
        initial = leaf.init if isinstance(leaf.init, str | None) else type(leaf.init).__name__
        described.append(f"{leaf.kind} ({shape}) {leaf.dtype}, init {initial}, at {leaf.origin}")
    return NameClash(
        f"the name {first.name!r} is used for two different tensors: {' and '.join(described)}",
        fix="give one another name, or make kind, sizes, dtype and init the same to share it",
    )


def _leaked(leaf: Leaf) -> ScanError:
    return ScanError(
        f"{leaf.name!r}, which has a value only inside the cell of a scan, is used outside of it",
        where=f"the scan at {leaf.origin}",
        fix="return what is needed outside as an output of the cell",
    )


class _Lowering:
    """Expressions on their way into one program; a scan's cell is lowered into its own, within."""

    def __init__(
        self,
        default: str,
        binding: Binding,
        dtypes: Mapping[str, str],
        library: str,
        prefix: str = "t",
    ) -> None:
        self.builder = Builder(default, prefix=prefix)
        self.scans = 0
        self.binding, self.dtypes, self.library = binding, dtypes, library
        self.done: dict[int, Value] = {}
        self.leaf_values: dict[str, Value] = {}

    def size(self, size: Size) -> Size:
        return substitute(size, self.binding)

    def declare(self, leaf: Leaf) -> None:
        dtype = self.dtypes.get(leaf.name, leaf.dtype)
        dtype = self.builder.default_dtype if dtype == DEFAULT else dtype
        shape = tuple(map(self.size, leaf.shape))
        value = Value(leaf.name, shape, dtype, tuple(index.name for index in leaf.indices))
        self.leaf_values[leaf.name] = self.builder.argument(value, leaf.kind)

    def declare_as(self, leaf: Leaf, value: Value) -> None:
        """An argument that stands for a leaf of a cell."""
        self.leaf_values[leaf.name] = self.builder.argument(value, "input")

    def within(self) -> _Lowering:
        """A lowering for the cell of a scan; no value of it has the name of one elsewhere."""
        self.scans += 1
        prefix = f"{self.builder.prefix.removesuffix('t')}s{self.scans}_t"
        default = self.builder.default_dtype
        return _Lowering(default, self.binding, {}, self.library, prefix)

    def nodes(self, outputs: Sequence[Expr]) -> None:
        """Every node that the outputs need, once."""
        for node in ex.walk(*outputs):
            self.node(node)

    def node(self, node: Expr) -> None:
        if isinstance(node, _WEAK):  # those are made where they meet their operands
            return
        try:
            self.done[id(node)] = _RULES[type(node)](self, node)
        except TncError as error:
            if error.where is not None:
                raise
            where = f"the expression at {node.origin}"
            raise type(error)(error.what, where=where, fix=error.fix) from None

    def operands(self, nodes: Sequence[Expr], function: str | None = None) -> list[Value]:
        """The nodes' values; those of `function` are promoted as the library promotes them."""
        strong = [self.done[id(n)] for n in nodes if not isinstance(n, _WEAK)]
        # the condition of `where` promotes nothing
        first = int(function == "where" and not isinstance(nodes[0], _WEAK))
        if self.library == "numpy" and not any(v.dtype == DEFAULT for v in strong):
            strong[first:] = self._as_numpy(strong[first:], function)
        values = iter(strong)
        return [self._weak(n, strong) if isinstance(n, _WEAK) else next(values) for n in nodes]

    def _as_numpy(self, values: list[Value], function: str | None) -> list[Value]:
        """Cast where NumPy goes further than torch, which lets floats win over integers."""
        if not values:
            return values
        dtype = promote_as_numpy(*(value.dtype for value in values))
        if function is not None and kind(dtype) in ("bool", "int"):
            dtype = dtype if kind(dtype) in rule_of(function).domain else "float64"
        if dtype == promote(*(value.dtype for value in values)):
            return values
        return [self.builder.cast(value, dtype) for value in values]

    def _weak(self, node: Expr, others: Sequence[Value]) -> Value:
        """A number or structural tensor in the dtype of the operands it meets."""
        if isinstance(node, ex.Literal):
            return self.builder.literal_like(self._literal(node), others)
        if isinstance(node, ex.Window):
            self.builder.equations.append(node.equation.substitute(self.binding))
            geometry = node.geometry.substitute(self.binding)
            return self.builder.window(geometry, self.shape(node), _axes(node), others)
        output = (0,) * node.ndim if isinstance(node, ex.Delta) else tuple(range(node.ndim))
        return self.builder.structural(output, self.shape(node), _axes(node), others)

    def _literal(self, node: ex.Literal) -> complex | float | int | Size:
        if isinstance(node.value, int | float | complex):
            return node.value
        return self.size(node.value)

    def operand(self, node: Expr) -> Value:
        return self.operands((node,))[0]

    def shape(self, node: Expr) -> tuple[Size, ...]:
        return tuple(map(self.size, node.shape))


def _axes(node: Expr) -> tuple[str, ...]:
    return tuple(index.name for index in node.indices)


def _labels(nodes: Sequence[Expr], out: Expr) -> tuple[list[Labels], Labels]:
    numbers: dict[object, int] = {}
    wires = [
        tuple(numbers.setdefault(index, len(numbers)) for index in node.indices)
        for node in (*nodes, out)
    ]
    return wires[:-1], wires[-1]


def _leaf(low: _Lowering, node: Leaf) -> Value:
    return low.leaf_values[node.name]


def _contract(low: _Lowering, node: ex.Contract) -> Value:
    inputs, output = _labels(node.terms, node)
    return low.builder.contract(
        low.operands(node.terms), inputs, output, low.shape(node), _axes(node)
    )


def _map(low: _Lowering, node: ex.Map) -> Value:
    wires = [tuple(node.indices.index(i) for i in arg.indices) for arg in node.arguments]
    operands = low.operands(node.arguments, node.function)
    return low.builder.map(node.function, operands, wires, low.shape(node), _axes(node))


def _reduce(low: _Lowering, node: ex.Reduce) -> Value:
    over = tuple(node.source.indices.index(index) for index in node.over)
    return low.builder.reduce(node.function, low.operand(node.source), over)


def _reindex(low: _Lowering, node: ex.Reindex) -> Value:
    source = low.operand(node.source)
    labels = tuple(range(node.ndim))
    return low.builder.contract((source,), (labels,), node.axes, low.shape(node), _axes(node))


def _split(low: _Lowering, node: ex.Split) -> Value:
    low.builder.equations.append(node.equation.substitute(low.binding))
    sizes = [low.size(part.size) for part in node.parts]
    names = [part.name for part in node.parts]
    return low.builder.split(low.operand(node.source), node.axis, sizes, names)


def _merge(low: _Lowering, node: ex.Merge) -> Value:
    low.builder.equations.append(node.equation.substitute(low.binding))
    size = low.size(node.into.size)
    return low.builder.merge(low.operand(node.source), node.axis, node.count, size, node.into.name)


def _slice(low: _Lowering, node: ex.Slice) -> Value:
    source = low.operand(node.source)
    return low.builder.slice(source, node.axis, low.size(node.start), low.size(node.stop))


def _pad(low: _Lowering, node: ex.Pad) -> Value:
    source = low.operand(node.source)
    return low.builder.pad(source, node.axis, low.size(node.before), low.size(node.after))


def _concat(low: _Lowering, node: ex.Concat) -> Value:
    return low.builder.concat(low.operands(node.parts), node.axis)


def _cast(low: _Lowering, node: ex.Cast) -> Value:
    return low.builder.cast(low.operand(node.source), node.dtype)


def _arange(low: _Lowering, node: Arange) -> Value:
    return low.builder.emit(Positions(), (), low.shape(node), "int64", _axes(node))


_RULES: dict[type[Expr], Callable[..., Value]] = {
    Leaf: _leaf,
    ex.Contract: _contract,
    ex.Map: _map,
    ex.Reduce: _reduce,
    ex.Reindex: _reindex,
    ex.Split: _split,
    ex.Merge: _merge,
    ex.Slice: _slice,
    ex.Pad: _pad,
    ex.Concat: _concat,
    ex.Cast: _cast,
    Leading: lower_leading,
    LeadingAdjoint: lower_leading,
    Arange: _arange,
    Gather: lower_gather,
    Scatter: lower_scatter,
    ex.Scan: lower_scan,
    ex.ScanResult: lower_scan_result,
}
