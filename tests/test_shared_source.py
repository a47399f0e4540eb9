"""Equal layers share one generated function: how it reads, and that nothing else changes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.large import as_if_large
from tncompiler.backends import blocks
from tncompiler.backends.blocks import GIVEN, Blocks, find_blocks
from tncompiler.backends.emitter import Emitter
from tncompiler.ir.program import Literal, Program
from tncompiler.ir.validate import validate

B, D1, D2 = tnc.indices("b d1 d2", d1=6, d2=4)
X = tnc.input("x", B, D1, D2)


def layer(x: tnc.Expr, number: int, rank: int = 3) -> tnc.Expr:
    """A normalised, tensorized layer with a residual connection."""
    up = tnc.indices("u1 u2", u1=5, u2=7)
    with tnc.scope(f"layer{number}"):
        h = tnc.layer_norm(x, over=(D1, D2), weight=tnc.param("scale", D1, D2, init="ones"))
        first = tnc.formats.TTMatrix(rank=rank).network((D1, D2), up, name="first")
        second = tnc.formats.TTMatrix(rank=rank).network(up, (D1, D2), name="second")
        m = tnc.gelu(tnc.contract(h, first, out=(B, *up)) + tnc.param("bias", *up))
        return x + tnc.contract(m, second, out=(B, D1, D2)) * 0.5


def stack(depth: int) -> tnc.Expr:
    x: tnc.Expr = X
    for number in range(depth):
        x = layer(x, number)
    return x


def source(depth: int, part: str, backend: str) -> str:
    f = tnc.compile(stack(depth), backend=backend, seed=0)
    return f.source(sizes={B: 8}, part=part)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("part", ["forward", "backward"])
def test_source_grows_with_kinds_of_layers(
    part: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """one function, and a line or a few for each further layer; the first and last may differ"""
    shared = source(8, part, backend)
    monkeypatch.setattr(Emitter, "shares", False)
    whole = source(8, part, backend)
    assert shared.count("def block") == 1 and "def block" not in whole
    assert shared.count(" = block(") >= 6 - (part == "backward")
    assert len(shared.splitlines()) < 0.6 * len(whole.splitlines())


def test_a_function_calls_weights_as_all_layers_do() -> None:
    text = source(4, "forward", "torch")
    (head,) = [line for line in text.splitlines() if line.startswith("def block(")]
    assert "scale" in head and "first_G1" in head and "layer0" not in head
    assert "layer3_first_G1" in text


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_not_a_bit_changes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(0))

    def results() -> list[torch.Tensor]:
        f = tnc.compile(stack(5), backend=backend, seed=0)
        given = x.clone().requires_grad_()
        y = f(given)
        y.square().sum().backward()
        with torch.no_grad():
            again = f.eval()(x)
        return [y.detach(), again, given.grad, *(p.grad for p in f.parameters())]

    shared = results()
    monkeypatch.setattr(Emitter, "shares", False)
    for one, other in zip(shared, results(), strict=True):
        assert torch.equal(one, other)


def test_layers_of_another_rank_have_a_function_of_their_own() -> None:
    x: tnc.Expr = X
    for number in range(6):
        x = layer(x, number, rank=3 if number < 3 else 4)
    f = tnc.compile(x, backend="torch", seed=0)
    text = f.source(sizes={B: 8})
    assert text.count("def block") == 2 and text.count(" = block") >= 5
    given = torch.randn(8, 6, 4)
    assert torch.isfinite(f(given)).all()


def test_recurrent_layers_share_their_loop() -> None:
    t, h = tnc.indices("t h", t=5, h=4)
    x: tnc.Expr = tnc.input("x", t, B, h)
    for number in range(4):
        with tnc.scope(f"layer{number}"):
            k = tnc.Index("k", 4)
            weights = tnc.param("W", k, h), tnc.param("R", k, h)

            def cell(state: Any, step: Any, weights: Any = weights, k: Any = k) -> Any:
                made = tnc.tanh(weights[0] @ step + (weights[1] @ state)).rename({k: h})
                moved = made.transpose(B, h)
                return moved, moved

            start = tnc.ones(B, h) * tnc.param("start", h)
            _, x = tnc.scan(cell, start, x, over=t)
    text = tnc.compile(x, backend="torch", seed=0).source(sizes={B: 3})
    assert text.count("for t in range") < 4


# ---------------------------------------------------------------------------- memory


def test_memory_is_held_no_longer_than_planned() -> None:
    """A function gets the last reference to what its caller does not need any more."""
    size = 20_000
    n = tnc.Index("n", size)
    x: tnc.Expr = tnc.input("x", n)
    for number in range(6):
        with tnc.scope(f"layer{number}"):
            y = tnc.sin(x * tnc.param("w", n))
            for _ in range(6):
                y = tnc.cos(y + 0.1)
            x = tnc.exp(y * -1.0)
    f = tnc.compile(x, framework="numpy", seed=0)
    assert "given" in f.source()
    given = np.ones(size, np.float32)
    f(given)
    tracemalloc.start()
    f(given)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.1 * f.cost().peak_bytes + 20_000


# ---------------------------------------------------------------------------- under torch


def test_torch_looks_inside() -> None:
    f = tnc.compile(stack(4), backend="torch", seed=0)
    x = torch.randn(8, 6, 4)
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="eager")(x), f(x))
    each = torch.vmap(lambda one: f(one[None])[0])(x)
    torch.testing.assert_close(each, f(x), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(f, (x,)).module()
    torch.testing.assert_close(exported(x), f(x))


def test_lanes_share_too() -> None:
    with as_if_large():
        f = tnc.compile(stack(4), framework="numpy", seed=0)
        text = f.source(sizes={B: 64})
        assert text.count("def block") >= 1
        x = np.random.default_rng(0).standard_normal((64, 6, 4)).astype(np.float32)
        found = f(x)
    np.testing.assert_allclose(
        found, tnc.compile(stack(4), framework="numpy", seed=0)(x), rtol=1e-4, atol=1e-5
    )


# ---------------------------------------------------------------------------- finding them


def program_of(depth: int) -> Program:
    f = tnc.compile(stack(depth), framework="numpy", seed=0)
    compilation = f.compilation
    dtypes = compilation.default_dtypes("float32")
    return compilation.inference(dtypes, compilation.nominal({B: 8})).fitted.program


def test_bodies_are_programs_and_blocks_cover_them() -> None:
    program = program_of(5)
    found = find_blocks(program)
    (body,) = found.bodies
    validate(body, scheduled=True)
    assert len(found.blocks) == 5
    for block in found.blocks:
        steps = program.steps[block.start : block.stop]
        assert len([s for s in steps if not isinstance(s.op, Literal)]) == len(
            [s for s in body.steps if not isinstance(s.op, Literal)]
        )
        assert len(block.arguments) == len(body.arguments)
        assert len(block.results) == len(body.outputs)
    starts = [block.start for block in found.blocks]
    assert starts == sorted(starts)
    assert {a.kind for a in body.arguments} <= {GIVEN, "input"}


def test_what_repeats_little_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_blocks(program_of(1)) == Blocks()
    monkeypatch.setattr(blocks, "LEAST_STEPS", 1000)
    assert find_blocks(program_of(5)) == Blocks()


def test_another_flow_of_values_is_another_body() -> None:
    """equal steps on other operands: y - x is not x - y"""
    x: tnc.Expr = X
    for number in range(4):
        y = tnc.tanh(x * tnc.param(f"w{number}", D1, D2))
        for _ in range(5):
            y = tnc.cos(tnc.sin(y))
        x = (x - y) if number % 2 else (y - x)
    f = tnc.compile(x, framework="numpy", seed=0)
    text = f.source(sizes={B: 2})
    given = np.random.default_rng(1).standard_normal((2, 6, 4)).astype(np.float32)
    expected = given
    for number in range(4):
        y = np.tanh(expected * f.parameters[f"w{number}"])
        for _ in range(5):
            y = np.cos(np.sin(y))
        expected = (expected - y) if number % 2 else (y - expected)
    np.testing.assert_allclose(f(given), expected, rtol=1e-4, atol=1e-5)
    assert "def block" in text
