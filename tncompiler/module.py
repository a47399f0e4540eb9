"""A compiled network as a torch module: parameters by name, our backward pass under autograd.

In eager mode a call runs the generated forward and backward programs of the chosen backend inside
an autograd function. Wherever torch looks inside (compile, export, functorch, forward-mode AD,
second derivatives, tensor subclasses) the flat aten program runs instead, which torch can
differentiate itself; under torch.compile a module whose backend was named runs as an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.utils import parametrize

from tncompiler.autograd import Flat, NetworkFunction, Specialisation, apply_guarded
from tncompiler.binding import Call, order_inputs, read_call
from tncompiler.compiler import Compilation, Executable
from tncompiler.crossing import enter
from tncompiler.function import example_arrays, parameter_stds
from tncompiler.inspection import Inspection
from tncompiler.ir.dtypes import DEFAULT, LOW_PRECISION, NUMPY_ONLY, dtype_name, is_differentiable
from tncompiler.ir.errors import ArgumentError, BackendError, DeviceError, DTypeError, NameClash
from tncompiler.ir.expressions import Leaf
from tncompiler.ir.origin import call_site
from tncompiler.ir.program import Program
from tncompiler.ir.serialize import from_data, to_data
from tncompiler.kept import KeptValues, Values
from tncompiler.measure import fitting_factors
from tncompiler.operators import MOST_LEAVES, is_traced, operator_of
from tncompiler.parametrized import copy_onto
from tncompiler.planning.machine import as_machine
from tncompiler.planning.timing import TINY_STEP_US, TINY_US, program_us
from tncompiler.repeated_steps import RepeatedStep
from tncompiler.tensor_init import initialize, on_cpu
from tncompiler.tensor_marks import MARKS, can_keep, is_gathered
from tncompiler.traced import flat_program, name_network, program_of_dtypes, traced_program
from tncompiler.watching import autocasts, is_spread, is_wrapped, overseen, watched

KEPT = 256  # combinations of shapes that a module remembers


class CompiledModule(Inspection, nn.Module):
    """The module that `tnc.compile` returns.

    Parameters are the network's, by name (dots make nested modules), in their declared axis order.
    """

    _repeats = True  # whether a step like the last one needs nothing that the last one did not

    def __init__(
        self,
        compilation: Compilation,
        *,
        backend: str = "auto",
        dtype: str | None = None,
        seed: int | None = None,
        share: Any = None,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__()
        self.compilation, self.backend, self._dtype = compilation, backend, dtype
        self._cuda_graph = cuda_graph
        self._specialisations: dict[object, Specialisation] = {}
        self._owners: list[tuple[nn.Module, str]] = []
        self._owners = [self._place(leaf) for leaf in (*compilation.params, *compilation.constants)]
        self._make_leaves(seed, share)
        self._flat_runs: dict[tuple[torch.dtype, ...], Flat] = {}
        self._kept = KeptValues(MARKS)
        self._last: RepeatedStep | None = None
        self._operator = operator_of(compilation, backend, self._description)
        self._prepare()

    # ---------------------------------------------------------------- parameters

    def _place(self, leaf: Leaf) -> tuple[nn.Module, str]:
        """The (nested) module and attribute of a leaf."""
        *path, last = leaf.name.split(".")
        owner: nn.Module = self
        for part in path:
            child = owner._modules.get(part)
            if child is None:
                self._check_free(owner, part, leaf)
                child = nn.Module()
                owner.add_module(part, child)
            owner = child
        self._check_free(owner, last, leaf)
        owner.register_parameter(last, None) if leaf.kind == "param" else owner.register_buffer(
            last, None
        )
        return owner, last

    @staticmethod
    def _check_free(owner: nn.Module, name: str, leaf: Leaf) -> None:
        held = (owner.__dict__, owner._parameters, owner._buffers, owner._modules)
        if hasattr(type(owner), name) or any(name in table for table in held):
            raise NameClash(
                f"the {leaf.kind} name {leaf.name!r} is taken: a module already has {name!r}",
                where=f"the {leaf.kind} declared at {leaf.origin}",
                fix="give the tensor another name",
            )

    def _leaf_dtype(self, leaf: Leaf) -> torch.dtype:
        name = leaf.dtype if leaf.dtype != DEFAULT else self._dtype
        return torch.get_default_dtype() if name is None else getattr(torch, name)

    def _make_leaves(self, seed: int | None, share: Any) -> None:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if share is not None and not isinstance(share, nn.Module):
            raise ArgumentError(
                "a NumPy function cannot share with a torch module",
                where=call_site(),
                fix="share a torch module",
            )
        shared = {} if share is None else dict(share.named_parameters())
        leaves = (*self.compilation.params, *self.compilation.constants)
        for leaf, (owner, name) in zip(leaves, self._owners, strict=True):
            dtype = self._leaf_dtype(leaf)
            if leaf.kind == "constant":
                owner._buffers[name] = torch.tensor(np.array(leaf.value)).to(dtype)
            elif leaf.name in shared:
                owner._parameters[name] = self._shared(leaf, shared[leaf.name])
            else:
                shape = self.compilation.parameter_shape(leaf)
                trainable = dtype.is_floating_point or dtype.is_complex
                owner._parameters[name] = nn.Parameter(torch.empty(shape, dtype=dtype), trainable)
        self.reset_parameters(generator, skip=frozenset(shared))

    def _shared(self, leaf: Leaf, parameter: nn.Parameter) -> nn.Parameter:
        if leaf.dtype == DEFAULT and self._dtype not in (None, dtype_name(parameter.dtype)):
            raise DTypeError(
                f"the shared parameter {leaf.name!r} has dtype {dtype_name(parameter.dtype)}, not "
                f"{self._dtype}",
                where=f"the parameter declared at {leaf.origin}",
                fix="leave dtype= out, or share a network of that dtype",
            )
        if tuple(parameter.shape) != self.compilation.parameter_shape(leaf):
            raise NameClash(
                f"the shared parameter {leaf.name!r} has shape {tuple(parameter.shape)}, not "
                f"{self.compilation.parameter_shape(leaf)}",
                where=f"the parameter declared at {leaf.origin}",
                fix="share only networks that declare it with the same sizes",
            )
        return parameter

    @torch.no_grad()
    def reset_parameters(
        self,
        generator: torch.Generator | None = None,
        skip: frozenset[str] = frozenset(),
        *,
        inputs: Any = None,
    ) -> None:
        """Draw all parameters anew, keeping the variance of activations.

        ``inputs``: examples of all inputs, in order or by name. With them networks start with
        values of size 1 on such inputs, whatever their norms and however long the network;
        without, an input counts as having variance 1 an element. ``skip``: names to leave alone.
        """
        examples = None if inputs is None else example_arrays(self.compilation, on_cpu(inputs))
        stds = parameter_stds(self.compilation, examples)
        drawn = {}
        for leaf, (owner, name) in zip(self.compilation.params, self._owners, strict=False):
            if leaf.name not in skip:
                parameter = owner._parameters[name]
                assert parameter is not None
                initialize(leaf, parameter, stds.get(leaf.name, 1.0), generator)
                if leaf.init is None:
                    drawn[leaf.name] = parameter
        if examples is not None:
            leaves = (*self.compilation.params, *self.compilation.constants)
            tensors = zip(leaves, self._held(), strict=True)
            held = {**examples, **{leaf.name: on_cpu([t])[0] for leaf, t in tensors}}
            for name, factor in fitting_factors(self.compilation, held, drawn).items():
                drawn[name].mul_(factor)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in positional order."""
        return tuple(leaf.name for leaf in self.compilation.inputs)

    @property
    def compute_dtype(self) -> str:
        return self._fixed_dtype() or dtype_name(self._dtype or torch.get_default_dtype())

    def _fixed_dtype(self) -> str | None:
        """The dtype of undecided parameters and constants now; None if there are none."""
        leaves = (*self.compilation.params, *self.compilation.constants)
        for leaf, (owner, name) in zip(leaves, self._owners, strict=True):
            if leaf.dtype == DEFAULT:
                return dtype_name(getattr(owner, name).dtype)
        return self._dtype

    def _held(self) -> list[Tensor]:
        found = []
        for owner, name in self._owners:
            tensor = owner._parameters.get(name)
            found.append(getattr(owner, name) if tensor is None else tensor)
        return found

    # ---------------------------------------------------------------- calling

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, in the shape of container that was compiled."""
        last = None if kwargs or is_compiling() else self._last
        held = None
        if last is not None and last.may_come_again(self.training):
            held = self._held()
            if last.is_like(args, tensors := [*args, *held]):
                spec = last.spec
                made = () if spec.kept is None else self._still_kept(spec.kept.prepare, held)
                if made is not None:  # else it has to be made anew
                    return self._step(spec, tensors, made, apply_guarded)
        given = (
            args
            if not kwargs and len(args) == len(self.compilation.inputs)
            else order_inputs(self.compilation, args, kwargs, self._dropout_seed)
        )
        tensors = [*given, *(self._held() if held is None else held)]
        if any(not isinstance(tensor, Tensor) for tensor in given):
            raise ArgumentError(
                f"inputs must be torch tensors, not {[type(t).__name__ for t in given]}",
                where=self.compilation.place(),
                fix="use torch.as_tensor(…), or compile with framework='numpy'",
            )
        device = tensors[0].device.type if tensors else "cpu"
        if not autocasts(device):
            return self._run(tensors, cast=False)
        tensors = _autocast(self.compilation.ordered, tensors, device)
        with torch.autocast(device, enabled=False):  # the programs cast for themselves
            return self._run(tensors, cast=True)

    def _dropout_seed(self) -> Tensor:
        """Another one a call in training, from torch's generator; in evaluation none is dropped."""
        device = next((tensor.device for tensor in self._held()), None)
        if not self.training:
            return torch.full((), -1, dtype=torch.int64, device=device)
        return torch.randint(2**31, (), device=device)

    def run_aten(self, *inputs: Tensor) -> Any:
        """The outputs by flat aten code, where the backend's own cannot run: on a CPU, say."""
        tensors = [*inputs, *self._held()]
        return self.compilation.container.pack(self._flat(tensors)(*tensors))

    def _run(self, tensors: Sequence[Tensor], cast: bool) -> Any:
        pack = self.compilation.pack
        if watched(tensors):
            if self._operator is not None and is_traced():
                results = self._operator(*tensors)
                return pack([results] if isinstance(results, Tensor) else results)
            run = self._flat(tensors)
            if is_traced():
                run = traced_program(run, self._network, self._default, tensors)
            elif not is_compiling() and is_spread(tensors):
                if self._holds_parts(tensors):
                    results = self._spread(*tensors)
                    return pack([results] if isinstance(results, Tensor) else results)
                from torch.distributed.tensor.experimental import implicit_replication

                with implicit_replication():
                    return pack(run(*tensors))
            return pack(run(*tensors))
        grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if grad:
            self._kept.drop()
        spec = self._specialise(tensors, cast, grad, self._keeps_of(tensors, cast, grad))
        if overseen(spec.backend):
            return pack(self._flat(tensors)(*tensors))
        if self._repeats and tensors and not cast and not any(map(is_wrapped, tensors)):
            self._last = RepeatedStep.of(spec, tensors, self.training)
        made = (
            () if spec.kept is None else self._kept_values(spec.kept.prepare, spec.backend, tensors)
        )
        return self._step(spec, tensors, made)

    def _step(
        self,
        spec: Specialisation,
        tensors: Sequence[Tensor],
        made: Values,
        apply: Callable[..., Any] = NetworkFunction.apply,
    ) -> Any:
        """The outputs of its programs, with our backward pass where it has one; ``made``: what is
        kept of the parameters, as the backend's arrays."""
        results = apply(spec, *tensors) if spec.positions else spec.results(tensors, made)
        return self.compilation.pack(results)

    @cached_property
    def _spread(self) -> Callable[..., Any]:
        """The network as an operator on DTensors."""
        from tncompiler.distributed.spread import spread_of

        return spread_of(self.compilation, self.backend, self._description)

    def _holds_parts(self, tensors: Sequence[Any]) -> bool:
        """Whether parameters, all DTensors, are cut over a mesh: rules for the whole network then
        know more than those for single aten operations."""
        held = tensors[len(self.compilation.inputs) :]
        if self.compilation.stabilized or len(tensors) > MOST_LEAVES:
            return False
        return any(p.is_shard() for tensor in held for p in tensor.placements)

    def _specialise(
        self, tensors: Sequence[Tensor], cast: bool, grad: bool, keeps: bool
    ) -> Specialisation:
        leaves = tuple([(t.shape, t.dtype, t.device, grad and t.requires_grad) for t in tensors])
        key = (keeps, leaves)
        found = self._specialisations.get(key)
        self._agree(key, tensors)
        if found is None:
            found = self._make_specialisation(tensors, grad, cast, keeps)
            if len(self._specialisations) >= KEPT:
                self._specialisations.clear()  # so many shapes: programs are kept, this is refilled
            self._specialisations[key] = found
        return found

    def _agree(self, key: tuple[Any, ...], tensors: Sequence[Tensor]) -> None:
        """Where several processes work together: raise unless all are about to do the same."""

    # ---------------------------------------------------------------- what is kept between calls

    @property
    def keeps(self) -> bool:
        """Whether calls without gradients keep what parameters alone make: after `eval()`."""
        return not self.training

    def invalidate(self) -> None:
        """Forget what was made of the parameters, which happens by itself wherever torch sees that
        they change: needed after writing to them through `.data` or through NumPy."""
        self._kept.drop()

    def _keeps_of(self, tensors: Sequence[Tensor], cast: bool, grad: bool) -> bool:
        """Whether a call may use kept values: no gradients, no autocast, tensors that show it when
        they change."""
        if self.training or grad or cast or is_gathered(self):
            return False
        first, last = len(self.compilation.inputs), -len(self.compilation.constants) or None
        return can_keep(tensors[first:last], tensors[last:] if last else ())

    def _kept_values(self, prepare: Executable, backend: str, tensors: Sequence[Tensor]) -> Values:
        """What a program makes of the parameters and constants, as the backend's arrays."""
        held = tensors[len(self.compilation.inputs) :]

        def make() -> Values:
            with torch.inference_mode(False), torch.no_grad():
                return prepare.run(*enter(held, backend))

        return self._kept.get(held, prepare.source.text, make)

    def _still_kept(self, prepare: Executable, held: Sequence[Tensor]) -> Values | None:
        """What an earlier call like this one left; None if it no longer holds."""
        return None if is_gathered(self) else self._kept.held(held, prepare.source.text)

    def train(self, mode: bool = True) -> CompiledModule:
        """As torch's; values kept of the parameters are dropped on entering training."""
        if mode:
            self._kept.drop()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept.drop()
        super()._load_from_state_dict(*args, **kwargs)

    def _call(self, tensors: Sequence[Tensor], cast: bool) -> Call:
        default = _reconciled(self.compilation.ordered, tensors, self._fixed_dtype(), cast)
        return read_call(self.compilation, tensors, default)

    def _make_specialisation(
        self, tensors: Sequence[Tensor], grad: bool, cast: bool, keeps: bool
    ) -> Specialisation:
        devices = {t.device for t in tensors}
        if len(devices) > 1:
            raise DeviceError(
                f"the tensors are on {len(devices)} devices: {sorted(map(str, devices))}",
                where=self.compilation.place(),
                fix="move module and inputs to one device with .to(device)",
            )
        call = self._call(tensors, cast)
        wrt = tuple(
            leaf.name
            for leaf, tensor, dtype in zip(
                self.compilation.ordered, tensors, call.dtypes[1:], strict=True
            )
            if grad and tensor.requires_grad and is_differentiable(dtype)
        )
        keeps = keeps and not self._cuda_graph  # a graph runs whole programs
        cut = self.compilation.kept(call.dtypes, call.free) if keeps else None
        backend = self._choose(call, wrt, devices, None if cut is None else cut.rest)
        if self.backend == "auto" and backend == "torch" and self._is_tiny(call, wrt):
            wrt = ()
        kept = None
        if cut is not None:
            kept = self.compilation.kept_executable(call.dtypes, call.free, backend)
        if self._cuda_graph:
            self._check_graphs(devices)
        on_cpu = all(device.type == "cpu" for device in devices)
        return Specialisation(
            self.compilation, call, wrt, backend, kept, graph=self._cuda_graph, on_cpu=on_cpu
        )

    def _check_graphs(self, devices: set[torch.device]) -> None:
        if any(device.type != "cuda" for device in devices):
            raise BackendError(
                f"cuda_graph=True needs CUDA tensors, and these are on {sorted(map(str, devices))}",
                where=self.compilation.place(),
                fix="move module and inputs to a GPU, or leave cuda_graph out",
            )

    def _is_tiny(self, call: Call, wrt: tuple[str, ...] = ()) -> bool:
        """Whether a call, or a step for the gradients by ``wrt``, takes so little time that to
        start our function would take most of it."""
        compilation = self.compilation
        rates = as_machine(compilation.options.machine).cpu.libraries["torch"]
        program, _ = compilation.scheduled(call.dtypes, call.free)
        if program_us(program, call.sizes, rates) >= TINY_US:
            return False
        if not wrt or not compilation.tiles:
            return True
        step = compilation.training(call.dtypes, call.free, wrt)
        programs = (step.forward, step.backward)
        return sum(program_us(p, call.sizes, rates) for p in programs) < TINY_STEP_US

    def flat_if_small(self, dtypes: tuple[torch.dtype, ...]) -> Flat | None:
        """The flat aten function, if no size is free and nothing else would run faster."""
        compilation = self.compilation
        if self.backend == "numpy" or compilation.free_symbols:
            return None
        call = Call((self.compute_dtype, *map(dtype_name, dtypes)), {}, {})
        on_torch = not set(NUMPY_ONLY) & set(call.dtypes)
        return self._flat_runs.get(dtypes) if on_torch and self._is_tiny(call) else None

    def _choose(
        self,
        call: Call,
        wrt: tuple[str, ...],
        devices: set[torch.device],
        program: Program | None = None,
    ) -> str:
        """The backend for a call; ``program``: what it runs, if not the scheduled one."""
        on_cpu = all(device.type == "cpu" for device in devices)
        on_gpu = any(device.type == "cuda" for device in devices)
        if any(device.type == "meta" for device in devices):
            return "torch"  # shapes without numbers: there is nothing for a kernel to run on
        if self.backend == "triton" or (self.backend == "auto" and on_gpu and has_triton()):
            check_triton()
            return "triton"
        if on_cpu and self.backend == "auto" and set(NUMPY_ONLY) & set(call.dtypes):
            return "numpy"
        if not on_cpu or any(dtype in LOW_PRECISION for dtype in call.dtypes):
            return "torch"
        if self.backend != "auto":
            return self.backend
        if self._is_tiny(call, wrt):
            return "torch"  # to cross takes longer, and its own autograd starts faster than ours
        times = {
            name: self.compilation.predicted_us(call.dtypes, call.free, wrt, name, program)
            for name in ("numpy", "torch")
        }
        return min(times, key=times.__getitem__)

    def _flat(self, tensors: Sequence[Tensor]) -> Flat:
        """The aten program for tensors of these dtypes, which torch can look into."""
        key = tuple([tensor.dtype for tensor in tensors])
        if key in self._flat_runs:
            return self._flat_runs[key]
        if is_compiling():
            return program_of_dtypes(self._usual, self._network, self._default, tensors)
        self._flat_runs[key] = self._make_flat(key)
        return self._flat_runs[key]

    def _make_flat(self, dtypes: tuple[torch.dtype, ...]) -> Flat:
        return flat_program(self.compilation, self.compute_dtype, dtypes)

    def _prepare(self) -> None:
        """Make ready what torch.compile starts from: it cannot plan while it traces."""
        self._default = self.compute_dtype
        self._network = name_network(self.compilation, self._default)
        default = getattr(torch, self._default)
        inputs = [
            default if leaf.dtype == DEFAULT else getattr(torch, leaf.dtype)
            for leaf in self.compilation.inputs
        ]
        key = (*inputs, *(tensor.dtype for tensor in self._held()))
        if key not in self._flat_runs:
            self._flat_runs[key] = self._make_flat(key)
        self._usual = self._flat_runs[key]

    def _apply(self, fn: Any, recurse: bool = True) -> CompiledModule:
        places = self._owners[len(self.compilation.params) :]
        constants = zip(self.compilation.constants, places, strict=True)
        blank = [(leaf, place) for leaf, place in constants if getattr(*place).is_meta]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for leaf, (owner, name) in blank:  # after `to_empty` constants have their values again
            getattr(owner, name).copy_(torch.tensor(np.array(leaf.value)))
        self._kept.drop()
        self._prepare()
        return self

    # ---------------------------------------------------------------- copies

    def __reduce__(self) -> Any:
        if any(parametrize.is_parametrized(owner, name) for owner, name in self._owners):
            raise ArgumentError(
                "a network with parametrized tensors (quantized, masked) is not pickled",
                where=self.compilation.place(),
                fix="save the model with tnc.save",
            )
        return (_rebuild, (self._description(), self.state_dict(), self.training))

    def _description(self) -> dict[str, Any]:
        compilation = self.compilation
        return {
            "expressions": to_data(compilation.outputs),
            "container": (compilation.container.kind, compilation.container.keys),
            "inputs": [leaf.name for leaf in compilation.inputs],
            "sizes": {symbol.name: value for symbol, value in compilation.binding.items()},
            "options": compilation.fixed_plan or compilation.options,
            "backend": self.backend,
            "dtype": self._dtype,
            "cuda_graph": self._cuda_graph,
            "frozen": [n for n, p in self.named_parameters() if not p.requires_grad],
        }

    def _alike(self) -> CompiledModule:
        """A module of the same network, with parameters of its own."""
        return CompiledModule(
            self.compilation,
            backend=self.backend,
            dtype=self._dtype,
            cuda_graph=self._cuda_graph,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        copied = self._alike()
        memo[id(self)] = copied
        for (mine, name), (theirs, _) in zip(self._owners, copied._owners, strict=True):
            if parametrize.is_parametrized(mine, name):
                copy_onto(mine, theirs, name)
                continue
            for table in ("_parameters", "_buffers"):
                old = getattr(mine, table).get(name)
                if old is not None:
                    new = memo.get(id(old))
                    if new is None:
                        new = old.detach().clone()
                        new = (
                            nn.Parameter(new, old.requires_grad) if table == "_parameters" else new
                        )
                        memo[id(old)] = new
                    getattr(theirs, table)[name] = new
        copied.train(self.training)
        return copied

    def extra_repr(self) -> str:
        outs = ", ".join(
            f"({', '.join(map(str, output.indices))})" for output in self.compilation.outputs
        )
        return f"inputs={', '.join(self.inputs)} → {outs}, backend={self.backend}"


def has_triton() -> bool:
    """Whether the triton package is there; it is not on every system."""
    return find_spec("triton") is not None


def check_triton() -> None:
    """Raises BackendError where backend="triton" cannot be loaded."""
    if not has_triton():
        raise BackendError(
            "the triton backend needs the package triton, which is not installed",
            where=call_site(),
            fix="pip install triton, or use backend='torch'",
        )


def _reconciled(
    leaves: Sequence[Leaf], tensors: Sequence[Tensor], default: str | None, cast: bool
) -> str | None:
    """The dtype of undecided leaves: the module's, unless autocast has cast them all alike."""
    dtypes = {
        dtype_name(t.dtype)
        for leaf, t in zip(leaves, tensors, strict=True)
        if leaf.dtype == DEFAULT
    }
    return dtypes.pop() if cast and len(dtypes) == 1 else default


def _autocast(leaves: Sequence[Leaf], tensors: Sequence[Tensor], device: str) -> list[Tensor]:
    """What autocast casts: floats of undecided dtype, but never float64."""
    dtype = torch.get_autocast_dtype(device)
    return [
        t.to(dtype)
        if leaf.dtype == DEFAULT and t.is_floating_point() and t.dtype != torch.float64
        else t
        for leaf, t in zip(leaves, tensors, strict=True)
    ]


def _rebuild(
    description: dict[str, Any], state: dict[str, Tensor], training: bool
) -> CompiledModule:
    from tncompiler.container import Container

    outputs = from_data(description["expressions"])
    kind, keys = description["container"]
    container = Container(kind, outputs, tuple(keys))
    compilation = Compilation(
        container.pack(outputs), description["inputs"], description["sizes"], description["options"]
    )
    module = CompiledModule(
        compilation,
        backend=description["backend"],
        dtype=description["dtype"],
        cuda_graph=description["cuda_graph"],
    )
    module.load_state_dict(state, assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in description["frozen"])
    return module.train(training)
