"""The plan explorer in headless Chromium: click, step, slide, search, keys, screenshots.

Runs where chromium and chromedriver are installed (Debian: `apt-get install chromium
chromium-driver`); TNC_BROWSER=1, which .ci/run sets, makes their absence a failure.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import tncompiler as tnc
from tests.browser import Page
from tests.networks_to_see import CP, LAYER, chain, hostile
from tests.screens import differing
from tncompiler.function import NumpyFunction


def compiled(expression: Any, **options: Any) -> NumpyFunction:
    return tnc.compile(expression, framework="numpy", seed=0, **options)


@pytest.fixture(scope="module")
def layer_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[NumpyFunction, Path]:
    network = compiled(LAYER)
    return network, network.to_html(tmp_path_factory.mktemp("page") / "layer.html")


@pytest.fixture
def page(driver: Any, layer_page: Any) -> Page:
    return Page(driver).open(layer_page[1])


def test_everything_is_there_and_nobody_complains(page: Page, layer_page: Any) -> None:
    network, _ = layer_page
    assert page.count("#network-picture .tensor") == 3
    assert page.count("#tree-picture .tensor") == 5
    assert page.count("#steps tbody tr") == len(network.program().steps)
    assert page.texts("#network-picture .label") != []
    assert page.complaints() == []


def test_steps_by_button_and_by_key(page: Page) -> None:
    assert page.find("counter").text.startswith("1 of")
    assert page.find("back").get_attribute("disabled")
    page.find("next").click()
    assert page.find("counter").text.startswith("2 of")
    assert page.count("#steps tr[aria-current=step]") == 1
    page.press("END")
    last = page.count("#steps tbody tr")
    assert page.find("counter").text == f"{last} of {last}"
    page.press("ARROW_LEFT")
    assert page.find("counter").text == f"{last - 1} of {last}"
    page.press("HOME")
    assert page.find("counter").text.startswith("1 of")


def test_a_step_lights_its_line_its_tensors_and_its_indices(page: Page) -> None:
    texts = page.texts("#steps tbody td:nth-child(2)")
    number = next(
        k for k, text in enumerate(texts) if ("G1" in text and "G2" in text) or "x(" in text
    )
    page.run(f"window.explorer.go({number})")
    name = texts[number].split("(")[0]
    assert any(name in text for text in page.texts("#source li.now"))
    assert page.count("#tree-picture .made") == 1
    assert page.count("#network-picture .left") and page.count("#network-picture .right")
    assert page.count("#network-picture path.summed")
    assert page.find("equation").text == texts[number]
    assert f"Step {number + 1} of" in page.find("spoken").get_attribute("textContent")


def test_the_numbers_of_a_step_are_those_of_its_row(page: Page) -> None:
    """Flops, bytes, share of the time and live memory, and the shares are all of it."""
    page.run("window.explorer.go(window.explorer.steps.findIndex((one) => one.nodes.length))")
    cells = page.texts("#steps tr[aria-current] td")
    names, values = page.texts("#numbers dt"), page.texts("#numbers dd")
    numbers = dict(zip(names, values, strict=True))
    assert numbers["work"] == cells[2] and numbers["bytes moved"] == cells[3]
    assert numbers["time predicted"].startswith(cells[4])
    assert numbers["live memory"] == cells[5]
    time, share = re.fullmatch(r"(.+), (.+) % of all", numbers["time predicted"]).groups()  # type: ignore[union-attr]
    assert time and 0 < float(share) < 100
    shares = page.run("window.explorer.costs.map((cost) => cost.us / window.explorer.totals.us)")
    assert sum(shares) == pytest.approx(1)


def test_everything_can_be_reached_by_tab(page: Page) -> None:
    """Buttons that can be used, sliders, fields, both pictures and the source."""
    wanted = {"theme", "help", "next", "last", "index", "network-picture", "tree-picture", "source"}
    page.run("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        page.press_there("TAB")
        reached.add(page.run("document.activeElement.id"))
    assert wanted <= reached


def test_the_slider_evaluates_costs_and_changes_plans(page: Page, layer_page: Any) -> None:
    network, _ = layer_page
    family = network.plans(symbol="b")
    for size in (1, 100, 65536):
        page.slide(size)
        cost = network.cost({"b": size})
        assert page.run("window.explorer.totals.flops") == cost.flops
        assert page.run("window.explorer.totals.live") == cost.peak_bytes
        wanted = family.members.index(family.member(size)) + 1
        assert page.find("plans").text.startswith(f"Plan {wanted} of {len(family.members)}")
    assert page.count(".range i") == len(family.crossovers)


def test_training_has_both_passes(page: Page, layer_page: Any) -> None:
    network, _ = layer_page
    modes = page.find("modes").find_elements("css selector", "button")
    modes[1].click()
    assert modes[1].get_attribute("aria-pressed") == "true"
    page.press("END")
    assert "backward" in page.find("source-title").text
    assert page.run("window.explorer.totals.flops") == network.cost({"b": 128}, "step").flops
    gradient = page.run("window.explorer.steps.findIndex((step) => step.gradient.includes('G1'))")
    page.run(f"window.explorer.go({gradient})")
    assert page.count("#network-picture .gradient") == 1
    assert "gradient of" in page.find("numbers").text


def test_an_index_is_found(page: Page) -> None:
    page.press("/")
    page.driver.switch_to.active_element.send_keys("r")
    assert page.count("#network-picture path.found") == 1
    assert page.find("spoken").get_attribute("textContent") == "r is on G1, G2"
    page.driver.switch_to.active_element.send_keys("rrr")
    assert page.count("#network-picture path.found") == 0
    page.press("ESCAPE")
    assert page.run("document.activeElement === document.body")


def test_screenshots_there_and_back(page: Page) -> None:
    page.run("window.explorer.go(1)")
    first = page.shot()
    page.run("window.explorer.go(2)")
    second = page.shot()
    page.run("window.explorer.go(1)")
    assert differing(page.shot(), first) < 50 < differing(first, second)
    page.press("t")
    assert page.run("document.documentElement.dataset.theme") == "dark"
    assert differing(page.shot(), first) > 100_000


def test_pictures_zoom_by_key_and_button(page: Page) -> None:
    before = page.find("network-picture").get_dom_attribute("viewBox")
    page.find("network-picture").send_keys("+")
    assert page.find("network-picture").get_dom_attribute("viewBox") != before
    page.find("network-picture").send_keys("0")
    assert page.find("network-picture").get_dom_attribute("viewBox") == before


def test_what_a_screen_reader_hears(page: Page) -> None:
    for name in ("network-picture", "tree-picture", "memory"):
        assert page.find(name).get_attribute("aria-label")
    unnamed = page.run(
        "[...document.querySelectorAll('button, input, select')]"
        ".filter((one) => !(one.textContent.trim() || one.ariaLabel || one.labels?.length))"
        ".map((one) => one.outerHTML)"
    )
    assert unnamed == []


def test_hostile_names_are_text(driver: Any, tmp_path: Path) -> None:
    page = Page(driver).open(compiled(hostile()).to_html(tmp_path / "hostile.html"))
    assert page.count("img") == 0
    assert "<img src=x on…:3" in page.texts("#network-picture .label")
    assert "<img src=x onerror=alert(1)>" in page.find("equation").text
    assert page.complaints() == []


@pytest.mark.parametrize("expression", [CP, chain(3)])
def test_small_networks(driver: Any, tmp_path: Path, expression: Any) -> None:
    page = Page(driver).open(compiled(expression).to_html(tmp_path / "small.html"))
    page.press("END")
    assert page.complaints() == []


def test_an_output_that_is_an_input(driver: Any, tmp_path: Path) -> None:
    (i,) = tnc.indices("i")
    page = Page(driver).open(compiled(tnc.input("x", i)).to_html(tmp_path / "nothing.html"))
    assert page.find("counter").text == "no steps"
    assert page.complaints() == []


@pytest.mark.slow
def test_two_thousand_tensors(driver: Any, tmp_path: Path) -> None:
    page = Page(driver).open(compiled(chain(2000)).to_html(tmp_path / "large.html"))
    assert page.count("#network-picture .tensor") == 2000
    for _ in range(20):
        page.press("ARROW_RIGHT")
    assert page.find("counter").text.startswith("21 of")
    assert page.complaints() == []
