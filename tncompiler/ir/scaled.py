"""Values with a power of two beside them: arithmetic on such pairs, as steps of a program.

A pair is worth `value * 2**exponent`. Exponents are whole numbers without a derivative, and need
none: what a pair is worth does not depend on how it is divided between the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tncompiler.ir.builder import Builder
from tncompiler.ir.dtypes import real_part
from tncompiler.ir.program import Labels, Value
from tncompiler.ir.trace import Traced, Tracer

_OF_ZERO = -(2.0**23)  # below every exponent of a number; differences to them are exact in float32


@dataclass(frozen=True, slots=True)
class Scaled:
    """A value, and an exponent for each position of some of its axes.

    ``axes`` says which axis of the value each axis of the exponent is. No exponent: 0 everywhere.
    """

    value: Value
    exponent: Value | None = None
    axes: Labels = ()


def normalise(builder: Builder, scaled: Scaled, apart: Labels) -> Scaled:
    """Divide by powers of two, so that the largest number at each position of `apart` is 1 to 2.

    Zeros, subnormal and non-finite numbers are left as they are. The exponent's axes must be among
    `apart`.
    """
    trace = _tracer(builder, scaled.value)
    power = trace.call("power_of_two", _largest(trace, scaled.value, apart))
    value = trace.multiply(trace.wrap(scaled.value), trace.call("reciprocal", power))
    exponent = trace.call("exponent", power)
    if scaled.exponent is not None:
        exponent = exponent + trace.wrap(scaled.exponent, scaled.axes)
    return Scaled(value.value, exponent.value, exponent.labels)


def add_scaled(builder: Builder, a: Scaled, b: Scaled, function: str = "add") -> Scaled:
    """The sum (or "sub": the difference) of two pairs whose values have one shape.

    At each position both are shifted to the larger exponent; that of a zero does not count, so a
    running total may start as zeros.
    """
    if a.exponent is None and b.exponent is None:
        trace = _tracer(builder, a.value)
        return Scaled(trace.call(function, trace.wrap(a.value), trace.wrap(b.value)).value)
    trace = _tracer(builder, a.value)
    exponents = [_of_nonzero(trace, term) for term in (a, b)]
    top = _finite(trace, trace.call("maximum", *exponents))
    moved = [
        trace.call("shift_exponent", exponent - top, trace.wrap(term.value))
        for exponent, term in zip(exponents, (a, b), strict=True)
    ]
    return Scaled(trace.call(function, *moved).value, top.value, top.labels)


def align(builder: Builder, scaled: Scaled, keep: Labels) -> Scaled:
    """The same numbers with exponents along the axes `keep` only: the largest over the others."""
    if set(scaled.axes) <= set(keep):
        return scaled
    trace = _tracer(builder, scaled.value)
    exponent = _of_nonzero(trace, scaled)
    over = tuple(axis for axis in range(len(scaled.value.shape)) if axis not in keep)
    above = exponent - _OF_ZERO  # at least 0, which is what an empty maximum is to be
    top = _finite(trace, _maximum(trace, above.value, over) + _OF_ZERO)
    value = trace.call("shift_exponent", exponent - top, trace.wrap(scaled.value))
    return Scaled(value.value, top.value, top.labels)


def add_exponents(builder: Builder, like: Value, terms: Sequence[Scaled]) -> Scaled:
    """`like` with the sum of the terms' exponents, whose axes are those of `like`."""
    trace = _tracer(builder, like)
    total: Traced | None = None
    for term in terms:
        if term.exponent is not None:
            own = trace.wrap(term.exponent, term.axes)
            total = own if total is None else total + own
    return Scaled(like) if total is None else Scaled(like, total.value, total.labels)


def negate_exponent(builder: Builder, scaled: Scaled) -> Scaled:
    """The pair with its exponent negated: the scale of a reciprocal."""
    if scaled.exponent is None:
        return scaled
    trace = _tracer(builder, scaled.value)
    return Scaled(scaled.value, (-trace.wrap(scaled.exponent, scaled.axes)).value, scaled.axes)


def plain(builder: Builder, scaled: Scaled) -> Value:
    """What the pair is worth, as one number: it may over- or underflow."""
    if scaled.exponent is None:
        return scaled.value
    trace = _tracer(builder, scaled.value)
    exponent = trace.wrap(scaled.exponent, scaled.axes)
    return trace.call("shift_exponent", exponent, trace.wrap(scaled.value)).value


def logarithm(builder: Builder, scaled: Scaled) -> Value:
    """The natural logarithm of what the pair is worth."""
    trace = _tracer(builder, scaled.value)
    result = trace.call("log", trace.wrap(scaled.value))
    if scaled.exponent is None:
        return result.value
    result = trace.call("add", result, trace.wrap(scaled.exponent, scaled.axes) * math.log(2.0))
    return result.value


def log10_scale(builder: Builder, scaled: Scaled) -> Value:
    """log10 of the scale in float64, in the shape of the value.

    float32 would hold a scale of 10**-1000 to 4 digits only.
    """
    value, exponent = scaled.value, scaled.exponent
    every = tuple(range(len(value.shape)))
    if exponent is None:
        exponent = builder.literal(0.0, "float64")
    exponent = builder.cast(exponent, "float64")
    wires = (tuple(range(len(exponent.shape))),)
    decimal = builder.map("decimal_exponent", (exponent,), wires, exponent.shape, exponent.axes)
    return builder.contract((decimal,), (scaled.axes,), every, value.shape, value.axes)


def _tracer(builder: Builder, like: Value) -> Tracer:
    return Tracer(builder, like, real_part(like.dtype))


def _largest(trace: Tracer, value: Value, apart: Labels) -> Traced:
    """The largest absolute number at each position of some axes, as a constant."""
    sizes = trace.call("abs", trace.call("stop", trace.wrap(value)))
    return _maximum(trace, sizes.value, tuple(k for k in range(len(value.shape)) if k not in apart))


def _maximum(trace: Tracer, value: Value, over: Labels) -> Traced:
    """The largest over axes of numbers of 0 or more; 0 over an axis without positions."""
    kept = tuple(axis for axis in range(len(value.shape)) if axis not in over)
    for axis in over:
        if value.shape[axis] == 0 or not isinstance(value.shape[axis], int):
            value = trace.builder.pad(value, axis, 0, 1)
    return trace.wrap(trace.builder.reduce("max", value, over) if over else value, kept)


def _of_nonzero(trace: Tracer, scaled: Scaled) -> Traced:
    """The exponent at each position, lower than any other where the value is zero."""
    exponent = (
        trace.wrap(scaled.exponent, scaled.axes)
        if scaled.exponent is not None
        else trace.wrap(trace.builder.literal(0.0, trace.literal_dtype), ())
    )
    zero = trace.call("equal", trace.call("stop", trace.wrap(scaled.value)), 0.0)
    return trace.call("where", zero, _OF_ZERO, exponent)


def _finite(trace: Tracer, exponent: Traced) -> Traced:
    """0 where all numbers were zero."""
    return trace.call("where", trace.call("greater", exponent, _OF_ZERO), exponent, 0.0)
