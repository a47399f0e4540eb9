"""One core of a network fitted to a weight, the others fixed: a linear least-squares problem.

With the environment E of the core, its Gram matrix E^H E and the right-hand side E^H W are
contractions of their own, planned as such: E itself, which may be far larger, is never made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tncompiler.api import compile as compile_network
from tncompiler.formats.linear import rest_of
from tncompiler.ir import algebra
from tncompiler.ir.expressions import Contract, Expr, Leaf
from tncompiler.ir.index import Index
from tncompiler.ir.program import fresh_name

Cores = dict[str, np.ndarray]

_WHOLE = 4_000_000  # elements up to which a Gram matrix is made and solved; else gradients do
_ITERATIONS, _DONE = 20, 1e-20  # of conjugate gradients, and the squared residual to end at


@dataclass(frozen=True)
class Update:
    """The least-squares problem of one core.

    Its axes are ``batch`` (on the output, and on other cores too), ``solved`` (bound in the
    network) and ``columns`` (on the output, and only here). ``gram`` and ``right`` take cores;
    ``right`` takes a weight before them. ``whole``: whether the Gram matrix is made.
    """

    name: str
    batch: tuple[int, ...]
    solved: tuple[int, ...]
    columns: tuple[int, ...]
    gram: Callable[[Cores], np.ndarray]
    right: Callable[[np.ndarray, Cores], np.ndarray]
    whole: bool

    def solve(self, weight: np.ndarray, cores: Cores, ridge: float) -> np.ndarray:
        """The core that fits the weight best; where several do, the one next to the old."""
        core = cores[self.name]
        front = core.transpose(self._order)
        count = prod(core.shape[k] for k in self.batch)
        size = prod(core.shape[k] for k in self.solved)
        old = front.reshape(count, size, -1)
        gram = self.gram(cores).reshape(count, size, size)
        residual = self.right(weight, cores).reshape(old.shape) - gram @ old
        change = _regularized(gram, residual, ridge)
        return self._back((old + change).reshape(front.shape))

    def iterate(
        self, weight: np.ndarray, cores: Cores, value: Callable[..., np.ndarray]
    ) -> np.ndarray:
        """A core that fits the weight better, by conjugate gradients without the Gram matrix.

        Source: Hestenes & Stiefel 1952, doi:10.6028/jres.049.044, on the normal equations.
        """

        def normal(direction: np.ndarray) -> np.ndarray:
            moved = {**cores, self.name: self._back(direction)}
            return self.right(value(parameters=moved), cores)

        residual = self.right(weight - value(parameters=cores), cores)
        change, step = np.zeros_like(residual), residual
        first = square = float(np.vdot(residual, residual).real)
        for _ in range(_ITERATIONS):
            if not square > _DONE * first:
                break
            image = normal(step)
            length = square / float(np.vdot(step, image).real)
            change, residual = change + length * step, residual - length * image
            last, square = square, float(np.vdot(residual, residual).real)
            step = residual + (square / last) * step
        new: np.ndarray = cores[self.name] + self._back(change)
        return new

    def operations(self, weight: int, shape: Sequence[int]) -> int:
        """About what an update costs, for a weight of so many elements and a core of this shape."""
        size = prod(shape[k] for k in self.solved)
        if not self.whole:
            return 2 * _ITERATIONS * weight * size
        columns = prod(shape[k] for k in self.columns)
        solving = prod(shape[k] for k in self.batch) * size**2 * (size + columns)
        return solving + weight * size

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.batch, *self.solved, *self.columns)

    def _back(self, front: np.ndarray) -> np.ndarray:
        """The axes in the order of the core."""
        return front.transpose(np.argsort(self._order))


def _regularized(gram: np.ndarray, residual: np.ndarray, ridge: float) -> np.ndarray:
    size = gram.shape[-1]
    mean = np.trace(gram, axis1=1, axis2=2).real.max() / size
    if not mean > 0:
        return np.zeros_like(residual)
    solved: np.ndarray = np.linalg.solve(gram + ridge * mean * np.eye(size), residual)
    return solved


# ---------------------------------------------------------------------------- compiling


def update_of(network: Expr, core: Leaf, dtype: str) -> Update:
    """The compiled problem of one core.

    Raises: FormatError where the network is not linear in it.
    """
    rest = rest_of(network, core)
    out = network.indices
    axes = list(enumerate(core.indices))
    batch = [k for k, index in axes if index in out and index in rest.indices]
    columns = [k for k, index in axes if index in out and index not in rest.indices]
    solved = [k for k, index in axes if index not in out]
    pick = [core.indices[k] for k in (*batch, *solved)]
    terms = rest.terms if isinstance(rest, Contract) else (rest,)
    conjugate = [term.conj() for term in terms] if dtype.startswith("complex") else list(terms)
    twins = _twins(terms, [index for index in rest.indices if index in out], core.indices)
    twin = [term.rename({i: twins[i] for i in term.indices if i in twins}) for term in terms]
    gram = algebra.contract(
        *conjugate, *twin, out=(*pick, *(twins[core.indices[k]] for k in solved))
    )
    name = fresh_name("weight", [leaf.name for leaf in network.leaves])
    weight = algebra.leaf(name, out, kind="input")
    right = algebra.contract(*conjugate, weight, out=(*pick, *(core.indices[k] for k in columns)))
    sizes = [int(core.indices[k].size) for k in (*batch, *solved, *solved)]
    return Update(
        core.name,
        tuple(batch),
        tuple(solved),
        tuple(columns),
        _compiled(gram, dtype),
        _compiled(right, dtype),
        prod(sizes) <= _WHOLE,
    )


def _compiled(expr: Expr, dtype: str) -> Callable[..., Any]:
    """A function of inputs and, last, all cores, of which it takes those that it needs."""
    run = compile_network(expr, framework="numpy", backend="numpy", dtype=dtype, seed=0)

    def call(*arguments: Any) -> Any:
        *arrays, cores = arguments
        return run(*arrays, parameters={name: cores[name] for name in run.parameters})

    return call


def _twins(
    terms: Sequence[Expr], shared: Sequence[Index], others: Iterable[Index]
) -> dict[Index, Index]:
    """A second index, under a name that nobody has, for each that two copies do not share."""
    own = dict.fromkeys(index for term in terms for index in term.indices)
    taken = [index.name for index in (*own, *others)]
    twins = {}
    for index in own:
        if index not in shared:
            taken.append(fresh_name(index.name, taken))
            twins[index] = Index(taken[-1], index.size)
    return twins
