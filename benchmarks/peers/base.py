"""What a peer is, and what most of them share.

A peer prepares a call for a problem: everything that can be done ahead is done there, only `run` is
timed. `read` turns what `run` returned into arrays named as the problem names them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.problems import Arrays, Problem
from benchmarks.reference import Outcome

MAX_FLOPS = 2e12  # of the path that a peer chose; more would take minutes
MAX_ELEMENTS = 2**29  # of the largest intermediate of that path
ASCII_LETTERS = 52


class Declined(RuntimeError):
    """A peer that cannot do a problem, found out while preparing: the message says why."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """``run`` is timed; ``read`` turns its result into an Outcome."""

    run: Callable[[], Any]
    read: Callable[[Any], Outcome]


class Peer(Protocol):
    """``reference``: computes something else with the same shapes, so is shown but never 'best'.

    ``slow_start``: takes so long to prepare that a default run has it on marked cases only.
    ``convolves``: does problems with windows.
    """

    reference: bool
    slow_start: bool
    convolves: bool

    def available(self) -> str | None:
        """None, or why it cannot be used here."""

    def supports(self, problem: Problem) -> str | None:
        """None, or why it cannot do this problem."""

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        """The call. Raises: Declined, or whatever the library raises."""


class Base:
    """A peer that needs `packages` and does everything."""

    packages: tuple[str, ...] = ()
    reference = False
    slow_start = False
    convolves = False

    def available(self) -> str | None:
        for package in self.packages:
            try:
                with silence():
                    import_module(package)
            except Exception as error:  # an installed package may fail in any way
                return f"{type(error).__name__}: {error}"
        return None

    def supports(self, problem: Problem) -> str | None:
        return None


class ForwardOnly(Base):
    """A library on NumPy arrays: it has no gradients."""

    def supports(self, problem: Problem) -> str | None:
        return None if problem.cell.part == "forward" else "has no gradients"


class LayerPeer(Base):
    """A library of layers in some of our formats."""

    formats: tuple[str, ...] = ()

    def supports(self, problem: Problem) -> str | None:
        case = problem.cell.case
        if case.kind != "layer":
            return "has only layers"
        if case.fields["format"] not in self.formats:
            return f"has no {case.fields['format']} layer like ours"
        return None


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what a library prints out of the report."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def refuse_long_path(flops: float, elements: float) -> None:
    """Raises Declined for a path that would take minutes or more memory than there is."""
    if flops > MAX_FLOPS or elements > MAX_ELEMENTS:
        raise Declined(f"its path takes {flops:.1e} flops and {elements:.1e} elements at once")


def read_array(value: Any) -> Outcome:
    """The result of a forward pass on arrays or tensors."""
    array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return Outcome(array, {})


def tensors_of(problem: Problem, arrays: Arrays) -> dict[str, Tensor]:
    """A tensor of its own for each operand; those that a step differentiates want gradients."""
    tensors = {name: torch.tensor(array) for name, array in arrays.operands.items()}
    if problem.cell.part == "step":
        for name in problem.gradients:
            tensors[name].requires_grad_()
    return tensors


def torch_contestant(
    problem: Problem,
    arrays: Arrays,
    forward: Callable[[], Tensor],
    leaves: Mapping[str, Tensor],
    read_gradients: Callable[[], Mapping[str, Tensor]] | None = None,
) -> Contestant:
    """A forward pass, or a step: it and the gradients of all leaves that want them.

    ``read_gradients``: how a layer with cores laid out in its own way names its gradients as ours.
    """
    shape = problem.shape(problem.output)
    if problem.cell.part == "forward":
        for leaf in leaves.values():
            leaf.requires_grad_(False)
        return Contestant(forward, lambda value: _outcome(value, shape, {}))
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    cotangents: dict[tuple[int, ...], Tensor] = {}

    def step() -> Tensor:
        for leaf in wanted:
            leaf.grad = None
        value = forward()
        value.backward(_shaped(cotangents, arrays, value))  # type: ignore[no-untyped-call]
        return value

    def read(value: Tensor) -> Outcome:
        own = {name: leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}
        return _outcome(value, shape, own if read_gradients is None else read_gradients())

    return Contestant(step, read)


def _shaped(cotangents: dict[tuple[int, ...], Tensor], arrays: Arrays, value: Tensor) -> Tensor:
    """The cotangent in the shape that this peer's output has, made once."""
    if not cotangents:
        cotangents[()] = torch.tensor(arrays.cotangent).reshape(value.shape)
    return cotangents[()]


def _outcome(value: Tensor, shape: tuple[int, ...], gradients: Mapping[str, Any]) -> Outcome:
    arrays = {
        name: gradient.numpy() for name, gradient in gradients.items() if gradient is not None
    }
    return Outcome(value.detach().numpy().reshape(shape), arrays)
