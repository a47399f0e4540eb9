"""Blocks that networks are made of, in terms of the language: attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tncompiler import dsl
from tncompiler.ir import algebra
from tncompiler.ir.attention import LOW
from tncompiler.ir.dtypes import kind
from tncompiler.ir.errors import ArgumentError, IndexMismatch, UnknownIndex
from tncompiler.ir.expressions import Expr, Leaf
from tncompiler.ir.index import Index
from tncompiler.ir.lower import lower
from tncompiler.ir.origin import call_site
from tncompiler.ir.scope import check_scope, describe, find_all
from tncompiler.ir.sizes import product

Keys = Index | str | Iterable[Index | str] | None


def attention(
    query: Expr,
    key: Expr,
    value: Expr,
    *,
    over: Index | str | None = None,
    dim: Keys = None,
    attn_mask: Any = None,
    is_causal: bool = False,
    queries: Index | str | None = None,
    scale: Any = None,
) -> Expr:
    """Scaled dot-product attention: softmax over keys of query · key, times value.

    Shapes, all by name: query (…, t, d), key (…, s, d), value (…, s, e) → (…, t, e). ``over`` is s,
    the positions of keys and values (default: the index that key and value have and query lacks);
    ``dim`` is d, one index or several (default: what query and key have and value lacks; value may
    have the same one, and then e is d). All other indices, a batch or heads say, are kept; what
    one of the three lacks is shared, as heads of keys among groups of queries are.
    ``attn_mask``: booleans, true for what a query may see, or numbers that are added to the scores;
    any part of the indices of the scores. ``is_causal``: a query sees the keys up to its own
    position; ``queries`` is t where query has several indices of its own. A query that may see
    nothing gives zeros. ``scale``: a number or expression, 1/√d by default.
    On torch this runs as `torch.nn.functional.scaled_dot_product_attention`.
    Raises: UnknownIndex or ArgumentError where s, d or t do not follow; IndexMismatch or SizeClash
    for a mask that does not lie over the scores.
    """
    query, key, value = map(algebra.as_expr, (query, key, value))
    check_scope((describe(t), t.indices) for t in (query, key))
    at = _keys_index(query, key, value, over)
    summed = _feature_indices(query, key, value, dim)
    kept = [i for i in dict.fromkeys((*query.indices, *key.indices)) if i not in (*summed, at)]
    factor = _scale(summed) if scale is None else algebra.as_expr(scale)
    scores = algebra.contract(query, key, factor, out=(*kept, at))
    mask = None
    if is_causal:
        t = _query_index(query, key, value, summed, queries)
        seen = dsl.less_equal(dsl.arange(at) * dsl.ones(t), dsl.arange(t))
        scores = dsl.where(seen, scores, LOW)
    if attn_mask is not None:
        mask = _checked_mask(algebra.as_expr(attn_mask), scores, at)
        is_choice = _is_boolean(mask)
        scores = dsl.where(mask, scores, LOW) if is_choice else scores + mask
    weights = dsl.softmax(scores, over=at)
    new = [i for i in value.indices if i not in kept and i != at]
    made = algebra.contract(weights, value, out=(*kept, *new))
    if mask is not None and _is_boolean(mask) and at in mask.indices:
        return dsl.where(mask.max(at), made, 0.0)
    return made


def _keys_index(query: Expr, key: Expr, value: Expr, over: Index | str | None) -> Index:
    both = [i for i in key.indices if i in value.indices and i not in query.indices]
    if over is not None:
        (found,) = find_all(key, (over,))
        if found not in both:
            raise UnknownIndex(
                f"over={found.name!r} is no index that key and value have and query lacks",
                where=call_site(),
                fix=f"those are: {_names(both)}; rename the positions of keys and values",
            )
        return found
    if len(both) != 1:
        raise ArgumentError(
            f"key and value have {len(both)} indices that query lacks: {_names(both)}",
            where=call_site(),
            fix="call the positions of keys and values otherwise than those of queries, and say "
            "which they are with over=",
        )
    return both[0]


def _feature_indices(query: Expr, key: Expr, value: Expr, dim: Keys) -> tuple[Index, ...]:
    keys = (dim,) if isinstance(dim, Index | str) else dim
    if keys is not None:
        named = find_all(query, keys)
        return find_all(key, named)
    found = [i for i in query.indices if i in key.indices and i not in value.indices]
    if not found:
        raise ArgumentError(
            "query and key have no index that value lacks, so nothing says what is summed",
            where=call_site(),
            fix="name the features of queries and keys with dim=",
        )
    return tuple(found)


def _query_index(
    query: Expr, key: Expr, value: Expr, summed: Sequence[Index], queries: Index | str | None
) -> Index:
    if queries is not None:
        return find_all(query, (queries,))[0]
    others = (*summed, *key.indices, *value.indices)
    own = [index for index in query.indices if index not in others]
    if len(own) != 1:
        raise ArgumentError(
            f"query has {len(own)} indices of its own: {_names(own)}",
            where=call_site(),
            fix="say with queries= which of its indices are positions",
        )
    return own[0]


def _names(indices: Sequence[Index]) -> str:
    return ", ".join(index.name for index in indices) or "none"


def _scale(summed: Sequence[Index]) -> Expr:
    size = product(index.size for index in summed)
    if isinstance(size, int):
        return algebra.as_expr(max(size, 1) ** -0.5)
    return dsl.rsqrt(algebra.as_expr(size))


def _checked_mask(mask: Expr, scores: Expr, over: Index) -> Expr:
    """Raises IndexMismatch or SizeClash for a mask that does not lie over the scores."""
    check_scope([("the scores", scores.indices), (f"attn_mask {describe(mask)}", mask.indices)])
    extra = [index for index in mask.indices if index not in scores.indices]
    if extra:
        raise IndexMismatch(
            f"attn_mask has the indices ({_names(mask.indices)}), but the scores "
            f"({_names(scores.indices)}) have no {extra[0].name!r}",
            where=call_site(),
            fix=f"give it indices of the scores; the positions of keys are {over.name!r}",
        )
    return mask


def _is_boolean(mask: Expr) -> bool:
    if isinstance(mask, Leaf):
        return mask.dtype == "bool"
    program = lower((mask,))
    return kind(program.values[program.outputs[0]].dtype) == "bool"
