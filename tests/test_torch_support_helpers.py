"""The checks of transforms: right for a module of plain torch, and failing for wrong ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.torch_support.cells import Cell, Trivial, agree
from tests.torch_support.subjects import Parameters, Subject
from tests.torch_support.table import CELLS, TRANSFORMS, cell_named, names


class Plain(nn.Module):
    """tanh(x A) B in plain torch."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(6, 5, dtype=dtype))
        self.B = nn.Parameter(torch.empty(5, 4, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            parameter.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.A) @ self.B


def reference(p: Parameters, x: Tensor) -> Tensor:
    return torch.tanh(x @ p["A"]) @ p["B"]


def wrong_reference(p: Parameters, x: Tensor) -> Tensor:
    """Off by a tenth, in values and derivatives."""
    return 1.1 * reference(p, x) + 0.1 * p["A"].sum()


PLAIN = Subject("plain", lambda backend, dtype: Plain(dtype), (6,), reference)
HERE = [key for key, one in TRANSFORMS.items() if not one.pair and one.quick]
OURS_ALONE = ("profiler_ranges",)  # what a module of plain torch does not have
LACKING = ("double_backward_of_compiled", "changes_in_place")  # what torch itself refuses
WITHOUT_REFERENCE = (  # checks against finite differences, of shapes, and of what is called
    *("finite_differences", "second_finite_differences", "forward_finite_differences"),
    *("forward_over_reverse", "fake_tensors", "counted_flops", "meta_device", "empty_batch"),
    *("hooks", "fork"),
)


@pytest.mark.parametrize("key", [k for k in HERE if k not in (*OURS_ALONE, *LACKING)])
def test_plain_torch_passes(key: str) -> None:
    """So what a check asks for is what torch does."""
    TRANSFORMS[key].check(Cell(PLAIN, "torch"))


@pytest.mark.parametrize("key", LACKING)
def test_torch_itself_refuses(key: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        TRANSFORMS[key].check(Cell(PLAIN, "torch"))
    assert not isinstance(caught.value, AssertionError)


COMPARING = [k for k in HERE if k not in (*OURS_ALONE, *LACKING, *WITHOUT_REFERENCE)]


@pytest.mark.parametrize("key", COMPARING)
def test_a_wrong_value_is_seen(key: str) -> None:
    with pytest.raises(AssertionError):
        TRANSFORMS[key].check(Cell(replace(PLAIN, reference=wrong_reference), "torch"))


class LostFactor(torch.autograd.Function):
    """The identity with derivatives that are too large."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return 1.1 * cotangent

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 1.1 * tangent


class WrongDerivative(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return LostFactor.apply(super().forward(x))


class Wasteful(Plain):
    """Computes nothing that torch sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(len(x), 4) * self.A.sum() * self.B.sum() * x.sum()


FAULTS: dict[str, type[Plain]] = {
    "finite_differences": WrongDerivative,
    "forward_finite_differences": WrongDerivative,
    "backward": WrongDerivative,
    "func_jvp": WrongDerivative,
    "counted_flops": Wasteful,
    "profiler_ranges": Plain,
}


@pytest.mark.parametrize("key", FAULTS)
def test_a_fault_is_seen(key: str) -> None:
    subject = replace(PLAIN, make=lambda backend, dtype: FAULTS[key](dtype))
    with pytest.raises((AssertionError, RuntimeError)):
        TRANSFORMS[key].check(Cell(subject, "torch"))


def test_zeros_are_no_agreement() -> None:
    with pytest.raises(Trivial):
        agree(torch.zeros(3), torch.zeros(3))
    with pytest.raises(AssertionError):
        agree(torch.ones(3), torch.full((3,), 1 + 1e-6))


def test_cells_have_names_of_their_own() -> None:
    listed = [
        n for pair in (True, False) for slow in (True, False) for n in names(pair=pair, slow=slow)
    ]
    assert len(set(listed)) == len(listed) == len(TRANSFORMS) * len(CELLS)
    assert all(f"{t.key}-{cell}" == n for n in listed for t, cell in [cell_named(n)])
