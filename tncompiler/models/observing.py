"""What comes to each weight while a model runs on calibration batches: second moments.

To add a kind of layer: a class with a hook and a `value`, and a line in OBSERVERS. The value is
what the layer's `from_dense` takes as `moments`; None where nothing came through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, unpack_sequence
from torch.overrides import TorchFunctionMode

from tncompiler.formats.dense import Dense
from tncompiler.models.calibration import Moments
from tncompiler.nn.attention import MultiheadAttention
from tncompiler.nn.graph import convolve, edges_of

_AT_ONCE = 2**22  # numbers of patches that are looked at together


def given(module: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """What a module was called with, by name."""
    return signature(module.forward).bind(*args, **kwargs).arguments


class PatchInputs(Moments):
    """Of the patches that a convolution's kernel sees, over all groups, which share input modes."""

    def __call__(self, module: Any, args: Any, kwargs: Any, result: Any) -> None:
        for patches in _patches(module, given(module, args, kwargs)["input"]):
            self.add(patches)


def _patches(module: Any, x: Tensor) -> Iterator[Tensor]:
    """(places, channels of a group · taps), channels first: image by image, group by group."""
    count = len(module.kernel_size)
    images = x if x.ndim == count + 2 else x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    images = F.pad(images, module._reversed_padding_repeated_twice, mode=mode)
    for image in images:
        moves = zip(module.kernel_size, module.stride, module.dilation, strict=True)
        for axis, (taps, stride, dilation) in enumerate(moves, start=1):
            image = image.unfold(axis, (taps - 1) * dilation + 1, stride)[..., ::dilation]
        for group in image.unflatten(0, (module.groups, -1)):
            places = group.movedim(0, count)  # (*places, channels, *taps)
            some = max(_AT_ONCE // max(prod(places.shape[1:]), 1), 1)
            for part in places.split(some):
                yield part.flatten(count).flatten(0, count - 1)


class TokenInputs:
    """How often each row of a table is read, every row once more than it was: what the batches do
    not show is not given up."""

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        self.padding: int | None = None

    def __call__(self, module: Any, args: Any, kwargs: Any, result: Any) -> None:
        tokens = given(module, args, kwargs)["input"].detach().reshape(-1).cpu().long()
        counted = torch.bincount(tokens, minlength=module.num_embeddings)
        self.counts = counted if self.counts is None else self.counts + counted
        self.padding = module.padding_idx

    @property
    def value(self) -> Tensor | None:
        """The frequencies of all rows; 0 of the padding, which is no row of the network."""
        if self.counts is None:
            return None
        numbers = self.counts.double() + 1
        if self.padding is not None:
            numbers[self.padding] = 0.0
        return numbers / numbers.sum()


class PartInputs:
    """Of what comes to each weight of a layer with several, by its name."""

    def __init__(self) -> None:
        self.parts: dict[str, Moments] = {}

    def add(self, name: str, rows: Tensor) -> None:
        self.parts.setdefault(name, Moments()).add(rows)

    @property
    def value(self) -> dict[str, Any] | None:
        """The moments by the names of the weights."""
        return {name: moments.value for name, moments in self.parts.items()} or None


class AttentionInputs(PartInputs):
    """Seen in a layer of ours with the same weights, whose projections are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: MultiheadAttention | None = None

    def __call__(self, module: Any, args: Any, kwargs: Any, result: Any) -> None:
        if self.layer is None:
            layer = MultiheadAttention.from_dense(module, Dense(), implementation="factorized")
            self.layer = layer.eval()
            for name, part in layer.parts().items():
                watch = self.parts.setdefault(name, Moments())
                part.register_forward_hook(watch, with_kwargs=True)
        self.layer(*args, **kwargs)


class RecurrentInputs(PartInputs):
    """The inputs of every layer and direction, and the states before every position."""

    def __call__(self, module: Any, args: Any, kwargs: Any, result: Any) -> None:
        named = given(module, args, kwargs)
        for x, states in _sequences(module, named["input"], named.get("hx")):
            self._watch(module, x, states)

    def _watch(self, module: Any, x: Tensor, states: tuple[Tensor, ...]) -> None:
        ends = ("", "_reverse") if module.bidirectional else ("",)
        for layer in range(module.num_layers):
            outs = []
            for direction, end in enumerate(ends):
                own = [state[layer * len(ends) + direction][None] for state in states]
                outs.append(self._watch_one(module, f"l{layer}{end}", x, own))
            x = torch.cat(outs, -1)

    def _watch_one(self, module: Any, end: str, x: Tensor, states: list[Tensor]) -> Tensor:
        """The outputs of one layer in one direction."""
        is_reverse = end.endswith("_reverse")
        x = x.flip(0) if is_reverse else x
        out = _run(module, end, x, states)
        before = torch.cat([states[0], out[:-1]])
        self.add(f"weight_ih_{end}", x)
        self.add(f"weight_hh_{end}", before)
        if getattr(module, "proj_size", 0):
            self.add(f"weight_hr_{end}", _unprojected(module, end, x, before, states[1]))
        return out.flip(0) if is_reverse else out


def _sequences(module: Any, x: Any, states: Any) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Batches of whole sequences, (positions, batch, features), with their states before."""
    if isinstance(x, PackedSequence):
        for number, each in enumerate(unpack_sequence(x)):
            own = None if states is None else [s[:, number] for s in _listed(states)]
            yield from _sequences(module, each, own)
    elif x.ndim == 2:
        own = None if states is None else [state[:, None] for state in _listed(states)]
        yield x[:, None], _states(module, x[:, None], own)
    else:
        batch = x.transpose(0, 1) if module.batch_first else x
        yield batch, _states(module, batch, states)


def _listed(states: Any) -> tuple[Tensor, ...]:
    return tuple(states) if isinstance(states, tuple | list) else (states,)


def _states(module: Any, x: Tensor, states: Any) -> tuple[Tensor, ...]:
    """As given, or zeros."""
    if states is not None:
        return _listed(states)
    count = module.num_layers * (1 + module.bidirectional)
    sizes = [getattr(module, "proj_size", 0) or module.hidden_size]
    sizes += [module.hidden_size] if isinstance(module, nn.LSTM) else []
    return tuple(x.new_zeros(count, x.shape[1], size) for size in sizes)


def _run(module: Any, end: str, x: Tensor, states: list[Tensor]) -> Tensor:
    """torch's kernel for one layer in one direction."""
    names = ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ())]
    names += ["weight_hr"] if getattr(module, "proj_size", 0) else []
    weights = [getattr(module, f"{name}_{end}") for name in names]
    how = (weights, module.bias, 1, 0.0, False, False, False)
    is_lstm = isinstance(module, nn.LSTM)
    kernel: Any = torch._VF.lstm if is_lstm else torch._VF.gru
    out: Tensor = kernel(x, tuple(states) if is_lstm else states[0], *how)[0]
    return out


def _unprojected(module: Any, end: str, x: Tensor, before: Tensor, cell: Tensor) -> Tensor:
    """The hidden states of an LSTM before they are projected."""
    biases = [getattr(module, f"bias_{kind}_{end}", None) for kind in ("ih", "hh")]
    gates = F.linear(x, getattr(module, f"weight_ih_{end}"), biases[0])
    gates = gates + F.linear(before, getattr(module, f"weight_hh_{end}"), biases[1])
    hidden, c = [], cell[0]
    for position in gates:
        enters, stays, new, leaves = position.chunk(4, -1)
        c = stays.sigmoid() * c + enters.sigmoid() * new.tanh()
        hidden.append(leaves.sigmoid() * c.tanh())
    return torch.stack(hidden)


class GraphInputs(Moments):
    """Of the features of nodes after they were propagated, which is what the weight gets."""

    def __call__(self, module: Any, args: Any, kwargs: Any, result: Any) -> None:
        named = given(module, args, kwargs)
        x = named["x"]
        graph = edges_of(x, named["edge_index"], named.get("edge_weight"), module.self_loops)
        same = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        self.add(convolve(x, graph, same, None, module.normalization))


# the layer that takes a module's place → what watches the module
OBSERVERS: dict[str, type[Any]] = {
    "Linear": Moments,
    "Conv1d": PatchInputs,
    "Conv2d": PatchInputs,
    "Conv3d": PatchInputs,
    "Embedding": TokenInputs,
    "EmbeddingBag": TokenInputs,
    "MultiheadAttention": AttentionInputs,
    "LSTM": RecurrentInputs,
    "GRU": RecurrentInputs,
    "GraphConv": GraphInputs,
}


class ParameterInputs(TorchFunctionMode):
    """What torch.nn.functional.linear multiplies by certain parameters, ``moments`` by their id."""

    def __init__(self, moments: Mapping[int, Moments]) -> None:
        super().__init__()
        self.moments = moments

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight = [*args, *(kwargs or {}).values()][:2]
            if id(weight) in self.moments:
                self.moments[id(weight)].add(x)
        return func(*args, **(kwargs or {}))
