"""The language model by two processes: the committed run, and a short one that stays together."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest

from tests.conftest import ROOT

RECORD = ROOT / "docs" / "torch_training.json"
APART = {"DDP": 0.05}  # nats a character; other ways compute in bfloat16
APART_IN_BFLOAT16 = 0.15


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("distributed_language_model")


def check(runs: Sequence[dict[str, Any]]) -> None:
    """All learn, and stay within tolerance of the plain process."""
    plain, *others = runs
    assert plain["last"] < plain["losses"][0] - 0.5
    for run in others:
        assert run["losses"][0] == pytest.approx(plain["losses"][0], rel=2e-2)
        assert run["difference"] <= APART.get(run["name"], APART_IN_BFLOAT16)


def test_the_committed_run(example: Any) -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert [run["name"] for run in record["runs"]] == [*example.WAYS]
    assert all(len(run["losses"]) == record["steps"] for run in record["runs"])
    check(record["runs"])
    plain = example.Run("plain", record["runs"][0]["losses"])
    for run in record["runs"]:
        again = example.compared(example.Run(run["name"], run["losses"]), plain)
        assert (again.last, again.difference) == (run["last"], run["difference"])


def test_a_run_apart_is_seen() -> None:
    runs = json.loads(RECORD.read_text(encoding="utf-8"))["runs"]
    runs[1]["difference"] = 0.5
    with pytest.raises(AssertionError):
        check(runs)


@pytest.mark.slow
def test_a_short_run(example: Any) -> None:
    runs = example.main(["--steps", "30"])
    check([asdict(run) for run in runs])
