"""What all tensorized layers share: shapes, the format, reading cores, going from and to dense."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import prod
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tncompiler.api import compile as compile_network
from tncompiler.formats.conditioning import condition_numbers
from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.format import Format
from tncompiler.formats.modes import Modes
from tncompiler.formats.weights import as_array
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.errors import ShapeError
from tncompiler.ir.expressions import Expr
from tncompiler.nn.built import Built
from tncompiler.nn.checks import (
    IMPLEMENTATIONS,
    check_format,
    check_implementation,
    check_shape,
    on_device,
)
from tncompiler.nn.given import CoreReading, common_dtype
from tncompiler.nn.initialize import orthogonalize
from tncompiler.nn.looking import Looking

Tensorized_ = TypeVar("Tensorized_", bound="Tensorized")


class IllConditioned(UserWarning):
    """A bond carries directions that nearly cancel: rounding is amplified."""


class Tensorized(Looking, nn.Module):
    """A layer whose weight is the network of a format, with its parameters in ``cores``.

    ``format``, ``in_shape``, ``out_shape``: of the weight; ``table_shape``: its rows and columns
    without padding. ``decomposition``: how near the cores of `from_dense` came, otherwise None.
    ``dense``: the layer that `from_dense` takes and `to_dense` gives.
    """

    dense: ClassVar[type[nn.Module]]
    cores: Any
    table_shape: tuple[int, int]
    decomposition: Decomposition | None = None
    flipped = False  # whether torch holds the transpose of the table that the format describes
    has_bias = False
    inputs: ClassVar[tuple[str, ...] | None] = None  # of `cores`, where their order is not plain

    def _describe_weight(
        self,
        shape: tuple[int, int],
        format: Any,
        in_shape: Any,
        out_shape: Any,
        implementation: Any,
        backend: Any,
    ) -> None:
        check_implementation(implementation)
        self.table_shape, self.format = shape, check_format(format)
        self.in_shape = check_shape(in_shape, shape[0], "in_shape", format)
        self.out_shape = check_shape(out_shape, shape[1], "out_shape", format)
        self.implementation, self.backend = implementation, backend
        self._network = self.format.network(*self._modes())  # its leaves name the cores
        self._table = CoreReading(self._network, backend)
        self._built = Built()

    def _expression(self) -> Expr:
        """What `cores` computes."""
        return self._network

    def _compiled(self, dtype: torch.dtype | None) -> Any:
        return compile_network(
            self._expression(),
            inputs=self.inputs,
            backend=self.backend,
            dtype=None if dtype is None else dtype_name(dtype),
            plan=IMPLEMENTATIONS[self.implementation],
        )

    @property
    def bias(self) -> Tensor | None:
        return self.cores.bias if self.has_bias else None

    def _take_bias(self, bias: Tensor | None) -> None:
        """Hold the numbers of a dense layer's bias."""
        if bias is not None:
            with torch.no_grad():
                self.cores.bias.copy_(bias)

    def held_cores(self) -> list[Tensor]:
        """The parameters that the weight is made of, one for each place in the network."""
        return [self._core(name) for name in self._table.parameters]

    def held_tensors(self) -> list[Tensor]:
        """The cores, and the bias if there is one."""
        bias = self.bias
        return [*self.held_cores(), *(() if bias is None else (bias,))]

    def dense_bytes(self) -> int:
        """What the dense weight takes."""
        return prod(self.table_shape) * self._core_dtype().itemsize

    def invalidate(self) -> None:
        """Forget what is kept of cores: needed after writing to them through `.data` or NumPy."""
        self._built.drop()
        self.cores.invalidate()

    def train(self: Tensorized_, mode: bool = True) -> Tensorized_:
        """As torch's; what is kept of the cores is dropped on entering training."""
        if mode:
            self._built.drop()
        return super().train(mode)

    def _modes(self) -> tuple[Any, Any]:
        modes = Modes.of(self.in_shape, self.out_shape)
        return modes.ins, modes.outs

    def _core(self, name: str) -> Tensor:
        """A parameter or constant of the network, as functional_call and the like set it."""
        core: Tensor = attrgetter(name)(self.cores)
        return core

    def _whole_table(self) -> Tensor:
        """The weight of the network without its padding, (rows, columns)."""
        table = self._table([self._core(name) for name in self._table.leaves])
        rows, columns = self.table_shape
        return table.reshape(prod(self.in_shape), prod(self.out_shape))[:rows, :columns]

    def _core_dtype(self) -> torch.dtype:
        return common_dtype([self._core(name) for name in self._table.leaves])

    @property
    def weight(self) -> Tensor:
        """The dense weight as torch holds it, made anew at each call; differentiable."""
        return self.reconstruct()

    def reconstruct(self) -> Tensor:
        """The dense weight as torch holds it; differentiable."""
        table = self._whole_table()
        return table.t() if self.flipped else table

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of `weight`."""
        return self.table_shape

    def _tied_like(self, other: Any) -> bool:
        """Whether another's weight has the same shape, or else the transposed one."""
        shape = other.weight_shape if isinstance(other, Tensorized) else None
        if shape is None or self.weight_shape not in (shape, shape[::-1]):
            raise ShapeError(
                f"a weight of shape {self.weight_shape} cannot be tied to {other!s:.200}",
                where=str(self),
                fix="tie it to a tensorized layer whose weight has that shape",
            )
        return bool(shape == self.weight_shape)

    def _share_weight(self, other: Tensorized) -> None:
        for name in ("table_shape", "format", "in_shape", "out_shape", "_network", "_table"):
            setattr(self, name, getattr(other, name))
        self.decomposition = other.decomposition
        self._built.drop()

    def _hold_cores_of(self, other: Tensorized) -> None:
        """Compile anew around the parameters of another layer; a bias stays this layer's own."""
        params = [leaf.name for leaf in self._network.leaves if leaf.kind == "param"]
        self._compile_around({name: other._core(name) for name in params})

    def resize(self, format: Format, cores: Mapping[str, nn.Parameter]) -> None:
        """Hold other cores from now on: those of this format with bonds of other sizes.

        All else stays; numbers that torch draws next are not touched.
        """
        self.format, self.decomposition = format, None
        self._network = format.network(*self._modes())
        self._table = CoreReading(self._network, self.backend)
        self._built.drop()
        like = next(iter(cores.values()))
        with torch.random.fork_rng([like.device] if like.is_cuda else []):
            self._compile_around(cores)

    def _compile_around(self, cores: Mapping[str, Tensor]) -> None:
        like, bias, training = next(iter(cores.values())), self.bias, self.cores.training
        with on_device(like.device):
            self.cores = self._compiled(like.dtype).train(training)
        for name, core in cores.items():
            path, _, last = name.rpartition(".")
            setattr(self.cores.get_submodule(path), last, core)
        if bias is not None:
            moved = bias.to(like)
            self.cores.bias = bias if moved is bias else nn.Parameter(moved, bias.requires_grad)

    def condition_numbers(self) -> dict[str, float]:
        """For each bond, how much rounding its terms amplify: 1 where they are orthogonal.

        See `tncompiler.formats.conditioning`. Cost: a contraction of all cores twice, for each
        bond.
        """
        cores = {name: as_array(self._core(name)) for name in self._table.leaves}
        return condition_numbers(self._network, cores)

    def _take(self, found: Decomposition) -> None:
        """Hold the cores of a decomposition."""
        with torch.no_grad():
            for name, core in found.cores.items():
                self._core(name).copy_(torch.from_numpy(np.ascontiguousarray(core)))
        self.decomposition = found

    def _apply(self, fn: Any, recurse: bool = True) -> Tensorized:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._prepare()
        return self

    def _prepare(self) -> None:
        """Compile what torch.compile cannot compile while it traces."""

    def _draw(self) -> Tensor | None:
        """Draw the cores anew, up to a scale; one of them, or None if they hold no numbers."""
        self.cores.reset_parameters()
        for core in self._drawn().values():
            orthogonalize(core)
        first = self._core(self._table.leaves[0])
        return None if first.is_meta else first

    def _scale_by(self, factor: float) -> None:
        """Multiply the weight by a factor that its cores share."""
        drawn = self._drawn()
        occurrences = sum(name in drawn for name in self._table.leaves)
        if drawn and 0 < factor < float("inf"):
            for core in drawn.values():
                core.mul_(factor ** (1 / occurrences))

    def _drawn(self) -> dict[str, Tensor]:
        """The cores without initial values of their own."""
        leaves = (leaf for leaf in self._network.leaves if leaf.kind == "param")
        return {leaf.name: self._core(leaf.name) for leaf in leaves if leaf.init is None}

    def __repr__(self) -> str:
        """One line: the compiled network inside says nothing that the format does not."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def shown_ranks(self) -> str:
        """The format with the ranks that its bonds have."""
        ranks = self.format.sizes(Modes.of(self.in_shape, self.out_shape))
        return str(self.format.with_ranks(ranks) if ranks else self.format)

    def core_count(self) -> int:
        """How many numbers the cores hold."""
        return int(self.format.parameters(self.in_shape, self.out_shape))

    def _shown_format(self) -> str:
        """The format with its ranks and shapes, parameters, and how many times fewer they are."""
        shapes = zip((self.in_shape, self.out_shape), self.table_shape, strict=True)
        shown = " → ".join(_shown_modes(modes, size) for modes, size in shapes)
        count = self.core_count()
        return (
            f"format={self.shown_ranks()}, {shown}, {count:,} parameters in cores, "
            f"compression {prod(self.table_shape) / max(count, 1):.3g}x"
        )


def _shown_modes(modes: Sequence[int], size: int) -> str:
    """Modes, and the size that they pad."""
    padded = "" if prod(modes) == size else f" (padded from {size})"
    return f"{'x'.join(map(str, modes))}{padded}"


def decompose_weight(
    format: Any,
    weight: Tensor,
    in_shape: Any,
    out_shape: Any,
    goal: Mapping[str, Any],
    *,
    stacklevel: int = 3,
) -> Decomposition:
    """Cores for a weight of shape (inputs, outputs); warns where a bond is badly conditioned.

    A bond is so from 1 / sqrt(eps) of the weight's dtype: half of its digits may be lost.
    """
    check_format(format)
    modes = (
        check_shape(in_shape, weight.shape[0], "in_shape", format),
        check_shape(out_shape, weight.shape[1], "out_shape", format),
    )
    found: Decomposition = format.decompose(weight, *modes, **goal)
    limit = torch.finfo(weight.dtype).eps ** -0.5
    for bond, number in condition_numbers(found.network, found.cores).items():
        if number > limit:
            warnings.warn(
                f"bond {bond} of {found.format} has condition number {number:.1e}: its terms "
                "nearly cancel, which amplifies rounding. Use a lower rank, or another format",
                IllConditioned,
                stacklevel=stacklevel,
            )
    return found
