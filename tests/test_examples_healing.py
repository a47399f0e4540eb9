"""The experiment with healing: its sentences, its figures, its page. Needs no weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT


def load(path: str) -> Any:
    """A script of the repository as a module."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = [*sys.path]
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def healing() -> Any:
    return load("examples/compression/healing.py")


@pytest.fixture(scope="module")
def page() -> Any:
    return load("docs/build_healing.py")


@pytest.fixture(scope="module")
def texts() -> Any:
    return load("examples/compression/texts.py")


def test_sentences_are_whole_and_come_once(texts: Any) -> None:
    text = "x. This is a plain sentence of words. A `code` one is left out of it. Short one. And"
    assert [*texts.prose(text)] == ["This is a plain sentence of words."]
    found = texts.sentences("networkx", "*.py", 50)
    assert found == texts.sentences("networkx", "*.py", 50)
    assert len(found) == len(set(found)) == 50
    assert all(line[0].isupper() and line[-1] in ".!?" for line in found)


def test_pairs_are_two_sentences_of_one_docstring(texts: Any) -> None:
    text = (
        "Return the sum of all the numbers.\n\nIt takes as long as there are numbers. More.\n\n..."
    )
    first, second = texts._openings(text)
    assert (first, second) == (
        "Return the sum of all the numbers.",
        "It takes as long as there are numbers.",
    )
    assert texts._openings("Too short.\n\nParameters\n----------\nx : int") == ("", "")
    found = texts.pairs("networkx", 40)
    assert found == texts.pairs("networkx", 40) and len(found) == 40
    assert len({line for pair in found for line in pair}) == 80


def test_batches_hold_every_sentence(texts: Any) -> None:
    lines = ["a" * n for n in range(1, 20)]
    made = texts.batches(lambda part: torch.tensor([len(line) for line in part]), lines, 8)
    assert sorted(torch.cat(made).tolist()) == [*range(1, 20)]


RECORDS: list[dict[str, Any]] = [
    dict(way="LowRank", budget=0.4, healing="none", seed=0, kept=0.39, seconds=3.0)
    | dict(cosine=0.25, least=0.1, formats={"query": {"LowRank": 6}}),
    dict(way="LowRank", budget=0.4, healing="feature", seed=0, seconds=9.0, cosine=0.5, least=0.2),
    dict(way="LowRank", budget=0.4, healing="feature", seed=1, seconds=8.0, cosine=0.6, least=0.3),
    dict(way="search", budget=0.4, healing="none", seed=0, kept=0.4, seconds=3.0)
    | dict(cosine=0.7, least=0.4, formats={"query": {"TT": 2, "dense": 4}}),
]


def test_the_tables_of_the_page(page: Any) -> None:
    table = page.results_table(RECORDS)
    healed = "0.500, 0.600 | 0, 1 | 0.20, 0.30 | 9, 8"
    assert f"| LowRank | 40% | 39.0% | 0.250 | 0.10 | 3 | {healed} | – | – | – | – |" in table
    assert healed in page.results_table([RECORDS[0], *RECORDS[2:0:-1]])
    assert "| search, 40% | 2 TT, 4 dense |" in page.formats_table(RECORDS)


def test_the_picture_and_the_table(healing: Any, tmp_path: Path) -> None:
    healing.draw(RECORDS, tmp_path / "healing.png")
    assert (tmp_path / "healing.png").read_bytes().startswith(b"\x89PNG")
    healing.show(RECORDS)


def test_the_page_is_that_of_its_record(page: Any) -> None:
    """docs/healing.md shows what docs/healing.json holds."""
    record = json.loads((ROOT / "docs" / "healing.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "healing.md").read_text(encoding="utf-8")
    assert page.results_table(record["runs"]) in text
    assert page.formats_table(record["runs"]) in text
    assert all(-1 <= run["least"] <= run["cosine"] <= 1 for run in record["runs"])
