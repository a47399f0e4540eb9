"""What torch.compile traces of a network that is to be trained: its aten program in the order that
is best for a training step, at the sizes of the call where these are numbers.

Compiled code then keeps for the backward pass what eager code does. The program that a trace starts
from is of one order for all uses; this one is planned while torch.compile traces, so that modules
which are never compiled wait for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx.experimental import symbolic_shapes

from tncompiler.autograd import Flat
from tncompiler.binding import read_call
from tncompiler.compiler import Compilation

Shapes = tuple[tuple[int, ...], ...]

# a question that a trace answers without fixing a size; torch 2.6 has no such
has_static_value = getattr(symbolic_shapes, "has_static_value", lambda size: False)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a flat program was made of.

    ``dtypes``: the default, then one for each leaf; ``steps``: attributes of the program that hold
    those planned for a step, by what they were planned for.
    """

    compilation: Compilation
    dtypes: tuple[str, ...]
    steps: dict[object, str] = field(default_factory=dict)


def flat_program(compilation: Compilation, dtypes: tuple[str, ...]) -> Flat:
    """The network's aten program for any sizes, which knows where it comes from.

    Equal networks share it, and what is traced must depend on no more than that: they are
    compiled once.
    """
    run: Flat = compilation.flat_executable(dtypes, compilation.nominal({})).run
    if not hasattr(run, "origin"):
        run.origin = Origin(compilation, dtypes)  # type: ignore[attr-defined]
    return run


def step_program(run: Flat, tensors: Sequence[Tensor]) -> Flat:
    """The program for a call that is traced: planned for its gradients, if some are asked for."""
    wrt = tuple([k for k, tensor in enumerate(tensors) if tensor.requires_grad])
    if not wrt or not torch.is_grad_enabled():
        return run
    known = all(has_static_value(size) for tensor in tensors for size in tensor.shape)
    shapes = tuple([tuple(tensor.shape) for tensor in tensors]) if known else None
    planned: Flat = getattr(run, prepare_step(run, wrt, shapes))
    return planned


def prepare_step(run: Flat, wrt: tuple[int, ...], shapes: Shapes | None) -> str:
    """The attribute of a flat program that holds it ordered for gradients by the leaves at `wrt`.

    torch.compile calls this where it meets it instead of looking inside, and looks attributes up
    when it comes to them.
    """
    origin: Origin = run.origin  # type: ignore[attr-defined]
    key = (wrt, shapes)
    if key not in origin.steps:
        name = f"step{len(origin.steps)}"
        setattr(run, name, _planned(origin, wrt, shapes))
        origin.steps[key] = name
    return origin.steps[key]


def _planned(origin: Origin, wrt: tuple[int, ...], shapes: Shapes | None) -> Flat:
    compilation, dtypes = origin.compilation, origin.dtypes
    sizes = compilation.nominal({})
    if shapes is not None:
        like = [
            torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for shape, dtype in zip(shapes, dtypes[1:], strict=True)
        ]
        sizes = read_call(compilation, like, dtypes[0]).free
    names = tuple(compilation.ordered[k].name for k in wrt)
    return compilation.flat_executable(dtypes, sizes, names).run


# what torch.compiler.assume_constant_result sets, after loading a compiler that few need
prepare_step._dynamo_marked_constant = True  # type: ignore[attr-defined]
