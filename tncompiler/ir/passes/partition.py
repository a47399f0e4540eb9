"""Cut a joint program (outputs and gradients) into a forward and a backward program.

In: the program that `adjoint` made, scheduled, and which computed values to keep. Out: the forward
program, whose outputs are the primal outputs and then the saved values; and the backward program,
whose arguments are the primal arguments it reads, the saved values and the cotangents. What the
backward program needs and is not kept is computed again, just before its first use. Numbers, and
permuted copies of arguments, always are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.passes.scans import trim_scans
from tncompiler.ir.program import (
    Argument,
    Convolve,
    Fold,
    Literal,
    Pad,
    Permute,
    Pick,
    Program,
    Scan,
    Slice,
    Step,
    Unfold,
    Value,
    Window,
    fresh_name,
)
from tncompiler.ir.sizes import Size, symbols_of
from tncompiler.ir.stacking import Member

_AGAIN = "_again"  # after the name of a value that is computed again
_LATER = ("cotangent", "tangent")  # kinds of arguments that only the second program gets


@dataclass(frozen=True)
class TrainingPrograms:
    """``saved`` names the values that the forward program returns after its outputs.

    ``recomputed`` names those that the backward program computes again, as the forward program
    calls them; numbers and copies of arguments are not listed.
    """

    forward: Program
    backward: Program
    saved: tuple[str, ...]
    recomputed: tuple[str, ...] = ()


def again_names(cut: TrainingPrograms) -> frozenset[str]:
    """What the backward program calls the values that it computes again."""
    called = {each for name in cut.recomputed for each in (name, f"{name}{_AGAIN}")}
    return frozenset(step.out.name for step in cut.backward.steps) & called


def partition(
    joint: Program, output_count: int, kept: Collection[str] | None = None
) -> TrainingPrograms:
    """Cut after the steps that the first `output_count` outputs need.

    ``kept``: the computed values that may be saved; None: whatever the backward program needs.
    """
    primal, gradients = joint.outputs[:output_count], joint.outputs[output_count:]
    forward = _with_results(joint, drop_dead_steps(replace(joint, outputs=primal)))
    backward = _Backward(joint, forward, kept)
    steps = backward.write(gradients)
    needed = {name for step in steps for name in step.operands} | set(backward.outputs)
    made = {step.out.name for step in steps}
    saved = tuple(
        step.out.name
        for step in forward.steps
        if step.out.name in needed and step.out.name not in made
    )
    primals = tuple(a for a in joint.arguments if a.kind not in _LATER)
    needed |= _size_carriers(joint, steps, needed)
    read = tuple(a for a in primals if a.value.name in needed)
    arguments = tuple(Argument(joint.values[name], "saved") for name in saved)
    later = tuple(a for a in joint.arguments if a.kind in _LATER)
    inside = (name for s in steps if isinstance(s.op, Scan) for name in s.op.recomputed)
    before = Program(primals, forward.steps, (*primal, *saved), joint.equations)
    return TrainingPrograms(
        trim_scans(drop_dead_steps(before)),
        Program((*read, *arguments, *later), steps, backward.outputs, joint.equations),
        saved,
        (*backward.recomputed, *inside),
    )


def _with_results(joint: Program, forward: Program) -> Program:
    """The forward steps, and what else is taken out of their scans."""
    made = {step.out.name for step in forward.steps}
    return forward.with_steps(
        step
        for step in joint.steps
        if step.out.name in made or (isinstance(step.op, Pick) and step.operands[0] in made)
    )


class _Backward:
    """The steps of the backward program, with what must be computed again put in place."""

    def __init__(self, joint: Program, forward: Program, kept: Collection[str] | None) -> None:
        self.joint, self.kept = joint, kept
        self.forward = {step.out.name: step for step in forward.steps}
        self.given = inputs_of(joint)
        self.taken = set(joint.values)
        self.again: dict[str, str] = {}  # as the forward program calls it → as made again
        self.steps: list[Step] = []
        self.recomputed: list[str] = []
        self.outputs: tuple[str, ...] = ()

    def write(self, gradients: tuple[str, ...]) -> tuple[Step, ...]:
        rest = drop_dead_steps(replace(self.joint, outputs=gradients))
        own = [step for step in rest.steps if step.out.name not in self.forward]
        for step in _live(own, gradients):
            self._append(step, step.out)
        self.outputs = tuple(self._ready(name) for name in gradients)
        return tuple(self.steps)

    def _append(self, step: Step, out: Value) -> None:
        self.steps.append(Step(out, step.op, tuple(self._ready(name) for name in step.operands)))

    def _ready(self, name: str) -> str:
        """What a value is called where it is read; made again first if it must be."""
        if name not in self.forward or self._is_saved(self.forward[name]):
            return name
        pending = [name]
        while pending:  # what it is made of first; a chain may be as long as the program
            step = self.forward[pending[-1]]
            missing = [n for n in step.operands if self._is_missing(n)]
            pending.extend(missing)
            if not missing:
                pending.pop()
                if step.out.name not in self.again:
                    self._make_again(step)
        return self.again[name]

    def _is_missing(self, name: str) -> bool:
        step = self.forward.get(name)
        return step is not None and name not in self.again and not self._is_saved(step)

    def _make_again(self, step: Step) -> None:
        name = step.out.name
        free = self._is_free(step)
        called = name if free else fresh_name(f"{name}{_AGAIN}", self.taken)
        self.taken.add(called)
        if not free:
            self.recomputed.append(name)
        operands = tuple(self.again.get(n, n) for n in step.operands)
        self.steps.append(Step(replace(step.out, name=called), step.op, operands))
        self.again[name] = called

    def _is_saved(self, step: Step) -> bool:
        if self._is_free(step) or isinstance(step.op, Scan):
            return False
        return self.kept is None or step.out.name in self.kept

    def _is_free(self, step: Step) -> bool:
        """Numbers, copies of inputs, members of stacks, and what is seen through windows, which
        would be large."""
        copies = isinstance(step.op, Permute) and self.given.issuperset(step.operands)
        return copies or isinstance(step.op, Literal | Member | Window | Unfold)


def inputs_of(joint: Program) -> set[str]:
    """Arguments whose copies both programs make: those of a parameter are small, and are kept."""
    return {a.value.name for a in joint.arguments if a.kind not in ("param", "constant")}


def _live(steps: list[Step], outputs: tuple[str, ...]) -> tuple[Step, ...]:
    """The steps that an output depends on."""
    live = set(outputs)
    for step in reversed(steps):
        if step.out.name in live:
            live.update(step.operands)
    return tuple(step for step in steps if step.out.name in live)


def _size_carriers(joint: Program, steps: tuple[Step, ...], read: set[str]) -> set[str]:
    """Primal arguments that the steps need only for the sizes on their axes."""
    wanted = {symbol for step in steps for symbol in step_symbols(step)}
    for argument in joint.arguments:
        if argument.value.name in read or argument.kind in _LATER:
            wanted -= _on_axes(argument.value)
    if any(wanted & symbols_of(s) for e in joint.equations for s in e.sizes):
        wanted |= {k for e in joint.equations for s in e.sizes for k in symbols_of(s)}
    carriers = set()
    for argument in joint.arguments:
        if argument.kind not in _LATER and wanted & _on_axes(argument.value):
            carriers.add(argument.value.name)
            wanted -= _on_axes(argument.value)
    return carriers


def _on_axes(value: Value) -> set[Size]:
    return {symbol for size in value.shape for symbol in symbols_of(size)}


def step_symbols(step: Step) -> set[Size]:
    """The sizes that a step must know to be carried out, and that are not yet numbers."""
    sizes = [*step.out.shape]
    match step.op:
        case Slice(_, first, second) | Pad(_, first, second):
            sizes += [first, second]
        case Literal(value) if not isinstance(value, int | float | complex):
            sizes.append(value)
        case Window(geometry) | Unfold(_, geometry) | Fold(_, geometry):
            sizes.append(geometry.before)
        case Convolve(_, _, relations):
            sizes += [size for r in relations for size in (*r.sizes, r.geometry.before)]
    return {symbol for size in sizes for symbol in symbols_of(size)}
