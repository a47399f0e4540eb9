"""Calibration with a made-up clock: minima over rounds, and again where they are in doubt."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import tncompiler as tnc
from tncompiler import calibration
from tncompiler.calibration import SHAPES, Times, library_of, measure_times
from tncompiler.ir.errors import PlanError
from tncompiler.planning.machine import Machine, set_default_machine
from tncompiler.planning.rates import EXTENTS, PASSES, RUNS, SIDES, SPANS


def quiet_times() -> Times:
    """A machine of 50 flops a nanosecond that nobody else uses."""
    times: Times = {
        ("product", dtype, shape): 2 * math.prod(shape) / 5e4 * (1 + (dtype == "float64"))
        for dtype in calibration.PRODUCTS
        for shape in SHAPES
    }
    measured = calibration._measured_products
    times |= {
        ("single", dtype, shape): 2 * math.prod(shape) / 5e4 * (1 + (dtype == "float64"))
        for dtype in calibration.SINGLE
        for shape, _ in measured("single", np.dtype(dtype.split()[0]).itemsize)
    }
    times |= {("pass", size): size / 1e4 for size in PASSES}
    times |= {(kind, run): 100.0 for kind in ("gather", "transpose") for run in RUNS}
    times |= {("span", span): 400.0 for span in SPANS}
    times["blocks"] = 350.0
    return times | {"fresh": 2e5, "function": 60.0, "step": 1.0}


def test_the_table_of_a_quiet_machine() -> None:
    rates = library_of(quiet_times(), 7.0)
    for (m, n, k), us in zip(SHAPES, rates.products["float32"], strict=True):
        assert us == pytest.approx(2 * m * n * k / 5e4, rel=1e-2)
    assert rates.products["float64"][-1] == pytest.approx(
        2 * rates.products["float32"][-1], rel=0.01
    )
    assert rates.products.keys() == set(calibration.PRODUCTS)
    assert rates.passes == (2e4,) * len(PASSES)
    assert (
        rates.gathers == rates.transposes == pytest.approx((8 * 2**18 / 100,) * len(RUNS), rel=0.01)
    )
    assert rates.spans == pytest.approx((8 * 2**20 / 400,) * len(SPANS), rel=0.01)
    assert rates.turns == ()  # NumPy has no such operation
    turning = library_of(quiet_times() | {("turn", side): 200.0 for side in SIDES}, 7.0)
    assert turning.turns == pytest.approx((8 * 2**20 / 200,) * len(SIDES), rel=0.01)
    assert rates.block_us == pytest.approx((350.0 - 100.0) / (2**18 / 32 - 2**18 / 128), rel=0.01)
    assert rates.fresh == pytest.approx(2**26 / (2e5 - 2**27 / 2e4), rel=0.01)
    assert (rates.step_us, rates.call_us) == (1.0, 7.0)


@pytest.mark.parametrize("kind", ["product", "single"])
def test_what_took_longer_than_a_larger_product_is_in_doubt(kind: str) -> None:
    """a disturbance, or a product that the library is slow at: measured again, and believed then"""
    small, large = (16, 16, 16), (64, 16, 16)
    probes = {
        (kind, "float32", small): calibration._Probe(lambda: None, best_us=50.0),
        (kind, "float32", large): calibration._Probe(lambda: None, best_us=20.0),
        (kind, "float64", small): calibration._Probe(lambda: None, best_us=21.0),
        (kind, "float64", large): calibration._Probe(lambda: None, best_us=20.0),
        ("pass", 4096): calibration._Probe(lambda: None, best_us=1.0),
    }
    assert [*calibration._doubtful(probes)] == [(kind, "float32", small)]


def test_what_a_library_is_slow_at_stays_in_the_table() -> None:
    times = quiet_times()
    times["single", "float32", (8192, 8, 64)] = 2000.0  # as of MKL on processors of others
    rates = library_of(times, 0.0)
    assert rates.product_us(1, 8192, 8, 64, "float32") == pytest.approx(2000.0, rel=0.01)
    assert rates.product_us(1, 8192, 16, 64, "float32") < 1000.0


def test_single_products_go_without_their_start() -> None:
    times = quiet_times()
    for key in [key for key in times if key[0] == "single"]:
        times[key] += 3.0
    rates = library_of(times, 0.0)
    shape = (1024, 64, 8)
    assert rates.product_us(1, *shape, "float32") == pytest.approx(2 * 2**19 / 5e4, rel=0.01)


@pytest.mark.parametrize("shape", [(8192, 8192, 8192), (8192, 1024, 64), (8192, 1, 8192)])
def test_products_that_are_too_large_count_in_proportion(shape: tuple[int, int, int]) -> None:
    expected = pytest.approx(2 * math.prod(shape) / 5e4, rel=0.01)
    assert library_of(quiet_times(), 0.0).product_us(1, *shape, "float32") == expected


def test_the_largest_shape_has_none_larger() -> None:
    assert list(calibration._next_larger((EXTENTS[-1],) * 3, EXTENTS)) == []
    assert set(calibration._next_larger((1, 4, 1024), EXTENTS)) == {(4, 4, 1024), (1, 16, 1024)}


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_what_cannot_be_is_refused(factor: float) -> None:
    times = {key: us * factor for key, us in quiet_times().items()}
    with pytest.raises(PlanError, match="flops per microsecond"):
        library_of(times, 0.0)


def test_fresh_memory_that_costs_nothing_measurable_still_has_a_rate() -> None:
    times = quiet_times()
    times["fresh"] = 1.0
    assert 0 < library_of(times, 0.0).fresh < math.inf


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_every_operation_runs_and_the_least_round_counts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real operations, made-up seconds: the second round is the quiet one."""
    monkeypatch.setattr(calibration, "_POOL", 2**20)
    monkeypatch.setattr(calibration, "PASSES", (2**12,))
    monkeypatch.setattr(calibration, "_FRESH", 2**14)
    monkeypatch.setattr(calibration, "SHAPES", ((4, 4, 4), (16, 4, 64), (256, 256, 16)))
    monkeypatch.setattr(calibration, "ALONE", ((4, 8, 4), (8192, 8, 16), (16, 4, 64)))
    doubted = ("product", "float32", (4, 4, 4))
    monkeypatch.setattr(calibration, "_doubtful", lambda probes: {doubted: probes[doubted]})
    seconds = iter([9.0] * 100_000)
    rounds: list[float] = [3.0, 2.0, 2.5, 4.0, 1.0, 2.0]
    done = [0]

    def took(run: Any, calls: int, clock: Any) -> float:
        run()
        if calls == 1 and done[0] == 0:
            return next(seconds)
        return calls * rounds[done[0]]

    monkeypatch.setattr(calibration, "_seconds", took)

    class Bar:
        def __init__(self, **options: Any) -> None: ...
        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: object) -> None: ...
        def update(self) -> None:
            done[0] += 1

    monkeypatch.setattr(calibration, "tqdm", Bar)
    times = measure_times(name, 3)
    assert times.keys() >= {("product", "complex64", (4, 4, 4)), ("pass", 4096), "fresh", "step"}
    assert times["step"] == 2e6
    assert times["product", "float32", (256, 256, 16)] == 2e6
    assert times["single", "float32 tn", (8192, 8, 16)] == 2e6
    assert times["product", "float64", (4, 4, 4)] == pytest.approx(2e6 / 256)
    assert times[doubted] == pytest.approx(1e6 / 256)  # measured three times more


def test_samples_are_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of 10 us is repeated until a sample lasts 200 us."""
    asked: list[int] = []

    def took(run: Any, calls: int, clock: Any) -> float:
        asked.append(calls)
        return 1e-5 * calls

    monkeypatch.setattr(calibration, "_seconds", took)
    probe = calibration._Probe(lambda: None, units=4)
    probe.sample(time.perf_counter)
    probe.sample(time.perf_counter)
    assert asked == [1, 20, 20]
    assert probe.best_us == pytest.approx(2.5)


def test_calibrate_returns_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes the default of the process unless told not to, and writes nothing."""
    monkeypatch.setattr(calibration, "measure_times", lambda name, **options: quiet_times())
    try:
        kept = tnc.calibrate(default=False, progress=False)
        assert isinstance(kept, Machine) and kept.libraries.keys() == {"numpy", "torch"}
        assert tnc.PlanOptions().machine == "reference"
        made = tnc.calibrate(progress=False)
        assert tnc.PlanOptions().machine is made
        assert Machine.from_json(made.to_json()) == made
        assert all(1.0 < rates.training_us < 1e5 for rates in made.libraries.values())
    finally:
        set_default_machine(None)


def test_what_has_threads_is_measured_with_one_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each library's table says with how many threads it was measured, and has that of one."""
    counts: list[int] = []

    class Library:
        def __init__(self) -> None:
            self.now = 2

        def threads(self) -> int:
            return self.now

        @contextmanager
        def one_thread(self) -> Iterator[None]:
            self.now = 1
            yield
            self.now = 2

    library = Library()
    monkeypatch.setattr(
        calibration, "_LIBRARIES", dict.fromkeys(calibration.CALL_US, lambda: library)
    )

    def measured(name: str, **options: Any) -> Times:
        counts.append(library.now)
        return quiet_times() | {"step": float(library.now)}

    monkeypatch.setattr(calibration, "measure_times", measured)
    monkeypatch.setattr(calibration, "_training_us", lambda name, clock: 90.0)
    machine = tnc.calibrate(default=False, progress=False)
    assert counts == [1, 2, 1, 2]
    for rates in machine.libraries.values():
        assert (rates.threads, rates.step_us) == (2, 2.0)
        assert (rates.one_thread.threads, rates.one_thread.step_us) == (1, 1.0)
        assert rates.training_us == rates.one_thread.training_us == 90.0
    again = Machine.from_json(machine.to_json())
    assert again == machine and again.digest == machine.digest


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_one_thread_is_all_that_a_library_has_meanwhile(name: str) -> None:
    library = calibration._LIBRARIES[name]()
    before = library.threads()
    with library.one_thread():
        assert library.threads() == 1
    assert library.threads() == before
