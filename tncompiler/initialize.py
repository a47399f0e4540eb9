"""Standard deviations for parameters that keep the variance of what flows through a network.

In: a logical program. The output of a contraction has the product of its operands' second moments
times the number of summed terms; a network's parameters share equally in bringing that to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tncompiler.ir.expressions import Leaf
from tncompiler.ir.functions import function
from tncompiler.ir.gather import Gather
from tncompiler.ir.program import (
    Contract,
    Convolve,
    Literal,
    Map,
    Networks,
    Program,
    Step,
    label_sizes,
    operand_values,
    relations_of,
)
from tncompiler.ir.sizes import Binding, Size, evaluate

_LARGEST = math.log(1e6)  # no standard deviation beyond 1e±6, whatever flows through

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def standard_deviations(
    program: Program,
    leaves: Mapping[str, Leaf],
    binding: Binding,
    examples: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """The standard deviation of each parameter without an `init`: 0 for one that is only added.

    Constants, given arrays and inputs with an example count as having the second moment that they
    have, all other inputs as 1 an element.
    """
    return _Moments(program, leaves, binding, examples or {}).run()


class _Moments:
    """Second moments of all values, as logarithms (a long network over- and underflows floats)."""

    def __init__(
        self,
        program: Program,
        leaves: Mapping[str, Leaf],
        binding: Binding,
        examples: Mapping[str, np.ndarray],
    ) -> None:
        self.program, self.binding = program, binding
        self.log_std: dict[str, float] = {}
        self.read_from: dict[str, str] = {}  # what is gathered, from which open parameter
        self.added: set[str] = set()
        self.open = {
            name for name, leaf in leaves.items() if leaf.kind == "param" and leaf.init is None
        }
        self.log_moment = {
            name: _leaf_moment(leaves[name], examples.get(name)) if name in leaves else 0.0
            for name in (argument.value.name for argument in program.arguments)
        }

    def run(self) -> dict[str, float]:
        for step in self.program.steps:
            self.log_moment[step.out.name] = self._step(step)
        return {name: self._std(name) for name in sorted(self.open)}

    def _std(self, name: str) -> float:
        if name in self.log_std:
            return math.exp(self.log_std[name])
        return 0.0 if name in self.added else 1.0

    def _step(self, step: Step) -> float:
        match step.op:
            case Contract() | Convolve():
                return self._contract(step, step.op)
            case Map():
                return self._map(step, step.op)
            case Literal(value):
                number = value if isinstance(value, int | float | complex) else self._size(value)
                return 2 * math.log(abs(number)) if number else -math.inf
            case Gather() if self._source(step.operands[0]) in self.open:
                self.read_from[step.out.name] = self._source(step.operands[0])
                return 0.0
            case _:
                return max((self._of(name) for name in step.operands), default=0.0)

    def _source(self, name: str) -> str:
        """The parameter that a value holds rows of, or the value itself."""
        return self.read_from.get(name, name)

    def _size(self, size: Size) -> int:
        return max(evaluate(size, self.binding), 1)

    def _of(self, name: str) -> float:
        name = self._source(name)
        if name in self.open:
            return 2 * self.log_std[name] if name in self.log_std else -math.inf
        return self.log_moment[name]

    def _contract(self, step: Step, op: Networks) -> float:
        sizes = label_sizes(op, operand_values(self.program, step), step.out)
        summed = {k for labels in op.inputs for k in labels} - set(op.output)
        total = 0.0
        for relation in relations_of(op):  # its taps are what is summed, some of them if it strides
            summed = (summed | {relation.labels[2]}) - {*relation.labels[:2], *op.output}
            taps = self._size(relation.sizes[2])
            strided = relation.labels[0] in op.output
            total -= math.log(min(relation.geometry.stride, taps)) if strided else 0.0
        total += sum(math.log(self._size(sizes[label])) for label in summed)
        sources = [self._source(name) for name in step.operands]
        free = [n for n in sources if n in self.open and n not in self.log_std]
        total += sum(self._of(name) for name in sources if name not in free)
        if free and math.isfinite(total):
            share = -total / (2 * len(free))
            for name in free:
                self.log_std[name] = min(max(share, -_LARGEST), _LARGEST)
            return 0.0
        return total + sum(self._of(name) for name in free)

    def _map(self, step: Step, op: Map) -> float:
        moments = [self._of(name) for name in step.operands]
        if op.function in ("add", "sub"):
            self.added.update(self.open.intersection(step.operands))
            return float(np.logaddexp(moments[0], moments[1]))
        if op.function == "div":
            return moments[0] - moments[1] if math.isfinite(moments[1]) else 0.0
        rule = function(op.function)
        bounded = rule.domain == ("float",) or op.function == "tanh"
        if rule.arity != 1 or not bounded:
            return max(moments)
        return _through(rule.reference, moments[0])


def _through(reference: object, log_moment: float) -> float:
    """The log second moment of f(z) for normal z, by Gauss-Hermite quadrature."""
    scale = math.exp(min(max(log_moment, -200.0), 20.0) / 2)
    values = np.asarray(reference(scale * _NODES), dtype=np.float64)  # type: ignore[operator]
    moment = float(_WEIGHTS @ values**2)
    return math.log(moment) if 0 < moment < math.inf else 0.0


def _leaf_moment(leaf: Leaf, example: np.ndarray | None) -> float:
    array = leaf.value if leaf.value is not None else leaf.init
    array = array if example is None else example
    if isinstance(array, np.ndarray) and array.size:
        moment = float(np.mean(np.abs(array.astype(np.complex128)) ** 2))
        return math.log(moment) if moment > 0 else -math.inf
    return 0.0
