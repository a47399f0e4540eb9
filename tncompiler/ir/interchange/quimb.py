"""quimb tensor networks as expressions; quimb itself is never imported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from tncompiler.ir import algebra
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.ir.interchange.graphs import KINDS, graph_leaf
from tncompiler.ir.names import is_plain_identifier

_DECADES = 30.0
_LAYERS = ("", "_b", "_c", "_d")  # of tensors with one tag, as those of mps.H & mps
_RANDOM = re.compile(r"_[0-9a-f]{6}[A-Za-z]+\**\Z")  # as quimb.tensor.rand_uuid makes them


def from_quimb(tn: Any, *, kind: str = "param", output: Sequence[str] | None = None) -> Expr:
    """A quimb TensorNetwork (or Tensor) as an expression; its data goes with it.

    ``kind`` "param" makes trainable tensors that start as quimb's, "constant" fixed ones, "input"
    takes only shapes. A tensor is called by its first tag that is its own ("I0,1" becomes I0_1),
    or two of them ("I0_1_KET"), or one that few share (I0 and I0_b), else t0, t1, …; bonds with the
    random names that quimb gives become b0, b1, …. ``output`` orders the open indices (all outer
    ones, as quimb orders them); a network's `exponent` is a factor.
    """
    tensors = list(getattr(tn, "tensors", (tn,)))
    if not tensors:
        raise ArgumentError("the TensorNetwork has no tensors", fix="give one with tensors")
    if kind not in KINDS or not all(hasattr(t, "inds") and hasattr(t, "data") for t in tensors):
        raise ArgumentError(
            f"from_quimb takes a quimb TensorNetwork and one of {KINDS}, not a "
            f"{type(tn).__name__} and {kind!r}",
            fix="build it with quimb.tensor",
        )
    names = _quimb_names(tensors)
    wanted = tn.outer_inds() if output is None and hasattr(tn, "outer_inds") else output
    out = tensors[0].inds if wanted is None else wanted
    bonds = _bond_names(tensors, out)
    terms: list[Any] = []
    indices: dict[str, Index] = {}
    for name, tensor in zip(names, tensors, strict=True):
        array = _array(tensor.data)
        inds = [bonds.get(ind, ind) for ind in tensor.inds]
        own = [Index(ind, size) for ind, size in zip(inds, array.shape, strict=True)]
        indices.update({index.name: index for index in own})
        data = {"name": name, "kind": kind, "dtype": array.dtype}
        held = {"param": {"init": array}, "constant": {"value": array}}.get(kind, {})
        terms.append(graph_leaf({**data, **held}, own))
    unknown = [name for name in out if name not in indices]
    if unknown:
        raise ArgumentError(f"output names {unknown[0]!r}", fix=f"choose of {sorted(indices)}")
    result = algebra.contract(*terms, out=[indices[name] for name in out])
    return _scaled(result, float(getattr(tn, "exponent", 0.0)))


def _bond_names(tensors: Sequence[Any], out: Sequence[str]) -> dict[str, str]:
    """Short names for the bonds that quimb named at random."""
    every = dict.fromkeys(ind for tensor in tensors for ind in tensor.inds)
    fresh = (f"b{k}" for k in range(2 * len(every)) if f"b{k}" not in every)
    return {ind: next(fresh) for ind in every if _RANDOM.match(ind) and ind not in out}


def _array(data: Any) -> np.ndarray:
    """A tensor's data as NumPy's, without torch's gradient."""
    return np.asarray(data.detach().resolve_conj().cpu() if hasattr(data, "detach") else data)


def _scaled(result: Expr, exponent: float) -> Expr:
    """The result times 10**exponent, by factors that float32 can hold."""
    while exponent:
        step = max(-_DECADES, min(_DECADES, exponent))
        result, exponent = result * 10.0**step, exponent - step
    return result


def _quimb_names(tensors: Sequence[Any]) -> list[str]:
    """A name for each tensor: the first tag, else the first two, that no other has and can be one.

    Of a norm, whose layers share the tags of their sites, "I0_1_KET" and "I0_1_BRA".
    """
    tagged = [_plain_tags(tensor) for tensor in tensors]
    single = Counter(tag for tags in tagged for tag in tags)
    paired = Counter(f"{a}_{b}" for tags in tagged for a, b in combinations(tags, 2))
    names: list[str] = []
    for tags in tagged:
        own = [tag for tag in tags if single[tag] == 1]
        pairs = (f"{a}_{b}" for a, b in combinations(tags, 2))
        own += [pair for pair in pairs if paired[pair] == 1 and pair not in single]
        shared = [tag for tag in tags if single[tag] <= len(_LAYERS)]
        layers = (f"{tag}{layer}" for tag in shared for layer in _LAYERS)
        own += [n for n in layers if n not in names and n not in paired and single[n] != 1]
        names.append(own[0] if own else "")
    taken = set(names)
    fresh = (f"t{k}" for k in range(2 * len(names)) if f"t{k}" not in taken)
    return [name or next(fresh) for name in names]


def _plain_tags(tensor: Any) -> list[str]:
    """The tags of a tensor that can be names."""
    tags = dict.fromkeys(map(_as_name, getattr(tensor, "tags", ())))
    return [tag for tag in tags if is_plain_identifier(tag) and not tag.startswith("__")]


def _as_name(tag: str) -> str:
    """A tag such as "I0,1" as an identifier."""
    return re.sub(r"(?<=[A-Za-z0-9]),(?=[0-9])", "_", tag)
