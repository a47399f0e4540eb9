"""An independent oracle: torch in double precision walks the expression, autograd differentiates.

Values of gradients come from here, error bounds from the reference interpreter. The checks compile
a case, run it and raise AssertionError with the expression, the seed and the worst error / bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tncompiler as tnc
from tests import oracle_positions
from tests.large import crossing
from tncompiler.function import NumpyFunction
from tncompiler.ir import expressions as ex
from tncompiler.ir import sizes as sz
from tncompiler.ir.arange import Arange
from tncompiler.ir.functions.random import scramble
from tncompiler.ir.gather_nodes import Gather, Scatter
from tncompiler.ir.reference import Bounded, bind_sizes, evaluate_all
from tncompiler.module import CompiledModule

Arrays = Mapping[str, np.ndarray]
_AUTOGRAD = 64  # how much further torch may be off, in double precision and terms in the millions
FUNCTIONS = {"function": "numpy", "crossing": "auto"}  # NumPy functions, the second on tensors
RUNNERS = (*FUNCTIONS, "torch", "numpy", "triton")  # and torch modules by backend

# ---------------------------------------------------------------------------- the torch walker

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": lambda a, b: a**b,
    "reciprocal": lambda a: 1 / a,
    "floordiv": lambda a, b: torch.floor_divide(a, b),
    "mod": lambda a, b: torch.remainder(a, b),
    "scramble": lambda a, b: scramble(a.long(), b.long()),
    "halved_square": lambda a: _HalvedSquare.apply(a),
    "stop": lambda a: a.detach(),
    "sigmoid": lambda a: _sigmoid(a),
    "silu": lambda a: a * _sigmoid(a),
    "gelu": lambda a: 0.5 * a * torch.special.erfc(-a / 2**0.5),
    "softplus": lambda a: torch.logaddexp(a, torch.zeros_like(a)),
    "real": lambda a: a.real if a.is_complex() else a,
    "imag": lambda a: a.imag if a.is_complex() else torch.zeros_like(a),
    "conj": lambda a: a.conj().resolve_conj(),
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "where": lambda c, a, b: torch.where(c != 0, *_promoted(a, b)),
    "maximum": lambda a, b: torch.maximum(*_promoted(a, b)),
    "minimum": lambda a, b: torch.minimum(*_promoted(a, b)),
}


class _HalvedSquare(torch.autograd.Function):
    """x²/2 whose derivative is said to be tanh x, as `block_networks.halved_square` has it."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a * a / 2

    @staticmethod
    def backward(ctx: Any, ct: Tensor) -> Tensor:  # type: ignore[override]
        (a,) = ctx.saved_tensors
        return ct * torch.tanh(a)


def _sigmoid(a: Tensor) -> Tensor:
    """torch's for real numbers: the square of 1 + exp(400), which autograd needs, is infinite."""
    return 1 / (1 + torch.exp(-a)) if a.is_complex() else torch.sigmoid(a)


def _promoted(*tensors: Tensor) -> list[Tensor]:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def walk_torch(
    outputs: Sequence[ex.Expr], tensors: Mapping[str, Tensor], sizes: Mapping[Any, int]
) -> list[Tensor]:
    """The outputs as double-precision tensors that autograd can differentiate."""
    arrays = {name: tensor.detach() for name, tensor in tensors.items()}
    binding = bind_sizes(outputs, arrays, sizes)
    return _walk(outputs, tensors, lambda s: sz.evaluate(s, binding))


def _walk(
    outputs: Sequence[ex.Expr], tensors: Mapping[str, Tensor], size: Callable[[Any], int]
) -> list[Tensor]:
    done: dict[int, Any] = {}
    for node in ex.walk(*outputs):
        operands = [done[id(operand)] for operand in node.operands]
        if isinstance(node, ex.Scan):
            done[id(node)] = _unrolled(node, operands, size)
        elif isinstance(node, ex.ScanResult):
            done[id(node)] = operands[0][node.position]
        else:
            done[id(node)] = _node(node, operands, tensors, size)
    return [done[id(output)] for output in outputs]


def _unrolled(
    node: ex.Scan, operands: Sequence[Tensor], size: Callable[[Any], int]
) -> list[Tensor]:
    """All results of a scan, its cell written out for every position."""
    states, given = list(operands[: node.carried]), operands[node.carried :]
    count = size(node.over.size)
    collected: dict[int, list[Tensor]] = {k: [] for k in range(node.carried, len(node.body))}
    for position in range(count)[:: -1 if node.reverse else 1]:
        parts = [
            tensor if axis is None else tensor.select(axis, position)
            for tensor, axis in zip(given, node.sliced[node.carried :], strict=True)
        ]
        named = dict(zip((leaf.name for leaf in node.slots), (*states, *parts), strict=True))
        made = _walk(node.body, named, size)
        states = made[: node.carried]
        for k, results in collected.items():
            results.insert(0 if node.reverse else len(results), made[k])
    for k, results in collected.items():
        shape = [size(s) for s in node.body[k].shape]
        stacked = torch.stack(results) if results else torch.zeros((0, *shape)).double()
        states.append(stacked if node.joined[k] == 0 else stacked.sum(0))
    return states


def _node(
    node: ex.Expr,
    operands: list[Tensor],
    tensors: Mapping[str, Tensor],
    size: Callable[[Any], int],
) -> Tensor:
    shape = [size(s) for s in node.shape]
    match node:
        case ex.Leaf():
            return tensors[node.name]
        case ex.Literal(value=value):
            number = value if isinstance(value, int | float | complex) else size(value)
            double = torch.complex128 if isinstance(number, complex) else torch.float64
            return torch.tensor(number, dtype=double)
        case ex.Ones():
            return torch.ones(shape, dtype=torch.float64)
        case ex.Delta():
            grid = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
            return torch.stack([g == grid[0] for g in grid]).all(0).double()
        case ex.Window(geometry=geometry):
            source, out, tap = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
            read = out * geometry.stride + tap * geometry.dilation - size(geometry.before)
            return (source == read).double()
        case ex.Contract():
            return _einsum(node, operands)
        case ex.Map():
            aligned = [_align(t, a, node) for t, a in zip(operands, node.arguments, strict=True)]
            made = _FUNCTIONS.get(node.function) or getattr(torch, node.function)
            return made(*aligned).expand(shape)
        case ex.Reduce():
            axes = [node.source.indices.index(index) for index in node.over]
            return (torch.amax if node.function == "max" else torch.amin)(operands[0], axes)
        case ex.Reindex():
            return operands[0].permute(node.axes)
        case ex.Split() | ex.Merge():
            return operands[0].reshape(shape)
        case ex.Slice():
            start = size(node.start)
            return operands[0].narrow(node.axis, start, size(node.stop) - start)
        case ex.Pad():
            return _padded(node, operands[0], shape, size)
        case ex.Concat():
            return torch.cat(_promoted(*operands), node.axis)
        case ex.Cast():
            kind = np.dtype(node.dtype).kind
            if kind == "f":
                return _FUNCTIONS["real"](operands[0]).double()
            return operands[0].to(torch.complex128 if kind == "c" else getattr(torch, node.dtype))
        case Arange():
            return torch.arange(shape[0])
        case Gather():
            return oracle_positions.gather(node, *operands)
        case Scatter():
            return oracle_positions.scatter(node, *operands, shape[node.axis])
    raise TypeError(type(node).__name__)


def _einsum(node: ex.Contract, operands: list[Tensor]) -> Tensor:
    numbers: dict[tnc.Index, int] = {}
    arguments: list[Any] = []
    for tensor, term in zip(_promoted(*operands), node.terms, strict=True):
        arguments += [tensor, [numbers.setdefault(i, len(numbers)) for i in term.indices]]
    return torch.einsum(*arguments, [numbers[index] for index in node.indices])


def _align(tensor: Tensor, argument: ex.Expr, node: ex.Map) -> Tensor:
    present = [index for index in node.indices if index in argument.indices]
    tensor = tensor.permute([argument.indices.index(index) for index in present])
    for axis, index in enumerate(node.indices):
        if index not in argument.indices:
            tensor = tensor.unsqueeze(axis)
    return tensor


def _padded(node: ex.Pad, tensor: Tensor, shape: list[int], size: Callable[[Any], int]) -> Tensor:
    def zeros(width: int) -> Tensor:
        return tensor.new_zeros([*shape[: node.axis], width, *shape[node.axis + 1 :]])

    return torch.cat([zeros(size(node.before)), tensor, zeros(size(node.after))], node.axis)


def gradients(
    outputs: Sequence[ex.Expr],
    arrays: Arrays,
    cotangents: Sequence[np.ndarray],
    wrt: Sequence[str],
    sizes: Mapping[Any, int],
) -> dict[str, np.ndarray]:
    """Gradients of the sum of <cotangent, output> by leaf name, in double precision."""
    tensors = {name: _double(array).requires_grad_(name in wrt) for name, array in arrays.items()}
    values = walk_torch(outputs, tensors, sizes)
    pairs = [
        (v, _double(c).to(v.dtype))
        for v, c in zip(values, cotangents, strict=True)
        if v.requires_grad
    ]
    leaves = [tensors[name] for name in wrt]
    if not pairs:
        return {name: np.zeros(arrays[name].shape) for name in wrt}
    found = torch.autograd.grad(
        [v for v, _ in pairs],
        leaves,
        [c for _, c in pairs],
        allow_unused=True,
        materialize_grads=True,
    )
    return {n: g.detach().resolve_conj().numpy() for n, g in zip(wrt, found, strict=True)}


def _double(array: np.ndarray) -> Tensor:
    kind = np.asarray(array).dtype.kind
    return torch.tensor(np.asarray(array, dtype="complex128" if kind == "c" else "float64"))


def exact(outputs: Sequence[ex.Expr], arrays: Arrays) -> list[np.ndarray]:
    """Contractions of leaves of one integer dtype or of bool, by numpy.einsum in that dtype."""
    done: dict[int, np.ndarray] = {}
    for node in ex.walk(*outputs):
        if isinstance(node, ex.Leaf):
            done[id(node)] = np.asarray(arrays[node.name])
            continue
        if not isinstance(node, ex.Contract):
            raise TypeError(type(node).__name__)
        numbers: dict[tnc.Index, int] = {}
        arguments: list[Any] = []
        for term in node.terms:
            wires = [numbers.setdefault(i, len(numbers)) for i in term.indices]
            arguments += [done[id(term)], wires]
        done[id(node)] = np.einsum(*arguments, [numbers[index] for index in node.indices])
    return [done[id(output)] for output in outputs]


# ---------------------------------------------------------------------------- bounds


def gradient_bounds(
    outputs: Sequence[ex.Expr],
    arrays: Arrays,
    cotangents: Sequence[np.ndarray],
    wrt: Sequence[str],
    sizes: Mapping[Any, int],
    eps: float,
    *,
    extended: bool = False,
) -> dict[str, Bounded]:
    """Gradient expressions evaluated with a running bound, summed over the outputs."""
    total: dict[str, Bounded] = {}
    for output, cotangent in zip(outputs, cotangents, strict=True):
        leaves = tuple({n.name: n for n in output.leaves if n.name in wrt}.values())
        if not leaves:
            continue
        seed = tnc.input("cotangent", *output.indices)
        exprs = tnc.grad(output, leaves, cotangent=seed)
        given = {**arrays, "cotangent": cotangent}
        results = evaluate_all(exprs, given, sizes, eps, extended=extended)
        for leaf, result in zip(leaves, results, strict=True):
            total[leaf.name] = _added(total.get(leaf.name), result, eps)
    zero = {n: np.zeros(arrays[n].shape) for n in wrt if n not in total}
    return {**total, **{name: Bounded(array, array) for name, array in zero.items()}}


def _added(old: Bounded | None, new: Bounded, eps: float) -> Bounded:
    if old is None:
        return new
    # 4 * eps as for every addition: a program may add each part of the one to the other in turn
    rounding = 4 * eps * (np.abs(old.value) + np.abs(new.value))
    return Bounded(old.value + new.value, old.bound + new.bound + rounding)


def worst_ratio(value: np.ndarray, reference: np.ndarray, bound: np.ndarray) -> float:
    """The largest error / bound; infinite for another shape, for NaN, and where exactness fails."""
    value = np.asarray(value)
    if value.shape != reference.shape:
        return np.inf
    if not value.size:
        return 0.0
    finite = np.isfinite(reference) & np.isfinite(bound)
    if value.dtype.kind in "fc":  # what may round to more than the largest number may overflow
        finite &= np.abs(reference) + bound < np.finfo(value.dtype).max
    if not np.isfinite(value[finite]).all():
        return np.inf
    error = np.abs(value.astype(np.result_type(value, np.float64)) - reference)[finite]
    limit = bound[finite]
    ratios = np.divide(error, limit, out=np.where(error > 0, np.inf, 0.0), where=limit > 0)
    return float(ratios.max(initial=0.0))


# ---------------------------------------------------------------------------- running a network


class Runner:
    """One way to run outputs: forward, and gradients for given cotangents."""

    device = "cpu"  # where modules and their inputs are; NumPy functions have no choice

    def __init__(
        self,
        outputs: Sequence[ex.Expr],
        name: str,
        dtype: str,
        sizes: Mapping[Any, int],
        like: Runner | None = None,
    ) -> None:
        """``like``: a runner of the same outputs, whose stages up to the source are used again."""
        self.name, self.dtype = name, dtype
        framework = "numpy" if name in FUNCTIONS else "torch"
        backend = FUNCTIONS.get(name, name)
        if like is None:
            self.compiled = tnc.compile(
                tuple(outputs),
                sizes=dict(sizes),
                backend=backend,
                framework=framework,
                dtype=dtype,
                seed=0,
            )
        else:
            made = NumpyFunction if name in FUNCTIONS else CompiledModule
            self.compiled = made(
                like.compiled.compilation, backend=backend, dtype=dtype, seed=0, share=None
            )
        if framework == "torch":
            self.compiled.to(self.device)

    def forward(self, arrays: Arrays) -> list[np.ndarray]:
        if self.name in FUNCTIONS:
            with crossing() if self.name == "crossing" else nullcontext():
                return list(self.compiled(*self._inputs(arrays), parameters=self._params(arrays)))
        with torch.no_grad():
            return [_numpy(t) for t in self._module(arrays, frozenset())[1]]

    def gradients(
        self, arrays: Arrays, cotangents: Sequence[np.ndarray], wrt: Sequence[str]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """Outputs of the training forward pass, and gradients by name."""
        if self.name in FUNCTIONS:
            parameters = self._params(arrays)
            values, pull = self.compiled.vjp(*self._inputs(arrays), parameters=parameters)
            found = pull(tuple(cotangents))
            return list(values), {name: found[name] for name in wrt}
        leaves, values = self._module(arrays, frozenset(wrt))
        pairs = [
            (v, torch.tensor(np.asarray(c)).to(v))
            for v, c in zip(values, cotangents, strict=True)
            if v.requires_grad
        ]
        if pairs:
            torch.autograd.backward([v for v, _ in pairs], [c for _, c in pairs])
        grads = {n: leaves[n].grad for n in wrt}
        return [_numpy(v) for v in values], {
            n: np.zeros(arrays[n].shape) if g is None else _numpy(g) for n, g in grads.items()
        }

    def _inputs(self, arrays: Arrays) -> list[Any]:
        return [arrays[name] for name in self.compiled.inputs]

    def _params(self, arrays: Arrays) -> dict[str, np.ndarray]:
        return {name: arrays[name] for name in self.compiled.parameters}

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.array(array)).to(self.device)
        low = self.dtype == "bfloat16" and tensor.is_floating_point()
        return tensor.to(torch.bfloat16) if low else tensor

    def _module(
        self, arrays: Arrays, wrt: frozenset[str]
    ) -> tuple[dict[str, Tensor], Sequence[Tensor]]:
        self.compiled.zero_grad(set_to_none=True)
        leaves = dict(self.compiled.named_parameters())
        with torch.no_grad():
            for name, parameter in leaves.items():
                parameter.copy_(self._tensor(arrays[name]))
        for name in self.compiled.inputs:
            leaves[name] = self._tensor(arrays[name]).requires_grad_(name in wrt)
        return leaves, self.compiled(*(leaves[name] for name in self.compiled.inputs))


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


# ---------------------------------------------------------------------------- the checks


def epsilon(dtype: str) -> float:
    return 2.0**-7 if dtype == "bfloat16" else float(np.finfo(np.dtype(dtype)).eps)


def _as_tuple(expr: Any) -> tuple[ex.Expr, ...]:
    return (expr,) if isinstance(expr, ex.Expr) else tuple(expr)


def check_forward(
    expr: Any,
    arrays: Arrays,
    backend: str,
    dtype: str,
    *,
    sizes: Mapping[Any, int] | None = None,
    seed: object = None,
) -> float:
    """Compile, run, compare with the reference. Returns the worst error / bound (at most 1)."""
    outputs = _as_tuple(expr)
    expected = evaluate_all(outputs, arrays, sizes, epsilon(dtype))
    got = Runner(outputs, backend, dtype, sizes or {}).forward(arrays)
    return compare("forward", outputs, got, expected, backend, seed)


def check_gradients(
    expr: Any,
    arrays: Arrays,
    backend: str,
    dtype: str,
    *,
    cotangents: Sequence[np.ndarray],
    wrt: Sequence[str],
    sizes: Mapping[Any, int] | None = None,
    seed: object = None,
) -> float:
    """Gradients by `wrt` of <cotangents, expr> against autograd, within the bounds."""
    outputs = _as_tuple(expr)
    expected = expected_gradients(outputs, arrays, cotangents, wrt, sizes or {}, epsilon(dtype))
    runner = Runner(outputs, backend, dtype, sizes or {})
    _, found = runner.gradients(arrays, cotangents, wrt)
    return compare_named("gradient", outputs, found, expected, backend, seed)


def expected_gradients(
    outputs: Sequence[ex.Expr],
    arrays: Arrays,
    cotangents: Sequence[np.ndarray],
    wrt: Sequence[str],
    sizes: Mapping[Any, int],
    eps: float,
    seed: object = None,
    *,
    extended: bool = False,
) -> dict[str, Bounded]:
    """Autograd's values with the bounds of tnc.grad, which must itself agree with autograd.

    ``extended``: the values are those of tnc.grad in long double, as autograd's own double
    precision loses digits in long sums.
    """
    values = gradients(outputs, arrays, cotangents, wrt, sizes)
    bounds = gradient_bounds(outputs, arrays, cotangents, wrt, sizes, eps, extended=extended)
    slack = _AUTOGRAD if extended else 1
    expected = {name: Bounded(values[name], slack * bounds[name].bound) for name in wrt}
    own = {name: bounds[name].value for name in wrt}
    compare_named("tnc.grad expression", outputs, own, expected, "reference", seed)
    return bounds if extended else expected


def compare(
    what: str,
    outputs: Sequence[ex.Expr],
    got: Sequence[np.ndarray],
    expected: Sequence[Bounded],
    runner: str,
    seed: object = None,
) -> float:
    named = {f"output {k}": value for k, value in enumerate(got)}
    wanted = {f"output {k}": value for k, value in enumerate(expected)}
    return compare_named(what, outputs, named, wanted, runner, seed)


def compare_named(
    what: str,
    outputs: Sequence[ex.Expr],
    got: Mapping[str, np.ndarray],
    expected: Mapping[str, Bounded],
    runner: str,
    seed: object = None,
) -> float:
    """The worst error / bound over all arrays. Raises AssertionError above 1."""
    worst = 0.0
    for name, reference in expected.items():
        ratio = worst_ratio(got[name], reference.value, reference.bound)
        if ratio > 1:
            raise AssertionError(
                f"{what} of {name} on {runner}: error / bound = {ratio:.3g} (seed {seed})\n"
                f"  got      {_shown(got[name])}\n  expected {_shown(reference.value)}\n"
                f"{render(outputs)}"
            )
        worst = max(worst, ratio)
    return worst


def _shown(array: np.ndarray) -> str:
    text = np.array2string(np.asarray(array).ravel()[:8], precision=7, separator=", ")
    return f"{np.asarray(array).dtype} {np.shape(array)} {text}"


def render(outputs: Sequence[ex.Expr]) -> str:
    """The expression, a line per node."""
    names: dict[int, str] = {}
    lines = []
    for node in ex.walk(*outputs):
        names[id(node)] = f"e{len(names)}"
        out = ", ".join(map(str, node.indices))
        operands = " ".join(
            f"{names[id(o)]}({', '.join(i.name for i in o.indices)})" for o in node.operands
        )
        lines.append(f"  {names[id(node)]}({out}) = {_label(node)} {operands}")
    return "\n".join([*lines, f"  outputs: {' '.join(names[id(o)] for o in outputs)}"])


def _label(node: ex.Expr) -> str:
    hidden = ("indices", "origin", "digest", "terms", "arguments", "source", "init", "value")
    hidden = hidden[:-1] if isinstance(node, ex.Literal) else hidden
    fields = [f for f in node.__dataclass_fields__ if f not in hidden]
    if isinstance(node, ex.Concat):
        fields.remove("parts")
    return f"{type(node).__name__}[{', '.join(str(getattr(node, f)) for f in fields)}]"
