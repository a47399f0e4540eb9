"""A compiled network as a callable on NumPy arrays; torch is never loaded.

In a process that has torch loaded anyway, a call may run in its operations on the same memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from types import ModuleType
from typing import Any

import numpy as np

from tncompiler.binding import Call, order_inputs, read_call
from tncompiler.compiler import Compilation, Executable
from tncompiler.debug import level
from tncompiler.initialize import standard_deviations
from tncompiler.inspection import Inspection
from tncompiler.ir.dtypes import DEFAULT, is_differentiable, kind
from tncompiler.ir.errors import ArgumentError, BackendError, DTypeError, GradientError, ShapeError
from tncompiler.ir.expressions import Leaf
from tncompiler.ir.origin import call_site
from tncompiler.kept import KeptValues, Marks
from tncompiler.measure import fitting_factors
from tncompiler.parameters import Parameters
from tncompiler.repeated_calls import RepeatedCall

Arrays = dict[str, np.ndarray]
Pull = Callable[[Any], Arrays]

MARKS = Marks(  # arrays are read-only, so that one is another only where it was replaced
    mark=lambda array: None,
    age=lambda: None,
    checksum=lambda array: blake2b(array.tobytes(), digest_size=8).digest(),
)


@dataclass(frozen=True, slots=True)
class _Ready:
    """What runs for one combination of shapes; ``prepare`` makes what it reads after the arrays, if
    something is kept between calls."""

    run: Callable[..., Any]
    prepare: Executable | None
    aten: _Ready | None = None  # the same for tensors, where that is predicted to be faster


_KEPT = 256  # combinations of shapes that a function remembers
# what may run in torch's operations: values of these dtypes, networks for which a second plan takes
# little time, and calls predicted to take so long in NumPy's and less than this share in torch's
_CROSSING = {"float32", "float64", "complex64", "complex128"}
_MOST_LEAVES = 64
_CROSSING_FROM_US, _CROSSING_SHARE = 100.0, 0.95


def _no_dropout() -> np.ndarray:
    """The seed that switches dropout off."""
    return np.asarray(-1)


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
    What parameters alone make is kept from call to call until one is replaced; a call with
    `parameters=` keeps nothing.

    With ``backend="auto"``, and torch loaded by the first call with some shapes, such calls run in
    torch's operations where that is predicted to be faster; in a forked process, under autocast, a
    dispatch mode or an `np.errstate` that raises, in NumPy's.
    """

    usual_backend = "numpy"

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
        self.compilation, self.backend, self._dtype = compilation, backend, dtype
        arrays = self._drawn(seed, None)
        self._parameters = self._shared(arrays, share)
        self._names = [leaf.name for leaf in compilation.params]
        self._constants = [self._constant(leaf) for leaf in compilation.constants]
        self._calls: dict[object, Call] = {}
        self._runs: dict[object, _Ready] = {}
        self._kept = KeptValues(MARKS)
        self._last: RepeatedCall | None = None
        self._age = object()  # of what is kept: another one when it is dropped

    @property
    def parameters(self) -> Parameters:
        """The parameters by name, which assignment replaces."""
        return self._parameters

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

    def _drawn(self, seed: int | None, examples: dict[str, np.ndarray] | None) -> Arrays:
        """First values of all parameters; `examples` of the inputs say how large they are."""
        rng = np.random.default_rng(seed)
        stds = parameter_stds(self.compilation, examples)
        arrays = {}
        for leaf in self.compilation.params:
            shape = self.compilation.parameter_shape(leaf)
            arrays[leaf.name] = initial_array(
                leaf, shape, stds.get(leaf.name, 1.0), self._leaf_dtype(leaf), rng
            )
        return arrays

    @staticmethod
    def _shared(arrays: Arrays, share: Any) -> Parameters:
        if share is None:
            return Parameters(arrays)
        if not isinstance(share, NumpyFunction):
            raise ArgumentError(
                "a torch module cannot share", where=call_site(), fix="share a NumPy function"
            )
        return Parameters(arrays, share.parameters)

    def reset_parameters(self, seed: int | None = None, *, inputs: Any = None) -> None:
        """Draw all parameters anew.

        ``inputs``: examples of all inputs, in order or by name. With them networks start with
        values of size 1 on such inputs, whatever their norms and however long the network;
        without, an input counts as having variance 1 an element.
        """
        if inputs is None:
            self.parameters.update(self._drawn(seed, None))
            return
        examples = example_arrays(self.compilation, inputs)
        arrays = self._drawn(seed, examples)
        constants = zip(self.compilation.constants, self._constants, strict=True)
        held = {**examples, **arrays, **{leaf.name: array for leaf, array in constants}}
        drawn = {leaf.name for leaf in self.compilation.params if leaf.init is None}
        for name, factor in fitting_factors(self.compilation, held, drawn).items():
            arrays[name] = arrays[name] * factor
        self.parameters.update(arrays)

    # ---------------------------------------------------------------- calling

    def _arrays(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: Mapping[str, Any] | None
    ) -> list[np.ndarray]:
        leaves = self.compilation.inputs
        in_order = not kwargs and len(args) == len(leaves)
        given: Sequence[Any]
        given = args if in_order else order_inputs(self.compilation, args, kwargs, _no_dropout)
        if {*map(type, given)} - {np.ndarray}:
            given = [_array(leaf.name, v) for leaf, v in zip(leaves, given, strict=True)]
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
        return [*given, *[held[name] for name in self._names], *self._constants]

    def _default(self) -> str | None:
        """The dtype that undecided leaves must have; None lets the inputs decide."""
        fixed = any(
            leaf.dtype == DEFAULT
            for leaf in (*self.compilation.params, *self.compilation.constants)
        )
        return self.compute_dtype if fixed or self._dtype else None

    @property
    def keeps(self) -> bool:
        return True

    def invalidate(self) -> None:
        """Forget what was made of the parameters.

        Needed only after writing into one through another array that shares its memory.
        """
        self._kept.drop()
        self._age = object()

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
        last = None if kwargs or parameters is not None else self._last
        results = None if last is None or last.age is not self._age else last.results(args)
        if results is None:
            results = self._results(args, kwargs, parameters)
        return self.compilation.pack(results)

    def _results(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: Mapping[str, Any] | None
    ) -> tuple[np.ndarray, ...]:
        age = self._age  # read first: what is dropped meanwhile is then seen to be
        arrays = self._arrays(args, kwargs, parameters)
        keeps = parameters is None
        key = (keeps, *[(array.shape, array.dtype.char) for array in arrays])
        ready = self._runs.get(key)
        if ready is None:
            ready = self._ready(key, self._call(arrays), keeps)
        if ready.aten is not None and (results := self._on_tensors(ready.aten, arrays, keeps, age)):
            return results
        count = len(self.compilation.inputs)
        rest: Sequence[Any] = arrays[count:]
        if ready.prepare is not None:
            prepare = ready.prepare
            made = self._kept.get(rest, prepare.source.text, lambda: prepare.run(*rest))
            rest = (*rest, *made)
        if keeps:
            self._remember(arrays, ready.run, rest, age)
        return ready.run(*arrays[:count], *rest)  # type: ignore[no-any-return]

    def _remember(
        self,
        arrays: Sequence[np.ndarray],
        run: Callable[..., Any],
        rest: Sequence[Any],
        age: object,
        crossing: ModuleType | None = None,
    ) -> None:
        """Have the next call run the same if it is of the same kind."""
        if level():  # a debugger looks at what is kept in every call
            return
        count = len(self.compilation.inputs)
        held = arrays[count : count + len(self._names)]
        cells = self.parameters.cells_of(self._names)
        self._last = RepeatedCall(arrays[:count], cells, held, run, rest, crossing, age)

    def _ready(self, key: object, call: Call, keeps: bool) -> _Ready:
        """The programs for arrays of the shapes and dtypes in the key, remembered."""
        ready = _programs(self.compilation, call, keeps, "numpy")
        if self._may_cross(call):
            usual_us = _time_us(self.compilation, call, keeps, "numpy")
            twin = self.compilation.led_by("torch")
            worth_us = _CROSSING_SHARE * usual_us
            if usual_us > _CROSSING_FROM_US and _time_us(twin, call, keeps, "torch") < worth_us:
                ready = replace(ready, aten=_programs(twin, call, keeps, "torch"))
        if len(self._runs) >= _KEPT:
            self._runs.clear()
        return self._runs.setdefault(key, ready)

    def _may_cross(self, call: Call) -> bool:
        """Whether a call may run in torch's operations, which asks for a second plan."""
        if self.backend != "auto" or "torch" not in sys.modules or not self.compilation.tiles:
            return False
        options = self.compilation.options
        is_quick = options.search == "auto" and options.max_seconds is None
        is_small = len(self.compilation.leaves) <= _MOST_LEAVES
        return is_quick and is_small and _CROSSING.issuperset(call.dtypes)

    def _on_tensors(
        self, ready: _Ready, arrays: Sequence[np.ndarray], keeps: bool, age: object
    ) -> tuple[np.ndarray, ...] | None:
        """The results of a call in aten operations; None where these must not run now."""
        from tncompiler import on_tensors

        if not on_tensors.can_run():
            return None
        count = len(self.compilation.inputs)
        inputs, held = arrays[:count], arrays[count:]
        if keeps:
            tensors = self._kept.get(held, "tensors", lambda: on_tensors.tensors_of(held))
        else:
            tensors = on_tensors.tensors_of(held)
        if ready.prepare is not None:
            prepare = ready.prepare
            made = self._kept.get(held, prepare.source.text, lambda: prepare.run(*tensors))
            tensors = (*tensors, *made)
        if keeps:
            self._remember(arrays, ready.run, tensors, age, on_tensors)
        return on_tensors.arrays_of(ready.run(*on_tensors.tensors_of(inputs), *tensors))

    def vjp(
        self, *args: Any, parameters: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> tuple[Any, Pull]:
        """The outputs, and a function from cotangents (shaped as the outputs) to gradients.

        Gradients come by name, for every float or complex input and parameter. A network that comes
        as a pair (value, log10 scale) takes a cotangent of its value; its scale counts as constant.
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
            given = self._cotangents(cotangents, outputs[: len(self.compilation.outputs)])
            return dict(zip(wrt, pair.backward.run(*read, *saved, *given), strict=True))

        return self.compilation.pack(outputs), pull

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
        """The value of a real scalar output and its gradients by name.

        A network that comes as a pair (value, log10 scale) has the gradients of its value.
        """
        result, pull = self.vjp(*args, parameters=parameters, **kwargs)
        value = result[0] if isinstance(result, tuple) else result
        scalar = self.compilation.container.kind == "one" and np.ndim(value) == 0
        if not scalar or np.iscomplexobj(value):
            raise GradientError(
                "value_and_grad needs one real scalar output",
                where=call_site(),
                fix="use vjp with a cotangent",
            )
        return result, pull(np.ones_like(value))

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
        count = len(results) // 2  # then as many tangents, of which those of scales are zero
        moved_values = results[count : count + len(self.compilation.outputs)]
        pack = self.compilation.container.pack
        return self.compilation.pack(results[:count]), pack(moved_values)

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


def _programs(compilation: Compilation, call: Call, keeps: bool, backend: str) -> _Ready:
    arguments = (call.dtypes, call.free, backend)
    kept = compilation.kept_executable(*arguments) if keeps else None
    whole = compilation.inference_executable(*arguments) if kept is None else kept.rest
    run: Callable[..., Any] = whole.run
    if compilation.runs_alone(whole.program, call.sizes, backend):
        from tncompiler.backends.torch.threads import on_one_thread

        run = on_one_thread(run)
    return _Ready(run, None if kept is None else kept.prepare)


def _time_us(compilation: Compilation, call: Call, keeps: bool, backend: str) -> float:
    cut = compilation.kept(call.dtypes, call.free) if keeps else None
    program = None if cut is None else cut.rest
    return compilation.predicted_us(call.dtypes, call.free, (), backend, program)


def parameter_stds(
    compilation: Compilation, examples: Mapping[str, np.ndarray] | None = None
) -> dict[str, float]:
    """The standard deviation of each parameter that has no `init`."""
    logical = compilation.logical(compilation.default_dtypes("float32"))
    nominal = {**compilation.binding, **compilation.nominal({})}
    return standard_deviations(logical, compilation.leaves, nominal, examples)


def example_arrays(compilation: Compilation, inputs: Any) -> dict[str, np.ndarray]:
    """Example inputs by name, given in order or by name. Raises ArgumentError."""
    named = isinstance(inputs, Mapping)
    values = order_inputs(
        compilation, () if named else inputs, inputs if named else {}, _no_dropout
    )
    leaves = compilation.inputs
    return {leaf.name: _array(leaf.name, v) for leaf, v in zip(leaves, values, strict=True)}


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
