"""Every cell of docs/torch-support.md: each transform of torch on each backend and network."""

from __future__ import annotations

import importlib.util
import json
import os
import re

import pytest
from filelock import FileLock

from tests.conftest import ROOT
from tests.torch_support.pair import run_pair
from tests.torch_support.table import Refusal, cell_named, names

pytestmark = pytest.mark.usefixtures("room_for_operators")


def check(name: str) -> None:
    """The cell works, or raises what the table says."""
    transform, cell = cell_named(name)
    refusal = transform.refusal(cell)
    if refusal is None:
        transform.check(cell)
        return
    with pytest.raises(Exception, match=refusal.says) as caught:
        transform.check(cell)
    assert type(caught.value).__name__ == refusal.error


@pytest.mark.parametrize("name", names(pair=False, slow=False))
def test_cell(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(pair=False, slow=True))
def test_slow_cell(name: str) -> None:
    check(name)


# ---------------------------------------------------------------------------- two processes


def found_by_pair(factory: pytest.TempPathFactory, slow: bool) -> dict[str, str]:
    """What the cells raise in two processes, started once for all of pytest's workers."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / ("pair-slow" if slow else "pair")
    with FileLock(f"{folder}.lock"):
        results = folder / "results.json"
        if not results.exists():
            folder.mkdir(exist_ok=True)
            results.write_text(json.dumps(run_pair(names(pair=True, slow=slow), folder)))
    return dict(json.loads(results.read_text()))


@pytest.fixture(scope="session")
def quick_pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return found_by_pair(tmp_path_factory, slow=False)


@pytest.fixture(scope="session")
def slow_pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return found_by_pair(tmp_path_factory, slow=True)


@pytest.mark.parametrize("name", names(pair=True, slow=False))
def test_cell_of_two_processes(name: str, quick_pair: dict[str, str]) -> None:
    transform, cell = cell_named(name)
    assert_as_expected(quick_pair[name], transform.refusal(cell))


@pytest.mark.slow
@pytest.mark.parametrize("name", names(pair=True, slow=True))
def test_slow_cell_of_two_processes(name: str, slow_pair: dict[str, str]) -> None:
    transform, cell = cell_named(name)
    assert_as_expected(slow_pair[name], transform.refusal(cell))


def assert_as_expected(found: str, refusal: Refusal | None) -> None:
    if refusal is None:
        assert not found, found
    else:
        assert re.search(f"{refusal.error}: .*{refusal.says}", found), found


# ---------------------------------------------------------------------------- the page


def test_the_page_is_that_of_the_table() -> None:
    """docs/torch-support.md is what docs/build_torch_support.py writes."""
    spec = importlib.util.spec_from_file_location("page", ROOT / "docs" / "build_torch_support.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "torch-support.md").read_text(encoding="utf-8")
    assert written == module.page(module.read_record())
