"""Predicted time of launches: bytes of device memory or arithmetic, the larger, and starts.

In: actions of a plan of launches, and sizes. Out: microseconds, to compare plans by; rates are
those that kernels of this backend reach on a large GPU (docs/gpu.md), not its ceilings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tncompiler.backends.triton.actions import Launch
from tncompiler.backends.triton.atoms import FREE
from tncompiler.backends.triton.bundle import Bundle
from tncompiler.backends.triton.chain import LEAST_DEPTH, LEAST_SIDE, Chain, pressure
from tncompiler.backends.triton.pairwise import Pairwise
from tncompiler.backends.triton.traffic import bundle_traffic, nbytes, pairwise_traffic
from tncompiler.ir.program import Contract, Literal, Merge, Program, Split, Step, Value
from tncompiler.ir.sizes import Binding, evaluate, symbols_of

LAUNCH_US = 4.0
BYTES_PER_US = 2.7e6
FLOPS_PER_US = 2e8  # of products in 16 bits
WIDE = 1 / 8  # of that, of products in 32 bits, and of sums of products
PROGRAMS = 132
# of chains: elements that steps take and make, which are laid out anew between them, and terms of
# sums of products that are no matrix product
ELEMENTS_PER_US = 3.3e6
TERMS_PER_US = 2.5e5
ROOM = 2**14  # elements on chip that programs of few warps have registers for


def predicted_us(
    actions: Sequence[Launch], program: Program, sizes: Binding | None = None
) -> float:
    """Microseconds of all actions, one after the other."""
    known = {**known_sizes(program), **(sizes or {})}
    return math.fsum(_action_us(action, program, known) for action in actions)


def known_sizes(program: Program) -> dict[Any, int]:
    """A number for each free size."""
    return {symbol: FREE for value in program.values.values() for symbol in _symbols(value)}


def _symbols(value: Value) -> list[object]:
    return [symbol for size in value.shape for symbol in symbols_of(size)]


def _action_us(action: Launch, program: Program, sizes: Binding) -> float:
    match action:
        case Bundle():
            return _bundle_us(action, sizes)
        case Pairwise():
            moved = pairwise_traffic(action, sizes, {}).unique
            low = action.low is not None and action.reduction == "dot"
            groups = (action.batch, action.m, action.n, action.k)
            labels = [label for group in groups for label in group]
            flops = 2.0 * math.prod(evaluate(action.sizes[label], sizes) for label in labels)
            rate = FLOPS_PER_US * (1.0 if low else WIDE)
            return LAUNCH_US + max(moved / BYTES_PER_US, flops / rate)
    return _host_us(action, program, sizes)


def _bundle_us(bundle: Bundle, sizes: Binding) -> float:
    """The first way that few warps have room for, else the last; sums take a launch to be added."""
    crowds = [max(sum(pressure(part)) for part in way) / ROOM for way in bundle.ways]
    number = next((k for k, crowd in enumerate(crowds) if crowd <= 1), len(crowds) - 1)
    way = bundle.ways[number]
    moved = bundle_traffic(bundle, way, sizes, PROGRAMS).unique
    work = math.fsum(_step_us(step, part, sizes) for part in way for step in part.streamed)
    if bundle.sums:  # in registers all the time: what has no room takes many warps
        work *= max(crowds[number], 1.0) ** 3
    return LAUNCH_US * (1 + bool(bundle.sums)) + max(moved / BYTES_PER_US, work)


def _step_us(step: Step, chain: Chain, sizes: Binding) -> float:
    """What a step of a chain takes beside reading and writing memory."""
    if not isinstance(step.op, Contract):
        return 0.0
    values = chain.program.values
    extents: dict[int, int] = {}
    moved = _elements(step.out, sizes)
    for name, labels in zip(step.operands, step.op.inputs, strict=True):
        shape = [evaluate(size, sizes) for size in values[name].shape]
        extents.update(zip(labels, shape, strict=True))
        moved += math.prod(shape)
    us = moved / ELEMENTS_PER_US
    terms = math.prod(extents.values())
    if len(step.op.inputs) == 1 or not extents.keys() - {*step.op.output}:
        return us
    if _is_product(step.op, extents):
        return us + 2.0 * terms / (FLOPS_PER_US * (1.0 if chain.low else WIDE))
    return us + terms / TERMS_PER_US


def _is_product(op: Contract, extents: Mapping[int, int]) -> bool:
    """Whether a contraction of two operands has sides for a matrix product."""
    left, right = map(set, op.inputs)
    m, n, depth = (
        math.prod(extents[label] for label in group)
        for group in (left - right, right - left, (left & right) - {*op.output})
    )
    return depth >= LEAST_DEPTH and min(m, n) >= LEAST_SIDE


def _elements(value: Value, sizes: Binding) -> int:
    return math.prod(evaluate(size, sizes) for size in value.shape)


def _host_us(step: Step, program: Program, sizes: Binding) -> float:
    """What aten runs: views for nothing, all else reads and writes memory."""
    if isinstance(step.op, Literal | Split | Merge):
        return 0.0
    values = [step.out, *(program.values[name] for name in step.operands)]
    return LAUNCH_US + sum(nbytes(value, sizes) for value in values) / BYTES_PER_US
