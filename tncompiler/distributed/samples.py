"""The networks that ranks are measured on: what `simulate` predicts of them is fitted to them.

Products, lattices, circuits whose slices are small and complex, and layers whose data outgrows
caches: on one machine, each of these may take 1.0 to 1.5 times as long as its steps alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tncompiler.dsl import Index, contract, indices
from tncompiler.dsl import input as given
from tncompiler.ir.expressions import Expr


@dataclass(frozen=True, slots=True)
class Sample:
    """A network of inputs, the memory that a rank may take, and its dtype."""

    network: Expr
    memory_limit: str | None = None
    dtype: str = "float32"


def samples() -> Iterator[Sample]:
    """Networks of some milliseconds to some tens."""
    yield from map(Sample, _products())
    yield Sample(_lattice(4, 4, 24))
    yield Sample(_lattice(3, 5, 24), "8MiB")
    yield Sample(_lattice(4, 5, 18), "16MiB")
    yield Sample(_circuit(16, 16), "256KiB", "complex64")
    yield Sample(_circuit(20, 20), "1MiB", "complex64")
    yield from map(Sample, _layers())


def _products() -> Iterator[Expr]:
    """Large products, batches of them, and a chain over a batch."""
    a, b, c = indices("a b c", size=1024)
    yield contract(given("A", a, b), given("B", b, c), given("C", c, a), out=())
    n, k, l, m = indices("n k l m", n=256, k=96, l=96, m=96)
    yield contract(given("A", n, k, l), given("B", n, l, m), given("C", n, m, k), out=())
    x, p, q, r, s, t = indices("x p q r s t", x=4096, p=24, q=32, r=24, s=24, t=24)
    yield contract(given("X", x, p, q), given("G", p, r, s), given("H", s, q, t), out=(x, r, t))


def _lattice(rows: int, columns: int, bond: int) -> Expr:
    """A tensor at each site, joined to its neighbours."""

    def bonds(row: int, column: int) -> Iterator[str]:
        if column:
            yield f"h{row}{column}"
        if column + 1 < columns:
            yield f"h{row}{column + 1}"
        if row:
            yield f"v{row}{column}"
        if row + 1 < rows:
            yield f"v{row + 1}{column}"

    sites = [(row, column) for row in range(rows) for column in range(columns)]
    return contract(
        *(given(f"T{r}{c}", *indices(" ".join(bonds(r, c)), size=bond)) for r, c in sites), out=()
    )


def _circuit(qubits: int, depth: int) -> Expr:
    """An amplitude: gates on neighbours in a row, every second layer one qubit on."""
    tensors = [given(f"in{k}", *indices(f"q{k}_0", size=2)) for k in range(qubits)]
    wire = [f"q{k}_0" for k in range(qubits)]
    for layer in range(depth):
        for k in range(layer % 2, qubits - 1, 2):
            new = [f"q{k}_{layer + 1}", f"q{k + 1}_{layer + 1}"]
            legs = indices(" ".join([*new, *wire[k : k + 2]]), size=2)
            tensors.append(given(f"gate{k}_{layer}", *legs))
            wire[k : k + 2] = new
    tensors += [given(f"out{k}", *indices(name, size=2)) for k, name in enumerate(wire)]
    return contract(*tensors, out=())


# layers 768 -> 3072 as equations, sizes by letter: what comes in (n and some), cores, what goes out
_MODES = {"a": 24, "b": 32, "c": 48, "d": 64}
_LAYERS: tuple[tuple[str, dict[str, int]], ...] = (
    ("na,ar,rb->nb", {"a": 768, "r": 64, "b": 3072}),  # low rank
    ("nab,ap,bq,pqst,sc,td->ncd", {**_MODES, **dict.fromkeys("pqst", 16)}),  # Tucker
    ("nab,ap,bq,pqr,rst,sc,td->ncd", {**_MODES, **dict.fromkeys("pqrst", 16)}),  # HT
    ("nab,kap,kbq,kpqst,ksc,ktd->ncd", {**_MODES, **dict.fromkeys("kpqst", 4)}),  # block terms
    (
        "nabc,ap,pbq,qcr,rds,set,tf->ndef",  # TT
        dict(zip("abcdefpqrst", (8, 8, 12, 8, 16, 24, 8, 32, 32, 32, 24), strict=True)),
    ),
)


def _layers() -> Iterator[Expr]:
    """Layers on batches; what comes in and goes out does not stay in caches."""
    for equation, sizes in _LAYERS:
        terms, out = equation.split("->")
        made = {k: Index(k, size) for k, size in {"n": 2048, **sizes}.items()}
        leaves = [
            given(f"x{number}", *(made[letter] for letter in term))
            for number, term in enumerate(terms.split(","))
        ]
        yield contract(*leaves, out=tuple(made[letter] for letter in out))
