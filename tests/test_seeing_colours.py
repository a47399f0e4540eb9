"""Colours can be told apart by readers who lack a kind of cones, and text can be read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations

import pytest

from tests.colours import SIGHTS, apart, contrast
from tests.conftest import ROOT
from tncompiler.draw.canvas import COLOURS

CSS = (ROOT / "tncompiler/draw/explorer/page/page.css").read_text(encoding="utf-8")
KINDS = ("input", "param", "constant", "intermediate")
ROLES = ("left", "right", "made", "gradient")  # told apart by dashes too
TEXT = ("ink", "soft", "found", *ROLES)


def variables(block: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+): (#\w{6})", block))


LIGHT = variables(CSS[CSS.index(":root {") : CSS.index("@media screen")])
DARK = {**LIGHT, **variables(CSS[CSS.index("@media screen") : CSS.index("* {")])}
THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


def nearest(colours: Iterable[str], sight: str) -> float:
    return min(apart(one, other, sight) for one, other in combinations(colours, 2))


def test_red_and_green_are_one_without_cones_for_long_waves() -> None:
    """The helper itself: what it must find."""
    red, green = "#c04000", "#607000"
    assert apart(red, green, "all cones") > 3 * apart(red, green, "protanopia")
    assert contrast("#000000", "#ffffff") == pytest.approx(21, abs=0.01)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("sight", SIGHTS)
def test_kinds_of_tensors_in_pictures(sight: str) -> None:
    assert nearest(COLOURS.values(), sight) > 15


@pytest.mark.parametrize("sight", SIGHTS)
def test_plans_in_charts(sight: str) -> None:
    charts = pytest.importorskip("tncompiler.draw.charts")
    assert nearest(charts._PLAN_COLOURS, sight) > 15


@THEMES
@pytest.mark.parametrize("sight", SIGHTS)
def test_kinds_and_roles_in_the_explorer(theme: dict[str, str], sight: str) -> None:
    assert nearest((theme[kind] for kind in KINDS), sight) > 15
    assert nearest((theme[role] for role in ROLES), sight) > 9


@THEMES
def test_text_can_be_read_in_the_explorer(theme: dict[str, str]) -> None:
    for ground in ("ground", "panel", "mark"):
        assert {name: contrast(theme[name], theme[ground]) for name in TEXT if
                contrast(theme[name], theme[ground]) < 4.5} == {}  # fmt: skip
    assert min(contrast(theme["name"], theme[kind]) for kind in KINDS) > 4.5
    assert contrast(theme["left"], theme["ground"]) > 4.5  # a button that is pressed


def test_names_can_be_read_in_pictures() -> None:
    assert min(contrast("#000000", colour) for colour in COLOURS.values()) > 4.5
