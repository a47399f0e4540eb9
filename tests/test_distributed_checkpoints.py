"""Long contractions: progress, checkpoints that are whole, and the same bits after going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open

import tncompiler as tnc
from tests.conftest import ROOT
from tests.ranks import ONE_THREAD, World
from tncompiler.distributed import checkpoint as module_under_test
from tncompiler.distributed.checkpoint import Checkpoint, checksum
from tncompiler.distributed.sums import Total

SLICES = 48
KILLED_AT = 10  # the slice at which tests/restarted.py is killed


class Counter:
    """Progress that is kept, with something to do at one slice."""

    def __init__(self, at: int | None = None, act: Any = None) -> None:
        self.seen: list[Any] = []
        self.at, self.act = at, act

    def __call__(self, progress: Any) -> None:
        self.seen.append(progress)
        if progress.done == self.at:
            self.act()


def long_sum(folder: Any, counter: Any, group: Any = None, **options: Any) -> Any:
    """A(i, k) B(k, l) C(l, j), cut along k and l."""
    i, k, l, j = tnc.indices("i k l j", i=4, k=12, l=8, j=4)
    y = tnc.contract(
        *(tnc.input(n, *two) for n, two in zip("ABC", ((i, k), (k, l), (l, j)), strict=True)),
        out=(i, j),
    )
    given = dict(slices=SLICES, checkpoint=folder, every_s=0.0, progress=counter, **options)
    return tnc.compile(y, process_group=tnc.Ranks(group, **given))


def arrays(seed: int = 0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    shapes = ((4, 12), (12, 8), (8, 4))
    return [torch.tensor(rng.standard_normal(s), dtype=torch.float32) for s in shapes]


class Stop(Exception):
    """Ends a run in the middle."""


def stop() -> None:
    raise Stop


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def interrupted(folder: Path, at: int, seed: int = 0) -> None:
    with pytest.raises(Stop):
        long_sum(folder, Counter(at, stop))(*arrays(seed))


# Progress ---------------------------------------------------------------------------------------


def test_progress_says_how_much_is_left(tmp_path: Path) -> None:
    counter = Counter()
    long_sum(tmp_path, counter)(*arrays())
    total = counter.seen[0].total
    assert total >= SLICES
    assert [one.done for one in counter.seen] == list(range(1, total + 1))
    assert counter.seen[-1].remaining_s == 0.0
    assert all(one.remaining_s > 0 for one in counter.seen[:-1])


def test_a_bar_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    long_sum(None, True)(*arrays())
    assert "slices of rank 0" in capsys.readouterr().err


# Going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 15, 16, 17, 33, SLICES - 1])
def test_a_run_goes_on_where_it_was_to_the_same_bits(tmp_path: Path, at: int) -> None:
    whole = bits(long_sum(None, Counter())(*arrays()))
    interrupted(tmp_path, at)
    counter = Counter()
    again = bits(long_sum(tmp_path, counter)(*arrays()))
    assert again == whole
    done_before = counter.seen[0].total - len(counter.seen)
    assert done_before == at - 1  # the slice that was under way is done again
    last = Counter()
    assert bits(long_sum(tmp_path, last)(*arrays())) == whole
    assert last.seen == []


def test_other_tensors_begin_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(tmp_path, 20)
    counter = Counter()
    found = bits(long_sum(tmp_path, counter)(*arrays(1)))
    assert len(counter.seen) == counter.seen[0].total
    assert found == bits(long_sum(None, Counter())(*arrays(1)))
    assert "belongs to other work" in caplog.text


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_files_are_tensors_with_a_header_of_json(tmp_path: Path) -> None:
    interrupted(tmp_path, 20)
    (path,) = files(tmp_path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["work"])
        names = list(file.keys())
    assert header["next"] == 19
    assert header["format"] == "tncompiler slices"
    assert "0.0.0" in names


@pytest.mark.parametrize("fault", ["cut short", "not a file of tensors", "another header", "empty"])
def test_a_file_that_cannot_be_read_is_not_used(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, 20)
    (path,) = files(tmp_path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut short": content[: len(content) // 2],
            "not a file of tensors": b"gathered by the wind",
            "another header": content.replace(b"next", b"nxet"),
            "empty": b"",
        }[fault]
    )
    counter = Counter()
    found = bits(long_sum(tmp_path, counter)(*arrays()))
    assert found == bits(long_sum(None, Counter())(*arrays()))
    assert len(counter.seen) == counter.seen[0].total
    assert "not used" in caplog.text


# A full disk ------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was written stays, the run ends with its result, and no half of a file is left."""
    whole = bits(long_sum(None, Counter())(*arrays()))
    interrupted(tmp_path, 20)
    before = {path: path.read_bytes() for path in files(tmp_path)}

    def full(tensors: Any, name: str, metadata: Any) -> None:
        Path(name).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module_under_test, "save_file", full)
        counter = Counter()
        assert bits(long_sum(tmp_path, counter)(*arrays())) == whole
    assert "No space left" in caplog.text
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    assert len(counter.seen) == counter.seen[0].total - 19


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """Readers see the old file or the new one: a name is only ever moved onto."""
    made = Checkpoint(tmp_path / "a.safetensors", "key", 0.0)
    sums = [[Total(torch.zeros(2, 3), None)]]
    sums[0][0].add(torch.ones(2, 3), None)
    made.write(range(5), 1, sums)
    first = (tmp_path / "a.safetensors").stat().st_ino
    made.write(range(5), 2, sums)
    assert (tmp_path / "a.safetensors").stat().st_ino != first
    assert [path.name for path in files(tmp_path)] == ["a.safetensors"]
    restored = made.restore(range(5), [[None]])
    assert restored is not None
    assert restored[0] == 2
    assert torch.equal(restored[1][0][0].value(), torch.ones(2, 3))
    assert made.restore(range(6), [[None]]) is None


def test_checksums_tell_values_names_and_shapes_apart() -> None:
    base = {"a": torch.ones(2, 3)}
    others = [
        {"b": torch.ones(2, 3)},
        {"a": torch.ones(3, 2)},
        {"a": torch.ones(2, 3, dtype=torch.float64)},
        {"a": torch.ones(2, 3).index_fill(0, torch.tensor(1), 2.0)},
    ]
    found = {checksum(one) for one in (base, *others)}
    assert len(found) == 5
    assert checksum({"a": torch.ones(3, 2).T}) == checksum(base)


# Ranks that are killed --------------------------------------------------------------------------


def ranked_sum(folder: str | None, rank: int, at: int | None) -> tuple[bytes, int, int]:
    """The bits, how many slices this rank did, and how many are its own."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    counter = Counter(at if rank == dist.get_rank() else None, die)
    made = long_sum(folder, counter, dist.group.WORLD, lost_after_s=3.0)(*arrays())
    return bits(made), len(counter.seen), counter.seen[-1].total if counter.seen else 0


def kill_and_resume(folder: Path, moments: list[tuple[int, int]]) -> None:
    """Jobs of two ranks, one of which dies at a slice; each is started again in a new world."""
    world = World(2)
    try:
        for number, (rank, at) in enumerate(moments):
            own = str(folder / str(number))
            answers = world.answers(ranked_sum, own, rank, at, timeout_s=60.0)
            assert answers[rank][0] == "Killed"
            assert answers[1 - rank][0] == "RankLost", answers
            world.close()
            world = World(2)
            found = world.call(ranked_sum, own, -1, None)
            whole = world.call(ranked_sum, None, -1, None)
            assert all(one[0] == whole[0][0] for one in (*found, *whole))
            _, done, total = found[rank]
            assert done == total - (at - 1)  # the slice that was under way is done again
    finally:
        world.close()


def test_a_killed_rank_goes_on_when_the_job_starts_again(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, [(1, 10)])


def slow_sum(folder: str | None, pause_s: float) -> bytes:
    """The bits of a sum whose slices take at least so long."""

    def pausing(progress: Any) -> None:
        time.sleep(pause_s)

    return bits(long_sum(folder, pausing, dist.group.WORLD, lost_after_s=3.0)(*arrays()))


def killed_from_outside(world: World, folder: str, rank: int, after_s: float) -> list[str]:
    """What both ranks end with, one of which is killed at a moment that it does not choose."""
    world.start(slow_sum, folder, 0.03)
    time.sleep(after_s)
    os.kill(world.processes[rank].pid or 0, signal.SIGKILL)
    return [world.answer(k, 60.0)[0] for k in range(2)]


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    """Planning, writing a checkpoint, between slices, at the sum: wherever it is."""
    rng, world = np.random.default_rng(0), World(2)
    try:
        whole = world.call(slow_sum, None, 0.0)[0]
        start = time.monotonic()
        world.call(slow_sum, str(tmp_path / "timed"), 0.03)
        lasts_s = time.monotonic() - start
        resumed = 0
        for number in range(10):
            rank, folder = int(rng.integers(2)), tmp_path / str(number)
            ends = killed_from_outside(world, str(folder), rank, rng.uniform(0.2, 1.0) * lasts_s)
            assert ends[rank] in ("Killed", "")  # it may have been done
            assert ends[1 - rank] in ("RankLost", "")
            resumed += ends[1 - rank] == "RankLost" and folder.exists()
            world.close()
            world = World(2)
            assert world.call(slow_sum, str(folder), 0.0) == [whole, whole]
        assert resumed >= 5, "hardly any job was killed at work"
    finally:
        world.close()


@pytest.mark.slow
def test_torchrun_starts_a_killed_job_again(tmp_path: Path) -> None:
    """A rank is killed once; the job ends with the right number, and does not begin anew."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "--max-restarts=2", "-m", "tests.restarted", str(tmp_path)]
    # or torch's workers find in the store the addresses of the attempt before
    apart = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment = {**os.environ, **ONE_THREAD, **apart}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=300, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [rank["attempt"] for rank in ranks] == [1, 1]
    assert ranks[0]["bits"] == ranks[1]["bits"]
    found = np.frombuffer(bytes.fromhex(ranks[0]["bits"]), np.float32).reshape(4, 4)
    wanted = np.linalg.multi_dot([a.double().numpy() for a in arrays()])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert ranks[1]["done"] == ranks[1]["total"] - (KILLED_AT - 1)


# Another number of ranks ------------------------------------------------------------------------


def test_another_number_of_ranks_does_not_begin_anew_unasked(tmp_path: Path, two: World) -> None:
    """A job of one rank stopped half-way: two ranks are told so, with another folder they work."""
    interrupted(tmp_path, 20)
    answers = two.answers(ranked_sum, str(tmp_path), -1, None)
    assert [name for name, _ in answers] == ["RankMismatch", "RankMismatch"], answers
    assert "half done by another number of ranks" in answers[0][1]
    found = two.call(ranked_sum, str(tmp_path / "other"), -1, None)
    whole = long_sum(None, Counter())(*arrays())
    for one, _, _ in found:
        np.testing.assert_allclose(np.frombuffer(one, np.float32), whole.flatten(), rtol=1e-5)


def test_what_another_number_of_ranks_has_finished_is_no_hindrance(
    tmp_path: Path, two: World
) -> None:
    long_sum(tmp_path, Counter())(*arrays())
    counts = [done for _, done, _ in two.call(ranked_sum, str(tmp_path), -1, None)]
    assert sum(counts) >= SLICES
