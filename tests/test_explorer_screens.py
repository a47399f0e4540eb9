"""What the plan explorer looks like: screenshots against stored ones, and against each other.

The pages show stored data, so that only the page itself can change them: `make golden` takes data
and references anew. Fonts are matplotlib's and the viewport is fixed, see tests/browser.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import tncompiler as tnc
from tests.browser import PHONE, WIDE, Page
from tests.conftest import ROOT
from tests.networks_to_see import LAYER, lattice
from tests.screens import COARSE, coarse, differences, differing, outside, pixels, strayed, within
from tncompiler.draw.explorer import explorer_page, page_data

STORED = ROOT / "tests" / "golden" / "screens"
NETWORKS = {"layer": LAYER, "lattice": lattice(3, 4)}
# what shows a step; everything else must stay as it is
_STEPPING = "stepping network-picture tree-picture source now memory table"
STEPPING = tuple(f"#{name}" for name in _STEPPING.split())
PANELS = {
    "header": "header", "nav": "nav", "network": "#network-picture", "tree": "#tree-picture",
    "source": "#source", "now": "#now", "memory": "#memory", "steps": "#table",
}  # fmt: skip
MOST = 12  # coarse pixels of a panel that may differ: edges; an outline alone is some 30
CONTROLS = 80  # of the panel with the controls, which each version of the browser draws anew


# The comparison itself ----------------------------------------------------------------------------


def png(side: int, left: int = 0) -> bytes:
    """A black picture with a white square."""
    image, held = Image.new("RGB", (80, 80)), BytesIO()
    if side:
        ImageDraw.Draw(image).rectangle((left, 0, left + side - 1, side - 1), "white")
    image.save(held, "png")
    return held.getvalue()


def test_a_square_is_seen_where_it_is() -> None:
    nothing, square = png(0), png(8, left=40)
    assert differing(square, square) == 0 and differing(nothing, square) == 64
    found = differences(nothing, square)
    assert within(found, (40, 0, 48, 8)) == 64 and within(found, (0, 0, 40, 80)) == 0
    assert outside(found, [(0, 0, 44, 80)]) == 32
    assert strayed(coarse(nothing), square, {"left": (0, 0, 40, 80), "right": (40, 0, 80, 80)}) == {
        "left": 0,
        "right": 4,
    }
    with pytest.raises(ValueError, match="shapes"):
        differing(nothing, coarse(nothing))


# Pages of stored data -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """By network, the page of the data that is stored, or stored now when updating."""
    folder = tmp_path_factory.mktemp("screens")
    made = {}
    for name, expression in NETWORKS.items():
        path = STORED / f"{name}.json"
        if request.config.getoption("--golden-update"):
            STORED.mkdir(parents=True, exist_ok=True)
            data = page_data(tnc.compile(expression, framework="numpy", seed=0))
            path.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")
        made[name] = folder / f"{name}.html"
        page = explorer_page(json.loads(path.read_text(encoding="utf-8")))
        made[name].write_text(page, encoding="utf-8")
    return made


def paths(value: Any, above: str = "") -> Iterator[str]:
    """The keys in a nest of dicts and lists, each with those above it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{above}.{key}"
            yield from paths(inner, f"{above}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from paths(inner, above)


def test_golden_data_is_made_of_what_pages_are_made_of(pages: dict[str, Path]) -> None:
    """If not, the references show pages that are no longer written: run `make golden`."""
    stored = json.loads((STORED / "layer.json").read_text(encoding="utf-8"))
    now = page_data(tnc.compile(LAYER, framework="numpy", seed=0))
    assert set(paths(stored)) == set(paths(now))


@dataclass(frozen=True, slots=True)
class Scene:
    """A network's page at a size, after what was done on it."""

    network: str
    size: tuple[int, int]
    act: Callable[[Page], Any]


def product(page: Page) -> None:
    page.run("window.explorer.go(window.explorer.steps.findIndex((one) => one.nodes.length))")


def gradient(page: Page) -> None:
    """In the dark, where training makes the gradient of G1."""
    page.press("t")
    page.find("modes").find_elements("css selector", "button")[1].click()
    step = "window.explorer.steps.findIndex((one) => one.gradient.includes('G1'))"
    page.run(f"window.explorer.go({step})")


def found(page: Page) -> None:
    page.run("window.explorer.go(3)")
    page.run("window.explorer.find('v8')")


SCENES = {
    "step": Scene("layer", WIDE, product),
    "gradient": Scene("layer", WIDE, gradient),
    "lattice": Scene("lattice", WIDE, found),
    "phone": Scene("layer", PHONE, product),
}


@pytest.fixture
def shown(driver: Any, pages: dict[str, Path]) -> Iterator[Callable[[Scene], Page]]:
    """Shows a scene; pages after it have the usual size again."""

    def show(scene: Scene) -> Page:
        page = Page(driver, scene.size).open(pages[scene.network])
        page.set_fonts()
        scene.act(page)
        page.run("document.activeElement.blur()")
        return page

    yield show
    Page(driver)


@pytest.mark.parametrize("name", SCENES)
def test_golden_screens(name: str, shown: Callable[[Scene], Page], golden_update: bool) -> None:
    page, path = shown(SCENES[name]), STORED / f"{name}.png"
    shot = page.shot()
    if golden_update:
        path.write_bytes(coarse(shot))
    boxes = dict(zip(PANELS, page.boxes(*PANELS.values()), strict=True))
    strays = strayed(path.read_bytes(), shot, boxes)
    far = {panel: n for panel, n in strays.items() if n > (CONTROLS if panel == "nav" else MOST)}
    if far:
        (path.parent / f"{name}.new.png").write_bytes(coarse(shot))
    assert not far, f"{far}: look at {name}.new.png beside {name}.png"


SABOTAGE = {
    "network": "#network-picture .tensor.left circle { stroke-width: 1px !important }",
    "tree": ".tensor.made rect { stroke: none !important }",
    "source": "#source li.now { background: none !important }",
    "steps": "tbody tr[aria-current] { background: none !important }",
    "memory": "#memory .live { fill: var(--panel) !important }",
}


@pytest.mark.parametrize("panel", SABOTAGE)
def test_a_page_that_shows_less_is_found_out(panel: str, shown: Callable[[Scene], Page]) -> None:
    page = shown(SCENES["step"])
    page.run(f"document.adoptedStyleSheets[0].insertRule({json.dumps(SABOTAGE[panel])})")
    boxes = dict(zip(PANELS, page.boxes(*PANELS.values()), strict=True))
    strays = strayed((STORED / "step.png").read_bytes(), page.shot(), boxes)
    assert [name for name, count in strays.items() if count > MOST] == [panel]


# States of one run --------------------------------------------------------------------------------


def test_a_step_changes_what_shows_it_and_nothing_else(shown: Callable[[Scene], Page]) -> None:
    page = shown(SCENES["step"])
    before = page.shot()
    page.press("ARROW_RIGHT")
    page.press("ARROW_RIGHT")
    changed = differences(before, page.shot())
    boxes = page.boxes(*STEPPING)
    assert outside(changed, boxes) == 0
    untouched = [
        name for name, box in zip(STEPPING, boxes, strict=True) if not within(changed, box)
    ]
    assert untouched == []
    page.press("ARROW_LEFT")
    page.press("ARROW_LEFT")
    assert differing(before, page.shot()) == 0


def test_a_size_changes_numbers_and_labels_but_no_source(shown: Callable[[Scene], Page]) -> None:
    page = shown(SCENES["step"])
    before = page.shot()
    page.slide(100)  # within the range of the same plan
    changed = differences(before, page.shot())
    one, source, tree, *others = page.boxes(
        "#sliders", "#source", "#tree-picture", "#network-picture", "#plans", "#now", "#memory",
        "#table",
    )  # fmt: skip
    assert within(changed, one) and all(within(changed, box) for box in others)
    assert within(changed, source) == 0
    assert outside(changed, [one, tree, *others]) == 0


def test_the_dark_page_is_dark_everywhere_and_stands_the_same(
    shown: Callable[[Scene], Page],
) -> None:
    page = shown(SCENES["step"])
    light, places = page.shot(), page.boxes(*PANELS.values())
    page.press("t")
    dark = page.shot()
    assert page.boxes(*PANELS.values()) == places
    for left, top, right, bottom in places:
        one, other = (pixels(shot)[top:bottom, left:right].mean() for shot in (light, dark))
        assert one > 170 and other < 85
    assert np.mean(differences(light, dark)) > 0.9


def test_who_prefers_dark_sees_dark(driver: Any, pages: dict[str, Path]) -> None:
    page = Page(driver)
    page.emulate(scheme="dark")
    page.open(pages["layer"])
    assert page.run("document.documentElement.dataset.theme") == "dark"
    page.press("t")
    assert page.run("document.documentElement.dataset.theme") == "light"


def test_on_paper_everything_is_there_in_light_colours(shown: Callable[[Scene], Page]) -> None:
    page = shown(SCENES["gradient"])  # which is dark
    page.resize((794, 1123))  # A4 at 96 pixels an inch
    page.emulate(media="print")
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert all(bottom - top > 40 for _, top, _, bottom in page.boxes(*list(PANELS.values())[2:]))
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("(() => { const s = document.getElementById('source');"
                    " return s.scrollHeight <= s.clientHeight + 1; })()")  # fmt: skip
    assert len(page.tell("Page.printToPDF")["data"]) > 10_000


def test_a_phone_shows_it_without_scrolling_sideways(shown: Callable[[Scene], Page]) -> None:
    page = shown(SCENES["phone"])
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    boxes = page.boxes(*PANELS.values())
    assert all(left >= 0 and right <= PHONE[0] + 1 for left, _, right, _ in boxes)


def test_references_are_coarse() -> None:
    for name, scene in SCENES.items():
        size = Image.open(STORED / f"{name}.png").size
        assert size == tuple(-(-edge // COARSE) for edge in scene.size)
