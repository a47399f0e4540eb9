"""The repository and what it ships: top level, wheel, lazy imports, the two links."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.conftest import ROOT

TOP_LEVEL = (
    *(".ci/run", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile"),
    *("README.md", "pyproject.toml", "requirements-dev.txt"),
    *("tncompiler", "tests", "examples", "benchmarks", "docs", "ir", "backends"),
)
LINKS = ("ir", "backends")
LOADED_ON_USE = ("torch", "triton", "matplotlib")


def run_python(code: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, as a user who stands in that directory would."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


def copy_working_tree(target: Path) -> Path:
    """Copy what git tracks, and what it would track, links kept as links."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listing.split("\0")):
        if os.path.lexists(ROOT / name):  # deleted, but not yet in the index
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_top_level_holds(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("name", LINKS)
def test_links_are_relative(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert os.readlink(link) == f"tncompiler/{name}"
    assert link.resolve() == ROOT / "tncompiler" / name


def test_ci_script_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The names in a wheel built from a copy, so that the build leaves nothing in the checkout."""
    copy = copy_working_tree(tmp_path_factory.mktemp("copy"))
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return tuple(archive.namelist())


def test_wheel_holds_only_the_package(wheel_names: tuple[str, ...]) -> None:
    top = {PurePosixPath(name).parts[0] for name in wheel_names}
    (information,) = top - {"tncompiler"}
    assert information.startswith("tncompiler-") and information.endswith(".dist-info")


def test_wheel_holds_the_page_of_the_explorer(wheel_names: tuple[str, ...]) -> None:
    page = ROOT / "tncompiler" / "draw" / "explorer" / "page"
    wanted = {f"tncompiler/draw/explorer/page/{path.name}" for path in page.iterdir()}
    assert len(wanted) == 7 and wanted <= set(wheel_names)


def test_wheel_is_typed_and_licensed(wheel_names: tuple[str, ...]) -> None:
    assert "tncompiler/py.typed" in wheel_names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)


def test_wheel_holds_every_file_of_the_package(wheel_names: tuple[str, ...]) -> None:
    """Modules, and data such as machine tables: what works here must work installed."""
    files = (path for path in (ROOT / "tncompiler").rglob("*") if path.is_file())
    ours = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    shipped = {name for name in wheel_names if name.startswith("tncompiler/")}
    assert ours - shipped == set()


@pytest.mark.parametrize("module", ["tncompiler", "tncompiler.ir"])
def test_import_leaves_heavy_packages_alone(module: str) -> None:
    code = f"import sys, {module}; print([n for n in {LOADED_ON_USE} if n in sys.modules])"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", LINKS)
def test_links_cannot_be_imported_as_packages(name: str) -> None:
    done = run_python(f"import {name}")
    assert done.returncode != 0, f"`import {name}` made a second copy of tncompiler.{name}"
    last = done.stderr[done.stderr.find("ImportError") :]
    assert last.startswith("ImportError")
    assert f"tncompiler.{name}" in last
