"""Random networks for fuzzing: a pool of tensors on which random operations are done.

Deterministic in the seed. Sizes are tiny and values tame, so that bounds mean something and a check
costs little; one index name has one size everywhere, except where a scope of its own is the point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import tncompiler as tnc
from tests.block_networks import attended, blocked
from tests.position_networks import gathered, scattered
from tncompiler.ir.expressions import Expr, Leaf, walk
from tncompiler.ir.index import Index
from tncompiler.ir.sizes import evaluate, symbols_of

MAX_AXES = 5
MAX_ELEMENTS = 400


@dataclass(frozen=True)
class Case:
    """A network with arrays for its leaves.

    ``arrays`` are in the dtype they run in (bfloat16 rounded, in float32); ``sizes`` binds every
    size symbol, ``given`` those that compile must be told; ``cotangents`` has one array per output;
    ``wrt`` names the leaves to differentiate by. ``other`` is the network with another batch size,
    for the same compiled callable; ``kind`` is one of KINDS.
    """

    seed: int
    outputs: tuple[Expr, ...]
    arrays: dict[str, np.ndarray]
    dtype: str
    cotangents: tuple[np.ndarray, ...]
    wrt: tuple[str, ...]
    sizes: dict[Any, int] = field(default_factory=dict)
    given: dict[Any, int] = field(default_factory=dict)
    other: Case | None = None
    kind: str = "plain"

    @property
    def longest(self) -> int:
        """The largest size of an axis of a leaf."""
        return max((n for array in self.arrays.values() for n in array.shape), default=0)


def round_to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 numbers, ties to even, held in float32."""
    bits = np.asarray(array, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def as_dtype(values: Any, dtype: str) -> np.ndarray:
    """An array of the dtype; bfloat16 in float32."""
    array = np.asarray(values)
    return round_to_bfloat16(array) if dtype == "bfloat16" else array.astype(dtype)


@dataclass(frozen=True)
class _Item:
    """A tensor of the pool, and whether its numbers are complex."""

    expr: Expr
    complex: bool

    @property
    def indices(self) -> tuple[Index, ...]:
        return self.expr.indices


def random_network(
    seed: int, size: int = 8, *, smooth: bool = False, dtype: str = "", positive: bool = False
) -> Case:
    """The network of a seed, of at most `size` leaves.

    ``smooth`` leaves out what has corners; ``dtype`` overrides the random choice of one;
    ``positive`` makes all numbers positive, so that nothing cancels.
    """
    return _Maker(seed, size, smooth, dtype, positive).case()


class _Maker:
    def __init__(
        self, seed: int, size: int, smooth: bool, dtype: str, positive: bool = False
    ) -> None:
        self.rng = np.random.default_rng([seed, size])
        self.seed, self.smooth, self.limit, self.positive = seed, smooth, size, positive
        drawn = self.pick(
            ["float32"] * 6 + ["float64"] * 2 + ["complex64"] * 2 + ["complex128"] * 2
        )
        self.dtype = dtype or drawn
        self.is_complex = self.dtype.startswith("complex")
        self.real_dtype = {"complex64": "float32", "complex128": "float64"}.get(
            self.dtype, self.dtype
        )
        self.actual: dict[str, int] = {}  # extents of all index names
        self.arrays: dict[str, np.ndarray] = {}
        self.leaves: list[Leaf] = []
        self.pool: list[_Item] = []
        self.names = self._first_indices()

    # ---------------------------------------------------------------- choosing

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def some(self, options: Sequence[Any], count: int) -> list[Any]:
        order = self.rng.permutation(len(options))[: max(count, 0)]
        return [options[k] for k in order]

    def subset(self, options: Sequence[Any], probability: float) -> list[Any]:
        return [option for option in options if self.chance(probability)]

    # ---------------------------------------------------------------- indices

    def _first_indices(self) -> list[Index]:
        few = self.some([2, 3, 4, 5], 2)
        extents = [self.pick([*few, *few, *few, 1, 2, 3]) for _ in "ijklmn"]
        if self.chance(0.04):
            extents[int(self.rng.integers(6))] = 0
        found = [self.index(name, n) for name, n in zip("ijklmn", extents, strict=True)]
        if self.chance(0.25):  # a free batch size
            self.actual["b"] = self.pick([1, 2, 3])
            found.append(Index("b"))
        return found

    def index(self, name: str, size: Any, actual: int | None = None) -> Index:
        self.actual[name] = size if actual is None else actual
        return Index(name, size)

    def fresh(self, size: Any, actual: int) -> Index:
        return self.index(f"x{len(self.actual)}", size, actual)

    def extent(self, index: Index) -> int:
        return self.actual[index.name]

    def count(self, indices: Sequence[Index]) -> int:
        return int(np.prod([max(self.extent(i), 1) for i in indices], dtype=int))

    def fits(self, indices: Sequence[Index]) -> bool:
        return len(indices) <= MAX_AXES and self.count(indices) <= MAX_ELEMENTS

    # ---------------------------------------------------------------- leaves

    def leaf(self, indices: Sequence[Index] | None = None) -> _Item:
        """A new leaf, or one that is there already under other indices."""
        if indices is None:
            if self.leaves and self.chance(0.25):
                shared = self.reuse(self.pick(self.leaves))
                if shared is not None:
                    return shared
            indices = self.some(self.names, self.pick([0, 1, 2, 2, 2, 3, 3, 4]))
        name = f"{self.pick(['A', 'B', 'w', 'layer.c'])}{len(self.leaves)}"
        free = any(not isinstance(index.size, int) for index in indices)
        kind = "input" if free else self.pick(["input", "input", "param", "param", "constant"])
        real = self.is_complex and self.chance(0.3)
        dtype = self.real_dtype if real else None
        array = self.array([self.extent(i) for i in indices], real)
        if kind == "constant":
            made = tnc.constant(name, *indices, value=array, dtype=dtype)
        else:
            made = (tnc.input if kind == "input" else tnc.param)(name, *indices, dtype=dtype)
        self.arrays[name] = array
        self.leaves.append(made)
        return _Item(made, self.is_complex and not real)

    def array(self, shape: Sequence[int], real: bool) -> np.ndarray:
        values = self.rng.standard_normal(tuple(shape))
        if self.chance(0.15) and not self.smooth:
            values = np.round(values)  # ties and exact zeros
        if self.is_complex and not real:
            values = values + 1j * self.rng.standard_normal(tuple(shape))
        if self.positive:
            values = np.abs(values.real) + (
                1j * np.abs(values.imag) if np.iscomplexobj(values) else 0.0
            )
        return as_dtype(values, self.real_dtype if real else self.dtype)

    def reuse(self, leaf: Leaf) -> _Item | None:
        """The leaf with each axis called by some index of the same size."""
        chosen: list[Index] = []
        for axis in leaf.indices:
            options = [i for i in self.names if i.size == axis.size and i not in chosen]
            if not options:
                return None
            chosen.append(self.pick(options))
        return _Item(leaf(*chosen), self.arrays[leaf.name].dtype.kind == "c")

    def take(self) -> _Item:
        """A tensor of the pool; it mostly leaves it, so that networks grow deep."""
        if not self.pool:
            return self.leaf()
        position = int(self.rng.integers(len(self.pool)))
        return self.pool[position] if self.chance(0.25) else self.pool.pop(position)

    def real_item(self) -> _Item:
        item = self.take()
        if not item.complex:
            return item
        part = self.pick([lambda t: t.real, lambda t: t.imag])
        if not self.smooth and self.chance(0.3):
            part = tnc.abs
        return _Item(part(item.expr), False)

    # ---------------------------------------------------------------- the case

    def case(self) -> Case:
        self.pool = [self.leaf() for _ in range(int(self.rng.integers(1, self.limit + 1)))]
        for _ in range(int(self.rng.integers(1, 9))):
            made = self.pick(SMOOTH if self.smooth else OPERATIONS)(self)
            if made is not None and self.fits(made.indices):
                self.pool.append(made)
        if self.chance(0.6) or not self.pool:
            self.pool.append(_contraction(self))
        wanted = self.pick([1, 1, 1, 2, 3])
        last = self.pool[-1:] + self.some(self.pool[:-1], wanted - 1)
        outputs = tuple(item.expr for item in last)
        used = {leaf.name for output in outputs for leaf in output.leaves}
        if not used:
            last, outputs = [*last, self.leaf()], (*outputs, self.leaves[-1])
            used = {self.leaves[-1].name}
        arrays = {name: array for name, array in self.arrays.items() if name in used}
        kinds = {leaf.name: leaf.kind for leaf in self.leaves}
        wrt = tuple(
            name
            for name, array in arrays.items()
            if kinds[name] != "constant" and array.dtype.kind in "fc"
        )
        cotangents = tuple(
            self.array([self.extent(i) for i in item.indices], not item.complex) for item in last
        )
        sizes = {tnc.size("b"): self.actual["b"]} if "b" in self.actual else {}
        given = sizes if self.needs_sizes(outputs) else {}
        case = Case(self.seed, outputs, arrays, self.dtype, cotangents, wrt, sizes, given)
        return replace(case, other=self.resized(case)) if sizes and not given else case

    def resized(self, case: Case) -> Case | None:
        """The case with another batch size and new numbers; None if no leaf has that axis."""
        batch = self.pick([n for n in (1, 2, 3, 5) if n != self.actual["b"]])
        sizes = {tnc.size("b"): batch}

        def renewed(array: np.ndarray, indices: Sequence[Index]) -> np.ndarray:
            shape = [evaluate(index.size, sizes) for index in indices]
            if array.dtype.kind == "i":  # positions stay where they were
                return np.resize(array, shape)
            return self.array(shape, array.dtype.kind != "c")

        free = [
            leaf
            for leaf in self.leaves
            if leaf.name in case.arrays and any(symbols_of(size) for size in leaf.shape)
        ]
        if not free:
            return None
        arrays = {leaf.name: renewed(case.arrays[leaf.name], leaf.indices) for leaf in free}
        cotangents = tuple(
            renewed(cotangent, output.indices)
            for cotangent, output in zip(case.cotangents, case.outputs, strict=True)
        )
        return replace(case, arrays={**case.arrays, **arrays}, cotangents=cotangents, sizes=sizes)

    def needs_sizes(self, outputs: Sequence[Expr]) -> bool:
        """Whether the free batch size stands on no leaf, so that no array tells it."""
        free = {s for node in walk(*outputs) for size in node.shape for s in symbols_of(size)}
        told = {s for o in outputs for leaf in o.leaves for s in leaf.shape if leaf.kind == "input"}
        return bool(free - told)


# ---------------------------------------------------------------------------- networks


def _network(make: _Maker, items: Sequence[_Item]) -> _Item:
    """A contraction to a random part of the union, in random order, or to the default."""
    union = list(dict.fromkeys(i for item in items for i in item.indices))
    out = make.some(union, int(make.rng.integers(0, min(len(union), MAX_AXES) + 1)))
    while not make.fits(out):
        out.pop()
    once = [i for i in union if sum(i in item.indices for item in items) == 1]
    default = make.chance(0.25) and make.fits(once)
    terms = [item.expr for item in items]
    made = tnc.contract(*terms) if default else tnc.contract(*terms, out=out)
    return _Item(made, any(item.complex for item in items))


def _contraction(make: _Maker) -> _Item:
    items = [make.take() for _ in range(make.pick([1, 2, 2, 2, 3, 3, 4, 5, 6]))]
    return _network(make, items)


def _product(make: _Maker) -> _Item | None:
    a, b = make.take(), make.take()
    if not make.fits(dict.fromkeys((*a.indices, *b.indices))):
        return _network(make, (a, b))
    return _Item(a.expr * b.expr, a.complex or b.complex)


def _captured(make: _Maker) -> _Item | None:
    """(A(i, j) @ B(j, k)) @ C(k, j): the outer j is another one than the bound j."""
    i, j, k = make.some([n for n in make.names if isinstance(n.size, int)], 3)
    a, b, c = make.leaf((i, j)), make.leaf((j, k)), make.leaf((k, j))
    inner = _Item(a.expr @ b.expr, a.complex or b.complex)
    if make.chance(0.4):
        inner = _Item(tnc.contract(a.expr, b.expr, out=(k, i)), inner.complex)
    return _Item(inner.expr @ c.expr, inner.complex or c.complex)


def _two_ranks(make: _Maker) -> _Item | None:
    """Two layers whose bonds have one name and two sizes."""
    i, j, k = make.some([n for n in make.names if isinstance(n.size, int)], 3)
    layers = []
    for left, right in ((i, j), (j, k)):
        rank = Index("r", make.pick([1, 2, 3, 4]))
        make.actual["r"] = rank.size
        first, second = make.leaf((left, rank)), make.leaf((right, rank))
        layers.append(_Item(first.expr @ second.expr, first.complex or second.complex))
    del make.actual["r"]
    return _network(make, layers)


def _diagonal(make: _Maker) -> _Item | None:
    """A trace, a diagonal or a diagonal embedding."""
    item = make.take()
    pairs = [(a, b) for a in item.indices for b in make.names if a != b and a.size == b.size]
    if not pairs:
        return item
    a, b = make.pick(pairs)
    rest = [i for i in item.indices if i not in (a, b)]
    out = [*rest, *make.subset([a, b], 0.6)]
    third = [i for i in make.names if i.size == a.size and i not in (*item.indices, a, b)]
    joined = tnc.delta(a, b, *third[:1]) if make.chance(0.2) else tnc.delta(a, b)
    return _Item(tnc.contract(item.expr, joined, out=make.some(out, len(out))), item.complex)


def _widened(make: _Maker) -> _Item | None:
    item = make.take()
    absent = [i for i in make.names if i not in item.indices]
    if not absent:
        return item
    wide = item.expr * tnc.ones(*make.some(absent, make.pick([1, 1, 2])))
    if not make.fits(wide.indices):
        return item
    summed = make.subset(wide.indices, 0.3)
    return _Item(wide.sum(*summed) if summed else wide, item.complex)


def _bare_sum(make: _Maker) -> _Item | None:
    """An index that is summed but on no tensor, so it counts by its size."""
    a, b = make.take(), make.pick(make.names)
    if b in a.indices:
        return a
    out = [i for i in a.indices if make.chance(0.7)]
    return _Item(tnc.contract(a.expr, tnc.ones(b), out=out), a.complex)


# ---------------------------------------------------------------------------- maps

_SMOOTH_MAPS: tuple[Callable[[Expr], Expr], ...] = (
    tnc.tanh,
    tnc.sigmoid,
    tnc.gelu,
    tnc.silu,
    tnc.softplus,
    tnc.erf,
    tnc.sin,
    tnc.cos,
    lambda t: tnc.exp(tnc.tanh(t)),
    lambda t: tnc.exp(-(t * t)),
    lambda t: tnc.expm1(tnc.sin(t)),
    lambda t: tnc.log1p(t * t),
    lambda t: tnc.log(t * t + 1.5),
    lambda t: tnc.sqrt(t * t + 0.7),
    lambda t: tnc.rsqrt(t * t + 1.0),
    lambda t: tnc.reciprocal(t * t + 1),
    lambda t: (t * t + 1.0) ** 1.5,
    lambda t: t**2,
    lambda t: 1 - t,
    lambda t: -t,
    lambda t: t * 2.5,
)
_CORNERED_MAPS: tuple[Callable[[Expr], Expr], ...] = (
    lambda t: t - tnc.stop_gradient(t * 0.3),
    tnc.relu,
    tnc.abs,
    lambda t: tnc.maximum(t, 0.1),
    lambda t: tnc.where(t > 0.25, t, 0.1 * t),
    lambda t: t * tnc.sign(t),
    lambda t: tnc.where(tnc.less_equal(t, 0.0), t * t, 2.0),
)
_COMPLEX_MAPS: tuple[Callable[[Expr], Expr], ...] = (
    lambda t: t.conj(),
    lambda t: t.conj(),
    lambda t: t * t.conj(),
    lambda t: t.conj() * 1.5,
    lambda t: t * (0.5 + 1.5j),
    lambda t: t - 2j,
    lambda t: 1j * t.real,
    lambda t: t.imag * t,
    lambda t: -t,
    lambda t: t**2,
    lambda t: t / ((t * t.conj()).real + 1.0),
    lambda t: tnc.exp(t / ((t * t.conj()).real + 1.0)),
    lambda t: tnc.sin(t / ((t * t.conj()).real + 1.0)),
)
_TO_REAL: tuple[Callable[[Expr], Expr], ...] = (
    lambda t: t.real,
    lambda t: t.imag,
    lambda t: (t * t.conj()).real,
)


def _unary(make: _Maker) -> _Item:
    item = make.take()
    if item.complex and make.chance(0.6):
        return _Item(make.pick(_COMPLEX_MAPS)(item.expr), True)
    if item.complex:
        maps = _TO_REAL if make.smooth else (*_TO_REAL, tnc.abs)
        return _Item(make.pick(maps)(item.expr), False)
    maps = _SMOOTH_MAPS if make.smooth else (*_SMOOTH_MAPS, *_CORNERED_MAPS, *_CORNERED_MAPS)
    made = make.pick(maps)(item.expr)
    if make.is_complex and make.chance(0.2):
        return _Item(made * (0.5 - 1j), True)
    return _Item(made, False)


def _narrowed(make: _Maker, item: _Item, indices: Sequence[Index]) -> _Item:
    """The tensor summed to those of its indices that are among `indices`."""
    extra = [i for i in item.indices if i not in indices]
    return _Item(item.expr.sum(*extra), item.complex) if extra else item


def _binary(make: _Maker) -> _Item:
    """Sums and quotients that broadcast."""
    a, b = make.take(), make.take()
    b = _narrowed(make, b, a.indices)
    if make.chance(0.3):
        a, b = b, a
    x, y = a.expr, b.expr
    if make.chance(0.2):
        return _Item(x / ((y * y.conj()).real + 1.0), a.complex)
    made = make.pick(
        [
            lambda: x + y,
            lambda: x - y,
            lambda: x - y,
            lambda: x + 0.5 * y,
            lambda: (x - y) * 2.0 + (y - x) * y,
            lambda: 2.0 - x + y / 4,
        ]
    )()
    return _Item(made, a.complex or b.complex)


def _compared(make: _Maker) -> _Item:
    a, b = make.real_item(), make.real_item()
    b = _narrowed(make, b, a.indices)
    x, y = a.expr, b.expr
    made = make.pick(
        [
            lambda: tnc.maximum(x, y),
            lambda: tnc.minimum(y, x),
            lambda: tnc.where(x > y, x, y * 2.0),
            lambda: tnc.where(tnc.less(y, x), x * y, y),
            lambda: tnc.where(tnc.greater_equal(x, 0.1), y, x),
        ]
    )()
    return _Item(made, False)


def _over(make: _Maker, item: _Item) -> list[Index]:
    """Some indices to reduce over; none if a size of 0 forbids it."""
    over = make.some(item.indices, make.pick([1, 1, 2]))
    return [] if any(make.extent(i) == 0 for i in over) else over


def _softmax(make: _Maker) -> _Item:
    item = make.real_item()
    over = _over(make, item)
    if not over:
        return item
    return _Item(make.pick([tnc.softmax, tnc.log_softmax, tnc.logsumexp])(item.expr, over), False)


def _mean(make: _Maker) -> _Item:
    item = make.take()
    over = _over(make, item)
    if not over:
        return item
    if not item.complex and make.chance(0.2):
        return _Item(tnc.layer_norm(item.expr, over, eps=0.1), False)
    return _Item(item.expr.mean(*over), item.complex)


def _extreme(make: _Maker) -> _Item | None:
    """Max and min, on leaves only: ties stay exact."""
    item = make.leaf()
    over = _over(make, item)
    if item.complex or not over:
        return item
    t = item.expr
    return _Item(t.max(*over) if make.chance(0.6) else t.min(*over), False)


# ---------------------------------------------------------------------------- re-indexing


def _renamed(make: _Maker) -> _Item:
    item = make.take()
    t = item.expr
    if t.ndim and make.chance(0.5):
        return _Item(t.transpose(*make.some(t.indices, t.ndim)), item.complex)
    chosen: list[Index] = []
    for axis in t.indices:
        options = [i for i in make.names if i.size == axis.size and i not in chosen]
        chosen.append(make.pick(options) if options else make.fresh(axis.size, make.extent(axis)))
    return _Item(t(*chosen), item.complex)


def _split_or_merge(make: _Maker) -> _Item:
    item = make.take()
    t = item.expr
    if t.ndim >= 2 and make.chance(0.6):
        parts = make.some(t.indices, make.pick([2, 2, 3]))
        size: Any = 1
        for part in parts:
            size = size * part.size
        actual = int(np.prod([make.extent(part) for part in parts]))
        t = t.merge(tuple(parts), make.fresh(size, actual))
        return _Item(t, item.complex)
    splittable = [i for i in t.indices if isinstance(i.size, int) and i.size]
    if not splittable:
        return item
    index = make.pick(splittable)
    factors = [n for n in range(1, index.size + 1) if index.size % n == 0]
    first = make.pick(factors)
    parts = (make.fresh(first, first), make.fresh(index.size // first, index.size // first))
    return _Item(t.split(index, parts), item.complex)


def _settled(make: _Maker, t: Expr, actual: dict[str, int]) -> Expr:
    """Indices that got a new size get a new name, or one of the first names if that fits."""
    changes = {}
    for index in t.indices:
        if index.name in actual:
            options = [i for i in make.names if i.size == index.size and i not in t.indices]
            number = actual[index.name]
            named = options and make.chance(0.5)
            changes[index] = make.pick(options) if named else make.fresh(index.size, number)
    return t.rename(changes) if changes else t


def _sliced(make: _Maker) -> _Item:
    item = make.take()
    t = item.expr
    known = [i for i in t.indices if isinstance(i.size, int)]
    if not known:
        return item
    index = make.pick(known)
    how = make.pick(["select", "slice", "slice", "pad", "pad"])
    if how == "pad":
        before, after = make.pick([0, 1, 2]), make.pick([0, 1])
        padded = t.pad(index, before, after)
        return _Item(
            _settled(make, padded, {index.name: index.size + before + after}), item.complex
        )
    if how == "select" and index.size:
        return _Item(t.select(index, int(make.rng.integers(index.size))), item.complex)
    start = int(make.rng.integers(index.size + 1))
    stop = int(make.rng.integers(start, index.size + 1)) if make.chance(0.3) else index.size
    sliced = t.slice(index, start, stop)
    return _Item(_settled(make, sliced, {index.name: stop - start}), item.complex)


def _window(make: _Maker) -> tuple[Expr, Index, Index, Index] | None:
    """A window over a known index, with the indices that it relates."""
    sources = [i for i in make.names if isinstance(i.size, int) and i.size]
    if not sources:
        return None
    source = make.pick(sources)
    taps, stride, dilation = make.pick([1, 2, 2, 3]), make.pick([1, 1, 2, 3]), make.pick([1, 1, 2])
    padding = make.pick([0, 0, 1, 2, (1, 0), (0, 2), "valid", *(["same"] if stride == 1 else [])])
    kernel = make.fresh(taps, taps)
    named = [i for i in make.names if i.size == taps and i != source]
    if named and make.chance(0.6):
        kernel = make.pick(named)
    around = {"valid": 0, "same": dilation * (taps - 1)}
    total = around[padding] if isinstance(padding, str) else int(np.sum(padding))
    total *= 1 if isinstance(padding, str | tuple) else 2
    count = (source.size + total - dilation * (taps - 1) - 1) // stride + 1
    if count < 1:
        return None
    same = [i for i in make.names if i.size == count and i not in (source, kernel)]
    out = make.pick(same) if same and make.chance(0.5) else make.fresh(count, count)
    how = {"stride": stride, "dilation": dilation, "padding": padding}
    return tnc.window(source, out=out, kernel=kernel, **how), source, out, kernel


def _windowed(make: _Maker) -> _Item | None:
    """A convolution, a transposed one, a kernel's gradient, a view through a window, or a pool."""
    made = _window(make)
    if made is None:
        return None
    window, source, out, kernel = made
    ends = make.some([source, out, kernel], make.pick([1, 2, 2, 2, 3]))
    rest = make.some([i for i in make.names if i not in (source, out, kernel)], 1)
    items = [make.leaf((*make.subset(rest, 0.5), end)) for end in ends]
    if make.chance(0.3):
        items.append(make.take())
    made_of = [item.expr for item in items]
    kept = [i for i in (source, out, kernel) if i not in ends]
    union = list(dict.fromkeys(i for t in (window, *made_of) for i in t.indices))
    wanted = kept if make.chance(0.7) else make.subset([source, out, kernel], 0.5)
    others = [i for i in union if i not in (source, out, kernel) and make.chance(0.6)]
    chosen = make.some([*wanted, *others], MAX_AXES)
    while not make.fits(chosen):
        chosen.pop()
    return _Item(tnc.contract(window, *made_of, out=chosen), any(item.complex for item in items))


def _joined(make: _Maker) -> _Item:
    """Tensors of the same other indices stacked or concatenated."""
    a = make.take()
    parts = [a]
    for _ in range(make.pick([1, 1, 2])):
        other = _narrowed(make, make.take(), a.indices)
        absent = [i for i in a.indices if i not in other.indices]
        parts.append(_Item(other.expr * tnc.ones(*absent), other.complex) if absent else other)
    is_complex = any(part.complex for part in parts)
    exprs = [part.expr for part in make.some(parts, len(parts))]
    known = [i for i in a.indices if isinstance(i.size, int)]
    if known and make.chance(0.6):
        along = make.pick(known)
        total = along.size * len(exprs)
        whole = tnc.concat(exprs, Index(along.name, total))
        return _Item(_settled(make, whole, {along.name: total}), is_complex)
    return _Item(tnc.stack(exprs, make.fresh(len(exprs), len(exprs))), is_complex)


# ---------------------------------------------------------------------------- recurrence


def _scanned(make: _Maker) -> _Item | None:
    """A cell that mixes its state, a slice, and leaves or inner scans, along a random index."""
    source, first = make.take(), make.take()
    if not source.indices:
        return None
    over = make.pick(source.indices)
    init = first.expr.sum(over) if over in first.indices else first.expr
    is_complex = source.complex or first.complex
    if init.indices and make.chance(0.15):
        init, is_complex = tnc.ones(*init.indices), source.complex
    extra = make.leaf(make.some(list(init.indices), 1)) if make.chance(0.5) else None
    is_complex = is_complex or (extra is not None and extra.complex)
    gives, nests = make.pick(["state", "other", "none"]), make.chance(0.2)

    def cell(state: Expr, part: Expr) -> tuple[Expr, Expr | None]:
        terms = [state, part, *([] if extra is None else [extra.expr])]
        new = _tamed(tnc.contract(*terms, out=state.indices), is_complex)
        if nests and state.indices:
            new = _inner_scan(new, state.indices[-1], is_complex)
        if gives == "none":
            return new, None
        return new, new if gives == "state" else _tamed(part * 0.5, source.complex)

    last, outputs = tnc.scan(cell, init, source.expr, over=over, reverse=make.chance(0.4))
    if outputs is None or make.chance(0.3):
        return _Item(last, is_complex)
    made = _Item(outputs, source.complex if gives == "other" else is_complex)
    return made if make.fits(outputs.indices) else None


def _inner_scan(state: Expr, over: Index, is_complex: bool) -> Expr:
    """Running sums along one of the state's indices, by a scan inside the cell."""
    _, sums = tnc.scan(
        lambda total, part: (_tamed(total + part, is_complex),) * 2,
        state.sum(over) * 0.25,
        state,
        over=over,
    )
    return sums


def _tamed(value: Expr, is_complex: bool) -> Expr:
    """Bounded, so that no number of positions makes it large."""
    return value * 0.25 if is_complex else tnc.tanh(value)


_BOTH = (
    *(_contraction,) * 5,
    _product,
    _product,
    _captured,
    _two_ranks,
    _diagonal,
    _diagonal,
    _widened,
    _bare_sum,
    *(_unary,) * 5,
    *(_binary,) * 4,
    _softmax,
    _mean,
    _renamed,
    _split_or_merge,
    _split_or_merge,
    _sliced,
    _sliced,
    _joined,
    _windowed,
    _windowed,
    gathered,
    scattered,
    attended,
    blocked,
    _scanned,
    _scanned,
)
SMOOTH: tuple[Callable[[_Maker], _Item | None], ...] = _BOTH
OPERATIONS: tuple[Callable[[_Maker], _Item | None], ...] = (
    *_BOTH,
    _compared,
    _compared,
    _extreme,
)


# ---------------------------------------------------------------------------- what is fuzzed

KINDS = ("plain",) * 34 + ("low",) * 6 + ("positive",) * 4 + ("integer",) * 4 + ("long",) * 2
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "bool")
LONGEST = 10**6


def fuzzed_network(seed: int) -> Case:
    """The network of a seed, of a kind that the seed chooses too."""
    rng = np.random.default_rng([seed, 2])
    kind = KINDS[int(rng.integers(len(KINDS)))]
    if kind == "integer":
        return integer_network(seed)
    if kind == "long":
        return long_network(seed)
    low = ("float16", "bfloat16")[int(rng.integers(2))] if kind == "low" else ""
    case = random_network(seed, dtype=low, positive=kind == "positive")
    return replace(case, kind=kind)


def integer_network(seed: int) -> Case:
    """Contractions of integers or booleans, of one dtype; values wrap around. Forward only."""
    make = _Maker(seed, 6, False, "float32")
    dtype = make.pick(INTEGERS)
    names = [index for index in make.names if isinstance(index.size, int)]
    highest = 2 if dtype == "bool" else 1 + int(np.iinfo(dtype).max)
    make.pool = []
    for k in range(make.pick([1, 2, 3, 4])):
        indices = make.some(names, make.pick([0, 1, 2, 2, 3]))
        values = make.rng.integers(0, highest, [make.extent(i) for i in indices])
        make.arrays[f"A{k}"] = np.asarray(values).astype(dtype)
        make.pool.append(_Item(tnc.input(f"A{k}", *indices, dtype=dtype), False))
    while len(make.pool) > 1:
        make.pool.append(_network(make, [make.pool.pop() for _ in make.pool[:2]]))
    made = _network(make, make.pool)
    return Case(seed, (made.expr,), make.arrays, dtype, (), (), kind="integer")


def long_network(seed: int) -> Case:
    """One index of up to LONGEST terms, summed; few tensors with tiny other axes."""
    make = _Maker(seed, 3, True, "", bool(seed % 2))
    length = int(np.exp(make.rng.uniform(np.log(64), np.log(LONGEST))))
    few = 5 if length < 20_000 else 3 if length < 200_000 else 2
    free = make.chance(0.25)  # only known at run time
    make.actual = {}
    long = Index("b") if free else Index("k", length)
    make.actual[long.name] = length
    make.names = [make.index(name, int(make.rng.integers(1, few + 1))) for name in "ij"]
    i, j = make.names
    shapes = make.pick(_LONG_SHAPES)
    operands = [
        make.leaf(make.some([{"k": long, "i": i, "j": j}[c] for c in t], len(t))) for t in shapes
    ]
    kept = [n for n in (i, j) if any(n in item.indices for item in operands)]
    out = make.some(kept, make.pick([0, 1, 2, 2]))
    terms = [item.expr for item in operands]
    if make.chance(0.3):
        terms[0] = tnc.tanh(terms[0].real) if operands[0].complex else tnc.tanh(terms[0])
    is_complex = any(item.complex for item in operands[1:]) or (
        operands[0].complex and terms[0] is operands[0].expr
    )
    made = tnc.contract(*terms, out=out)
    arrays = {leaf.name: make.arrays[leaf.name] for leaf in make.leaves}
    wrt = tuple(leaf.name for leaf in make.leaves if leaf.kind != "constant")
    cotangent = make.array([make.extent(n) for n in out], not is_complex)
    sizes = {tnc.size("b"): length} if free else {}
    return Case(seed, (made,), arrays, make.dtype, (cotangent,), wrt, sizes, kind="long")


_LONG_SHAPES = (
    ("k",),
    ("ki",),
    ("kij",),
    ("k", "k"),
    ("ki", "k"),
    ("ki", "kj"),
    ("ki", "kj"),
    ("kij", "kj"),
    ("kij", "kij"),
    ("k", "ki", "kj"),
    ("ki", "j", "kj"),
)
