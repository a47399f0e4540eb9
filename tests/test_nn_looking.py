"""A layer shows what its compiled network shows, and says what it pads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tncompiler as tnc

FORMAT = tnc.formats.TTMatrix(rank=2)
LAYERS: dict[str, Any] = {
    "Linear": lambda: tnc.nn.Linear(12, 10, format=FORMAT, in_shape=(3, 4), out_shape=(2, 5)),
    "Conv2d": lambda: tnc.nn.Conv2d(6, 4, 3, format=tnc.formats.CP(rank=2)),
    "Embedding": lambda: tnc.nn.Embedding(64, 8, format=FORMAT),
    "GraphConv": lambda: tnc.nn.GraphConv(6, 4, format=tnc.formats.LowRank(rank=2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_shows_what_its_network_shows(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    layer = LAYERS[name]()
    assert layer.explain(part="step") == layer.cores.explain(part="step")
    assert layer.cost() == layer.cores.cost()
    assert layer.plan() == layer.cores.plan()
    assert "<svg" in layer._repr_svg_() == layer.cores._repr_svg_()
    assert layer.draw("tree").patches
    page = layer.to_html(tmp_path / "layer.html")
    assert page.read_bytes() == layer.cores.to_html(tmp_path / "cores.html").read_bytes()


def test_sizes_go_by_name() -> None:
    assert "x(b:64, inputs:12)" in LAYERS["Linear"]().explain({"b": 64})


def test_padding_is_said() -> None:
    layer = tnc.nn.Linear(12, 10, format=FORMAT, in_shape=(3, 5), out_shape=(2, 5))
    assert "3x5 (padded from 12) → 2x5, " in repr(layer)
    assert "padded" not in repr(LAYERS["Linear"]())
