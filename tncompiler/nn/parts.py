"""Layers with several weights, each a tensorized Linear that goes by the name of torch's weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.format import Format
from tncompiler.ir.errors import FormatError
from tncompiler.nn.built import Built
from tncompiler.nn.checks import check_format, check_implementation
from tncompiler.nn.linear import Linear

Modes_ = Sequence[int] | None
Composite_ = TypeVar("Composite_", bound="Composite")


@dataclass(frozen=True, slots=True)
class Part:
    """One weight of a layer: what torch calls it, and the attribute that holds its Linear.

    ``reads_input``: whether it reads what the layer is called with.
    """

    name: str
    attribute: str
    inputs: int
    outputs: int
    bias: bool
    in_shape: Modes_ = None
    out_shape: Modes_ = None
    reads_input: bool = False


@dataclass(frozen=True, slots=True)
class Decompositions:
    """How near the parts of a layer came to a dense one.

    ``parts``: by the name of torch's weight. ``error``: of all weights together, relative.
    """

    parts: Mapping[str, Decomposition]
    error: float
    lower_bound: float | None

    @property
    def parameters(self) -> int:
        """How many numbers the cores hold."""
        return sum(part.parameters for part in self.parts.values())


class Composite(nn.Module):
    """What layers with several weights share.

    `parts` gives them. ``format``: of all of them, or a mapping from the names of `parts` with one
    for each.
    """

    dense: ClassVar[type[nn.Module]]
    format: Format | dict[str, Format]
    implementation: str
    backend: str
    decomposition: Decompositions | None = None

    @abstractmethod
    def _plan_parts(self) -> Iterable[Part]:
        """The weights, in torch's order."""

    @abstractmethod
    def _dense_parts(self, module: Any) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Weight and bias of each part as they lie in torch's layer, to be read or written."""

    @abstractmethod
    def _blank_dense(self, like: Tensor) -> nn.Module:
        """torch's layer of the same signature, on the device and of the dtype of a tensor."""

    def parts(self) -> dict[str, Linear]:
        """The weights as tensorized Linears, by the names that torch gives them."""
        return {part.name: getattr(self, part.attribute) for part in self._plan_parts()}

    def reconstruct(self) -> dict[str, Tensor]:
        """The dense weights by the names that torch gives them; differentiable."""
        return {name: part.reconstruct() for name, part in self.parts().items()}

    def held_cores(self) -> list[Tensor]:
        """All that the weights are made of, and the biases."""
        return [*self.parameters()]

    def held_tensors(self) -> list[Tensor]:
        """What the parts hold."""
        return [tensor for part in self.parts().values() for tensor in part.held_tensors()]

    def dense_bytes(self) -> int:
        """What the dense weights take."""
        return sum(part.dense_bytes() for part in self.parts().values())

    def invalidate(self) -> None:
        """Forget what is kept of cores: needed after writing to them through `.data` or NumPy."""
        self._built.drop()
        for part in self.parts().values():
            part.invalidate()

    def train(self: Composite_, mode: bool = True) -> Composite_:
        """As torch's; what is kept of the cores is dropped on entering training."""
        if mode:
            self._built.drop()
        return super().train(mode)

    def _core_dtype(self) -> torch.dtype:
        return next(iter(self.parts().values()))._core_dtype()

    def condition_numbers(self) -> dict[str, dict[str, float]]:
        """Those of each part; see `Tensorized.condition_numbers`."""
        return {name: part.condition_numbers() for name, part in self.parts().items()}

    # ---------------------------------------------------------------- making

    def _use(self, format: Any, implementation: Any, backend: str) -> None:
        check_implementation(implementation)
        self.implementation, self.backend = implementation, backend
        self._built = Built()
        if not isinstance(format, Mapping):
            self.format = check_format(format)
            return
        names = [part.name for part in self._plan_parts()]
        if set(format) != set(names):
            raise FormatError(
                f"format= names {sorted(map(str, format))}, but the weights are {names}",
                fix="give one format for each weight, or one for all",
            )
        self.format = {name: check_format(format[name]) for name in names}

    def _format_of(self, part: Part) -> Format:
        return self.format if isinstance(self.format, Format) else self.format[part.name]

    def _make(
        self,
        format: Any,
        implementation: Any,
        backend: str,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        """Parts that are drawn anew."""
        self._use(format, implementation, backend)
        self._build(lambda part: self._new_part(part, device, dtype))
        self.reset_parameters()
        self._prepare()

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw all parts anew."""

    def _prepare(self) -> None:
        """Compile what torch.compile cannot compile while it traces."""

    def _apply(self: Composite_, fn: Any, recurse: bool = True) -> Composite_:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._prepare()
        return self

    def _build(self, make: Callable[[Part], Linear]) -> None:
        for part in self._plan_parts():
            setattr(self, part.attribute, make(part))

    def _new_part(self, part: Part, device: Any, dtype: torch.dtype | None) -> Linear:
        return Linear(
            part.inputs,
            part.outputs,
            part.bias,
            device,
            dtype,
            format=self._format_of(part),
            in_shape=part.in_shape,
            out_shape=part.out_shape,
            implementation=self.implementation,
            backend=self.backend,
        )

    def _build_near(self, module: nn.Module, goal: dict[str, Any]) -> None:
        """Parts nearest to the weights of torch's layer."""
        given = self._dense_parts(module)
        total = sum(weight.numel() for weight, _ in given.values())
        moments = self._moments_by_part(goal["moments"])

        def make(part: Part) -> Linear:
            weight, bias = given[part.name]
            budget = _share(goal["budget"], weight.numel(), total)
            return Linear.from_dense(
                _as_linear(weight, bias),
                self._format_of(part),
                in_shape=part.in_shape,
                out_shape=part.out_shape,
                implementation=self.implementation,
                backend=self.backend,
                **{**goal, "budget": budget, "moments": moments.get(part.name)},
            )

        self._build(make)
        norms = {name: float(weight.detach().norm()) for name, (weight, _) in given.items()}
        self.decomposition = _together(self.parts(), norms)
        self._read_formats()

    def _moments_by_part(self, moments: Any) -> Mapping[str, Any]:
        """Moments of what the layer is called with, for the weights that read it; or those of each
        weight, by the names of `parts`. Raises FormatError for other names."""
        parts = [*self._plan_parts()]
        if not isinstance(moments, Mapping):
            return {part.name: moments for part in parts if part.reads_input}
        unknown = sorted(set(map(str, moments)) - {part.name for part in parts})
        if unknown:
            raise FormatError(
                f"moments= names {unknown}, but the weights are {[part.name for part in parts]}",
                fix="name weights of the layer, or give the moments of its inputs",
            )
        return moments

    def _read_formats(self) -> None:
        """Say which formats the parts have: after making them, or changing one."""
        found = {name: part.format for name, part in self.parts().items()}
        first = next(iter(found.values()))
        self.format = first if all(each == first for each in found.values()) else found
        self._prepare()

    def parts_resized(self) -> None:
        """Follow parts that hold other cores than before."""
        self.decomposition = None
        self._built.drop()
        self._read_formats()

    @torch.no_grad()
    def to_dense(self) -> Any:
        """torch's layer that computes the same."""
        parts, weights = self.parts(), self.reconstruct()
        dense = self._blank_dense(next(iter(weights.values())))
        for name, (weight, bias) in self._dense_parts(dense).items():
            weight.copy_(weights[name])
            own = parts[name].bias
            if bias is not None and own is not None:
                bias.copy_(own)
        return dense.train(self.training)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def _shown_parts(self) -> str:
        """The formats of the parts with their ranks, parameters, and how many times fewer."""
        parts = self.parts().values()
        listed = " | ".join(dict.fromkeys(part.shown_ranks() for part in parts))
        count = sum(part.core_count() for part in parts)
        dense = sum(part.in_features * part.out_features for part in parts)
        return f"format={listed}, {count:,} parameters, compression {dense / max(count, 1):.3g}x"


def _as_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """torch's Linear around tensors that are there."""
    outputs, inputs = weight.shape
    module = nn.Linear(inputs, outputs, bias is not None, device="meta")
    module.weight = nn.Parameter(weight.detach())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach())
    return module


def _share(budget: Any, size: int, total: int) -> Any:
    """A part's share of a budget in numbers; fractions are each part's own."""
    counted = isinstance(budget, int) or (isinstance(budget, float) and budget > 1)
    return max(int(budget * size / total), 1) if counted and budget > 0 else budget


def _together(parts: Mapping[str, Linear], norms: Mapping[str, float]) -> Decompositions:
    found = {name: part.decomposition for name, part in parts.items()}
    known = {name: one for name, one in found.items() if one is not None}

    def joint(errors: Mapping[str, float]) -> float:
        whole = sqrt(sum(norms[name] ** 2 for name in known)) or 1.0
        return sqrt(sum((errors[name] * norms[name]) ** 2 for name in known)) / whole

    lower = {name: one.lower_bound for name, one in known.items()}
    bounds = {name: bound for name, bound in lower.items() if bound is not None}
    return Decompositions(
        known,
        joint({name: one.error for name, one in known.items()}),
        joint(bounds) if len(bounds) == len(known) else None,
    )
