"""Attention: torch's own modules agree, masks, heads as an index, errors, and where it is fused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests import oracle
from tncompiler.backends.torch import attention as kernel
from tncompiler.ir.attention import Attention
from tncompiler.ir.errors import (
    ArgumentError,
    ArraySizeClash,
    IndexMismatch,
    InvalidProgram,
    SizeClash,
    UnknownIndex,
)
from tncompiler.ir.lower import lower
from tncompiler.ir.passes import LOGICAL_PASSES, run_passes
from tncompiler.ir.passes.attention import fuse_attention
from tncompiler.ir.program import Program
from tncompiler.ir.validate import validate

B, T, S, H, D, M = tnc.indices("b t s h d m", b=2, t=5, s=5, h=2, d=4, m=8)
X = tnc.input("x", B, T, M)
PADDING = tnc.input("padding", B, S, dtype="bool")
BIAS = tnc.input("bias", T, S)
RNG = np.random.default_rng(11)


def multi_head(**options: object) -> tnc.Expr:
    """What torch.nn.MultiheadAttention computes of x, x, x; the head split is an index."""
    parts = []
    for name, source in (("q", X), ("k", X.rename({T: S})), ("v", X.rename({T: S}))):
        weight, shift = tnc.param(f"W{name}", M, H, D), tnc.param(f"b{name}", H, D)
        parts.append(source @ weight + shift)
    heads = tnc.attention(*parts, dim=D, **options)  # type: ignore[arg-type]
    return heads @ tnc.param("Wo", H, D, tnc.Index("n", 8)) + tnc.param("bo", tnc.Index("n", 8))


def torch_module(arrays: dict[str, np.ndarray]) -> torch.nn.MultiheadAttention:
    """The same weights, as torch holds them."""
    module = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for position, name in enumerate("qkv"):
            rows = slice(8 * position, 8 * position + 8)
            weight, bias = arrays[f"W{name}"].reshape(8, 8), arrays[f"b{name}"].reshape(8)
            module.in_proj_weight[rows] = torch.from_numpy(weight.T)
            module.in_proj_bias[rows] = torch.from_numpy(bias)
        module.out_proj.weight.copy_(torch.from_numpy(arrays["Wo"].reshape(8, 8).T))
        module.out_proj.bias.copy_(torch.from_numpy(arrays["bo"]))
    return module


def numbers(expr: tnc.Expr, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random arrays for all leaves; of the padding mask, two keys of the second row are off."""
    arrays = {}
    for leaf in expr.leaves:
        shape = [int(size) for size in leaf.shape]
        arrays[leaf.name] = RNG.standard_normal(shape).astype(dtype)
    if "padding" in arrays:
        arrays["padding"] = np.array([[True] * 5, [True] * 3 + [False] * 2])
    return arrays


CASES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "plain": ({}, {}),
    "causal": ({"is_causal": True}, {"is_causal": True}),
    "padding": ({"attn_mask": PADDING}, {"key_padding_mask": "padding"}),
    "bias": ({"attn_mask": BIAS}, {"attn_mask": "bias"}),
    "causal and padding": (
        {"attn_mask": PADDING, "is_causal": True},
        {"key_padding_mask": "padding", "is_causal": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_torchs_module_agrees(runner: str, name: str) -> None:
    """forward and all gradients, given the same dense weights"""
    ours, theirs = CASES[name]
    expr = multi_head(**ours)
    arrays = numbers(expr, "float64")
    module = torch_module(arrays)
    x = torch.tensor(arrays["x"], requires_grad=True)
    options: dict[str, object] = {k: v for k, v in theirs.items() if k != "is_causal"}
    for key, value in options.items():
        given = torch.from_numpy(arrays[str(value)])
        options[key] = ~given if key == "key_padding_mask" else given
    if theirs.get("is_causal"):
        options["attn_mask"] = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected, _ = module(x, x, x, need_weights=False, **options)
    cotangent = RNG.standard_normal((2, 5, 8))
    expected.backward(torch.from_numpy(cotangent))
    wrt = [n for n in arrays if n not in ("padding", "bias")]
    (value,), found = oracle.Runner((expr,), runner, "float64", {}).gradients(
        arrays, [cotangent], wrt
    )
    assert np.allclose(value, expected.detach().numpy(), atol=1e-10)
    weight = module.in_proj_weight.grad
    assert x.grad is not None
    assert weight is not None
    assert np.allclose(found["x"], x.grad.numpy(), atol=1e-9)
    for position, part in enumerate("qkv"):
        rows = weight[8 * position : 8 * position + 8].numpy().T.reshape(8, 2, 4)
        assert np.allclose(found[f"W{part}"], rows, atol=1e-9), part


@pytest.mark.parametrize("name", CASES)
def test_the_pattern_is_one_call_of_torchs_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scaled_dot_product_attention on torch, contractions and a softmax on NumPy"""
    calls = []
    real = kernel.scaled_dot_product_attention
    monkeypatch.setattr(
        kernel, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or real(*a, **k)
    )
    expr = multi_head(**CASES[name][0])
    arrays = numbers(expr)
    f = tnc.compile(expr, backend="torch")
    with torch.no_grad():
        f(*(torch.from_numpy(arrays[n]) for n in f.inputs))
    assert [call["is_causal"] for call in calls] == [name == "causal"]
    source = f.source(backend="numpy")
    assert "attend" not in source
    assert "np.exp" in source


def test_projections_come_out_split_into_heads() -> None:
    """tensorized projections are networks of their own, whose result is split already"""
    m1, m2, r = tnc.indices("m1 m2 r", m1=4, m2=2, r=3)
    x = tnc.input("x", B, T, m1, m2)
    cores = [
        tnc.contract(tnc.param(f"{n}1", m1, H, r), tnc.param(f"{n}2", r, m2, D), out=(m1, m2, H, D))
        for n in "qkv"
    ]
    moved = x.rename({T: S})
    expr = tnc.attention(x @ cores[0], moved @ cores[1], moved @ cores[2], dim=D, is_causal=True)
    program = run_passes(lower((expr,), default_dtype="float32"), LOGICAL_PASSES)
    (step,) = [step for step in program.steps if isinstance(step.op, Attention)]
    for name in step.operands:
        assert len(program.producers[name].operands) in (3, 4)  # x, two cores, and the scale
    arrays = numbers(expr)
    for runner in oracle.RUNNERS:
        oracle.check_forward(expr, arrays, runner, "float32")


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_a_query_that_sees_nothing(runner: str) -> None:
    """zeros, and gradients without NaN"""
    q, k, v = (tnc.input(n, i, D) for n, i in (("q", T), ("k", S), ("v", S)))
    mask = tnc.input("mask", T, S, dtype="bool")
    expr = tnc.attention(q, k, v, dim=D, attn_mask=mask)
    arrays = numbers(expr)
    arrays["mask"] = np.ones((5, 5), bool)
    arrays["mask"][2] = False
    compiled = oracle.Runner((expr,), runner, "float32", {})
    (value,), found = compiled.gradients(arrays, [np.ones((5, 4), np.float32)], ("q", "k", "v"))
    assert np.array_equal(value[2], np.zeros(4))
    assert np.isfinite(value).all()
    assert all(np.isfinite(array).all() for array in found.values())
    assert np.array_equal(found["q"][2], np.zeros(4))


@pytest.mark.parametrize("recorded", [False, True])
def test_what_comes_later_is_hidden_no_more_than_all_else(recorded: bool) -> None:
    """as `where(seen, where(causal, scores, low), low)` has it: all keys weigh the same"""
    query, key, value = (torch.randn(1, 1, 3, 4) for _ in range(3))
    seen = torch.tensor([[False] * 3, [True] * 3, [False] * 3])
    found = kernel.attend(query.requires_grad_(recorded), key, value, where=seen, causal=True)
    torch.testing.assert_close(found[0, 0, ::2], value[0, 0].mean(0).expand(2, 4))


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_groups_of_queries_share_keys(runner: str) -> None:
    """heads of keys are fewer than those of queries; more queries than keys; values of own size"""
    g, e, t = tnc.indices("g e t", g=3, e=3, t=7)
    q = tnc.input("q", t, H, g, D)
    k, v = tnc.input("k", H, S, D), tnc.input("v", S, H, e)
    expr = tnc.attention(q, k, v, is_causal=True, queries=t)
    assert expr.indices == (t, H, g, e)
    arrays = numbers(expr)
    heads = [torch.from_numpy(arrays[n]).double() for n in "qkv"]
    expected = torch.nn.functional.scaled_dot_product_attention(
        heads[0].permute(1, 2, 0, 3),
        heads[1][:, None].expand(2, 3, 5, 4),
        heads[2].permute(1, 0, 2)[:, None].expand(2, 3, 5, 3),
        is_causal=True,
    ).permute(2, 0, 1, 3)
    (value,) = oracle.Runner((expr,), runner, "float32", {}).forward(arrays)
    assert np.allclose(value, expected.numpy(), atol=1e-6)


def test_free_sizes_and_a_scale() -> None:
    """lengths and feature sizes that only the arrays tell; a scale of one's own"""
    t, s, d = tnc.indices("t s d")
    q, k, v = (tnc.input(n, i, d) for n, i in (("q", t), ("k", s), ("v", s)))
    arrays = [torch.randn(n, 6) for n in (3, 4, 4)]
    for scale in (None, 0.3):
        f = tnc.compile(tnc.attention(q, k, v, dim=d, scale=scale), backend="torch")
        expected = torch.nn.functional.scaled_dot_product_attention(*arrays, scale=scale)
        assert torch.allclose(f(*arrays), expected, atol=1e-6)


def test_derivatives_of_derivatives() -> None:
    """forward mode, vmap and second derivatives, which torch's kernel does not know"""
    q, k, v = (tnc.input(n, i, D) for n, i in (("q", T), ("k", S), ("v", S)))
    f = tnc.compile(tnc.attention(q, k, v, dim=D, is_causal=True), backend="torch", dtype="float64")
    arrays = [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(f, arrays, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, arrays)
    many = [torch.randn(3, 5, 4, dtype=torch.float64) for _ in range(3)]
    each = torch.stack([f(*(a[n] for a in many)) for n in range(3)])
    assert torch.allclose(torch.vmap(f)(*many), each)
    numpy = tnc.compile(tnc.attention(q, k, v, dim=D), framework="numpy", dtype="float64")
    given = [a.detach().numpy() for a in arrays]
    moved = [RNG.standard_normal((5, 4)) for _ in range(3)]
    value, tangent = numpy.jvp(*given, tangents=dict(zip("qkv", moved, strict=True)))
    step = 1e-7
    shifted = numpy(*(a + step * d for a, d in zip(given, moved, strict=True)))
    assert np.allclose(tangent, (shifted - value) / step, atol=1e-5)


# ---------------------------------------------------------------------------- what is not fused


def steps_of(*outputs: tnc.Expr) -> list[type]:
    program = fuse_attention(lower(outputs, default_dtype="float32"))
    return [type(step.op) for step in program.steps]


def test_a_softmax_written_by_hand_is_found() -> None:
    q, k, v = (tnc.input(n, i, D) for n, i in (("q", T), ("k", S), ("v", S)))
    weights = tnc.softmax(q @ k, over=S)
    assert Attention in steps_of(weights @ v)
    assert Attention in steps_of(v @ weights)
    assert Attention not in steps_of(weights @ v, weights)  # the weights are needed anyway
    assert Attention in steps_of(tnc.softmax(q @ k, over=T) @ v.rename({S: T}))  # from s to t
    assert Attention not in steps_of((weights @ v).sum(T) @ v, tnc.contract(weights, v, out=(D,)))
    assert Attention not in steps_of(tnc.softmax(tnc.tanh(q @ k), over=S) @ v)


def test_fusing_is_idempotent_and_keeps_the_value() -> None:
    program = lower((multi_head(is_causal=True),), default_dtype="float32")
    once = fuse_attention(program)
    assert once is not program
    assert fuse_attention(once) is once


# ---------------------------------------------------------------------------- errors


def test_bad_masks_and_indices() -> None:
    q, k, v = (tnc.input(n, i, D) for n, i in (("q", T), ("k", S), ("v", S)))
    with pytest.raises(IndexMismatch, match="attn_mask has the indices"):
        tnc.attention(q, k, v, dim=D, attn_mask=tnc.input("mask", B, S, dtype="bool"))
    with pytest.raises(SizeClash, match="index 's' has size 5"):
        tnc.attention(q, k, v, dim=D, attn_mask=tnc.input("mask", tnc.Index("s", 6)))
    with pytest.raises(ArgumentError, match="nothing says what is summed"):
        tnc.attention(q, k, v)
    with pytest.raises(ArgumentError, match="have 0 indices that query lacks"):
        tnc.attention(k, k, v, dim=D)
    with pytest.raises(UnknownIndex, match="over='d'"):
        tnc.attention(q, k, v, over=D)
    with pytest.raises(ArgumentError, match="query has 2 indices of its own: t, h"):
        tnc.attention(tnc.input("q", T, H, D), k, v, dim=D, is_causal=True)
    f = tnc.compile(
        tnc.attention(q, k, v, dim=D, attn_mask=tnc.input("mask", S, dtype="bool")),
        framework="numpy",
    )
    assert f.inputs == ("mask", "q", "k", "v")
    with pytest.raises(ArraySizeClash, match="axis 0 of input 'mask' has 6 positions"):
        f(np.ones(6, bool), *(np.zeros((5, 4), np.float32),) * 3)


def test_steps_that_do_not_fit_are_invalid() -> None:
    program = fuse_attention(lower((multi_head(is_causal=True),), default_dtype="float32"))
    (step,) = [step for step in program.steps if isinstance(step.op, Attention)]
    op = step.op
    for wrong in (
        replace(op, over=op.output[0]),
        replace(op, inputs=op.inputs[:2]),
        replace(op, output=op.output[::-1]),
        replace(op, mask="where"),
        replace(op, inputs=(op.inputs[0], op.inputs[0], op.inputs[2])),
    ):
        steps = [replace(s, op=wrong) if s is step else s for s in program.steps]
        with pytest.raises(InvalidProgram):
            validate(_with(program, steps))


def _with(program: Program, steps: list[object]) -> Program:
    return program.with_steps(steps)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- planning


def test_what_it_costs() -> None:
    """two products and a softmax; the scores are alive while it runs"""
    q, k, v = (tnc.input(n, i, D) for n, i in (("q", T), ("k", S), ("v", S)))
    cost = tnc.compile(tnc.attention(q, k, v, dim=D, scale=1.0), framework="numpy").cost()
    assert cost.flops == 2 * (2 * 5 * 5 * 4) + 5 * 5 + 5 * 4  # the sum of exponentials, the scale
    assert cost.peak_bytes >= 2 * 4 * 25


def test_a_mask_of_keys_alone() -> None:
    """A mask without an axis of queries, heads or batch."""
    n, m, d, e = tnc.indices("n m d e", n=3, m=4, d=5, e=2)
    q, k, v = tnc.input("q", n, d), tnc.input("k", m, d), tnc.input("v", m, e)
    seen = tnc.input("seen", m, dtype="bool")
    y = tnc.attention(q, k, v, attn_mask=seen)
    arrays = [torch.randn(3, 5), torch.randn(4, 5), torch.randn(4, 2)]
    mask = torch.tensor([True, False, True, True])
    wanted = torch.nn.functional.scaled_dot_product_attention(*arrays, attn_mask=mask[None])
    for backend in ("torch", "numpy"):
        f = tnc.compile(y, inputs=["q", "k", "v", "seen"], backend=backend)
        torch.testing.assert_close(f(*arrays, mask), wanted)
