"""What just works: one table of named cases, each on every runner, forward and gradients.

The oracle is numpy.einsum in double precision. A case is an einsum equation over leaves with
indices of given sizes; the gradient by a leaf is the einsum of the cotangent with the conjugates
of all other uses, summed over the uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests import oracle

Labels = tuple[str, ...]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """``terms`` are the uses of leaves, (name, labels); ``out`` the labels of the output.

    ``sizes`` by label; a leaf whose name begins with a capital is a parameter. ``view`` makes the
    arrays awkward. In a use a label may stand twice (a trace or a diagonal). ``windows``: labels of
    source, windows and taps, with stride, dilation and padding.
    """

    terms: tuple[tuple[str, Labels], ...]
    out: Labels
    sizes: dict[str, int]
    dtype: str = "float32"
    view: Callable[[np.ndarray], np.ndarray] = np.array
    aliased: bool = False
    windows: tuple[tuple[Labels, tuple[int, int, int]], ...] = ()


def convolved(
    known: Case, labels: str, stride: int = 1, dilation: int = 1, padding: int = 0, **sizes: int
) -> Case:
    """A case with one window more, whose count follows; ``sizes`` of labels that are on no leaf."""
    sizes = {**known.sizes, **sizes}
    source, taps = sizes[labels[0]], sizes[labels[2]]
    count = (source + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    window = (tuple(labels), (stride, dilation, padding))
    sizes[labels[1]] = count
    return replace(known, sizes=sizes, windows=(*known.windows, window))


def case(equation: str, names: str, dtype: str = "float32", **sizes: int) -> Case:
    """A case from einsum's notation; sizes are 2, 3, 4, … by label unless they are given."""
    inputs, out = equation.split("->")
    wires = [tuple(part) for part in inputs.split(",")] if names else []
    labels = sorted({label for wire in wires for label in wire})
    extents = {label: sizes.get(label, 2 + k) for k, label in enumerate(labels)}
    return Case(tuple(zip(names.split(), wires, strict=True)), tuple(out), extents, dtype)


def awkward(view: Callable[[np.ndarray], np.ndarray]) -> Case:
    return Case(
        (("x", ("i", "j")), ("y", ("j", "k")), ("W", ("k", "i"))),
        ("i", "k"),
        {"i": 3, "j": 4, "k": 5},
        view=view,
    )


def aliased(known: Case) -> Case:
    """All leaves are one array."""
    return replace(known, aliased=True)


def many(count: int) -> Case:
    """A ring of `count` tensors with a bond and an open index of size 1 each, two of size 2."""
    terms = tuple((f"x{n}", (f"b{n}", f"b{(n + 1) % count}", f"o{n}")) for n in range(count))
    sizes = {label: 1 for _, labels in terms for label in labels}
    sizes.update(dict.fromkeys(("b0", "b1", "o0", f"o{count - 1}"), 2))
    return Case(terms, ("o0", f"o{count - 1}"), sizes)


def _strided(a: np.ndarray) -> np.ndarray:
    return np.repeat(a, 2, -1)[..., ::2]


def _expanded(a: np.ndarray) -> np.ndarray:
    return np.broadcast_to(a[:1], a.shape)


def _reversed(a: np.ndarray) -> np.ndarray:
    return np.flip(np.flip(a).copy())


def _unaligned(a: np.ndarray) -> np.ndarray:
    buffer = np.zeros(a.nbytes + 1, np.uint8)
    view = np.frombuffer(buffer.data, a.dtype, a.size, offset=1).reshape(a.shape)
    view[...] = a
    return view


CORPUS: dict[str, Case] = {
    "scalar": case("->", "x"),
    "product of scalars": case(",->", "x Y"),
    "scalar times matrix": case(",ij->ij", "x y"),
    "full sum": case("ij->", "x"),
    "sum of one axis": case("ij->i", "x"),
    "transpose": case("ij->ji", "x"),
    "size 0 open": case("ij,jk->ik", "x W", i=0),
    "size 0 summed": case("ij,jk->ik", "x W", j=0),
    "size 0 everywhere": case("ij,jk->ik", "x W", i=0, j=0, k=0),
    "size 0 on a hyperedge": case("bi,bj,bk->ijk", "x y z", b=0),
    "size 1 open": case("ij,jk->ik", "x W", i=1),
    "size 1 summed": case("ij,jk->ik", "x W", j=1),
    "size 1 everywhere": case("ij,jk->ik", "x W", i=1, j=1, k=1),
    "trace": case("ii->", "x"),
    "trace of a matrix with more axes": case("iij->j", "x"),
    "diagonal": case("ii->i", "x"),
    "diagonal of three": case("iii->i", "x"),
    "two repeated indices": case("iijj->ij", "x"),
    "diagonal in a product": case("iij,jk->ik", "x W"),
    "hyperedge summed": case("ri,rj,rk->ijk", "x y W"),
    "hyperedge kept": case("ri,rj,rk->rijk", "x y W"),
    "hyperedge of vectors": case("r,r,r,r->", "x y z W"),
    "batch": case("bij,bjk->bik", "x y"),
    "broadcast": case("bij,jk->bik", "x W"),
    "elementwise": case("ij,ij->ij", "x y"),
    "outer product": case("i,j->ij", "x y"),
    "outer product of three": case("i,j,k->kij", "x y Z"),
    "disconnected": case("ij,kl->ik", "x y"),
    "disconnected and closed": case("ij,kl->", "x W"),
    "a scalar part beside": case("ij,kk->ij", "x y"),
    "shared parameter": case("ij,jk->ik", "W W", i=3, j=3, k=3),
    "shared and transposed": case("ij,kj->ik", "W W", i=3, j=4, k=3),
    "shared four times": case("ij,jk,kl,li->", "W W W W", i=3, j=3, k=3, l=3),
    "more than 52 indices": many(40),
    "strided": awkward(_strided),
    "expanded": awkward(_expanded),
    "negative strides": awkward(_reversed),
    "Fortran order": awkward(np.asfortranarray),
    "unaligned": awkward(_unaligned),
    "aliased": aliased(case("ij,jk->ik", "x y", i=3, j=3, k=3)),
    "complex64": case("ij,jk,k->i", "x W y", "complex64"),
    "complex128": case("ij,jk,k->i", "x W y", "complex128"),
    "complex hyperedge": case("ri,rj,rk->ik", "x W y", "complex128"),
    "complex trace": case("ij,ji->", "x W", "complex128"),
    "complex shared": case("ij,jk->ik", "W W", "complex64", i=3, j=3, k=3),
    "complex size 0": case("ij,jk->ik", "x W", "complex64", j=0),
    "float64": case("ij,jk,kl->il", "x W y", "float64"),
    "convolution": convolved(case("bci,tck->bto", "x W", i=7, k=3), "iok", padding=1),
    "strided and dilated": convolved(case("ci,tck->to", "x W", i=9, k=2), "iok", 2, 3, 2),
    "convolution in two dimensions": convolved(
        convolved(case("bcij,tckl->btop", "x W", i=6, j=5, k=3, l=2), "iok", 2, 1, 1), "jpl"
    ),
    "CP convolution": convolved(
        convolved(case("bcij,cr,kr,lr,tr->btop", "x C K L T", i=6, j=5, k=3, l=2), "iok", 1, 1, 1),
        "jpl",
    ),
    "grouped convolution": convolved(case("bgci,gtck->bgto", "x W", i=6, k=3), "iok", 2),
    "depthwise convolution": convolved(case("bci,ck->bco", "x W", i=6, k=3), "iok", 1, 2, 2),
    "transposed convolution": convolved(
        case("bco,ctk->bti", "x W", o=5, k=3), "iok", 2, 1, 1, i=9
    ),
    "sum of windows": convolved(case("bi->bo", "x", i=6), "iok", 1, 1, 1, k=3),
    "windows kept": convolved(case("bi->bok", "x", i=6), "iok", 2, 1, 1, k=3),
    "complex convolution": convolved(case("ci,tck->to", "x W", "complex64", i=6, k=3), "iok"),
    "convolution of nothing": convolved(case("bci,tck->bto", "x W", b=0, i=5, k=3), "iok"),
}  # fmt: skip


# ---------------------------------------------------------------------------- a case, twice


def expression(known: Case) -> tnc.Expr:
    """The case in the language: repeated labels of a use become a delta."""
    tensors: list[tnc.Expr] = []
    for name, labels in known.terms:
        make = tnc.param if name[0].isupper() else tnc.input
        axes, joints = [], []
        for axis, label in enumerate(labels):
            index = tnc.Index(label, known.sizes[label])
            if label in labels[:axis]:
                twin = tnc.Index(f"{label}_{axis}", known.sizes[label])
                joints.append(tnc.delta(index, twin))
                index = twin
            axes.append(index)
        tensors += [make(name, *axes), *joints]
    for labels, (stride, dilation, padding) in known.windows:
        source, out, kernel = (tnc.Index(label, known.sizes[label]) for label in labels)
        how = {"stride": stride, "dilation": dilation, "padding": padding}
        tensors.append(tnc.window(source, out=out, kernel=kernel, **how))
    return tnc.contract(*tensors, out=[tnc.Index(k, known.sizes[k]) for k in known.out])


def arrays_of(known: Case) -> Arrays:
    rng = np.random.default_rng(5)
    made: Arrays = {}
    for name, labels in known.terms:
        if name not in made:
            made[name] = known.view(random_array(rng, known, labels))
    if known.aliased:
        made = dict.fromkeys(made, next(iter(made.values())))
    return made


def windows_of(known: Case) -> list[tuple[np.ndarray, Labels]]:
    """The windows as arrays of zeros and ones, with their labels."""
    found = []
    for labels, (stride, dilation, padding) in known.windows:
        source, out, tap = np.indices([known.sizes[label] for label in labels])
        found.append(((source == out * stride + tap * dilation - padding).astype(float), labels))
    return found


def operands_of(known: Case, arrays: Arrays) -> list[tuple[np.ndarray, Labels]]:
    """What einsum contracts: the uses of leaves, and the windows."""
    return [*windows_of(known), *((arrays[name], labels) for name, labels in known.terms)]


def random_array(rng: np.random.Generator, known: Case, labels: Labels) -> np.ndarray:
    shape = [known.sizes[label] for label in labels]
    values = rng.standard_normal(shape)
    if known.dtype.startswith("complex"):
        values = values + 1j * rng.standard_normal(shape)
    return np.asarray(values).astype(known.dtype)


def einsum(known: Case, operands: list[tuple[np.ndarray, Labels]], out: Labels) -> np.ndarray:
    """numpy.einsum in double precision, a term at a time: it takes no more than 52 labels."""
    double = "complex128" if known.dtype.startswith("complex") else "float64"
    left, have = np.ones((), double), ()
    for position, (array, labels) in enumerate(operands):
        later = {label for _, rest in operands[position + 1 :] for label in rest} | set(out)
        kept = tuple(dict.fromkeys(k for k in (*have, *labels) if k in later))
        numbers = {k: n for n, k in enumerate(dict.fromkeys((*have, *labels)))}
        wires = [[numbers[k] for k in group] for group in (have, labels, kept)]
        left = np.einsum(left, wires[0], array.astype(double), wires[1], wires[2])
        have = kept
    return np.einsum(left, [out.index(k) for k in have], list(range(len(out))))


def gradient(known: Case, arrays: Arrays, cotangent: np.ndarray, name: str) -> np.ndarray:
    """The sum over uses: the cotangent with the conjugates of all others, spread on diagonals."""
    total = np.zeros(arrays[name].shape, np.complex128)
    for position, (own, labels) in enumerate(known.terms):
        if own != name:
            continue
        others = windows_of(known) + [
            (arrays[n].conj(), wire) for k, (n, wire) in enumerate(known.terms) if k != position
        ]
        distinct = tuple(dict.fromkeys(labels))
        ones = [(np.ones(known.sizes[label]), (label,)) for label in distinct]
        found = einsum(known, [(cotangent, known.out), *others, *ones], distinct)
        spread = np.zeros_like(total)
        diagonal = [distinct.index(label) for label in labels]
        view = np.einsum(spread, diagonal, list(range(len(distinct)))) if labels else spread
        view[...] = found
        total = total + spread
    return total


def assert_close(known: Case, got: np.ndarray, expected: np.ndarray, what: str) -> None:
    tolerance = 1e-4 if known.dtype in ("float32", "complex64") else 1e-11
    got = np.asarray(got)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    assert got.dtype == np.dtype(known.dtype), f"{what}: {got.dtype}"
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=what)


# ---------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_forward_and_gradients(runner: str, name: str) -> None:
    """just work, on every runner, forward and gradients, against an independent oracle"""
    known = CORPUS[name]
    arrays = arrays_of(known)
    expected = einsum(known, operands_of(known, arrays), known.out)
    cotangent = random_array(np.random.default_rng(6), known, known.out)
    compiled = oracle.Runner((expression(known),), runner, known.dtype, {})
    (value,) = compiled.forward(arrays)
    assert_close(known, value, expected, "forward")
    (value,), gradients = compiled.gradients(arrays, [cotangent], tuple(arrays))
    assert_close(known, value, expected, "training forward")
    for leaf in arrays:
        wanted = gradient(known, arrays, cotangent, leaf)
        wanted = wanted if known.dtype.startswith("complex") else wanted.real
        assert_close(known, gradients[leaf], wanted, f"gradient of {leaf}")


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "strided": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda t: t.T.contiguous().T,
    "expanded": lambda t: t[:1].expand_as(t),
    "with an offset": lambda t: torch.cat([t[:1] * 0, t])[1:],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_torch_views(backend: str, view: str) -> None:
    """non-contiguous and expanded tensors, not copied by the runner before"""
    known = awkward(np.array)
    arrays = arrays_of(known)
    x = VIEWS[view](torch.from_numpy(arrays["x"])).detach().requires_grad_()
    f = tnc.compile(expression(known), backend=backend, seed=0)
    held = {"x": x.detach().numpy(), "y": arrays["y"], "W": f.W.detach().numpy()}
    value = f(x, torch.from_numpy(arrays["y"]))
    value.sum().backward()
    terms = [(held[n], labels) for n, labels in known.terms]
    assert_close(known, value.detach().numpy(), einsum(known, terms, known.out), "forward")
    ones = np.ones((3, 5), np.float32)
    for leaf, tensor in (("x", x), ("W", f.W)):
        wanted = gradient(known, held, ones, leaf).real
        assert_close(known, tensor.grad.numpy(), wanted, leaf)


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_an_empty_product(runner: str) -> None:
    """an empty product is 1"""
    (value,) = oracle.Runner((tnc.contract(),), runner, "float32", {}).forward({})
    assert np.shape(value) == ()
    assert value == 1


@pytest.mark.parametrize("runner", oracle.RUNNERS)
def test_the_check_fails(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = oracle.Runner.gradients

    def wrong(self, *args):  # type: ignore[no-untyped-def]
        values, found = right(self, *args)
        return values, {name: array.conj() for name, array in found.items()}

    monkeypatch.setattr(oracle.Runner, "gradients", wrong)
    with pytest.raises(AssertionError, match="gradient of"):
        test_forward_and_gradients(runner, "complex64")


def test_the_oracle_is_einsum() -> None:
    known = CORPUS["diagonal in a product"]
    arrays = arrays_of(known)
    terms = [(arrays[n], labels) for n, labels in known.terms]
    double = [array.astype(float) for array, _ in terms]
    assert np.allclose(einsum(known, terms, known.out), np.einsum("iij,jk->ik", *double))


def test_more_than_52_are_more_than_52() -> None:
    labels = {label for _, wires in CORPUS["more than 52 indices"].terms for label in wires}
    assert len(labels) > 52
