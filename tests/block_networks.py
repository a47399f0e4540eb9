"""Random attentions, dropout, norms and users' functions, for the networks of the fuzzers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import tncompiler as tnc
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index

if TYPE_CHECKING:
    from tests.networks import _Item, _Maker


def _real_leaf(make: _Maker, indices: list[Index]) -> Expr:
    item = make.leaf(make.some(indices, len(indices)))
    return item.expr.real if item.complex else item.expr


def attended(make: _Maker) -> _Item | None:
    """Queries, keys and values with heads that they need not all have; masks of both kinds."""
    known = [i for i in make.names if isinstance(i.size, int) and make.extent(i) > 0]
    if len(known) < 4:
        return None
    query_at, key_at, feature, value = make.some(known, 4)
    heads = make.some(make.names, 2)
    heads = [i for i in heads if i not in (query_at, key_at, feature, value)]
    if not make.fits([*heads, query_at, key_at]) or not make.fits([*heads, query_at, value]):
        return None
    own = feature if make.chance(0.3) else value
    q = _real_leaf(make, [*make.subset(heads, 0.8), query_at, feature])
    k = _real_leaf(make, [*make.subset(heads, 0.8), key_at, feature])
    v = _real_leaf(make, [*make.subset(heads, 0.8), key_at, own])
    mask = None
    if make.chance(0.5):
        leaf = _real_leaf(make, make.some([query_at, key_at], make.pick([1, 2])))
        mask = make.pick([leaf, leaf > 0.0])
    made = tnc.attention(
        *(q, k, v),
        over=key_at,
        dim=feature,
        attn_mask=mask,
        is_causal=make.chance(0.4),
        queries=query_at,
        scale=make.pick([None, 0.5]),
    )
    return replace(make.leaf([]), expr=made, complex=False)


halved_square = tnc.elementwise("halved_square", lambda x: x * x / 2, tnc.tanh)


def blocked(make: _Maker) -> _Item | None:
    """Dropout of any tensor; norms and a function with a derivative of its own, of real ones."""
    if make.chance(0.4):
        item = make.take()
        seed = int(make.rng.integers(-1, 1000))
        dropped = tnc.dropout(item.expr, make.pick([0.0, 0.3, 1.0]), seed, salt=make.pick([1, 2]))
        return replace(item, expr=dropped)
    item = make.real_item()
    if make.chance(0.5) and not make.smooth:
        return replace(item, expr=halved_square(item.expr))
    over = [i for i in item.indices if make.extent(i)][:1]
    if not over:
        return item
    norm = make.pick([tnc.rms_norm, tnc.batch_norm])
    return replace(item, expr=norm(item.expr, over, eps=0.1))
