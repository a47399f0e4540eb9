"""What runs through a model: batches as users give them, moments of inputs, output errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tncompiler.ir.errors import ArgumentError

Batch = tuple[tuple[Any, ...], dict[str, Any]]  # what a model is called with


def read_batches(calibration: Any) -> list[Batch]:
    """Calls of a model. A tensor or a tuple (positional) or a mapping (keywords) is one batch, any
    other iterable is many of these. Raises ArgumentError for what is neither, or empty."""
    if calibration is None:
        return []
    one = as_batch(calibration)
    if one is not None:
        return [one]
    if not isinstance(calibration, Iterable):
        raise _no_batches(f"calibration is a {type(calibration).__name__}")
    batches = [as_batch(each) for each in calibration]
    known = [batch for batch in batches if batch is not None]
    if not known or len(known) < len(batches):
        raise _no_batches(f"calibration has {len(batches)} batches, of which {len(known)} are any")
    return known


def as_batch(value: Any) -> Batch | None:
    """A call of a model: a tensor or a tuple (positional), a mapping (keywords); or None."""
    if isinstance(value, Tensor):
        return (value,), {}
    if isinstance(value, Mapping):
        return (), dict(value)
    return (value, {}) if isinstance(value, tuple) and value else None


def _no_batches(what: str) -> ArgumentError:
    return ArgumentError(
        what, fix="give a tensor, a tuple or a dict as the model takes it, or a list of these"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode without gradients; every module's own mode is back afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def run_hooked(model: nn.Module, batches: Sequence[Batch], hooks: Mapping[nn.Module, Any]) -> None:
    """Call the model on all batches with a forward hook (module, args, kwargs, result) on some.

    Meanwhile torch's transformers take no way around their modules, and make no nested tensors.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    handles = [
        module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks.items()
    ]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with evaluating(model):
            for args, kwargs in batches:
                model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------------------- second moments


class Moments:
    """Second moments of the rows that a weight gets, as far as so many rows can tell them."""

    def __init__(self) -> None:
        self.total, self.rows, self.fourth = torch.zeros((), dtype=torch.float64), 0, 0.0

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self.add(next(iter((*args, *kwargs.values()))))

    def add(self, x: Tensor) -> None:
        """Count the rows of x(…, inputs) in."""
        rows = x.detach().reshape(-1, x.shape[-1]).cpu()
        rows = rows.to(torch.complex128 if rows.is_complex() else torch.float64)
        self.total = self.total + rows.mH @ rows
        self.rows += len(rows)
        self.fourth += float(rows.abs().square().sum(1).square().sum())

    @property
    def value(self) -> Tensor | None:
        """What `Format.decompose` takes as moments; None where nothing came through but zeros.

        Drawn towards a multiple of the identity by as much as chance is in them: a few rows would
        otherwise be fitted at the price of all others.
        Source: Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4, section 3.3.
        """
        if not self.rows or not self.fourth:
            return None
        mean = self.total / self.rows
        scale = float(mean.trace().real) / len(mean)
        square = float(mean.abs().square().sum())
        spread = square - len(mean) * scale**2
        chance = (self.fourth / self.rows - square) / self.rows
        share = min(max(chance / spread, 0.0), 1.0) if spread > 0 else 1.0
        return (1 - share) * mean + share * scale * torch.eye(len(mean), dtype=mean.dtype)


# ---------------------------------------------------------------------------- output errors


class OutputError:
    """How far a layer's outputs are from those of the module that it stands for."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.calls = 0
        self.missed = self.norm = 0.0

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self.calls += 1
        with evaluating(self.layer):
            other = self.layer(*args, **kwargs)
        for mine, theirs in zip(tensors_of(other), tensors_of(result), strict=True):
            self.missed += square_of(mine - theirs)
            self.norm += square_of(theirs)

    @property
    def value(self) -> float | None:
        """The relative error over all calls; of zeros that stay zeros it is 0. None where there was
        no call, or where zeros became something else."""
        if not self.norm:
            return 0.0 if self.calls and not self.missed else None
        return float((self.missed / self.norm) ** 0.5)


def square_of(tensor: Tensor) -> float:
    """The sum of squares of all numbers."""
    return float(tensor.detach().abs().double().square().sum())


def tensors_of(value: Any) -> list[Tensor]:
    """The floating-point tensors of a result, in order; of a mapping, those of its values."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() or value.is_complex() else []
    if isinstance(value, Mapping):
        value = tuple(value.values())
    nested = value if isinstance(value, tuple | list) else ()
    return [tensor for item in nested for tensor in tensors_of(item)]
