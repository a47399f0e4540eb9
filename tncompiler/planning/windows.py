"""Networks with windows: when a window is used, what trees cost, which trees are worth a look.

A window relates three labels. Where data carries its source, it is used when the last tensor with
the source meets one that carries its taps or its result (a convolution, or the gradient of a
kernel); where the network's value carries the source, when taps and result meet (a transposed
convolution). Until then the window keeps its labels from being summed. A window whose labels end up
on one tensor is used alone, on that tensor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tncompiler.ir.convolution import KERNEL, SCATTER, Form, convolution_form
from tncompiler.ir.dtypes import ITEM_BYTES
from tncompiler.ir.program import Convolve, Relation
from tncompiler.planning.rates import Rates

if TYPE_CHECKING:
    from tncompiler.planning.candidates import Network

Terms = frozenset[int]

VENDORS = ("float32", "float16", "bfloat16")  # what libraries have convolutions of their own for
_MOST_AXES = 3
ENTRY_US = 30.0  # to get into a library's convolution, which looks for its fastest kernel


def is_ready(
    relation: Relation,
    a: Collection[int],
    b: Collection[int],
    uses: Mapping[int, int],
    output: Collection[int],
) -> bool:
    """Whether a pair of tensors uses a window.

    ``uses``: on how many tensors and windows each label that is not in `output` is.
    """
    source, out, kernel = relation.labels

    def elsewhere(label: int) -> int:
        return uses[label] - 1 - (label in a) - (label in b)

    if source in a or source in b:
        other = b if source in a else a
        met = out in other or kernel in other
        return met and not (source in a and source in b) and elsewhere(source) == 0
    if source not in output:
        return False
    apart = (out in a) != (out in b) and (kernel in a) != (kernel in b)
    crossed = (out in a) != (kernel in a)
    return apart and crossed and elsewhere(out) == elsewhere(kernel) == 0


def label_models(network: Network) -> tuple[Network, ...]:
    """Networks without windows that cotengra orders: their trees are trees of this one.

    In the first, data carries window and tap, as if it were unfolded; that counts what comes before
    a convolution too often. In the second taps count nothing, which counts kernels too cheaply.
    """
    unfolded = _relabelled(network, taps=True)
    return (unfolded, _relabelled(network, taps=False))


def _relabelled(network: Network, *, taps: bool) -> Network:
    moved = {r.labels[0]: (r.labels[1], r.labels[2]) for r in network.relations}
    dropped = set() if taps else {r.labels[2] for r in network.relations}

    def seen(labels: Sequence[int]) -> tuple[int, ...]:
        found = dict.fromkeys(k for label in labels for k in moved.get(label, (label,)))
        return tuple(label for label in found if label not in dropped)

    wires = [seen(wire) or wire for wire in network.wires]
    output = seen(sorted(network.output))
    carried = {label for wire in wires for label in wire}
    return replace(
        network,
        wires=tuple(wires),
        output=frozenset(label for label in output if label in carried),
        relations=(),
    )


def walk_windows(
    network: Network, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, Terms, Terms, Terms, tuple[Relation, ...]]]:
    """Each pair with the labels of its operands and of its result, and the windows it uses."""
    terms: list[Terms] = list(network.terms)
    pending = list(network.relations)
    uses: dict[int, int] = dict.fromkeys(network.output, 1)
    for labels in (*terms, *(frozenset(r.labels) for r in pending)):
        for label in labels:
            uses[label] = uses.get(label, 0) + 1
    for a, b in pairs:
        left, right = terms[a], terms[b]
        ready = tuple(r for r in pending if is_ready(r, left, right, uses, network.output))
        pending = [r for r in pending if r not in ready]
        union = left | right | {label for r in ready for label in r.labels}
        for used in (left, right, *(frozenset(r.labels) for r in ready)):
            for label in used:
                uses[label] -= 1
        kept = frozenset(label for label in union if uses[label])
        for label in kept:
            uses[label] += 1
        terms.append(kept)
        yield a, b, left, right, kept, ready


def pair_cost(
    network: Network,
    a: Terms,
    b: Terms,
    out: Terms,
    relations: tuple[Relation, ...],
    minimize: str,
    rates: Rates,
) -> float:
    """Flops or microseconds of a pair that uses windows, or of one of its gradients."""
    if minimize == "flops":
        sources = {relation.labels[0] for relation in relations}
        related = {label for relation in relations for label in relation.labels}
        return 2.0 * math.prod(network.sizes[k] for k in (a | b | out | related) - sources)
    wires = (tuple(sorted(a)), tuple(sorted(b)))
    form = convolution_form(Convolve(wires, tuple(sorted(out)), relations))
    if form is None:  # unfolded, and contracted then
        positions = {label for relation in relations for label in relation.labels[1:]}
        elements = math.prod(network.sizes[k] for k in a | positions)
        return rates.pass_us(4.0 * ITEM_BYTES[network.dtype] * elements) + rates.fresh_us(elements)
    return convolution_us(form, network.sizes, network.dtype, rates)


def convolution_us(form: Form, sizes: Mapping[int, int], dtype: str, rates: Rates) -> float:
    """Predicted microseconds: tap by tap, a product on a part of the data, added to the result.

    A kernel's gradient goes by positions of the kernel, each one product over all windows. A
    library's own convolution counts as one product over all taps.
    """

    def count(labels: Iterable[int]) -> int:
        return math.prod(sizes[label] for label in labels)

    m, g, c, n = (count(group) for group in (form.m, form.g, form.c, form.n))
    taps = count(axis.tap for axis in form.axes if axis.tap is not None)
    results = count(axis.out for axis in form.axes)
    item = ITEM_BYTES[dtype]
    if rates.convolutions and dtype in VENDORS and 0 < len(form.axes) <= _MOST_AXES:
        windows = count(axis.out for axis in form.axes) if form.kind == KERNEL else taps
        moved = item * g * (m * c * count(axis.data for axis in form.axes) + m * n * results)
        product = rates.product_us(g, n, m * results, c * windows, dtype)
        work = max(rates.pass_us(2.0 * moved), rates.convolutions * product)
        return rates.step_us + ENTRY_US + work + rates.fresh_us(item * m * g * n * results)
    if form.kind == KERNEL:
        read = rates.pass_us(2.0 * item * g * c * (m + n) * taps)
        each = results * (read + rates.product_us(g, n, m, c * taps, dtype))
    else:
        positions = count(axis.data for axis in form.axes) if form.kind == SCATTER else results
        each = rates.pass_us(item * (2.0 * m * g * c + 3.0 * m * g * n) * positions)
        if c * n > 1:
            each += rates.product_us(m * g, n, positions, c, dtype)
        each *= taps
    return rates.step_us + each + rates.fresh_us(item * m * g * n * results)
