"""Copies that turn matrices over: equal to torch's own, contiguous, and priced as such."""

import math
from dataclasses import replace

import pytest
import torch

import tncompiler as tnc
from tncompiler.backends.torch import memory
from tncompiler.backends.torch.memory import copied
from tncompiler.backends.torch.turning import turned
from tncompiler.ir.errors import PlanError
from tncompiler.ir.strides import TURNED_BYTES, Turn, merged, turn_of
from tncompiler.planning.copies import loops_of
from tncompiler.planning.machine import load_machine
from tncompiler.planning.rates import Library

MATRICES = (
    (256, 32, 48),  # a batch of small ones
    (4096, 4, 16),
    (64, 4, 1024),  # narrow
    (1, 8, 65536),
    (1, 12288, 64),  # cut along the rows
    (1, 48, 16384),  # cut along the columns
    (3, 512, 512),
    (1, 997, 991),  # with no divisors to cut at
    (2, 16384, 300),  # in parts, as the result is large
    (1100, 96, 96),
)


@pytest.mark.parametrize("shape", MATRICES)
def test_matrices_are_turned_over(shape: tuple[int, int, int]) -> None:
    view = torch.arange(math.prod(shape), dtype=torch.float32).view(shape).transpose(1, 2)
    found = turned(view)
    assert found is not None
    assert found.is_contiguous() and torch.equal(found, view)
    assert found.data_ptr() != view.data_ptr()


def test_views_into_memory_and_axes_that_are_taken_together() -> None:
    whole = torch.rand(130, 4, 8, 6, 16)
    view = whole[2:].permute(0, 3, 4, 1, 2)
    assert turn_of(merged(view.shape, view.stride())) == (128, 32, 96)
    found = turned(view)
    assert found is not None and found.shape == view.shape and torch.equal(found, view)


@pytest.mark.parametrize(
    "view",
    (
        torch.rand(64, 64, 64).permute(2, 1, 0),  # three axes the other way round
        torch.rand(64, 64, 64).permute(1, 0, 2),  # runs that stay whole
        torch.rand(256, 64, 40)[:, :, :32].transpose(1, 2),  # with gaps
        torch.rand(1, 64, 1).expand(64, 64, 64),
        torch.rand(256, 32, 32).double().transpose(1, 2),  # of another dtype
        torch.rand(8, 8).t(),  # too small to ask
    ),
)
def test_other_views_are_left_to_torch(view: torch.Tensor) -> None:
    assert turned(view) is None
    assert torch.equal(copied(view), view) and copied(view).is_contiguous()


@pytest.mark.parametrize(
    ("axes", "turn"),
    [
        ((0, 2, 1, 3), None),  # runs
        ((0, 1, 3, 2), (30, 4, 3)),
        ((2, 3, 0, 1), (1, 30, 12)),
        ((0, 3, 1, 2), (6, 20, 3)),
        ((3, 2, 1, 0), None),
    ],
)
def test_planning_knows_the_same_matrices(
    axes: tuple[int, ...], turn: tuple[int, int, int] | None
) -> None:
    extents = (6, 5, 4, 3)
    view = torch.empty(extents).permute(axes)
    loops = loops_of(range(4), axes, extents)
    assert loops == merged(view.shape, view.stride())
    assert turn_of(loops) == turn


def with_turns(*rates: float) -> Library:
    found = load_machine("reference").libraries["torch"]
    assert isinstance(found, Library)
    return replace(found, turns=rates)


def test_a_turn_is_priced_where_the_library_has_one() -> None:
    assert with_turns().turn_us(Turn(256, 64, 64)) == math.inf
    rates = with_turns(1e3, 2e3, 4e3, 4e3, 1e3)
    moved = 2 * 4 * 256 * 64 * 64
    assert rates.turn_us(Turn(256, 64, 64)) == pytest.approx(moved / 4e3, rel=0.01)
    assert rates.turn_us(Turn(256, 4, 1024)) == rates.turn_us(Turn(256, 64, 64))
    assert rates.turn_us(Turn(1, 1024, 1024)) > rates.turn_us(Turn(256, 64, 64))
    assert rates.turn_us(Turn(1, 4, TURNED_BYTES // 32)) == math.inf
    with pytest.raises(PlanError, match="turns"):
        with_turns(1e3)


def test_generated_code_turns_matrices_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two large inputs that are summed over axes that they have in another order."""
    made = []

    def counted(view: torch.Tensor) -> torch.Tensor | None:
        found = turned(view)
        made.append(found is not None)
        return found

    monkeypatch.setattr(memory, "turned", counted)
    a, b, i, j = (tnc.Index(name, n) for name, n in zip("abij", (512, 500, 24, 32), strict=True))
    network = tnc.contract(tnc.input("x", a, i, j), tnc.input("z", b, j, i), out=(a, b))
    module = tnc.compile(network, backend="torch")
    operands = [torch.rand(shape, requires_grad=True) for shape in ((512, 24, 32), (500, 32, 24))]
    y = module(*operands)
    cotangent = torch.rand(y.shape)
    y.backward(cotangent)
    assert made.count(True) >= 2  # forward, and backward as a gradient has the axes of its operand
    again = [t.detach().double().requires_grad_() for t in operands]
    wanted = torch.einsum("aij,bji->ab", *again)
    wanted.backward(cotangent.double())
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-3)
    for ours, true in zip(operands, again, strict=True):
        assert ours.grad is not None and true.grad is not None
        torch.testing.assert_close(ours.grad.double(), true.grad, rtol=1e-4, atol=1e-3)
