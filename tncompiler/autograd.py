"""Compiled programs under torch's autograd: our backward pass, and the way around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from tncompiler.backends.emitter import makes_new
from tncompiler.backends.numpy.threads import among_tensors
from tncompiler.backends.ranges import Ranged, Run
from tncompiler.backends.torch.threads import on_one_thread
from tncompiler.binding import Call
from tncompiler.compiler import Compilation, Executable, KeptExecutable
from tncompiler.crossing import enter, leave
from tncompiler.graphs import Graphed
from tncompiler.ir.errors import ChangedInPlace
from tncompiler.ir.program import Permute, Program
from tncompiler.tensor_guards import Guard
from tncompiler.watching import are_plain, autocasts, is_batched, looks_inside, overseen

Flat = Callable[..., tuple[Tensor, ...]]


class Specialisation:
    """One combination of shapes, dtypes and required gradients, ready to run.

    ``graph``: the programs are captured as CUDA graphs at their first call and replayed after it.
    """

    makes_new = False  # whether its outputs are certainly no arguments and no views of any
    last: Guard | None = None  # of what the last ordinary backward pass was given
    repeated: Any = None  # the last call that was ordinary, as a RepeatedStep

    def __init__(
        self,
        compilation: Compilation,
        call: Call,
        wrt: tuple[str, ...],
        backend: str,
        kept: KeptExecutable | None = None,
        *,
        graph: bool = False,
        on_cpu: bool = True,
    ) -> None:
        names = [leaf.name for leaf in compilation.ordered]
        self.backend, self.kept = backend, kept
        self.graph, self._on_cpu = graph, on_cpu
        self._compilation, self._call = compilation, call
        if kept is not None:
            self.rest = self._called(kept.rest)
        self.positions = tuple(names.index(name) for name in wrt)
        self.count = len(names)
        self.value_count = len(compilation.outputs)  # what a program returns after it are scales
        if wrt:
            self.pair = compilation.training_executable(call.dtypes, call.free, wrt, backend)
            self.output_count = self.pair.output_count
            self.makes_new = _are_new(self.pair.forward.program, self.output_count)
            self._read_by(self.pair.backward.program, names)
            self.forward = self._called(self.pair.forward)
            self.backward = self._called(self.pair.backward)

    def _read_by(self, backward: Program, names: Sequence[str]) -> None:
        """Which leaves a backward program reads, and which cotangents several of its steps would
        copy where they do not lie in order.

        A cotangent has the strides of its result, often a permuted view; kernels read any strides.
        """
        arguments = [argument.value.name for argument in backward.arguments]
        self.read = tuple(names.index(name) for name in arguments if name in names)
        steps = [step for step in backward.steps if not isinstance(step.op, Permute)]
        uses = Counter(name for step in steps for name in set(step.operands))
        cotangents = arguments[len(arguments) - self.value_count :]
        self.read_often = tuple(self.backend != "triton" and uses[n] > 1 for n in cotangents)

    def place(self) -> str:
        """Where the network was written, for errors."""
        return self._compilation.place()

    def _called(self, executable: Executable) -> Run:
        """The program as it is called: captured, or with ranges while a profiler looks."""
        if self.graph:
            return Graphed(executable.loaded.run)
        around: Callable[[Run], Run] | None = None
        if self.backend == "numpy":  # its programs run beside torch's threads and not against them
            around = among_tensors
        elif self._on_cpu and self._runs_alone(executable.program):
            around = on_one_thread
        return Ranged(executable.loaded, around)

    def _runs_alone(self, program: Program) -> bool:
        return self._compilation.runs_alone(program, self._call.sizes, self.backend)

    def results(self, tensors: Sequence[Tensor], made: Sequence[Any] = ()) -> Sequence[Tensor]:
        """What the forward program gives, where our backward pass has no part in it; ``made``: what
        is kept of the parameters, as the backend's arrays."""
        return self.on_tensors(self.run if self.kept is None else self.rest, tensors, made)

    def on_tensors(
        self, run: Run, tensors: Sequence[Tensor], made: Sequence[Any] = ()
    ) -> Sequence[Tensor]:
        """What a program gives for tensors, and arrays of its backend after them."""
        if self.backend != "numpy":
            return run(*tensors, *made)
        arrays = [*enter(tensors, "numpy"), *made]
        return leave(run(*arrays), "numpy", arrays)

    @cached_property
    def run(self) -> Run:
        """The forward program, where no gradient is asked for."""
        call = self._call
        inference = self._compilation.inference_executable
        return self._called(inference(call.dtypes, call.free, self.backend))

    @cached_property
    def flat(self) -> Flat:
        """The forward program in operations that torch differentiates."""
        return self._compilation.flat_executable(self._call.dtypes, self._call.free).run


class NetworkFunction(torch.autograd.Function):
    """Runs the generated forward program, and the generated backward program on what it saved."""

    @staticmethod
    def forward(ctx: Any, spec: Specialisation, *tensors: Tensor) -> Any:
        results = spec.on_tensors(spec.forward, tensors)
        ctx.spec = spec
        ctx.save_for_backward(*tensors, *results[spec.output_count :])
        outputs = results[: spec.output_count]
        owned = tuple(map(_untied, outputs)) if spec.makes_new else own(outputs, tensors)
        if len(owned) > spec.value_count:
            ctx.mark_non_differentiable(*owned[spec.value_count :])
        return owned

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        spec: Specialisation = ctx.spec
        cotangents = cotangents[: spec.value_count]
        kept = _unchanged(ctx)
        tensors, saved = kept[: spec.count], kept[spec.count :]
        last = spec.last
        if is_compiling() or (last is not None and not last.may_hold()):
            last = None
        if last is not None and last.holds((*kept, *cotangents)):
            results: Sequence[Tensor] = _by_program(spec, tensors, saved, cotangents)
        elif autocasts(device := device_of(cotangents[0])):  # the programs cast for themselves
            with torch.autocast(device, enabled=False):
                results = _gradients(spec, tensors, saved, cotangents)
        else:
            results = _gradients(spec, tensors, saved, cotangents)
        grads: list[Tensor | None] = [None] * (1 + spec.count)
        for position, gradient in zip(spec.positions, results, strict=True):
            grads[1 + position] = gradient
        return tuple(grads)


# `NetworkFunction.apply` without looking through its arguments for what transforms left behind: for
# calls of which a Guard has seen that there is nothing
apply_guarded: Callable[..., Any] = super(torch.autograd.Function, NetworkFunction).apply


def _gradients(
    spec: Specialisation,
    tensors: Sequence[Tensor],
    saved: Sequence[Tensor],
    cotangents: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Gradients by the backward program, unless somebody looks inside or differentiates again."""
    if overseen(spec.backend) or not _is_first_order(tensors, cotangents) or looks_inside():
        return _flat_gradients(spec, tensors, cotangents)
    if not overseen("numpy") and not autocasts(device_of(cotangents[0])):
        spec.last = Guard((*tensors, *saved, *cotangents))
    return _by_program(spec, tensors, saved, cotangents)


def _is_first_order(tensors: Sequence[Tensor], cotangents: Sequence[Tensor]) -> bool:
    """Whether gradients of these are wanted as plain numbers, and only once."""
    if torch.is_grad_enabled() or not are_plain((*tensors, *cotangents)):
        return False
    return not any(map(is_batched, cotangents))


def _by_program(
    spec: Specialisation,
    tensors: Sequence[Tensor],
    saved: Sequence[Tensor],
    cotangents: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Gradients by the generated backward program."""
    read = [tensors[position] for position in spec.read]
    if True in spec.read_often:
        cotangents = [
            cotangent.contiguous() if often else cotangent
            for cotangent, often in zip(cotangents, spec.read_often, strict=True)
        ]
    return spec.on_tensors(spec.backward, (*read, *saved, *cotangents))


def _unchanged(ctx: Any) -> tuple[Tensor, ...]:
    """What the forward pass saved, read once: hooks may unpack it, and only once.

    Raises: ChangedInPlace.
    """
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ChangedInPlace(
            "the backward pass reads a tensor that was changed in place after the forward pass: "
            "an input, a parameter or an output of the network",
            where=ctx.spec.place(),
            fix="change a copy of it: tensor.clone()",
        ) from error


def own(outputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs in a form that autograd lets users change in place.

    What shares memory with an argument or another output is copied. A view of something saved is
    given as its own tensor that counts the changes made to either, so that a backward pass which
    reads what was changed raises.
    """
    taken = [_base(tensor) for tensor in tensors]
    made = []
    for output in outputs:
        base = _base(output)
        made.append(output.clone() if any(base is other for other in taken) else _untied(output))
        taken.append(base)
    return tuple(made)


def _base(tensor: Tensor) -> Tensor:
    """What a tensor is a view of, or itself."""
    base = tensor._base
    return tensor if base is None else base


def _are_new(program: Program, count: int) -> bool:
    """Whether the first outputs of a program are arrays of their own, whatever it is given."""
    outputs = program.outputs[:count]
    made = [program.producers.get(name) for name in outputs]
    new = all(step is not None and makes_new(step) for step in made)
    return new and len(set(outputs)) == count


def _untied(output: Tensor) -> Tensor:
    """A view without its tie to what it is a view of, the count of changes apart."""
    return output.detach() if output._is_view() else output


def _flat_gradients(
    spec: Specialisation, tensors: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients through the flat program, themselves differentiable."""
    with torch.enable_grad():
        leaves = [t if k not in spec.positions else t.view_as(t) for k, t in enumerate(tensors)]
        outputs = spec.flat(*leaves)[: spec.value_count]
        wanted = [leaves[position] for position in spec.positions]
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        if not pairs:
            return tuple(torch.zeros_like(w) for w in wanted)
        return torch.autograd.grad(
            [o for o, _ in pairs],
            wanted,
            [c for _, c in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
            materialize_grads=True,
        )


def device_of(tensor: Tensor) -> str:
    """The kind of device a tensor is on, outside of what torch.compile traces."""
    return "cpu" if tensor.is_cpu else tensor.device.type
