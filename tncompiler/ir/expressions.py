"""Expression nodes: an immutable, lazy algebra of named-index tensors.

A closed set of frozen dataclasses. Nodes are made by the checked constructors of `algebra`; what a
node holds is valid. An index that a Contract sums is bound there; only `expr.indices` is visible
outside. Two expressions are equal when they differ at most in the names of bound indices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from tncompiler.ir.dtypes import DEFAULT
from tncompiler.ir.index import Index
from tncompiler.ir.operators import Operators
from tncompiler.ir.origin import call_site
from tncompiler.ir.sizes import Equation, Size, SizeEquation, render_size, size_text
from tncompiler.ir.windows import Geometry, WindowEquation

Initializer = str | Callable[..., Any] | np.ndarray
INITIALIZERS = ("normal", "zeros", "ones", "eye")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Expr(Operators):
    """Base of all nodes.

    ``indices`` are the free indices in order; ``origin`` is where the node was written;
    ``digest`` identifies the node's meaning by position, blind to every index name.
    """

    indices: tuple[Index, ...]
    origin: str = field(default_factory=call_site, kw_only=True)
    digest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        content = repr((type(self).__name__, *self._positional()))
        digest = blake2b(content.encode(), digest_size=16).hexdigest()
        object.__setattr__(self, "digest", digest)

    def _positional(self) -> tuple[object, ...]:
        """What the node means, with indices as positions."""
        raise TypeError(f"{type(self).__name__} does not say what it means")

    @property
    def operands(self) -> tuple[Expr, ...]:
        """The nodes this one is computed from."""
        return ()

    def replaced(self, operands: tuple[Expr, ...]) -> dict[str, Any]:
        """The fields that hold the operands, with others in their place."""
        return dict(zip(("source",), operands, strict=True))

    @property
    def inner(self) -> tuple[Expr, ...]:
        """Expressions with leaves of their own, which a node computes many times over."""
        return ()

    @property
    def shape(self) -> tuple[Size, ...]:
        """The sizes of the free indices."""
        return tuple(index.size for index in self.indices)

    @property
    def ndim(self) -> int:
        return len(self.indices)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Inputs, parameters and constants, each name once, in order of first appearance."""
        found: dict[str, Leaf] = {}
        for node in walk(self):
            if isinstance(node, Leaf):
                found.setdefault(node.name, node)
        return tuple(found.values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Expr):
            return NotImplemented
        return self.digest == other.digest and self.indices == other.indices

    def __hash__(self) -> int:
        return hash((self.digest, self.indices))

    def __deepcopy__(self, memo: dict[int, Any]) -> Expr:
        return self  # immutable; and a copy, node in node, would recurse

    def __repr__(self) -> str:
        indices = ", ".join(map(str, self.indices))
        return f"<{type(self).__name__} ({indices}) at {self.origin or 'unknown'}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Leaf(Expr):
    """A tensor that comes from outside; `kind` is "input", "param" or "constant".

    ``name`` with the axis sizes, dtype and init is its identity, axis by axis; the indices only
    say how this use wires its axes. ``dtype`` "default" is chosen when compiled.
    """

    name: str
    kind: str
    dtype: str = DEFAULT
    init: Initializer | None = None
    value: np.ndarray | None = None

    def _positional(self) -> tuple[object, ...]:
        sizes = tuple(size_text(size) for size in self.shape)
        return (self.name, self.kind, sizes, self.dtype, *map(_identity, (self.init, self.value)))


def _identity(value: object) -> object:
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.name, blake2b(value.tobytes(), digest_size=16).hexdigest())
    return value if value is None or isinstance(value, str) else f"object {id(value)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Literal(Expr):
    """A scalar number, or a size used as a number."""

    value: complex | float | int | Size

    def _positional(self) -> tuple[object, ...]:
        return (repr(self.value), type(self.value).__name__)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Delta(Expr):
    """1 where all indices are equal, else 0."""

    def _positional(self) -> tuple[object, ...]:
        return (size_text(self.indices[0].size), self.ndim)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ones(Expr):
    """1 everywhere."""

    def _positional(self) -> tuple[object, ...]:
        return tuple(size_text(size) for size in self.shape)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Window(Expr):
    """1 where the positions of source, out and kernel, its indices, go together, else 0."""

    geometry: Geometry

    @property
    def equation(self) -> WindowEquation:
        source, out, kernel = self.shape
        return WindowEquation(source, out, kernel, self.geometry, f"the window at {self.origin}")

    def _positional(self) -> tuple[object, ...]:
        padding = map(size_text, (self.geometry.before, self.geometry.after))
        sizes = map(size_text, self.shape)
        return (*sizes, self.geometry.stride, self.geometry.dilation, *padding)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Contract(Expr):
    """The sum of products of `terms` over every index not in `indices`."""

    terms: tuple[Expr, ...]

    @property
    def operands(self) -> tuple[Expr, ...]:
        return self.terms

    def replaced(self, operands: tuple[Expr, ...]) -> dict[str, Any]:
        return {"terms": operands}

    def _positional(self) -> tuple[object, ...]:
        return wiring(self.terms, self.indices)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Map(Expr):
    """An elementwise function of `arguments`, aligned by index and broadcast to `indices`."""

    function: str
    arguments: tuple[Expr, ...]

    @property
    def operands(self) -> tuple[Expr, ...]:
        return self.arguments

    def replaced(self, operands: tuple[Expr, ...]) -> dict[str, Any]:
        return {"arguments": operands}

    def _positional(self) -> tuple[object, ...]:
        return (self.function, *wiring(self.arguments, self.indices))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reduce(Expr):
    """A reduction ("max") of `source` over the indices `over`. Sums are Contracts."""

    function: str
    source: Expr
    over: tuple[Index, ...]

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.source,)

    def _positional(self) -> tuple[object, ...]:
        axes = tuple(self.source.indices.index(index) for index in self.over)
        return (self.function, axes, *wiring((self.source,), self.indices))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reindex(Expr):
    """`source` with its axes called and ordered otherwise: axis k of the result is `axes[k]`."""

    source: Expr
    axes: tuple[int, ...]

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.source,)

    def _positional(self) -> tuple[object, ...]:
        return (self.axes, self.source.digest)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Split(Expr):
    """Axis `axis` of `source` seen as `parts`, the first varying slowest."""

    source: Expr
    axis: int
    parts: tuple[Index, ...]

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.source,)

    @property
    def equation(self) -> SizeEquation:
        sizes = tuple(part.size for part in self.parts)
        return SizeEquation(self.source.shape[self.axis], sizes, f"the split at {self.origin}")

    def _positional(self) -> tuple[object, ...]:
        return (self.axis, *(size_text(part.size) for part in self.parts), self.source.digest)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Merge(Expr):
    """The axes `axis` … `axis + count - 1` of `source` seen as the one index `into`."""

    source: Expr
    axis: int
    count: int
    into: Index

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.source,)

    @property
    def equation(self) -> SizeEquation:
        parts = self.source.shape[self.axis : self.axis + self.count]
        return SizeEquation(self.into.size, parts, f"the merge at {self.origin}")

    def _positional(self) -> tuple[object, ...]:
        return (self.axis, self.count, size_text(self.into.size), self.source.digest)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Slice(Expr):
    """Positions `start` … `stop - 1` of axis `axis`."""

    source: Expr
    axis: int
    start: Size
    stop: Size

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.source,)

    def _positional(self) -> tuple[object, ...]:
        return (self.axis, size_text(self.start), size_text(self.stop), self.source.digest)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Pad(Expr):
    """Axis `axis` with `before` and `after` zeros around it."""

    source: Expr
    axis: int
    before: Size
    after: Size

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.source,)

    def _positional(self) -> tuple[object, ...]:
        return (self.axis, size_text(self.before), size_text(self.after), self.source.digest)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Concat(Expr):
    """`parts` one after the other along axis `axis`; all other axes are the same."""

    parts: tuple[Expr, ...]
    axis: int

    @property
    def operands(self) -> tuple[Expr, ...]:
        return self.parts

    def replaced(self, operands: tuple[Expr, ...]) -> dict[str, Any]:
        return {"parts": operands}

    def _positional(self) -> tuple[object, ...]:
        return (self.axis, *(part.digest for part in self.parts))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Cast(Expr):
    """`source` in another dtype."""

    source: Expr
    dtype: str

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.source,)

    def _positional(self) -> tuple[object, ...]:
        return (self.dtype, self.source.digest)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Scan(Expr):
    """A cell applied at every position of `over` in turn; `ScanResult` takes a result out.

    ``body``: of one position, the states after it and then its results, as expressions of the
    leaves `slots`; these stand for the `arguments`. The first `carried` of both are states.
    ``sliced``: the axis of each argument of which a slot is one position, None if it is all of it.
    ``joined``: for each of the body 0 where positions are put side by side along a new first axis,
    None for states and where they are added. ``reverse``: the last position comes first. It is no
    tensor itself, and has no indices.
    """

    over: Index
    arguments: tuple[Expr, ...]
    slots: tuple[Leaf, ...]
    body: tuple[Expr, ...]
    carried: int
    sliced: tuple[int | None, ...]
    joined: tuple[int | None, ...]
    reverse: bool

    @property
    def operands(self) -> tuple[Expr, ...]:
        return self.arguments

    def replaced(self, operands: tuple[Expr, ...]) -> dict[str, Any]:
        return {"arguments": operands}

    @property
    def inner(self) -> tuple[Expr, ...]:
        return self.body

    def _positional(self) -> tuple[object, ...]:
        content = (self.arguments, self.slots, self.body)
        digests = tuple(tuple(expr.digest for expr in group) for group in content)
        places = (self.carried, self.sliced, self.joined, self.reverse)
        return (size_text(self.over.size), *digests, *places)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ScanResult(Expr):
    """The last states of a scan, and then its results, by position."""

    source: Expr
    position: int

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.source,)

    def _positional(self) -> tuple[object, ...]:
        return (self.position, self.source.digest)


def equations_of(*roots: Expr) -> list[Equation]:
    """What splits, merges and windows say about sizes."""
    nodes = walk_within(*roots)
    return [node.equation for node in nodes if isinstance(node, Split | Merge | Window)]


def wiring(terms: tuple[Expr, ...], out: tuple[Index, ...]) -> tuple[object, ...]:
    """Operand digests and indices as numbers in order of first appearance."""
    numbers: dict[Index, int] = {}
    wires = tuple(
        tuple(numbers.setdefault(index, len(numbers)) for index in term.indices) for term in terms
    )
    return (*(term.digest for term in terms), wires, tuple(numbers.get(index) for index in out))


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every node once, operands before users, depth first and left to right; no recursion."""
    seen: set[int] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((operand, False) for operand in reversed(node.operands))


def walk_within(*roots: Expr) -> Iterator[Expr]:
    """Every node as `walk` gives it, each after those of the expressions inside it."""
    for node in walk(*roots):
        if node.inner:
            yield from walk_within(*node.inner)
        yield node


def rebuild(node: Expr, operands: tuple[Expr, ...]) -> Expr:
    """The node with other operands of the same indices, or the node itself if they are the same."""
    if all(new is old for new, old in zip(operands, node.operands, strict=True)):
        return node
    fields: dict[str, Any] = {
        name: getattr(node, name) for name in node.__dataclass_fields__ if name != "digest"
    }
    fields.update(node.replaced(operands))
    return type(node)(**fields)


def replace_leaves(expr: Expr, replacements: Mapping[Expr, Expr]) -> Expr:
    """The expression with every leaf equal to a key replaced by its value."""
    done: dict[int, Expr] = {}
    for node in walk(expr):
        if isinstance(node, Leaf):
            done[id(node)] = replacements.get(node, node)
        else:
            done[id(node)] = rebuild(node, tuple(done[id(op)] for op in node.operands))
    return done[id(expr)]


def to_text(expr: Expr) -> str:
    """One line a node: number, kind, what is particular to it, operands, indices."""
    numbers: dict[int, int] = {}
    lines: list[str] = []
    for node in walk(expr):
        numbers[id(node)] = len(lines)
        operands = " ".join(f"#{numbers[id(operand)]}" for operand in node.operands)
        words = (type(node).__name__.lower(), _particulars(node), operands)
        indices = ", ".join(map(str, node.indices))
        lines.append(f"#{len(lines)}({indices}) = {' '.join(filter(None, words))}")
    return "\n".join(lines)


def _particulars(node: Expr) -> str:
    match node:
        case Leaf():
            return f"{node.kind} {node.name}"
        case Literal():
            return str(node.value)
        case Map() | Reduce():
            return node.function
        case Slice():
            return f"{render_size(node.start)}:{render_size(node.stop)} of axis {node.axis}"
        case Cast():
            return node.dtype
        case Window():
            return node.geometry.text()
    return ""
