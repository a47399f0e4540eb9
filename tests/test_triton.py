"""The Triton backend under the interpreter: launches, layers, precision, sizes, what is missing.

The shared corpus and the fuzzer run it as they run every backend; here is what is its own.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch

import tncompiler as tnc
from tests.conftest import ROOT, Golden
from tncompiler.backends.triton import runtime
from tncompiler.ir.errors import BackendError

FORMATS = {
    "TT": (tnc.formats.TT, 4, (4, 6, 8), (5, 6, 8)),
    "TTMatrix": (tnc.formats.TTMatrix, 4, (4, 6, 8), (5, 6, 8)),
    "Tucker": (tnc.formats.Tucker, 4, (4, 6, 8), (5, 6, 8)),
    "CP": (tnc.formats.CP, 4, (4, 6, 8), (5, 6, 8)),
    "TensorRing": (tnc.formats.TensorRing, 3, (4, 6, 8), (5, 6, 8)),
    "BlockTerm": (tnc.formats.BlockTerm, 3, (4, 6, 8), (5, 6, 8)),
    "HT": (tnc.formats.HT, 3, (4, 6, 8), (5, 6, 8)),
    "LowRank": (tnc.formats.LowRank, 8, (48,), (40,)),
    "Kronecker": (tnc.formats.Kronecker, 2, (4, 6, 8), (5, 6, 8)),
}
# of the largest element: a few roundings of products and of what is kept between them
TOLERANCE = {torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 6e-2}


def layer(name: str, backend: str, dtype: torch.dtype) -> tnc.nn.Linear:
    make, rank, ins, outs = FORMATS[name]
    torch.manual_seed(0)
    made = tnc.nn.Linear(
        torch.Size(ins).numel(),
        torch.Size(outs).numel(),
        format=make(rank=rank),
        in_shape=ins,
        out_shape=outs,
        implementation="factorized",
        backend=backend,
    )
    torch.nn.init.normal_(made.cores.bias)
    return made.to(dtype)


def launches(source: str) -> int:
    """How many kernels a generated function launches."""
    return source.count("_kernel[(")


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    error = (got.detach().double() - wanted.detach()).abs().max()
    return float(error / wanted.detach().abs().max())


def worst_error(ours: torch.nn.Module, exact: torch.nn.Module, x: torch.Tensor) -> float:
    """Of the output and every gradient, against a module in float64 that gets our parameters."""
    with torch.no_grad():
        for mine, theirs in zip(ours.parameters(), exact.parameters(), strict=True):
            theirs.copy_(mine)
    z = x.double().requires_grad_()
    x.requires_grad_()
    y, wanted = ours(x), exact(z)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    wanted.backward(cotangent.double())
    pairs = [(y, wanted), (x.grad, z.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(ours.parameters(), exact.parameters(), strict=True)]
    return max(relative_error(got, right) for got, right in pairs)


def check_layer(name: str, dtype: torch.dtype, batch: int) -> None:
    """Output and every gradient against the same layer in float64 on aten."""
    ours, exact = layer(name, "triton", dtype), layer(name, "torch", torch.float64)
    x = torch.randn(batch, ours.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    worst = worst_error(ours, exact, x)
    assert worst <= TOLERANCE[dtype], f"{name} {dtype}: {worst:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_agrees_with_float64(name: str, dtype: torch.dtype) -> None:
    """sizes that are no powers of two are padded; rows that are no multiple of a block are cut"""
    check_layer(name, dtype, batch=7)


def test_the_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCE, torch.float32, 1e-12)
    with pytest.raises(AssertionError, match="TTMatrix"):
        check_layer("TTMatrix", torch.float32, batch=3)


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_is_one_launch_forward_and_two_backward(name: str) -> None:
    cores = layer(name, "triton", torch.float16).cores
    assert launches(cores.source({"b": 64})) == 1
    assert launches(cores.source({"b": 64}, part="backward")) == 2


def test_the_backward_pass_reads_what_went_in_and_nothing_saved() -> None:
    source = layer("TTMatrix", "triton", torch.float16).cores.source(part="backward")
    assert "def backward(x, G1, G2, G3, ct0):" in source


def test_an_activation_is_fused_into_the_chain() -> None:
    b, i, j, r, o = tnc.indices("b i j r o", i=6, j=5, r=4, o=7)
    x, bias = tnc.input("x", b, i, j), tnc.param("bias", o)
    y = tnc.contract(x, tnc.param("G1", i, r), tnc.param("G2", r, j, o), out=(b, o)) + bias
    f = tnc.compile(tnc.silu(y), backend="triton", seed=0)
    assert launches(f.source()) == 1
    given = torch.randn(9, 6, 5)
    held = dict(f.named_parameters())
    wanted = torch.einsum("bij,ir,rjo->bo", given, held["G1"], held["G2"]) + held["bias"]
    torch.testing.assert_close(f(given), torch.nn.functional.silu(wanted), rtol=1e-4, atol=1e-5)


def test_products_of_two_sums_wait_for_both_sums() -> None:
    """each program has a part of each sum, and parts must not be multiplied"""
    b, i, j = tnc.indices("b i j", i=12, j=10)
    x, y, A = tnc.input("x", b, i), tnc.input("y", b, j), tnc.param("A", i, j)
    one = tnc.contract(tnc.tanh(x), A, y, out=())
    other = tnc.contract(tnc.tanh(x), tnc.param("B", i, j), tnc.tanh(y), out=())
    f = tnc.compile(one * other, backend="triton", seed=0)
    exact = tnc.compile(one * other, backend="torch", seed=0)
    given = torch.randn(200, 12), torch.randn(200, 10)
    torch.testing.assert_close(f(*given), exact(*given), rtol=1e-4, atol=1e-3)


def test_golden_sources(golden: Golden) -> None:
    cores = layer("TTMatrix", "triton", torch.float16).cores
    golden("triton/tt_matrix.forward.py.txt", cores.source({"b": 64}))
    golden("triton/tt_matrix.backward.py.txt", cores.source({"b": 64}, part="backward"))
    golden("triton/pairwise.py.txt", pairwise_source())


def pairwise_source() -> str:
    """Two inputs of a free size, so that nothing is a chain."""
    b, c, i, j = tnc.indices("b c i j", i=6, j=20)
    y = tnc.contract(tnc.input("x", b, i, j), tnc.input("y", c, i, j), out=(c, b))
    return str(tnc.compile(tnc.relu(y), backend="triton").source())


# ---------------------------------------------------------------------------- pairwise kernels


def einsum_case(equation: str, sizes: dict[str, int], dtype: str = "float32") -> None:
    """A contraction of two arguments against torch.einsum in double precision."""
    inputs, out = equation.split("->")
    index = {k: tnc.Index(k, n) for k, n in sizes.items()}
    leaves = [tnc.input(f"x{k}", *(index[c] for c in w)) for k, w in enumerate(inputs.split(","))]
    wide = torch.complex128 if dtype.startswith("complex") else torch.float64
    arrays = [torch.randn([sizes[c] for c in w], dtype=wide) for w in inputs.split(",")]
    given = [a.to(getattr(torch, dtype)) for a in arrays]
    compiled = tnc.compile(
        tnc.contract(*leaves, out=[index[c] for c in out]), backend="triton", dtype=dtype
    )
    got = compiled(*given)
    wanted = torch.einsum(equation, *(g.to(wide) for g in given))
    scale = torch.einsum(equation, *(g.to(wide).abs() for g in given)).abs().max()
    eps = torch.finfo(getattr(torch, dtype)).eps
    assert ((got.to(wide) - wanted).abs().max() / scale).item() <= 32 * eps


SHAPES = {
    "grouped": ("abij,jikc->akbc", dict(a=3, b=5, i=7, j=4, k=6, c=9)),
    "batched": ("abij,ajkb->bkia", dict(a=3, b=2, i=20, j=18, k=17)),
    "long sum": ("ki,kj->ij", dict(k=9000, i=3, j=5)),
    "long product": ("ki,kj->ij", dict(k=5000, i=20, j=17)),
    "one long side": ("ij,j->i", dict(i=700, j=33)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64"])
@pytest.mark.parametrize("name", SHAPES)
def test_contractions(name: str, dtype: str) -> None:
    equation, sizes = SHAPES[name]
    einsum_case(equation, sizes, dtype)


def test_a_long_sum_is_split_into_parts_of_one_order() -> None:
    k, i, j = tnc.indices("k i j", k=2**20, i=32, j=32)
    y = tnc.contract(tnc.input("x", k, i), tnc.input("y", k, j), out=(i, j))
    source = tnc.compile(y, backend="triton").source()
    assert launches(source) == 2
    assert "SPLITS=" in source
    assert "atomic" not in source


@pytest.mark.parametrize("batch", [1, 300])
def test_a_sum_over_a_free_size_is_split_too(batch: int) -> None:
    """the gradient of a core: whatever the batch, many programs share the sum"""
    b, j, k, m, n = tnc.indices("b j k m n", j=16, k=16, m=8, n=8)
    y = tnc.contract(tnc.input("x", b, j, k, m), tnc.input("y", b, j, k, n), out=(m, n))
    f = tnc.compile(y, backend="triton")
    assert "SPLITS=512" in f.source()
    x, z = (
        torch.randn(batch, 16, 16, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1)
    )
    expected = torch.einsum("bjkm,bjkn->mn", x.double(), z.double())
    assert relative_error(f(x, z), expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_summed_indices_that_no_array_has_count_all_the_same(count: int) -> None:
    """the gradient of a scalar added to a tensor sums over axes that nothing is read along"""
    axes = tnc.indices("i j k l", i=3, j=4, k=5, l=2)[:count]
    y = (tnc.input("x", *axes) + tnc.param("s")).sum()
    f = tnc.compile(y, backend="triton", seed=0)
    sizes = [axis.size for axis in axes]
    f(torch.zeros(sizes)).backward()
    assert f.s.grad == math.prod(sizes)


def test_tensors_of_2_to_31_elements_take_64_bits_and_only_those() -> None:
    for size, wide in ((2**22, "True"), (2**10, "False")):
        i, j = tnc.indices("i j", i=size, j=1024)
        y = tnc.relu(tnc.input("x", i, j))
        assert f"WIDE={wide}" in tnc.compile(y, backend="triton").source()
    b, j = tnc.indices("b j", j=1024)
    free = tnc.compile(tnc.relu(tnc.input("x", b, j)), backend="triton").source()
    assert "WIDE=is_wide(x, " in free
    assert runtime.is_wide(torch.empty(2**31, device="meta"))
    assert not runtime.is_wide(torch.empty(2**31 - 1, device="meta"))


def test_wide_offsets_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "is_wide", lambda *tensors: True)
    check_layer("TTMatrix", torch.float32, batch=5)


def test_a_mask_is_written_only_where_a_size_does_not_divide() -> None:
    i, j = tnc.indices("i j", i=64, j=128)
    exact = tnc.compile(tnc.relu(tnc.input("x", i, j)), backend="triton").source()
    i, j = tnc.indices("i j", i=65, j=127)
    cut = tnc.compile(tnc.relu(tnc.input("x", i, j)), backend="triton").source()
    assert "mask=" not in exact
    assert "mask=" in cut


def test_maxima_and_softmax() -> None:
    b, i = tnc.indices("b i", i=37)
    x = tnc.input("x", b, i)
    f = tnc.compile((tnc.softmax(x, over=i), x.max(i)), backend="triton")
    given = torch.randn(5, 37)
    given[2, 3] = float("nan")
    soft, most = f(given)
    torch.testing.assert_close(soft, given.softmax(1), equal_nan=True)
    torch.testing.assert_close(most, given.amax(1), equal_nan=True)


# ---------------------------------------------------------------------------- precision


def test_tf32_only_when_it_is_asked_for() -> None:
    b, i, o = tnc.indices("b i o", i=64, o=64)
    y = tnc.contract(tnc.input("x", b, i), tnc.param("W", i, o), out=(b, o))
    plain = tnc.compile(y, backend="triton").source()
    fast = tnc.compile(y, backend="triton", plan=tnc.PlanOptions(precision="tf32")).source()
    assert "tf32" not in plain
    assert '"tf32")' in fast


def test_six_products_of_bfloat16_parts_keep_float32() -> None:
    """what tl.dot does in "bf16x6": three parts hold 24 bits, the products of least weight go"""
    x, y = (torch.randn(64, 64, dtype=torch.float64).float() for _ in range(2))
    parts = [[], []]
    for own, number in zip(parts, (x, y), strict=True):
        for _ in range(3):
            own.append(number.bfloat16().double())
            number = number - own[-1].float()
    pairs = [(i, j) for i, j in itertools.product(range(3), repeat=2) if i + j < 3]
    found = sum(parts[0][i] @ parts[1][j] for i, j in pairs)
    wanted, scale = x.double() @ y.double(), x.double().abs() @ y.double().abs()
    assert ((found - wanted).abs() / scale).max() < torch.finfo(torch.float32).eps


# ---------------------------------------------------------------------------- where it runs


def test_with_neither_gpu_nor_interpreter_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    b, i = tnc.indices("b i", i=4)
    f = tnc.compile(tnc.relu(tnc.input("x", b, i)), backend="triton")
    monkeypatch.setattr(runtime, "INTERPRETED", type("Off", (), {"value": False}))
    with pytest.raises(BackendError, match="needs CUDA or ROCm tensors, and these are on cpu"):
        f(torch.ones(2, 4))


def run_alone(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_loads_neither_torch_nor_triton() -> None:
    code = "import sys, tncompiler; print(sorted({'torch', 'triton'} & sys.modules.keys()))"
    assert run_alone(code) == "[]"


def test_source_needs_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import tncompiler as tnc\n"
        "b, i = tnc.indices('b i', i=4)\n"
        "f = tnc.compile(tnc.relu(tnc.input('x', b, i)), framework='numpy')\n"
        "from tncompiler.backends.triton.emit import emit\n"
        "print('triton.jit' in emit(f.program(), 'forward').text)"
    )
    assert run_alone(code) == "True"


def test_a_training_step_is_bitwise_repeatable() -> None:
    results = []
    for _ in range(2):
        made = layer("Tucker", "triton", torch.float16)
        x = torch.randn(9, made.in_features, generator=torch.Generator().manual_seed(2)).half()
        made(x).float().square().sum().backward()
        results.append([p.grad for p in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def shapes_of(tensors: Sequence[torch.Tensor]) -> list[torch.Size]:
    return [t.shape for t in tensors]


@pytest.mark.parametrize("batch", [0, 1])
def test_empty_and_single_batches(batch: int) -> None:
    made = layer("TTMatrix", "triton", torch.float32)
    x = torch.randn(batch, made.in_features, requires_grad=True)
    y = made(x)
    y.sum().backward()
    wanted = torch.zeros(batch, 240)
    assert shapes_of([y, x.grad]) == shapes_of([wanted, x])
    if not batch:
        assert all(not p.grad.any() for p in made.parameters())


@pytest.mark.parametrize("name", ["softplus", "tanh", "sigmoid", "gelu", "silu", "erf"])
def test_functions_are_right_to_a_few_roundings_everywhere(name: str) -> None:
    (i,) = tnc.indices("i", i=4001)
    x = torch.cat([torch.linspace(-20, 20, 2001), torch.linspace(-0.5, 0.5, 2000)])
    got = tnc.compile(getattr(tnc, name)(tnc.input("x", i)), backend="triton")(x).double()
    functions = {"softplus": torch.nn.functional.softplus, "gelu": exact_gelu}
    made = functions.get(name) or getattr(torch, name, None) or getattr(torch.nn.functional, name)
    wanted = made(x.double())
    slack = 4 * torch.finfo(torch.float32).eps * wanted.abs()
    rounded = 2e-7 * x.double().abs() if name in ("gelu", "silu") else 0.0  # x times a small number
    assert ((got - wanted).abs() <= slack + rounded + 1e-30).all()


def exact_gelu(x: torch.Tensor) -> torch.Tensor:
    """In double precision, and without the cancellation of 1 + erf."""
    return 0.5 * x * torch.special.erfc(-x / 2**0.5)


def test_cotangents_in_bfloat16_add_up() -> None:
    """one parameter, two outputs: the interpreter would add bit patterns"""
    A = tnc.param("A", tnc.Index("i", 3))
    module = tnc.compile((A, A), backend="triton", dtype="bfloat16", seed=0)
    given = [torch.tensor([-0.6, 1.5, 2.0]), torch.tensor([-1.5, 0.25, 3.0])]
    given = [tensor.to(torch.bfloat16) for tensor in given]
    (found,) = torch.autograd.grad(module(), [module.A], given)
    torch.testing.assert_close(found, given[0] + given[1])
