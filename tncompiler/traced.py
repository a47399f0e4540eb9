"""What torch.compile traces of a network: its aten program, planned for the call that is traced.

In the order that is best for a training step, if gradients are asked for, and at the sizes of the
call, compiled code keeps for the backward pass what eager code does. Where sizes stay free, one
plan serves all: that of the largest sizes that a network was traced at. The plan is made while
torch.compile traces, so that modules which are never compiled wait for nothing.
A program of some length is a region of its own, which is compiled once for all equal layers.

Equal networks have one name here, and a trace depends on no more of a module than that and its
tensors: equal layers share what is compiled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from sympy import Symbol
from torch import Tensor
from torch.fx.experimental import symbolic_shapes

from tncompiler.autograd import Flat
from tncompiler.binding import read_sizes
from tncompiler.compiler import Compilation, Executable
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.errors import ArraySizeClash, SizeEquationError
from tncompiler.ir.program import Contract, Map, Program
from tncompiler.planning.digest import program_digest
from tncompiler.planning.memory import is_view
from tncompiler.problem import NOMINAL

LEAST_STEPS = 4  # that move or compute data, of a program that is compiled apart
NO_LIMIT = 1 << 30  # of ways in which a region is called, beyond which torch raises

Shapes = tuple[tuple[int, ...], ...]
Sizes = dict[Symbol, int]
DTypes = tuple[torch.dtype, ...]

# questions that a trace answers without fixing a size: torch 2.6 has no such, and only later
# versions know the size of the call that they trace where others are to be allowed
has_static_value = getattr(symbolic_shapes, "has_static_value", lambda size: False)
optimization_hint = getattr(symbolic_shapes, "optimization_hint", None)

# copies of a module share its compilation and may have other dtypes, which are in the name
_named: WeakKeyDictionary[Compilation, set[str]] = WeakKeyDictionary()


def name_network(compilation: Compilation, default: str) -> str:
    """A name that a network has in common with those that are equal to it.

    ``default``: the dtype of leaves that declare none.
    """
    logical = program_digest(compilation.logical(compilation.default_dtypes(default)))
    plan = compilation.fixed_plan or compilation.options
    text = repr((logical, default, plan))
    name = blake2b(text.encode(), digest_size=12).hexdigest()
    _named.setdefault(compilation, set()).add(name)
    return name


def flat_program(compilation: Compilation, default: str, dtypes: DTypes) -> Flat:
    """The network's aten program for leaves of these dtypes and any sizes."""
    names = (default, *map(dtype_name, dtypes))
    return compilation.flat_executable(names, compilation.nominal({})).run


def traced_program(run: Flat, network: str, default: str, tensors: Sequence[Tensor]) -> Flat:
    """The program for a call that torch.compile traces; ``run``: one that the module holds."""
    able = torch.is_grad_enabled()
    wrt = tuple([k for k, tensor in enumerate(tensors) if able and tensor.requires_grad])
    dtypes = tuple([tensor.dtype for tensor in tensors])
    shapes: Shapes | None = None
    free = not all(has_static_value(size) for tensor in tensors for size in tensor.shape)
    if not free:
        shapes = tuple([tuple(tensor.shape) for tensor in tensors])
    elif optimization_hint is not None:
        shapes = tuple([tuple([optimization_hint(n, NOMINAL) for n in t.shape]) for t in tensors])
    name = prepare_planned(run, network, default, dtypes, wrt, shapes, free)
    planned: Flat = getattr(run, name)
    return planned


def program_of_dtypes(run: Flat, network: str, default: str, tensors: Sequence[Tensor]) -> Flat:
    """The flat program for dtypes that are new to a trace, as under autocast."""
    dtypes = tuple([tensor.dtype for tensor in tensors])
    other: Flat = getattr(run, prepare_dtypes(run, network, default, dtypes))
    return other


# ---------------------------------------------------------------------------- while a trace waits

# torch.compile calls what is marked here where it meets it, instead of looking inside. It gives
# constants alone, and looks attributes of functions up when it comes to them; a dict would be as it
# was when the trace first read it. So other programs of a network are attributes of the one that
# its modules hold.


def prepare_planned(
    run: Flat,
    network: str,
    default: str,
    dtypes: DTypes,
    wrt: tuple[int, ...],
    shapes: Shapes | None,
    free: bool = False,
) -> str:
    """The attribute that holds the program planned for gradients by the leaves at `wrt`.

    ``shapes``: of the leaves, if they are known; ``free``: whether it will also be called at other
    sizes, so that it is planned for the largest that this network was traced at.
    """
    compilation = _of_name(network)
    sizes = _sizes_of(compilation, shapes, free)
    if free:
        sizes = _largest(run, (network, dtypes, wrt), sizes)

    def make() -> Flat:
        names = (default, *map(dtype_name, dtypes))
        leaves = tuple(compilation.ordered[k].name for k in wrt)
        return _region(compilation.flat_executable(names, sizes, leaves))

    return _attribute(run, (network, dtypes, wrt, tuple(sizes.items())), make)


def _sizes_of(compilation: Compilation, shapes: Shapes | None, free: bool) -> Sizes:
    """The free sizes of a network in a trace, or stand-ins."""
    sizes = compilation.nominal({})
    if shapes is None:
        return sizes
    try:
        known = read_sizes(compilation, shapes)
    except (ArraySizeClash, SizeEquationError):
        if not free:
            raise
        return sizes  # shapes that follow from data are guessed, and need not fit
    return {symbol: known[symbol] for symbol in sizes}


def _largest(run: Any, key: tuple[object, ...], sizes: Sizes) -> Sizes:
    """Each of these sizes, or what was larger in a trace before: a last, shorter batch is often
    what tells torch.compile that sizes change."""
    traced = [dict(found[-1]) for found in _attributes(run) if found[:-1] == key]
    return {s: max([size, *(before[s] for before in traced)]) for s, size in sizes.items()}


def prepare_dtypes(run: Flat, network: str, default: str, dtypes: DTypes) -> str:
    """The attribute that holds the program for leaves of these dtypes and any sizes."""
    return _attribute(
        run, (network, dtypes), lambda: flat_program(_of_name(network), default, dtypes)
    )


# what torch.compiler.assume_constant_result sets, after loading a compiler that few need
prepare_planned._dynamo_marked_constant = True  # type: ignore[attr-defined]
prepare_dtypes._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _of_name(network: str) -> Compilation:
    """A network of that name: that which is being traced, or one that is equal to it."""
    return next(compilation for compilation, names in _named.items() if network in names)


def _attributes(run: Any) -> dict[Any, str]:
    """The names of a function's attributes by what belongs to them."""
    found: dict[Any, str] = run.__dict__.setdefault("attributes", {})
    return found


def _attribute(run: Any, key: object, make: Callable[[], Flat]) -> str:
    """The attribute of a function that holds what belongs to a key, made at first."""
    attributes = _attributes(run)
    if key not in attributes:
        name = f"other{len(attributes)}"
        setattr(run, name, make())
        attributes[key] = name
    return attributes[key]


# ---------------------------------------------------------------------------- regions


def _region(executable: Executable) -> Flat:
    """The program as a region, if it is to be one and torch takes it in any number of ways."""
    mark = getattr(torch.compiler, "nested_compile_region", None)  # since torch 2.8
    if mark is None or not is_region(executable.program):
        return executable.run
    if "max_reuse_entries" not in inspect.signature(mark).parameters:
        return executable.run
    region: Flat = mark(executable.run, max_reuse_entries=NO_LIMIT)
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
    """The value that an output is made of without arithmetic, if a product, sum or map made it."""
    while (step := program.producers.get(name)) is not None:
        match step.op:
            case Contract(inputs, output) if len(inputs) > 1 or {*chain(*inputs)} - {*output}:
                return name
            case Map(function) if function != "stop":
                return name
        if len(step.operands) != 1:
            return None
        (name,) = step.operands
    return None
