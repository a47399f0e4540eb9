"""The plan explorer: costs are those of `cost`, nodes those of the plan, pages small and safe."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import pytest
import sympy

import tncompiler as tnc
from tests.networks_to_see import CP, LAYER, chain, hostile, lattice
from tncompiler.draw.explorer import MOST_BYTES, explorer_page, page_data
from tncompiler.draw.explorer.formulas import Formulas
from tncompiler.draw.explorer.steps import lines_of
from tncompiler.function import NumpyFunction
from tncompiler.ir.program import Permute, Step, Value
from tncompiler.ir.sizes import Terms, evaluate

SIZES = (1, 7, 128, 5000)


def compiled(expression: Any, **options: Any) -> NumpyFunction:
    return tnc.compile(expression, framework="numpy", seed=0, **options)


# Python's reading of what formulas.js reads -------------------------------------------------------


def size_of(formula: Any, sizes: Sequence[int]) -> int:
    if isinstance(formula, int):
        return formula
    operator, *parts = formula
    if operator == "size":
        return sizes[parts[0]]
    values = [size_of(part, sizes) for part in parts]
    return {
        "+": lambda: sum(values),
        "*": lambda: prod(values),
        "//": lambda: values[0] // values[1],
        "**": lambda: values[0] ** values[1],
        "min": lambda: min(values),
    }[operator]()


def terms_of(terms: Any, sizes: Sequence[int]) -> int:
    total = 0
    for coefficient, *factors in terms:
        for factor in factors:
            coefficient *= size_of(factor, sizes)
        total += coefficient
    return total


def view_at(mode: Any, size: int) -> Any:
    return next(view for view in mode["views"] if view["high"] is None or size <= view["high"])


def peak_of(view: Any, sizes: Sequence[int]) -> int:
    most = 0
    for part in view["parts"]:
        live = terms_of(part["held"], sizes)
        for step in part["steps"]:
            if step["depth"]:
                continue
            live += terms_of(step["makes"], sizes)
            beside = max([0, *(terms_of(terms, sizes) for terms in step["beside"])])
            most = max(most, live + beside)
            live -= terms_of(step["frees"], sizes)
    return most


# Costs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layer() -> tuple[NumpyFunction, Any]:
    network = compiled(LAYER)
    return network, page_data(network)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", [0, 1])
def test_costs_at_every_size_are_those_of_cost(layer: Any, size: int, mode: int) -> None:
    network, data = layer
    view = view_at(data["modes"][mode], size)
    cost = network.cost({"b": size}, ("forward", "step")[mode])
    steps = [step for part in view["parts"] for step in part["steps"]]
    assert sum(terms_of(step["flops"], [size]) for step in steps) == cost.flops
    assert sum(terms_of(step["elementwise"], [size]) for step in steps) == cost.elementwise
    assert sum(terms_of(step["read"], [size]) for step in steps) == cost.bytes_read
    assert sum(terms_of(step["written"], [size]) for step in steps) == cost.bytes_written
    assert peak_of(view, [size]) == cost.peak_bytes


def test_ranges_are_those_of_the_family(layer: Any) -> None:
    network, data = layer
    family = network.plans(symbol="b")
    views = data["modes"][0]["views"]
    assert [view["low"] for view in views] == [member.low for member in family.members]
    assert views[-1]["high"] is None


@pytest.mark.parametrize("scan", [False, True])
def test_costs_of_loops(scan: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan's steps and a sliced network's add up as `cost` says, and so does the peak."""
    t, n, m = tnc.indices("t n m", n=4, m=4)
    if scan:
        weight, inputs = tnc.param("W", n, m), tnc.input("x", t, n)
        cell = lambda state, x: (tnc.tanh((state + x) @ weight).rename({m: n}),) * 2  # noqa: E731
        network = compiled(tnc.scan(cell, tnc.input("h", n), inputs, over=t)[1])
        size = 9
    else:
        network = compiled(LAYER, plan=tnc.PlanOptions(memory_limit="400kB"))
        size = 32
    monkeypatch.setattr("tncompiler.draw.explorer.data.HIGH", 40)
    data = page_data(network, {symbol: size for symbol in network.compilation.free_symbols})
    view = view_at(data["modes"][0], size)
    steps = view["parts"][0]["steps"]
    cost = network.cost({symbol: size for symbol in network.compilation.free_symbols})
    assert any(step["depth"] for step in steps)
    assert sum(terms_of(step["flops"], [size]) for step in steps) == cost.flops
    assert peak_of(view, [size]) == cost.peak_bytes


def test_formulas_are_read_as_they_are_written() -> None:
    b, c = sympy.symbols("b c", integer=True, positive=True)
    formulas = Formulas([b, c], {})
    for size in (b, 3 * b + c, b**2 * c, sympy.floor((b + 2) / 3), sympy.Integer(5)):
        assert size_of(formulas.size(size), [10, 4]) == evaluate(size, {b: 10, c: 4})
    assert terms_of(formulas.terms(Terms.of(6, (b, c))), [10, 4]) == 240
    assert formulas.terms(Terms.of(10**400, (b,)))[0][0] < 1.8e308


# Trees, steps and source --------------------------------------------------------------------------


@pytest.mark.parametrize("expression", [LAYER, CP, chain(12), lattice(3, 4)])
def test_every_contraction_of_the_tree_is_made_by_a_step(expression: Any) -> None:
    data = page_data(compiled(expression))
    for view in data["modes"][0]["views"]:
        made = {tuple(node) for step in view["parts"][0]["steps"] for node in step["nodes"]}
        for which, tree in enumerate(view["trees"]):
            wanted = {(which, k) for k, node in enumerate(tree["nodes"]) if node["parts"]}
            assert wanted <= made


def test_saved_values_and_gradients_are_marked(layer: Any) -> None:
    _, data = layer
    forward, backward = view_at(data["modes"][1], 128)["parts"]
    assert any(step["mark"] == "saved" for step in forward["steps"])
    found = {leaf for step in backward["steps"] for leaf in step["gradient"]}
    assert found == {"x", "G1", "G2", "bias"}


def test_lines_are_those_that_assign(layer: Any) -> None:
    _, data = layer
    for mode in data["modes"]:
        for part in mode["views"][0]["parts"]:
            lines = part["source"].splitlines()
            for step in part["steps"]:
                name = step["text"].split("(")[0].split(" =")[0]
                first, last = step["lines"]
                assert re.search(rf"\b{name}\b", "\n".join(lines[first - 1 : last]))


def test_a_view_shows_the_lines_of_its_reader() -> None:
    a, b, c = (Value(name, (2, 3), "float32", ("i", "j")) for name in "abc")
    steps = [Step(b, Permute((1, 0)), ("a",)), Step(c, Permute((1, 0)), ("b",))]
    source = "def forward(a):\n    c = (\n        a.T.T)\n    return c,\n"
    assert lines_of(source, steps) == [(2, 3), (2, 3)]
    assert lines_of("def forward(a):\n    return a,\n", steps) == [None, None]
    assert a.name == "a"


# Pages --------------------------------------------------------------------------------------------


def unpacked(page: str) -> Any:
    found = re.search(r'id="data">([^<]*)<', page)
    assert found is not None
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def test_the_page_holds_the_data(layer: Any) -> None:
    _, data = layer
    assert unpacked(explorer_page(data)) == json.loads(json.dumps(data))


def test_no_name_reaches_the_markup(tmp_path: Path) -> None:
    page = compiled(hostile()).to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img" not in page and "</script><b>" not in page and "a'b" not in page
    assert "<img src=x onerror=alert(1)>" in json.dumps(unpacked(page))


def test_the_page_asks_for_nothing(layer: Any) -> None:
    page = explorer_page(layer[1])
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_same_twice() -> None:
    assert explorer_page(page_data(compiled(LAYER))) == explorer_page(page_data(compiled(LAYER)))


@pytest.mark.parametrize("expression", [chain(3), LAYER])
def test_small_pages(expression: Any, tmp_path: Path) -> None:
    assert compiled(expression).to_html(tmp_path / "page.html").stat().st_size < 200_000


@pytest.mark.slow
def test_two_thousand_tensors_are_one_page(tmp_path: Path) -> None:
    path = compiled(chain(2000)).to_html(tmp_path / "page.html")
    assert path.stat().st_size < MOST_BYTES


def test_too_large_a_page_is_refused(
    layer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tncompiler.draw.explorer.MOST_BYTES", 1000)
    with pytest.raises(tnc.TncError, match="bytes, more than 1,000"):
        layer[0].to_html(tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("size", [0, 1])
def test_sizes_zero_and_one(size: int) -> None:
    data = page_data(compiled(LAYER), {"b": size})
    assert data["symbols"][0]["nominal"] == size


def test_nothing_to_differentiate() -> None:
    (i,) = tnc.indices("i")
    data = page_data(compiled(tnc.contract(tnc.input("n", i, dtype="int64"), out=())))
    assert [mode["name"] for mode in data["modes"]] == ["inference"]


def test_an_output_that_is_an_input() -> None:
    (i,) = tnc.indices("i")
    data = page_data(compiled(tnc.input("x", i)))
    assert data["modes"][0]["views"][0]["parts"][0]["steps"] == []
