"""Graphviz's layouts: used where it is installed and answers, and never missed where it is not."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

import tncompiler as tnc
from tests.networks_to_see import chain, hostile
from tests.test_draw import compiled, overlaps
from tncompiler.draw.graphviz import graphviz_places, is_installed
from tncompiler.draw.layout import Layout, lay_out
from tncompiler.draw.stress import _crossings

pytest.importorskip("matplotlib")

CUBIC = nx.random_regular_graph(3, 10, seed=1)
HEXAGONS = nx.convert_node_labels_to_integers(nx.hexagonal_lattice_graph(7, 7))  # 126 nodes


def network(graph: nx.Graph) -> tnc.Expr:
    """A tensor for each node, a bond for each edge."""
    bonds = {frozenset(edge): tnc.Index(f"r{k}", 4) for k, edge in enumerate(graph.edges)}
    tensors = [
        tnc.param(f"T{node}", *(bonds[frozenset(edge)] for edge in graph.edges(node)))
        for node in graph
    ]
    return tnc.contract(*tensors, out=())


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are looked for; empty as yet."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(folder: Path, script: str) -> None:
    """Make both programs of Graphviz this script; what they read is kept in `asked`."""
    for name in ("neato", "sfdp"):
        path = folder / name
        path.write_text(f"#!/bin/bash\n/bin/cat > {folder}/asked\n{script}\n")
        path.chmod(0o755)


def same(one: Layout, other: Layout) -> bool:
    return dict(one.positions) == dict(other.positions) and dict(one.legs) == dict(other.legs)


# Without it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [CUBIC, HEXAGONS])
def test_without_it_layouts_are_our_own(graph: nx.Graph, programs: Path) -> None:
    assert not is_installed() and graphviz_places(graph, list(graph)) is None
    assert same(lay_out(graph), lay_out(graph, way="own"))


def test_what_is_not_installed_cannot_be_asked_for(programs: Path) -> None:
    with pytest.raises(tnc.TncError, match="apt-get install graphviz"):
        compiled(network(CUBIC)).draw(layout="graphviz")


def test_an_unknown_layout() -> None:
    with pytest.raises(tnc.TncError, match="choose one of auto, own, graphviz"):
        compiled(network(CUBIC)).draw(layout="circular")


BROKEN = {
    "it fails": "exit 3",
    "it says nothing": "true",
    "it says something else": "echo node 0 here there",
    "it forgets nodes": "echo node 0 1.0 2.0; echo stop",
    "it has a node too many": "for k in $(seq 0 200); do echo node $k 1.0 2.0; done",
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("graph", [CUBIC, HEXAGONS])
def test_a_broken_one_is_passed_over(
    case: str, graph: nx.Graph, programs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(programs, BROKEN[case])
    with caplog.at_level(logging.DEBUG, "tncompiler.draw"):
        assert same(lay_out(graph), lay_out(graph, way="own"))
    assert "is not used" in caplog.text


# With one that says what we want ------------------------------------------------------------------


def answer(points: np.ndarray) -> str:
    lines = [f"echo node {k} {x:.6f} {y:.6f} 0.3 0.3" for k, (x, y) in enumerate(points)]
    return "\n".join(["echo graph 1 5 5", *lines, "echo stop"])


def test_what_it_says_is_where_tensors_stand(programs: Path) -> None:
    turns = 2 * np.pi * np.arange(10) / 10
    install(programs, answer(4 * np.stack([np.cos(turns), np.sin(turns)], axis=1)))
    layout = lay_out(CUBIC, way="graphviz")
    places = np.array([layout.positions[node] for node in CUBIC])
    radii = np.linalg.norm(places - places.mean(axis=0), axis=1)
    assert np.ptp(radii) < 1e-3


def test_places_with_crossings_lose_against_ours(programs: Path) -> None:
    install(programs, answer(np.random.default_rng(0).standard_normal((10, 2))))
    assert same(lay_out(CUBIC), lay_out(CUBIC, way="own"))


def test_no_name_of_a_users_reaches_it(programs: Path) -> None:
    install(programs, answer(np.eye(2)))
    compiled(hostile()).draw(layout="graphviz")
    asked = (programs / "asked").read_text()
    assert "0 -- 1" in asked
    assert not any(letter in asked for letter in "<>&'\"\\/")


# With the real one --------------------------------------------------------------------------------


@pytest.fixture
def graphviz() -> None:
    """Graphviz; TNC_GRAPHVIZ=1, which .ci/run sets, makes its absence a failure."""
    if not is_installed():
        if os.environ.get("TNC_GRAPHVIZ") == "1":
            pytest.fail("graphviz is not installed, and TNC_GRAPHVIZ=1 demands it")
        pytest.skip("graphviz is not installed")


def lopsidedness(layout: Layout, graph: nx.Graph) -> float:
    """How far the three lines of a node are from thirds of a turn, in the mean."""
    far = []
    for node in graph:
        ends = [
            np.subtract(layout.positions[other], layout.positions[node]) for other in graph[node]
        ]
        turns = sorted(float(np.arctan2(y, x)) for x, y in ends)
        gaps = np.diff([*turns, turns[0] + 2 * np.pi])
        far += [float(gaps.std())] if len(gaps) == 3 else []
    return float(np.mean(far))


@pytest.mark.usefixtures("graphviz")
def test_hexagons_are_hexagons_to_graphviz() -> None:
    own, by_graphviz = lay_out(HEXAGONS, way="own"), lay_out(HEXAGONS)
    assert lopsidedness(by_graphviz, HEXAGONS) < 0.8 * lopsidedness(own, HEXAGONS)


@pytest.mark.usefixtures("graphviz")
@pytest.mark.parametrize("seed", range(4))
def test_lines_never_cross_more_often_with_it(seed: int) -> None:
    graph = nx.random_regular_graph(3, 12, seed=seed)

    def crossings(layout: Layout) -> int:
        return _crossings(np.array([layout.positions[n] for n in graph]), list(graph.edges))

    graph = nx.relabel_nodes(graph, {node: k for k, node in enumerate(graph)})
    assert crossings(lay_out(graph)) <= crossings(lay_out(graph, way="own"))


@pytest.mark.usefixtures("graphviz")
@pytest.mark.parametrize("expression", [network(CUBIC), chain(6)])
def test_pictures_by_graphviz(expression: tnc.Expr) -> None:
    axes = [compiled(expression).draw(layout="graphviz") for _ in range(2)]
    assert overlaps(axes[0]) == []
    first, second = ([text.get_position() for text in ax.texts] for ax in axes)
    assert first == second
