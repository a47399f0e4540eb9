"""How a contraction of two operands is one (batched) matrix product on views.

In: labels and sizes. Out: the order of the batch, M, N and K labels that copies least, and which
operand needs a permuting copy. BLAS reads transposed operands, so only interleaved groups cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product as choices

from tncompiler.ir.program import Contract, Labels

# contractions whose forms are remembered: layouts ask for the same ones again and again
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class MatmulForm:
    """out[batch, m, n] = sum over k of a[batch, m, k] * b[batch, k, n].

    ``a_order`` / ``b_order`` is the axis order (by label) in which the operand is read as blocks;
    an operand that is `a_copied` / `b_copied` must be permuted first.
    """

    batch: Labels
    m: Labels
    n: Labels
    k: Labels
    a_order: Labels
    b_order: Labels
    a_copied: bool
    b_copied: bool


def is_matmul(op: Contract) -> bool:
    """Two operands with something summed, no repeated label, no private sum, no broadcast."""
    return len(op.inputs) == 2 and _multiplies(op)


@lru_cache(maxsize=_KEPT)
def _multiplies(op: Contract) -> bool:
    a, b = map(set, op.inputs)
    out = set(op.output)
    distinct = all(len(set(labels)) == len(labels) for labels in (*op.inputs, op.output))
    return distinct and bool((a & b) - out) and (a ^ b) <= out and out <= a | b


def matmul_form(op: Contract, sizes: Mapping[int, int]) -> MatmulForm:
    """The form with the fewest copied elements; among equals the first in a fixed order."""
    forms = _forms(op)
    if len(forms) == 1:
        return forms[0]
    return min(forms, key=lambda form: copied_elements(form, op, sizes))


@lru_cache(maxsize=_KEPT)
def _forms(op: Contract) -> tuple[MatmulForm, ...]:
    a, b = op.inputs
    on_a, on_b, out = set(a), set(b), set(op.output)
    batch = [label for label in a if label in on_b and label in out]
    k = [label for label in a if label in on_b and label not in out]
    m = tuple([label for label in a if label not in on_b])
    n = tuple([label for label in b if label not in on_a])
    orders = choices(_orders(batch, b), _orders(k, b))
    return tuple(_form(op, batch_order, m, n, k_order) for batch_order, k_order in orders)


def _form(op: Contract, batch: Labels, m: Labels, n: Labels, k: Labels) -> MatmulForm:
    a, b = op.inputs
    a_order, b_order = _readable(a, batch, m, k), _readable(b, batch, k, n)
    return MatmulForm(
        batch,
        m,
        n,
        k,
        a_order or (*batch, *m, *k),
        b_order or (*batch, *k, *n),
        a_order is None,
        b_order is None,
    )


def copied_elements(form: MatmulForm, op: Contract, sizes: Mapping[int, int]) -> int:
    """How many elements the form copies."""
    a, b = op.inputs
    return form.a_copied * _count(a, sizes) + form.b_copied * _count(b, sizes)


def _orders(group: list[int], other: Labels) -> list[Labels]:
    """A group's order on the first operand and on the second."""
    members = set(group)
    first, second = tuple(group), tuple([label for label in other if label in members])
    return [first] if first == second else [first, second]


def _readable(labels: Labels, batch: Labels, rows: Labels, columns: Labels) -> Labels | None:
    """The labels as they stand, if they are contiguous blocks that BLAS can read; else None."""
    blocks = [block for block in (batch, rows, columns) if block]
    order = sorted(blocks, key=lambda block: labels.index(block[0]))
    joined = sum(order, ())
    if joined != labels or (batch and (rows or columns) and order[-1] == batch):
        return None
    return joined


def _count(labels: Labels, sizes: Mapping[int, int]) -> int:
    total = 1
    for label in labels:
        total *= sizes[label]
    return total
