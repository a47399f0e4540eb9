"""What stays of a healing: the best state by batches that nothing was learned from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tncompiler as tnc
from tests.test_compression_heal import batches, equal, error, numbers, pair
from tncompiler.compression.streams import batches_from, hold_out
from tncompiler.formats import LowRank
from tncompiler.ir.errors import FileFormatError

WRECKS = 8  # the step from which rates are such that nothing stays of what was learned


def near(rank: int = 3) -> tuple[nn.Module, nn.Module]:
    """A compressed model that misses two parts in a thousand, and the model that it was."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(24, 36), nn.ReLU(), nn.Linear(36, 12))
    with torch.no_grad():
        for layer in (teacher[0], teacher[2]):
            outs, ins = layer.weight.shape
            low = torch.randn(outs, rank) @ torch.randn(rank, ins)
            layer.weight.copy_(low / ins + 1e-3 * layer.weight)
    return tnc.tensorize(teacher, LowRank(rank))[0], teacher


def state(model: nn.Module) -> list[Tensor]:
    return [*numbers(model), *(b.clone() for b in model.buffers())]


# ---------------------------------------------------------------------------- what stays


def test_a_model_that_a_constant_rate_makes_worse_stays_as_it_was() -> None:
    student, teacher = near()
    before, started = error(student, teacher), numbers(student)
    options: Any = dict(loss="output", steps=12, progress=False)
    worse, _ = near()
    tnc.heal(worse, teacher, batches(), validation=None, **options)
    assert error(worse, teacher) > 3 * before
    found = tnc.heal(student, teacher, batches(), **options)
    assert found.kept == 0 and found.held is not None and found.held[0] == found.held[1]
    assert equal(numbers(student), started) and "nothing changed" in str(found)
    found = tnc.heal(student, teacher, batches(), lr=3e-5, **options)
    assert found.kept == 12 and error(student, teacher) < before


def test_buffers_and_modes_are_those_of_what_stays() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(24, 36), nn.BatchNorm1d(36), nn.Dropout(0.3), nn.Linear(36, 12)]
    teacher = nn.Sequential(*layers)
    student, _ = tnc.tensorize(teacher, LowRank(10))
    student.train()
    started = state(student)
    options: Any = dict(loss="output", steps=5, progress=False)
    found = tnc.heal(student, teacher, batches(), lr=10.0, **options)
    assert found.kept == 0 and equal(state(student), started)
    assert all(module.training for module in student.modules())
    tnc.heal(student, teacher, batches(), lr=10.0, validation=None, **options)
    assert not equal(state(student), started)


def wrecked(
    checkpoint: Path | None, data: Any = None, every: int = 2, **options: Any
) -> tuple[nn.Module, Any]:
    """A healing that is good for some steps and makes all worse afterwards."""
    student, teacher = pair()
    options = dict(steps=13, schedule=lambda part: 0.1 if part * 13 < WRECKS else 100.0) | options
    found = tnc.heal(
        student,
        teacher,
        batches() if data is None else data,
        loss="output",
        lr=1e-2,
        checkpoint=checkpoint,
        every=every,
        progress=False,
        **options,
    )
    return student, found


def test_the_best_of_what_was_seen_stays() -> None:
    student, found = wrecked(None)
    assert found.kept == WRECKS and found.steps == 13
    assert found.held[1] < found.held[0] < found.losses[-1]
    best, whole = wrecked(None, steps=WRECKS, schedule=lambda part: 0.1)
    assert whole.kept == WRECKS and equal(numbers(student), numbers(best))
    last, found = wrecked(None, validation=None)
    assert found.held is None and found.kept == 13 and not equal(numbers(last), numbers(best))


class Killed(Exception):
    """Stands for a signal."""


def stopping(data: list[Tensor], reads: int) -> Any:
    """An iterable of batches that stops the process after so many were read."""

    class Data:
        left = reads

        def __iter__(self) -> Iterator[Tensor]:
            for item in data:
                self.left -= 1
                if self.left < 0:
                    raise Killed
                yield item

    return Data()


@pytest.mark.parametrize("reads", [9, 14, 17])
def test_the_best_is_known_after_a_kill(reads: int, tmp_path: Path) -> None:
    path = tmp_path / "heal.tnc"
    with pytest.raises(Killed):
        wrecked(path, stopping(batches(), reads))
    whole, wanted = wrecked(None)
    for _ in range(2):  # and once more when all is done
        resumed, found = wrecked(path)
        assert found.resumed > 0 and found.losses == wanted.losses
        assert (found.kept, found.held) == (wanted.kept, wanted.held)
        assert equal(numbers(resumed), numbers(whole))


def test_a_look_at_the_end_changes_no_longer_run(tmp_path: Path) -> None:
    path = tmp_path / "heal.tnc"
    for steps in (3, 5, 13):
        part, found = wrecked(path, steps=steps, schedule=None)
    whole, wanted = wrecked(None, schedule=None)
    assert (found.losses, found.kept, found.held) == (wanted.losses, wanted.kept, wanted.held)
    assert equal(numbers(part), numbers(whole))
    with pytest.raises(FileFormatError, match="another healing"):
        wrecked(path, validation=None)


# ---------------------------------------------------------------------------- what judges


def test_what_is_held_out_is_not_learned_from() -> None:
    learned: list[float] = []
    student, _ = pair()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        if model.training:
            learned.append(float(batch[0, 0]))
        return model(batch).square().mean()

    student.train()
    given = batches(3)
    tnc.heal(student, None, given, loss, steps=5, every=1, progress=False)
    first, second, third = (float(batch[0, 0]) for batch in given)
    assert learned == [second, third, second, third, second]
    learned.clear()
    tnc.heal(student, None, given, loss, steps=4, validation=iter(batches(2, 7)), progress=False)
    assert learned == [first, second, third, first]


def test_losses_that_need_gradients_themselves_are_judged() -> None:
    student, _ = pair()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.square().mean()

    found = tnc.heal(student, None, batches(), loss, steps=3, progress=False)
    assert found.held is not None and found.held[1] < found.held[0]
    assert all(p.grad is None for p in student.parameters())


def test_some_batches_of_every_pass_are_held_out() -> None:
    def steps_of(source: Any, steps: int | None = 5) -> tuple[list[float], list[float]]:
        held, rest, skip = hold_out(source, 3)
        seen = [float(x) for _, x in batches_from(rest, 3, 0, steps, skip)]
        return [float(x) for x in held], seen

    given = [torch.tensor(float(k)) for k in range(3)]
    assert steps_of(given) == ([0.0], [1.0, 2.0, 1.0, 2.0, 1.0])
    assert steps_of(given, None) == ([0.0], [1.0, 2.0])
    assert steps_of(iter(given)) == ([0.0], [1.0, 2.0])
    assert steps_of(given[:1], 2) == ([0.0], [0.0, 0.0])
    assert steps_of(given[0], 2) == ([0.0], [0.0, 0.0])
    assert steps_of(iter(given[:1])) == ([0.0], [0.0])
    many = [torch.tensor(float(k)) for k in range(40)]
    held, learned = steps_of(many, None)
    assert held == [0, 8, 16, 24] and sorted([*held, *learned]) == [*range(40)]
    assert steps_of(iter(many), None) == (held, learned) == steps_of(many, 36)
    shuffled = DataLoader(torch.arange(20.0), batch_size=None, shuffle=True)
    held, learned = steps_of(shuffled, None)
    assert len(held) == 3 and sorted([*held, *learned]) == [*range(20)]


def test_batches_that_are_drawn_are_not_the_one_held_out() -> None:
    class Drawn:
        def __iter__(self) -> Iterator[Tensor]:
            for _ in range(9):
                yield torch.rand(())

    held, rest, skip = hold_out(Drawn(), 0)
    seen = [float(x) for _, x in batches_from(rest, 0, 0, 14, skip)]
    assert len({*map(float, held), *seen}) == len(held) + len(seen) == 16


def test_passes_that_are_empty_later_end() -> None:
    class Once:
        left = 3

        def __iter__(self) -> Iterator[Tensor]:
            self.left -= 1
            return iter([torch.zeros(1)] * self.left)

    assert len([*batches_from(Once(), 0, 0, 9)]) == 3
