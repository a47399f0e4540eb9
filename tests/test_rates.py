"""Rates: tables are read at their points and between them; bad tables are refused."""

import math
from dataclasses import replace
from typing import Any

import pytest

from tncompiler.ir.errors import PlanError
from tncompiler.planning.machine import load_machine
from tncompiler.planning.rates import (
    EXTENTS,
    FRESH_BYTES,
    PASSES,
    RUNS,
    Accelerator,
    Library,
)

SHAPES = [(m, n, k) for m in EXTENTS for n in EXTENTS for k in EXTENTS]


def library(**changes: Any) -> Library:
    """A made-up machine on which a multiplication takes a nanosecond, and N twice as long as M."""
    products = tuple(1e-3 * m * n**1.5 * k for m, n, k in SHAPES)
    values: dict[str, Any] = {
        "products": {"float32": products, "float64": tuple(2 * us for us in products)},
        "passes": (1000.0, 2000.0, 1500.0, 1000.0, 500.0),
        "gathers": tuple(float(run) for run in RUNS),
        "transposes": tuple(10.0 * run for run in RUNS),
        "fresh": 100.0,
        "functions": 50.0,
        "step_us": 1.0,
        "call_us": 0.0,
    }
    return Library(**{**values, **changes})


def gpu(**changes: Any) -> Accelerator:
    values: dict[str, Any] = {
        "teraflops": {"float32": 10.0, "float64": 5.0, "float16": 100.0},
        "bytes_per_us": 1e6,
        "units": 100,
        "step_us": 4.0,
    }
    return Accelerator(**{**values, **changes})


def test_a_product_at_a_measured_extent_takes_what_was_measured() -> None:
    rates = library()
    for m, n, k in SHAPES:
        assert rates.product_us(1, m, n, k, "float32") == pytest.approx(1e-3 * m * n**1.5 * k)


def test_between_and_beyond_the_extents_powers_are_exact() -> None:
    """The made-up times are powers of the extents, which log-log interpolation continues."""
    rates = library()
    for m, n, k in [(2, 8, 3), (5, 100, 777), (32, 32, 32)]:
        assert rates.product_us(1, m, n, k, "float32") == pytest.approx(1e-3 * m * n**1.5 * k)
    assert rates.product_us(1, 4096, 4, 4, "float32") == pytest.approx(1e-3 * 4096 * 8 * 4)


def test_orientation_batch_and_dtype() -> None:
    rates = library()
    narrow, wide = (rates.product_us(1, *s, 16, "float32") for s in ((64, 4), (4, 64)))
    assert narrow != wide
    assert rates.product_us(7, 64, 4, 16, "float32") == pytest.approx(7 * narrow)
    assert rates.product_us(1, 64, 4, 16, "float64") == pytest.approx(2 * narrow)
    assert rates.product_us(1, 64, 4, 16, "complex64") == pytest.approx(4 * narrow)
    assert rates.product_us(1, 64, 4, 16, "complex128") == pytest.approx(8 * narrow)
    assert rates.product_us(0, 64, 4, 16, "float32") == 0.0


def test_products_of_transposed_views_take_what_was_measured_of_them() -> None:
    plain = library()
    turned = tuple(3 * us for us in plain.products["float32"])
    rates = library(products={**plain.products, "float32 nt": turned})
    nn, nt, tn = (rates.product_us(2, 8, 4, 16, "float32", form) for form in ("nn", "nt", "tn"))
    assert nn == tn == plain.product_us(2, 8, 4, 16, "float32", "nt")  # unmeasured: as they lie
    assert nt == pytest.approx(3 * nn)
    assert rates.product_us(2, 8, 4, 16, "float64", "nt") == pytest.approx(2 * nn)


def test_complex_products_that_were_measured_take_what_was_measured() -> None:
    """Narrow complex products fill lanes that real ones leave empty."""
    real = library()
    halves = tuple(2 * us for us in real.products["float32"])
    rates = library(products={**real.products, "complex64": halves})
    real_us = real.product_us(3, 64, 4, 16, "float32")
    assert rates.product_us(3, 64, 4, 16, "complex64") == pytest.approx(2 * real_us)
    assert rates.product_us(3, 64, 4, 16, "complex128") == pytest.approx(8 * real_us)
    with pytest.raises(PlanError, match="products of complex64: 3 numbers"):
        library(products={**real.products, "complex64": (1.0, 2.0, 3.0)})


def test_passes_copies_and_fresh_memory() -> None:
    rates = library()
    for size, rate in zip(PASSES, rates.passes, strict=True):
        assert rates.pass_us(size) == pytest.approx(size / rate)
    assert rates.pass_us(0) == 0.0
    assert rates.pass_us(2**40) == pytest.approx(2**40 / 500)
    assert 2**14 / 2000 < rates.pass_us(2**14) < 2**14 / 1000
    for run in RUNS:
        assert rates.permute_us(2**16, run, True) == pytest.approx(2**16 / run)
        expected = 2**16 / min(10.0 * run, 2000.0)  # no faster than a pass
        assert rates.permute_us(2**16, run, False) == pytest.approx(expected)
    # complex numbers: runs of twice the bytes, or half as many to fetch
    assert rates.permute_us(2**16, 4, True, item=8) == rates.permute_us(2**16, 8, True)
    assert rates.permute_us(2**16, 4, False, item=8) == pytest.approx(2**16 / (40.0 * 2**0.7))
    far = rates.permute_us(2**24, 8, False, apart=2**16)  # a page for every element, beyond 2 MiB
    assert far == pytest.approx(4 * rates.permute_us(2**24, 8, False, apart=2**11))
    assert rates.permute_us(2**16, 8, False, 2**16) == rates.permute_us(2**16, 8, False)
    assert rates.fresh_us(FRESH_BYTES) == 0.0
    assert rates.fresh_us(FRESH_BYTES + 1) == pytest.approx((FRESH_BYTES + 1) / 100)
    assert rates.function_us(500.0) == 10.0


def test_an_accelerator_is_a_roofline_of_whole_tiles() -> None:
    rates = gpu()
    # bound by memory: (64, 16) @ (16, 64) in float32 moves 24 KiB, in one wave of 100 tiles
    one_wave = 2 * 100 * 64 * 64 * 16 / 10e6
    assert rates.product_us(1, 64, 64, 16, "float32") == pytest.approx(one_wave)
    assert rates.product_us(1, 1, 1, 1, "float32") == pytest.approx(one_wave)
    assert rates.product_us(100, 64, 64, 16, "float32") == pytest.approx(
        max(one_wave, 100 * 3 * 64 * 64 * 4 * 0.5 / 1e6)
    )
    assert rates.product_us(101, 64, 64, 1024, "float32") == pytest.approx(
        2 * 2 * 100 * 64 * 64 * 1024 / 10e6
    )
    assert rates.product_us(1, 64, 64, 16, "float16") == pytest.approx(one_wave / 10)
    assert rates.permute_us(1e6, 1024, True) == rates.pass_us(1e6) == 1.0
    assert rates.permute_us(1e6, 2, True) == 4.0
    assert rates.permute_us(1e6, 2, True, item=8) == 2.0
    assert rates.fresh_us(2**40) == 0.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"passes": (1.0, 2.0)}, "passes: 2 numbers where there must be 5"),
        ({"products": {"float32": (1.0,) * 216}}, "float64: missing"),
        ({"gathers": (0.0,) * len(RUNS)}, "0.0 is no positive number"),
        ({"fresh": math.nan}, "nan is no positive number"),
        ({"step_us": -1.0}, "-1.0"),
        ({"functions": True}, "True"),
        ({"call_us": math.inf}, "inf"),
        ({"transposes": ("fast",) * len(RUNS)}, "'fast'"),
    ],
)
def test_a_bad_table_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match="calibrate") as caught:
        library(**changes)
    assert said in str(caught.value)


def test_a_bad_accelerator_is_refused() -> None:
    for changes in ({"units": 0}, {"teraflops": {"float32": 1.0}}, {"bytes_per_us": -1.0}):
        with pytest.raises(PlanError):
            gpu(**changes)


def test_the_reference_table_is_sane() -> None:
    """Physics: no product faster than the processor, none slower than one that contains it."""
    for rates in load_machine("reference").libraries.values():
        assert isinstance(rates, Library)
        for dtype in ("float32", "float64"):
            times = dict(zip(SHAPES, rates.products[dtype], strict=True))
            flops_per_us = {s: 2 * math.prod(s) / us for s, us in times.items()}
            assert 4e4 < max(flops_per_us.values()) < 3e5  # one core of the reference machine
            for m, n, k in SHAPES:
                if k > 1 and max(m, n, k) < EXTENTS[-1]:
                    assert times[m, n, k] <= times[4 * m, 4 * n, 4 * k]
        assert all(4e3 < rate < 4e5 for rate in rates.passes)
        assert all(1e3 < rate < 2e5 for rate in (*rates.gathers, *rates.transposes))


def test_rates_are_values() -> None:
    rates = library()
    assert rates == library() and rates != replace(rates, step_us=2.0)
    rates.product_us(1, 2, 3, 4, "float32")  # fills a private table, which does not count
    assert rates == library()
