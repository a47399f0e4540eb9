"""The helpers of conftest can fail: each has a test that shows it."""

from pathlib import Path

import pytest

from tests.conftest import SEED_WITHOUT_GIT, Golden, fuzz_seed, seed_of_commit, write_golden

# Here the golden fixture works on an empty directory, and compares even under --golden-update.


@pytest.fixture
def golden_directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def golden_update() -> bool:
    return False


def test_golden_accepts_the_same_text(golden: Golden, golden_directory: Path) -> None:
    write_golden(golden_directory / "plans" / "tt.txt", "a\nb · c\n")
    golden("plans/tt.txt", "a\nb · c\n")


def test_golden_fails_on_a_mismatch(golden: Golden, golden_directory: Path) -> None:
    write_golden(golden_directory / "tt.txt", "same\nold\n")
    with pytest.raises(pytest.fail.Exception) as failure:
        golden("tt.txt", "same\nnew\n")
    message = str(failure.value)
    assert "run make golden" in message
    assert "-old" in message.splitlines()
    assert "+new" in message.splitlines()


def test_golden_fails_on_a_missing_last_newline(golden: Golden, golden_directory: Path) -> None:
    write_golden(golden_directory / "tt.txt", "a\n")
    with pytest.raises(pytest.fail.Exception, match="run make golden"):
        golden("tt.txt", "a")


def test_golden_fails_without_a_file(golden: Golden, golden_directory: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="run make golden"):
        golden("absent.txt", "text")
    assert list(golden_directory.iterdir()) == []


def test_golden_stays_in_its_directory(golden: Golden) -> None:
    with pytest.raises(ValueError, match="points outside"):
        golden("../elsewhere.txt", "text")


class TestUpdating:
    @pytest.fixture
    def golden_update(self) -> bool:
        return True

    def test_golden_update_writes_the_file(self, golden: Golden, golden_directory: Path) -> None:
        golden("plans/tt.txt", "a\n")
        assert (golden_directory / "plans" / "tt.txt").read_bytes() == b"a\n"


def test_seed_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNC_SEED", "7")
    assert fuzz_seed() == 7


@pytest.mark.parametrize("text", ["seven", "-1", "1.5", "²"])
def test_bad_seed_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TNC_SEED", text)
    with pytest.raises(ValueError, match="TNC_SEED"):
        fuzz_seed()


def test_seed_outside_git_is_fixed(tmp_path: Path) -> None:
    assert seed_of_commit(tmp_path) == SEED_WITHOUT_GIT
