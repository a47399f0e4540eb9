"""Predicted time of launches: bytes of device memory or arithmetic, the larger, and starts.

In: actions of a plan of launches, and sizes. Out: microseconds, to compare plans by; rates are
those that kernels of this backend reach on a large GPU (docs/gpu.md), not its ceilings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tncompiler.backends.triton.actions import Launch
from tncompiler.backends.triton.bundle import Bundle
from tncompiler.backends.triton.chain import Chain
from tncompiler.backends.triton.pairwise import Pairwise
from tncompiler.backends.triton.traffic import bundle_traffic, nbytes, pairwise_traffic
from tncompiler.ir.program import Contract, Literal, Merge, Program, Split, Step, Value
from tncompiler.ir.sizes import Binding, Size, evaluate, symbols_of

LAUNCH_US = 4.0
BYTES_PER_US = 1.5e6
FLOPS_PER_US = 8e7  # of products in 16 bits
WIDE_FLOPS_PER_US = 1.5e7  # of products in 32 bits, and of sums of products
PROGRAMS = 132
FREE = 4096  # stands for a free size


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
            return LAUNCH_US + _work_us(moved, flops, low)
    return _host_us(action, program, sizes)


def _bundle_us(bundle: Bundle, sizes: Binding) -> float:
    """The way that is cut least; sums take a launch to be added up."""
    way = bundle.ways[0]
    moved = bundle_traffic(bundle, way, sizes, PROGRAMS).unique
    flops = math.fsum(_chain_flops(part, sizes) for part in way)
    low = way[0].low is not None
    return LAUNCH_US * (1 + bool(bundle.sums)) + _work_us(moved, flops, low)


def _chain_flops(chain: Chain, sizes: Binding) -> float:
    values = chain.program.values
    total = 0.0
    for step in chain.streamed:
        if isinstance(step.op, Contract):
            extents: dict[int, Size] = {}
            for name, labels in zip(step.operands, step.op.inputs, strict=True):
                extents.update(zip(labels, values[name].shape, strict=True))
            total += 2.0 * math.prod([evaluate(size, sizes) for size in extents.values()])
    return total


def _work_us(moved: float, flops: float, low: bool) -> float:
    return max(moved / BYTES_PER_US, flops / (FLOPS_PER_US if low else WIDE_FLOPS_PER_US))


def _host_us(step: Step, program: Program, sizes: Binding) -> float:
    """What aten runs: views for nothing, all else reads and writes memory."""
    if isinstance(step.op, Literal | Split | Merge):
        return 0.0
    values = [step.out, *(program.values[name] for name in step.operands)]
    return LAUNCH_US + sum(nbytes(value, sizes) for value in values) / BYTES_PER_US
