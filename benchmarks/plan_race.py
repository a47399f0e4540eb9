"""The trees of one network run in turn on both CPU backends, forward and as a training step.

In: a named expression. Out: a `Race`: for each tree its flops, predicted and measured time, and
which trees the planner chose.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import tncompiler as tnc
from benchmarks.measure import Clock, time_in_turn
from benchmarks.plan_trees import Order, sample_trees
from tncompiler.compiler import Compilation
from tncompiler.planning.candidates import Network
from tncompiler.planning.choose import choose_orders, networks_of
from tncompiler.planning.cost import step_flops
from tncompiler.planning.exchange import shape_of
from tncompiler.planning.machine import Machine
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.order import ssa_to_linear
from tncompiler.planning.timing import program_us

PARTS = ("forward", "step")
BACKENDS = ("numpy", "torch")
SLOW_S = 0.25  # a tree that takes longer is timed fewer rounds

# who chose a tree: what it was asked for
CHOICES: dict[str, dict[str, Any]] = {
    "time, forward": {"minimize": "time", "training": False},
    "time, step": {"minimize": "time", "training": True},
    "flops, forward": {"minimize": "flops", "training": False},
    "flops, step": {"minimize": "flops", "training": True},
}


@dataclass(frozen=True, slots=True)
class Tree:
    """``flops`` by part; ``predicted_us`` and ``measured_us`` by "backend part"."""

    pairs: Order
    flops: dict[str, float]
    predicted_us: dict[str, float]
    measured_us: dict[str, float]


@dataclass(frozen=True, slots=True)
class Race:
    """``chosen``: the number of the tree by who chose it."""

    name: str
    tensors: int
    trees: tuple[Tree, ...]
    chosen: dict[str, int]


def run_race(
    name: str, expr: Any, machine: Machine, budget_s: float, clock: Clock = time.process_time
) -> Race:
    """Choose, sample, compile and time the trees of one network."""
    settle_allocator()
    network = only_network(expr)
    picks = {
        choice: chosen_order(expr, **asked, machine=machine) for choice, asked in CHOICES.items()
    }
    orders = sample_trees(network, list(picks.values()))
    shapes = [shape_of(pairs, len(network.terms)) for pairs in orders]
    entrants = [_Entrant(expr, pairs, len(network.terms)) for pairs in orders]
    runs = {
        (number, backend, part): run
        for number, entrant in enumerate(entrants)
        for backend in BACKENDS
        for part, run in entrant.runs(backend).items()
    }
    timings = time_in_turn({repr(key): run for key, run in runs.items()}, budget_s, SLOW_S, clock)
    trees = []
    for number, entrant in enumerate(entrants):
        measured = {
            f"{backend} {part}": min(timings[repr((number, backend, part))].samples_ms) * 1e3
            for backend in BACKENDS
            for part in PARTS
        }
        trees.append(Tree(orders[number], entrant.flops(), entrant.predicted_us(machine), measured))
    where = {
        choice: shapes.index(shape_of(pairs, len(network.terms))) for choice, pairs in picks.items()
    }
    return Race(name, len(network.terms), tuple(trees), where)


def settle_allocator() -> None:
    """As in a process that has worked for a while.

    glibc hands memory back to the system unless something larger was freed before, up to 32 MiB;
    then every result of some 100 KiB costs page faults, and what ran earlier decides what is fast.
    """
    np.empty(2**25 - 2**16, dtype=np.uint8)  # freed at once


def only_network(expr: Any) -> Network:
    """The expression's network, with gradients asked for everywhere."""
    compilation = Compilation(expr, None, {}, None)
    logical = compilation.logical(compilation.default_dtypes("float32"))
    wrt = tuple(leaf.name for leaf in compilation.ordered)
    (network,) = networks_of(logical, compilation.nominal({}), wrt).values()
    return network


def chosen_order(expr: Any, **asked: Any) -> Order:
    """What the planner chooses."""
    compilation = Compilation(expr, None, {}, PlanOptions(**asked))
    logical = compilation.logical(compilation.default_dtypes("float32"))
    wrt = tuple(leaf.name for leaf in compilation.ordered) if asked["training"] else ()
    orders = choose_orders(logical, compilation.nominal({}), compilation.options, wrt)
    (order,) = orders.values()
    return order


class _Entrant:
    """One tree, compiled."""

    def __init__(self, expr: Any, pairs: Order, count: int) -> None:
        options = PlanOptions(path=ssa_to_linear(pairs, count))
        self.compilation = Compilation(expr, None, {}, options)
        self.dtypes = self.compilation.default_dtypes("float32")
        self.nominal = self.compilation.nominal({})
        self.wrt = tuple(leaf.name for leaf in self.compilation.ordered)
        self.function = tnc.compile(expr, plan=options, framework="numpy", seed=0)
        self.module = tnc.compile(expr, plan=options, backend="torch", seed=0)
        rng = np.random.default_rng(0)
        self.inputs = [
            rng.standard_normal([int(n) for n in leaf.shape]).astype("float32")
            for leaf in self.compilation.inputs
        ]

    def runs(self, backend: str) -> dict[str, Callable[[], object]]:
        """A call for each part."""
        return self._numpy() if backend == "numpy" else self._torch()

    def _numpy(self) -> dict[str, Callable[[], object]]:
        value = self.function(*self.inputs)
        cotangent = np.ones(value.shape, value.dtype)  # in declared order, as the model assumes

        given = dict(self.function.parameters)  # with these, nothing is kept between calls

        def step() -> object:
            _, pull = self.function.vjp(*self.inputs)
            return pull(cotangent)

        def forward() -> object:
            return self.function(*self.inputs, parameters=given)

        return {"forward": forward, "step": step}

    def _torch(self) -> dict[str, Callable[[], object]]:
        import torch

        held = [torch.from_numpy(array) for array in self.inputs]
        inputs = [torch.from_numpy(array).requires_grad_() for array in self.inputs]
        leaves = [*inputs, *self.module.parameters()]
        with torch.no_grad():
            cotangent = torch.ones(self.module(*held).shape)

        def forward() -> object:
            with torch.no_grad():
                return self.module(*held)

        def step() -> object:
            return torch.autograd.grad(self.module(*inputs), leaves, cotangent)

        return {"forward": forward, "step": step}

    def programs(self) -> dict[str, list[Any]]:
        """The programs that each part runs."""
        forward, _ = self.compilation.scheduled(self.dtypes, self.nominal)
        cut = self.compilation.training(self.dtypes, self.nominal, self.wrt)
        return {"forward": [forward], "step": [cut.forward, cut.backward]}

    def flops(self) -> dict[str, float]:
        return {
            part: sum(
                step_flops(program, step).evaluate(self.nominal)
                for program in programs
                for step in program.steps
            )
            for part, programs in self.programs().items()
        }

    def predicted_us(self, machine: Machine) -> dict[str, float]:
        return {
            f"{backend} {part}": sum(
                program_us(program, self.nominal, machine.libraries[backend])
                for program in programs
            )
            for backend in BACKENDS
            for part, programs in self.programs().items()
        }
