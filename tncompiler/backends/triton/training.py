"""Forward and backward for training, where the backward pass makes intermediates again on chip.

In: joint programs, one for each way to order the gradients. Out: a forward program that saves
nothing and a backward program that reads inputs, parameters and cotangents only, wherever that is
predicted to be the fastest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import sympy

from tncompiler.backends.triton.actions import count_launches, made_by
from tncompiler.backends.triton.atoms import Unfit
from tncompiler.backends.triton.bundle import find_bundle
from tncompiler.backends.triton.chain import renames
from tncompiler.backends.triton.fuse import program_low_dtype
from tncompiler.backends.triton.launches import plan_launches, planned_us
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.passes.partition import TrainingPrograms, partition
from tncompiler.ir.program import Argument, Program, Step
from tncompiler.ir.sizes import Binding, symbols_of

NEAR = 1.05  # of the least predicted time: a prediction is no more exact
SAVING = 2.0  # times as fast must be what keeps intermediates in memory until the backward pass


def fastest_step(
    joints: Iterable[tuple[Program, int]], saving: TrainingPrograms, sizes: Binding
) -> TrainingPrograms:
    """Of the joint programs, with the number of their outputs, and of what saves intermediates,
    the programs whose launches are predicted to take the least time at these sizes; among those
    near it, the ones with the fewest launches. What saves intermediates must be faster by SAVING:
    activations are what tensorized layers shall not need.
    """
    found = [recompute_on_chip(*joint) or save_what_is_written(*joint) for joint in joints]
    made = [*found, read_again(saving)]
    steps = [_Step(programs, sizes) for programs in made]
    least = min(step.us for step in steps)
    near = [step for step in steps if step.us <= NEAR * least]
    return min(near, key=lambda step: (step.launches, step.us)).programs


class _Step:
    """A training step with its launches and predicted microseconds."""

    def __init__(self, programs: TrainingPrograms, sizes: Binding) -> None:
        self.programs = programs
        plans = [plan_launches(programs.forward), plan_launches(programs.backward)]
        us = sum(planned_us(plan, sizes) for plan in plans)
        self.us = us * (SAVING if programs.saved else 1.0)
        self.launches = sum(count_launches(plan.actions) for plan in plans)


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
        for program in (forward, backward):
            find_bundle(program, program_low_dtype(program))
    except Unfit:
        return None
    return TrainingPrograms(forward, backward, ())


def save_what_is_written(joint: Program, output_count: int) -> TrainingPrograms:
    """The two programs where one chain is not all: what its launches leave in memory is saved, and
    what they hold on chip is made again there.
    """
    outputs = joint.outputs[:output_count]
    actions = plan_launches(drop_dead_steps(replace(joint, outputs=outputs))).actions
    written = {name for action in actions for name in made_by(action)}
    return read_again(partition(joint, output_count, written))


def read_again(programs: TrainingPrograms) -> TrainingPrograms:
    """Arguments that are cast or laid out anew are not saved so: kernels do that where they read.

    A forward pass in 16 bits would else save what it reads once more, in 32.
    """
    forward, backward = programs.forward, programs.backward
    chains = {name: _from_argument(name, forward) for name in programs.saved}
    again = {name: chain for name, chain in chains.items() if chain}
    if not again:
        return programs
    saved = tuple(name for name in programs.saved if name not in again)
    outputs = forward.outputs[: len(forward.outputs) - len(programs.saved)]
    steps = dict.fromkeys(step for chain in again.values() for step in chain)
    read = {argument.value.name for argument in backward.arguments} - again.keys()
    read |= {name for step in steps for name in step.operands}
    primals = tuple(a for a in forward.arguments if a.value.name in read)
    known = {argument.value.name for argument in primals} | again.keys()
    rest = tuple(a for a in backward.arguments if a.value.name not in known)
    return replace(
        programs,
        forward=drop_dead_steps(replace(forward, outputs=(*outputs, *saved))),
        backward=replace(backward, arguments=(*primals, *rest), steps=(*steps, *backward.steps)),
        saved=saved,
    )


def _from_argument(name: str, program: Program) -> list[Step]:
    """The steps that make a value of an argument, each for nothing; none if others do."""
    steps: list[Step] = []
    while name in program.producers:
        step = program.producers[name]
        if not renames(step):
            return []
        steps.insert(0, step)
        (name,) = step.operands
    return steps


def _symbols(argument: Argument) -> set[sympy.Symbol]:
    """The free sizes on an argument's axes."""
    return {symbol for size in argument.value.shape for symbol in symbols_of(size)}
