"""Plans are kept on disk: found again, validated, bounded, never half-written, never in the way."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tncompiler as tnc
from tests.conftest import ROOT
from tests.test_plans_search import regular
from tncompiler import api
from tncompiler.compiler import Compilation
from tncompiler.planning import cache, decide
from tncompiler.planning.cache import PLANS, Recent
from tncompiler.planning.plan import ContractionPlan


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, on disk and in memory, into which everything is written."""
    monkeypatch.setenv("TNC_CACHE_DIR", str(tmp_path / "plans"))
    monkeypatch.setattr(cache, "_WORTH_S", 0.0)
    forget()
    return tmp_path / "plans"


def forget() -> None:
    """As a new process begins."""
    PLANS.recent.clear()
    api._PLANS.clear()


def planned(seed: int = 0, **options: Any) -> ContractionPlan:
    forget()
    return tnc.plan(regular(14, seed), options=tnc.PlanOptions(**options))


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each search that is made."""
    made: list[object] = []
    search = decide.choose_orders

    def noted(*arguments: Any, **options: Any) -> Any:
        made.append(arguments)
        return search(*arguments, **options)

    monkeypatch.setattr(decide, "choose_orders", noted)
    return made


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


# found again --------------------------------------------------------------------------------------


def test_a_plan_is_found_again(folder: Path, searches: list[object]) -> None:
    first = planned()
    assert len(searches) == len(files(folder)) == 1
    assert planned() == first
    assert len(searches) == 1


def test_within_a_process_nothing_is_read(searches: list[object], folder: Path) -> None:
    first = tnc.plan(regular(14))
    for path in files(folder):
        path.unlink()
    assert tnc.plan(regular(14)) is first
    api._PLANS.clear()
    assert tnc.plan(regular(14)) == first
    assert len(searches) == 1


SCRIPT = """
import sys
sys.path.insert(0, ROOT)
import tncompiler as tnc
from tests.test_plans_search import regular
from tncompiler.planning import decide
if sys.argv[1] == "found":
    decide.choose_orders = None  # a search would fail
print(tnc.plan(regular(60)).to_json())
"""


def test_another_process_finds_it() -> None:
    texts = [
        subprocess.run(
            [sys.executable, "-c", f"ROOT = {str(ROOT)!r}\n{SCRIPT}", word],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for word, seed in (("searched", "1"), ("found", "2"))
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "options",
    [
        {"minimize": "flops"},
        {"search": "greedy"},
        {"trials": 3},
        {"seed": 7},
        {"machine": "h100"},
    ],
    ids=str,
)
def test_what_changes_a_plan_is_part_of_its_key(
    options: dict[str, Any], searches: list[object]
) -> None:
    planned()
    planned(**options)
    planned(seed=0)
    assert len(searches) == 2


def test_sizes_dtypes_and_gradients_are_part_of_the_key(searches: list[object]) -> None:
    b, *k = tnc.indices("b k0 k1 k2 k3", k0=3, k1=4, k2=5, k3=6)
    terms = [tnc.input("x", b, k[0]), *(tnc.param(f"G{n}", k[n], k[n + 1]) for n in range(3))]
    compilation = Compilation(tnc.contract(*terms), None, {}, None)
    for dtype in ("float32", "complex64"):
        for size in (2, 2048):
            for wrt in ((), ("x",), ("x", "G0")):
                sizes = compilation.nominal({b: size})
                compilation.scheduled(compilation.default_dtypes(dtype), sizes, wrt)
    assert len(searches) == 12


def test_how_a_search_runs_is_not(searches: list[object]) -> None:
    one = planned(search="hyper", trials=2)
    assert planned(search="hyper", trials=2, parallel=2, max_seconds=100, progress=True) == one
    assert len(searches) == 1


def test_another_version_searches_anew(
    searches: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned()
    monkeypatch.setattr(decide, "_versions", lambda: ("another",))
    planned()
    assert len(searches) == 2


def test_names_are_not_mixed_up() -> None:
    """Plans are for people: equal networks of other names are other plans."""
    i, j, k, l = tnc.indices("i j k l", i=2, j=3, k=4, l=5)
    one = tnc.contract(tnc.input("a", i, j), tnc.input("b", j, k), tnc.input("c", k, l))
    p, q, r, s = tnc.indices("p q r s", p=2, q=3, r=4, s=5)
    two = tnc.contract(tnc.input("a", p, q), tnc.input("b", q, r), tnc.input("c", r, s))
    assert one.digest == two.digest
    assert "(i, j)" in tnc.plan(one).to_text()
    assert "(p, q)" in tnc.plan(two).to_text()


# what is not kept ---------------------------------------------------------------------------------


def test_a_cut_plan_is_not_kept(folder: Path, searches: list[object]) -> None:
    assert planned(search="optimal", max_seconds=1e-9).cut
    assert files(folder) == []
    assert not planned(search="greedy").cut


def test_what_is_found_at_once_is_not_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_WORTH_S", 1000.0)
    planned()
    assert files(folder) == []


def test_own_functions_are_asked_every_time(folder: Path) -> None:
    asked = []

    def search(inputs: Any, *_: Any) -> Any:
        asked.append(inputs)
        return [(0, 1)] * (len(inputs) - 1)

    for _ in range(2):
        planned(search=search)
    assert len(asked) == 2
    assert files(folder) == []


def test_it_can_be_switched_off(
    folder: Path, searches: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TNC_CACHE", "0")
    assert tnc.plan(regular(14)) == tnc.plan(regular(14))
    assert len(searches) == 2
    assert files(folder) == []


def test_the_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TNC_CACHE_DIR")
    monkeypatch.setattr(cache.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    assert cache.directory() == tmp_path / "tncompiler" / "plans"


# odd files ----------------------------------------------------------------------------------------


def resealed(change: Callable[[Any], Any]) -> Callable[[str], str]:
    """A change of the decisions, with the right checksum."""

    def changed(text: str) -> str:
        record = json.loads(text)
        decisions = change(record["decisions"])
        return json.dumps(cache._sealed(record["key"], decisions))

    return changed


ODD: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "cut short": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: text.replace("{", "("),
    "another kind": lambda text: "[1, 2]",
    "nothing": lambda text: "null",
    "deep": lambda text: "[" * 100_000,
    "altered": lambda text: text.replace("[[0,", "[[1,", 1),
    "another schema": lambda text: text.replace('"schema":1', '"schema":2'),
    "another key": lambda text: text.replace('"key":"', '"key":"0'),
    "no text": lambda text: "\ud800",
    "signed, no orders": resealed(lambda decisions: {}),
    "signed, other orders": resealed(lambda decisions: {"orders": [[0, [[0, 1]]]]}),
    "signed, a tensor twice": resealed(lambda d: {"orders": [[0, [[0, 1]] * 13]]}),
    "signed, no such step": resealed(lambda d: {"orders": [[9, d["orders"][0][1]]]}),
    "signed, words": resealed(lambda d: {"orders": [["x", "y"]]}),
    "signed, a number": resealed(lambda d: 3),
}


@pytest.mark.parametrize("how", ODD)
def test_odd_files_are_recomputed(
    how: str, folder: Path, searches: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    """anything odd is recomputed, and said at debug level"""
    first = planned()
    (path,) = files(folder)
    text = path.read_text()
    odd = ODD[how](text)
    assert odd != text
    path.write_text(odd, encoding="utf-8", errors="surrogatepass")
    with caplog.at_level(logging.DEBUG, "tncompiler"):
        assert planned() == first
    assert len(searches) == 2
    assert "is not used" in caplog.text
    assert path.read_text() == text  # and written again
    assert files(folder) == [path]


def test_a_folder_in_the_way(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = planned()
    (path,) = files(folder)
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.DEBUG, "tncompiler"):
        assert planned() == first
    assert "are not kept" in caplog.text
    assert files(folder) == [path]


def test_no_place_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TNC_CACHE_DIR", str(tmp_path / "file" / "plans"))
    with caplog.at_level(logging.DEBUG, "tncompiler"):
        assert planned() == planned()
    assert "are not kept" in caplog.text


def test_a_write_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nothing half-written"""

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    planned()
    assert files(folder) == []


# bounded, and shared ------------------------------------------------------------------------------


def test_what_was_used_last_is_kept(
    folder: Path, searches: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """bounded size with least recently used removed"""
    monkeypatch.setattr(cache, "_MOST_FILES", 3)
    for seed in range(3):
        planned(seed)
        (newest,) = set(files(folder)) - {p for p in files(folder) if p.stat().st_mtime < 9e8}
        os.utime(newest, (1e8 + seed, 1e8 + seed))
    planned(0)  # used now: 1 is the oldest
    planned(3)
    assert len(files(folder)) == 3
    before = len(searches)
    planned(0)
    assert len(searches) == before
    planned(1)
    assert len(searches) == before + 1


def test_bytes_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(0)
    size = files(folder)[0].stat().st_size
    monkeypatch.setattr(cache, "_MOST_BYTES", 5 * size)
    for seed in range(1, 12):
        planned(seed)
        assert sum(path.stat().st_size for path in files(folder)) <= 5 * size
    monkeypatch.setattr(cache, "_MOST_BYTES", 2 * size)
    planned(20)  # larger than a fourth
    assert len(files(folder)) <= 5


def test_leftovers_of_dead_writers_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(0)
    for number in range(5):
        left = folder / f".{number}.part"
        left.write_text("{")
        os.utime(left, (1e8, 1e8))
    monkeypatch.setattr(cache, "_MOST_FILES", 2)
    planned(1)
    assert [path.suffix for path in files(folder)] == [".json", ".json"]


def test_many_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safe with several processes: here threads that write, read and trim the same files"""
    monkeypatch.setattr(cache, "_MOST_FILES", 4)
    failed: list[BaseException] = []
    orders = {seed: [[0, [[0, 1], [2 + seed, 3]]]] for seed in range(8)}

    def work(first: int) -> None:
        records = cache.Records()
        try:
            for turn in range(60):
                seed = (first + turn) % 8
                records.store(f"key{seed}", seed, {"orders": orders[seed]}, 1.0)
                records.recent.clear()
                found = records.load(f"key{seed}", lambda decisions: decisions["orders"])
                assert found in (None, orders[seed])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(files(folder)) <= 4 + 6
    assert not [path for path in files(folder) if path.suffix == ".part"]


def test_recent_keeps_the_last_used() -> None:
    recent: Recent[int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.get(key) for key in "abc"] == [1, None, 3]
    recent.clear()
    assert recent.get("a") is None


def test_tests_do_not_touch_the_users_cache(plan_cache_folder: Path) -> None:
    """The session has a folder of its own, before any test chooses another."""
    assert plan_cache_folder.is_dir()
    assert plan_cache_folder.name.startswith("plans")
