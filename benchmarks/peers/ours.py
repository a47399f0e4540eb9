"""Ours: the drop-in, the compiled NumPy function, and the compiled module on each backend."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

import tncompiler as tnc
from benchmarks.peers.base import Base, Contestant, ForwardOnly, read_array, torch_contestant
from benchmarks.problems import Arrays, Problem


def expression(problem: Problem) -> Any:
    """The problem in our language."""
    names = {letter: f"k{number}" for number, letter in enumerate(problem.sizes)}
    index = {k: tnc.Index(names[k], size) for k, size in problem.sizes.items()}
    tensors = []
    for operand in problem.operands:
        own = [index[k] for k in operand.term]
        for axis, letter in enumerate(operand.term):
            if letter in operand.term[:axis]:  # a trace or diagonal
                own[axis] = tnc.Index(f"{names[letter]}_{axis}", problem.sizes[letter])
                tensors.append(tnc.delta(index[letter], own[axis]))
        leaf = (tnc.input if operand.is_input else tnc.param)(operand.name, *own)
        tensors.append(_windowed(problem, leaf, index) if operand.is_input else leaf)
    return tnc.contract(*tensors, out=[index[letter] for letter in problem.output])


def _windowed(problem: Problem, leaf: Any, index: Mapping[str, Any]) -> Any:
    """An input seen through the problem's windows."""
    for window in problem.windows:
        source, out, tap = (index[k] for k in (window.source, window.out, window.tap))
        leaf = leaf.window(source, out=out, kernel=tap, padding=window.padding)
    return leaf


class Einsum(ForwardOnly):
    """tnc.einsum with the equation, on NumPy arrays."""

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        given = [arrays.operands[o.name] for o in problem.operands]
        return Contestant(partial(tnc.einsum, problem.equation, *given), read_array)


class Function(ForwardOnly):
    """tnc.compile(…, framework="numpy")."""

    convolves = True

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        inputs = [arrays.operands[o.name] for o in problem.inputs]
        function = tnc.compile(
            expression(problem),
            inputs=[o.name for o in problem.inputs],
            framework="numpy",
            dtype=problem.cell.dtype,
        )
        for operand in problem.parameters:
            function.parameters[operand.name] = arrays.operands[operand.name]
        return Contestant(partial(function, *inputs), read_array)


class Module(Base):
    """tnc.compile(…, backend=…), a torch module."""

    convolves = True

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        module = tnc.compile(
            expression(problem),
            inputs=[o.name for o in problem.inputs],
            backend=self.backend,
            dtype=problem.cell.dtype,
        )
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(arrays.operands[name]))
        inputs = {o.name: torch.tensor(arrays.operands[o.name]) for o in problem.inputs}
        for name in set(problem.gradients) & set(inputs):
            inputs[name].requires_grad_()
        forward = partial(module, *inputs.values())
        return torch_contestant(problem, arrays, forward, {**inputs, **parameters})


EINSUM = Einsum()
FUNCTION = Function()
AUTO, NUMPY, TORCH = Module("auto"), Module("numpy"), Module("torch")
