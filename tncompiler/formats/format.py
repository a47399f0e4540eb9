"""What every format is: a description of a weight as a network, usable on its own.

A subclass names its bonds, builds the network from open indices and bonds, and finds cores for a
given weight. All else (names, rank rules, counting, padding, activation weighting, searching a rank
for a tolerance or a budget) is here and the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, ClassVar

import numpy as np
import sympy

from tncompiler.dsl import scope
from tncompiler.formats.modes import Modes
from tncompiler.ir import algebra
from tncompiler.ir.errors import FormatError, TncError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.program import fresh_name
from tncompiler.ir.sizes import Size, as_size

Rank = Any  # None, a size for every bond, a sequence with one for each, or a dict from bond names


@dataclass(frozen=True, slots=True)
class Bond:
    """A contracted index: its name, and the most it can carry (None where nothing limits it)."""

    name: str
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Mode positions on one side of a cut through the network, and the rank that crosses it.

    ``batch``: modes that both sides have; the rank is that of every matrix for fixed values of
    them.
    """

    modes: tuple[int, ...]
    rank: int
    batch: tuple[int, ...] = ()


@dataclass(frozen=True)
class Factored:
    """What a subclass finds: cores by bare name, the ranks they have, a bound on the error.

    ``bound`` is on the norm of the difference, not relative; None where theory promises nothing.
    """

    cores: dict[str, np.ndarray]
    ranks: dict[str, int]
    bound: float | None = None


@dataclass(frozen=True)
class Format(ABC):
    """How a weight of in_shape × out_shape is a network of cores.

    ``rank``: a size for every bond, a sequence with one for each bond, or a dict from bond names.
    ``clamp``: lower ranks to what their bonds can carry; without it, more is an error.
    """

    rank: Rank = None
    clamp: bool = False

    direct: ClassVar[bool] = True  # finds the ranks for a tolerance itself

    # ---------------------------------------------------------------- what a subclass says

    @abstractmethod
    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        """The bonds of the network, in order."""

    @abstractmethod
    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        """The weight as an expression of parameters."""

    @abstractmethod
    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        """Cores for a weight of shape modes.shape.

        Ranks are at most `ranks`; where `direct`, they are as small as an error of norm `tail`
        allows (0.0 asks for all of `ranks`).
        """

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        """Cuts through the network, for the Eckart–Young bound on its error."""
        return ()

    def _repr_svg_(self) -> str | None:
        """The network of a small weight as a picture, for notebooks."""
        from tncompiler.draw.notebook import format_svg

        return format_svg(self)

    # ---------------------------------------------------------------- the network

    def network(self, in_shape: Any, out_shape: Any, *, name: str | None = None) -> Expr:
        """The weight as an expression with indices (*in_shape, *out_shape).

        Shapes hold sizes (integers or symbols) or indices. ``name`` prefixes the cores' names, as
        `tnc.scope` does, so that two weights do not share them.

        Raises: FormatError if a shape is empty, ranks do not fit the bonds, or a bond is asked to
        carry more than it can.
        """
        modes = Modes.of(in_shape, out_shape)
        taken = [index.name for index in modes.all]
        bonds: dict[str, Index] = {}
        for bond, size in self.sizes(modes).items():
            taken.append(fresh_name(bond, taken))
            bonds[bond] = Index(taken[-1], size)
        with nullcontext() if name is None else scope(name):
            weight = self.build(modes, bonds)
        return algebra.transpose(weight, modes.all)

    def sizes(self, modes: Modes) -> dict[str, Size]:
        """The rank of every bond, checked against what it can carry."""
        bonds = self.bonds(modes)
        given = self._given_ranks(bonds)
        return {bond.name: self._fitting(bond, given[bond.name]) for bond in bonds}

    def _given_ranks(self, bonds: Sequence[Bond]) -> Mapping[str, Any]:
        rank, names = self.rank, [bond.name for bond in bonds]
        if isinstance(rank, Mapping):
            if sorted(rank) != sorted(names):
                raise FormatError(
                    f"{self} names ranks of {sorted(rank)}, but its bonds are {names}",
                    fix="give one rank for each bond",
                )
            return rank
        if isinstance(rank, Sequence) and not isinstance(rank, str):
            if len(rank) != len(names):
                raise FormatError(
                    f"{self} has {len(rank)} ranks for {len(names)} bonds: {', '.join(names)}",
                    fix="give one rank for each bond, or one for all",
                )
            return dict(zip(names, rank, strict=True))
        if rank is None and names:
            raise FormatError(
                f"{type(self).__name__} has no rank",
                fix=f"write {type(self).__name__}(rank=8), or give tolerance= or budget= "
                "where there is a weight",
            )
        return dict.fromkeys(names, rank)

    def _fitting(self, bond: Bond, rank: Any) -> Size:
        try:
            size = as_size(rank, f"the rank of {bond.name}")
        except TncError as error:
            raise FormatError(error.what, where=str(self), fix=error.fix) from None
        if not isinstance(size, int):
            return size
        if size < 1:
            raise FormatError(f"bond {bond.name} of {self} has rank {size}", fix="1 or more")
        if bond.capacity is not None and size > bond.capacity:
            if self.clamp:
                return max(bond.capacity, 1)
            raise FormatError(
                f"bond {bond.name} has rank {size}, but can carry at most {bond.capacity}",
                where=str(self),
                fix=f"lower it, or write {type(self).__name__}(…, clamp=True)",
            )
        return size

    def parameters(self, in_shape: Any, out_shape: Any) -> sympy.Expr | int:
        """How many numbers the cores hold; a sympy expression where sizes are symbols."""
        leaves = self.network(in_shape, out_shape).leaves
        return sum(prod(leaf.shape) for leaf in leaves if leaf.kind == "param")

    def with_ranks(self, ranks: Mapping[str, int]) -> Format:
        """The format with one rank for each bond."""
        values = tuple(ranks.values())
        return replace(self, rank=values[0] if len(set(values)) == 1 else values)

    def resized(self, modes: Modes, bond: str, size: int) -> Format:
        """The format with another size for one bond.

        Raises: FormatError if there is no such bond, or if it cannot carry so much.
        """
        sizes = {name: int(rank) for name, rank in self.sizes(modes).items()}
        if bond not in sizes:
            raise FormatError(
                f"{self} has no rank for a bond {bond!r}", fix=f"its bonds are {sorted(sizes)}"
            )
        # what was clamped before is a plain rank now: a larger one must not be lowered in silence
        exact = replace(self, clamp=False).with_ranks({**sizes, bond: size})
        exact.sizes(modes)
        return exact

    # ---------------------------------------------------------------- decomposition

    def decompose(
        self,
        weight: Any,
        in_shape: Any,
        out_shape: Any,
        *,
        rank: Rank = None,
        tolerance: float | None = None,
        budget: float | None = None,
        moments: Any = None,
        seed: int = 0,
    ) -> Any:
        """Cores for a weight, and the error they make: a `Decomposition`.

        ``weight``: an array or tensor of shape (*in_shape, *out_shape) or (inputs, outputs), which
        may be smaller than the modes' products by less than half (it is padded with zeros); the
        weight of a torch.nn.Linear is the transpose of that: give `linear.weight.T`. One of:
        ``rank`` as in the constructor (default: the format's own), ``tolerance`` (relative error
        to stay below, with the smallest ranks found; before the cores are rounded to the weight's
        dtype), ``budget`` (parameters to stay below; a float up to 1.0 is a fraction of the
        weight's). ``moments``: second moments of the inputs from a calibration batch,
        (inputs, inputs) or (inputs,): the error of outputs is then minimised instead of that of
        the weight. Computed in double precision; cores have the weight's dtype.

        Raises: FormatError for NaN or infinite weights, shapes that do not fit, ranks above what a
        bond can carry, tolerances that no rank reaches and budgets that no rank meets.
        """
        from tncompiler.formats.search import decompose

        return decompose(
            self, weight, Modes.of(in_shape, out_shape), rank, tolerance, budget, moments, seed
        )

    def __str__(self) -> str:
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "clamp"]
        shown = ", ".join(f"{name}={value}" for name, value in given if value is not None)
        return f"{type(self).__name__}({shown})"
