"""Pictures: every tensor, bond, leg and hyperedge is there once, and labels keep apart."""

import sys
from collections import Counter
from io import BytesIO
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import tncompiler as tnc
from tests.networks_to_see import chain
from tncompiler.draw.tree import tree_of
from tncompiler.function import NumpyFunction
from tncompiler.ir.network import networks_of

pytest.importorskip("matplotlib")

b, i, j, k, o, p, q, r, s = tnc.indices("b i j k o p q r s", i=8, j=9, k=6, o=4, p=3, q=5, r=2, s=7)
X = tnc.input("x", b, i, j, k)
TT = tnc.contract(
    X, tnc.param("G1", i, o, r), tnc.param("G2", r, j, p, s), tnc.param("G3", s, k, q),
    out=(b, o, p, q),
)  # fmt: skip
CP = tnc.contract(tnc.param("A", i, r), tnc.param("B", j, r), tnc.param("C", k, r), out=(i, j, k))
RING = tnc.contract(
    tnc.param("R1", o, i, p), tnc.param("R2", p, j, q), tnc.param("R3", q, k, r),
    tnc.param("R4", r, s, o), out=(i, j, k, s),
)  # fmt: skip
TUCKER = tnc.contract(
    X, tnc.param("U", i, o), tnc.param("V", j, p), tnc.param("W", k, q),
    tnc.param("core", o, p, q, r), out=(b, r),
)  # fmt: skip
# expression, then how many tensors, bonds, legs, dots and spokes
CASES: dict[str, tuple[Any, tuple[int, int, int, int, int]]] = {
    "tt": (TT, (4, 5, 4, 0, 0)),
    "cp": (CP, (3, 0, 3, 1, 3)),
    "ring": (RING, (4, 4, 4, 0, 0)),
    "tucker": (TUCKER, (5, 6, 2, 0, 0)),
    "scalar": (tnc.contract(tnc.input("u", i), tnc.input("v", i), out=()), (2, 1, 0, 0, 0)),
    "apart": (tnc.contract(tnc.input("u", i), tnc.input("v", j), out=(i, j)), (2, 0, 2, 0, 0)),
    "twice": (tnc.contract(tnc.input("u", i, j), tnc.input("v", i, j), out=()), (2, 2, 0, 0, 0)),
    "sum": (tnc.contract(tnc.input("u", i, j), out=(j,)), (1, 0, 1, 1, 1)),
    "two": (tnc.contract(tnc.relu(CP), tnc.param("D", i, o), out=(o, j, k)), (5, 1, 6, 1, 3)),
}


def compiled(expression: Any) -> NumpyFunction:
    return tnc.compile(expression, framework="numpy", seed=0)


def roles(ax: Any) -> Counter[str]:
    return Counter(artist.get_gid() for artist in (*ax.patches, *ax.lines, *ax.texts))


@pytest.mark.parametrize("case", CASES)
def test_everything_is_drawn_once(case: str) -> None:
    expression, wanted = CASES[case]
    found = roles(compiled(expression).draw())
    assert tuple(found[role] for role in ("tensor", "bond", "leg", "dot", "spoke")) == wanted


@pytest.mark.parametrize("what", ["network", "tree"])
@pytest.mark.parametrize("case", CASES)
def test_no_text_touches_another_or_is_cut_off(case: str, what: str) -> None:
    ax = compiled(CASES[case][0]).draw(what)
    assert overlaps(ax) == []
    page = ax.figure.bbox
    for text in ax.texts:
        box = text.get_window_extent()
        assert page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1), text


def overlaps(ax: Any) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap: labels, titles and those of the legend."""
    from matplotlib.text import Text

    ax.figure.savefig(BytesIO(), format="png")
    legend = ax.get_legend()
    texts = [
        *ax.texts,
        ax.title,
        ax._left_title,
        ax._right_title,
        *(legend.findobj(Text) if legend else ()),
    ]
    shown = dict.fromkeys(text for text in texts if text.get_text())
    boxes = [(t.get_text(), Text.get_window_extent(t)) for t in shown]  # without arrows
    return [(a, b) for (a, box), (b, other) in combinations(boxes, 2) if box.overlaps(other)]


def test_overlaps_finds_one() -> None:
    ax = compiled(TT).draw()
    ax.text(*ax.texts[0].get_position(), "over it")
    assert len(overlaps(ax)) == 1
    chart = compiled(TT).draw("memory")
    chart.set_title("a title that runs on and on, over all that the legend says", loc="center")
    assert overlaps(chart)


def test_lines_are_wider_for_bigger_sizes() -> None:
    ax = compiled(TT).draw(sizes={b: 1024})
    assert "b:1024" in {text.get_text() for text in ax.texts}
    legs = [line.get_linewidth() for line in ax.lines if line.get_gid() == "leg"]
    assert max(legs) > 1.5 * min(legs)


def test_the_same_twice() -> None:
    first, second = (compiled(TUCKER).draw() for _ in range(2))
    assert [t.get_position() for t in first.texts] == [t.get_position() for t in second.texts]


def test_given_axes_are_used() -> None:
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert compiled(TT).draw(ax=ax) is ax


def test_tree_has_a_box_a_step_and_the_flops_of_the_plan() -> None:
    f = compiled(TT)
    assert roles(f.draw("tree"))["step"] == 3
    compilation, nominal = f.compilation, f.compilation.nominal({})
    plan = compilation.plan(nominal)
    (network,) = networks_of(compilation.logical(compilation.default_dtypes("float32")))
    nodes = tree_of(network, plan.networks[0])
    flops = sum(node.flops.evaluate(nominal) for node in nodes)
    assert flops == f.cost({b: 128}).flops


def test_a_tree_of_many_tensors_lies_on_its_side_and_fits_a_page() -> None:
    ax = compiled(chain(20)).draw("tree")
    assert roles(ax)["step"] == 19
    assert overlaps(ax) == []
    height = ax.figure.get_size_inches()[1]
    assert height == pytest.approx(20 * 0.56, abs=1.5)
    standing = compiled(chain(6)).draw("tree").figure.get_size_inches()
    assert standing[0] == pytest.approx(6 * 1.5, abs=1.5)


def test_only_the_first_six_networks() -> None:
    value = tnc.input("x", i)
    for number in range(8):
        weight = tnc.param(f"W{number}", i, tnc.Index("next", 8))
        value = tnc.relu(tnc.contract(value, weight, out=weight.indices[1:]))
        value = value.rename({weight.indices[1]: i})
    for what in ("network", "tree"):
        ax = compiled(value).draw(what)
        assert "and 2 more networks" in {text.get_text() for text in ax.texts}


@pytest.mark.parametrize("what", ["network", "tree"])
def test_nothing_to_draw(what: str) -> None:
    ax = compiled(tnc.relu(tnc.input("x", b))).draw(what)
    assert [text.get_text() for text in ax.texts] == ["no tensor is contracted"]


@pytest.mark.parametrize("what", ["network", "tree"])
def test_size_zero(what: str) -> None:
    compiled(TT).draw(what, sizes={b: 0})


def test_unknown_picture() -> None:
    with pytest.raises(tnc.TncError, match="no picture 'cat'"):
        compiled(TT).draw("cat")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(tnc.TncError, match=r"pip install tncompiler\[draw\]"):
        compiled(TT).draw()


# Kinds, shapes ------------------------------------------------------------------------------------


def test_input_parameter_and_constant_are_told_apart() -> None:
    value = np.ones((9, 6), "float32")
    expression = tnc.contract(
        tnc.input("x", i, j), tnc.param("W", i, k), tnc.constant("c", j, k, value=value), out=()
    )
    ax = compiled(expression).draw()
    found = [patch.get_facecolor() for patch in ax.patches if patch.get_gid() == "tensor"]
    assert len(set(found)) == 3
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == ["input", "parameter", "constant"]


def places(expression: Any) -> dict[str, np.ndarray]:
    """Where each tensor's name stands."""
    ax = compiled(expression).draw(layout="own")
    return {t.get_text(): np.array(t.get_position()) for t in ax.texts if t.get_gid() == "name"}


def test_a_ring_is_round_and_a_row_straight() -> None:
    ring = np.array(list(places(RING).values()))
    radii = np.linalg.norm(ring - ring.mean(axis=0), axis=1)
    assert np.ptp(radii) < 1e-6
    row = places(chain(6))
    assert len({float(y) for _, y in row.values()}) == 1
    assert [row[f"A{n}"][0] for n in range(6)] in (
        sorted(x for x, _ in row.values()),
        sorted((x for x, _ in row.values()), reverse=True),
    )


def test_tensors_around_a_copy_dot_stand_evenly() -> None:
    points = np.array(list(places(CP).values()))
    sides = [np.linalg.norm(p - q) for p, q in combinations(points, 2)]
    assert np.ptp(sides) < 1e-6


def test_a_row_between_two_hubs() -> None:
    """As a block term: a core above, the copy dot of the blocks below."""
    block = tnc.formats.BlockTerm(rank=2).network((4, 8, 4), (8, 4, 8))
    found = places(block)
    core = found.pop("C")
    assert len({float(y) for _, y in found.values()}) == 1
    assert core[1] > max(y for _, y in found.values())


def test_a_weight_on_its_own_is_drawn() -> None:
    ax = compiled(tnc.param("W", i, j)).draw()
    assert roles(ax)["tensor"] == 1 and roles(ax)["leg"] == 2
    assert overlaps(ax) == []
