"""What all tests share: golden files and the seed of the fuzzed slice.

The seed follows from the commit: each commit fuzzes another slice, and its runs can be repeated.
"""

from __future__ import annotations

import difflib
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.ranks import World

# Triton kernels run on the CPU here; triton reads this when it defines a kernel
os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent
SEED_WITHOUT_GIT = 20_240_229

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-update",
        action="store_true",
        help="write the golden files instead of comparing against them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a bad TNC_SEED before any test runs."""
    try:
        fuzz_seed()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_header(config: pytest.Config) -> str:
    return f"fuzz seed: {fuzz_seed()}"


@pytest.fixture(scope="session", autouse=True)
def plan_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's own cache of plans."""
    folder = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNC_CACHE_DIR", str(folder))
        yield folder


# Operators --------------------------------------------------------------------------------------


@pytest.fixture
def room_for_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have used up the operators that it can hold."""
    from tncompiler import operators  # which loads torch

    monkeypatch.setattr(operators, "MOST", len(operators._operators) + 64)


# The browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """Headless Chromium, for all tests of a run; TNC_BROWSER=1 demands it."""
    from tests.browser import browsers

    yield from browsers()


# Ranks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> Iterator[World]:
    """Two ranks, for all tests of a module."""
    yield from _ranks(2)


@pytest.fixture(scope="module")
def four() -> Iterator[World]:
    """Four ranks, for all tests of a module."""
    yield from _ranks(4)


def _ranks(count: int) -> Iterator[World]:
    from tests.ranks import World  # which loads torch

    world = World(count)
    yield world
    world.close()


# The seed ---------------------------------------------------------------------------------------


def fuzz_seed() -> int:
    """The seed of the fuzzed slice: TNC_SEED if set, else derived from the current commit.

    Raises: ValueError if TNC_SEED is no integer of 0 or more.
    """
    text = os.environ.get("TNC_SEED", "").strip()
    if not text:
        return seed_of_commit(ROOT)
    if not (text.isascii() and text.isdigit()):
        raise ValueError(
            f"TNC_SEED={text!r} is no integer of 0 or more\n  fix: TNC_SEED=7, or unset it"
        )
    return int(text)


@functools.cache
def seed_of_commit(directory: Path) -> int:
    """The first 32 bits of the hash of HEAD; a fixed number outside git or before a commit."""
    try:
        command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return SEED_WITHOUT_GIT
    return int(done.stdout[:8], 16)


# Golden files -----------------------------------------------------------------------------------


@pytest.fixture
def golden_directory() -> Path:
    return ROOT / "tests" / "golden"


@pytest.fixture
def golden_update(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--golden-update"))


@pytest.fixture
def golden(golden_directory: Path, golden_update: bool) -> Golden:
    """`golden(name, text)` compares text with tests/golden/<name>, or writes it when updating.

    Put `golden` into the name of a test that uses it: `make golden` selects by that word.
    """

    def compare(name: str, text: str) -> None:
        path = (golden_directory / name).resolve()
        if not path.is_relative_to(golden_directory.resolve()):
            raise ValueError(f"golden name {name!r} points outside of {golden_directory}")
        if golden_update:
            write_golden(path, text)
        else:
            compare_golden(name, path, text)

    return compare


def write_golden(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def compare_golden(name: str, path: Path, text: str) -> None:
    """Fail with a unified diff unless the file exists and holds exactly this text."""
    if not path.exists():
        pytest.fail(f"golden file {name} does not exist: run make golden", pytrace=False)
    expected = path.read_bytes().decode("utf-8")
    if text != expected:
        diff = "\n".join(
            difflib.unified_diff(
                expected.splitlines(), text.splitlines(), f"golden/{name}", "this run", lineterm=""
            )
        )
        hint = f"{name} differs from its golden file: if that is intended, run make golden"
        pytest.fail(f"{hint}\n{diff or '(only line ends differ)'}", pytrace=False)
