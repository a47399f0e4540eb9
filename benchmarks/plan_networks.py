"""The networks that plans are compared on: a name and an expression each, all sizes known.

cotengra's own generators, chains and lattices of physics, and every layer format at two batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cotengra as ctg

import tncompiler as tnc
from benchmarks.networks import mps, peps, regular

Named = tuple[str, Any]

# format: (rank, input modes, output modes)
LAYERS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "TTMatrix": (16, (8, 8, 12), (8, 16, 24)),
    "TT": (32, (8, 8, 12), (8, 16, 24)),
    "Tucker": (16, (24, 32), (48, 64)),
    "CP": (64, (24, 32), (48, 64)),
    "HT": (16, (24, 32), (48, 64)),
    "TensorRing": (8, (24, 32), (48, 64)),
    "BlockTerm": (4, (24, 32), (48, 64)),
    "Kronecker": (4, (24, 32), (48, 64)),
    "Monarch": (4, (32, 24), (64, 48)),
    "LowRank": (64, (768,), (3072,)),
}
BATCHES = (16, 256)


def plan_networks() -> list[Named]:
    """All of them, the same every time."""
    return [*_generated(), *_physics(), *_layers()]


def _generated() -> Iterator[Named]:
    tree, lattice = ctg.utils.tree_equation, ctg.utils.lattice_equation
    randreg, rand = ctg.utils.randreg_equation, ctg.utils.rand_equation
    made = {
        "tree-9": tree(9, d_min=16, d_max=48, n_outer=3, seed=2),
        "tree-12": tree(12, d_min=8, d_max=32, n_outer=3, seed=1),
        "lattice-4x4": lattice([4, 4], d_min=6, d_max=8, seed=3),
        "lattice-3x5": lattice([3, 5], d_min=4, d_max=12, seed=4),
        "lattice-2x2x2": lattice([2, 2, 2], d_min=8, d_max=16, seed=5),
        "regular-12": randreg(12, 3, d_min=8, d_max=12, seed=6),
        "regular-16": randreg(16, 3, d_min=6, d_max=9, seed=7),
        "random-8": rand(8, 4, n_out=2, d_min=4, d_max=7, seed=9),
        "random-9": rand(9, 3, n_out=2, d_min=8, d_max=14, seed=8),
        "hyper-9": rand(9, 3, n_out=2, n_hyper_in=2, n_hyper_out=1, d_min=5, d_max=8, seed=10),
        "hyper-12": rand(12, 3, n_out=2, n_hyper_in=3, d_min=4, d_max=6, seed=11),
    }
    for name, (inputs, output, _, sizes) in made.items():
        yield name, _expression(["".join(t) for t in inputs], "".join(output), sizes)


def _physics() -> Iterator[Named]:
    operands, output, sizes = mps(10, 32, 8, 8)
    names, terms = zip(*operands, strict=True)
    yield "mps-10", _expression(terms, output, sizes | {"B": 128}, names)
    # <ψ|MPO|ψ>: bras, operators and kets of six sites
    yield "mpo-6", _expectation(6, 32, 8, 4)
    yield "peps-4x4", _expression(*_closed(peps(4, 4, 8)))
    yield "regular-14", _expression(*_closed(regular(14, 3, 9, 0)))


def _closed(made: tuple[list[str], dict[str, int]]) -> tuple[list[str], str, dict[str, int]]:
    return made[0], "", made[1]


def _expectation(sites: int, bond: int, mpo_bond: int, physical: int) -> Any:
    def label(kind: str, site: int) -> list[str]:
        return [f"{kind}{site}"] if 0 < site < sites else []

    indices: dict[str, Any] = {}

    def index(name: str) -> Any:
        size = {"a": bond, "c": bond, "w": mpo_bond}.get(name[0], physical)
        return indices.setdefault(name, tnc.indices(name, size=size)[0])

    leaves = []
    for k in range(sites):
        for kind, legs in (("a", [f"p{k}"]), ("w", [f"p{k}", f"q{k}"]), ("c", [f"q{k}"])):
            names = [*label(kind, k), *legs, *label(kind, k + 1)]
            make = tnc.param if kind == "a" else tnc.input
            leaves.append(make(f"{kind.upper()}{k}", *map(index, names)))
    return tnc.contract(*leaves, out=())


def _expression(terms: Any, output: str, sizes: dict[str, int], names: Any = None) -> Any:
    """Operands called x… are inputs and all others parameters; without names all are inputs."""
    symbols = {c: tnc.indices(f"k{n}", size=sizes[c])[0] for n, c in enumerate(sizes)}
    leaves = []
    for number, term in enumerate(terms):
        name = names[number] if names else f"x{number}"
        make = tnc.input if name.startswith("x") else tnc.param
        leaves.append(make(name, *(symbols[c] for c in term)))
    return tnc.contract(*leaves, out=tuple(symbols[c] for c in output))


def _layers() -> Iterator[Named]:
    for name, (rank, ins, outs) in LAYERS.items():
        for batch in BATCHES:
            yield f"{name}-b{batch}", layer(name, rank, ins, outs, batch)


def layer(name: str, rank: Any, ins: tuple[int, ...], outs: tuple[int, ...], batch: int) -> Any:
    weight = getattr(tnc.formats, name)(rank, clamp=True).network(ins, outs)
    legs = [i for i in weight.indices if i.name.startswith("i")]
    (rows,) = tnc.indices("b", size=batch)
    x = tnc.input("x", rows, *legs)
    return tnc.contract(x, weight, out=(rows, *(i for i in weight.indices if i not in legs)))


# name: (format, rank, input modes, output modes, batch); the first layer of a model, whose data
# needs no gradient: the batch is best streamed for the value, and summed first for the gradients
FIRST_LAYERS: dict[str, tuple[str, Any, tuple[int, ...], tuple[int, ...], int]] = {
    "Tucker-r32": ("Tucker", 32, (24, 32), (48, 64), 512),
    "Tucker-r40": ("Tucker", 40, (24, 32), (48, 64), 512),
    "BlockTerm-r32": ("BlockTerm", 32, (24, 32), (48, 64), 512),
    "HT-r28": ("HT", 28, (32, 32), (32, 32), 512),
    "HT-r40": ("HT", 40, (64, 32), (32, 16), 2048),
    "TT-r192": ("TT", 192, (16, 16), (64, 64), 2048),
}


def gradient_networks() -> list[tuple[str, Any, tuple[str, ...]]]:
    """Networks that gain by gradients on trees of their own, with the leaves that need one."""
    found = []
    for name, (format_name, rank, ins, outs, batch) in FIRST_LAYERS.items():
        expr = layer(format_name, rank, ins, outs, batch)
        found.append((name, expr, tuple(k.name for k in expr.leaves if k.kind == "param")))
    return found
