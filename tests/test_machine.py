"""Machines are values: JSON there and back, part of a plan's key, committed tables sane."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

import tncompiler as tnc
from tests.test_rates import SHAPES, gpu, library
from tncompiler.ir.errors import FileFormatError, PlanError
from tncompiler.planning.machine import (
    MACHINES,
    Machine,
    as_machine,
    default_machine,
    load_machine,
    set_default_machine,
)
from tncompiler.planning.rates import Accelerator

OWN = Machine("own", {"numpy": library(), "torch": library(step_us=2.0)}, "made up")
B, I, J, K = tnc.indices("b i j k", b=4, i=3, j=5, k=2)
CHAIN = tnc.contract(tnc.input("x", B, I), tnc.param("G", I, J), tnc.param("H", J, K), out=(B, K))


def test_json_there_and_back() -> None:
    for machine in (OWN, Machine("gpu", {"triton": gpu()}), *map(load_machine, MACHINES)):
        again = Machine.from_json(machine.to_json())
        assert again == machine
        assert again.digest == machine.digest


def test_the_digest_is_that_of_the_rates() -> None:
    assert replace(OWN, name="other", source="").digest == OWN.digest
    assert Machine("own", {"numpy": library(step_us=3.0)}).digest != OWN.digest


@pytest.mark.parametrize("name", MACHINES)
def test_committed_tables(name: str) -> None:
    machine = load_machine(name)
    assert machine.name == name
    assert machine.source, "a table says where its figures come from"
    assert machine.cpu.libraries.keys() >= {"numpy", "torch"}
    assert machine.planning.product_us(1, 64, 64, 64, "float32") > 0
    assert as_machine(name) is machine and as_machine(OWN) is OWN


@pytest.mark.parametrize("name", ["a100", "h100", "b200", "mi300x"])
def test_published_figures_are_dense(name: str) -> None:
    """Tensor cores do half as much in TF32 as in float16, and plain float32 is slower still."""
    (rates,) = load_machine(name).libraries.values()
    assert isinstance(rates, Accelerator)
    flops = rates.teraflops
    assert flops["float16"] == flops["bfloat16"] == pytest.approx(2 * flops["tf32"], rel=0.01)
    assert flops["tf32"] > 3 * flops["float32"] > 3 * flops["float64"]


def test_a_plan_can_be_made_for_a_gpu_that_is_not_there() -> None:
    plan = tnc.plan(CHAIN, options=tnc.PlanOptions(machine="h100"))
    assert len(plan.path) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"format": "tncompiler machine", "schema": 2}',
        OWN.to_json()[:-40],
        OWN.to_json().replace('"schema": 1', '"schema": 99'),
        OWN.to_json().replace('"library"', '"toaster"'),
        OWN.to_json().replace('"fresh": 100.0', '"fresh": NaN'),
        OWN.to_json().replace('"fresh": 100.0', '"fresh": -1'),
        OWN.to_json().replace('"fresh": 100.0', '"fresh": "much"'),
        OWN.to_json().replace('"fresh"', '"unknown"'),
        OWN.to_json().replace('"numpy": {', '"numpy": 3, "x": {'),
        "[" * 100_000,
        json.dumps({**json.loads(OWN.to_json()), "libraries": {}}),
    ],
)
def test_a_file_that_is_no_machine_raises(text: str) -> None:
    with pytest.raises(FileFormatError, match="machine"):
        Machine.from_json(text)


def test_a_machine_without_rates_is_refused() -> None:
    with pytest.raises(PlanError, match="no rates"):
        Machine("empty", {})


def test_unknown_machines_are_refused() -> None:
    with pytest.raises(PlanError, match="a100, h100, b200, mi300x"):
        load_machine("toaster")
    for bad in ("toaster", 3, None, library()):
        with pytest.raises(PlanError):
            tnc.PlanOptions(machine=bad)  # type: ignore[arg-type]


def test_the_machine_is_part_of_the_key() -> None:
    options = [tnc.PlanOptions(machine=machine) for machine in ("reference", "h100", OWN)]
    assert len({options.key() for options in options}) == 3
    same = tnc.PlanOptions(machine=Machine.from_json(OWN.to_json()))
    assert same.key() == options[2].key()
    reference = tnc.PlanOptions(machine=load_machine("reference"))
    assert reference.key() == options[0].key()  # the rates count, not what they are called


def test_the_default_is_the_reference_until_another_is_set() -> None:
    assert default_machine() == "reference" == tnc.PlanOptions().machine
    set_default_machine(OWN)
    try:
        assert tnc.PlanOptions().machine is OWN
    finally:
        set_default_machine(None)
    assert tnc.PlanOptions().machine == "reference"


def test_the_machine_decides_the_order() -> None:
    """Streaming has fewer flops, the weight fewer bytes; each wins where the other is free."""
    b, i, r, o = tnc.indices("b i r o", b=100, i=16, r=8, o=16)
    expr = tnc.contract(
        tnc.input("x", b, i), tnc.param("G", i, r), tnc.param("H", r, o), out=(b, o)
    )
    free = {d: (1e-9,) * len(SHAPES) for d in ("float32", "float64")}
    flops = {d: tuple(1.0 * m * n * k for m, n, k in SHAPES) for d in free}
    by_bytes = Machine("bytes", {"numpy": library(products=free)})
    by_flops = Machine("flops", {"numpy": library(products=flops)})
    paths = {
        machine.name: tnc.plan(expr, options=tnc.PlanOptions(machine=machine)).path
        for machine in (by_bytes, by_flops)
    }
    assert paths == {"bytes": ((1, 2), (0, 1)), "flops": ((0, 1), (0, 1))}


def test_public_names_load_without_torch() -> None:
    code = (
        "import sys, tncompiler as tnc; tnc.Machine, tnc.calibrate; "
        "assert 'calibrate' in dir(tnc) and 'Machine' in dir(tnc); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_that_was_measured_with_threads_is_planned_by() -> None:
    """a torch network by torch's rates, where those are of several threads; else by the first"""
    alone = library(step_us=2.0)
    torch = replace(alone, threads=2, alone=alone)
    both = Machine("two threads", {"numpy": library(), "torch": torch})
    assert OWN.seen_by("torch") is OWN and OWN.planning is OWN.libraries["numpy"]
    assert both.seen_by("torch").planning is torch and both.seen_by("numpy") is both
    assert both.seen_by("torch").libraries == both.libraries
    assert Machine("gpu", {"triton": gpu()}).seen_by("torch").planning == gpu()
    for framework, rates in (("torch", torch), ("numpy", both.libraries["numpy"])):
        f = tnc.compile(CHAIN, framework=framework, plan=tnc.PlanOptions(machine=both))
        assert as_machine(f.compilation.options.machine).planning is rates


def test_a_table_of_threads_there_and_back() -> None:
    alone = library(step_us=2.0)
    machine = Machine("two threads", {"torch": library(threads=2, alone=alone)})
    again = Machine.from_json(machine.to_json())
    assert again == machine and again.digest == machine.digest
    assert again.planning.one_thread == alone and alone.one_thread is alone
    assert machine.digest != Machine("one", {"torch": library()}).digest
    with pytest.raises(PlanError, match="threads: 0 is no positive number"):
        library(threads=0)
