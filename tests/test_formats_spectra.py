"""Ranks for a budget from spectra: within it, no larger would fit, few decompositions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tncompiler import formats
from tncompiler.formats import search
from tncompiler.formats.modes import Modes
from tncompiler.formats.search import full_ranks
from tncompiler.formats.spectra import ranks_of_one_tail

INS, OUTS = (4, 3, 5), (3, 4)


def decaying(seed: int = 0) -> np.ndarray:
    """A weight whose spectra fall off, faster along some modes than along others."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((*INS, *OUTS))
    for axis, size in enumerate(weight.shape):
        scales = 2.0 ** (-np.arange(size) * (axis + 1) / 3)
        weight = np.moveaxis(np.moveaxis(weight, axis, -1) * scales, -1, axis)
    return weight


@pytest.mark.parametrize("name", ["TT", "TTMatrix", "Tucker", "HT"])
def test_all_cuts_leave_out_the_same_norm(name: str) -> None:
    form, weight, modes = getattr(formats, name)(), decaying(), Modes.of(INS, OUTS)
    limits = full_ranks(form, modes)
    allowed = 200

    def count(ranks: Any) -> int:
        return int(form.with_ranks(ranks).parameters(INS, OUTS))

    ranks = ranks_of_one_tail(form, weight, modes, limits, lambda r: count(r) <= allowed)
    assert ranks is not None and count(ranks) <= allowed
    tails, more = [], {}
    for cut, (bond, rank) in zip(form.cuts(modes, ranks), ranks.items(), strict=True):
        rest = [k for k in range(weight.ndim) if k not in cut.modes]
        rows = int(np.prod([weight.shape[k] for k in cut.modes]))
        values = np.linalg.svd(
            weight.transpose([*cut.modes, *rest]).reshape(rows, -1), compute_uv=False
        )
        tails.append(np.linalg.norm(values[rank:]))
        more[bond] = np.linalg.norm(values[rank - 1 :]) if rank > 1 else np.inf
    assert max(tails) <= min(more.values()) * (1 + 1e-9)  # one tail separates kept from dropped


def test_formats_without_a_cut_for_each_bond_say_so() -> None:
    modes = Modes.of(INS, OUTS)
    ring = formats.TensorRing()
    found = ranks_of_one_tail(ring, decaying(), modes, full_ranks(ring, modes), lambda _: True)
    assert found is None
    tt = formats.TT()
    assert ranks_of_one_tail(tt, decaying(), modes, full_ranks(tt, modes), lambda _: False) is None


def test_large_weights_are_decomposed_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_BISECTED", 100)
    calls = []
    factor = formats.TT.factor

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return factor(*arguments, **options)

    monkeypatch.setattr(formats.TT, "factor", counted)
    weight = decaying()
    found = formats.TT().decompose(weight, INS, OUTS, budget=0.3)
    assert len(calls) == 2 and found.parameters <= 0.3 * weight.size
    monkeypatch.undo()
    rank = max(found.format.rank)
    uniform = formats.TT(rank=1, clamp=True)
    while uniform.parameters(INS, OUTS) <= 0.3 * weight.size:
        rank, uniform = uniform.rank, formats.TT(rank=uniform.rank + 1, clamp=True)
    plain = formats.TT(rank=rank, clamp=True).decompose(weight, INS, OUTS)
    assert found.error <= plain.error
