"""einsum for people who have arrays and an equation: parse, compile once per shapes, run.

The arithmetic is that of generated code; a second call with the same shapes finds it in a cache of
bounded size.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tncompiler.compiler import Compilation, Executable
from tncompiler.drop_in.optimize import read_optimize
from tncompiler.ir.dtypes import DEFAULT, DTYPES, dtype_name
from tncompiler.ir.equation import Form, resolve, split_operands, terms_of
from tncompiler.ir.errors import (
    ArgumentError,
    BackendError,
    DTypeError,
    EquationError,
    ShapeError,
)
from tncompiler.ir.interchange.equations import expression_of
from tncompiler.planning.options import PlanOptions

BACKENDS = ("auto", "numpy", "torch")
_CACHED = 1024  # compiled equations that are kept
_NUMPYS_OWN = "Ofc"  # kinds of objects and extended precision, where they are none of our dtypes
_NOT_NUMPYS = ("bfloat16", DEFAULT)


def einsum(
    *operands: Any,
    backend: str = "auto",
    optimize: Any = "auto",
    out: Any = None,
    dtype: Any = None,
    order: str = "K",
    casting: str = "safe",
    memory_limit: Any = None,
    use_blas: bool = True,
) -> Any:
    """The sum of products that an equation says: `einsum("ij,jk->ik", a, b)`.

    Takes what numpy.einsum and opt_einsum.contract take: implicit output, "...", operands
    interleaved with lists of labels, repeated labels, axes of size 1 that broadcast, any characters
    and any number of them. Arrays are NumPy's or torch's, the result is of the same kind, and
    differentiable in torch. Mixed dtypes are promoted as their library does; integers and booleans
    give what NumPy gives; float16 and bfloat16 are summed in float32; object arrays go to
    numpy.einsum. As numpy.einsum's, a result that only rearranges its operand is a view of it.

    ``backend``: "auto", or for torch tensors also "numpy" or "torch". ``optimize``: a name that
    NumPy or opt_einsum knows, a path, a function that finds one, a plan, or a `PlanOptions`.
    ``out`` and ``dtype`` are as NumPy's; ``order`` and ``casting`` are NumPy's and for its arrays
    only; ``memory_limit`` is bytes that a call may allocate, or text such as "2GiB" (opt_einsum
    counts elements; None or -1: no limit); ``use_blas`` has no effect.

    Raises: EquationError, ArgumentError, ArgumentCountError, ShapeError, SizeClash,
    UnknownOutputIndex, RepeatedOutputIndex, DTypeError, DeviceError, BackendError, PlanError; each
    says where and how to mend it.
    """
    form: Form
    if operands and type(operands[0]) is str:
        form, arrays = operands[0], operands[1:]
    else:
        terms, output, arrays = split_operands(operands)
        form = (terms, output)
    options = None
    if memory_limit is not None or not isinstance(optimize, str) or optimize != "auto":
        options = read_optimize(optimize, memory_limit)
    if out is None and dtype is None and order == "K" and casting == "safe":
        return compute(form, arrays, options, backend)
    return compute(form, arrays, options, backend, out, dtype, order, casting)


def compute(
    form: Form,
    arrays: Sequence[Any],
    options: PlanOptions | None,
    backend: str,
    out: Any = None,
    dtype: Any = None,
    order: str = "K",
    casting: str = "safe",
) -> Any:
    """`einsum` of an equation that is parsed, with options that are read."""
    kinds = set(map(type, arrays))
    as_is = order == "K" and casting == "safe"
    plain = as_is and out is None and dtype is None and backend in ("auto", "numpy")
    if plain and kinds == {np.ndarray}:
        return _run_numpy(form, arrays, options, None)
    if _are_tensors(kinds):
        check_backend(backend, BACKENDS, "torch tensors")
        from tncompiler.drop_in import torch_tensors

        if not as_is:
            raise ArgumentError(
                "order= and casting= are for NumPy arrays only",
                fix="leave them out, and use .contiguous() or .to(dtype) on the tensors",
            )
        return torch_tensors.run(form, arrays, options, backend, out, dtype)
    check_backend(backend, ("auto", "numpy"), "NumPy arrays")
    arrays = tuple(_as_array(position, array) for position, array in enumerate(arrays))
    _check_order(order)
    target = None
    if dtype is not None or casting != "safe":
        target = _checked_cast(arrays, dtype, casting)
    result = _run_numpy(form, arrays, options, target)
    if out is not None:
        return _written(result, out, casting)
    return result if np.ndim(result) == 0 else _laid_out(result, arrays, order)


def _are_tensors(kinds: set[type]) -> bool:
    """Whether the operands are torch's, which is imported then already; a mixture is refused."""
    if not any(hasattr(kind, "__torch_function__") for kind in kinds):
        return False
    import torch

    return _all_of(torch.Tensor, kinds)


def _all_of(kind: type, kinds: set[type]) -> bool:
    """Whether the operands' types are all of a kind; a mixture is refused."""
    others = [other for other in kinds if not issubclass(other, kind)]
    if others and len(others) < len(kinds):
        raise ArgumentError(
            f"torch tensors and a {others[0].__name__} stand in one einsum",
            fix="convert all of them: torch.as_tensor(…) or tensor.numpy()",
        )
    return not others


def _as_array(position: int, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            f"operand {position} is no array: {error}", fix="give a NumPy array or torch tensor"
        ) from None


def check_backend(backend: Any, valid: tuple[str, ...], what: str) -> None:
    if not isinstance(backend, str) or backend not in valid:
        raise BackendError(
            f"backend {backend!r} does not run on {what}", fix=f"choose one of {', '.join(valid)}"
        )


def _checked_cast(arrays: Sequence[np.ndarray], dtype: Any, casting: str) -> str:
    """The dtype to compute in, which the operands may be cast to."""
    try:
        np.can_cast("f4", "f8", casting)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        rules = "'no', 'equiv', 'safe', 'same_kind' or 'unsafe'"
        raise ArgumentError(f"casting is {casting!r:.40}", fix=f"choose {rules}") from None
    for position, array in enumerate(arrays):
        _name_of(position, array.dtype)
    target = np.result_type(*arrays) if dtype is None else _numpy_dtype(dtype)
    for position, array in enumerate(arrays):
        if not np.can_cast(array.dtype, target, casting):  # type: ignore[arg-type]
            raise DTypeError(
                f"operand {position} has dtype {array.dtype}, which {casting!r} casting does not "
                f"make {target.name}",
                fix="choose a wider dtype=, or casting='unsafe'",
            )
    return target.name


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """What `dtype=` names: a dtype of ours that NumPy has, or one that only it computes with."""
    own: np.dtype[Any] | None
    try:
        own = np.dtype(dtype)
    except Exception:  # whatever NumPy makes of it, and it parses text: torch's, or no dtype
        own = None
    if own is not None and (own.name in DTYPES or own.kind in _NUMPYS_OWN):
        return own
    name = dtype_name(dtype)
    if name in _NOT_NUMPYS:
        raise DTypeError(f"NumPy has no dtype {name!r}", fix="choose float32, or use torch tensors")
    return np.dtype(name)


def _check_order(order: Any) -> None:
    if not isinstance(order, str) or order.upper() not in ("K", "A", "C", "F"):
        raise ArgumentError(f"order is {order!r:.40}", fix="choose 'C', 'F', 'A' or 'K'")


def _laid_out(result: np.ndarray, arrays: Sequence[np.ndarray], order: str) -> np.ndarray:
    """The result in the memory order that is asked for; any is "K"."""
    wanted = order.upper()
    if wanted == "A":
        wanted = "F" if all(array.flags.f_contiguous for array in arrays) else "C"
    return result if wanted == "K" else np.asarray(result, order=wanted)  # type: ignore[call-overload]


def _written(result: np.ndarray, out: Any, casting: str) -> np.ndarray:
    """`out`, holding the result."""
    if not isinstance(out, np.ndarray) or out.shape != np.shape(result):
        shape, name = np.shape(result), np.asarray(result).dtype.name
        raise ShapeError(
            f"out is {described(out)}, but the result has shape {shape}",
            fix=f"give out=np.empty({shape}, dtype={name!r})",
        )
    if not out.flags.writeable:
        raise ArgumentError("out is read-only", fix="give an array that can be written")
    try:
        np.copyto(out, result, casting=casting)  # type: ignore[arg-type]
    except TypeError:
        raise DTypeError(
            f"out has dtype {out.dtype}, which a result of {np.asarray(result).dtype} does not fit",
            fix="give out= the result's dtype, or casting='unsafe'",
        ) from None
    return out


def described(value: Any) -> str:
    """What was given as out=, in a few words."""
    kind = type(value).__name__
    return f"a {kind} of shape {tuple(value.shape)}" if hasattr(value, "shape") else f"a {kind}"


# ---------------------------------------------------------------------------- NumPy


def _run_numpy(
    form: Form,
    arrays: Sequence[np.ndarray],
    options: PlanOptions | None,
    dtype: str | None,
) -> np.ndarray:
    shapes = tuple([array.shape for array in arrays])
    dtypes = tuple([array.dtype for array in arrays])
    executable = _numpy_executable(form, shapes, dtypes, options, dtype)
    if executable is None:
        return _delegated(form, arrays, dtype)
    (result,) = executable.loaded.run(*arrays)
    if not result.ndim:
        return result[()]  # type: ignore[no-any-return]  # a scalar, as NumPy gives
    # a new array object, as NumPy gives
    return result if executable.program.steps else result.view()  # type: ignore[no-any-return]


@lru_cache(maxsize=_CACHED)
def _numpy_executable(
    form: Form,
    shapes: tuple[tuple[int, ...], ...],
    dtypes: tuple[np.dtype[Any], ...],
    options: PlanOptions | None,
    dtype: str | None,
) -> Executable | None:
    """The code for these shapes and dtypes; None where NumPy's own einsum must do it."""
    equation = resolve(*terms_of(form, len(shapes)), shapes)
    names = [_name_of(position, own) for position, own in enumerate(dtypes)]
    if any(name is None for name in names) or not (dtype is None or dtype in DTYPES):
        return None
    expr = expression_of(equation, [str(name) for name in names], dtype)
    compilation = Compilation(expr, None, {}, options if len(shapes) > 1 else None, library="numpy")
    return compilation.inference_executable(compilation.default_dtypes("float32"), {}, "numpy")


def _name_of(position: int, dtype: np.dtype[Any]) -> str | None:
    """Our name of a dtype; None for numbers that only NumPy computes with."""
    if dtype.name in DTYPES:
        return dtype.name
    if dtype.kind in _NUMPYS_OWN:
        return None
    raise DTypeError(
        f"operand {position} has dtype {dtype}, which cannot be multiplied",
        fix="convert it to numbers with .astype(…)",
    )


def _delegated(form: Form, arrays: Sequence[np.ndarray], dtype: str | None) -> np.ndarray:
    """numpy.einsum, for objects and extended precision."""
    equation = resolve(*terms_of(form, len(arrays)), [array.shape for array in arrays])
    if 0 in equation.sizes.values():  # where numpy.einsum writes past the end of clongdouble
        kind = np.result_type(*arrays) if dtype is None else np.dtype(dtype)
        return np.zeros([equation.sizes[label] for label in equation.output], kind)[()]
    if len(equation.sizes) > len(string.ascii_letters):
        raise EquationError(
            f"{arrays[0].dtype} arrays go to numpy.einsum, which knows only 52 indices, not "
            f"{len(equation.sizes)}",
            fix="convert them to float64 or complex128",
        )
    letters = dict(zip(equation.sizes, string.ascii_letters, strict=False))
    terms = ("".join(letters[label] for label in term) for term in equation.inputs)
    out = "".join(letters[label] for label in equation.output)
    given = arrays if dtype is None else [array.astype(dtype) for array in arrays]
    return np.einsum(f"{','.join(terms)}->{out}", *given, optimize=len(given) > 2)  # type: ignore[no-any-return]
