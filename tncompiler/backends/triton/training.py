"""Forward and backward for training, where the backward pass makes intermediates again on chip.

In: the joint program. Out: a forward program that saves nothing and a backward program that reads
inputs, parameters and cotangents only, if the latter runs as a chain; else None.
"""

from __future__ import annotations

from dataclasses import replace

import sympy

from tncompiler.backends.triton.atoms import Unfit
from tncompiler.backends.triton.bundle import find_bundle
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.passes.partition import TrainingPrograms
from tncompiler.ir.program import Argument, Program
from tncompiler.ir.sizes import symbols_of


def recompute_on_chip(joint: Program, output_count: int) -> TrainingPrograms | None:
    """The two programs, or None where saving intermediates is the only way."""
    primals = tuple(a for a in joint.arguments if a.kind != "cotangent")
    forward = replace(joint, arguments=primals, outputs=joint.outputs[:output_count])
    forward = drop_dead_steps(forward)
    backward = drop_dead_steps(replace(joint, outputs=joint.outputs[output_count:]))
    read = {name for step in backward.steps for name in step.operands} | set(backward.outputs)
    sized = {s for a in joint.arguments if a.value.name in read for s in _symbols(a)}
    arguments = []
    for argument in joint.arguments:
        carries = _symbols(argument) - sized
        if argument.value.name in read or argument.kind == "cotangent" or carries:
            arguments.append(argument)
            sized |= carries
    backward = replace(backward, arguments=tuple(arguments))
    try:
        find_bundle(forward)
        find_bundle(backward)
    except Unfit:
        return None
    return TrainingPrograms(forward, backward, ())


def _symbols(argument: Argument) -> set[sympy.Symbol]:
    """The free sizes on an argument's axes."""
    return {symbol for size in argument.value.shape for symbol in symbols_of(size)}
