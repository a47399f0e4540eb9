"""What LSTM and GRU share: their parts, and how they run.

A layer runs in one of two ways: from core to core, in a scan of our own; or its weights are built,
and torch's own kernel runs with them. In evaluation built weights are kept until a core changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from tncompiler.ir.errors import ArgumentError, DTypeError, ShapeError
from tncompiler.nn.built import keeps, product_us, table_us
from tncompiler.nn.checks import check_kind, check_probability, check_size
from tncompiler.nn.linear import Linear
from tncompiler.nn.parts import Composite, Part
from tncompiler.nn.sweep import GATES, Sweep, networks_of
from tncompiler.watching import watched

Gated_ = TypeVar("Gated_", bound="Gated")
States = tuple[Tensor, ...]

# whether oneDNN, in which a CPU's LSTM runs under autocast, has it in these dtypes on this CPU, for
# LSTMs without projection: it needs AVX-512, and torch hands over without asking
_HAS_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_LSTM_HAS = {
    torch.bfloat16: not _HAS_ONEDNN or torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: not _HAS_ONEDNN or torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}  # which are all that autocast has on a CPU


class Gated(Composite):
    """What LSTM and GRU share.

    Parts are ``ih_l0``, ``hh_l0``, … (with ``_reverse``), each a `tnc.nn.Linear`: the weight that
    torch calls ``weight_ih_l0``, from its inputs to gates · hidden_size outputs, with the bias
    ``bias_ih_l0``; ``hr_l0`` is the projection of an LSTM with `proj_size`.
    """

    kind: ClassVar[str]
    proj_size = 0

    def _describe(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
    ) -> None:
        self.input_size = check_size(input_size, "input_size")
        self.hidden_size = check_size(hidden_size, "hidden_size")
        self.num_layers = check_size(num_layers, "num_layers")
        self.bias, self.batch_first = bool(bias), bool(batch_first)
        self.dropout, self.bidirectional = (
            check_probability(dropout, "dropout"),
            bool(bidirectional),
        )
        self._sweeps: dict[str, Sweep] = {}

    def _set_shapes(self, in_shape: Any, hidden_shape: Any, out_shape: Any) -> None:
        self.in_shape, self.hidden_shape, self.out_shape = in_shape, hidden_shape, out_shape

    # ---------------------------------------------------------------- parts

    def _layers(self) -> list[list[str]]:
        """The ends of torch's names, by layer and direction."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [[f"l{layer}{end}" for end in directions] for layer in range(self.num_layers)]

    def _plan_parts(self) -> Iterator[Part]:
        gates, state = GATES[self.kind] * self.hidden_size, self.proj_size or self.hidden_size
        near, far = self.hidden_shape, self.out_shape
        for layer, names in enumerate(self._layers()):
            inputs = state * len(names) if layer else self.input_size
            below = self.in_shape if layer == 0 else near if len(names) == 1 else None
            for end in names:
                shapes, first = (below, far), layer == 0
                yield Part(
                    f"weight_ih_{end}", f"ih_{end}", inputs, gates, self.bias, *shapes, first
                )
                yield Part(f"weight_hh_{end}", f"hh_{end}", state, gates, self.bias, near, far)
                if self.proj_size:
                    name, inner = f"weight_hr_{end}", self.hidden_size
                    yield Part(name, f"hr_{end}", inner, state, False, None, near)

    def _dense_parts(self, module: Any) -> dict[str, tuple[Tensor, Tensor | None]]:
        tensors = dict(module.named_parameters())
        return {
            part.name: (tensors[part.name], tensors.get(part.name.replace("weight", "bias")))
            for part in self._plan_parts()
        }

    def _blank_dense(self, like: Tensor) -> nn.Module:
        how = dict(proj_size=self.proj_size) if self.proj_size else {}
        return self.dense(*self._signature(self), **how, device=like.device, dtype=like.dtype)

    @staticmethod
    def _signature(module: Any) -> tuple[Any, ...]:
        """What a layer, ours or torch's, was made with, but for the projection."""
        sizes = (module.input_size, module.hidden_size, module.num_layers, module.bias)
        return (*sizes, module.batch_first, module.dropout, module.bidirectional)

    def _own(self, end: str) -> tuple[Linear, Linear, Linear | None]:
        """The parts of a layer and direction."""
        hr = getattr(self, f"hr_{end}") if self.proj_size else None
        return getattr(self, f"ih_{end}"), getattr(self, f"hh_{end}"), hr

    def _all(self) -> Iterator[tuple[str, Linear, Linear, Linear | None]]:
        return ((end, *self._own(end)) for names in self._layers() for end in names)

    def _sweep(self, end: str) -> Sweep:
        """The scan of a layer and direction, made anew where a weight was tied to another."""
        _, hh, hr = self._own(end)
        found = self._sweeps.get(end)
        if found is None or found.networks != networks_of(hh, hr):
            is_reverse = end.endswith("_reverse")
            found = self._sweeps[end] = Sweep(self.kind, hh, hr, is_reverse)
        return found

    def _prepare(self) -> None:
        """Compile what torch.compile cannot compile while it traces."""
        for end, ih, *inner in self._all():
            parts = [part for part in (ih, *inner) if part is not None]
            dtype = ih._core_dtype()
            if self.implementation != "reconstructed":
                self._sweep(end).prepare(dtype)
            for part in parts if self.implementation != "factorized" else ():
                part._table.prepare(dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all cores so that weights have the variance of torch's, 1 / (3 hidden_size), and
        biases as torch draws them."""
        reach = self.hidden_size**-0.5
        for part in self.parts().values():
            part.reset_parameters()
            if not part._core(part._table.leaves[0]).is_meta:
                part._scale_by(reach * (part.in_features / 3) ** 0.5)
            if part.bias is not None:
                nn.init.uniform_(part.bias, -reach, reach)

    @classmethod
    def _near(
        cls: type[Gated_],
        module: Any,
        format: Any,
        shapes: tuple[Any, Any, Any],
        implementation: str,
        backend: str,
        goal: dict[str, Any],
    ) -> Gated_:
        check_kind(module, cls.dense)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.proj_size = module.proj_size
        layer._describe(*cls._signature(module))
        layer._set_shapes(*shapes)
        layer._use(format, implementation, backend)
        layer._build_near(module, goal)
        return layer.train(module.training)

    # ---------------------------------------------------------------- running

    def _forward(self, x: Any, states: Any) -> tuple[Any, States]:
        if isinstance(x, PackedSequence):
            return self._forward_packed(x, states)
        ready = self._built.ready(self, x)  # if so, an input of this shape has been checked
        if ready is None:
            self._check(x, (2, 3))
        axis = 0 if self.batch_first and x.ndim == 3 else 1  # of the batch
        batch = x[:, None] if x.ndim == 2 else x.transpose(0, 1) if axis == 0 else x
        given = self._checked_states(states, batch.shape[1], x)
        if ready is None and self._as_whole(batch):
            ready = self._weights(x)
        if ready is None:
            out, last = self._run_cores(batch, given)
        else:
            out, last = self._run_whole(ready, batch, given)
        if x.ndim == 2:
            return out[:, 0], tuple(state[:, 0] for state in last)
        return (out.transpose(0, 1) if axis == 0 else out), last

    def _forward_packed(self, x: PackedSequence, states: Any) -> tuple[PackedSequence, States]:
        if self.implementation == "factorized":
            raise ArgumentError(
                "a packed sequence cannot go from core to core: its batch shrinks on the way",
                where=str(self),
                fix="use implementation='auto', or pad the sequences",
            )
        self._check(x.data, (2,))
        given = self._checked_states(states, int(x.batch_sizes[0]), x.data[:, None])
        if x.sorted_indices is not None:
            given = tuple(state.index_select(1, x.sorted_indices) for state in given)
        out, last = self._run_whole(self._weights(x.data), x.data, given, x.batch_sizes)
        if x.unsorted_indices is not None:
            last = tuple(state.index_select(1, x.unsorted_indices) for state in last)
        return PackedSequence(out, x.batch_sizes, x.sorted_indices, x.unsorted_indices), last

    def _run_whole(
        self,
        weights: Sequence[Tensor],
        x: Tensor,
        states: States,
        batch_sizes: Tensor | None = None,
    ) -> tuple[Tensor, States]:
        """torch's own kernel with the weights that the cores make; under autocast in the dtype of
        the weights where the CPU's kernel lacks the other one."""
        lower = torch.get_autocast_dtype("cpu")
        lowered = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not lowered or self.kind != "LSTM" or self.proj_size or _LSTM_HAS.get(lower, True):
            return self._run_kernel(weights, x, states, batch_sizes)
        own = weights[0].dtype
        given = tuple(state.to(own) for state in states)
        with torch.autocast("cpu", enabled=False):
            out, last = self._run_kernel(weights, x.to(own), given, batch_sizes)
        return out.to(lower), tuple(state.to(lower) for state in last)

    def _run_kernel(
        self,
        weights: Sequence[Tensor],
        x: Tensor,
        states: States,
        batch_sizes: Tensor | None,
    ) -> tuple[Tensor, States]:
        kernel: Any = torch._VF.lstm if self.kind == "LSTM" else torch._VF.gru
        given: Any = states if self.kind == "LSTM" else states[0]
        how = [self.bias, self.num_layers, self.dropout, self.training, self.bidirectional]
        if batch_sizes is None:
            out, *last = kernel(x, given, weights, *how, False)
        else:
            out, *last = kernel(x, batch_sizes, given, weights, *how)
        return out, tuple(last)

    def _run_cores(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """Layer after layer, from core to core at every position."""
        last: list[list[Tensor]] = [[] for _ in states]
        for layer, names in enumerate(self._layers()):
            outs = []
            for direction, end in enumerate(names):
                ih, hh, hr = self._own(end)
                own = [state[layer * len(names) + direction] for state in states]
                out, *after = self._sweep(end).run(ih(x), own, hh, hr)
                outs.append(out)
                for held, state in zip(last, after, strict=True):
                    held.append(state)
            x = outs[0] if len(outs) == 1 else torch.cat(outs, -1)
            if layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(map(torch.stack, last))

    def _weights(self, x: Tensor) -> tuple[Tensor, ...]:
        """All weights and biases in torch's order; in evaluation kept until a core changes, and
        ready for inputs like x."""
        if keeps(self, self.held_tensors()):
            return self._built.keep(self, x, self._make_weights)
        return self._make_weights()

    def _make_weights(self) -> tuple[Tensor, ...]:
        made: list[Tensor] = []
        for _, ih, hh, hr in self._all():
            made += [part.reconstruct().contiguous() for part in (ih, hh)]
            made += [bias for bias in (ih.bias, hh.bias) if bias is not None]
            made += [] if hr is None else [hr.reconstruct().contiguous()]
        return tuple(made)

    # ---------------------------------------------------------------- which way

    def _as_whole(self, x: Tensor) -> bool:
        """Whether a batch runs on built weights: asked for, or predicted to be faster.

        Where torch looks inside, auto never does: compiled and transformed kernels of recurrences
        are what torch lacks.
        """
        held = self.held_tensors()
        if self.implementation == "auto" and watched((x, *held)):
            return False
        return self.runs_whole(x.shape[0], x.shape[1], keeps(self, held))

    def runs_whole(self, positions: int, batch: int, kept: bool) -> bool:
        """Whether such a batch runs on built weights; ``kept``: whether they are there already."""
        if self.implementation != "auto":
            return self.implementation == "reconstructed"
        return self._built.wins(
            (positions, batch, kept),
            lambda: self._whole_us(positions, batch, kept),
            lambda: self._cores_us(positions, batch, kept),
        )

    def scan_us(self, end: str, positions: int, batch: int) -> float:
        """Predicted microseconds of the scan of a layer and direction."""
        run = self._sweep(end).prepare(self._own(end)[1]._core_dtype())
        return float(run.predicted_us({"t": positions, "b": batch}))

    def _cores_us(self, positions: int, batch: int, kept: bool) -> float:
        rows = {"b": positions * batch}
        return sum(
            self.scan_us(end, positions, batch) + float(ih.cores.predicted_us(rows, keeps=kept))
            for end, ih, _, _ in self._all()
        )

    def _whole_us(self, positions: int, batch: int, kept: bool) -> float:
        total = 0.0
        for _, ih, *others in self._all():
            inner = [part for part in others if part is not None]
            total += product_us(ih, positions * batch)
            total += positions * sum(product_us(part, batch) for part in inner)
            total += 0.0 if kept else sum(map(table_us, (ih, *inner)))
        return total

    # ---------------------------------------------------------------- checks

    def _check(self, x: Any, ndims: Sequence[int]) -> None:
        """Raises ArgumentError, ShapeError or DTypeError for what is no sequence of inputs."""
        if not isinstance(x, Tensor):
            raise ArgumentError(
                f"the input is a {type(x).__name__}", where=str(self), fix="give a torch tensor"
            )
        if x.ndim not in ndims or x.shape[-1] != self.input_size or not x.shape[0]:
            order = "(batch, positions, " if self.batch_first else "(positions, batch, "
            raise ShapeError(
                f"the input has shape {tuple(x.shape)}, but the layer takes {self.input_size} "
                "features at one position or more",
                where=str(self),
                fix=f"give {order}features), or (positions, features)",
            )
        self._check_dtype(x, "the input")

    def _check_dtype(self, x: Tensor, what: str) -> None:
        own = self._own("l0")[0]._core_dtype()
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise DTypeError(
                f"{what} has dtype {x.dtype}, but the layer {own}",
                where=str(self),
                fix="convert one of them with .to(…)",
            )

    def _checked_states(self, states: Any, batch: int, x: Tensor) -> States:
        """States of all layers and directions, zeros if none are given, with a batch axis."""
        count = self.num_layers * (1 + self.bidirectional)
        sizes = [self.proj_size or self.hidden_size]
        sizes += [self.hidden_size] if self.kind == "LSTM" else []
        if states is None:
            return tuple(x.new_zeros(count, batch, size) for size in sizes)
        given = tuple(states) if isinstance(states, tuple | list) else (states,)
        own = (count,) if x.ndim == 2 else (count, batch)
        wanted = [(*own, size) for size in sizes]
        if [tuple(getattr(state, "shape", ())) for state in given] != wanted:
            raise ShapeError(
                f"states are {[tuple(getattr(s, 'shape', ())) for s in given]}, not {wanted}",
                where=str(self),
                fix="give (h_0, c_0)" if self.kind == "LSTM" else "give h_0",
            )
        for state in given:
            self._check_dtype(state, "a state")
        return given if x.ndim == 3 else tuple(state[:, None] for state in given)

    def extra_repr(self) -> str:
        shown = f"{self.input_size}, {self.hidden_size}"
        usual = dict(num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False)
        for name, value in (usual | dict(proj_size=0)).items():
            if getattr(self, name) != value:
                shown += f", {name}={getattr(self, name)}"
        return f"{shown}, {self._shown_parts()}"
