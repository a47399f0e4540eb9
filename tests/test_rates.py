"""Rates: tables are read at their points and between them; bad tables are refused."""

import math
from dataclasses import replace
from typing import Any

import pytest

from tncompiler.ir.errors import PlanError
from tncompiler.planning.copies import Again, Walk
from tncompiler.planning.machine import load_machine
from tncompiler.planning.rates import (
    ALONE_EXTENTS,
    EXTENTS,
    FRESH_BYTES,
    PASSES,
    RUNS,
    SPANS,
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
    count = 2**13  # elements; four bytes of each are read and four written
    for run in RUNS:
        kept, turned = gathered(run), Walk(run, False, 2**20, ())
        assert rates.permute_us(count, kept) == rates.gather_us(8 * count, run)
        assert rates.gather_us(8 * count, run) == pytest.approx(8 * count / run)
        expected = 8 * count / min(12.5 * run, 2000.0)  # no faster than a pass
        assert rates.permute_us(count, turned) == pytest.approx(expected)
    # complex numbers: runs of twice the bytes, or half as many to fetch
    assert rates.gather_us(2**16, 4, item=8) == rates.gather_us(2**16, 8)
    wide = rates.permute_us(count, Walk(4, False, 2**20, ()), item=8)
    assert wide == pytest.approx(2 * 8 * count / (50.0 * 2**0.7))
    # loops of fewer runs than were measured are started more often
    assert library(block_us=0.5).permute_us(count, gathered(8, block=32)) == pytest.approx(
        rates.permute_us(count, gathered(8)) + 0.5 * (count / 32 - count / 128)
    )
    # one thread alone copies what is small
    alone = library(threads=2, alone=library(gathers=(3.0,) * len(RUNS)))
    assert alone.permute_us(2**15, gathered(8)) == pytest.approx(8 * 2**15 / 3)
    assert alone.permute_us(2**16, gathered(8)) == pytest.approx(8 * 2**16 / 8)


def gathered(run: int, block: int = 2**20) -> Walk:
    """A copy in runs that lie as in the source."""
    return Walk(run, True, block, ())


def turned_over(run: int, span: int) -> Walk:
    """A copy that brings another axis innermost, and fetches each line for each of its elements."""
    return Walk(run, False, 2**20, (Again(15 / 16, span),))


def test_copies_that_go_far_take_longer() -> None:
    over = [library().permute_us(2**21, turned_over(8, span)) for span in (2**12, *SPANS, 2**30)]
    assert over == sorted(over)  # fewer lines are still there
    assert over[-1] == pytest.approx(4 * over[-3])
    measured = library(spans=(60.0, 50.0, 40.0, 30.0, 20.0))
    near = measured.permute_us(2**13, turned_over(16, 0))
    for span, rate in zip(SPANS, measured.spans, strict=True):
        more = 2**16 / rate - 2**16 / 60.0
        found = measured.permute_us(2**13, turned_over(16, span))
        assert found == pytest.approx(near + more)
        half = measured.permute_us(2**13, Walk(16, False, 2**20, (Again(15 / 32, span),)))
        assert half == pytest.approx(near + more / 2)


def test_new_memory_and_functions() -> None:
    rates = library()
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
    assert rates.gather_us(1e6, 1024) == rates.pass_us(1e6) == 1.0
    assert rates.gather_us(1e6, 2) == 4.0
    assert rates.gather_us(1e6, 2, item=8) == 2.0
    assert rates.permute_us(1e6, gathered(2)) == 32.0
    assert rates.permute_us(1e6, turned_over(2, 2**22)) == 8.0
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
        ({"spans": (1.0, 2.0)}, "spans: 2 numbers where there must be 5"),
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


def test_products_by_themselves_have_a_table_of_their_own() -> None:
    """a batch is read from the other, up to the extents that it was measured for"""
    alone = tuple(
        1e-2 * m * n * k for m in ALONE_EXTENTS for n in ALONE_EXTENTS for k in ALONE_EXTENTS
    )
    rates, plain = library(single={"float32": alone}), library()
    assert rates.product_us(1, 8, 64, 8192, "float32") == pytest.approx(1e-2 * 8 * 64 * 8192)
    assert rates.product_us(1, 12, 20, 30, "float32") == pytest.approx(1e-2 * 12 * 20 * 30)
    assert rates.product_us(1, 2**17, 4, 4, "float32") == pytest.approx(1e-2 * 2**21)
    assert rates.product_us(3, 2048, 4, 4, "float32") == pytest.approx(3e-2 * 2048 * 16)
    for given in ((2, 8, 64, 64, "float32"), (1, 8, 64, 64, "float64"), (1, 4, 4, 4, "complex64")):
        same = given[-1] != "complex64"
        assert (rates.product_us(*given) == plain.product_us(*given)) is same


def test_a_table_of_single_products_is_checked() -> None:
    with pytest.raises(PlanError, match="single products of float32: 3 numbers"):
        library(single={"float32": (1.0, 2.0, 3.0)})


def test_rates_are_values() -> None:
    rates = library()
    assert rates == library() and rates != replace(rates, step_us=2.0)
    rates.product_us(1, 2, 3, 4, "float32")  # fills a private table, which does not count
    assert rates == library()
