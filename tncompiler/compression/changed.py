"""The layers of a model that prune and quantize may change, and what became of each."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.utils import parametrize

from tncompiler.formats.bonds import Cores, Sites
from tncompiler.formats.conditioning import in_double
from tncompiler.formats.evaluate import evaluate
from tncompiler.formats.weights import as_array, check_finite
from tncompiler.ir.errors import ArgumentError, FormatError
from tncompiler.models.parameters import network_weights
from tncompiler.models.storage import owner_of
from tncompiler.nn.tensorized import Tensorized
from tncompiler.parametrized import chain_of, source_of

Filter = Callable[[nn.Module, str], bool]
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one layer's weight.

    ``format``: with the ranks that it has now. ``numbers_before``, ``numbers_after``: how many the
    cores hold, zeros of a mask left out. ``bytes_before``, ``bytes_after``: scales and masks
    counted. ``error``: of the weight, relative to what it was. ``how``: what was done.
    """

    name: str
    format: str
    numbers_before: int
    numbers_after: int
    bytes_before: int
    bytes_after: int
    error: float
    how: str


@dataclass(frozen=True, slots=True)
class Changes:
    """``layers``: what was changed; ``skipped``: other tensorized layers, with the reason."""

    layers: tuple[Change, ...]
    skipped: Mapping[str, str]

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)

    def table(self) -> Table:
        """A rich table, one row for each weight."""
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("weight", "format", "how"):
            made.add_column(heading, overflow="fold")
        for heading in ("numbers", "bytes", "error"):
            made.add_column(heading, justify="right")
        for each in self.layers:
            numbers = f"{each.numbers_before:,} → {each.numbers_after:,}"
            sizes = f"{each.bytes_before:,} → {each.bytes_after:,}"
            row = (each.name or "(model)", each.format, each.how, numbers, sizes)
            made.add_row(*row, f"{each.error:.3g}")
        for name, reason in self.skipped.items():
            made.add_row(name or "(model)", "as it was", reason, "", "", "")
        return made

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=_WIDTH).print(self.table())
        return text.getvalue().rstrip("\n")


def layers_to_change(
    model: Any, filter_fn: Filter | None, skipped: dict[str, str]
) -> Iterator[tuple[str, Tensorized]]:
    """The tensorized layers of a model whose cores are theirs alone; others go to `skipped`.

    Raises: ArgumentError for what is no module, for a filter that is no function, and where nothing
    is tensorized or a layer has no numbers (meta device); FormatError for NaN or infinity.
    """
    if filter_fn is not None and not callable(filter_fn):
        raise ArgumentError(
            f"filter_fn is {filter_fn!r:.60}", fix="give a function (layer, name) → bool"
        )
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"the model is a {type(model).__name__}", fix="give a torch.nn.Module")
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Tensorized)]
    for name, *_ in network_weights(model):
        skipped[name] = "a parameter of another module, which reads it as a whole"
    if not found and not skipped:
        raise ArgumentError("nothing in it is tensorized", fix="use tnc.tensorize_ first")
    users: dict[int, int] = {}
    for _, layer in found:
        for held in _held(layer):
            users[held] = users.get(held, 0) + 1
    for name, layer in found:
        if filter_fn is not None and not filter_fn(layer, name):
            skipped[name] = "left out by filter_fn"
        elif any(users[held] > 1 for held in _held(layer)):
            skipped[name] = "its cores are tied to another layer's"
        else:
            _check_numbers(name, layer)
            yield name, layer


def _check_numbers(name: str, layer: Tensorized) -> None:
    """Raises where the cores hold no numbers that a network of fewer could be made of."""
    shown = name or "the layer"
    if any(layer._core(core).is_meta for core in layer._table.parameters):
        raise ArgumentError(f"{shown} is on the meta device", fix="load its numbers first")
    check_finite(cores_in_double(layer), f"{shown}: {layer}")


def _held(layer: Tensorized) -> set[int]:
    """What the layer's cores are made of, by identity."""
    return {id(source_of(*owner_of(layer.cores, name))) for name in layer._table.parameters}


def sites_or_reason(layer: Tensorized) -> tuple[Sites | None, str]:
    """The sites of a layer's weight; where it is not one contraction, why."""
    try:
        return Sites.of(layer._network), ""
    except FormatError as error:
        return None, error.what


def cores_in_double(layer: Tensorized) -> dict[str, np.ndarray]:
    """The parameters of a layer's weight, in double precision."""
    names = dict.fromkeys(layer._table.parameters)
    return {name: in_double(as_array(layer._core(name))) for name in names}


def dense(sites: Sites, cores: Cores) -> np.ndarray:
    """The weight of some cores."""
    return evaluate(sites.network, {**cores})


def relative(new: np.ndarray, old: np.ndarray) -> float:
    """The norm of the difference, relative to the old weight's."""
    norm = float(np.linalg.norm(old))
    return float(np.linalg.norm(new - old)) / (norm or 1.0)


def layer_bytes(layer: Tensorized) -> int:
    """What the cores take as they are held: parameters, and the buffers that go with them."""
    total = 0
    for name in dict.fromkeys(layer._table.parameters):
        owner, key = owner_of(layer.cores, name)
        made = parametrize.is_parametrized(owner, key)
        chain = chain_of(owner, key) if made else None
        tensors = [*chain.parameters(), *chain.buffers()] if chain else [getattr(owner, key)]
        total += sum(t.numel() * t.element_size() for t in tensors)
    return total


def count_numbers(layer: Tensorized) -> int:
    """How many numbers the cores hold, zeros of a mask left out."""
    total = 0
    for name in dict.fromkeys(layer._table.parameters):
        owner, key = owner_of(layer.cores, name)
        made = parametrize.is_parametrized(owner, key)
        mask = getattr(chain_of(owner, key)[0], "mask", None) if made else None
        total += layer._core(name).numel() if mask is None else int(mask.sum())
    return total
