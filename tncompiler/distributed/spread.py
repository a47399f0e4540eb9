"""Networks as operators on DTensors, with sharding rules that follow from the indices of steps.

An index that an output has may be cut over a mesh, one that is summed leaves partial sums; torch
cuts, gathers and adds up accordingly. Each rank runs the program of its part. Operators are made on
first use, and stay with the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.placement_types import Placement

from tncompiler.backends.numpy.threads import among_tensors
from tncompiler.binding import read_call
from tncompiler.compiler import Compilation
from tncompiler.crossing import enter, leave
from tncompiler.distributed.sharding import part_of, shardings_of
from tncompiler.ir.dtypes import LOW_PRECISION, dtype_name, is_differentiable
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.program import Program
from tncompiler.ir.sizes import substitute
from tncompiler.operators import NAMESPACE, Operator, apart, like, name_of, outputs_like, packed

Positions = tuple[int, ...]
Rule = Callable[..., list[tuple[list[Placement], list[Placement]]]]

_networks: dict[str, SpreadNetwork] = {}
_lock = threading.Lock()


def spread_of(
    compilation: Compilation, backend: str, describe: Callable[[], Mapping[str, Any]]
) -> SpreadNetwork:
    """The operators of a network on DTensors; networks of one structure share them."""
    name = name_of("spread", backend, describe)
    with _lock:
        if name not in _networks:
            _networks[name] = SpreadNetwork(name, compilation, backend)
    return _networks[name]


class SpreadNetwork:
    """Called with one DTensor for each leaf; first derivatives only."""

    def __init__(self, name: str, compilation: Compilation, backend: str) -> None:
        self.name, self.compilation, self.backend = name, compilation, backend
        self.count = len(compilation.ordered)
        self._runs: dict[object, Callable[..., Sequence[Tensor]]] = {}
        self._gradients: dict[Positions, Operator] = {}
        self._forward = self._register_forward()

    def __call__(self, *tensors: Tensor) -> Any:
        return self._forward(*tensors)

    # ---------------------------------------------------------------- programs

    def program(self, tensors: Sequence[Tensor], positions: Positions) -> Program:
        """The outputs, or the gradients by the leaves at some positions, of tensors like these."""
        compilation = self.compilation
        call = read_call(compilation, tensors, None)
        if not positions:
            return compilation.scheduled(call.dtypes, call.free)[0]
        wrt = tuple(compilation.ordered[k].name for k in positions)
        joint, count = compilation.cheapest_joint(call.dtypes, call.free, wrt)
        gradients = joint.with_steps(joint.steps, joint.outputs[count:])
        return drop_dead_steps(gradients)

    def _arguments(self, program: Program) -> list[int]:
        """Which of an operator's tensors each argument is: leaves by name, then cotangents."""
        names = {leaf.name: k for k, leaf in enumerate(self.compilation.ordered)}
        others = iter(range(self.count, self.count + len(program.arguments)))
        return [
            names[a.value.name] if a.value.name in names else next(others)
            for a in program.arguments
        ]

    def _run(self, positions: Positions, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """What this rank has of the results."""
        key = (positions, *((t.shape, t.dtype, t.device) for t in tensors))
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = self._make_run(positions, tensors)
        return run(*tensors)

    def _make_run(
        self, positions: Positions, tensors: Sequence[Tensor]
    ) -> Callable[..., Sequence[Tensor]]:
        program = self.program(self._whole(tensors), positions)
        read = self._arguments(program)
        lengths = {
            (argument.value.name, axis): tensors[k].shape[axis]
            for argument, k in zip(program.arguments, read, strict=True)
            for axis, size in enumerate(argument.value.shape)
            if isinstance(size, int) and size != tensors[k].shape[axis]
        }
        low = any(dtype_name(tensor.dtype) in LOW_PRECISION for tensor in tensors)
        backend = "torch" if self.backend == "auto" or low else self.backend
        run = self.compilation.executable(part_of(program, lengths), backend, "part").run
        if backend == "numpy":
            run = among_tensors(run)

        def results(*given: Tensor) -> list[Tensor]:
            arrays = enter([given[k] for k in read], backend)
            return apart(leave(run(*arrays), backend, arrays), given)

        return results

    def _whole(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors without data, of leaves' own sizes where these are known."""
        found = []
        for leaf, tensor in zip(self.compilation.ordered, tensors, strict=False):
            sizes = [substitute(size, self.compilation.binding) for size in leaf.shape]
            shape = [
                own if isinstance(own, int) else given
                for own, given in zip(sizes, tensor.shape, strict=True)
            ]
            found.append(torch.empty(shape, dtype=tensor.dtype, device="meta"))
        return found

    # ---------------------------------------------------------------- rules

    def _rule(self, positions: Positions) -> Rule:
        """What torch asks before a call: the placements of outputs, and of tensors, that go."""

        def rule(*specs: Any) -> list[tuple[list[Placement], list[Placement]]]:
            tensors = [
                torch.empty(spec.shape, dtype=spec.tensor_meta.dtype, device="meta")
                for spec in specs
            ]
            program = self.program(tensors[: self.count], positions)
            read = self._arguments(program)
            whole: tuple[list[Placement], list[Placement]] = (
                [Replicate() for _ in program.outputs],
                [Replicate() for _ in specs],
            )
            found = [whole]
            leaves = [self.compilation.ordered[k].name for k in positions]
            for one in shardings_of(program, dict(zip(program.outputs, leaves, strict=False))):
                given = list(whole[1])
                for k, axis in zip(read, one.arguments, strict=True):
                    given[k] = _placed(axis, False)
                made = [_placed(a, p) for a, p in zip(one.outputs, one.partial, strict=True)]
                found.append((made, given))
            return found

        return rule

    # ---------------------------------------------------------------- operators

    def _register_forward(self) -> Operator:
        def forward(*tensors: Tensor) -> Any:
            return packed(self._run((), tensors))

        def set_up(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
            ctx.save_for_backward(*inputs)

        def gradients(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
            tensors = ctx.saved_tensors
            needed = zip(tensors, ctx.needs_input_grad, strict=True)
            positions = tuple(
                k
                for k, (tensor, wanted) in enumerate(needed)
                if wanted and is_differentiable(dtype_name(tensor.dtype))
            )
            given = [_on_mesh(cotangent, tensors[0]) for cotangent in cotangents]
            made = self._gradient_operator(positions)(*tensors, *given)
            found = dict(zip(positions, [made] if len(positions) == 1 else made, strict=True))
            return tuple(found.get(k) for k in range(len(tensors)))

        def fake(*tensors: Tensor) -> Any:
            return outputs_like(self.compilation, tensors)

        count = len(self.compilation.outputs)
        made = self._register(self.name, forward, fake, (self.count, count), ())
        made.register_autograd(gradients, setup_context=set_up)
        return _overload(self.name)

    def _gradient_operator(self, positions: Positions) -> Operator:
        with _lock:
            if positions not in self._gradients:
                name = "_".join([self.name, "gradients", *map(str, positions)])
                given = self.count + len(self.compilation.outputs)
                self._register(
                    name,
                    lambda *tensors: packed(self._run(positions, tensors)),
                    lambda *tensors: packed([like(tensors[k]) for k in positions]),
                    (given, len(positions)),
                    positions,
                )
                self._gradients[positions] = _overload(name)
            return self._gradients[positions]

    def _register(
        self,
        name: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        counts: tuple[int, int],
        positions: Positions,
    ) -> Any:
        """Define an operator of so many tensors, with so many results, and its rule."""
        given = ", ".join(f"Tensor x{k}" for k in range(counts[0]))
        returned = "Tensor" if counts[1] == 1 else f"({', '.join(['Tensor'] * counts[1])})"
        made = torch.library.custom_op(
            f"{NAMESPACE}::{name}", run, mutates_args=(), schema=f"({given}) -> {returned}"
        )
        made.register_fake(fake)
        register_sharding(_overload(name))(self._rule(positions))  # type: ignore[arg-type]
        return made


def _overload(name: str) -> Operator:
    overload: Operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload


def _on_mesh(cotangent: Tensor, like: Any) -> Tensor:
    """The cotangent as a DTensor; torch makes plain zeros for outputs that nobody used."""
    if isinstance(cotangent, DTensor) or not isinstance(like, DTensor):
        return cotangent
    whole = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(cotangent, like.device_mesh, whole, run_check=False)


def _placed(axis: int | None, partial: bool) -> Placement:
    if partial:
        return Partial()
    return Replicate() if axis is None else Shard(axis)
