"""torch's programs: variables in the shapes that save views."""

from __future__ import annotations

import torch

import tncompiler as tnc
from tncompiler.backends.torch.emit import emit
from tncompiler.backends.torch.views import Shape, with_fewer_views


def test_a_product_that_is_read_as_it_is_made_stays_so() -> None:
    lines = [
        "t1 = torch.mm(a, b).reshape(4, 8, 2)  # (i, j, k), t1.reshape(32, 2)",
        "t2 = torch.mm(t1.reshape(32, 2), c, out=left(t1, 32, 5)).reshape(4, 8, 5)  # …",
        "del t1",
    ]
    shapes = {"t1": Shape("32, 2", "4, 8, 2"), "t2": Shape("32, 5", "4, 8, 5")}
    assert with_fewer_views(lines, shapes, ["t2"]) == [
        "t1 = torch.mm(a, b)  # (i, j, k), t1.reshape(32, 2)",
        "t2 = torch.mm(t1, c, out=left(t1, 32, 5)).reshape(4, 8, 5)  # …",
        "del t1",
    ]


def test_what_most_readers_ask_for_is_held() -> None:
    lines = [
        "t1 = torch.mm(a, b).reshape(4, 8, 2)",
        "t2 = torch.mm(t1.reshape(4, 16).t(), t1.reshape(4, 16))",
        "for start in range(2):",
        "    t3 = torch.mm(t1.reshape(4, 16), c)",
        "t4 = torch.mm(t1.reshape(32, 2), t11.reshape(4, 16))",
    ]
    assert with_fewer_views(lines, {"t1": Shape("32, 2", "4, 8, 2")}, ["t4"]) == [
        "t1 = torch.mm(a, b).reshape(4, 16)",
        "t2 = torch.mm(t1.t(), t1)",
        "for start in range(2):",
        "    t3 = torch.mm(t1, c)",
        "t4 = torch.mm(t1.reshape(32, 2), t11.reshape(4, 16))",
    ]


def test_an_expression_is_reshaped_as_a_whole() -> None:
    lines = ["t1 = a * b[:, None]", "t2 = f(t1.reshape(6), t1.reshape(6))"]
    assert with_fewer_views(lines, {"t1": Shape("2, 3", "2, 3")}, ["t2"]) == [
        "t1 = (a * b[:, None]).reshape(6)",
        "t2 = f(t1, t1)",
    ]


def test_other_readers_and_results_keep_the_shape_of_the_value() -> None:
    shapes = {"t1": Shape("32, 2", "4, 8, 2")}
    made = "t1 = torch.mm(a, b).reshape(4, 8, 2)"
    for reader, results in (
        ("t2 = t1.permute(2, 0, 1) + t1.reshape(32, 2)", ["t2"]),
        ("t2 = block(t1, t1.reshape(32, 2))", ["t2"]),
        ("t2 = torch.mm(t1.reshape(32, 2), c)", ["t1", "t2"]),
        ("t2 = torch.mm(t1.reshape((n + 1) * 2, 2), c)", ["t2"]),
    ):
        assert with_fewer_views([made, reader], shapes, results) == [made, reader]


def test_a_layer_has_fewer_views_and_gives_the_same() -> None:
    b, i, j, k, l, r, s = tnc.indices("b i j k l r s", b=64, i=4, j=6, k=5, l=7, r=3, s=2)
    x = tnc.input("x", b, i, j)
    cores = tnc.param("U", i, r), tnc.param("V", j, s), tnc.param("W", r, s, k, l)
    module = tnc.compile(tnc.contract(x, *cores, out=(b, k, l)), backend="torch", seed=0)
    data = torch.randn(64, 4, 6)
    exact = torch.einsum("bij,ir,js,rskl->bkl", data, *(module.U, module.V, module.W))
    torch.testing.assert_close(module(data), exact)
    plain = emit(module.compilation.scheduled(("float32",) * 5, {})[0], "forward").text
    assert module.source().count(".reshape(") < plain.count(".reshape(")
