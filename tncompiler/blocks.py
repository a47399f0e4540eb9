"""Blocks that networks are made of, in terms of the language: attention, norms, dropout."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from tncompiler import dsl
from tncompiler.ir import algebra
from tncompiler.ir.attention import LOW
from tncompiler.ir.dtypes import kind
from tncompiler.ir.errors import ArgumentError, IndexMismatch, UnknownIndex
from tncompiler.ir.expressions import Expr, Leaf, Literal, to_text
from tncompiler.ir.functions.random import BITS
from tncompiler.ir.index import Index
from tncompiler.ir.lower import lower
from tncompiler.ir.names import SEED
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


# ---------------------------------------------------------------------------- normalisation


def rms_norm(
    t: Expr, over: Index | Iterable[Index], *, weight: Expr | None = None, eps: float = 1e-5
) -> Expr:
    """t / sqrt(mean of t² + eps) over one index or several, then scaled."""
    bound = (over,) if isinstance(over, Index | str) else tuple(over)
    normal = t * dsl.rsqrt((t * t).mean(*bound) + eps)
    return normal if weight is None else normal * weight


def moments(t: Expr, over: Index | Iterable[Index]) -> tuple[Expr, Expr]:
    """Mean and variance (of all positions, not an estimate) over one index or several."""
    bound = (over,) if isinstance(over, Index | str) else tuple(over)
    mean = t.mean(*bound)
    centered = t - mean
    return mean, (centered * centered).mean(*bound)


def batch_norm(
    t: Expr,
    over: Index | Iterable[Index],
    *,
    running: tuple[Expr, Expr] | None = None,
    weight: Expr | None = None,
    bias: Expr | None = None,
    eps: float = 1e-5,
) -> Expr:
    """(t - mean) / sqrt(variance + eps), the statistics being those over `over`: the batch and all
    positions, so that each of the other indices (the channels) has its own.

    ``running``: a mean and a variance to use instead, as in evaluation; `tnc.moments` gives those
    of a batch, to be averaged by whoever trains.
    """
    mean, variance = moments(t, over) if running is None else running
    normal = (t - mean) * dsl.rsqrt(variance + eps)
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias


# ---------------------------------------------------------------------------- dropout

_CHANCES = 2**24  # probabilities are multiples of one in so many


def dropout(t: Expr, p: float = 0.5, seed: Any = None, *, salt: int | None = None) -> Expr:
    """Zero with probability p, else t / (1 - p); which, follows from the seed and the position.

    ``seed`` is a whole number or an integer expression without indices, such as an input that
    counts steps; a negative one turns dropout off. Without one it is the input `dropout_seed`.
    A compiled module fills that in where it is not given: another number a call in training, drawn
    by torch's generator, and none is dropped after `eval()`; a NumPy function leaves it off.
    The same seed drops the same elements on every backend, forward and backward. ``salt`` tells
    dropouts of one seed apart; by default it follows from the expression, so that two differ.
    Raises: ArgumentError for p outside 0 … 1 or a seed with indices.
    """
    t = algebra.as_expr(t)
    if not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ArgumentError(
            f"the probability is {p!r:.40}", where=call_site(), fix="give a number from 0 to 1"
        )
    given = algebra.leaf(SEED, (), kind="input", dtype="int64") if seed is None else seed
    at = algebra.as_expr(given)
    at = at.astype("int64") if isinstance(at, Literal) else at
    if at.indices:
        raise ArgumentError(
            f"the seed has the indices ({_names(at.indices)})",
            where=call_site(),
            fix="give a scalar: one whole number a call",
        )
    off = dsl.less(at, 0)
    number = zlib.crc32(to_text(t).encode()) if salt is None else salt
    bits = algebra.elementwise("scramble", number, at)
    for position, index in enumerate(t.indices):
        where = dsl.arange(index)
        wide = where * dsl.ones(*t.indices[:position]) if position else where
        bits = algebra.elementwise("scramble", bits, wide)
    least = dsl.where(off, 0, round(p * _CHANCES))
    factor = dsl.where(off, 1.0, 0.0 if p == 1 else 1 / (1 - p))
    kept = dsl.greater_equal(bits // 2 ** (BITS - 24), least)
    return dsl.where(kept, t * factor, 0.0)
