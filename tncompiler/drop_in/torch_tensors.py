"""einsum on torch tensors: one compiled module for each equation, shapes and dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tncompiler.compiler import Compilation
from tncompiler.drop_in.einsum import described
from tncompiler.ir.dtypes import dtype_name, kind
from tncompiler.ir.equation import Form, resolve, terms_of
from tncompiler.ir.errors import ArgumentError, DTypeError, ShapeError
from tncompiler.ir.interchange.equations import expression_of
from tncompiler.module import CompiledModule
from tncompiler.planning.options import PlanOptions

CACHED = 1024


def run(
    form: Form,
    tensors: Sequence[Tensor],
    options: PlanOptions | None,
    backend: str,
    out: Tensor | None,
    dtype: Any,
) -> Tensor:
    """The result, differentiable. Raises what `tncompiler.einsum` lists."""
    target = None if dtype is None else dtype_name(dtype)
    if torch.compiler.is_compiling():
        result = _run_traced(form, tensors, options, backend, target)
        return result if out is None else _copied(result, out)
    devices = {tensor.device for tensor in tensors}
    autocasts = len(devices) == 1 and _autocasts(devices.pop().type)
    if autocasts and target is None:
        tensors = _autocast(form, tensors)
    shapes = tuple([tensor.shape for tensor in tensors])
    dtypes = tuple([tensor.dtype for tensor in tensors])
    module, flat = _compiled(form, shapes, dtypes, options, backend, target)
    if flat is not None and not autocasts and len({tensor.device for tensor in tensors}) == 1:
        (result,) = flat(*tensors)
    else:
        result = module.forward(*tensors)
    return result if out is None else _copied(result, out)


def _run_traced(
    form: Form,
    tensors: Sequence[Tensor],
    options: PlanOptions | None,
    backend: str,
    target: str | None,
) -> Tensor:
    """The result inside of what torch.compile traces, which is compiled anew for other shapes."""
    device = tensors[0].device.type
    if target is None and _autocasts(device) and sums(form, len(tensors)):
        tensors = [_cast(tensor, torch.get_autocast_dtype(device)) for tensor in tensors]
    shapes = tuple([tuple([fixed(size) for size in tensor.shape]) for tensor in tensors])
    dtypes = tuple([tensor.dtype for tensor in tensors])
    module = getattr(Traced, prepare(form, shapes, dtypes, options, backend, target))
    result: Tensor = module(*tensors)
    return result


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _autocast(form: Form, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """What autocast casts in a sum of products, as torch.einsum: floats, but never float64."""
    if not sums(form, len(tensors)):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return [_cast(tensor, dtype) for tensor in tensors]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    able = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if able else tensor


def sums(form: Form, count: int) -> bool:
    """Whether an equation of so many operands sums products, and does not only rearrange."""
    terms, output = terms_of(form, count)
    counts = Counter(label for term in terms for label in term if label is not ...)
    kept = {k for k, n in counts.items() if n == 1} if output is None else set(output)
    return count > 1 and not set(counts) <= kept


def _copied(result: Tensor, out: Any) -> Tensor:
    if not isinstance(out, Tensor) or out.shape != result.shape:
        raise ShapeError(
            f"out is {described(out)}, but the result has shape {tuple(result.shape)}",
            fix="give a tensor of the result's shape",
        )
    if not torch.can_cast(result.dtype, out.dtype):
        raise DTypeError(
            f"out has dtype {out.dtype}, which a result of {result.dtype} does not fit",
            fix="give out= the result's dtype",
        )
    try:
        return out.copy_(result)
    except RuntimeError as error:  # a leaf of autograd, or several elements in one place
        raise ArgumentError(f"out cannot be written: {error}", fix="give a new tensor") from None


@lru_cache(maxsize=CACHED)
def _compiled(
    form: Form,
    shapes: tuple[torch.Size, ...],
    dtypes: tuple[torch.dtype, ...],
    options: PlanOptions | None,
    backend: str,
    dtype: str | None,
) -> tuple[CompiledModule, Any]:
    """The module, and its flat aten function where that is what a call should run anyway."""
    equation = resolve(*terms_of(form, len(shapes)), [tuple(shape) for shape in shapes])
    if dtype is None and len(set(dtypes)) > 1:
        dtype = dtype_name(promoted(shapes, dtypes))
    expr = expression_of(equation, [dtype_name(own) for own in dtypes], dtype)
    module = CompiledModule(
        Compilation(expr, None, {}, options if len(shapes) > 1 else None), backend=backend
    )
    return module, module.flat_if_small(dtypes)


class Traced:
    """Holds as attributes the modules that traces of torch.compile have asked for."""


def prepare(
    form: Form,
    shapes: tuple[tuple[int, ...], ...],
    dtypes: tuple[torch.dtype, ...],
    options: PlanOptions | None,
    backend: str,
    dtype: str | None,
) -> str:
    """The attribute of `Traced` that holds the module; see `tncompiler.traced`."""
    sizes = tuple(torch.Size(shape) for shape in shapes)
    module, _ = _compiled(form, sizes, dtypes, options, backend, dtype)
    name = f"module{id(module)}"
    setattr(Traced, name, module)
    return name


def fixed(size: int) -> int:
    """The number itself, for which a trace is compiled anew if it was free."""
    return len(range(size))


# what torch.compiler.assume_constant_result sets, after loading a compiler that few need
prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]
sums._dynamo_marked_constant = True  # type: ignore[attr-defined]


def promoted(shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """torch.result_type of several tensors: those without axes only decide the kind of number."""
    groups: dict[bool, torch.dtype] = {}
    for shape, own in zip(shapes, dtypes, strict=True):
        has_axes = len(shape) > 0
        groups[has_axes] = torch.promote_types(groups.get(has_axes, own), own)
    if len(groups) == 1:
        return groups.popitem()[1]
    scalar, full = groups[False], groups[True]
    order = ("bool", "int", "float", "complex")
    ranks = [order.index(kind(dtype_name(own))) for own in (scalar, full)]
    if ranks == [3, 2]:  # as exact as the tensors with axes
        return torch.promote_types(full, torch.complex64)
    return torch.promote_types(scalar, full) if ranks[0] > ranks[1] else full
