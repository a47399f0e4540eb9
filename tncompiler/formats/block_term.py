"""BlockTerm: a sum of Tucker terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from tncompiler.dsl import contract, param
from tncompiler.formats.als import als, random_cores
from tncompiler.formats.balance import balanced_by_name
from tncompiler.formats.format import Bond, Cut, Factored, Format
from tncompiler.formats.hosvd import expand, hooi, hosvd
from tncompiler.formats.least_squares import Cores
from tncompiler.formats.modes import Modes
from tncompiler.formats.tucker import factor_names, mode_bonds
from tncompiler.ir.errors import FormatError, TncError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.program import fresh_name
from tncompiler.ir.sizes import Size, as_size

_EXACT = 1e-13


@dataclass(frozen=True)
class BlockTerm(Format):
    """Block-term format: `blocks` Tucker terms of the same ranks, added.

            i1──U1──p1─┐   ┌─q1──V1──o1
        Σ_b            ├─C─┤              b is one index on all cores
            i2──U2──p2─┘   └─q2──V2──o2

    Shapes: C (b, p1, …, q1, …), Uk (b, i_k, p_k), Vk (b, o_k, q_k).
    Cost:   blocks * (product of all ranks + sum of size * rank) stored.
    Error:  no bound: alternating least squares from Tucker terms taken off one after the other, and
            from a random start. At full rank the first block alone holds every weight.
    Source: De Lathauwer 2008, doi:10.1137/070690729; as a layer Ye et al. 2018, arXiv:1712.05134.
    Raises: FormatError if `blocks` is less than 1.
    """

    blocks: Any = 2

    direct: ClassVar[bool] = False

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        return mode_bonds(modes)

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        taken = [index.name for index in (*modes.all, *bonds.values())]
        block = Index(fresh_name("b", taken), self._block_count())
        core = param("C", block, *bonds.values())
        triples = zip(factor_names(modes), modes.all, bonds.values(), strict=True)
        factors = [param(name, block, mode, bond) for name, mode, bond in triples]
        return contract(core, *factors, out=modes.all)

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        blocks = self._block_count()
        if not isinstance(blocks, int):
            raise FormatError("blocks is a symbol", where=str(self), fix="give a number")
        start, left = _deflated(weight, modes, list(ranks.values()), blocks, seed)
        if left <= _EXACT * float(np.linalg.norm(weight)):
            return Factored(start, dict(ranks))
        network = self.build(modes, {name: Index(name, rank) for name, rank in ranks.items()})
        rng = np.random.default_rng(seed)
        cores, _ = als(network, weight, [start, *random_cores(network, weight, rng)])
        return Factored(balanced_by_name(cores), dict(ranks))

    def cuts(self, modes: Modes, ranks: Mapping[str, int]) -> Iterable[Cut]:
        blocks = self._block_count()
        return [Cut((k,), rank * blocks) for k, rank in enumerate(ranks.values())]

    def resized(self, modes: Modes, bond: str, size: int) -> Format:
        """Blocks are a bond as well: the index b."""
        if bond not in {each.name for each in self.bonds(modes)}:
            return replace(self, blocks=size)
        return super().resized(modes, bond, size)

    def _block_count(self) -> Size:
        try:
            size = as_size(self.blocks, "blocks")
        except TncError as error:
            raise FormatError(error.what, where=str(self), fix=error.fix) from None
        if isinstance(size, int) and size < 1:
            raise FormatError(f"blocks is {size}", where=str(self), fix="give 1 or more")
        return size


def _deflated(
    weight: np.ndarray, modes: Modes, ranks: list[int], blocks: int, seed: int
) -> tuple[Cores, float]:
    """Each block the Tucker term of what those before it left; and what all leave."""
    names = factor_names(modes)
    terms: list[Cores] = []
    rest = weight
    for _ in range(blocks):
        factors, core = hooi(rest, hosvd(rest, ranks, 0.0, seed)[0], seed)
        rest = rest - expand(core, factors)
        terms.append(_padded(core, factors, names, ranks))
    stacked = {name: np.stack([term[name] for term in terms]) for name in terms[0]}
    return balanced_by_name(stacked), float(np.linalg.norm(rest))


def _padded(
    core: np.ndarray, factors: list[np.ndarray], names: list[str], ranks: list[int]
) -> Cores:
    """A term of exactly these ranks: what is missing of them is zero."""
    missing = [rank - found for rank, found in zip(ranks, core.shape, strict=True)]
    cores = {"C": np.pad(core, [(0, more) for more in missing])}
    for name, factor, more in zip(names, factors, missing, strict=True):
        cores[name] = np.pad(factor, [(0, 0), (0, more)])
    return cores
