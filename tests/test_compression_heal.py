"""Healing: what is learned, from which teacher, and what a kill or a NaN leaves."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tncompiler as tnc
from tests.conftest import ROOT
from tests.model_zoo import MODELS, Vision
from tests.test_tensorize import config_of
from tncompiler.compression.heal import Healing
from tncompiler.compression.streams import batches_from
from tncompiler.formats import TT, LowRank
from tncompiler.ir.errors import ArgumentError, DivergedError, FileFormatError, TeacherError


def pair(rank: int = 3, dropout: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """A compressed model and the model that it was."""
    torch.manual_seed(0)
    layers = [nn.Linear(24, 36), nn.ReLU(), nn.Dropout(dropout), nn.Linear(36, 12)]
    teacher = nn.Sequential(*layers)
    student, _ = tnc.tensorize(teacher, LowRank(rank))
    return student, teacher


def batches(count: int = 6, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 24, generator=generator) for _ in range(count)]


def error(student: nn.Module, teacher: nn.Module) -> float:
    x = torch.cat(batches(2, seed=9))
    with torch.no_grad():
        wanted = teacher.eval()(x)
        return float((student(x) - wanted).norm() / wanted.norm())


def numbers(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------------- learning


@pytest.mark.parametrize("loss", ["feature", "output"])
def test_a_student_comes_nearer(loss: str) -> None:
    student, teacher = pair()
    before, kept = error(student, teacher), numbers(teacher)
    found = tnc.heal(student, teacher, batches(), loss=loss, steps=120, lr=1e-2, progress=False)
    assert error(student, teacher) < 0.9 * before
    assert found.steps == len(found.losses) == 120 and found.losses[-1] < found.losses[0]
    assert set(found.parts) == ({"0", "3"} if loss == "feature" else {"output"})
    assert equal(numbers(teacher), kept)
    assert all(p.grad is None for p in student.parameters())


def test_slices_are_named_modules() -> None:
    torch.manual_seed(0)
    teacher = Vision()
    student, _ = tnc.tensorize(teacher, TT(2, clamp=True))
    images = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    head = numbers(student.head)
    found = tnc.heal(
        student, teacher, images, slices=["blocks.0", "blocks.1"], steps=20, progress=False
    )
    assert set(found.parts) == {"blocks.0", "blocks.1"} and found.losses[-1] < found.losses[0]
    assert equal(numbers(student.head), head)


def test_only_cores_learn_unless_all_shall() -> None:
    torch.manual_seed(0)
    teacher = Vision()
    student, _ = tnc.tensorize(teacher, TT(2, clamp=True))
    images = [torch.randn(4, 3, 8, 8)]
    norm = student.blocks[0].norm1.weight.detach().clone()
    tnc.heal(student, teacher, images, loss="output", steps=2, progress=False)
    assert torch.equal(student.blocks[0].norm1.weight, norm)
    tnc.heal(student, teacher, images, loss="output", steps=2, train="all", progress=False)
    assert not torch.equal(student.blocks[0].norm1.weight, norm)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "used twice"])
def test_every_model_heals(name: str) -> None:
    torch.manual_seed(0)
    case = MODELS[name]
    teacher = case.make()
    student, _ = tnc.tensorize(teacher, config_of(case, TT(2, clamp=True)))
    found = tnc.heal(student, teacher, [case.example()], steps=12, lr=5e-3, progress=False)
    assert found.losses[-1] < found.losses[0]


def test_fine_tuning_with_a_loss_of_ones_own() -> None:
    student, _ = pair()
    x, labels = torch.randn(64, 24), torch.randint(12, (64,))
    loader = DataLoader(TensorDataset(x, labels), batch_size=16, shuffle=True)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    found = tnc.heal(student, None, loader, loss, steps=60, lr=1e-2, train="all", progress=False)
    assert found.losses[-1] < 0.9 * found.losses[0]


def test_frozen_cores_stay_and_flags_are_kept() -> None:
    student, teacher = pair()
    student[0].requires_grad_(False)
    frozen = numbers(student[0])
    tnc.heal(student, teacher, batches(), loss="output", steps=3, progress=False)
    assert equal(numbers(student[0]), frozen)
    assert [p.requires_grad for p in student.parameters()] == [False] * 3 + [True] * 3


def test_batches_are_passed_through_again_or_once() -> None:
    given = [torch.zeros(1), torch.ones(1)]
    assert [step for step, _ in batches_from(given, 0, 0, 5)] == [0, 1, 2, 3, 4]
    assert [float(x) for _, x in batches_from(given, 0, 3, 5)] == [1.0, 0.0]
    assert len([*batches_from(given, 0, 0, None)]) == 2
    assert len([*batches_from(iter(given), 0, 0, 5)]) == 2
    assert len([*batches_from(given[0], 0, 0, 3)]) == 3


def test_the_rate_follows_its_schedule() -> None:
    student, teacher = pair()
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    tnc.heal(
        student,
        teacher,
        batches(),
        steps=4,
        optimizer=lambda parameters: Watched(parameters, lr=0.1),
        schedule=lambda part: 1 - part,
        progress=False,
    )
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


# ---------------------------------------------------------------------------- kills

SCRIPT = """
import sys
from pathlib import Path
from tests.test_compression_heal import Batches, healed

healed(Path(sys.argv[1]), batches=Batches(kill_at=14))
"""


class Batches:
    """Shuffled batches; where asked for, reading one of them kills the process."""

    def __init__(self, kill_at: int | None = None) -> None:
        x = torch.randn(40, 24, generator=torch.Generator().manual_seed(5))
        self.loader = DataLoader(x, batch_size=8, shuffle=True)
        self.left = kill_at

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.loader:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def healed(
    checkpoint: Path | None, steps: int = 13, every: int = 3, batches: Batches | None = None
) -> Any:
    student, teacher = pair(dropout=0.2)
    student.train()
    found = tnc.heal(
        student,
        teacher,
        batches or Batches(),
        loss="output",
        steps=steps,
        checkpoint=checkpoint,
        every=every,
        progress=False,
    )
    return student, found


def test_a_run_that_was_killed_ends_as_it_would_have(tmp_path: Path) -> None:
    path = tmp_path / "heal.tnc"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.exists()
    resumed, found = healed(path)
    whole, wanted = healed(None)
    assert found.resumed == 6 and found.losses == wanted.losses
    assert equal(numbers(resumed), numbers(whole))


def test_resuming_at_every_step_is_the_same(tmp_path: Path) -> None:
    whole, wanted = healed(None)
    path = tmp_path / "heal.tnc"
    for steps in (1, 2, 7, 13):
        part, found = healed(path, steps, every=2)
    assert found.losses == wanted.losses and equal(numbers(part), numbers(whole))
    again, found = healed(path)
    assert found.resumed == found.steps == 13 and equal(numbers(again), numbers(whole))


def test_a_kill_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "heal.tnc"
    healed(path, steps=3)
    before = path.read_bytes()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tncompiler.models.files.sealed.os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            healed(path, steps=5)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]
    _, wanted = healed(None)
    assert healed(path)[1].losses == wanted.losses


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "heal.tnc"
    healed(path, steps=3)
    other, teacher = pair(rank=4)
    before = numbers(other)
    options: Any = dict(loss="output", checkpoint=path, progress=False)
    with pytest.raises(FileFormatError, match="another shape"):
        tnc.heal(other, teacher, Batches(), steps=9, **options)
    student, _ = pair()
    with pytest.raises(FileFormatError, match="another healing"):
        tnc.heal(student, teacher, Batches(), steps=9, seed=1, **options)
    tnc.save(student, path)
    with pytest.raises(FileFormatError, match="no checkpoint"):
        tnc.heal(student, teacher, Batches(), steps=9, **options)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FileFormatError):
        tnc.heal(student, teacher, Batches(), steps=9, **options)
    assert equal(numbers(other), before)


def test_state_without_tensors_and_complex_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(24, 12, dtype=torch.complex64))
    x = [torch.randn(8, 24, dtype=torch.complex64) for _ in range(3)]

    def run(checkpoint: Path | None, steps: int) -> nn.Module:
        student, _ = tnc.tensorize(teacher, LowRank(3))
        options: Any = dict(checkpoint=checkpoint, steps=steps, progress=False)
        tnc.heal(student, teacher, x, loss="output", **options)
        return student

    run(tmp_path / "h.tnc", 2)
    assert equal(numbers(run(tmp_path / "h.tnc", 5)), numbers(run(None, 5)))


# ---------------------------------------------------------------------------- what goes wrong


def poisoned(at: int) -> Iterator[Tensor]:
    for number, x in enumerate(batches(9)):
        yield x * float("nan") if number == at else x


def test_nan_stops_with_the_last_good_state(tmp_path: Path) -> None:
    student, teacher = pair()
    path = tmp_path / "heal.tnc"
    options: Any = dict(loss="output", every=2, validation=None, progress=False)
    with pytest.raises(DivergedError, match="nan at step 5"):
        tnc.heal(student, teacher, poisoned(5), steps=9, checkpoint=path, **options)
    assert all(bool(torch.isfinite(p).all()) for p in student.parameters())
    good, _ = pair()  # four steps: the last state whose loss was seen
    tnc.heal(good, teacher, batches(9)[:4], steps=4, **options)
    assert equal(numbers(student), numbers(good))
    resumed, _ = pair()
    tnc.heal(resumed, teacher, batches(9), steps=4, checkpoint=path, **options)
    assert equal(numbers(resumed), numbers(good))


@pytest.mark.parametrize("every", [1, 100])
def test_rates_that_blow_up(every: int, tmp_path: Path) -> None:
    student, teacher = pair()
    with pytest.raises(DivergedError):
        tnc.heal(
            student,
            teacher,
            batches(),
            loss="output",
            steps=50,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e25),
            clip=None,
            checkpoint=tmp_path / "heal.tnc",
            every=every,
            progress=False,
        )
    assert all(bool(torch.isfinite(p).all()) for p in student.parameters())


def test_halves_that_diverge_are_told_why() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(24, 36), nn.ReLU(), nn.Linear(36, 12)).half()
    student, _ = tnc.tensorize(teacher, LowRank(3))
    given, options = [x.half() for x in batches()], dict(loss="output", steps=3, progress=False)
    with pytest.raises(DivergedError, match="float16"):
        tnc.heal(student, teacher, given, **options)
    adam = lambda parameters: torch.optim.Adam(parameters, 1e-3, eps=1e-4)  # noqa: E731
    found = tnc.heal(student, teacher, given, optimizer=adam, **options)
    assert found.losses[-1] < found.losses[0]


def test_seeds_of_any_size() -> None:
    student, teacher = pair()
    tnc.heal(student, teacher, batches(), steps=1, seed=2**70, progress=False)


def other_teacher() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 36), nn.ReLU(), nn.Identity(), nn.Linear(36, 5))


def sharing(student: nn.Module, teacher: nn.Module) -> nn.Module:
    """A teacher that holds a bias of the student."""
    teacher[0].bias = student[0].bias
    return teacher


CALLS: dict[str, tuple[Any, type[Exception], str]] = {
    "shared parameters": (
        lambda s, t: tnc.heal(s, sharing(s, t), batches()),
        TeacherError,
        "shares parameters",
    ),
    "itself": (lambda s, t: tnc.heal(s, s, batches()), TeacherError, "its own teacher"),
    "no module": (lambda s, t: tnc.heal(s, "t", batches()), TeacherError, "str"),
    "no such slice": (
        lambda s, t: tnc.heal(s, nn.Sequential(nn.Linear(24, 12)), batches()),
        TeacherError,
        "no module '3'",
    ),
    "other outputs": (
        lambda s, t: tnc.heal(s, other_teacher(), batches(), loss="output", progress=False),
        TeacherError,
        r"\(32, 5\)",
    ),
    "other slices": (
        lambda s, t: tnc.heal(s, other_teacher(), batches(), progress=False),
        TeacherError,
        "'?3",
    ),
    "unknown slice": (lambda s, t: tnc.heal(s, t, batches(), slices=["9"]), ArgumentError, "'9'"),
    "slices as text": (lambda s, t: tnc.heal(s, t, batches(), slices="0"), ArgumentError, "list"),
    "nothing tensorized": (lambda s, t: tnc.heal(t, s, batches()), ArgumentError, "no slices"),
    "unknown loss": (lambda s, t: tnc.heal(s, t, batches(), loss="mse"), ArgumentError, "mse"),
    "no batches": (lambda s, t: tnc.heal(s, t, [], progress=False), ArgumentError, "no batches"),
    "no iterable": (lambda s, t: tnc.heal(s, t, 5, progress=False), ArgumentError, "int"),
    "no batch": (lambda s, t: tnc.heal(s, t, ["x"], progress=False), ArgumentError, "str"),
    "no steps": (lambda s, t: tnc.heal(s, t, batches(), steps=0), ArgumentError, "steps is 0"),
    "schedule": (
        lambda s, t: tnc.heal(s, t, batches(), schedule=lambda p: 1.0),
        ArgumentError,
        "steps=",
    ),
    "what to train": (lambda s, t: tnc.heal(s, t, batches(), train="some"), ArgumentError, "some"),
    "all frozen": (
        lambda s, t: tnc.heal(s.requires_grad_(False), t, batches()),
        ArgumentError,
        "frozen",
    ),
    "a seed as text": (lambda s, t: tnc.heal(s, t, batches(), seed="a"), ArgumentError, "seed is"),
    "no rate": (lambda s, t: tnc.heal(s, t, batches(), lr=0.0), ArgumentError, "lr is 0"),
    "rate of NaN": (
        lambda s, t: tnc.heal(s, t, batches(), lr=float("nan")),
        ArgumentError,
        "lr is nan",
    ),
    "clip": (lambda s, t: tnc.heal(s, t, batches(), clip=-1.0), ArgumentError, "clip is -1"),
    "a schedule's name": (
        lambda s, t: tnc.heal(s, t, batches(), steps=2, schedule="cosine"),
        ArgumentError,
        "function from the part",
    ),
    "an optimizer that is made": (
        lambda s, t: tnc.heal(s, t, batches(), optimizer=torch.optim.Adam(s.parameters())),
        ArgumentError,
        "lambda parameters",
    ),
    "an optimizer of others": (
        lambda s, t: tnc.heal(
            s, t, batches(), optimizer=lambda _: torch.optim.Adam(t.parameters())
        ),
        ArgumentError,
        "none of the parameters",
    ),
    "no optimizer": (
        lambda s, t: tnc.heal(s, t, batches(), optimizer=lambda p: p),
        ArgumentError,
        "makes a list",
    ),
    "an optimizer that asks again": (
        lambda s, t: tnc.heal(s, t, batches(), optimizer=torch.optim.LBFGS),
        ArgumentError,
        "LBFGS",
    ),
    "what to judge by": (
        lambda s, t: tnc.heal(s, t, batches(), validation="last"),
        ArgumentError,
        "validation is 'last'",
    ),
    "nothing to judge by": (
        lambda s, t: tnc.heal(s, t, batches(), validation=[], progress=False),
        ArgumentError,
        "no batches",
    ),
    "NaN to judge by": (
        lambda s, t: tnc.heal(s, t, batches(), validation=[*poisoned(0)][:1], progress=False),
        DivergedError,
        "held out is nan before any step",
    ),
    "a checkpoint in no folder": (
        lambda s, t: tnc.heal(s, t, batches(), checkpoint="/no/such/folder/heal.tnc"),
        ArgumentError,
        "folder that is there",
    ),
    "a checkpoint that is a folder": (
        lambda s, t: tnc.heal(s, t, batches(), checkpoint=ROOT),
        ArgumentError,
        "no checkpoint= there",
    ),
    "a loss without gradient": (
        lambda s, t: tnc.heal(s, None, batches(), lambda m, b: 3.0, progress=False),
        ArgumentError,
        "gradient",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_refused(case: str) -> None:
    student, teacher = pair()
    before = numbers(student)
    call, kind, text = CALLS[case]
    with pytest.raises(kind, match=text):
        call(student, teacher)
    assert equal(numbers(student), before)


def test_it_says_whether_the_loss_grew() -> None:
    better = Healing((0.5, 0.25), {"output": 0.25}, 2, 0, 1.26, None, 2)
    assert str(better) == "loss 0.5 → 0.25 in 2 steps, 1.3 s"
    worse = str(dataclasses.replace(better, losses=(0.25, 0.5)))
    assert "it grew" in worse and "lr=" in worse
    judged = dataclasses.replace(better, held=(0.5, 0.375))
    assert str(judged).endswith("held out 0.5 → 0.375, after 2 steps")
    same = str(dataclasses.replace(better, held=(0.5, 0.5), kept=0))
    assert "nothing changed" in same and "lr=" in same
    assert str(dataclasses.replace(better, losses=())) == "no steps"


def test_a_copy_is_what_is_compared() -> None:
    """`equal` and `numbers` see a change."""
    student, _ = pair()
    other = copy.deepcopy(student)
    assert equal(numbers(student), numbers(other))
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    assert not equal(numbers(student), numbers(other))
