"""Networks of the corpus that are no layers: terms of letters, and numbers that suit them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import networkx
import numpy as np

Terms = list[str]
Sizes = dict[str, int]

_NOISE = 0.05  # of the cores of a matrix product state around the identity, times root of the bond


def letters() -> Iterator[str]:
    """a-z without B, then what follows Latin-1: letters that every equation parser takes."""
    yield from "abcdefghijklmnopqrstuvwxyzACDEFGHIJKLMNOPQRSTUVWXYZ"
    yield from map(chr, count(0xC0))


def mps(
    sites: int, bond: int, features: int, classes: int
) -> tuple[list[tuple[str, str]], str, Sizes]:
    """A classifier: (name, term) of inputs x1 … (B, features) and cores; output (B, classes).

    Cores G1 (p, r), Gk (r, p, r), Gn (r, p); the core L (r, classes, r) stands in the middle. The
    batch B is on every input.
    """
    fresh = letters()
    label, left = next(fresh), ""
    sizes = {label: classes}
    inputs, cores = [], []
    for site in range(1, sites + 1):
        if site == sites // 2 + 1:
            right = next(fresh)
            cores.append(("L", left + label + right))
            sizes[right], left = bond, right
        physical = next(fresh)
        right = "" if site == sites else next(fresh)
        inputs.append((f"x{site}", f"B{physical}"))
        cores.append((f"G{site}", left + physical + right))
        sizes[physical] = features
        if right:
            sizes[right] = bond
        left = right
    return [*inputs, *cores], f"B{label}", sizes


def draw_site(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Inputs whose features add up to one, and cores close to the identity, for any length."""
    if name.startswith("x"):
        share = rng.uniform(0.0, 1.0, shape)
        return np.asarray(share / share.sum(axis=1, keepdims=True))
    noise = _NOISE / np.sqrt(max(shape)) * rng.standard_normal(shape)
    if len(shape) == 3:
        return np.asarray(np.eye(shape[0], shape[2])[:, None, :] + noise)
    return np.asarray(1.0 / np.sqrt(max(shape)) + noise)


def peps(rows: int, columns: int, bond: int) -> tuple[Terms, Sizes]:
    """A square lattice of tensors with a bond to each neighbour."""
    return _of_graph(networkx.grid_2d_graph(rows, columns), bond)


def regular(nodes: int, degree: int, bond: int, seed: int) -> tuple[Terms, Sizes]:
    """A random regular graph: a tensor for each node, a bond for each edge."""
    return _of_graph(networkx.random_regular_graph(degree, nodes, seed=seed), bond)


def _of_graph(graph: networkx.Graph, bond: int) -> tuple[Terms, Sizes]:
    names = dict(zip((frozenset(edge) for edge in sorted(graph.edges)), letters(), strict=False))
    terms = [
        "".join(names[frozenset((node, other))] for other in sorted(graph[node]))
        for node in sorted(graph)
    ]
    return terms, {letter: bond for letter in names.values()}


def circuit(qubits: int, depth: int, seed: int) -> tuple[Terms, Sizes]:
    """An amplitude <0|U|0> of a random circuit: each layer pairs all qubits anew.

    Gates are (2, 2, 2, 2), outputs before inputs; states are (2,).
    """
    rng = np.random.default_rng(seed)
    fresh = letters()
    wires = [next(fresh) for _ in range(qubits)]
    terms = list(wires)
    sizes = dict.fromkeys(wires, 2)
    for _ in range(depth):
        order = rng.permutation(qubits)
        for a, b in zip(order[0::2], order[1::2], strict=False):
            new_a, new_b = next(fresh), next(fresh)
            terms.append(new_a + new_b + wires[a] + wires[b])
            wires[a], wires[b] = new_a, new_b
            sizes[new_a] = sizes[new_b] = 2
    return [*terms, *wires], sizes


def draw_gate(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A state |0>, or a random orthogonal gate on two qubits.

    A state has a little of |1>, so that no gradient is exactly zero.
    """
    if len(shape) == 1:
        return np.array([1.0, 0.5])
    rotation, upper = np.linalg.qr(rng.standard_normal((4, 4)))
    return np.asarray((rotation * np.sign(np.diag(upper))).reshape(shape))
