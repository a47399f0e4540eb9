"""Networks as operators of torch, for code that torch.compile traces.

In: a compilation and the backend that its module asks for. Out: an operator of as many tensors as
the network has leaves, with a fake implementation, a gradient, and C-contiguous outputs. Networks
of one structure share one operator.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tncompiler.autograd import Specialisation
from tncompiler.backends.torch.tracing import is_exporting, transforms
from tncompiler.binding import read_call
from tncompiler.compiler import Compilation
from tncompiler.crossing import enter, leave
from tncompiler.ir.dtypes import DEFAULT, LOW_PRECISION, dtype_name, is_differentiable
from tncompiler.ir.errors import GradientError
from tncompiler.second_pass import refuse_second_pass

NAMESPACE = "tncompiler"
MOST = 256  # operators, each of which takes 0.1 MB
MOST_LEAVES = 64  # that torch lets an operator have
OPAQUE = ("numpy", "triton")  # backends that torch cannot look into

Operator = Callable[..., Any]

_operators: dict[str, Operator] = {}
_lock = threading.Lock()


def is_traced() -> bool:
    """Whether torch.compile traces, and nothing but first derivatives is asked of what it finds:
    an operator has no other. An export must run where this package is not."""
    if not torch.compiler.is_compiling() or is_exporting():
        return False
    return transforms() == 0 and forward_ad._current_level < 0


def operator_of(
    compilation: Compilation, backend: str, describe: Callable[[], Mapping[str, Any]]
) -> Operator | None:
    """The operator of a network; None where torch can look inside, or there is nothing to read.

    ``describe`` says what makes two networks the same. An operator stays with the process, so there
    are no more than MOST; networks beyond, and of more leaves than MOST_LEAVES, are traced as aten
    operations.
    """
    if backend not in OPAQUE or compilation.stabilized:
        return None
    if not 0 < len(compilation.ordered) <= MOST_LEAVES:
        return None
    name = name_of("network", backend, describe)
    with _lock:
        if name not in _operators and len(_operators) >= MOST:
            return None
        if name not in _operators:
            _operators[name] = _register(name, _Network(compilation, backend))
    return _operators[name]


def name_of(kind: str, backend: str, describe: Callable[[], Mapping[str, Any]]) -> str:
    """What the operator of a network is called, the same for networks of one structure."""
    text = json.dumps([backend, describe()], sort_keys=True, default=str)
    return f"{kind}_{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"


@dataclass
class _Network:
    """What an operator runs: programs by shapes, dtypes and the leaves that gradients are for."""

    compilation: Compilation
    backend: str
    specialisations: dict[object, Specialisation] = field(default_factory=dict)

    def specialise(self, tensors: Sequence[Tensor], positions: Sequence[int]) -> Specialisation:
        key = (*((t.shape, t.dtype, t.device) for t in tensors), *positions)
        found = self.specialisations.get(key)
        if found is None:
            call = read_call(self.compilation, tensors, None)
            wrt = tuple(self.compilation.ordered[k].name for k in positions)
            on_cpu = all(t.device.type == "cpu" for t in tensors)
            able = on_cpu and not set(LOW_PRECISION) & set(call.dtypes)
            backend = self.backend if self.backend != "numpy" or able else "torch"
            found = Specialisation(self.compilation, call, wrt, backend, on_cpu=on_cpu)
            self.specialisations[key] = found
        return found

    def forward(self, *tensors: Tensor) -> Any:
        spec = self.specialise(tensors, ())
        return packed(apart(spec.results(tensors), tensors))

    def backward(self, positions: Sequence[int], given: Sequence[Tensor]) -> list[Tensor]:
        """Gradients by the leaves at `positions`; intermediates are made again."""
        refuse_second_pass(self.no_second)
        count = len(self.compilation.ordered)
        tensors, cotangents = given[:count], given[count:]
        spec = self.specialise(tensors, positions)
        results = spec.forward(*enter(tensors, spec.backend)) if spec.pair.programs.saved else ()
        saved = results[spec.pair.output_count :]
        read = [tensors[position] for position in spec.read]
        values = [*enter(read, spec.backend), *saved, *enter(cotangents, spec.backend)]
        return apart(leave(spec.backward(*values), spec.backend, values), given)

    def fake(self, *tensors: Tensor) -> Any:
        return outputs_like(self.compilation, tensors)

    def no_second(self) -> GradientError:
        return GradientError(
            "torch.compile runs this network as an operator, which has no second derivatives",
            where=self.compilation.place(),
            fix="take them of the module itself, or compile the function that takes them "
            "(torch.func.grad inside)",
        )


def outputs_like(compilation: Compilation, tensors: Sequence[Tensor]) -> Any:
    """Outputs without data, by the flat aten program."""
    dtypes = tuple(dtype_name(t.dtype) for t in tensors)
    default = _default_dtype(compilation, dtypes)
    run = compilation.flat_executable((default, *dtypes), compilation.nominal({})).run
    return packed([like(output) for output in run(*tensors)])


def _default_dtype(compilation: Compilation, dtypes: Sequence[str]) -> str:
    """The dtype of leaves that declare none."""
    undecided = [
        d for leaf, d in zip(compilation.ordered, dtypes, strict=True) if leaf.dtype == DEFAULT
    ]
    return undecided[0] if undecided else "float32"


def packed(outputs: Sequence[Tensor]) -> Any:
    """As an operator returns them: one tensor alone is not in a tuple."""
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def apart(results: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Results in memory of their own, from its start and in C order: outputs are no views."""
    taken = {t.untyped_storage().data_ptr() for t in given}
    made = []
    for result in results:
        storage = result.untyped_storage().data_ptr()
        begins = result.is_contiguous() and not result.storage_offset()
        alone = storage not in taken and begins
        made.append(result if alone else result.clone(memory_format=torch.contiguous_format))
        taken.add(storage)
    return made


# ---------------------------------------------------------------------------- registration


def _register(name: str, network: _Network) -> Operator:
    """Define the operator and that of its gradients."""
    leaves = network.compilation.ordered
    count = len(network.compilation.outputs)
    given = ", ".join(f"Tensor x{k}" for k in range(len(leaves)))
    returned = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
    forward = torch.library.custom_op(
        f"{NAMESPACE}::{name}",
        network.forward,
        mutates_args=(),
        schema=f"({given}) -> {returned}",
    )
    backward = torch.library.custom_op(
        f"{NAMESPACE}::{name}_backward",
        network.backward,
        mutates_args=(),
        schema="(int[] positions, Tensor[] given) -> Tensor[]",
    )

    def refuse(ctx: Any, *_: Any) -> None:
        raise network.no_second()

    backward.register_autograd(refuse)
    forward.register_fake(network.fake)
    backward.register_fake(lambda positions, given: [like(given[k]) for k in positions])

    def set_up(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    def gradients(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        able = [is_differentiable(dtype_name(t.dtype)) for t in tensors]
        positions = [k for k in range(len(tensors)) if ctx.needs_input_grad[k] and able[k]]
        made = iter(backward(positions, [*tensors, *cotangents]))
        return tuple(next(made) if k in positions else None for k in range(len(tensors)))

    forward.register_autograd(gradients, setup_context=set_up)
    overload: Operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload
