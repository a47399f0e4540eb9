"""Reads and sums at integer positions: meaning, errors, derivatives, cost, on every runner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests import oracle
from tncompiler.ir.derivatives import lower
from tncompiler.ir.errors import (
    ArgumentError,
    DTypeError,
    IndexMismatch,
    InvalidProgram,
    PositionError,
    RepeatedIndex,
    UnknownIndex,
)
from tncompiler.ir.gather import Gather, Scatter
from tncompiler.ir.passes.slicing import slice_index
from tncompiler.ir.program import Argument, Loop, Program, Step, Value
from tncompiler.ir.reference import evaluate
from tncompiler.ir.validate import validate

V, F, T, B, N = tnc.indices("v f t b n", v=7, f=3, t=4, b=2, n=5)
TABLE = tnc.param("table", V, F)
IDS = tnc.input("ids", B, T, dtype="int64")
RNG = np.random.default_rng(3)
ROWS = RNG.standard_normal((7, 3)).astype(np.float32)
AT = np.array([[0, 6, 6, 2], [1, 0, 6, 5]])


def run(expr: tnc.Expr, arrays: dict[str, np.ndarray], runner: str = "function") -> np.ndarray:
    (value,) = oracle.Runner((expr,), runner, "float32", {}).forward(arrays)
    return value


# ---------------------------------------------------------------------------- meaning


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_rows_of_a_table(runner: str) -> None:
    """the index is replaced by those of the ids, in its place"""
    expr = TABLE.transpose(F, V).gather(V, IDS)
    assert expr.indices == (F, B, T)
    assert np.array_equal(run(expr, {"table": ROWS, "ids": AT}, runner), ROWS.T[:, AT])


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_shared_indices_run_together(runner: str) -> None:
    logits, target = tnc.input("logits", B, T, V), tnc.input("target", B, T, dtype="int64")
    expr = tnc.gather(logits, V, target)
    assert expr.indices == (B, T)
    x = RNG.standard_normal((2, 4, 7)).astype(np.float32)
    expected = np.take_along_axis(x, AT[:, :, None], 2)[:, :, 0]
    assert np.array_equal(run(expr, {"logits": x, "target": AT}, runner), expected)


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_ids_of_the_index_itself(runner: str) -> None:
    """out[v] = table[parent[v]]"""
    parent = np.array([0, 0, 0, 1, 1, 6, 2])
    expr = TABLE.gather(V, tnc.input("parent", V, dtype="int32"))
    assert expr.indices == (V, F)
    given = {"table": ROWS, "parent": parent.astype(np.int32)}
    assert np.array_equal(run(expr, given, runner), ROWS[parent])


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_sums_by_position(runner: str) -> None:
    """message passing: what comes over an edge is added at its receiver"""
    values, receiver = tnc.input("m", T, F), tnc.input("ids", T, dtype="int64")
    expr = values.scatter_add(receiver, N)
    assert expr.indices == (N, F)
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    got = run(expr, {"m": x, "ids": np.array([4, 1, 4, 0])}, runner)
    assert np.array_equal(got, [x[3], x[1], [0, 0, 0], [0, 0, 0], x[0] + x[2]])


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_sums_over_some_of_the_indices_of_the_ids(runner: str) -> None:
    values, ids = tnc.input("m", F, B, T), tnc.input("ids", B, T, dtype="int64")
    expr = tnc.scatter_add(values, ids, into=V, over=T)
    assert expr.indices == (F, B, V)
    x = RNG.standard_normal((3, 2, 4)).astype(np.float32)
    expected = np.zeros((3, 2, 7), np.float32)
    for b in range(2):
        for t in range(4):
            expected[:, b, AT[b, t]] += x[:, b, t]
    assert np.allclose(run(expr, {"m": x, "ids": AT}, runner), expected, atol=1e-6)


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_the_largest_by_position(runner: str) -> None:
    """zeros where nothing comes, also between negative numbers; not-a-numbers stay"""
    values, receiver = tnc.input("m", T, F), tnc.input("ids", T, dtype="int64")
    expr = values.scatter_max(receiver, N)
    assert expr.indices == (N, F)
    x = np.array([[-1, 2, 3], [4, 5, np.nan], [-2, 7, 1], [0, -8, -9]], np.float32)
    got = run(expr, {"m": x, "ids": np.array([4, 1, 4, 0])}, runner)
    assert np.array_equal(got, [x[3], x[1], [0, 0, 0], [0, 0, 0], [-1, 7, 3]], equal_nan=True)


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_gradients_of_the_largest(runner: str) -> None:
    """to the largest value of a position alone, in equal parts among equal ones, as amax does"""
    values, ids = tnc.input("m", F, B, T), tnc.input("ids", B, T, dtype="int64")
    expr = tnc.scatter_max(values, ids, into=V, over=T)
    assert expr.indices == (F, B, V)
    x = RNG.integers(-2, 3, (3, 2, 4)).astype(np.float32)
    ct = RNG.standard_normal((3, 2, 7)).astype(np.float32)
    own = torch.tensor(x, requires_grad=True)
    expected = torch.zeros(3, 2, 7)
    for b in range(2):
        for v in set(AT[b]):
            expected[:, b, v] = own[:, b, AT[b] == v].amax(-1)
    expected.backward(torch.tensor(ct))
    (value,), found = oracle.Runner((expr,), runner, "float32", {}).gradients(
        {"m": x, "ids": AT}, [ct], ("m",)
    )
    assert own.grad is not None
    assert np.array_equal(value, expected.detach().numpy())
    assert np.allclose(found["m"], own.grad.numpy())


def test_the_largest_moves_as_what_it_was_taken_from() -> None:
    x, moved = RNG.standard_normal((2, 4)), RNG.standard_normal((2, 4))
    m, d = tnc.input("m", B, T), tnc.input("d", B, T)
    expr = m.scatter_max(IDS, V, T)
    given = {"m": x, "d": moved, "ids": AT}
    step = 1e-6
    shifted = evaluate(expr, {**given, "m": x + step * moved}).value - evaluate(expr, given).value
    assert np.allclose(evaluate(tnc.jvp(expr, {m: d}), given).value, shifted / step)
    complex_m = tnc.input("z", B, T, dtype="complex64")
    with pytest.raises(DTypeError, match="scatter_max is not defined for complex64"):
        tnc.compile(complex_m.scatter_max(IDS, V))


def test_torchs_embedding_agrees() -> None:
    """forward and the gradient of the table, where ids repeat"""
    dense = torch.nn.Embedding(7, 3)
    module = tnc.compile(TABLE.gather(V, IDS), backend="torch")
    with torch.no_grad():
        module.table.copy_(dense.weight)
    ids = torch.from_numpy(AT)
    ours, theirs = module(ids), dense(ids)
    cotangent = torch.randn_like(theirs)
    ours.backward(cotangent)
    theirs.backward(cotangent)
    assert torch.equal(ours, theirs)
    assert torch.allclose(module.table.grad, dense.weight.grad, atol=1e-6)


def test_free_sizes_follow_from_the_arrays() -> None:
    t = tnc.Index("t")
    f = tnc.compile(TABLE.gather(V, tnc.input("ids", t, dtype="int64")), framework="numpy")
    f.parameters["table"] = ROWS
    for count in (0, 1, 5):
        assert np.array_equal(f(np.arange(count)), ROWS[:count])


# ---------------------------------------------------------------------------- networks of cores

I1, I2, O1, O2, R = tnc.indices("i1 i2 o1 o2 r", i1=16, i2=32, o1=4, o2=4, r=3)
CORES = (tnc.param("G1", I1, O1, R), tnc.param("G2", R, I2, O2))
TOKENS = tnc.input("tokens", T, dtype="int64")


def test_a_tensor_train_is_read_core_by_core() -> None:
    """never materialised: no value of the program is larger than what one token takes of it"""
    rows = tnc.gather(CORES[0] @ CORES[1], (I1, I2), TOKENS)
    assert rows.indices == (T, O1, O2)
    f = tnc.compile(rows, framework="numpy", seed=0)
    tokens = np.array([0, 511, 33, 33])
    table = np.einsum("iar,rjb->ijab", f.parameters["G1"], f.parameters["G2"])
    assert np.allclose(f(tokens), table.reshape(512, 4, 4)[tokens], atol=1e-6)
    assert f.peak_memory < table.nbytes / 10
    assert abs(np.std(f(RNG.integers(0, 512, 4))) - 1) < 0.5  # cores that are gathered start right


def test_a_bond_called_as_the_ids_are() -> None:
    """an index of the ids captures no bound index of the network"""
    ids = tnc.input("ids", tnc.Index("r", 5), dtype="int64")
    rows = tnc.gather(CORES[0] @ CORES[1], (I1, I2), ids)
    f = tnc.compile(rows, framework="numpy", seed=0)
    tokens = np.array([9, 8, 7, 6, 300])
    table = np.einsum("iar,rjb->ijab", f.parameters["G1"], f.parameters["G2"])
    assert np.allclose(f(tokens), table.reshape(512, 4, 4)[tokens], atol=1e-6)


@pytest.mark.parametrize("token", [512, -1])
def test_a_token_beyond_the_radix(token: int) -> None:
    f = tnc.compile(tnc.gather(CORES[0] @ CORES[1], (I1, I2), TOKENS), framework="numpy")
    with pytest.raises(PositionError, match="index 'i1' of size 16"):
        f(np.array([0, token, 1, 1]))


# ---------------------------------------------------------------------------- derivatives


def test_scatter_is_the_adjoint_of_gather() -> None:
    """<ct, gather(T)> is <scatter(ct), T>"""
    ct = RNG.standard_normal((2, 4, 3))
    read = evaluate(TABLE.gather(V, IDS), {"table": ROWS, "ids": AT}).value
    back = tnc.input("ct", B, T, F).scatter_add(IDS, V)
    added = evaluate(back, {"ct": ct, "ids": AT}).value
    assert np.isclose((ct * read).sum(), (added * ROWS).sum())


def test_gradients_and_tangents_are_expressions() -> None:
    y = tnc.tanh(TABLE.gather(V, IDS))
    gradient = tnc.grad((y * y).sum(), TABLE)
    assert gradient.indices == (V, F)
    again = tnc.grad((gradient * gradient).sum(), TABLE)
    moved = tnc.jvp(y, {TABLE: tnc.input("d", V, F)})
    table = ROWS.astype(np.float64)
    given = {"table": table, "ids": AT, "d": np.ones_like(table)}
    step = 1e-6
    shifted = evaluate(y, {**given, "table": table + step}).value - evaluate(y, given).value
    assert np.allclose(evaluate(moved, given).value, shifted / step, atol=1e-4)
    dense = torch.tensor(table, requires_grad=True)
    square = torch.tanh(dense[torch.tensor(AT)]).square().sum()
    (first,) = torch.autograd.grad(square, dense, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), dense)
    assert np.allclose(evaluate(gradient, given).value, first.detach().numpy())
    assert np.allclose(evaluate(again, given).value, second.numpy())


def test_torch_looks_inside() -> None:
    """vmap, forward mode and per-sample gradients go through"""
    module = tnc.compile(TABLE.gather(V, tnc.input("ids", T, dtype="int64")), backend="torch")
    ids = torch.from_numpy(AT)
    each = torch.vmap(module)(ids)
    assert torch.equal(each, module.table[ids])
    held = {"table": module.table.detach()}

    def square(parameters: dict[str, torch.Tensor], at: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, parameters, (at,)).square().sum()

    found = torch.vmap(torch.func.grad(square), (None, 0))(held, ids)["table"]
    counts = torch.stack([torch.bincount(row, minlength=7) for row in ids])
    assert torch.allclose(found, 2 * counts[:, :, None] * held["table"], atol=1e-5)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_long_sums_are_exact_to_the_dtype(backend: str) -> None:
    """a million positive float32 values at one position, bit for bit the same twice"""
    e = tnc.Index("e")
    expr = tnc.input("x", e).scatter_add(tnc.input("ids", e, dtype="int64"), N)
    f = tnc.compile(expr, backend=backend)
    x = torch.rand(10**6, generator=torch.Generator().manual_seed(0))
    ids = torch.full((10**6,), 3)
    first, second = f(x, ids), f(x, ids)
    assert torch.equal(first, second)
    assert abs(first[3] / x.double().sum() - 1) < 2e-7


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize("runner", oracle.RUNNERS)
@pytest.mark.parametrize("bad", [7, -1])
def test_ids_out_of_range(runner: str, bad: int) -> None:
    """the value and the size, and never a wrapped or clamped position"""
    ids = AT.copy()
    ids[1, 2] = bad
    given = {"table": ROWS, "ids": ids, "m": RNG.standard_normal((2, 4)).astype(np.float32)}
    for expr in (TABLE.gather(V, IDS), tnc.input("m", B, T).scatter_add(IDS, V)):
        own = {leaf.name: given[leaf.name] for leaf in expr.leaves}
        with pytest.raises(PositionError, match=f"id {bad} .* index 'v' of size 7"):
            run(expr, own, runner)
        with pytest.raises(PositionError, match=f"id {bad} .* index 'v' of size 7"):
            evaluate(expr, own)


def test_torch_compile_asserts_the_range() -> None:
    from torch.export import export

    module = tnc.compile(TABLE.gather(V, IDS), backend="torch")
    program = export(module, (torch.from_numpy(AT),)).module()
    assert torch.equal(program(torch.from_numpy(AT)), module(torch.from_numpy(AT)))
    with pytest.raises((RuntimeError, IndexError)):
        program(torch.full((2, 4), 7))


def test_bad_use() -> None:
    with pytest.raises(DTypeError, match="positions are integers"):
        TABLE.gather(V, tnc.input("x", B))
    with pytest.raises(DTypeError, match="positions are integers"):
        lower((TABLE.gather(V, tnc.tanh(tnc.input("x", B))),), default_dtype="float32")
    with pytest.raises(UnknownIndex, match="no index 't'"):
        TABLE.gather(T, IDS)
    with pytest.raises(ArgumentError, match="over no index"):
        TABLE.gather((), IDS)
    with pytest.raises(IndexMismatch, match="no index 'b', which the ids have"):
        tnc.input("m", T).scatter_add(IDS, V)
    for name in ("scatter_add", "scatter_max"):
        with pytest.raises(RepeatedIndex, match=f"{name}.*'f' twice|'f' twice.*{name}"):
            getattr(tnc, name)(tnc.input("m", B, T, F), IDS, F)
    with pytest.raises(UnknownIndex, match="no index 'n'"):
        tnc.input("m", B, T, F).scatter_add(IDS, V, over=N)


def _program(op: Gather | Scatter, out: tuple[int, ...], dtype: str = "int64") -> Program:
    table = Value("p", (7, 3), "float32", ("v", "f"))
    ids = Value("q", (7, 4), dtype, ("v", "t"))
    made = Value("t0", out, "float32", tuple("abcdef"[: len(out)]))
    return Program(
        (Argument(table, "input"), Argument(ids, "input")), (Step(made, op, ("p", "q")),), ("t0",)
    )


@pytest.mark.parametrize(
    ("op", "out", "dtype"),
    [
        (Gather(0, (None, None)), (7, 4), "int64"),
        (Gather(0, (None, None)), (7, 4, 3), "int32"),
        (Gather(2, (None, None)), (7, 4, 3), "int64"),
        (Gather(0, (None,)), (7, 3), "int64"),
        (Gather(1, (0, 0)), (7,), "int64"),
        (Gather(0, (0, None)), (4, 3), "int64"),
        (Gather(1, (1, None)), (7, 4), "int64"),
        (Scatter(1, (0, None)), (7, 5), "int64"),
    ],
)
def test_steps_that_do_not_fit_are_invalid(
    op: Gather | Scatter, out: tuple[int, ...], dtype: str
) -> None:
    validate(_program(Gather(1, (0, None)), (7, 4)))
    with pytest.raises(InvalidProgram):
        validate(_program(op, out, dtype))


# ---------------------------------------------------------------------------- planning


def test_cost_counts_what_is_read_and_not_the_table() -> None:
    large = tnc.param("large", tnc.Index("v", 10**6), F)
    f = tnc.compile(large.gather("v", IDS), framework="numpy")
    read = 8 * 3 * 4
    assert f.cost().bytes_read == read + 8 * 8
    assert f.cost().bytes_written == read
    back = f.cost(part="backward")
    assert back.elementwise == 8 * 3


def test_gathers_are_cut_along_the_ids() -> None:
    """a batch of ids is worked on block by block"""
    table, ids = TABLE, tnc.input("ids", tnc.Index("e", 10), dtype="int64")
    program = lower((tnc.tanh(table.gather(V, ids)).sum("e"),), default_dtype="float32")
    cut = slice_index(program, ("ids", 0), 4)
    (loop,) = [step.op for step in cut.steps if isinstance(step.op, Loop)]
    assert any(isinstance(step.op, Gather) for step in loop.body.steps)
