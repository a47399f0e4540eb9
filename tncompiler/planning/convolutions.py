"""The ways to lay out one convolution: channels before the positions of its images, or after them.

In: a convolution with its labels in the order of the axes, sizes, a dtype. Out: the order in which
each operand is read and the result made, and the predicted time of the copies that this takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tncompiler.ir.convolution import Form, form_of
from tncompiler.ir.program import Convolve, Labels
from tncompiler.planning.ways import Ways


@dataclass(frozen=True, slots=True)
class ConvolutionWay:
    """``inputs`` are the orders of the operands, ``out`` that of the result.

    ``time_us``: what is copied for it, and to give the result the order that is wanted.
    """

    time_us: float
    inputs: tuple[Labels, Labels]
    out: Labels


def convolution_ways(
    op: Convolve, sizes: tuple[int, ...], dtype: str, ways: Ways
) -> tuple[ConvolutionWay, ...]:
    """Both ways, the faster one first. ``sizes``: by label, which count from 0."""
    form = form_of(op)
    found = [_way(op, form, sizes, dtype, ways, last) for last in (False, True)]
    return tuple(sorted(found, key=lambda way: way.time_us))


def _way(
    op: Convolve, form: Form, sizes: tuple[int, ...], dtype: str, ways: Ways, last: bool
) -> ConvolutionWay:
    inputs, out = form.read_orders(last=last), form.made_order(last=last)
    copies = [*zip(op.inputs, inputs, strict=True), (out, op.output)]
    if not last and math.prod(sizes[label] for label in form.g) > 1:
        copies += _turned(form)
    time = sum(ways.permute_us(a, b, sizes, dtype) for a, b in copies)
    return ConvolutionWay(time, inputs, out)


def _turned(form: Form) -> list[tuple[Labels, Labels]]:
    """The copies of a convolution in groups whose channels do not come last.

    Libraries are some ten times slower there than with channels last, so images are turned round.
    """
    first, last = (form.read_orders(last=last) for last in (False, True))
    made = form.made_order(last=True), form.made_order(last=False)
    return [*((first[k], last[k]) for k in form.images), made]
