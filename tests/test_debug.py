"""The debug ladder: what each rung prints, what is dumped, what is logged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import tncompiler as tnc
from tests.networks_to_see import LAYER

RUNGS = {1: "--- orders", 2: "--- pass ", 3: "--- scheduled program", 4: "--- forward source"}


def run() -> None:
    tnc.compile(LAYER, framework="numpy", seed=0).source({"b": 4})


@pytest.mark.parametrize("level", range(5))
def test_a_rung_prints_itself_and_those_below(
    level: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TNC_DEBUG", str(level))
    run()
    printed = capsys.readouterr().out
    assert [rung for rung, title in RUNGS.items() if title in printed] == list(range(1, level + 1))


def test_all_of_it_is_dumped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNC_DUMP", str(tmp_path / "dump"))
    run()
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert [name[:4] for name in names] == [f"{k:04d}" for k in range(len(names))]
    assert any("forward-source" in name for name in names)
    assert any("scheduled-program" in name for name in names)


def test_all_of_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "tncompiler"):
        run()
    heard = {record.name for record in caplog.records}
    assert {f"tncompiler.{name}" for name in ("plan", "passes", "program", "source")} <= heard
    assert any("def forward" in record.getMessage() for record in caplog.records)


def test_nothing_is_said_unasked(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tncompiler"):
        run()
    assert capsys.readouterr().out == "" and caplog.records == []
