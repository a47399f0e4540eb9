"""The experiments of examples/compression: results survive a kill, pages follow from results."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "compression"
EXPERIMENTS = ("formats_mlp", "formats_cnn", "equal_bytes", "scratch", "bond_channels")


@pytest.fixture(scope="module")
def examples() -> Any:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


def test_cells_are_computed_once_and_survive_a_failure(examples: Any, tmp_path: Path) -> None:
    cells, path = examples("cells"), tmp_path / "deep" / "results.json"
    made: list[int] = []

    def run(book: Any, number: int) -> Any:
        return book.get({"seed": number}, lambda: made.append(number) or {"value": number})

    first = cells.Cells(path)
    assert [run(first, k)["value"] for k in (0, 1, 0)] == [0, 1, 0] and made == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        first.get({"seed": 2}, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    again = cells.Cells(path)
    assert [run(again, k)["value"] for k in (0, 1, 2)] == [0, 1, 2] and made == [0, 1, 2]
    assert [*path.parent.iterdir()] == [path]
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(SystemExit, match="remove it"):
        cells.Cells(path)


def test_spreads_are_of_seeds(examples: Any) -> None:
    cells = examples("cells")
    assert cells.mean_and_spread([1.0]) == (1.0, 0.0)
    assert cells.mean_and_spread([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))
    assert cells.shown([0.5, 0.7]) == "60.0 ± 14.1"


def test_the_data_are_split_the_same_way_every_time(examples: Any) -> None:
    training = examples("training")
    one, other = training.digits(), training.digits(image=True)
    assert one.train_x.shape == (1347, 64) and other.test_x.shape == (450, 1, 8, 8)
    assert torch.equal(one.train_x, other.train_x.flatten(1))
    assert set(one.test_y.tolist()) == set(range(10))


def test_equal_bytes_are_no_more_than_the_share(examples: Any) -> None:
    experiment = examples("equal_bytes")
    model = experiment.dense_model(0)
    whole = 4 * sum(model[int(layer)].weight.numel() for layer in experiment.LAYERS)
    for way in ("tensor train", "magnitude pruning", "quantized", "low rank, int8"):
        made = experiment.compressed(model, way, 0.125)
        size = experiment.stored_bytes(made, way)
        assert 0.1 * whole < size <= 0.135 * whole, way
    assert experiment.compressed(model, "quantized", 0.0625) is None


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_pages_say_what_the_results_say(examples: Any, name: str) -> None:
    """Every page is the one that its script writes from the results that are committed."""
    folder = ROOT / "docs" / "experiments"
    rows = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert rows and all(row.keys() == {"of", "result"} for row in rows)
    page = (folder / f"{name}.md").read_text(encoding="utf-8")
    learned = page.partition("## What was learned")[2].strip()
    assert len(learned) > 200 and learned == examples("page").learned(name)
    assert (folder / f"{name}.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_that_is_killed_goes_on(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--out", str(tmp_path)]
    results = tmp_path / f"{name}.json"
    running = subprocess.Popen(command, cwd=ROOT)
    while running.poll() is None and not results.exists():
        time.sleep(0.1)
    running.kill()
    running.wait()
    known = json.loads(results.read_text(encoding="utf-8"))
    subprocess.run(command, cwd=ROOT, check=True)
    after = json.loads(results.read_text(encoding="utf-8"))
    assert after[: len(known)] == known and (tmp_path / f"{name}.md").exists()
