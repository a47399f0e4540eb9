"""What torch.compile traces of a network: its aten program, planned for the call that is traced.

In the order that is best for a training step, if gradients are asked for, and at the sizes of the
call where these are numbers, compiled code keeps for the backward pass what eager code does. The
plan is made while torch.compile traces, so that modules which are never compiled wait for nothing.
A program of some length is a region of its own, which is compiled once for all equal layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx.experimental import symbolic_shapes

from tncompiler.autograd import Flat
from tncompiler.binding import read_sizes
from tncompiler.compiler import Compilation
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.program import Contract, Map, Program
from tncompiler.planning.memory import is_view

LEAST_STEPS = 4  # that move or compute data, of a program that is compiled apart
NO_LIMIT = 1 << 30  # of ways in which a region is called, beyond which torch raises

Shapes = tuple[tuple[int, ...], ...]

# a question that a trace answers without fixing a size; torch 2.6 has no such
has_static_value = getattr(symbolic_shapes, "has_static_value", lambda size: False)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a flat program was made of.

    ``dtypes``: the default, then one for each leaf; ``others``: attributes of the program that hold
    others of the same network, by what these were made for.
    """

    compilation: Compilation
    dtypes: tuple[str, ...]
    others: dict[object, str] = field(default_factory=dict)


def flat_program(compilation: Compilation, dtypes: tuple[str, ...]) -> Flat:
    """The network's aten program for any sizes, which knows where it comes from.

    Equal networks share it, and what is traced must depend on no more than that: they are
    compiled once.
    """
    run: Flat = compilation.flat_executable(dtypes, compilation.nominal({})).run
    if not hasattr(run, "origin"):
        run.origin = Origin(compilation, dtypes)  # type: ignore[attr-defined]
    return run


def traced_program(run: Flat, tensors: Sequence[Tensor]) -> Flat:
    """The program for a call that torch.compile traces."""
    able = torch.is_grad_enabled()
    wrt = tuple([k for k, tensor in enumerate(tensors) if able and tensor.requires_grad])
    known = all(has_static_value(size) for tensor in tensors for size in tensor.shape)
    shapes = tuple([tuple(tensor.shape) for tensor in tensors]) if known else None
    planned: Flat = getattr(run, prepare(run, wrt, shapes))
    return planned


def program_of_dtypes(run: Flat, dtypes: tuple[torch.dtype, ...]) -> Flat:
    """The flat program for dtypes that are new to a trace, as under autocast."""
    other: Flat = getattr(run, prepare_dtypes(run, dtypes))
    return other


# torch.compile calls what is marked below where it meets it, instead of looking inside, and looks
# attributes up when it comes to them. A dict would be as it was when the trace first read it.


def prepare(run: Flat, wrt: tuple[int, ...], shapes: Shapes | None) -> str:
    """The attribute of a flat program that holds it planned for gradients by leaves at `wrt`."""
    return _attribute(run, (wrt, shapes), lambda origin: _planned(origin, wrt, shapes))


def prepare_dtypes(run: Flat, dtypes: tuple[torch.dtype, ...]) -> str:
    """The attribute of a flat program that holds that of the same network in other dtypes."""

    def make(origin: Origin) -> Flat:
        names = (origin.dtypes[0], *(dtype_name(dtype) for dtype in dtypes))
        return flat_program(origin.compilation, names)

    return _attribute(run, dtypes, make)


def _attribute(run: Flat, key: object, make: Callable[[Origin], Flat]) -> str:
    origin: Origin = run.origin  # type: ignore[attr-defined]
    if key not in origin.others:
        name = f"other{len(origin.others)}"
        setattr(run, name, make(origin))
        origin.others[key] = name
    return origin.others[key]


def _planned(origin: Origin, wrt: tuple[int, ...], shapes: Shapes | None) -> Flat:
    compilation, dtypes = origin.compilation, origin.dtypes
    sizes = compilation.nominal({})
    if shapes is not None:
        known = read_sizes(compilation, shapes)
        sizes = {symbol: known[symbol] for symbol in sizes}
    names = tuple(compilation.ordered[k].name for k in wrt)
    executable = compilation.flat_executable(dtypes, sizes, names)
    return marked(executable.run) if is_region(executable.program) else executable.run


def marked(run: Flat) -> Flat:
    """The program as a region: the same program where torch knows none, as before 2.8."""
    mark = getattr(torch.compiler, "nested_compile_region", None)
    if mark is None:
        return run
    limited = "max_reuse_entries" in inspect.signature(mark).parameters
    region: Flat = mark(run, **({"max_reuse_entries": NO_LIMIT} if limited else {}))
    return region


def is_region(program: Program) -> bool:
    """Whether torch.compile should compile a program apart from what surrounds it.

    Only programs of some length: what is apart is not fused with what surrounds it. And only where
    every output is made by a step of its own, since a region's results may share no memory with its
    arguments or each other.
    """
    if sum(not is_view(step) for step in program.steps) < LEAST_STEPS:
        return False
    makers = [_maker(program, name) for name in program.outputs]
    return all(makers) and len(set(makers)) == len(makers)


def _maker(program: Program, name: str) -> str | None:
    """The value that an output is made of without arithmetic, if a product or map made that."""
    while (step := program.producers.get(name)) is not None:
        match step.op:
            case Contract(inputs) if len(inputs) > 1:
                return name
            case Map(function) if function != "stop":
                return name
        if len(step.operands) != 1:
            return None
        (name,) = step.operands
    return None


# what torch.compiler.assume_constant_result sets, after loading a compiler that few need
prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]
prepare_dtypes._dynamo_marked_constant = True  # type: ignore[attr-defined]
