"""The language model and the matrix product state run, start as plain torch does, and learn."""

from __future__ import annotations

import importlib
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def check(contenders: list[Any], steps: int) -> None:
    """Both learn, along the same losses at first."""
    ours, theirs = contenders
    assert len(ours.losses) == len(theirs.losses) == steps
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-4)
    for contender in contenders:
        assert statistics.mean(contender.losses[-3:]) < contender.losses[0]
        assert contender.kept_bytes > 0


def test_the_language_model(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """fully tensorized: no parameter is a matrix of the model's size, and far fewer numbers"""
    language_model = load("language_model", monkeypatch)
    contenders = language_model.main(["--steps", "8"])
    check(contenders, 8)
    ours, theirs = contenders
    assert theirs.size > 5 * ours.size
    assert "tensorized, compiled" in capsys.readouterr().out
    source = ours.loss.source(backend="torch")
    assert language_model.LAYERS > 1
    assert source.count("attend(") == 1, "equal layers share a function"
    assert "take_at(" in source


def test_the_matrix_product_state(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    mps_classifier = load("mps_classifier", monkeypatch)
    contenders, hits = mps_classifier.main(["--steps", "25"])
    check(contenders, 25)
    assert hits > 0.2  # a guess is right one time in ten
    assert "compiled network" in capsys.readouterr().out


def test_other_functions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """a contender that starts otherwise is refused"""
    comparison = load("comparison", monkeypatch)
    x = torch.ones(3, requires_grad=True)
    pair = [
        comparison.Contender("a", [x], lambda batch: (x * batch).sum()),
        comparison.Contender("b", [x], lambda batch: (x * batch).sum() * 1.01),
    ]
    with pytest.raises(comparison.Disagreement, match=r"b starts with the loss 3\.03"):
        comparison.compete(pair, [(torch.ones(3),)], 0.1)
