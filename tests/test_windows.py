"""Windows: what they mean, the sizes that follow, what is refused, and what becomes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tncompiler as tnc
from tests.oracle import check_forward, check_gradients
from tests.test_semantics_helpers import rand, same
from tncompiler.ir.derivatives import environment
from tncompiler.ir.errors import (
    ArgumentError,
    ArraySizeClash,
    RepeatedIndex,
    SizeEquationError,
    UnknownIndex,
    WindowError,
)
from tncompiler.ir.expressions import Expr, equations_of
from tncompiler.ir.lower import lower
from tncompiler.ir.passes import LOGICAL_PASSES, run_passes
from tncompiler.ir.program import Contract, Convolve, Fold, Unfold, Window
from tncompiler.ir.reference import evaluate
from tncompiler.ir.sizes import evaluate as size_of
from tncompiler.ir.sizes import solve_all
from tncompiler.ir.windows import Geometry, reading_windows, same_padding, window_count

RUNNERS = ("function", "torch", "numpy", "triton")


def known(size: int = 7, taps: int = 3, count: int | None = None) -> tuple[tnc.Index, ...]:
    """Indices of a source, of windows and of taps."""
    return tnc.Index("i", size), tnc.Index("o", count), tnc.Index("k", taps)


# ---------------------------------------------------------------------------- what it means


@pytest.mark.parametrize("padding", [0, 2, (1, 0), (0, 3)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_window_is_the_index_map(padding: Any, stride: int, dilation: int) -> None:
    """i = o*stride + k*dilation - padding"""
    i, o, k = known()
    x = tnc.input("x", i)
    seen = x.window(i, out=o, kernel=k, stride=stride, dilation=dilation, padding=padding)
    before, after = padding if isinstance(padding, tuple) else (padding, padding)
    values = np.arange(1.0, 8.0)
    padded = np.pad(values, (before, after))
    count = (7 + before + after - dilation * 2 - 1) // stride + 1
    wanted = [[padded[a * stride + b * dilation] for b in range(3)] for a in range(count)]
    same(evaluate(seen, {"x": values}, {}).value, np.array(wanted))


def test_the_structural_tensor_is_the_same_map() -> None:
    i, o, k = known()
    x = tnc.input("x", i)
    how = {"stride": 2, "dilation": 2, "padding": 2}
    by_method = x.window(i, out=o, kernel=k, **how)
    by_tensor = tnc.contract(x, tnc.window(i, out=o, kernel=k, **how), out=(o, k))
    assert by_method == by_tensor


def test_same_keeps_the_size_and_valid_pads_nothing() -> None:
    for taps in (1, 2, 3, 4, 5):
        for dilation in (1, 2, 3):
            before, after = same_padding(taps, dilation)
            assert window_count(9, taps, Geometry(1, dilation, before, after)) == 9
            assert 0 <= after - before <= 1
    i, o, k = known(9, 4)
    x, w = tnc.input("x", i), tnc.param("w", k)
    values, weights = rand(9), rand(4)
    for padding in ("same", "valid"):
        y = tnc.contract(x.window(i, out=o, kernel=k, padding=padding), w, out=(o,))
        wanted = functional.conv1d(
            torch.tensor(values)[None, None], torch.tensor(weights)[None, None], padding=padding
        )
        same(evaluate(y, {"x": values, "w": weights}, {}).value, wanted[0, 0].numpy())


def test_windows_that_read_inside() -> None:
    for source in range(6):
        for position in range(8):
            for stride in (1, 2, 3):
                first, last = reading_windows(position, 5, source, stride, 3)
                inside = [o for o in range(5) if 0 <= o * stride + position - 3 < source]
                assert list(range(first, last)) == inside


# ---------------------------------------------------------------------------- sizes


def test_the_count_of_windows_follows_at_bind_time() -> None:
    """(i + p0 + p1 - k_eff) // s + 1"""
    i, o, k = tnc.indices("i o k", k=3)
    x, w = tnc.input("x", i), tnc.param("w", k)
    y = tnc.contract(x.window(i, out=o, kernel=k, stride=2, padding=1), w, out=(o,))
    f = tnc.compile(y, framework="numpy", seed=0)
    for size in (1, 2, 7, 8, 30):
        assert f(rand(size).astype("float32")).shape == ((size - 1) // 2 + 1,)


def test_one_count_for_two_windows_is_checked() -> None:
    i, j, o, k, m = tnc.indices("i j o k m", k=3, m=2)
    x, y = tnc.input("x", i), tnc.input("y", j)
    z = tnc.contract(x.window(i, out=o, kernel=k), y.window(j, out=o, kernel=m, stride=2), out=(o,))
    f = tnc.compile(z, framework="numpy")
    assert f(rand(8).astype("float32"), rand(12).astype("float32")).shape == (6,)
    with pytest.raises(SizeEquationError, match="must be 6 but is 5"):
        f(rand(8).astype("float32"), rand(11).astype("float32"))


def test_the_source_follows_from_the_count_where_nothing_strides() -> None:
    i, o, k = tnc.indices("i o k", k=3)
    y = tnc.input("y", o)
    z = tnc.contract(y, tnc.param("w", k), tnc.window(i, out=o, kernel=k, padding=1), out=(i,))
    f = tnc.compile(z, framework="numpy", seed=0)
    assert f(rand(5).astype("float32")).shape == (5,)


def test_a_free_kernel() -> None:
    i, o, k = tnc.indices("i o k")
    x, w = tnc.input("x", i), tnc.input("w", k)
    y = tnc.contract(x.window(i, out=o, kernel=k, padding="same"), w, out=(o,))
    for runner in RUNNERS[:2]:
        for taps in (1, 2, 5):
            arrays = {"x": rand(6).astype("float32"), "w": rand(taps).astype("float32")}
            check_forward(y, arrays, runner, "float32")
            check_gradients(
                y,
                arrays,
                runner,
                "float32",
                cotangents=(rand(6).astype("float32"),),
                wrt=("x", "w"),
            )


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("size", "taps"), [(0, 1), (1, 1), (3, 3), (4, 0), (1, 5)])
def test_smallest_sizes(size: int, taps: int, runner: str) -> None:
    """Correctness holds at every size, 0 and 1 included."""
    i, o, k = known(size, taps)
    padding = 2 if taps == 5 else 0
    c, t = tnc.indices("c t", c=2, t=3)
    x, w = tnc.input("x", c, i), tnc.param("w", t, c, k)
    y = tnc.contract(x.window(i, out=o, kernel=k, padding=padding), w, out=(t, o))
    count = size + 2 * padding - taps + 1
    arrays = {"x": rand(2, size).astype("float32"), "w": rand(3, 2, taps).astype("float32")}
    ct = (rand(3, count).astype("float32"),)
    check_gradients(y, arrays, runner, "float32", cotangents=ct, wrt=("x", "w"))


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ({"stride": 0}, WindowError, "stride is 0"),
        ({"dilation": -1}, WindowError, "dilation is -1"),
        ({"stride": 1.5}, ArgumentError, "stride is 1.5"),
        ({"padding": "full"}, WindowError, "padding is 'full'"),
        ({"padding": (1, 2, 3)}, WindowError, r"padding is \(1, 2, 3\)"),
        ({"padding": -1}, tnc.TncError, "padding has size -1"),
        ({"padding": "same", "stride": 2}, WindowError, "no meaning with stride 2"),
        ({"dilation": 4}, WindowError, "a window of 9 positions does not fit into 7"),
    ],
)
def test_bad_windows(how: dict[str, Any], kind: type[Exception], says: str) -> None:
    i, o, k = known()
    with pytest.raises(kind, match=says) as caught:
        tnc.input("x", i).window(i, out=o, kernel=k, **how)
    assert "fix: " in str(caught.value) and "test_windows.py" in str(caught.value)


def test_another_count_of_windows() -> None:
    i, o, k = known(7, 3, 6)
    with pytest.raises(SizeEquationError, match="there are 5 windows, not 6"):
        tnc.input("x", i).window(i, out=o, kernel=k)


def test_windows_that_do_not_fit_a_call() -> None:
    i, o, k = tnc.indices("i o k", k=5)
    f = tnc.compile(tnc.input("x", i).window(i, out=o, kernel=k).max(k), framework="numpy")
    with pytest.raises(WindowError, match="5 positions does not fit into 3 with 0"):
        f(rand(3).astype("float32"))


def test_an_index_that_is_not_there() -> None:
    i, o, k = known()
    with pytest.raises(UnknownIndex, match="no index 'j'"):
        tnc.input("x", i).window("j", out=o, kernel=k)


def test_indices_must_be_new() -> None:
    i, o, k = known()
    with pytest.raises(RepeatedIndex, match="already has an index 'k'"):
        tnc.input("x", i, k).window(i, out=o, kernel=k)
    with pytest.raises(RepeatedIndex, match="names index 'i' twice"):
        tnc.input("x", i).window(i, out=i, kernel=k)


def test_an_image_of_another_size() -> None:
    i, o, k = known()
    y = tnc.input("x", i).window(i, out=o, kernel=k).sum(k)
    with pytest.raises(ArraySizeClash, match="index 'i' has size 7"):
        tnc.compile(y, framework="numpy")(rand(8).astype("float32"))


# ---------------------------------------------------------------------------- what becomes of it


def logical_ops(expr: Expr) -> list[object]:
    program = run_passes(lower((expr,), default_dtype="float32"), LOGICAL_PASSES)
    return [step.op for step in program.steps]


def scheduled_ops(expr: Expr) -> list[type]:
    f = tnc.compile(expr, framework="numpy", seed=0)
    program, _ = f.compilation.scheduled(f._dtypes(), f.compilation.nominal({}))
    return [type(step.op) for step in program.steps]


B, C, T, P = tnc.indices("b c t p", b=2, c=3, t=4, p=2)
I, O, K = known()
X = tnc.input("x", B, C, I)
W = tnc.param("w", T, C, K)


def convolution(**how: Any) -> Expr:
    return tnc.contract(X.window(I, out=O, kernel=K, **how), W, out=(B, T, O))


def test_a_convolution_is_one_step() -> None:
    (op,) = logical_ops(convolution())
    assert isinstance(op, Convolve) and len(op.inputs) == 2
    assert scheduled_ops(convolution()) == [Convolve]


def test_what_is_seen_through_a_window_is_a_view() -> None:
    assert scheduled_ops(X.window(I, out=O, kernel=K).max(K))[0] is Unfold


def test_a_sum_over_taps_is_a_convolution_with_ones() -> None:
    assert scheduled_ops(X.window(I, out=O, kernel=K).sum(K)) == [Contract, Convolve]


def test_windows_summed_into_their_source_are_folded() -> None:
    y = tnc.contract(tnc.input("y", O, K), tnc.window(I, out=O, kernel=K), out=(I,))
    assert Fold in scheduled_ops(y)


def test_a_window_whose_indices_are_all_kept_stays_a_tensor() -> None:
    y = tnc.contract(tnc.input("y", I), tnc.window(I, out=O, kernel=K), out=(I, O, K))
    assert Window in scheduled_ops(y)


def test_windows_with_nothing_to_see_are_counted() -> None:
    """Windows alone, without a tensor that is seen through them."""
    count = tnc.contract(tnc.window(I, out=O, kernel=K), out=(I,))
    same(tnc.compile(count, framework="numpy")(), np.array([1, 2, 3, 3, 3, 2, 1]))


def test_of_two_windows_that_share_an_index_one_stays_a_tensor() -> None:
    """What stays a tensor carries its indices, so that others may have to stay too."""
    j, m = tnc.Index("j", 3), tnc.Index("m", 1)
    chain = tnc.contract(
        tnc.window(I, out=O, kernel=K),
        tnc.window(j, out=K, kernel=m),
        tnc.input("x", I),
        tnc.param("v", O, m),
        out=(j,),
    )
    arrays = arrays_of(chain)
    ct = (np.asarray(rand(3), "float32"),)
    check_gradients(chain, arrays, "function", "float32", cotangents=ct, wrt=tuple(arrays))


def test_a_convolution_of_a_convolution_is_two_steps() -> None:
    """One network holds no window of a window."""
    o2, k2 = tnc.Index("o2"), tnc.Index("k2", 2)
    y = convolution().window(O, out=o2, kernel=k2) * tnc.param("v", k2)
    z = y.sum(k2)
    assert scheduled_ops(z).count(Convolve) == 2


VIEWS: dict[str, Expr] = {
    "convolution": convolution(padding=(2, 1), stride=2),
    "maximum of windows": X.window(I, out=O, kernel=K, stride=2).max(K),
    "sum of windows": X.window(I, out=O, kernel=K, padding=1).sum(K),
    "mean of windows": X.window(I, out=O, kernel=K, stride=3).mean(K),
    "windows themselves": X.window(I, out=O, kernel=K, dilation=2),
    "windows transposed": X.window(I, out=O, kernel=K).transpose(K, O, C, B),
    "windows through a function": tnc.tanh(X.window(I, out=O, kernel=K, padding=1)) * W,
    "two windows on one tensor": tnc.contract(
        X.window(I, out=O, kernel=K).window(C, out=tnc.Index("q"), kernel=P),
        tnc.param("v", K, P),
        out=("b", "o", "q"),
    ),
    "a weight for every position": tnc.contract(
        X.window(I, out=O, kernel=K), tnc.param("u", O, T, C, K), out=(B, T, O)
    ),
    "taps kept beside": tnc.contract(X.window(I, out=O, kernel=K), W, out=(B, T, O, K)),
    "a source on two tensors": tnc.contract(
        X, tnc.param("m", I), tnc.window(I, out=O, kernel=K), W, out=(B, T, O)
    ),
    "source and windows on one tensor": tnc.contract(
        tnc.input("y", I, O), tnc.window(I, out=O, kernel=K), tnc.param("v", K), out=(O,)
    ),
    "a convolution of a convolution": (
        convolution(padding=1).window("o", out=tnc.Index("o2"), kernel=P) * tnc.param("v", P)
    ).sum(P),
    "the window alone": tnc.window(I, out=O, kernel=K) * tnc.param("s"),
    "a count of windows": tnc.contract(
        tnc.window(I, out=O, kernel=K, padding=1), tnc.param("s"), out=(I,)
    ),
    "a mask of what is inside": tnc.contract(
        tnc.window(I, out=O, kernel=K, padding=1), tnc.param("s"), out=(O, K)
    ),
    "three transposed at once": tnc.contract(
        tnc.input("y", B, C, O, K), tnc.window(I, out=O, kernel=K, stride=2), out=(C, I, B)
    ),
    "same odd kernel": convolution(padding="same"),
}


def arrays_of(expr: Expr, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Numbers for all leaves, whose sizes follow from those that are given."""
    binding: dict[Any, int] = {}
    solve_all(equations_of(expr), binding)
    shapes = {leaf.name: [size_of(s, binding) for s in leaf.shape] for leaf in expr.leaves}
    return {name: np.asarray(rand(*shape)).astype(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", VIEWS)
def test_every_use(name: str, runner: str) -> None:
    """Forward and every gradient."""
    expr = VIEWS[name]
    arrays = arrays_of(expr)
    shape = evaluate(expr, arrays, {}).value.shape
    ct = (np.asarray(rand(*shape), "float32"),)
    check_gradients(expr, arrays, runner, "float32", cotangents=ct, wrt=tuple(arrays))


@pytest.mark.parametrize("dtype", ["float64", "complex64", "bfloat16", "float16"])
def test_every_dtype(dtype: str) -> None:
    expr = convolution(padding=1, stride=2)
    held = "float32" if dtype == "bfloat16" else dtype
    arrays = arrays_of(expr, held)
    if dtype == "bfloat16":
        arrays = {name: np.round(array * 4) / 4 for name, array in arrays.items()}
    ct = (np.round(rand(2, 4, 4)).astype(held),)
    check_gradients(expr, arrays, "torch", dtype, cotangents=ct, wrt=("x", "w"))


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool"])
def test_integers_are_exact(dtype: str) -> None:
    """Int and bool: forward only, exact and wrapping as NumPy."""
    x, w = tnc.input("x", C, I, dtype=dtype), tnc.input("w", T, C, K, dtype=dtype)
    y = tnc.contract(x.window(I, out=O, kernel=K, padding=1), w, out=(T, O))
    highest = 2 if dtype == "bool" else 100
    arrays = [np.random.default_rng(0).integers(0, highest, t.shape).astype(dtype) for t in (x, w)]
    seen = np.lib.stride_tricks.sliding_window_view(np.pad(arrays[0], ((0, 0), (1, 1))), 3, 1)
    wanted = np.einsum("cok,tck->to", seen, arrays[1])
    for framework, backend in (("numpy", "numpy"), ("torch", "torch")):
        f = tnc.compile(y, framework=framework, backend=backend)
        given = arrays if framework == "numpy" else [torch.from_numpy(a) for a in arrays]
        got = np.asarray(f(*given))
        assert got.dtype == np.dtype(dtype) and np.array_equal(got, wanted)


# ---------------------------------------------------------------------------- derivatives


def test_second_derivatives() -> None:
    """Second derivatives are gradients of inner products; fold is its own transpose's."""
    y = convolution(padding=1, stride=2)
    loss = (tnc.tanh(y) * y).sum()
    dx = tnc.grad(loss, X)
    again = tnc.grad((dx * dx).sum(), W)
    arrays = arrays_of(y, "float64")
    leaves = {name: torch.tensor(a, requires_grad=True) for name, a in arrays.items()}
    z = functional.conv1d(leaves["x"], leaves["w"], padding=1, stride=2)
    (first,) = torch.autograd.grad((torch.tanh(z) * z).sum(), leaves["x"], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaves["w"])
    for framework in ("numpy", "torch"):
        f = tnc.compile(again, framework=framework, dtype="float64", seed=0)
        got = _called(f, arrays)
        same(got, second.numpy(), 1e-9)


def _called(f: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
    if not isinstance(f, torch.nn.Module):
        held = {name: arrays[name] for name in f.parameters}
        return np.asarray(f(*(arrays[name] for name in f.inputs), parameters=held))
    with torch.no_grad():
        for name, parameter in f.named_parameters():
            parameter.copy_(torch.tensor(arrays[name]))
        return f(*(torch.tensor(arrays[name]) for name in f.inputs)).numpy()  # type: ignore[no-any-return]


def test_gradients_of_gradients_in_torch() -> None:
    f = tnc.compile(convolution(padding=1), dtype="float64", seed=0)
    x = torch.tensor(rand(2, 3, 7), requires_grad=True)
    assert torch.autograd.gradgradcheck(f, (x,))


def test_forward_mode() -> None:
    y = convolution(padding=2, dilation=2)
    dx, dw = tnc.input("dx", *X.indices), tnc.input("dw", *W.indices)
    moved = tnc.jvp(y, {X: dx, W: dw})
    arrays = {**arrays_of(y, "float64"), "dx": rand(2, 3, 7), "dw": rand(4, 3, 3)}
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}

    def conv(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return functional.conv1d(x, w, padding=2, dilation=2)

    _, wanted = torch.func.jvp(conv, (tensors["x"], tensors["w"]), (tensors["dx"], tensors["dw"]))
    same(evaluate(moved, arrays, {}).value, wanted.numpy(), 1e-12)
    f = tnc.compile(y, framework="numpy", dtype="float64", seed=0)
    _, got = f.jvp(arrays["x"], {"x": arrays["dx"]})
    same(got, conv(tensors["dx"], torch.tensor(f.parameters["w"])).numpy(), 1e-9)


def test_torch_transforms_see_through() -> None:
    """torch.func on the module: vmap over examples, jvp, and gradients by example."""
    f = tnc.compile(convolution(padding=1), seed=0)
    x = torch.tensor(rand(5, 2, 3, 7), dtype=torch.float32)
    stacked = torch.stack([f(one) for one in x])
    torch.testing.assert_close(torch.func.vmap(f)(x), stacked)
    _, moved = torch.func.jvp(f, (x[0],), (x[1],))
    torch.testing.assert_close(moved, f(x[1]))
    each = torch.func.vmap(torch.func.grad(lambda one: f(one).square().sum()))(x)
    alone = torch.func.grad(lambda one: f(one).square().sum())(x[2])
    torch.testing.assert_close(each[2], alone)


def test_environment_of_a_kernel() -> None:
    y = convolution(padding=1)
    around = environment(y, W)
    again = tnc.contract(around, W, out=y.indices)
    arrays = arrays_of(y, "float64")
    same(evaluate(again, arrays, {}).value, evaluate(y, arrays, {}).value, 1e-12)


# ---------------------------------------------------------------------------- for people


def test_the_generated_code_says_how_positions_move() -> None:
    f = tnc.compile(convolution(padding=1, stride=2), framework="numpy", seed=0)
    source = f.source()
    assert "(b, t, o) = (b, c, i) * (t, c, k), i = o·2 + k - 1" in source
    assert "i = o·2 + k - 1" in f.explain()


def test_pictures_and_plans() -> None:
    r = tnc.Index("r", 2)
    terms = [tnc.param("U", C, r), tnc.param("V", K, r), tnc.param("S", T, r)]
    y = tnc.contract(X.window(I, out=O, kernel=K), *terms, out=(B, T, O))
    f = tnc.compile(y, framework="numpy", seed=0)
    assert f.draw() is not None
    plan = f.plan()
    again = tnc.ContractionPlan.from_json(plan.to_json())
    assert again.networks == plan.networks
    g = tnc.compile(y, framework="numpy", seed=0, plan=again)
    x = rand(2, 3, 7).astype("float32")
    assert np.array_equal(g(x), f(x))


def test_parameters_are_drawn_to_keep_the_variance() -> None:
    i, o, k = known(1000, 9)
    c, t = tnc.indices("c t", c=16, t=16)
    x = tnc.input("x", c, i)
    y = tnc.contract(
        x.window(i, out=o, kernel=k, padding="same"), tnc.param("w", t, c, k), out=(t, o)
    )
    f = tnc.compile(y, framework="numpy", seed=0)
    assert 0.8 < f(rand(16, 1000).astype("float32")).std() / rand(16, 1000).std() < 1.25
