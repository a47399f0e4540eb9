"""How well conditioned the sum over each bond is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tncompiler.drop_in.einsum import einsum
from tncompiler.ir.errors import EquationError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.interchange.networks import only_network


def condition_numbers(network: Expr, cores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """For each bond, the condition number of the terms that the weight is a sum of.

    With the bond fixed at k the network is a term T_k, and the weight is their sum. The number is
    the root of the condition number of the terms' Gram matrix, each term scaled to norm one: 1
    where they are orthogonal, infinite where they depend on one another (as in CP of too high a
    rank). Terms that vanish beside the largest one, as padding makes them, do not count. The Gram
    matrix is a contraction of the cores; no dense weight is made. A network that is more than one
    contraction has no such bonds: the result is then empty.
    """
    try:
        graph = only_network(network)
    except EquationError:
        return {}
    held = {leaf.name: leaf.value for leaf in network.leaves if leaf.kind == "constant"} | {**cores}
    if not held.keys() >= set(graph.tensors):
        return {}
    eps = max(float(np.finfo(core.dtype).eps) for core in cores.values())
    arrays = [in_double(held[name]) for name in graph.tensors]
    bonds = [label for label in graph.sizes if label not in graph.output]
    return {
        graph.index_name(bond): _condition(graph.inputs, graph.output, arrays, bond, eps)
        for bond in bonds
    }


def in_double(array: Any) -> np.ndarray:
    """An array in double precision, complex where it is."""
    given = np.asarray(array)
    return given.astype(np.complex128 if given.dtype.kind == "c" else np.float64)


def term_gram(
    inputs: tuple[tuple[int, ...], ...],
    output: tuple[int, ...],
    arrays: list[np.ndarray],
    bond: int,
) -> np.ndarray:
    """The inner products of the terms that a network is a sum of, with one bond fixed in each.

    Bonds of the second copy are numbered apart.
    """
    apart = 1 + max(label for labels in inputs for label in labels)
    second = [tuple(k if k in output else k + apart for k in labels) for labels in inputs]
    terms = [x for pair in zip(arrays, inputs, strict=True) for x in pair]
    terms += [
        x for array, labels in zip(arrays, second, strict=True) for x in (array.conj(), labels)
    ]
    gram: np.ndarray = einsum(*terms, (bond, bond + apart))
    return gram


def _condition(
    inputs: tuple[tuple[int, ...], ...],
    output: tuple[int, ...],
    arrays: list[np.ndarray],
    bond: int,
    eps: float,
) -> float:
    """Of the Gram matrix over one bond."""
    gram = term_gram(inputs, output, arrays, bond)
    norms = np.sqrt(np.maximum(np.diag(gram).real, 0.0))
    counted = norms > eps * norms.max()
    if not counted.any():
        return 1.0
    gram, norms = gram[np.ix_(counted, counted)], norms[counted]
    values = np.linalg.eigvalsh(gram / np.outer(norms, norms))
    smallest = values[0]
    return float(np.sqrt(values[-1] / smallest)) if smallest > 0 else np.inf
