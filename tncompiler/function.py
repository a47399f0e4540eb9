"""A compiled network as a callable on NumPy arrays; torch is never loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from tncompiler.binding import Call, order_inputs, read_call
from tncompiler.compiler import Compilation
from tncompiler.initialize import standard_deviations
from tncompiler.inspection import Inspection
from tncompiler.ir.dtypes import DEFAULT, is_differentiable, kind
from tncompiler.ir.errors import ArgumentError, BackendError, DTypeError, GradientError, ShapeError
from tncompiler.ir.expressions import Leaf
from tncompiler.ir.origin import call_site

Pull = Callable[[Any], dict[str, np.ndarray]]


_KEPT = 256  # combinations of shapes that a function remembers


class Parameters(MutableMapping[str, np.ndarray]):
    """Parameters by name: read-only arrays, replaced by assignment; names cannot be added."""

    def __init__(self, arrays: Mapping[str, np.ndarray], shared: Parameters | None = None) -> None:
        self._cells = {name: [_read_only(array)] for name, array in arrays.items()}
        if shared is not None:
            for name in self._cells.keys() & shared._cells.keys():
                self._check(name, shared[name])
                self._cells[name] = shared._cells[name]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._cells[name][0]

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._cells:
            raise ArgumentError(
                f"there is no parameter {name!r}",
                where=call_site(),
                fix=f"the parameters are: {sorted(self)}",
            )
        try:
            new = np.asarray(value)
        except ValueError as error:
            raise ShapeError(
                f"parameter {name!r}: {error}", where=call_site(), fix="give an array"
            ) from None
        self._check(name, new)
        self._cells[name][0] = _read_only(new.astype(self[name].dtype))

    def _check(self, name: str, new: np.ndarray) -> None:
        old = self[name]
        if new.shape != old.shape:
            raise ShapeError(
                f"parameter {name!r} has shape {old.shape}, not {new.shape}",
                where=call_site(),
                fix="assign an array of the same shape",
            )
        if not np.can_cast(new.dtype, old.dtype, "same_kind"):
            raise DTypeError(
                f"parameter {name!r} has dtype {old.dtype}; {new.dtype} does not fit",
                where=call_site(),
                fix=f"convert it with .astype({old.dtype.name!r})",
            )

    def __delitem__(self, name: str) -> None:
        raise ArgumentError(
            "parameters cannot be removed", where=call_site(), fix="assign another array instead"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {array.shape}" for name, array in self.items())
        return f"Parameters({shapes})"


def _read_only(array: np.ndarray) -> np.ndarray:
    view = np.array(array)
    view.flags.writeable = False
    return view


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            f"input {name!r} is no array: {error}",
            where=call_site(),
            fix="give an array, or lists of equal lengths",
        ) from None


class NumpyFunction(Inspection):
    """`f(x)` computes the outputs; see also `vjp`, `value_and_grad` and `jvp`.

    Inputs by position in the order of `f.inputs`, or by name. Safe to call from many threads.
    """

    def __init__(
        self,
        compilation: Compilation,
        *,
        backend: str,
        dtype: str | None,
        seed: int | None,
        share: Any,
    ) -> None:
        if backend not in ("auto", "numpy"):
            raise BackendError(
                f"framework='numpy' cannot run the {backend} backend",
                where=call_site(),
                fix="use backend='numpy'",
            )
        if dtype == "bfloat16":
            raise BackendError(
                "NumPy has no bfloat16", where=call_site(), fix="use dtype='float32'"
            )
        self.compilation, self.backend, self._dtype = compilation, "numpy", dtype
        self.parameters = self._make_parameters(seed, share)
        self._constants = [self._constant(leaf) for leaf in compilation.constants]
        self._calls: dict[object, Call] = {}
        self._runs: dict[object, Callable[..., Any]] = {}

    @property
    def compute_dtype(self) -> str:
        return self._dtype or "float32"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in positional order."""
        return tuple(leaf.name for leaf in self.compilation.inputs)

    def _leaf_dtype(self, leaf: Leaf) -> np.dtype[Any]:
        return np.dtype(self.compute_dtype if leaf.dtype == DEFAULT else leaf.dtype)

    def _constant(self, leaf: Leaf) -> np.ndarray:
        assert leaf.value is not None
        return leaf.value.astype(self._leaf_dtype(leaf))

    def _make_parameters(self, seed: int | None, share: Any) -> Parameters:
        rng = np.random.default_rng(seed)
        stds = parameter_stds(self.compilation)
        arrays = {}
        for leaf in self.compilation.params:
            shape = self.compilation.parameter_shape(leaf)
            arrays[leaf.name] = initial_array(
                leaf, shape, stds.get(leaf.name, 1.0), self._leaf_dtype(leaf), rng
            )
        if share is None:
            return Parameters(arrays)
        if not isinstance(share, NumpyFunction):
            raise ArgumentError(
                "a torch module cannot share", where=call_site(), fix="share a NumPy function"
            )
        return Parameters(arrays, share.parameters)

    # ---------------------------------------------------------------- calling

    def _arrays(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: Mapping[str, Any] | None
    ) -> list[np.ndarray]:
        values = order_inputs(self.compilation, args, kwargs)
        given = [
            _array(leaf.name, v) for leaf, v in zip(self.compilation.inputs, values, strict=True)
        ]
        held: Mapping[str, Any] = self.parameters
        if parameters is not None:
            if not isinstance(parameters, Mapping):
                raise ArgumentError(
                    "parameters= takes a dict of name → array", where=call_site(), fix="give a dict"
                )
            unknown = sorted(set(parameters) - set(held))
            if unknown:
                raise ArgumentError(
                    f"there is no parameter {unknown[0]!r}",
                    where=call_site(),
                    fix=f"they are: {sorted(held)}",
                )
            held = {**held, **{k: np.asarray(v) for k, v in parameters.items()}}
        return [*given, *(held[leaf.name] for leaf in self.compilation.params), *self._constants]

    def _default(self) -> str | None:
        """The dtype that undecided leaves must have; None lets the inputs decide."""
        fixed = any(
            leaf.dtype == DEFAULT
            for leaf in (*self.compilation.params, *self.compilation.constants)
        )
        return self.compute_dtype if fixed or self._dtype else None

    def _call(self, arrays: list[np.ndarray]) -> Call:
        key = tuple((array.shape, array.dtype.char) for array in arrays)
        found = self._calls.get(key)
        if found is None:
            found = read_call(self.compilation, arrays, self._default())
            if len(self._calls) >= _KEPT:
                self._calls.clear()
            found = self._calls.setdefault(key, found)
        return found

    def __call__(
        self, *args: Any, parameters: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        arrays = self._arrays(args, kwargs, parameters)
        key = tuple((array.shape, array.dtype.char) for array in arrays)
        run = self._runs.get(key)
        if run is None:
            run = self._run(key, self._call(arrays))
        return self.compilation.container.pack(run(*arrays))

    def _run(self, key: object, call: Call) -> Callable[..., Any]:
        """The program for arrays of the shapes and dtypes in the key, remembered."""
        run = self.compilation.inference_executable(call.dtypes, call.free, "numpy").run
        if len(self._runs) >= _KEPT:
            self._runs.clear()
        return self._runs.setdefault(key, run)

    def vjp(
        self, *args: Any, parameters: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> tuple[Any, Pull]:
        """The outputs, and a function from cotangents (shaped as the outputs) to gradients.

        Gradients come by name, for every float or complex input and parameter.
        """
        arrays = self._arrays(args, kwargs, parameters)
        call = self._call(arrays)
        wrt = self._wrt(call)
        pair = self.compilation.training_executable(call.dtypes, call.free, wrt, "numpy")
        results = pair.forward.run(*arrays)
        outputs, saved = results[: pair.output_count], results[pair.output_count :]
        names = [argument.value.name for argument in pair.forward.program.arguments]
        held = dict(zip(names, arrays, strict=True))
        read = [
            held[argument.value.name]
            for argument in pair.backward.program.arguments
            if argument.value.name in held
        ]

        def pull(cotangents: Any) -> dict[str, np.ndarray]:
            given = self._cotangents(cotangents, outputs)
            return dict(zip(wrt, pair.backward.run(*read, *saved, *given), strict=True))

        return self.compilation.container.pack(outputs), pull

    def _wrt(self, call: Call) -> tuple[str, ...]:
        leaves = (*self.compilation.inputs, *self.compilation.params)
        return tuple(
            leaf.name
            for leaf, dtype in zip(leaves, call.dtypes[1:], strict=False)
            if is_differentiable(dtype)
        )

    def _cotangents(self, cotangents: Any, outputs: tuple[Any, ...]) -> list[np.ndarray]:
        given = []
        values = self.compilation.container.unpack(cotangents)
        for value, output in zip(values, outputs, strict=True):
            array = np.asarray(value)
            if array.shape != output.shape:
                raise ShapeError(
                    f"a cotangent has shape {array.shape}, but its output has {output.shape}",
                    where=call_site(),
                    fix="give cotangents of the shapes of the outputs",
                )
            if kind(array.dtype.name) == "complex" and kind(output.dtype.name) != "complex":
                raise DTypeError(
                    "a real output has a complex cotangent",
                    where=call_site(),
                    fix="take its real part",
                )
            given.append(array.astype(output.dtype, copy=False))
        return given

    def value_and_grad(
        self, *args: Any, parameters: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """The value of a real scalar output and its gradients by name."""
        value, pull = self.vjp(*args, parameters=parameters, **kwargs)
        scalar = self.compilation.container.kind == "one" and np.ndim(value) == 0
        if not scalar or np.iscomplexobj(value):
            raise GradientError(
                "value_and_grad needs one real scalar output",
                where=call_site(),
                fix="use vjp with a cotangent",
            )
        return value, pull(np.ones_like(value))

    def jvp(
        self, *args: Any, tangents: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        """The outputs and their directional derivative: `g.jvp(x, tangents={"x": dx})`.

        A mapping given last by position is taken as the tangents too: `g.jvp(x, {"x": dx})`.
        """
        if tangents is None and args and isinstance(args[-1], Mapping):
            *positional, tangents = args
            args = tuple(positional)
        if not isinstance(tangents, Mapping) or not tangents:
            raise ArgumentError(
                "no tangents are given", where=call_site(), fix="give tangents={name: array}"
            )
        arrays = self._arrays(args, kwargs, None)
        call = self._call(arrays)
        names = tuple(sorted(tangents))
        for name in names:
            if name not in self._wrt(call):
                raise ArgumentError(
                    f"there is no differentiable leaf {name!r}",
                    where=call_site(),
                    fix=f"{self._wrt(call)}",
                )
        program = self.compilation.directional(call.dtypes, call.free, names)
        run = self.compilation.executable(program, "numpy", "tangent").run
        held = {leaf.name: a for leaf, a in zip(self.compilation.ordered, arrays, strict=True)}
        moved = [self._tangent(name, tangents[name], held[name]) for name in names]
        results = run(*arrays, *moved)
        pack, count = self.compilation.container.pack, len(self.compilation.outputs)
        return pack(results[:count]), pack(results[count:])

    @staticmethod
    def _tangent(name: str, tangent: Any, array: np.ndarray) -> np.ndarray:
        given = np.asarray(tangent)
        if given.shape != array.shape:
            raise ShapeError(
                f"the tangent of {name!r} has shape {given.shape}, not {array.shape}",
                where=call_site(),
                fix="give a tangent of the shape of its leaf",
            )
        if kind(given.dtype.name) == "complex" and kind(array.dtype.name) != "complex":
            raise DTypeError(
                f"the tangent of {name!r} is complex", where=call_site(), fix="take its real part"
            )
        return given.astype(array.dtype, copy=False)


def parameter_stds(compilation: Compilation) -> dict[str, float]:
    """The standard deviation of each parameter that has no `init`."""
    logical = compilation.logical(compilation.default_dtypes("float32"))
    nominal = {**compilation.binding, **compilation.nominal({})}
    return standard_deviations(logical, compilation.leaves, nominal)


def initial_array(
    leaf: Leaf, shape: tuple[int, ...], std: float, dtype: np.dtype[Any], rng: np.random.Generator
) -> np.ndarray:
    """The first value of a parameter."""
    if callable(leaf.init):
        array = np.asarray(leaf.init(shape))
    elif isinstance(leaf.init, np.ndarray):
        array = leaf.init
    elif leaf.init in ("zeros", "ones"):
        array = np.full(shape, float(leaf.init == "ones"))
    elif leaf.init == "eye":
        array = _eye(shape)
    else:
        scale = 1.0 if leaf.init == "normal" else std
        array = rng.standard_normal(shape) * scale
        if dtype.kind == "c":
            array = (array + 1j * rng.standard_normal(shape) * scale) / np.sqrt(2)
    if array.dtype.kind not in "biufc":
        raise DTypeError(
            f"the init of parameter {leaf.name!r} gives {array.dtype} values",
            where=call_site(),
            fix="give numbers",
        )
    if array.dtype.kind == "c" and dtype.kind != "c":
        raise DTypeError(
            f"the init of parameter {leaf.name!r} is complex, the parameter is {dtype}",
            where=call_site(),
            fix="declare the parameter with a complex dtype",
        )
    check_init_shape(leaf, array.shape, shape)
    return array.astype(dtype)


def check_init_shape(leaf: Leaf, given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse an initial value of another shape than the parameter's."""
    if given != shape:
        raise ShapeError(
            f"the init of parameter {leaf.name!r} has shape {given}, not {shape}",
            where=f"the parameter declared at {leaf.origin}",
            fix="return an array of the parameter's shape",
        )


def _eye(shape: tuple[int, ...]) -> np.ndarray:
    """1 where all positions agree."""
    array = np.zeros(shape)
    for k in range(min(shape, default=0)):
        array[(k,) * len(shape)] = 1.0
    return array if shape else np.ones(())
