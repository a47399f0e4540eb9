"""The demo runs, writes what it promises, and its numbers are sane. No timed asserts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORMATS = {
    "dense": "dense",
    "TT-matrix": "tt_matrix",
    "Tucker": "tucker",
    "CP": "cp",
    "tensor ring": "tensor_ring",
    "hierarchical Tucker": "hierarchical_tucker",
}


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `demo.py --quick` leaves behind."""
    directory = tmp_path_factory.mktemp("demo") / "output"
    done = run_demo("--quick", "--out", str(directory))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "TT-matrix" in done.stdout
    return directory


@pytest.fixture(scope="module")
def formats(out: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((out / "results.json").read_text())["formats"]
    return found


def test_all_formats_are_measured(formats: dict[str, dict[str, Any]]) -> None:
    assert list(formats) == list(FORMATS)


def test_the_classifiers_learn(formats: dict[str, dict[str, Any]]) -> None:
    assert formats["dense"]["accuracy"] > 0.8
    assert all(record["accuracy"] > 0.5 for record in formats.values())


def test_tensor_formats_store_at_most_a_tenth(formats: dict[str, dict[str, Any]]) -> None:
    assert formats["dense"]["parameters"] == 64 * 512 + 512
    tensorized = [record for name, record in formats.items() if name != "dense"]
    assert all(record["compression"] >= 10 for record in tensorized)


def test_compiled_steps_agree_with_einsum(formats: dict[str, dict[str, Any]]) -> None:
    for record in formats.values():
        assert record["loss_difference"] < 1e-5
        assert record["gradient_difference"] < 1e-4


def test_times_are_positive(formats: dict[str, dict[str, Any]]) -> None:
    for record in formats.values():
        assert record["ratio"] == pytest.approx(record["einsum_ms"] / record["compiled_ms"])
        assert record["compiled_ms"] > 0


@pytest.mark.parametrize("slug", FORMATS.values())
def test_pictures_and_code_are_written(out: Path, slug: str) -> None:
    for picture in ("network.png", "tree.png"):
        assert (out / slug / picture).read_bytes().startswith(b"\x89PNG")
    for part in ("forward", "backward"):
        code = (out / slug / f"{part}.py").read_text()
        assert f"def {part}(" in code
        compile(code, f"{part}.py", "exec")


def test_table_and_curves_are_written(out: Path) -> None:
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "table.txt").read_text()
    assert all(name in text for name in FORMATS)


def test_bad_arguments_are_refused() -> None:
    done = run_demo("--seeds", "0")
    assert done.returncode == 2
    assert "no number of 1 or more" in done.stderr


def test_the_convolutional_networks_run() -> None:
    """Equal initial functions; both train; a line of the table for each."""
    command = [sys.executable, str(ROOT / "examples" / "cnn.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    ours = {row[0]: row for row in rows if "tncompiler" in row}
    assert list(ours) == ["dense", "CP", "Tucker"]
    assert sum(row[:1] == ["torch"] for row in rows) == 3
    assert all(float(row[3]) < 1e-5 for row in ours.values()), "the twins start apart"
    assert int(ours["CP"][2].replace(",", "")) < int(ours["dense"][2].replace(",", "")) / 3
