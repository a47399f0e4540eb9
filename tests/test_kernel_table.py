"""The committed table of kernels: made from the sources as they are, and keeping the promises."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.kernel_table import PAGE, cell_of, digest_of, page, read_rows, row_of
from tests.conftest import ROOT
from tncompiler.backends.triton.kernels import SHARED_LIMIT

ROWS = read_rows(ROOT / "docs" / "kernels.json")
SUBSET = ROWS[:: max(1, len(ROWS) // 40)][:40]
LAUNCHES = {("forward", "sm_90"): 1, ("backward", "sm_90"): 2, ("backward", "sm_80"): 3}


def test_there_is_a_table() -> None:
    assert SUBSET


@pytest.mark.parametrize("row", SUBSET, ids=lambda row: cell_of(row).name)
def test_a_row_was_made_from_the_source_as_it_is(row: dict[str, Any]) -> None:
    assert digest_of(row) == row["digest"], "run `make kernels`"


def test_the_page_shows_the_rows() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: cell_of(row).name)
def test_what_is_promised_of_every_cell(row: dict[str, Any]) -> None:
    """nothing spills, shared memory fits the chip, and what is no single chain says why"""
    assert row["spill_bytes"] == 0
    assert row["shared_bytes"] <= SHARED_LIMIT[row["target"]]
    assert row["state"] == "fits" or row["why"]
    for batch in (256, 4096):
        moved = row[f"batch {batch}"]
        if row["launches"] == 1:
            assert moved["bytes"] <= 1.05 * moved["floor"]
            if row["state"] == "fits":  # tiles read their rows again; docs/decisions.md on 256
                assert moved["cached"] <= (2 if batch == 4096 else 3) * moved["floor"]


@pytest.mark.parametrize(("part", "target"), LAUNCHES)
def test_most_layers_of_rank_8_take_few_launches(part: str, target: str) -> None:
    own = [r for r in ROWS if (r["part"], r["target"], r["rank"]) == (part, target, 8)]
    low = [r for r in own if r["dtype"] != "float32"]
    kept = [r for r in low if r["launches"] <= LAUNCHES[part, target]]
    assert len(kept) >= 0.8 * len(low) > 0


@pytest.mark.slow
@pytest.mark.parametrize("row", SUBSET, ids=lambda row: cell_of(row).name)
def test_a_row_compiles_to_what_it_says(row: dict[str, Any]) -> None:
    """another triton takes other registers, and spills as little"""
    made = row_of(cell_of(row))
    if made["triton"] == row["triton"]:
        assert made == row
    assert (made["launches"], made["spill_bytes"], made["fits"]) == (row["launches"], 0, True)
