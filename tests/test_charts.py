"""Charts: their numbers are those of `cost`, of the family and of the machine; texts keep apart."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import pytest

import tncompiler as tnc
from tests.networks_to_see import LAYER, chain, hostile, lattice
from tests.test_draw import overlaps, roles
from tncompiler.draw.charts import (
    family_curves,
    memory_trace,
    roofline_spots,
    roofs_of,
)
from tncompiler.draw.layout import SPACING, lay_out
from tncompiler.draw.regular import as_lattice, as_tree
from tncompiler.function import NumpyFunction
from tncompiler.planning.machine import load_machine

pytest.importorskip("matplotlib")

CHARTS = ("memory", "roofline", "family")


def compiled(expression: Any, **options: Any) -> NumpyFunction:
    return tnc.compile(expression, framework="numpy", seed=0, **options)


@pytest.fixture(scope="module")
def layer() -> NumpyFunction:
    return compiled(LAYER)


@pytest.mark.parametrize("what", CHARTS)
def test_charts_take_and_return_axes(layer: NumpyFunction, what: str) -> None:
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert layer.draw(what, ax=ax) is ax
    assert layer.draw(what).figure is not ax.figure


@pytest.mark.parametrize("what", CHARTS)
def test_no_text_touches_another(layer: NumpyFunction, what: str) -> None:
    assert overlaps(layer.draw(what)) == []


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 128, 3000])
def test_the_highest_moment_is_the_peak(layer: NumpyFunction, size: int) -> None:
    trace = memory_trace(layer, {"b": size})
    assert max(trace.live) == layer.cost({"b": size}, "step").peak_bytes
    assert all(held <= live for held, live in zip(trace.held, trace.live, strict=True))
    assert 0 < trace.forward < len(trace.live)


def test_recomputed_values_are_marked() -> None:
    network = compiled(LAYER, plan=tnc.PlanOptions(recompute="always"))
    trace = memory_trace(network)
    assert trace.recomputed and min(trace.recomputed) >= trace.forward
    assert "computed again" in legend(network.draw("memory"))


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_memory_without_gradients() -> None:
    (i,) = tnc.indices("i")
    network = compiled(tnc.input("n", i, dtype="int64") * 2)
    trace = memory_trace(network)
    assert trace.forward == len(trace.live)
    network.draw("memory")


# Roofline -----------------------------------------------------------------------------------------


def test_every_working_step_is_a_spot_under_the_roof(layer: NumpyFunction) -> None:
    spots = roofline_spots(layer, {"b": 256}, "step")
    cost = layer.cost({"b": 256}, "step")
    assert sum(spot.work for spot in spots if spot.is_product) == cost.flops
    assert sum(spot.moved for spot in spots) == cost.bytes_read + cost.bytes_written
    roofs = roofs_of(load_machine("reference").planning)
    assert all(spot.work / spot.us <= roofs.flops * 1.02 for spot in spots)


def test_the_roof_of_a_gpu_is_its_published_figure() -> None:
    rates = load_machine("h100").planning
    roofs = roofs_of(rates)
    assert roofs.bytes_far == pytest.approx(rates.bytes_per_us)
    assert 0.5 < roofs.flops / (rates.teraflops["float32"] * 1e6) <= 1.0


# Families -----------------------------------------------------------------------------------------


def test_curves_cross_where_the_family_says(layer: NumpyFunction) -> None:
    """To an eighth, as axes are placed by time from 50 µs on only when orders are compared."""
    (symbol,) = layer.compilation.free_symbols
    family = layer.plans(1, 4096)
    curves = [dict(points) for points in family_curves(layer, family, symbol)]
    assert len(curves) == len(family.members) > 1
    for number, member in enumerate(family.members):
        for size, _ in member.curve:
            assert curves[number][size] <= 1.12 * min(curve[size] for curve in curves)


def test_crossovers_are_lines(layer: NumpyFunction) -> None:
    ax = layer.draw("family", low=1, high=4096)
    family = layer.plans(1, 4096)
    lines = [line.get_xdata() for line in ax.lines if line.get_linestyle() == ":"]
    vertical = [float(places[0]) for places in lines]
    assert tuple(vertical) == family.crossovers


# Gradient networks --------------------------------------------------------------------------------


def test_a_tensor_taken_out_leaves_a_hole(layer: NumpyFunction) -> None:
    whole, rest = layer.draw(), layer.draw(without="G1")
    assert roles(whole) == roles(rest)
    holes = [circle for circle in rest.patches if circle.get_linestyle() != "solid"]
    assert len(holes) == 1
    with pytest.raises(tnc.TncError, match="no network has a tensor 'Q'"):
        layer.draw(without="Q")


# Layouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 3), (5, 4)])
def test_lattices_are_rectangles(rows: int, columns: int) -> None:
    graph = nx.convert_node_labels_to_integers(nx.grid_2d_graph(rows, columns))
    places = as_lattice(graph, list(graph))
    assert len(set(places.values())) == rows * columns
    layout = lay_out(graph)
    lengths = {
        round(np.hypot(*np.subtract(layout.positions[a], layout.positions[b])), 6)
        for a, b in graph.edges
    }
    assert lengths == {SPACING}


@pytest.mark.parametrize(
    "graph", [nx.cycle_graph(6), nx.path_graph(5), nx.cubical_graph(), nx.ladder_graph(4)]
)
def test_only_lattices_are_lattices(graph: nx.Graph) -> None:
    is_ladder = graph.number_of_edges() == 10
    assert bool(as_lattice(graph, list(graph))) == is_ladder


def test_trees_hang_from_their_middle() -> None:
    graph = nx.balanced_tree(2, 3)
    places = as_tree(graph, list(graph), None)
    assert places[0][1] == 0 and {places[k][1] for k in range(7, 15)} == {3}
    assert len(set(places.values())) == 15
    assert as_tree(nx.cycle_graph(4), list(range(4)), None) == {}


def test_large_networks_are_laid_out_apart() -> None:
    graph = nx.random_regular_graph(3, 300, seed=1)
    layout = lay_out(graph)
    points = np.array([layout.positions[node] for node in graph])
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2) + 9 * np.eye(len(points))
    assert np.median(gaps.min(axis=1)) > 0.4 * SPACING


# Notebooks ----------------------------------------------------------------------------------------


def test_notebooks_show_svg_and_html(layer: NumpyFunction) -> None:
    assert (layer._repr_svg_() or "").count("<svg") == 1
    assert layer._repr_svg_() == layer._repr_svg_()
    assert "G1" in (LAYER._repr_svg_() or "")
    assert "<svg" in (tnc.formats.Tucker(rank=2)._repr_svg_() or "")
    assert "<svg" in (tnc.formats.Dense()._repr_svg_() or "")
    assert "G1" in (tnc.compile(LAYER)._repr_svg_() or "")  # a torch module
    assert "<table>" in layer.plan()._repr_html_()
    assert "<table>" in layer.plans(1, 64)._repr_html_()


def test_notebooks_print_what_is_too_large_or_no_picture() -> None:
    assert compiled(chain(100))._repr_svg_() is None
    assert tnc.relu(tnc.input("x", *tnc.indices("i")))._repr_svg_() is None
    assert tnc.formats.TT()._repr_svg_() is None


def test_html_is_escaped() -> None:
    i = tnc.Index("<b>", 3)
    plan = tnc.plan(tnc.contract(tnc.input("x", i), tnc.input("y", i), out=()))
    assert "<b>" not in plan._repr_html_() and "&lt;b&gt;" in plan._repr_html_()


@pytest.mark.parametrize("what", ["network", *CHARTS])
def test_pictures_show_themselves(layer: NumpyFunction, what: str) -> None:
    """In a notebook without pyplot; given Axes are shown by whoever made them."""
    from matplotlib.figure import Figure

    ax = layer.draw(what)
    assert ax._repr_svg_().count("<svg") == ax.figure._repr_svg_().count("<svg") == 1
    given = Figure().add_subplot()
    assert not hasattr(layer.draw(what, ax=given), "_repr_svg_")


def test_svg_is_escaped() -> None:
    drawn = hostile()._repr_svg_() or ""
    ElementTree.fromstring(drawn)
    assert "<img" not in drawn and "</script>" not in drawn and "&lt;img" in drawn


def test_a_peps_is_drawn_as_a_lattice() -> None:
    ax = compiled(lattice(3, 3)).draw()
    assert roles(ax)["tensor"] == 9
    assert overlaps(ax) == []
