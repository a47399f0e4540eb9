"""Ranges for the profiler: the same results, one range a step, nothing while no profiler looks."""

from __future__ import annotations

import pytest
import torch

import tncompiler as tnc
from tncompiler.backends.ranges import with_ranges
from tncompiler.module import CompiledModule

BACKENDS = pytest.mark.parametrize("backend", ["torch", "numpy", "triton"])


def network(backend: str) -> CompiledModule:
    b, i, r, o = tnc.indices("b i r o", i=6, r=2, o=4)
    y = tnc.contract(tnc.input("x", b, i), tnc.param("G1", i, r), tnc.param("G2", r, o), out=(b, o))
    return tnc.compile(tnc.tanh(y), backend=backend, seed=0)


def ranges_of(module: CompiledModule, x: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """The result of a training step, and the ranges that a profiler sees of it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = module(x)
        result.square().sum().backward()
    return result, [event.name for event in profile.events() if event.name.startswith("tnc.")]


@BACKENDS
def test_results_are_the_same_with_ranges(backend: str) -> None:
    module, x = network(backend), torch.randn(5, 6)
    plain = module(x)
    plain.square().sum().backward()
    gradients = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    result, _ = ranges_of(module, x)
    assert torch.equal(result, plain)
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), gradients, strict=True))


@BACKENDS
def test_steps_are_named_after_what_they_read(backend: str) -> None:
    _, names = ranges_of(network(backend), torch.randn(5, 6))
    wholes = [name for name in names if name.startswith(("tnc.forward(", "tnc.backward("))]
    assert len(wholes) == 2
    assert "tnc.forward(x, G1, G2)" in names
    steps = [name for name in names if " = " in name]
    assert any("G1" in name for name in steps) and any("G2" in name for name in steps)
    assert any(name.startswith("tnc.backward ") for name in steps)


def test_in_evaluation_what_is_kept_has_no_step() -> None:
    module, x = network("torch").eval(), torch.randn(5, 6)
    with torch.no_grad(), torch.profiler.profile() as profile:
        module(x)
    assert any(event.name.startswith("tnc.forward") for event in profile.events())


def test_without_a_profiler_the_plain_source_runs() -> None:
    module = network("torch")
    module(torch.randn(5, 6)).sum().backward()
    (specialisation,) = module._specialisations.values()
    assert specialisation.forward._shown is None
    assert "record_function" not in specialisation.pair.forward.source.text
    assert "record_function" in with_ranges(specialisation.pair.forward.loaded).text
