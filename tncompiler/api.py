"""The public entries: `compile` an expression, or only `plan` it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from tncompiler.backends import emitter_of
from tncompiler.compiler import Compilation
from tncompiler.families import free_size, make_family
from tncompiler.ir.dtypes import dtype_name, is_differentiable
from tncompiler.ir.errors import (
    ArgumentError,
    BackendError,
    DTypeError,
)
from tncompiler.ir.expressions import Expr, walk
from tncompiler.ir.origin import call_site
from tncompiler.planning.budget import Budget
from tncompiler.planning.cache import Recent, is_on
from tncompiler.planning.family import PlanFamily
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.plan import ContractionPlan


def compile(
    outputs: Any,
    *,
    inputs: Sequence[Any] | None = None,
    sizes: Mapping[Any, Any] | None = None,
    backend: Any = "auto",
    framework: Any = "torch",
    dtype: Any = None,
    seed: int | None = None,
    plan: PlanOptions | ContractionPlan | None = None,
    share: Any = None,
    cuda_graph: bool = False,
    process_group: Any = None,
) -> Any:
    """Compile an expression, a tuple or a dict of them.

    Returns a torch module whose parameters are the network's, or with framework="numpy" a plain
    callable on NumPy arrays. ``sizes`` gives sizes by Index, symbol or name; those of parameters
    must be known. ``inputs`` fixes the order of positional arguments. ``backend``: "auto",
    "numpy", "torch" or "triton" (GPU tensors, or CPU tensors under TRITON_INTERPRET=1). ``seed``
    fixes the initial parameters; ``share`` takes those of another compiled network.
    ``cuda_graph``: programs are captured once for each combination of shapes and replayed, which
    pays where launches take longer than the work; arguments and results are copied.
    ``process_group``: a group of torch.distributed, or a `tnc.Ranks` with options: slices run over
    its ranks, all of which call the module with the same tensors and get the same results. Raises a
    TncError that says what, where and how to mend it.
    """
    if process_group is not None and framework != "torch":
        raise BackendError(
            "process_group needs torch tensors",
            where=call_site(),
            fix="leave it out, or framework='numpy'",
        )
    if cuda_graph and framework != "torch":
        raise BackendError(
            "cuda_graph=True needs torch tensors",
            where=call_site(),
            fix="leave it out, or framework='numpy'",
        )
    if not isinstance(backend, str) or backend != "auto":
        emitter_of(backend)  # raises on an unknown one
    name = None if dtype is None else dtype_name(dtype)
    if name is not None and not is_differentiable(name):
        raise DTypeError(
            f"dtype={name!r} cannot be that of parameters",
            where=call_site(),
            fix="give a float or complex dtype here, and integer ones to single inputs",
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise ArgumentError(
            f"seed is {seed!r:.40}", where=call_site(), fix="give an integer, 0 or more"
        )
    if share is not None and not isinstance(getattr(share, "compilation", None), Compilation):
        raise ArgumentError(
            f"share is a {type(share).__name__}",
            where=call_site(),
            fix="give a network made by tnc.compile",
        )
    if not isinstance(framework, str) or framework not in ("numpy", "torch"):
        raise BackendError(
            f"there is no framework {framework!r:.40}",
            where=call_site(),
            fix="choose torch or numpy",
        )
    given = {} if sizes is None else sizes
    compilation = Compilation(outputs, inputs, given, plan, library=framework)
    if framework == "numpy":
        from tncompiler.function import NumpyFunction

        return NumpyFunction(compilation, backend=backend, dtype=name, seed=seed, share=share)
    options = dict(backend=backend, dtype=name, seed=seed, share=share, cuda_graph=bool(cuda_graph))
    if process_group is not None:
        from tncompiler.distributed.module import RankedModule
        from tncompiler.distributed.options import Ranks

        return RankedModule(compilation, Ranks.of(process_group), **options)
    from tncompiler.module import CompiledModule

    return CompiledModule(compilation, **options)


def plan(
    expr: Any, sizes: Mapping[Any, Any] | None = None, options: PlanOptions | None = None
) -> ContractionPlan:
    """The plan for an expression at the given sizes (free sizes count as 128).

    The last plans are kept, and the orders that took time to find also on disk; `docs/debugging.md`
    says where, and how to switch that off.
    """
    given = {} if sizes is None else sizes
    key = _plan_key(expr, given, options)
    known = None if key is None else _PLANS.get(key)
    if known is not None:
        return known
    budget = Budget.of(options) if isinstance(options, PlanOptions) else None
    compilation = Compilation(expr, None, given, options, parameters_known=False)
    made = compilation.plan(compilation.nominal({}), budget=budget)
    if key is not None and not made.cut and len(made.steps) <= _MOST_STEPS:
        _PLANS.put(key, made)
    return made


_PLANS: Recent[ContractionPlan] = Recent(128)
_MOST_STEPS = 2_000  # of a plan that is kept


def _plan_key(expr: Any, sizes: Any, options: Any) -> Hashable | None:
    """What a plan follows from, names included; None where it cannot be told, or is not kept."""
    if not is_on() or not isinstance(expr, Expr) or not isinstance(sizes, Mapping):
        return None
    asked = PlanOptions() if options is None else options
    if not isinstance(asked, PlanOptions) or callable(asked.search):
        return None
    names = tuple(node.indices for node in walk(expr))
    given = tuple((type(key), key, type(size), size) for key, size in sizes.items())
    key = (expr.digest, names, given, asked.key())
    try:
        hash(key)
    except TypeError:  # a size or a name of some other kind, which the compilation refuses
        return None
    return key


def plan_family(
    expr: Any,
    symbol: Any,
    low: int,
    high: int,
    *,
    sizes: Mapping[Any, Any] | None = None,
    options: PlanOptions | None = None,
) -> PlanFamily:
    """The plans that are best on parts of low … high, the range of one size.

    ``symbol``: the size by Index, symbol or name. ``sizes`` gives the others; what is neither given
    nor follows counts as 128. With ``options.training`` true, plans and costs are those of training
    steps with all gradients. A compiled network picks its plans by the same rule; it is within 5 %
    of the predicted time of a plan made for the very size. Raises: PlanError if there is no such
    free size or the range is empty.
    """
    given = {} if sizes is None else sizes
    compilation = Compilation(expr, None, given, options, parameters_known=False)
    leaves = (*compilation.inputs, *compilation.params)
    wrt = tuple(leaf.name for leaf in leaves if is_differentiable(leaf.dtype))
    dtypes = compilation.default_dtypes("float32")
    wanted = wrt if compilation.options.training is True else ()
    return make_family(compilation, dtypes, free_size(compilation, symbol), (low, high), wanted)
