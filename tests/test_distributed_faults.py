"""What goes wrong on one rank is an error on all of them, and soon."""

from __future__ import annotations

import os
import signal
import time
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist

import tncompiler as tnc
from tests.ranks import World
from tncompiler.distributed.options import Ranks
from tncompiler.ir.errors import ArgumentError, BackendError, NotFinite

LOST_S = 3.0  # after which a silent rank is lost, in these tests


def chain(k: int = 8, **options: Any) -> Any:
    """A(k) B(k), one slice for each position of k."""
    inner = tnc.Index("k", k)
    y = tnc.contract(tnc.input("A", inner), tnc.input("B", inner), out=())
    given = {"group": dist.group.WORLD, "slices": k, "lost_after_s": LOST_S, **options}
    group = tnc.Ranks(**given)
    return tnc.compile(y, plan=tnc.PlanOptions(), process_group=group)


def call_chain(module: Any, k: int = 8) -> torch.Tensor:
    return module(torch.ones(k), torch.ones(k))


def other_shapes() -> None:
    i, j, inner = tnc.indices("i j k", i=2, j=2)
    y = tnc.contract(tnc.input("A", i, inner), tnc.input("B", inner, j), out=(i, j))
    module = tnc.compile(y, process_group=Ranks(dist.group.WORLD, lost_after_s=LOST_S))
    for k in (4, 4 + dist.get_rank()):
        module(torch.ones(2, k), torch.ones(k, 2))


def other_networks() -> None:
    i, j = tnc.indices("i j", i=2, j=2)
    x = tnc.input("x", i, j)
    y = x.sum(j) if dist.get_rank() else x.sum(i)
    module = tnc.compile(y, process_group=Ranks(dist.group.WORLD, lost_after_s=LOST_S))
    module(torch.ones(2, 2))


def other_options() -> None:
    call_chain(chain(slices=2 + dist.get_rank()))


def other_plans() -> None:
    """One rank was given a plan."""
    i, j, k = tnc.indices("i j k", i=2, j=2, k=2)
    y = tnc.contract(
        *(tnc.input(n, *two) for n, two in zip("ABC", ((i, j), (j, k), (k, i)), strict=True))
    )
    plan = tnc.plan(y) if dist.get_rank() else None
    module = tnc.compile(y, plan=plan, process_group=Ranks(dist.group.WORLD, lost_after_s=LOST_S))
    module(*(torch.ones(2, 2) for _ in range(3)))


def no_memory() -> None:
    i, j = tnc.indices("i j", i=64, j=64)
    y = tnc.exp(tnc.input("x", i, j))
    options = tnc.PlanOptions(memory_limit=100)
    module = tnc.compile(y, plan=options, process_group=Ranks(dist.group.WORLD))
    module(torch.ones(64, 64))


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (other_shapes, "RankMismatch", "not at the same work"),
        (other_networks, "RankMismatch", "not at the same work"),
        (other_options, "RankMismatch", "slices=3"),
        (other_plans, "RankMismatch", "not at the same work"),
        (no_memory, "PlanError", "memory_limit"),
    ],
)
def test_different_work_is_seen_before_it_starts(
    fault: Any, error: str, words: str, two: World
) -> None:
    answers = two.answers(fault)
    assert [name for name, _ in answers] == [error, error], answers
    assert all(words in text for _, text in answers)


# Not a number -----------------------------------------------------------------------------------


def with_nan(position: int) -> torch.Tensor:
    return torch.ones(8).index_fill(0, torch.tensor(position), torch.nan)


def slice_with_nan(asked: str) -> list[str]:
    """The last position of k, which the last rank works on, is NaN."""
    module = chain(not_finite=asked)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = module(torch.ones(8), with_nan(7))
    assert torch.isnan(y)
    return [str(one.message) for one in caught if "slice" in str(one.message)]


def test_nan_names_its_slice(two: World) -> None:
    first, second = two.call(slice_with_nan, "warn")
    assert first == []
    assert len(second) == 1 and "slice 7 (k 7:8) has NaN in it" in second[0]
    assert two.call(slice_with_nan, "ignore") == [[], []]


def test_nan_may_be_an_error_on_every_rank(two: World) -> None:
    first, second = two.answers(slice_with_nan, "raise")
    assert second[0] == "NotFinite" and "k 7:8" in second[1]
    assert first[0] == "GroupError" and "rank 1 failed: NotFinite: slice 7" in first[1]
    answers = two.answers(slice_with_nan, "ignore")  # a new team takes its place
    assert [name for name, _ in answers] == ["", ""], answers


def test_nan_alone_raises() -> None:
    module = chain(group=None, not_finite="raise")
    with pytest.raises(NotFinite, match=r"slice 3 \(k 3:4\)"):
        module(torch.ones(8), with_nan(3))


def test_infinities_of_both_signs_are_no_nan() -> None:
    """Their sum would be one."""
    i, k = tnc.indices("i k", i=3, k=8)
    expr = tnc.contract(tnc.input("A", k, i), tnc.input("x", k), out=(i,))
    module = tnc.compile(expr, process_group=tnc.Ranks(slices=2, not_finite="raise"))
    ends = torch.tensor([torch.inf, -torch.inf, 1.0])
    assert torch.equal(module(ends.expand(8, 3), torch.ones(8)), 8 * ends)
    assert module.slices() == 2  # along either index, one has both


# Lost ranks -------------------------------------------------------------------------------------


def fall_silent(number: int) -> float:
    """Rank 1 sends itself a signal at its second slice; rank 0 tells how long it waited."""
    me = dist.get_rank()

    def at_slice(progress: Any) -> None:
        if me == 1 and progress.done == 2:
            os.kill(os.getpid(), number)

    module = chain(progress=at_slice)
    start = time.monotonic()
    try:
        call_chain(module)
    except tnc.TncError as error:
        assert type(error).__name__ == "RankLost", error
        assert "rank 1" in str(error)
        return time.monotonic() - start
    raise AssertionError("nobody missed rank 1")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_is_an_error_and_no_hang(number: signal.Signals) -> None:
    world = World(2)
    try:
        world.start(fall_silent, int(number))
        failed, waited = world.answer(0, timeout_s=30.0)
        assert not failed, waited
        assert waited < 30.0
        assert world.end(0, timeout_s=30.0) == 0, "rank 0 hangs when it leaves"
    finally:
        world.close()


# Bad options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        *({"slices": n} for n in (0, -1, 1.5, True, "4")),
        *({"every_s": n} for n in (-1, "soon", float("nan"), float("inf"))),
        *({"lost_after_s": n} for n in (0, 1.0, None)),
        {"not_finite": "maybe"},
        {"progress": "bar"},
        {"checkpoint": 3},
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"Ranks.{next(iter(options))}"):
        tnc.Ranks(**options)


@pytest.mark.parametrize("group", ["world", 3, object()])
def test_what_is_no_group_is_refused(group: Any) -> None:
    i, j = tnc.indices("i j", i=2, j=2)
    y = tnc.input("x", i, j).sum(j)
    with pytest.raises(BackendError, match="process_group"):
        tnc.compile(y, process_group=group)
    with pytest.raises(BackendError, match="process_group needs torch"):
        tnc.compile(y, process_group=group, framework="numpy")
    with pytest.raises(ArgumentError, match="cuda_graph"):
        tnc.compile(y, process_group=tnc.Ranks(), cuda_graph=True)
