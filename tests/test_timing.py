"""Predicted times of scheduled programs, step by step, from rates that are easy to add up."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import tncompiler as tnc
from tncompiler.compiler import Compilation
from tncompiler.ir.program import Argument, Contract, Loop, Program, Step, Value
from tncompiler.ir.strides import Turn
from tncompiler.planning.copies import Walk
from tncompiler.planning.machine import Machine, load_machine
from tncompiler.planning.memory import is_view
from tncompiler.planning.options import PlanOptions
from tncompiler.planning.slicing import Cut, apply_cuts
from tncompiler.planning.tiling import in_lanes
from tncompiler.planning.timing import (
    LANES_SHARE,
    NARROW,
    SHARE,
    TURN_US,
    copy_us,
    lanes_us,
    program_us,
    step_us,
    threaded_us,
)

I, J, K, L = tnc.indices("i j k l", i=2, j=3, k=5, l=7)


@dataclass
class Counting:
    """Rates that note what they are asked, and answer with round numbers."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    step_us: float = 1000.0
    call_us: float = 0.0
    threads: int = 1

    def product_us(self, batch: int, m: int, n: int, k: int, dtype: str, form: str = "nn") -> float:
        self.asked.append(("product", batch, m, n, k, dtype, form))
        return 10.0

    def pass_us(self, moved: float) -> float:
        self.asked.append(("pass", moved))
        return 1.0

    def gather_us(self, moved: float, run: float, item: int = 4) -> float:
        self.asked.append(("gather", moved, run))
        return 100.0

    def permute_us(self, elements: float, how: Walk, item: int = 4) -> float:
        self.asked.append(("permute", elements, how.run, how.kept))
        return 100.0

    def turn_us(self, turn: Turn) -> float:
        self.asked.append(("turn", *turn))
        return 60.0

    def fresh_us(self, size: float) -> float:
        self.asked.append(("fresh", size))
        return 0.0

    def function_us(self, elements: float) -> float:
        self.asked.append(("function", elements))
        return 50.0


def scheduled(expr: Any, dtype: str = "float32", **options: Any) -> Program:
    compilation = Compilation(expr, None, {}, PlanOptions(**options))
    program, _ = compilation.scheduled(compilation.default_dtypes(dtype), {})
    return program


def asked(expr: Any, what: str, dtype: str = "float32") -> list[tuple[Any, ...]]:
    rates = Counting()
    program_us(scheduled(expr, dtype), {}, rates)  # type: ignore[arg-type]
    return [entry for entry in rates.asked if entry[0] == what]


def test_a_product_is_asked_by_its_extents() -> None:
    a, b = tnc.input("a", I, J), tnc.input("b", J, K)
    assert asked(a @ b, "product") == [("product", 1, 2, 5, 3, "float32", "nn")]
    assert asked(a @ b, "product", "float64") == [("product", 1, 2, 5, 3, "float64", "nn")]
    batched = tnc.contract(tnc.input("a", L, I, J), tnc.input("b", L, J, K), out=(L, I, K))
    assert asked(batched, "product") == [("product", 7, 2, 5, 3, "float32", "nn")]


def test_a_product_computed_the_other_way_round_is_asked_so() -> None:
    a, b = tnc.input("a", I, J), tnc.input("b", J, K)
    turned = tnc.contract(a, b, out=(K, I))
    assert asked(turned, "product") == [("product", 1, 5, 2, 3, "float32", "tt")]


@pytest.mark.parametrize("form", ["nn", "nt", "tn", "tt"])
def test_a_product_is_asked_in_the_form_that_it_is_read(form: str) -> None:
    a = tnc.input("a", *((I, J) if form[0] == "n" else (J, I)))
    b = tnc.input("b", *((J, K) if form[1] == "n" else (K, J)))
    (one,) = asked(tnc.contract(a, b, out=(I, K)), "product")
    assert one == ("product", 1, 2, 5, 3, "float32", form)


def test_steps_add_up() -> None:
    a, b = tnc.input("a", I, J), tnc.input("b", J, K)
    program = scheduled(tnc.tanh(a @ b))
    rates = Counting()
    product, tanh = (step_us(program, s, {}, rates) for s in program.steps)  # type: ignore[arg-type]
    assert (product, tanh) == (1010.0, 1050.0)
    assert program_us(program, {}, rates) == 2060.0  # type: ignore[arg-type]


def test_maps_at_memory_speed_and_functions() -> None:
    a = tnc.input("a", I, J)
    assert asked(tnc.relu(a), "function") == []
    assert asked(tnc.exp(a), "function") == [("function", 6.0)]
    assert asked(tnc.relu(a), "pass") == [("pass", 2 * 6 * 4.0)]


def test_views_are_free() -> None:
    program = scheduled(tnc.input("a", I, J).transpose(J, I))
    assert program.steps
    assert program_us(program, {}, Counting()) == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("axes", "inner", "kept", "turn"),
    [
        ((I, K, J, L), 7, True, None),  # runs of l stay together
        ((J, I, K, L), 35, True, None),  # of k and l
        ((I, J, L, K), 5, False, (6, 5, 7)),
        ((L, I, J, K), 30, False, (1, 30, 7)),  # i, j, k in one sweep of one stride
        ((L, K, I, J), 6, False, None),
    ],
)
def test_a_copy_by_its_innermost_axis(
    axes: tuple[Any, ...], inner: int, kept: bool, turn: tuple[int, int, int] | None
) -> None:
    """And matrices that are turned over by what a library has for that, if it takes less."""
    from tncompiler.ir.builder import Builder
    from tncompiler.ir.program import Permute, Value

    source = Value("a", (2, 3, 5, 7), "float32", tuple("ijkl"))
    builder = Builder()
    builder.argument(source, "input")
    order = tuple((I, J, K, L).index(axis) for axis in axes)
    names = [axis.name for axis in axes]
    out = builder.emit(Permute(order), (source,), [axis.size for axis in axes], "float32", names)
    rates = Counting()
    time = program_us(builder.program([out]), {}, rates)  # type: ignore[arg-type]
    assert time == (1100.0 if turn is None else 1060.0)
    assert ("permute", 210, inner, kept) in rates.asked
    assert [a[1:] for a in rates.asked if a[0] == "turn"] == ([] if turn is None else [turn])


def test_an_elementwise_product_sweeps_until_an_operand_repeats() -> None:
    a, b = tnc.input("a", I, J), tnc.input("b", K, L)
    assert asked(a * b, "gather") == [("gather", 4.0 * (6 + 35 + 210), 35)]
    c, d = tnc.input("c", I, J), tnc.input("d", I, J)
    assert asked(c * d, "gather") == [("gather", 4.0 * 18, 6)]
    e = tnc.input("e", I)
    assert asked(c * e, "gather") == [("gather", 4.0 * 14, 3)]


def test_results_need_memory_unless_earlier_ones_have_left_theirs() -> None:
    a, b = tnc.input("a", I, J), tnc.input("b", J, K)
    assert asked(a @ b, "fresh") == asked(tnc.tanh(a), "fresh") == []
    assert asked(tnc.contract(a, out=(I,)), "fresh") == [("fresh", 8)]


def test_free_sizes_are_those_of_the_call() -> None:
    (n,) = tnc.indices("n")
    expr = tnc.input("a", n, J) @ tnc.param("b", J, K)
    compilation = Compilation(expr, None, {}, PlanOptions())
    program, _ = compilation.scheduled(
        compilation.default_dtypes("float32"), compilation.nominal({})
    )
    rates = load_machine("reference").planning
    times = [program_us(program, {n.size: size}, rates) for size in (1, 100, 10_000)]
    assert times == sorted(times) and times[2] > 5 * times[1]


def test_a_library_shares_long_steps_out_among_its_threads() -> None:
    i, j, k = tnc.indices("i j k", i=NARROW, j=3, k=NARROW)
    wide = scheduled(tnc.input("a", i, j) @ tnc.input("b", j, k))
    narrow = scheduled(tnc.input("a", i, j) @ tnc.input("b", j, K))
    short, long = Counting(step_us=20.0), Counting(step_us=10_000.0)
    cases = ((wide, short, 1.0), (wide, long, 3 * SHARE), (narrow, long, 1.0))
    for program, rates, speedup in cases:
        alone, shared = (threaded_us(program, {}, rates, n) for n in (1, 3))  # type: ignore[arg-type]
        assert alone == program_us(program, {}, rates)  # type: ignore[arg-type]
        assert alone / shared == pytest.approx(speedup)


def test_lanes_divide_the_blocks_of_a_loop() -> None:
    program = scheduled(tnc.input("a", I, J) @ tnc.input("b", J, K))
    looped = apply_cuts(program, [Cut("a", 1, 1)])
    rates = Counting(step_us=10_000.0)
    alone, shared = (lanes_us(in_lanes(looped, n), {}, rates, 100.0) for n in (1, 3))  # type: ignore[arg-type]
    assert alone == program_us(looped, {}, rates)  # type: ignore[arg-type]
    (body,) = [step.op.body for step in looped.steps if isinstance(step.op, Loop)]
    turns = 3 * TURN_US * sum(not is_view(step) for step in body.steps)
    assert turns and shared == pytest.approx((alone + turns) / (3 * LANES_SHARE) + 100.0)


def test_a_block_of_the_first_axis_is_made_in_its_place() -> None:
    product = tnc.input("a", I, J) @ tnc.input("b", J, K)
    rates = Counting(step_us=10_000.0)
    for axes, there in (((I, K), True), ((K, I), False)):
        looped = apply_cuts(scheduled(product.transpose(*axes)), [Cut("a", 0, 1)])
        alone, shared = (program_us(in_lanes(looped, n), {}, rates) for n in (1, 2))  # type: ignore[arg-type]
        assert alone - shared == pytest.approx((2 * (10_000.0 + 1.0)) if there else 0.0)


def test_rates_that_were_measured_with_threads_say_so_themselves() -> None:
    i, j, k = tnc.indices("i j k", i=NARROW, j=3, k=NARROW)
    program = scheduled(tnc.input("a", i, j) @ tnc.input("b", j, k))
    library = load_machine("reference").libraries["numpy"]
    alone = replace(library, step_us=5_000.0)  # type: ignore[type-var]
    rates = replace(library, step_us=100.0, threads=2, alone=alone)  # type: ignore[type-var]
    assert threaded_us(program, {}, rates, 2) == program_us(program, {}, rates)
    assert threaded_us(program, {}, rates, 1) == program_us(program, {}, alone)


def test_numpy_shares_plain_products_only() -> None:
    b, i, j, k = tnc.indices("b i j k", b=3, i=NARROW, j=3, k=NARROW)
    rates = Counting(step_us=10_000.0)
    plain = scheduled(tnc.input("a", i, j) @ tnc.input("b", j, k))
    stack = scheduled(tnc.contract(tnc.input("a", b, i, j), tnc.input("b", b, j, k), out=(b, i, k)))
    for program, shared in (
        (plain, True),
        (stack, False),
        (scheduled(tnc.exp(tnc.input("x", i))), False),
    ):
        one, two = (threaded_us(program, {}, rates, n, products_only=True) for n in (1, 2))  # type: ignore[arg-type]
        assert (two < one) == shared
        assert threaded_us(program, {}, rates, 2) < one  # type: ignore[arg-type]


def test_the_faster_backend() -> None:
    """By predicted time with entry: once for a call, twice for a training step."""
    expr = tnc.input("a", I, J) @ tnc.input("b", J, K)

    def faster(entry: float, wrt: tuple[str, ...] = (), training: float = 0.0) -> str:
        rates = load_machine("reference").libraries["numpy"]
        numpy = replace(rates, step_us=10.0, call_us=entry, training_us=training)  # type: ignore[type-var]
        torch = replace(rates, step_us=100.0, call_us=1e-3)  # type: ignore[type-var]
        machine = Machine("m", {"numpy": numpy, "torch": torch})
        compilation = Compilation(expr, None, {}, PlanOptions(machine=machine, search="greedy"))
        dtypes = compilation.default_dtypes("float32")
        times = {
            name: compilation.predicted_us(dtypes, {}, wrt, name) for name in ("numpy", "torch")
        }
        return min(times, key=times.__getitem__)

    assert faster(80.0) == "numpy"
    assert faster(100.0) == "torch"  # 10 + 10 + 100 against 100 + 10
    assert faster(100.0, ("a", "b")) == "numpy"  # three products, two entries
    assert faster(100.0, ("a", "b"), training=140.0) == "torch"  # where training takes longer
    assert faster(80.0, training=140.0) == "numpy"


def test_a_program_beyond_floating_point_takes_for_ever() -> None:
    legs = tnc.indices(" ".join(f"k{n}" for n in range(40)), size=2**30)
    f = tnc.compile(tnc.exp(tnc.ones(*legs) * tnc.input("x")), framework="numpy")
    program = f.compilation.scheduled(f._dtypes(), {})[0]
    assert program_us(program, {}, load_machine("reference").planning) == math.inf


def copied(shape: tuple[int, ...], order: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """What a copy of a permuted view of an array asks for; the view is of a view."""
    rates, back = Counting(), tuple(reversed(range(len(shape))))
    first = tuple(shape[axis] for axis in back)
    second = tuple(first[axis] for axis in order)
    program = Program(
        (Argument(Value("a", shape, "float32"), "input"),),
        (
            Step(Value("v", first, "float32"), Contract((back[::-1],), back), ("a",)),
            Step(Value("w", second, "float32"), Contract((back[::-1],), order), ("v",)),
        ),
        ("w",),
    )
    copy_us(program, "w", {}, rates)  # type: ignore[arg-type]
    return rates.asked


def test_copies_of_permuted_views_are_permuting_copies() -> None:
    """A view of a view is traced to what lies in memory; axes of size 1 lie where they may."""
    assert copied((3, 5, 7), (2, 1, 0)) == [("pass", 8.0 * 105)]
    assert copied((3, 5, 7), (0, 1, 2)) == [("permute", 105, 3, False)]
    assert copied((3, 5, 7), (1, 2, 0)) == [("permute", 105, 7, True)]
    assert copied((3, 1, 7), (1, 2, 0)) == [("pass", 8.0 * 21)]
    assert copied((3, 5, 1), (0, 2, 1)) == [("pass", 8.0 * 15)]
