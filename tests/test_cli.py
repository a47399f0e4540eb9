"""The command line: examples of every help page run, JSON is JSON, errors are one paragraph."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tncompiler as tnc
from tests.conftest import ROOT
from tncompiler.cli import main
from tncompiler.cli.app import COMMANDS
from tncompiler.cli.measuring import time_all
from tncompiler.planning.machine import load_machine

pytest.importorskip("typer")

EQUATION = "ij,jk,kl->il"
SIZES = "i=8,j=64,k=8,l=64"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write in, with the examples beside it, as in a checkout."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def done(capsys: Any, *arguments: str) -> str:
    """What a command that must succeed prints."""
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    return out


# Help ---------------------------------------------------------------------------------------------


def help_examples(command: str) -> list[str]:
    """The lines of a command's help that begin with "$ tnc"."""
    module, function = COMMANDS[command].split(":")
    text = getattr(__import__(module, fromlist=[function]), function).__doc__
    return re.findall(r"^\s*\$ (tnc .*)$", text, re.M)


EXAMPLES = [line for command in COMMANDS for line in help_examples(command)]


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_of_the_help_run(line: str, capsys: Any) -> None:
    _, *arguments = shlex.split(line)
    out = done(capsys, *arguments)
    assert out.strip()
    if "--json" in arguments:
        json.loads(out)


def test_every_command_but_one_has_examples() -> None:
    assert [c for c in COMMANDS if not help_examples(c)] == ["calibrate"]  # it takes a minute


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_examples(command: str, capsys: Any) -> None:
    out = done(capsys, command, "--help")
    for line in help_examples(command):
        assert f"$ {line}" in out
    assert "--json" in out


def test_help_lists_all_commands(capsys: Any) -> None:
    out = done(capsys, "--help")
    assert all(re.search(rf"^  {command}\b", out, re.M) for command in COMMANDS)


# What they say ------------------------------------------------------------------------------------


def test_explain_is_explain(capsys: Any) -> None:
    network = tnc.compile(tnc.from_einsum(EQUATION), sizes=dict(i=8), framework="numpy", seed=0)
    out = done(capsys, "explain", EQUATION, "--sizes", "i=8")
    assert out == network.explain() + "\n"
    assert "def forward" in done(capsys, "explain", EQUATION, "--source")


def test_explain_json_has_the_cost(capsys: Any) -> None:
    data = json.loads(done(capsys, "explain", EQUATION, "--sizes", SIZES, "--json"))
    network = tnc.compile(
        tnc.from_einsum(EQUATION), sizes=dict(i=8, j=64, k=8, l=64), framework="numpy", seed=0
    )
    assert data["flops"] == network.cost().flops
    assert data["peak_bytes"] == network.cost().peak_bytes


def test_a_plan_can_be_read_back(capsys: Any, folder: Path) -> None:
    done(capsys, "plan", EQUATION, "-s", SIZES, "-o", "plan.json", "--minimize", "flops")
    plan = tnc.ContractionPlan.from_json((folder / "plan.json").read_text())
    assert plan.minimize == "flops" and plan.path


def test_draw_writes_what_the_ending_says(capsys: Any, folder: Path) -> None:
    assert done(capsys, "draw", EQUATION, "-o", "a.png") == "wrote a.png\n"
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    done(capsys, "draw", EQUATION, "-o", "a.svg", "--what", "tree")
    assert "<svg" in (folder / "a.svg").read_text()


def test_bench_times_us_and_the_peers(capsys: Any) -> None:
    data = json.loads(done(capsys, "bench", EQUATION, "-s", SIZES, "--repeats", "1", "--json"))
    names = [timing["name"] for timing in data["timings"]]
    assert names == [
        "tncompiler, numpy",
        "tncompiler, torch",
        "numpy.einsum, greedy",
        "torch.einsum",
    ]
    assert all(timing["median_us"] > 0 for timing in data["timings"])


def test_bench_of_what_is_no_equation(capsys: Any) -> None:
    out = done(capsys, "bench", "examples/quickstart.py:layer", "-s", "b=2", "--repeats", "1")
    assert "torch.einsum" not in out and "tncompiler, torch" in out


def test_timings_are_taken_in_turn() -> None:
    calls: list[str] = []
    timings = time_all({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert [timing.name for timing in timings] == ["a", "b"]
    assert all(timing.least_us <= timing.median_us for timing in timings)
    assert "".join(calls[-4:]).endswith("b")


def test_tensorize_then_inspect_then_explain(capsys: Any, folder: Path) -> None:
    target = "examples/quickstart.py:make_model"
    out = done(capsys, "tensorize", target, "--budget", "0.2", "-o", "small.safetensors")
    assert 'wrote small.safetensors; in Python: tnc.load(model, "small.safetensors")' in out
    rows = json.loads(done(capsys, "inspect", "small.safetensors", "--json"))["layers"]
    assert [row["name"] for row in rows] == ["0", "2"]
    assert all(row["format"] == "TTMatrix" for row in rows)
    model = tnc.load(None, folder / "small.safetensors")
    assert rows[0]["parameters"] == sum(p.numel() for p in model[0].parameters())
    assert "flops" in done(capsys, "explain", "small.safetensors:0")


def test_a_layer_of_a_model_that_is_not_known(capsys: Any, folder: Path) -> None:
    """A class without arguments is called; a saved layer needs no model to be looked at."""
    (folder / "mine.py").write_text(
        "from torch import nn\n\n\nclass Mine(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.up = nn.Linear(16, 32)\n"
    )
    done(capsys, "tensorize", "mine.py:Mine", "--rank", "2", "-o", "mine.safetensors")
    assert "G1(" in done(capsys, "explain", "mine.safetensors:up")
    status, _, err = run(capsys, "explain", "mine.safetensors:down")
    assert status == 2 and "Fix: it has up" in err


def test_inspect_of_a_model_in_python(capsys: Any) -> None:
    out = done(capsys, "inspect", "examples/quickstart.py:make_small_model")
    assert re.search(r"^\s*0\s+Linear\s+TTMatrix", out, re.M)
    assert "no layer is tensorized" in done(capsys, "inspect", "examples/quickstart.py:make_model")


def test_calibrate_writes_a_machine(
    capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tncompiler.calibration.calibrate", lambda **options: load_machine("reference")
    )
    assert "machine.json" in done(capsys, "calibrate")
    assert "flops" in done(capsys, "plan", EQUATION, "--machine", "machine.json")


def test_cache_is_counted_and_cleared(
    capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TNC_CACHE_DIR", str(folder / "plans"))
    assert json.loads(done(capsys, "cache", "--json"))["plans"] == 0
    (folder / "plans").mkdir()
    (folder / "plans" / "one.json").write_text("{}")
    assert json.loads(done(capsys, "cache", "--json"))["plans"] == 1
    assert "removed 1 plans" in done(capsys, "cache", "--clear")
    assert not list((folder / "plans").iterdir())


# JSON ---------------------------------------------------------------------------------------------

# what each command is told, and keys of what it answers
ANSWERS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "explain": ((EQUATION,), {"flops", "peak_bytes", "predicted_us", "steps"}),
    "plan": ((EQUATION,), {"networks", "minimize"}),
    "draw": ((EQUATION, "-o", "a.svg"), {"what", "file"}),
    "bench": ((EQUATION, "-s", SIZES, "--repeats", "1"), {"sizes", "timings"}),
    "tensorize": (("examples/quickstart.py:make_model", "--budget", "0.3"), {"layers", "file"}),
    "inspect": (("examples/quickstart.py:make_small_model",), {"layers"}),
    "calibrate": ((), {"schema", "source"}),
    "cache": ((), {"folder", "plans", "bytes"}),
}


def test_every_command_has_an_answer_here() -> None:
    assert list(ANSWERS) == list(COMMANDS)


@pytest.mark.parametrize("command", ANSWERS)
def test_json_of_every_command_is_json_and_nothing_else(
    command: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tncompiler.calibration.calibrate", lambda **options: load_machine("reference")
    )
    arguments, wanted = ANSWERS[command]
    data = json.loads(done(capsys, command, *arguments, "--json"))
    assert wanted <= set(data)


# Errors -------------------------------------------------------------------------------------------

BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no such command": (("dance",), "No such command"),
    "no such option": (("explain", EQUATION, "--loud"), "No such option"),
    "no network": (("explain",), "Missing argument"),
    "no such file": (("explain", "nothing.py:layer"), "no file of that name"),
    "no such attribute": (("explain", "examples/quickstart.py:lair"), "Fix: it has layer"),
    "not said which": (("explain", "examples/quickstart.py"), "Fix: name it"),
    "no network by that name": (("explain", "examples/quickstart.py:OUT"), "which is no network"),
    "makes no network": (("explain", "examples/quickstart.py:make_model"), "which is no network"),
    "bad equation": (("explain", "ij,jk->iq"), "UnknownOutputIndex"),
    "bad sizes": (("explain", EQUATION, "-s", "i:8"), "write them as i=4,j=8"),
    "unknown size": (("explain", EQUATION, "-s", "zz=8"), "UnknownIndex"),
    "unknown part": (("explain", EQUATION, "--part", "half"), "there is no part"),
    "bad option value": (("plan", EQUATION, "--minimize", "beauty"), "PlanOptions.minimize"),
    "no such picture": (("draw", EQUATION, "--what", "cat"), "there is no picture"),
    "no such ending": (("draw", EQUATION, "-o", "a.cat"), "name a .svg, .pdf or .png"),
    "no such layout": (("draw", EQUATION, "--layout", "spiral"), "choose one of auto, own"),
    "no such tensor": (("draw", EQUATION, "--without", "Q"), "no network has a tensor"),
    "no model": (("tensorize", "examples/quickstart.py:layer"), "which is no torch module"),
    "no such format": (
        ("tensorize", "examples/quickstart.py:make_model", "-f", "Cake"),
        "there is no format",
    ),
    "no goal": (("tensorize", "examples/quickstart.py:make_model"), "Fix:"),
    "not a number": (("bench", EQUATION, "--repeats", "many"), "valid integer"),
    "not saved by us": (("inspect", "broken.safetensors"), "FileFormatError"),
    "no such layer": (("explain", "broken.safetensors:fc"), "FileFormatError"),
    "no such folder for a page": (("explain", EQUATION, "--html", "gone/a.html"), "gone/a.html"),
    "no such folder for a picture": (("draw", EQUATION, "-o", "gone/a.png"), "can be written"),
    "no such folder for a plan": (("plan", EQUATION, "-o", "gone/a.json"), "No such file"),
    "no such folder for a model": (
        ("tensorize", "examples/quickstart.py:make_model", "-o", "gone/a.st", "--budget", "0.3"),
        "gone/",
    ),
    "a file that does not run": (("explain", "wrong.py:network"), "ZeroDivisionError"),
    "a function that does not run": (("explain", "late.py:make"), "In line 2."),
    "no machine table": (("plan", EQUATION, "--machine", "wrong.py"), "no machine table"),
    "no such machine": (("plan", EQUATION, "--machine", "abacus"), "abacus"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_use_is_status_2_and_one_paragraph(case: str, capsys: Any, folder: Path) -> None:
    (folder / "broken.safetensors").write_bytes(b"not at all")
    (folder / "wrong.py").write_text("x = 1\nx / 0\n")
    (folder / "late.py").write_text("def make():\n    return 1 / 0\n")
    arguments, words = BAD[case]
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert err.startswith("tnc: ") and err.count("\n") == 1 and "Traceback" not in err
    assert not re.search(r"\.py:\d", err)  # no place in our own code


def test_no_command_shows_the_help(capsys: Any) -> None:
    status, out, _ = run(capsys)
    assert status == 2 and "explain" in out


# As a program -------------------------------------------------------------------------------------


def outside(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tncompiler", *arguments]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_as_a_program() -> None:
    made = outside("explain", EQUATION, "--part", "half")
    assert made.returncode == 2 and made.stdout == "" and made.stderr.startswith("tnc: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(
    shell: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def completed(words: str) -> str:
        typed = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        typed |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        for name, value in {**typed, "_TNC_COMPLETE": f"complete_{shell}"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            main([])
        return str(capsys.readouterr().out)

    assert "explain" in completed("tnc ex") and "bench" not in completed("tnc ex")
    assert "--sizes" in completed("tnc explain --si")


def test_the_shell_calls_it_so() -> None:
    made = outside(_TNC_COMPLETE="complete_bash", COMP_WORDS="tnc ex", COMP_CWORD="1")
    assert made.stdout.split() == ["explain"]
