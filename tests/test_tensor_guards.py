"""Guards see what differs, and nothing else, in torch's way and in Python's."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from tncompiler import tensor_guards
from tncompiler.tensor_guards import Guard

WAYS = {"fastest": tensor_guards._fastest(), "Python": tensor_guards._by_asking}


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tensor_guards, "_make", WAYS[request.param])
    return str(request.param)


class Marked(Tensor):
    pass


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def pair() -> tuple[Tensor, Tensor]:
    return torch.zeros(2, 3), nn.Parameter(torch.zeros(3, 2))


def holds(guard: Guard, *tensors: Any) -> bool:
    return guard.may_hold() and guard.holds(tensors)


def test_it_holds_for_others_of_the_same_kind() -> None:
    x, w = pair()
    guard = Guard((x, w))
    assert holds(guard, x, w) and holds(guard, torch.ones(2, 3), nn.Parameter(torch.ones(3, 2)))
    assert holds(guard, torch.ones(3, 2).t(), w)  # in whatever order its memory lies


OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "rows": lambda x: torch.zeros(4, 3),
    "axes": lambda x: x[None],
    "dtype": lambda x: x.double(),
    "device": lambda x: x.to("meta"),
    "gradient": lambda x: x.clone().requires_grad_(),
    "subclass": lambda x: x.as_subclass(Marked),
    "array": lambda x: x.numpy(),
    "none": lambda x: None,
    "sparse": lambda x: x.to_sparse(),
    "mkldnn": lambda x: x.to_mkldnn(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_it_does_not_hold_for_another(name: str) -> None:
    x, w = pair()
    guard = Guard((x, w))
    assert not holds(guard, OTHERS[name](x), w)
    assert holds(guard, x, w)


def test_nor_for_more_or_fewer() -> None:
    x, w = pair()
    guard = Guard((x, w))
    assert not holds(guard, x) and not holds(guard, x, w, w) and not holds(guard)


def test_a_parameter_that_was_changed_is_another() -> None:
    x, w = pair()
    guard = Guard((x, w))
    w.requires_grad_(False)
    assert not holds(guard, x, w)
    w.requires_grad_(True)
    assert holds(guard, x, w)
    w.data = w.data.double()
    assert not holds(guard, x, w)


@contextmanager
def dual() -> Iterator[None]:
    with forward_ad.dual_level():
        yield


def caching() -> AbstractContextManager[Any]:
    """A mode of selective checkpoints, which torch's own check does not see."""
    first, _ = create_selective_checkpoint_contexts([torch.ops.aten.mm.default])
    return first  # type: ignore[no-any-return]


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "mode": Mode,
    "fake tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "selective checkpoint": caching,
    "forward mode": dual,
}


@pytest.mark.parametrize("name", STATES)
def test_it_does_not_hold_where_torch_does_something_else(name: str) -> None:
    x, w = pair()
    guard = Guard((x, w))
    with STATES[name]():
        assert not holds(guard, x, w)
    assert holds(guard, x, w)


def test_without_gradients_is_a_state_of_its_own() -> None:
    x, w = pair()
    with torch.no_grad():
        guard = Guard((x, w))
        assert holds(guard, x, w)
    assert not holds(guard, x, w)


def test_functorch_and_traces_are_seen() -> None:
    x, w = pair()
    guard, seen = Guard((x, w)), []

    def f(given: Tensor) -> Tensor:
        seen.extend([holds(guard, given, w), holds(guard, x, w)])
        return given.sum()

    torch.func.grad(f)(x)
    torch.vmap(f)(torch.zeros(5, 2, 3))
    torch.jit.trace(f, (x,))
    make_fx(f)(x)
    assert seen and not any(seen)


def test_tensors_that_stand_for_several_are_seen() -> None:
    x, _ = pair()
    guard, seen = Guard((x,)), []

    class Seeing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            guard_now = guard if torch.is_grad_enabled() else quiet
            seen.append(holds(guard_now, g))
            return 2 * g

    with torch.no_grad():
        quiet = Guard((x,))
    y = Seeing.apply(x.requires_grad_())  # type: ignore[no-untyped-call]
    torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    assert seen == [True]
    torch.autograd.grad(y, x, torch.ones(4, 2, 3), is_grads_batched=True)
    assert seen == [True, False]


def test_one_tensor_may_be_given_twice() -> None:
    """as two outputs that are added up have one cotangent"""
    x, _ = pair()
    guard = Guard((x, x))
    assert holds(guard, x, x) and holds(guard, x, x.clone())
    assert not holds(guard, x, x.double())


def test_it_holds_no_tensor() -> None:
    x, w = pair()
    guard, seen = Guard((x, w)), weakref.ref(x)
    del x
    gc.collect()
    assert seen() is None and holds(guard, torch.zeros(2, 3), w)


def test_a_torch_without_it_asks_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards", raising=False)
    assert tensor_guards._fastest() is tensor_guards._by_asking
