"""Programs that waking torch's threads would hold up have one of them, and no one else notices."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np
import pytest
import sklearn.utils._openmp_helpers  # noqa: F401  # it brings another OpenMP library
import torch

import tncompiler as tnc
from tncompiler.backends.torch import threads
from tncompiler.backends.torch.threads import on_one_thread
from tncompiler.compiler import Compilation
from tncompiler.planning.machine import Machine, load_machine
from tncompiler.planning.timing import TINY_US, WAKE_US, is_faster_alone, program_us

COUNT = 3  # threads of torch, in these tests
B, I, H, O = tnc.indices("b i h o", i=16, h=12, o=8)
has_openmp = pytest.mark.skipif(threads._setters() is None, reason="torch has no OpenMP here")


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(COUNT)
    yield
    torch.set_num_threads(before)


def expression() -> Any:
    return tnc.tanh(tnc.input("x", B, I) @ tnc.param("A", I, H)) @ tnc.param("B", H, O)


def gradients(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(module(x).sum(), tuple(module.parameters()))


def machine(step_us: float, alone_us: float, threads: int = COUNT) -> Machine:
    """The reference with made-up starts of an operation, on all threads and on one."""
    reference = load_machine("reference")
    own = reference.libraries["torch"]
    alone = replace(own, step_us=alone_us, threads=1)  # type: ignore[call-arg]
    several = replace(own, step_us=step_us, threads=threads, alone=alone)  # type: ignore[call-arg]
    return Machine("made up", {"numpy": reference.libraries["numpy"], "torch": several})


@has_openmp
def test_a_function_has_one_thread_while_it_runs() -> None:
    assert on_one_thread(torch.get_num_threads)() == 1
    assert torch.get_num_threads() == COUNT


@has_openmp
def test_products_have_one_thread_too() -> None:
    """MKL has a number of its own since `torch.set_num_threads`."""
    if "mkl_get_max_threads" not in torch.__config__.parallel_info():
        pytest.skip("this torch has no MKL")

    def seen() -> str:
        return torch.__config__.parallel_info().partition("mkl_get_max_threads() : ")[2][0]

    assert on_one_thread(seen)() == "1"
    assert seen() == str(COUNT)


@has_openmp
def test_the_threads_come_back_after_an_error() -> None:
    def fail() -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        on_one_thread(fail)()
    assert torch.get_num_threads() == COUNT


@has_openmp
def test_one_inside_of_another_gives_back_what_it_found() -> None:
    counts = on_one_thread(lambda: (on_one_thread(torch.get_num_threads)(), outer()))()
    assert counts == (1, 1) and outer() == COUNT


def outer() -> int:
    return torch.get_num_threads()


@has_openmp
def test_a_thread_that_starts_meanwhile_has_all_of_them() -> None:
    """It would keep the number that `torch.set_num_threads` was last told."""

    def start() -> tuple[int, int]:
        found: list[int] = []
        other = Thread(target=lambda: found.append(torch.get_num_threads()))
        other.start()
        other.join()
        return torch.get_num_threads(), found[0]

    assert on_one_thread(start)() == (1, COUNT)


def test_where_openmp_is_another_one_functions_just_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_setters", lambda: None)
    assert on_one_thread(torch.get_num_threads)() == COUNT


@has_openmp
def test_without_mkl_openmp_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    openmp, _ = threads._setters()  # type: ignore[misc]
    monkeypatch.setattr(threads, "_setters", lambda: (openmp, None))
    assert on_one_thread(torch.get_num_threads)() == 1
    assert torch.get_num_threads() == COUNT


def test_waking_threads_must_save_more_than_it_takes() -> None:
    compilation = Compilation(expression(), None, {B: 4}, None)
    program, _ = compilation.scheduled(compilation.default_dtypes("float32"), {})

    def chosen(us: float, alone_us: float, count: int = COUNT) -> bool:
        rates = machine(us, alone_us, count).libraries["torch"]
        return is_faster_alone(program, {}, rates)

    steps = round(program_us(program, {}, machine(1e6, 1e6).libraries["torch"]) / 1e6)
    enough = 2 * TINY_US  # for each step
    assert chosen(enough, enough)
    assert chosen(enough, enough + 0.9 * WAKE_US / steps)
    assert not chosen(enough, enough + 1.1 * WAKE_US / steps)
    assert not chosen(enough, enough, count=1)  # nobody knows what others would save
    assert not chosen(1.0, 1.0)  # so short that nothing is shared


class Products:
    """How many threads torch's products had, while this stands in for `torch.mm`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[int] = []
        self._product = torch.mm
        monkeypatch.setattr(torch, "mm", self)

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.threads.append(torch.get_num_threads())
        return self._product(*args, **kwargs)


@has_openmp
@pytest.mark.parametrize("faster_alone", [True, False])
def test_a_module_runs_by_what_is_predicted(
    faster_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = machine(1e4, 1e3) if faster_alone else machine(1e3, 1e4)
    plan = tnc.PlanOptions(machine=chosen)
    module = tnc.compile(expression(), backend="torch", plan=plan, seed=0)
    usual = tnc.compile(expression(), backend="torch", seed=0)
    x = torch.randn(8, 16)
    wanted, (values,) = gradients(usual, x), [usual(x)]
    products = Products(monkeypatch)
    for _ in range(3):
        torch.testing.assert_close(gradients(module, x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(module(x), values)
    with torch.no_grad(), torch.profiler.profile():
        torch.testing.assert_close(module(x), values)
    assert len(products.threads) > 3 * 2 + 2  # forward and backward passes
    assert set(products.threads) == {1 if faster_alone else COUNT}
    assert torch.get_num_threads() == COUNT


def test_what_is_predicted_is_what_runs() -> None:
    """A program on one thread takes as long as on one, where several would take longer."""

    def predicted(us: float, wrt: tuple[str, ...]) -> float:
        options = tnc.PlanOptions(machine=machine(us, 1e3))
        compilation = Compilation(expression(), None, {B: 4}, options)
        return compilation.predicted_us(compilation.default_dtypes("float32"), {}, wrt, "torch")

    for wrt in ((), ("A", "B")):
        assert predicted(1e4, wrt) == predicted(1e3, wrt) > predicted(500.0, wrt)


@has_openmp
def test_a_numpy_function_that_crosses_to_torch_does_so_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tncompiler.function._CROSSING_FROM_US", 0.0)
    rates = machine(1e4, 1e3).libraries
    slow = replace(rates["numpy"], call_us=1e9)  # type: ignore[call-arg]
    plan = tnc.PlanOptions(machine=Machine("made up", {"numpy": slow, "torch": rates["torch"]}))
    function = tnc.compile(expression(), framework="numpy", plan=plan, seed=0)
    usual = tnc.compile(expression(), framework="numpy", backend="numpy", seed=0)
    x = np.random.default_rng(0).standard_normal((8, 16)).astype("float32")
    products = Products(monkeypatch)
    for _ in range(2):
        np.testing.assert_allclose(function(x), usual(x), rtol=1e-5, atol=1e-5)
    assert products.threads and set(products.threads) == {1}
    assert torch.get_num_threads() == COUNT


@has_openmp
def test_many_threads_call_it_at_once() -> None:
    plan = tnc.PlanOptions(machine=machine(1e4, 1e3))
    module = tnc.compile(expression(), backend="torch", plan=plan, seed=0)
    x = torch.randn(8, 16)
    with torch.no_grad():
        wanted = module(x)

        def call(_: int) -> tuple[bool, int]:
            with torch.no_grad():
                return torch.equal(module(x), wanted), torch.get_num_threads()

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(call, range(400))) == {(True, COUNT)}
