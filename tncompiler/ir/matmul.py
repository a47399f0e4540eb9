"""How a contraction of two operands is one (batched) matrix product on views.

In: labels and sizes. Out: the order of the batch, M, N and K labels that copies least, and which
operand needs a permuting copy. BLAS reads transposed operands, so only interleaved groups cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product as choices
from math import prod

from tncompiler.ir.program import Contract, Labels

# contractions whose forms are remembered: layouts ask for the same ones again and again
_KEPT = 4096
# elements that are copied in the time that starting one more product takes
_PRODUCT = 512
# rows and columns, and elements, from which on an outer product is one for BLAS
_OUTER_SIDE, _OUTER_ELEMENTS = 8, 2**15
_OUTER_DTYPES = ("float32", "float64", "complex64", "complex128")


@dataclass(frozen=True, slots=True)
class MatmulForm:
    """out[outer, batch, m, n] = sum over k of a[batch, m, k] * b[batch, k, n].

    ``a_order`` / ``b_order`` is the axis order (by label) in which the operand is read as blocks;
    an operand that is `a_copied` / `b_copied` must be permuted first. ``outer``: labels of one
    operand alone that stand before its blocks: one product for each of their positions, with the
    other operand as it is. Only where there is no batch. ``outer_on``: 0 for a, 1 for b.
    """

    batch: Labels
    m: Labels
    n: Labels
    k: Labels
    a_order: Labels
    b_order: Labels
    a_copied: bool
    b_copied: bool
    outer: Labels = ()
    outer_on: int = 0

    def natural(self) -> tuple[Labels, Labels]:
        """The orders in which the result comes out: rows first, and columns first."""
        lead = (*self.outer, *self.batch)
        return (*lead, *self.m, *self.n), (*lead, *self.n, *self.m)


def is_matmul(op: Contract) -> bool:
    """Two operands with something summed, no repeated label, no private sum, no broadcast."""
    return len(op.inputs) == 2 and _multiplies(op)


@lru_cache(maxsize=_KEPT)
def _multiplies(op: Contract) -> bool:
    a, b = map(set, op.inputs)
    out = set(op.output)
    distinct = all(len(set(labels)) == len(labels) for labels in (*op.inputs, op.output))
    return distinct and bool((a & b) - out) and (a ^ b) <= out and out <= a | b


def is_product(op: Contract, sizes: Mapping[int, int] | Sequence[int], dtype: str) -> bool:
    """Whether a matrix product computes it: it sums something, or is a large outer product.

    Outer products are products of one term; ``sizes``: by label.
    """
    if len(op.inputs) != 2:
        return False
    return _multiplies(op) or (_is_outer(op) and dtype in _OUTER_DTYPES and is_broad(op, sizes))


@lru_cache(maxsize=_KEPT)
def _is_outer(op: Contract) -> bool:
    """Nothing is summed, no label is repeated, and each operand has one of its own."""
    a, b = map(set, op.inputs)
    distinct = all(len(set(labels)) == len(labels) for labels in (*op.inputs, op.output))
    return distinct and bool(a - b) and bool(b - a) and (a | b) == set(op.output)


def is_broad(op: Contract, sizes: Mapping[int, int] | Sequence[int]) -> bool:
    """Whether a product of one term has rows and columns enough for BLAS."""
    a, b = op.inputs
    rows, columns = (
        prod([sizes[label] for label in own if label not in other])
        for own, other in ((a, b), (b, a))
    )
    elements = prod([sizes[label] for label in op.output])
    return min(rows, columns) >= _OUTER_SIDE and elements >= _OUTER_ELEMENTS


def matmul_form(op: Contract, sizes: Mapping[int, int], *, stacks: bool = False) -> MatmulForm:
    """The form with the fewest copied elements; among equals the first in a fixed order.

    ``stacks``: as code is written, where one operand may meet every matrix of the other
    (`MatmulForm.outer`), and a result that comes with its axes in another order is copied too.
    """
    forms = _forms(op, stacks)
    if len(forms) == 1:
        return forms[0]
    askew = _count(op.output, sizes) if stacks else 0

    def copied(form: MatmulForm) -> int:
        result = askew if askew and op.output not in form.natural() else 0
        return copied_elements(form, op, sizes) + result

    return min(forms, key=copied)


@lru_cache(maxsize=_KEPT)
def _forms(op: Contract, stacks: bool) -> tuple[MatmulForm, ...]:
    a, b = op.inputs
    on_a, on_b, out = set(a), set(b), set(op.output)
    batch = [label for label in a if label in on_b and label in out]
    k = [label for label in a if label in on_b and label not in out]
    m = tuple([label for label in a if label not in on_b])
    n = tuple([label for label in b if label not in on_a])
    orders = choices(_orders(batch, b), _orders(k, b))
    plain = [_form(op, batch_order, m, n, k_order) for batch_order, k_order in orders]
    if batch or not stacks:
        return tuple(plain)
    return (*plain, *(stacked for form in plain for stacked in _stacked(op, form)))


def _stacked(op: Contract, form: MatmulForm) -> Iterator[MatmulForm]:
    """The form with leading free labels of an operand that would be copied kept outermost."""
    if form.a_copied:
        for outer, m, order in led(op.inputs[0], form.m, form.k):
            yield replace(form, m=m, a_order=order, a_copied=False, outer=outer, outer_on=0)
    if form.b_copied:
        for outer, n, order in led(op.inputs[1], form.n, form.k):
            yield replace(form, n=n, b_order=order, b_copied=False, outer=outer, outer_on=1)


def led(labels: Labels, free: Labels, summed: Labels) -> Iterator[tuple[Labels, Labels, Labels]]:
    """Leading free labels, the other free ones, and the operand's order; the fewest first."""
    for count in range(1, len(free)):
        outer, rest = labels[:count], labels[count:]
        if not set(outer) <= set(free):
            return
        inner = tuple(label for label in rest if label in free)
        if rest in ((*inner, *summed), (*summed, *inner)):
            yield outer, inner, labels


def _form(op: Contract, batch: Labels, m: Labels, n: Labels, k: Labels) -> MatmulForm:
    a, b = op.inputs
    a_order, b_order = readable(a, batch, m, k), readable(b, batch, k, n)
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
    """How many elements the form copies; further products count as what takes as long."""
    a, b = op.inputs
    copied = (_count(a, sizes) if form.a_copied else 0) + (_count(b, sizes) if form.b_copied else 0)
    return copied + (_PRODUCT * _count(form.outer, sizes) if form.outer else 0)


def _orders(group: list[int], other: Labels) -> list[Labels]:
    """A group's order on the first operand and on the second."""
    members = set(group)
    first, second = tuple(group), tuple([label for label in other if label in members])
    return [first] if first == second else [first, second]


def readable(labels: Labels, batch: Labels, rows: Labels, columns: Labels) -> Labels | None:
    """The labels as they stand, if they are contiguous blocks that BLAS can read; else None."""
    blocks = [block for block in (batch, rows, columns) if block]
    order = sorted(blocks, key=lambda block: labels.index(block[0]))
    joined = sum(order, ())
    if joined != labels or (batch and (rows or columns) and order[-1] == batch):
        return None
    return joined


def form_of_product(rows: Labels, columns: Labels, k: Labels) -> str:
    """How BLAS reads the two matrices, as they lie or transposed: "nn", "nt", "tn" or "tt".

    ``rows`` and ``columns``: the labels of the matrices in the order of their memory.
    """
    first = "t" if k and rows[-1] not in k else "n"
    second = "t" if k and columns[-1] in k else "n"
    return first + second


def _count(labels: Labels, sizes: Mapping[int, int]) -> int:
    total = 1
    for label in labels:
        total *= sizes[label]
    return total
