"""Choosing among a kernel's configurations, with spills and times that are made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tncompiler.backends.triton import fitting, runtime
from tncompiler.ir.errors import BackendError, NoConfiguration

CANDIDATES = tuple({"ROWS": rows, "num_warps": 4, "at": at} for at, rows in enumerate((8, 4, 2)))
PROCESSORS = 10


class OnGpu:
    """An argument that says it is on a GPU."""

    device = torch.device("cuda", 0)


class Kernel:
    src = "a kernel"
    __name__ = "a_kernel"


class Gpu:
    """What a GPU would say: bytes spilled by candidate, and microseconds of a launch."""

    def __init__(self) -> None:
        self.spills: list[int | None] = [0, 0, 0]
        self.us: Callable[[Any, tuple[int, ...]], float] = lambda config, grid: 100.0
        self.timed: list[tuple[int, tuple[int, ...]]] = []

    def microseconds(self, kernel: Any, config: Any, grid: tuple[int, ...], *rest: Any) -> float:
        self.timed.append((config["ROWS"], grid))
        return self.us(config, grid)

    def spill(self, kernel: Any, config: Any, **rest: Any) -> int | None:
        return self.spills[config["at"]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gpu]:
    made = Gpu()
    monkeypatch.setattr(fitting, "_microseconds", made.microseconds)
    monkeypatch.setattr(fitting, "_spill", made.spill)
    monkeypatch.setattr(fitting, "_ready", {})
    monkeypatch.setattr(fitting, "choices_path", lambda: tmp_path / "choices.json")
    monkeypatch.setattr(fitting, "with_sums", lambda args, programs: [*args])
    monkeypatch.setattr(runtime, "count_processors", lambda device: PROCESSORS)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    fitting._choices.cache_clear()
    yield made
    fitting._choices.cache_clear()


KERNEL = Kernel()


def share(rows: int, sums: int = 0) -> tuple[dict[str, int], int]:
    held = [(torch.float32, sums)] if sums else []
    grid = lambda config, programs: (programs, 1)  # noqa: E731
    config, programs = fitting.sharing(KERNEL, CANDIDATES, grid, rows, OnGpu(), *held, rows)
    return dict(config), programs


def test_the_fastest_of_those_that_spill_nothing_runs(gpu: Gpu) -> None:
    gpu.spills = [8, 0, 0]
    gpu.us = lambda config, grid: {8: 1.0, 4: 30.0, 2: 20.0}[config["ROWS"]]
    found = fitting.fitting(KERNEL, CANDIDATES, lambda config: (7,), OnGpu(), 1000)
    assert found["ROWS"] == 2
    assert {rows for rows, _ in gpu.timed} == {4, 2}


def test_what_would_spill_more_than_many_bytes_is_not_compiled(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fewest rows a warp first; of what spills little, more rows may spill nothing"""
    compiled: list[int] = []

    def spill(kernel: Any, config: Any, **rest: Any) -> int | None:
        compiled.append(config["ROWS"])
        return gpu.spill(kernel, config)

    monkeypatch.setattr(fitting, "_spill", spill)
    gpu.spills = [0, 0, 5000]
    found = fitting.fitting(KERNEL, CANDIDATES, lambda config: (7,), OnGpu(), 1000)
    assert (compiled, found["ROWS"]) == ([2], 2)
    compiled.clear()
    gpu.spills = [0, 16, 8]
    found = fitting.fitting(KERNEL, CANDIDATES, lambda config: (7,), OnGpu(), 10_000)
    assert (compiled, found["ROWS"]) == ([2, 4, 8], 8)


def test_what_spills_least_runs_where_all_spill(gpu: Gpu) -> None:
    gpu.spills = [None, 16, 8]
    assert fitting.fitting(KERNEL, CANDIDATES, lambda config: (7,), OnGpu(), 9)["ROWS"] == 2


def test_an_error_says_that_no_configuration_may_run(gpu: Gpu) -> None:
    gpu.spills = [None, None, None]
    with pytest.raises(BackendError, match="no configuration"):
        fitting.fitting(KERNEL, CANDIDATES, lambda config: (7,), OnGpu(), 9)


def test_more_programs_share_the_rows_where_that_is_faster(gpu: Gpu) -> None:
    gpu.us = lambda config, grid: config["ROWS"] + abs(grid[0] - 4 * PROCESSORS)
    config, programs = share(10_000)
    assert (config["ROWS"], programs) == (2, 4 * PROCESSORS)


@pytest.mark.parametrize("spills", [[16, 8, 8], [None, 8, None], [None] * 3])
def test_a_chain_of_which_all_spill_does_not_run(gpu: Gpu, spills: list[int | None]) -> None:
    """other launches can do its work; that none was found is kept as a choice is"""
    gpu.spills = spills
    for _ in range(2):
        with pytest.raises(NoConfiguration, match="each configuration of a_kernel spills") as found:
            share(10_000)
        assert found.value.where == "a_kernel"
        fitting._ready.clear()
        fitting._choices.cache_clear()
        gpu.spills = [0, 0, 0]
    assert not gpu.timed


def test_as_few_programs_as_take_as_many_turns() -> None:
    counts = {
        tiles: fitting.count_programs(tiles, 100) for tiles in (0, 1, 99, 100, 101, 256, 1000)
    }
    assert counts == {0: 0, 1: 1, 99: 99, 100: 100, 101: 51, 256: 86, 1000: 100}


def test_no_more_programs_than_rows_need(gpu: Gpu) -> None:
    share(64)
    assert {grid[0] for rows, grid in gpu.timed if rows == 8} == {8}
    assert {grid[0] for rows, grid in gpu.timed if rows == 4} == {8, 16}, "as few as take two turns"


def test_sums_cost_what_adding_them_up_takes(gpu: Gpu) -> None:
    gpu.us = lambda config, grid: 100.0 - grid[0] / 10
    assert share(10_000)[1] == 8 * PROCESSORS
    assert share(40_000, sums=100_000)[1] == PROCESSORS


WAYS = tuple(
    {"ROWS": 1, "WAY": way, "num_warps": warps, "at": at}
    for at, (way, warps) in enumerate([(0, 4), (0, 2), (1, 4), (2, 4), (0, 8), (2, 8)])
)


@pytest.mark.parametrize(
    ("spills", "us", "chosen", "tried"),
    [
        ([0] * 6, [5, 6, 7, 1, 1, 1], 0, 3),  # a cut that is slower ends the search
        ([0] * 6, [5, 4, 3, 2, 1, 1], 3, 4),  # many warps are not tried
        ([8, 8, 8, 8, 0, 0], [0, 0, 0, 0, 2, 1], 5, 2),  # but where nothing else fits
        ([8, 0, 8, 0, 0, 0], [0, 2, 0, 1, 0, 0], 3, 2),  # what spills says nothing of the next
    ],
)
def test_ways_are_tried_while_they_are_faster(
    gpu: Gpu, spills: list[int | None], us: list[int], chosen: int, tried: int
) -> None:
    gpu.spills, gpu.us = spills, lambda config, grid: us[config["at"]]
    found = fitting.fitting(KERNEL, WAYS, lambda config: (7,), OnGpu(), 9)
    assert (found["at"], len(gpu.timed)) == (chosen, tried)


def test_a_choice_is_made_once_and_kept_on_disk(gpu: Gpu, tmp_path: Path) -> None:
    first = share(10_000)
    count = len(gpu.timed)
    assert share(10_001) == first, "of the same size class"
    fitting._ready.clear()
    fitting._choices.cache_clear()
    assert share(10_000) == first
    assert len(gpu.timed) == count


@pytest.mark.parametrize("text", ["", "[1]", "not json"])
def test_a_file_that_holds_anything_else_is_none(gpu: Gpu, tmp_path: Path, text: str) -> None:
    (tmp_path / "choices.json").write_text(text)
    share(10_000)
    assert gpu.timed


@pytest.mark.parametrize("value", [3, [0], [0, 3], [-2, 1], ["0", 1], [99, 1]])
def test_a_choice_that_cannot_be_is_made_anew(gpu: Gpu, tmp_path: Path, value: Any) -> None:
    share(10_000)
    kept = json.loads((tmp_path / "choices.json").read_text())
    (tmp_path / "choices.json").write_text(json.dumps(dict.fromkeys(kept, value)))
    fitting._ready.clear()
    fitting._choices.cache_clear()
    count = len(gpu.timed)
    share(10_000)
    assert len(gpu.timed) > count


def test_the_interpreter_takes_the_first() -> None:
    x = torch.zeros(3)
    config, programs = fitting.sharing(KERNEL, CANDIDATES, lambda c, p: (p,), 100, x, 100)
    assert (config["ROWS"], programs) == (8, 2)
    assert fitting.fitting(KERNEL, CANDIDATES, lambda c: (1,), x, 100)["ROWS"] == 8


def test_arrays_of_sums_have_a_row_for_each_program() -> None:
    x = torch.zeros(3)
    made = fitting.with_sums([x, (torch.float32, 5)], 7)
    assert made[0] is x
    assert made[1].shape == (7, 5)
