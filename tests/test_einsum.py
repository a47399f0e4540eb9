"""`tnc.einsum`, `einsum_expression` and `contract_path` against NumPy, torch and opt_einsum.

Values are compared with numpy.einsum in one loop of extended precision, integers exactly, gradients
with torch.einsum in double precision.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import cotengra as ctg
import numpy as np
import opt_einsum as oe
import pytest
import torch
from torch import Tensor

import tncompiler as tnc
from tests.test_einsum_corpus import EQUATIONS, assert_agrees, drawn, shapes_of
from tncompiler.drop_in import einsum as numpy_side
from tncompiler.drop_in import torch_tensors as torch_side
from tncompiler.ir import errors as er
from tncompiler.ir.errors import TncError

rng = np.random.default_rng


# ---------------------------------------------------------------------------- calls drawn at random

NUMPY_DTYPES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)


class Draw:
    """A random einsum call: sizes 0 to 3, broadcasts, repeats, ellipses, odd strides."""

    def __init__(self, seed: int) -> None:
        self.rng = rng(seed)
        pool = list(self.rng.choice([*"abcBZ"], 4, replace=False))
        self.sizes = {
            k: int(self.rng.choice([0, 1, 2, 3, 3, 2], p=[0.04, *[0.192] * 5])) for k in pool
        }
        dots = tuple(int(n) for n in self.rng.integers(1, 4, self.rng.integers(0, 3)))
        terms, self.shapes = [], []
        for _ in range(self.rng.integers(1, 5)):
            labels = list(self.rng.choice(pool, self.rng.integers(0, 4)))
            shape = [self._size(k, labels) for k in labels]
            at = int(self.rng.integers(0, len(labels) + 1)) if self.rng.random() < 0.4 else None
            if at is not None:
                own = dots[int(self.rng.integers(0, len(dots) + 1)) :]
                shape[at:at] = [n if self.rng.random() < 0.8 else 1 for n in own]
                labels.insert(at, "...")
            terms.append("".join(labels))
            self.shapes.append(tuple(shape))
        self.equation = ",".join(terms)
        if self.rng.random() < 0.6:
            self.equation += "->" + self._output(terms)

    def _size(self, label: str, labels: list[str]) -> int:
        once = labels.count(label) == 1
        if self.rng.random() < 0.02:
            return self.sizes[label] + 1  # a clash
        return 1 if once and self.rng.random() < 0.15 else self.sizes[label]

    def _output(self, terms: list[str]) -> str:
        """Some of the labels, with the ellipsis that NumPy insists on."""
        named = sorted(set("".join(terms)) - {"."})
        kept = [k for k in self.rng.permutation(named) if self.rng.random() < 0.5]
        if any("..." in term for term in terms):
            kept.insert(int(self.rng.integers(0, len(kept) + 1)), "...")
        return "".join(kept)

    def array(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        kind = np.dtype(dtype).kind
        wide = tuple(2 * n for n in shape)
        values = self.rng.integers(-9 if kind in "ifc" else 0, 99, wide)
        if kind == "f":
            values = self.rng.standard_normal(wide)
        if kind == "c":
            values = values + 1j * self.rng.standard_normal(wide)
        array = np.asarray(values).astype(dtype)
        array = array[tuple(slice(None, None, int(self.rng.choice([2, -2]))) for _ in shape)]
        axes = self.rng.permutation(len(shape))
        order = np.array(array.transpose(axes), order="C").transpose(np.argsort(axes))
        return order if self.rng.random() < 0.5 else array


def expected(equation: str, arrays: Sequence[np.ndarray], **options: Any) -> Any:
    return np.einsum(equation, *arrays, optimize=False, **options)


@pytest.mark.parametrize("block", range(10))
def test_drawn_calls_in_numpy(block: int) -> None:
    """One dtype or several, against numpy.einsum; integers and dtypes exactly."""
    for seed in range(40 * block, 40 * block + 40):
        draw = Draw(seed)
        count = len(draw.shapes)
        dtypes = draw.rng.choice(NUMPY_DTYPES, count if seed % 2 else 1)
        arrays = [draw.array(s, str(dtypes[k % len(dtypes)])) for k, s in enumerate(draw.shapes)]
        what = (seed, draw.equation, [a.dtype.name for a in arrays], draw.shapes)
        try:
            right = expected(draw.equation, arrays)
        except ValueError:
            with pytest.raises(TncError):
                tnc.einsum(draw.equation, *arrays)
            continue
        got = tnc.einsum(draw.equation, *arrays)
        assert type(got) is type(right) and got.dtype == right.dtype, what
        assert got.shape == right.shape, what
        if right.dtype.kind in "biu":
            assert np.array_equal(got, right), what
        else:
            assert_agrees(got, draw.equation, arrays, what)


def test_traces_of_booleans() -> None:
    for equation in ("ii", "ii->i", "iij->j"):
        array = np.ones((2, 2, 3)[: 3 if "j" in equation else 2], bool)
        assert tnc.einsum(equation, array).dtype == bool


def test_most_drawn_calls_are_right() -> None:
    """The fuzzer has something to compare: NumPy takes most calls, and refuses some."""
    refused = 0
    for seed in range(200):
        draw = Draw(seed)
        try:
            expected(draw.equation, [draw.array(s, "int32") for s in draw.shapes])
        except ValueError:
            refused += 1
    assert 0 < refused < 60


TORCH_DTYPES = ("int64", "float16", "bfloat16", "float32", "float64", "complex64")


@pytest.mark.parametrize("block", range(5))
def test_drawn_calls_in_torch(block: int) -> None:
    """Values and every gradient against torch.einsum in double precision."""
    for seed in range(1000 + 30 * block, 1030 + 30 * block):
        draw = Draw(seed)
        complexes = seed % 3 == 0
        arrays = [draw.array(s, "complex128" if complexes else "float64") for s in draw.shapes]
        for wanted in draw.rng.random((2, len(arrays))) < 0.6:
            check_gradients(draw.equation, arrays, wanted, what=(seed, draw.equation, draw.shapes))


def check_gradients(
    equation: str, arrays: Sequence[np.ndarray], wanted: Sequence[bool], what: object
) -> None:
    found: list[Any] = []
    for function in (torch.einsum, tnc.einsum):
        tensors = [torch.tensor(a.copy()) for a in arrays]
        for tensor, needs in zip(tensors, wanted, strict=True):
            tensor.requires_grad_(bool(needs))
        try:
            value = function(equation, *tensors)
        except (RuntimeError, ValueError):
            found.append(None)
            continue
        assert value.requires_grad == any(wanted), what
        if any(wanted):
            weight = torch.linspace(-1, 2, max(value.numel(), 1), dtype=torch.float64)
            weight = weight[: value.numel()].reshape(value.shape).to(value.dtype)
            (value * (weight * (1 - 2j) if value.is_complex() else weight)).sum().abs().backward()
        found.append([value.detach(), *(t.grad for t in tensors)])
    right, got = found
    if right is None or got is None:
        assert right is got, what
        return
    for a, b in zip(right, got, strict=True):
        if a is None or b is None:
            zero = a if b is None else b
            assert zero is None or not zero.any(), what
        else:
            assert a.shape == b.shape, what
            torch.testing.assert_close(
                b.resolve_conj(), a.resolve_conj(), msg=lambda m: f"{what} {m}"
            )


# ---------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("first", NUMPY_DTYPES)
def test_pairs_of_dtypes_as_numpy(first: str) -> None:
    for second in NUMPY_DTYPES:
        a, b = np.ones((2, 3), first), np.full((3, 4), 2, second)
        for equation, arrays in (("ij,jk->ik", (a, b)), (",jk->", (a[0, 0], b))):
            right, got = expected(equation, arrays), tnc.einsum(equation, *arrays)
            assert got.dtype == right.dtype and np.array_equal(got, right), (first, second)


TORCH_PAIRS = ("bool", "uint8", "int32", "int64", *TORCH_DTYPES[1:], "complex128")


@pytest.mark.parametrize("first", TORCH_PAIRS)
def test_pairs_of_dtypes_as_torch(first: str) -> None:
    for second, shape in itertools.product(TORCH_PAIRS, [(2, 3), ()]):
        a = torch.ones(shape, dtype=getattr(torch, first))
        b = torch.full((3, 4), 2).to(getattr(torch, second))
        equation = "ij,jk->ik" if shape else ",jk->jk"
        got = tnc.einsum(equation, a, b)
        wanted = torch.result_type(a, b)
        wanted = torch.complex64 if wanted is torch.complex32 else wanted  # which we do not have
        assert got.dtype == wanted, (first, second, shape)
        factor = 1 if second == "bool" else 2
        right = bool(factor) if got.dtype is torch.bool else factor * (3 if shape else 1)
        assert (got == right).all(), (first, second, shape)


INTEGERS = [d for d in NUMPY_DTYPES if np.dtype(d).kind in "biu"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_as_numpy(dtype: str) -> None:
    info = np.iinfo(dtype) if dtype != "bool" else None
    low, high = (0, 2) if info is None else (info.min // 2, info.max)
    arrays = [
        rng(k).integers(low, high, s, "int64" if info is None else dtype).astype(dtype)
        for k, s in enumerate([(5, 40), (40, 6), (6, 5)])
    ]
    for equation in ("ij,jk,kl->il", "ij,jk,ki->", "ij,jk,kl->", "ij,jk,ki->j", "ij,jk,kl->ijl"):
        right = expected(equation, arrays)
        got = tnc.einsum(equation, *arrays)
        assert got.dtype == right.dtype and np.array_equal(got, right), equation
        tensors = [torch.from_numpy(a) for a in arrays]
        for backend in ("auto", "numpy"):
            result = tnc.einsum(equation, *tensors, backend=backend)
            assert np.array_equal(result.numpy(), right) and result.numpy().dtype == right.dtype


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_low_precision_is_summed_in_float32(kind: str) -> None:
    """Ones and small numbers that sums in the type itself would lose."""
    a, b = torch.full((2, 4096), 1.0), torch.full((4096, 3), 1 / 64)
    got = tnc.einsum(
        "ij,jk,k->i",
        a.to(getattr(torch, kind)),
        b.to(getattr(torch, kind)),
        torch.ones(3, dtype=getattr(torch, kind)),
    )
    assert got.dtype is getattr(torch, kind) and (got == 192).all()
    if kind == "float16":
        assert (tnc.einsum("ij,jk->ik", a.half().numpy(), b.half().numpy()) == 64).all()
        big = np.full(4, 300, "float16")  # 90000 overflows float16, the end result does not
        assert tnc.einsum("i,i,->", big, big, np.float16(1 / 1024)) == np.float16(351.5)


def test_what_only_numpy_computes_with() -> None:
    """Object and extended precision; dtype= may ask for them."""
    big = np.array([[2**70, 3], [1, 2]], object)
    assert tnc.einsum("ij,jk->", big, big) == expected("ij,jk->", [big, big])
    assert isinstance(tnc.einsum("ii", big), int)
    chain = tnc.einsum("ij,jk,kl", big, big, big)
    assert chain.dtype == object and chain[0, 0] == (big.dot(big).dot(big))[0, 0]
    from fractions import Fraction

    assert tnc.einsum("i,i", np.array([Fraction(1, 3)] * 3), [1, 1, 1]) == 1
    third = np.full(3, np.longdouble(1) / 3)
    assert tnc.einsum("i->", third).dtype == np.longdouble
    assert tnc.einsum("i,i->i", third, np.ones(3, "c8")).dtype == np.clongdouble
    assert tnc.einsum("i,i", np.ones(3, "f4"), np.ones(3, "f4"), dtype=np.longdouble).dtype == "g"
    assert tnc.einsum("ij,j", np.ones((2, 3)), np.ones(3), dtype=object).dtype == object
    assert np.array_equal(
        tnc.einsum("...i,ij", np.ones((1, 2), "g"), np.ones((1, 2), "g")),
        expected("...i,ij", [np.ones((1, 2), "g"), np.ones((1, 2), "g")]),
    )


def test_array_likes() -> None:
    matrix, masked = np.matrix([[1, 2], [3, 4]]), np.ma.array([1.0, 2, 3], mask=[0, 1, 0])
    for got, right in (
        (tnc.einsum("ij,jk", [[1, 2], [3, 4]], ((1, 2), (3, 4))), np.array([[7, 10], [15, 22]])),
        (tnc.einsum(",,", 2, 3.5, True), np.float64(7)),
        (tnc.einsum("ij->i", matrix), expected("ij->i", [matrix])),
        (tnc.einsum("ij,jk", matrix, matrix), expected("ij,jk", [matrix, matrix])),
        (tnc.einsum("i->", masked), expected("i->", [masked])),  # as NumPy, masks are not heeded
        (tnc.einsum("i,i", np.arange(3, dtype=">f4"), np.arange(3, dtype=">i2")), np.float32(5)),
        (tnc.einsum("", 5), np.int64(5)),
        (tnc.einsum("->", 5), np.int64(5)),
    ):
        assert type(got) is type(right) and got.dtype == right.dtype and np.array_equal(got, right)


# ---------------------------------------------------------------------------- layouts

A = np.arange(24.0).reshape(4, 6) + 1
LAYOUTS: dict[str, Callable[[], np.ndarray]] = {
    "transposed": lambda: A.T.copy().T,
    "negative": lambda: A[::-1, ::-1],
    "strided": lambda: np.repeat(A, 2, 1)[:, ::2],
    "broadcast": lambda: np.broadcast_to(A[:, :1], (4, 6)),
    "one element": lambda: np.broadcast_to(np.float64(3), (4, 6)),
    "read-only": lambda: np.lib.stride_tricks.as_strided(A, writeable=False),
    "overlapping": lambda: np.lib.stride_tricks.sliding_window_view(np.arange(9.0), 6),
    "unaligned": lambda: np.frombuffer(b"x" + A.tobytes(), offset=1).reshape(4, 6),
    "no rows": lambda: np.ones((0, 6)),
    "no columns": lambda: np.ones((4, 0)),
}
USES = ("ij->ij", "ij->ji", "ij->", "ij->j", "ij,ij->", "ij,kj->ik", "ij,ij->ij", "ij,il,ij->jl")


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor of the same strides, where torch has them."""
    is_torchs = min(array.strides) >= 0 and array.flags.aligned
    return torch.from_numpy(array if is_torchs else array.copy())


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    array = LAYOUTS[layout]()
    before = array.copy()
    for equation in USES:
        arrays = [array] * (equation.count(",") + 1)  # one array under several terms
        got = tnc.einsum(equation, *arrays)
        right = expected(equation, arrays)
        assert np.allclose(got, right) and got.shape == right.shape, equation
        tensors = [as_tensor(array)] * len(arrays)
        assert np.allclose(tnc.einsum(equation, *tensors).numpy(), right), equation
    assert np.array_equal(array, before)


def test_views_and_new_arrays_as_numpy() -> None:
    fixed = A.copy()
    fixed.flags.writeable = False
    for array in (A, fixed):
        for equation in ("ij->ji", "ij", "ij->ij", "ij->j", "ij,ij->ij"):
            arrays = [array] * (equation.count(",") + 1)
            got, right = tnc.einsum(equation, *arrays), expected(equation, arrays)
            assert np.shares_memory(got, array) == np.shares_memory(right, array), equation
            assert got.flags.writeable == right.flags.writeable and got is not array
    square = np.zeros((3, 3))
    tnc.einsum("ii->i", square)[:] = 1  # a diagonal that can be written
    assert square.trace() == 3
    tensor = torch.zeros(3, 3)
    tnc.einsum("ii->i", tensor).fill_(1)
    assert tensor.trace() == 3


# ---------------------------------------------------------------------------- symbols and indices


def test_any_symbols() -> None:
    arrays = [rng(k).random(s) for k, s in enumerate([(2, 3), (3, 4), (4, 2)])]
    right = np.einsum("ij,jk,kl->il", *arrays)
    for labels in (
        "αβγδ",
        "漢字仮名",
        "😀😁😂😃",
        "a\u0301\u0302b",
        "1234",
        "&%$#",
        "\u200b\u200c\u200d|",
    ):
        a, b, c, d = labels
        assert np.allclose(tnc.einsum(f"{a}{b},{b}{c},{c}{d}->{a}{d}", *arrays), right), labels
    for own in ([0, 1, 2, 3], [1000, -1, 7, 2**40], ["i", "jj", (), 4.5], [None, True, b"k", "l"]):
        i, j, k, l = own
        x, y, z = arrays
        assert np.allclose(tnc.einsum(x, (i, j), y, (j, k), z, (k, l), (i, l)), right), own
    assert np.allclose(tnc.einsum(arrays[0], "ij", arrays[1], "jk", arrays[2], "kl", "il"), right)
    assert np.allclose(tnc.einsum(" ij ,j k,kl\n-> i l", *arrays), right)


@pytest.mark.parametrize("count", [60, 400, 3000])
def test_many_indices(count: int) -> None:
    """A chain with a hyperedge on every tensor."""
    arrays = [rng(k).random((2, 2, 2)) / 2 for k in range(count)]
    labels = list(range(count + 1))
    arguments = [part for k, a in enumerate(arrays) for part in (a, (labels[k], labels[k + 1], -1))]
    step = np.eye(2)[:, :, None].repeat(2, 2)
    for array in arrays:
        step = np.einsum("ijz,jkz->ikz", step, array)
    out = (labels[0], labels[-1], -1)
    got = tnc.einsum(*arguments, out)
    assert np.allclose(got, step, rtol=1e-10 * count)
    if count < 3000:
        tensors = [torch.from_numpy(p) if k % 2 == 0 else p for k, p in enumerate(arguments)]
        assert np.allclose(tnc.einsum(*tensors, out).numpy(), step, rtol=1e-10 * count)
        letters = [oe.get_symbol(k) for k in range(count + 2)]
        equation = ",".join(letters[k] + letters[k + 1] + letters[-1] for k in range(count))
        equation += f"->{letters[0]}{letters[count]}{letters[-1]}"
        assert np.array_equal(tnc.einsum(equation, *arrays), got)


def test_one_tensor_with_many_axes() -> None:
    """As many axes as NumPy has, 64, and outputs that permute them."""
    array = rng(0).random((2, 1) * 10 + (1,) * 44)
    labels = [oe.get_symbol(k) for k in range(64)]
    got = tnc.einsum(f"{''.join(labels)}->{''.join(reversed(labels))}", array)
    assert np.array_equal(got, array.T)
    few, shorter = "".join(labels[:63]), array[..., 0]
    assert np.isclose(tnc.einsum(f"{few}->", shorter), shorter.sum())


# ---------------------------------------------------------------------------- optimize=

CHAIN = "ij,jk,kl->il"
CHAINED = [rng(k).random(s) for k, s in enumerate([(3, 4), (4, 5), (5, 6)])]
FORMS: dict[str, Any] = {
    **{str(name): name for name in (True, False, None, "auto", "auto-hq", "optimal", "dp")},
    **{name: name for name in ("greedy", "eager", "opportunistic", "dynamic-programming")},
    **{name: name for name in ("branch-1", "branch-2", "branch-all", "random-greedy", "hyper")},
    "random-greedy-128": "random-greedy-128",
    "NumPy's name and no limit": ("greedy", -1),
    "NumPy's pair": ["optimal", None],
    "NumPy's path": ["einsum_path", (0, 2), (0, 1)],
    "NumPy's einsum_path": np.einsum_path(CHAIN, *CHAINED, optimize="greedy")[0],
    "opt_einsum's contract_path": oe.contract_path(CHAIN, *CHAINED)[0],
    "path": [(1, 2), (0, 1)],
    "path of tuples": ((0, 1), (0, 1)),
    "path of arrays": np.array([[0, 1], [0, 1]]),
    "one step": [(0, 1, 2)],
    "single steps": [(0,), (0, 1), (1, 0)],
    "negative positions are none": [(1, 0), (1, 0)],
    "cut short": [(0, 1)],
    "empty": [],
    "opt_einsum function": oe.paths.optimal,
    "opt_einsum branch": oe.BranchBound(nbranch=2),
    "opt_einsum random": oe.RandomGreedy(max_repeats=4),
    "opt_einsum dp": oe.DynamicProgramming(minimize="size"),
    "cotengra greedy": ctg.GreedyOptimizer(),
    "cotengra optimal": ctg.OptimalOptimizer(),
    "cotengra auto": ctg.auto_optimize,
    "cotengra hyper": ctg.HyperOptimizer(max_repeats=2, parallel=False, progbar=False),
    "cotengra reusable": ctg.ReusableHyperOptimizer(max_repeats=2, parallel=False, progbar=False),
    "options": tnc.PlanOptions(search="optimal", minimize="flops"),
    "options with a path": tnc.PlanOptions(path=((0, 2), (0, 1))),
    "plan": tnc.plan(tnc.from_einsum(CHAIN, *CHAINED)),
    "plan of other sizes": tnc.plan(tnc.from_einsum(CHAIN, (9, 9), (9, 9), (9, 9))),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_optimize(form: str) -> None:
    for arrays in (CHAINED, [torch.from_numpy(a) for a in CHAINED]):
        got = tnc.einsum(CHAIN, *arrays, optimize=FORMS[form])
        assert_agrees(got, CHAIN, CHAINED, form)
    path, _ = tnc.contract_path(CHAIN, *CHAINED, optimize=FORMS[form])
    assert np.allclose(oe.contract(CHAIN, *CHAINED, optimize=path), got)
    assert tnc.einsum_expression(CHAIN, (3, 4), (4, 5), (5, 6), optimize=FORMS[form])(
        *CHAINED
    ).shape == (3, 6)


def test_optimize_with_scalars_and_one_operand() -> None:
    arrays = [np.float64(2), np.ones((2, 3)), np.float64(5), np.ones((3, 4)), np.ones(4)]
    equation = ",ij,,jk,k->i"
    plan = tnc.plan(tnc.from_einsum(equation, *arrays))
    for optimize in (plan, "optimal", [(0, 2), (0, 1), (0, 1), (0, 1)], oe.paths.greedy, False):
        assert (tnc.einsum(equation, *arrays, optimize=optimize) == 120).all()
        path, _ = tnc.contract_path(equation, *arrays, optimize=optimize)
        assert np.allclose(oe.contract(equation, *arrays, optimize=path), 120)
    for optimize in (tnc.plan(tnc.from_einsum("ij->j", (2, 3))), "dp", [(0,)], [], True):
        assert (tnc.einsum("ij->j", np.ones((2, 3)), optimize=optimize) == 2).all()


def test_path_functions_are_asked_once_and_told_apart() -> None:
    asked: list[Any] = []

    class Own:
        """Equal to all others, and not hashable."""

        def __init__(self, path: Any) -> None:
            self.path = path

        def __eq__(self, other: object) -> bool:
            return True

        def __call__(self, inputs: Any, output: Any, sizes: Any, memory_limit: Any) -> Any:
            asked.append((self, inputs, output, sizes))
            return self.path

    arrays = [a[:2] for a in CHAINED[:1]] + CHAINED[1:]
    first, second = Own([(0, 1), (0, 1)]), Own([(1, 2), (0, 1)])
    for _ in range(3):
        for own in (first, second):
            tnc.einsum(CHAIN, *arrays, optimize=own)
    assert [a[0] is b for a, b in zip(asked, (first, second), strict=True)] == [True, True]
    _, inputs, output, sizes = asked[0]
    assert [len(term) for term in inputs] == [2, 2, 2] and len(output) == 2
    assert sorted(sizes.values()) == [2, 4, 5, 6]


# ---------------------------------------------------------------------------- out, dtype and layout

OUTS: list[tuple[str, dict[str, Any]]] = [
    ("float32", {}),
    ("float64", {}),
    ("float16", {}),
    ("float16", {"casting": "same_kind"}),
    ("int64", {}),
    ("int64", {"casting": "same_kind"}),
    ("int64", {"casting": "unsafe"}),
    ("complex128", {}),
    ("complex64", {"dtype": "complex64"}),
    ("float64", {"dtype": "float64"}),
    ("float16", {"dtype": "float16", "casting": "unsafe"}),
    ("float16", {"dtype": "float16"}),
    ("int32", {"dtype": "int32", "casting": "unsafe"}),
    ("float64", {"casting": "no"}),
    ("float32", {"casting": "equiv"}),
    ("float64", {"order": "F"}),
    ("object", {"dtype": object}),
    ("float128", {"dtype": np.longdouble}),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("number", range(len(OUTS)))
def test_out_dtype_and_casting_as_numpy(number: int) -> None:
    target, options = OUTS[number]
    arrays = [(10 * a).astype("float32") for a in CHAINED[:2]]
    for equation, given in (("ij,jk->ik", arrays), ("ij->ji", arrays[:1]), ("ij->", arrays[:1])):
        results: list[Any] = []
        shape = expected(equation, given).shape
        for function in (np.einsum, tnc.einsum):
            out = np.full(shape, 7).astype(target)
            try:
                result = function(equation, *given, out=out, **options)
                assert result is out
            except TypeError as error:
                result = None
                assert function is np.einsum or isinstance(error, er.DTypeError)
            results.append(result)
        right, got = results
        assert (right is None) == (got is None), (equation, target, options)
        if right is not None:
            tolerance = 2e-2 if "16" in str((target, options)) else 1e-5
            assert np.allclose(got.astype("c16"), right.astype("c16"), tolerance)


def test_out_may_be_strided_and_overlap() -> None:
    for function in (np.einsum, tnc.einsum):
        big = np.zeros((6, 12))
        function("ij->ij", A, out=big[1:5, ::2])
        assert np.array_equal(big[1:5, ::2], A) and not big[:, 1::2].any()
        square = np.arange(9.0).reshape(3, 3)
        assert np.array_equal(
            function("ij->ji", square, out=square), np.arange(9.0).reshape(3, 3).T
        )
    square = np.arange(9.0).reshape(3, 3)
    assert np.array_equal(tnc.einsum("ij,jk", square, square, out=square)[0], [15, 18, 21])


def test_order_as_numpy() -> None:
    b = np.asfortranarray(A)
    for order, array in itertools.product("CFAcfa", (A, b, A[::2])):
        for equation in ("ij->ij", "ij->ji", "ij,ij->ij", "ij,kj->ik"):
            arrays = [array] * (equation.count(",") + 1)
            got = tnc.einsum(equation, *arrays, order=order)
            right = expected(equation, arrays, order=order)
            assert np.allclose(got, right)
            flags = (order, equation, got.flags, right.flags)
            if equation.count(","):  # NumPy leaves views as they are
                assert got.flags.c_contiguous == right.flags.c_contiguous, flags
                assert got.flags.f_contiguous == right.flags.f_contiguous, flags
    assert np.allclose(tnc.einsum("ij->ji", A, order="K"), A.T)


# ---------------------------------------------------------------------------- torch

T, U = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4), torch.eye(4, 5).double() + 0.5


def contracted(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: f("ij,jk,lk->il", x, U, torch.sin(x) @ U)


@pytest.mark.parametrize("complexes", [False, True])
def test_torch_transforms(complexes: bool) -> None:
    from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

    x = T * (1 + 0.5j) if complexes else T
    u = U * (1 - 1j) if complexes else U
    batch = torch.stack([x, 2 * x])
    for f in (lambda e, x: e("ij,jk->ik", x, u), lambda e, x: e("ij,kj,il->kl", x, x.conj(), x)):

        def run(transform: Callable[..., Any], f: Any = f) -> tuple[Any, Any]:
            return tuple(  # type: ignore[return-value]
                transform(lambda x, e=e: f(e, x)) for e in (torch.einsum, tnc.einsum)
            )

        for right, got in (
            run(lambda h: vmap(h)(batch)),
            run(lambda h: vmap(h, in_dims=2)(batch.movedim(0, 2))),
            run(lambda h: jvp(h, (x,), (x + 1,))),
            run(lambda h: vjp(h, x)[1](h(x))[0]),
            run(lambda h: grad(lambda y: h(y).abs().square().sum())(x)),
            run(lambda h: vmap(grad(lambda y: h(y).abs().square().sum()))(batch)),
            *([] if complexes else [run(lambda h: jacrev(h)(x)), run(lambda h: jacfwd(h)(x))]),
            *([] if complexes else [run(lambda h: hessian(lambda y: h(y).square().sum())(x))]),
        ):
            torch.testing.assert_close(got, right)


def test_torch_modes() -> None:
    leaf = T.clone().requires_grad_()
    with torch.no_grad():
        assert not tnc.einsum("ij,jk", leaf, U).requires_grad
    with torch.inference_mode():
        assert tnc.einsum("ij,jk", leaf, U).is_inference()
    assert tnc.einsum("ij,jk", leaf, U).requires_grad
    assert not tnc.einsum("ij,jk", T, U).requires_grad
    twice = torch.autograd.gradgradcheck(
        lambda a, b: tnc.einsum("ij,jk,ik->i", a, b, a @ b), (leaf, U.clone().requires_grad_())
    )
    assert twice
    for form in (
        (T, [0, 1], U, [1, 2], [0, 2]),
        ("ij,jk->ik", torch.nn.Parameter(T), U.to_sparse().to_dense()),
        ("ij,jk->ik", T.to("meta"), U.to("meta")),
    ):
        assert tnc.einsum(*form).shape == (3, 5)
    assert tnc.einsum("ij,jk->ik", T.to("meta"), U.to("meta")).device.type == "meta"
    conjugated = (T * 1j).conj()
    for equation, *tensors in (
        ("ij,kj", conjugated, conjugated),
        ("ij->i", conjugated.imag),  # a lazily negated view
        ("ij,ij->j", conjugated.imag, T),
    ):
        torch.testing.assert_close(tnc.einsum(equation, *tensors), torch.einsum(equation, *tensors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_as_torch(dtype: torch.dtype) -> None:
    a, b = T.float(), U.float()
    calls = [
        ("ij,jk->ik", a, b), ("ij,jk", a.double(), b.double()), ("ij->ji", a), ("ij->", a),
        ("ij,ij->ij", a, a), ("ij,ij->", a.int(), a.int()), ("ij,jk->", a, b.to(dtype)),
        ("ij,kj->ik", a + 0j, a + 0j),
    ]  # fmt: skip
    for equation, *tensors in calls:
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in tensors]
        with torch.autocast("cpu", dtype):
            right, got = torch.einsum(equation, *tensors), tnc.einsum(equation, *leaves)
        assert got.dtype == right.dtype, equation
        torch.testing.assert_close(got, right, rtol=2e-2, atol=2e-2)
        if got.requires_grad:
            got.sum().backward()
            assert all(t.grad.dtype == t.dtype for t in leaves)


def test_out_in_torch() -> None:
    for out in (
        torch.empty(3, 5),
        torch.empty(5, 3).double().T,
        torch.empty(3, 5, dtype=torch.cfloat),
    ):
        assert tnc.einsum("ij,jk", T, U, out=out) is out
        torch.testing.assert_close(out.to(torch.complex128), (T @ U) + 0j)
    leaf = T.clone().requires_grad_()
    out = torch.empty(3, 5).double()
    tnc.einsum("ij,jk", leaf, U, out=out).sum().backward()
    torch.testing.assert_close(leaf.grad, U.sum(1).expand(3, 4))


@pytest.mark.parametrize("backend", ["auto", "numpy", "torch"])
def test_backends_on_torch_tensors(backend: str) -> None:
    a, b = T.clone().requires_grad_(), U.clone().requires_grad_()
    got = tnc.einsum("ij,jk,lk->il", a, b, b.sum(0, keepdim=True), backend=backend)
    torch.testing.assert_close(got, a @ b @ b.sum(0, keepdim=True).T)
    got.sum().backward()
    assert a.grad is not None and b.grad is not None


# ---------------------------------------------------------------------------- expressions

CONSTANTS = [
    ("hbc,bdef,cdkj,ji,ikeh,lfo", [1, 2, 3, 4]),
    ("bdef,cdkj,ji,ikeh,hbc,lfo", [0, 1, 2, 3]),
    ("ijab,acd,bce,df,ef->ji", [1, 2, 3, 4]),
    ("ab,cd,ad,cb", [1, 3]),
    ("ab,bc,cd", [0, 1]),
    ("ab,bc,cd->ad", [0, 1, 2]),
    ("ab,,cd->abd", [1]),
    ("...ab,bc->...ac", [1]),
    ("aab,b->a", [0]),
]


@pytest.mark.parametrize(("equation", "constants"), CONSTANTS, ids=range(9))
def test_expression_with_constants(equation: str, constants: list[int]) -> None:
    terms = equation.replace("...", "xy").split("->")[0].split(",")
    shapes = [tuple(2 + ord(k) % 3 for k in term) for term in terms]
    arrays = drawn(shapes, "float64")
    mixed = [a if k in constants else a.shape for k, a in enumerate(arrays)]
    by_position = tnc.einsum_expression(equation, *mixed, constants=constants)
    shapes_only = [a.shape for k, a in enumerate(arrays) if k not in constants]
    held = {k: arrays[k] for k in constants}
    by_mapping = tnc.einsum_expression(equation, *shapes_only, constants=held)
    given = [a for k, a in enumerate(arrays) if k not in constants]
    for f in (by_position, by_mapping):
        assert_agrees(f(*given), equation, arrays, equation)
        tensors = [torch.from_numpy(a).requires_grad_() for a in given]
        value = f(*tensors)
        assert isinstance(value, Tensor) == bool(given)
        assert_agrees(value, equation, arrays, equation)
        if not given:
            continue
        value.square().sum().backward()
        leaves = [
            torch.from_numpy(a).requires_grad_(k not in constants) for k, a in enumerate(arrays)
        ]
        torch.einsum(equation, *leaves).square().sum().backward()
        for mine, k in zip(
            tensors, (k for k in range(len(leaves)) if k not in constants), strict=True
        ):
            torch.testing.assert_close(mine.grad, leaves[k].grad)


def test_constants_are_contracted_ahead() -> None:
    """A pair of constants that the path joins is one operand of the folded equation."""
    a, b, c = CHAINED
    f = tnc.einsum_expression(CHAIN, (3, 4), b, c, constants=[1, 2], optimize=[(1, 2), (0, 1)])
    assert f._form == ((("i", "j"), ("j", "l")), ("i", "l"))
    assert len(f._values) == 1 and np.allclose(f._values[0], b @ c)
    calls = numpy_side._numpy_executable.cache_info().hits
    assert np.allclose(f(a), a @ b @ c) and f._values[0].shape == (4, 6)
    f(a)
    assert numpy_side._numpy_executable.cache_info().hits == calls + 1  # one product a call
    everything = tnc.einsum_expression(CHAIN, a, b, c, constants=[0, 1, 2])
    assert np.allclose(everything(), a @ b @ c) and len(everything._values) == 1
    from_lists = tnc.einsum_expression("i,i,->i", [1.0, 2.0], (2,), 3, constants=[0, 2])
    assert np.array_equal(from_lists(np.ones(2)), [3, 6])


def test_constants_cross_libraries_and_get_no_gradient() -> None:
    a, b, c = CHAINED
    weight = torch.from_numpy(b).requires_grad_()
    f = tnc.einsum_expression((3, 4), [0, 1], weight, [1, 2], c, [2, 3], [0, 3], constants=[1, 2])
    g = tnc.einsum_expression((3, 4), [0, 1], [1, 2], [2, 3], [0, 3], constants={1: weight, 2: c})
    for e in (f, g):
        assert isinstance(e(a), np.ndarray) and np.allclose(e(a), a @ b @ c)
        for _ in range(2):  # backward twice: the constants hold no graph
            x = torch.from_numpy(a).requires_grad_()
            e(x).sum().backward()
            torch.testing.assert_close(x.grad, torch.from_numpy((b @ c).sum(1)).expand(3, 4))
        assert weight.grad is None
        out = np.empty((3, 6))
        assert e(a, out=out) is out and np.allclose(out, a @ b @ c)
        assert np.allclose(e(a.tolist()), out)
        assert e(torch.from_numpy(a), backend="numpy").shape == (3, 6)
        batch = torch.func.vmap(e)(torch.from_numpy(np.stack([a, a])))
        assert np.allclose(batch, np.stack([out, out]))
    assert "3 operands" in str(f)


WRONG_EXPRESSIONS: dict[str, tuple[type[TncError], str, Callable[[], object]]] = {
    "too few": (er.ArgumentCountError, "takes 2", lambda: made_expression()(np.ones((2, 3)))),
    "too many": (
        er.ArgumentCountError,
        "takes 2",
        lambda: made_expression()(*[np.ones((2, 3))] * 3),
    ),
    "shape": (er.ShapeError, "(3, 2)", lambda: made_expression()(np.ones((3, 2)), np.ones((3, 4)))),
    "axes": (er.ShapeError, "operand 1", lambda: made_expression()(np.ones((2, 3)), np.ones(3))),
    "text": (er.ShapeError, "operand 0", lambda: made_expression()("a", np.ones((3, 4)))),
    "out": (
        er.ShapeError,
        "out",
        lambda: made_expression()(np.ones((2, 3)), np.ones((3, 4)), out=np.empty(3)),
    ),
    "backend": (er.BackendError, "jax", lambda: made_expression(backend="jax")),
    "backend of a call": (
        er.BackendError,
        "jax",
        lambda: made_expression()(np.ones((2, 3)), np.ones((3, 4)), backend="jax"),
    ),
    "mixed": (
        er.ArgumentError,
        "torch tensors and",
        lambda: made_expression()(np.ones((2, 3)), torch.ones(3, 4)),
    ),
    "no shape": (er.ArgumentError, "operand 1", lambda: tnc.einsum_expression("i,i", (2,), None)),
    "negative": (er.ArgumentError, "operand 1", lambda: tnc.einsum_expression("i,i", (2,), (-2,))),
    "fraction": (er.ArgumentError, "operand 0", lambda: tnc.einsum_expression("i,i", (2.5,), (2,))),
    "clash": (er.SizeClash, "'i'", lambda: tnc.einsum_expression("i,i", (2,), (3,))),
    "constants=1": (er.ArgumentError, "constants", lambda: made_expression(constants=1)),
    "constants=text": (er.ArgumentError, "constants", lambda: made_expression(constants="1")),
    "constants beyond": (
        er.ArgumentError,
        "operand 2 of 2",
        lambda: made_expression(constants=[2]),
    ),
    "constants before": (er.ArgumentError, "operand -1", lambda: made_expression(constants=[-1])),
    "constant is a shape": (er.ArgumentError, "no array", lambda: made_expression(constants=[0])),
    "constants by names": (
        er.ArgumentError,
        "constants",
        lambda: tnc.einsum_expression("i,i", (2,), constants={"a": np.ones(2)}),
    ),
    "mapping beyond": (
        TncError,
        "",
        lambda: tnc.einsum_expression("i,i", (2,), constants={7: np.ones(2)}),
    ),
    "constant torch has not": (
        er.DTypeError,
        "torch has no dtype",
        lambda: tnc.einsum_expression("i,i", (2,), np.ones(2, "g"), constants=[1])(torch.ones(2)),
    ),
    "constant NumPy has not": (
        er.DTypeError,
        "NumPy has no dtype",
        lambda: tnc.einsum_expression(
            "i,i", (2,), torch.ones(2, dtype=torch.bfloat16), constants=[1]
        )(np.ones(2)),
    ),
    "memory_limit": (er.PlanError, "memory", lambda: made_expression(memory_limit="max_input")),
    "memory_limit too small": (
        er.PlanError,
        "least that was found",
        lambda: made_expression(memory_limit=1)(np.ones((2, 3)), np.ones((3, 4))),
    ),
}


def made_expression(**options: Any) -> Any:
    return tnc.einsum_expression("ij,jk->ik", (2, 3), (3, 4), **options)


@pytest.mark.parametrize("case", WRONG_EXPRESSIONS)
def test_wrong_expressions(case: str) -> None:
    assert_refused(*WRONG_EXPRESSIONS[case])


def assert_refused(kind: type[TncError], words: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value) and caught.value.what and caught.value.fix, caught.value


# ---------------------------------------------------------------------------- paths


def path_cases() -> list[tuple[str, list[tuple[int, ...]]]]:
    generated = [oe.testing.rand_equation(3 + s % 9, 3, s % 4, 2, 5, s)[:2] for s in range(25)]
    listed = [(eq, shapes_of(eq)) for eq in EQUATIONS if "." not in eq]
    return [*listed, *((eq, [tuple(map(int, s)) for s in shapes]) for eq, shapes in generated)]


def test_paths_are_valid_and_costs_are_opt_einsums() -> None:
    """The same path costs the same in opt_einsum, and runs there and in NumPy."""
    for equation, shapes in path_cases():
        path, info = tnc.contract_path(equation, *shapes)
        arrays = drawn(shapes, "float64")
        _, theirs = oe.contract_path(equation, *arrays, optimize=path)
        what = (equation, path)
        if len(shapes) > 1:  # opt_einsum counts a sum of one operand twice
            assert info.opt_cost == theirs.opt_cost == info.flops, what
        assert info.largest_intermediate == theirs.largest_intermediate, what
        assert info.scale_list == list(theirs.scale_list), what
        labels = "".join(equation.split("->")[0].split(","))
        summed = set(labels) - set(info.eq.split("->")[1])
        if bool(summed) == (len(labels) > len(set(labels))):  # its guess whether anything is summed
            assert info.naive_cost in (
                theirs.naive_cost,
                theirs.naive_cost // max(1, 3 - len(shapes)),
            )
        if len(shapes) < 6:
            right = tnc.einsum(equation, *arrays)
            assert np.allclose(oe.contract(equation, *arrays, optimize=path), right)
            assert np.allclose(np.einsum(equation, *arrays, optimize=["einsum_path", *path]), right)


def test_every_search_reports_the_same_costs_as_opt_einsum() -> None:
    equation, shapes = oe.testing.rand_equation(8, 3, 2, 2, 6, 5)[:2]
    arrays = drawn(shapes, "float64")
    best = oe.contract_path(equation, *arrays, optimize="optimal")[1].opt_cost
    for optimize in ("optimal", "greedy", "random-greedy", False, oe.paths.dynamic_programming):
        path, info = tnc.contract_path(equation, *shapes, optimize=optimize)
        assert info.opt_cost == oe.contract_path(equation, *arrays, optimize=path)[1].opt_cost
        assert info.opt_cost >= best
    options = tnc.PlanOptions(search="optimal", minimize="flops")
    assert tnc.contract_path(equation, *shapes, optimize=options)[1].opt_cost == best


REPORT = """\
  complete contraction  ij,jk,kl->il
         naive scaling  4 indices
     optimized scaling  3 indices
           naive flops  1.080e+03
       optimized flops  3.000e+02
           fewer flops  3.6 times
  largest intermediate  1.800e+01 elements

  step       contraction   indices       flops    elements
 ──────────────────────────────────────────────────────────
  0 (0, 1)   ij,jk->ik           3   1.200e+02   1.500e+01
  1 (0, 1)   kl,ik->il           3   1.800e+02   1.800e+01"""


def test_the_report() -> None:
    path, info = tnc.contract_path(CHAIN, (3, 4), (4, 5), (5, 6), optimize=[(0, 1), (0, 1)])
    assert str(info) == REPORT and repr(info) == REPORT and path == [(0, 1), (0, 1)]
    assert info.speedup == pytest.approx(3.6) and info.scaling == 3
    for equation, *shapes in (("", ()), ("ij->j", (2, 0)), (",", (), ()), ("i,i", (0,), (0,))):
        assert "complete contraction" in str(tnc.contract_path(equation, *shapes)[1])
    many = tnc.contract_path(*[p for k in range(80) for p in ((2, 2), [k, k + 1])])[1]
    assert str(many).count("\n") > 80


def test_what_stands_for_a_shape() -> None:
    x = tnc.input("x", *tnc.indices("i j", i=3, j=4))
    operands = (
        x,
        (3, 4),
        [3, 4],
        np.ones((3, 4)),
        torch.ones(3, 4),
        [[1] * 4] * 3,
        torch.Size([3, 4]),
    )
    for operand in operands:
        path, info = tnc.contract_path("ij,j,->i", operand, (4,), 2.5, memory_limit=-1)
        assert len(path) == 2 and info.naive_scaling == 2


# ---------------------------------------------------------------------------- errors

M, V = np.ones((2, 3)), np.ones(3)
TM, TV = torch.ones(2, 3), torch.ones(3)
ERRORS: dict[str, tuple[type[TncError], str, Callable[[], object]]] = {
    "nothing": (er.ArgumentCountError, "without arguments", lambda: tnc.einsum()),
    "no operands": (er.ArgumentCountError, "1 terms", lambda: tnc.einsum("ij")),
    "too few": (er.ArgumentCountError, "2 terms", lambda: tnc.einsum("ij,jk", M)),
    "too many": (er.ArgumentCountError, "1 terms", lambda: tnc.einsum("ij", M, M)),
    "clash": (er.SizeClash, "operand 1 (axis 0)", lambda: tnc.einsum("ij,jk", M, M)),
    "clash in torch": (er.SizeClash, "operand 1 (axis 0)", lambda: tnc.einsum("ij,jk", TM, TM)),
    "clash on one operand": (er.SizeClash, "'i'", lambda: tnc.einsum("ii", M)),
    "diagonal of size 1": (er.SizeClash, "'i'", lambda: tnc.einsum("ii", np.ones((1, 3)))),
    "clash under an ellipsis": (er.SizeClash, "size 2", lambda: tnc.einsum("...,...", M, M.T)),
    "dot": (er.EquationError, "stray", lambda: tnc.einsum("i.j", M)),
    "two dots": (er.EquationError, "stray", lambda: tnc.einsum("i..j", M)),
    "four dots": (er.EquationError, "stray", lambda: tnc.einsum("....j", M)),
    "two ellipses": (er.EquationError, "stray", lambda: tnc.einsum("...i...", M)),
    "minus": (er.EquationError, "stray", lambda: tnc.einsum("i-j", M)),
    "greater": (er.EquationError, "stray", lambda: tnc.einsum("ij>i", M)),
    "two arrows": (er.EquationError, "stray", lambda: tnc.einsum("ij->i->j", M)),
    "two outputs": (er.EquationError, "one term", lambda: tnc.einsum("ij->i,j", M)),
    "unknown output": (er.UnknownOutputIndex, "'k'", lambda: tnc.einsum("ij->ik", M)),
    "repeated output": (er.RepeatedOutputIndex, "2 times", lambda: tnc.einsum("ij->ii", M)),
    "too many axes": (er.ShapeError, "2 axes", lambda: tnc.einsum("i", M)),
    "too few axes": (er.ShapeError, "2 axes", lambda: tnc.einsum("ijk", M)),
    "too few axes for an ellipsis": (er.ShapeError, "2 axes", lambda: tnc.einsum("i...jk", M)),
    "two output ellipses": (er.EquationError, "stray", lambda: tnc.einsum("...->......", M)),
    "bytes": (er.EquationError, "labels", lambda: tnc.einsum(b"ij,j", M, V)),
    "operands first": (er.EquationError, "labels", lambda: tnc.einsum(M, V, "ij,j->i")),
    "numbers": (er.EquationError, "int", lambda: tnc.einsum(0, 0)),
    "unhashable labels": (er.EquationError, "labels", lambda: tnc.einsum(M, [[0], {}])),
    "two ellipses in a list": (er.EquationError, "Ellipsis", lambda: tnc.einsum(M, [..., 0, ...])),
    "labels without order": (er.EquationError, "order", lambda: tnc.einsum(M, [0, "a"])),
    "mixed libraries": (er.ArgumentError, "torch tensors and", lambda: tnc.einsum("ij,j", M, TV)),
    "number with a tensor": (er.ArgumentError, "float", lambda: tnc.einsum("ij,", TM, 2.0)),
    "ragged list": (er.ArgumentError, "operand 0", lambda: tnc.einsum("ij", [[1], [1, 2]])),
    "text": (er.DTypeError, "operand 0", lambda: tnc.einsum("i", np.array(["a"]))),
    "dates": (er.DTypeError, "datetime64", lambda: tnc.einsum("i", np.array([1], "M8[s]"))),
    "records": (er.DTypeError, "operand 0", lambda: tnc.einsum("i", np.zeros(2, "f4,f4"))),
    "half complex": (
        er.UnsupportedDType,
        "complex32",
        lambda: tnc.einsum("i->", torch.ones(2, dtype=torch.complex32)),
    ),
    "52 indices of objects": (
        er.EquationError,
        "52",
        lambda: tnc.einsum(*[p for k in range(60) for p in (np.ones((1, 1), object), [k, k + 1])]),
    ),
    "optimizer": (er.PlanError, "no optimizer", lambda: tnc.einsum("ij,j", M, V, optimize="fast")),
    "optimizer in a pair": (
        er.PlanError,
        "'fast'",
        lambda: tnc.einsum("ij,j", M, V, optimize=("fast", 9)),
    ),
    "optimizer that is none": (er.PlanError, "path", lambda: tnc.einsum("ij,j", M, V, optimize=3)),
    "path beyond": (
        er.PlanError,
        "step 0",
        lambda: tnc.einsum("ij,j,j", M, V, V, optimize=[(0, 3)]),
    ),
    "path twice": (
        er.PlanError,
        "repeats",
        lambda: tnc.einsum("ij,j,j", M, V, V, optimize=[(1, 1)]),
    ),
    "path negative": (
        er.PlanError,
        "negative",
        lambda: tnc.einsum("ij,j", M, V, optimize=[(-1, 0)]),
    ),
    "path of text": (er.PlanError, "path", lambda: tnc.einsum("ij,j", M, V, optimize=[("a", "b")])),
    "path of a function": (
        er.PlanError,
        "step 0",
        lambda: tnc.einsum("ij,j,j", M, V, V, optimize=lambda *_: [(0, 9)]),
    ),
    "plan of another network": (
        er.PlanError,
        "3 tensors",
        lambda: tnc.einsum(
            "ij,j,j,j", M, V, V, V, optimize=tnc.plan(tnc.from_einsum("ij,j,j", M, V, V))
        ),
    ),
    "memory": (er.PlanError, "memory", lambda: tnc.einsum("ij,j", M, V, memory_limit=10)),
    "out shape": (er.ShapeError, "(2,)", lambda: tnc.einsum("ij,j", M, V, out=np.empty(3))),
    "out dtype": (er.DTypeError, "int64", lambda: tnc.einsum("ij,j", M, V, out=np.empty(2, int))),
    "out that is none": (er.ShapeError, "list", lambda: tnc.einsum("ij,j", M, V, out=[0, 0])),
    "out read-only": (
        er.ArgumentError,
        "read-only",
        lambda: tnc.einsum("ij,j", M, V, out=np.broadcast_to(0.0, 2)),
    ),
    "out tensor": (er.ShapeError, "Tensor", lambda: tnc.einsum("ij,j", M, V, out=torch.empty(2))),
    "out shape in torch": (er.ShapeError, "(2,)", lambda: tnc.einsum("ij,j", TM, TV, out=TV)),
    "out array in torch": (
        er.ShapeError,
        "ndarray",
        lambda: tnc.einsum("ij,j", TM, TV, out=M[:, 0]),
    ),
    "out dtype in torch": (
        er.DTypeError,
        "int64",
        lambda: tnc.einsum("ij,j", TM, TV, out=torch.zeros(2, dtype=torch.int64)),
    ),
    "out leaf in torch": (
        er.ArgumentError,
        "leaf",
        lambda: tnc.einsum("ij,j", TM, TV, out=torch.zeros(2, requires_grad=True)),
    ),
    "out expanded in torch": (
        er.ArgumentError,
        "memory",
        lambda: tnc.einsum("ij,j", TM, TV, out=torch.zeros(()).expand(2)),
    ),
    "dtype": (er.UnsupportedDType, "'spam'", lambda: tnc.einsum("ij", M, dtype="spam")),
    "dtype that fits not": (er.DTypeError, "'safe'", lambda: tnc.einsum("ij", M, dtype="f4")),
    "dtype bfloat16": (er.DTypeError, "bfloat16", lambda: tnc.einsum("ij", M, dtype="bfloat16")),
    "dtype default": (er.DTypeError, "default", lambda: tnc.einsum("ij", M, dtype="default")),
    "order": (er.ArgumentError, "'W'", lambda: tnc.einsum("ij", M, order="W")),
    "order in torch": (er.ArgumentError, "NumPy", lambda: tnc.einsum("ij", TM, order="C")),
    "casting": (er.ArgumentError, "'spam'", lambda: tnc.einsum("ij", M, casting="spam")),
    "backend": (er.BackendError, "'jax'", lambda: tnc.einsum("ij", M, backend="jax")),
    "backend that is a list": (er.BackendError, "[]", lambda: tnc.einsum("ij", TM, backend=[])),
    "backend of the other": (
        er.BackendError,
        "'torch'",
        lambda: tnc.einsum("ij", M, backend="torch"),
    ),
    "devices": (er.DeviceError, "2 devices", lambda: tnc.einsum("ij,j", TM, TV.to("meta"))),
    "shape of a path": (er.ArgumentError, "operand 0", lambda: tnc.contract_path("ij", "ab")),
    "ragged shape of a path": (
        er.ArgumentError,
        "ragged",
        lambda: tnc.contract_path("ij", [[1], 2]),
    ),
    "symbol in a path": (
        er.ArgumentError,
        "operand 0",
        lambda: tnc.contract_path("i", (tnc.size("D"),)),
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    assert_refused(*ERRORS[case])


def test_errors_say_where() -> None:
    for call in (lambda: tnc.einsum("ij,jk->ik", M, M), lambda: tnc.einsum("ij->ik", M)):
        with pytest.raises(TncError) as caught:
            call()
        assert "ij" in str(caught.value.where)
    with pytest.raises(TypeError, match="unexpected keyword"):
        tnc.einsum("ij", M, spam=1)


# ---------------------------------------------------------------------------- once, and the same


def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows with every program that is written and loaded."""
    from tncompiler import compiler

    loaded: list[Any] = []
    code_of = compiler.code_of

    def counted(*of: Any, **options: Any) -> Any:
        loaded.append(of)
        return code_of(*of, **options)

    monkeypatch.setattr(compiler, "code_of", counted)
    return loaded


def test_a_second_call_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = made(monkeypatch)
    equation = "ab,bc,cd,de->ae"
    arrays = [np.ones((7, 7), "f4") for _ in range(4)]
    tensors = [torch.ones(7, 7, requires_grad=True) for _ in range(4)]
    expression = tnc.einsum_expression(equation, *[(7, 7)] * 3, arrays[0], constants=[3])
    calls: dict[str, Callable[[], Any]] = {
        "NumPy": lambda: tnc.einsum(equation, *arrays),
        "options": lambda: tnc.einsum(equation, *arrays, optimize=[(0, 1)] * 3),
        "function": lambda: tnc.einsum(equation, *arrays, optimize=oe.paths.greedy),
        "interleaved": lambda: tnc.einsum(
            *[p for k, a in enumerate(arrays) for p in (a, [k, k + 1])]
        ),
        "torch": lambda: tnc.einsum(equation, *tensors).sum().backward(),
        "numpy on torch": lambda: tnc.einsum(equation, *tensors, backend="numpy").sum().backward(),
        "expression": lambda: expression(*arrays[:3]),
        "expression on torch": lambda: expression(*tensors[:3]).sum().backward(),
    }
    for name, call in calls.items():
        call()
        first, caches = len(loaded), cache_misses()
        for _ in range(3):
            call()
        assert (len(loaded), cache_misses()) == (first, caches), name
        assert first, name
        loaded.clear()
    tnc.einsum(equation, *arrays[:3], np.ones((7, 8), "f4"))  # other shapes do
    assert len(loaded) == 1 and cache_misses() != caches


def cache_misses() -> tuple[int, int]:
    return (
        numpy_side._numpy_executable.cache_info().misses,
        torch_side._compiled.cache_info().misses,
    )


def test_results_are_bitwise_the_same() -> None:
    inputs, output, shapes, _ = ctg.utils.rand_equation(12, 3, n_out=2, d_max=4, seed=3)
    equation = ctg.utils.inputs_output_to_eq(inputs, output)
    arrays = drawn(shapes, "float32")
    first = tnc.einsum(equation, *arrays)
    again = [tnc.einsum(equation, *arrays).tobytes()]
    again.append(tnc.einsum(equation, *(a.copy() for a in arrays)).tobytes())
    numpy_side._numpy_executable.cache_clear()  # planned and compiled anew
    again.append(tnc.einsum(equation, *arrays).tobytes())
    assert set(again) == {first.tobytes()}
    tensors = [torch.from_numpy(a) for a in arrays]
    value = tnc.einsum(equation, *tensors)
    torch_side._compiled.cache_clear()
    assert torch.equal(tnc.einsum(equation, *tensors), value)


def test_threads_share_the_cache() -> None:
    arrays = [rng(k).random((5, 5)) for k in range(3)]
    right, found = expected("ij,jk,kl->il", arrays), []
    numpy_side._numpy_executable.cache_clear()
    work = lambda: found.append(np.allclose(tnc.einsum("ij,jk,kl->il", *arrays), right))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
