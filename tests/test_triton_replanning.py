"""Plans without the chains that spill: on the interpreter, with spills that are made up."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import tncompiler as tnc
from tests.test_triton import TOLERANCE, launches, relative_error, worst_error
from tncompiler.backends.triton import child, fitting, kernels
from tncompiler.backends.triton.bundle import Bundle
from tncompiler.backends.triton.launches import MOST_REFUSED, plan_launches
from tncompiler.ir.errors import BackendError, NoConfiguration
from tncompiler.module import CompiledModule

Spills = Callable[[str], bool]


class Compiler:
    """What a GPU's compiler would say of the kernels of chains; ``asked``: of which it was."""

    def __init__(self) -> None:
        self.spills: Spills = lambda kernel: True
        self.asked: list[str] = []


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made, real = Compiler(), fitting.sharing

    def sharing(kernel: Any, *args: Any, **constants: Any) -> Any:
        name = kernel.fn.__name__
        made.asked.append(name)
        if made.spills(name):
            raise NoConfiguration(f"each configuration of {name} spills", where=name)
        return real(kernel, *args, **constants)

    monkeypatch.setattr(fitting, "sharing", sharing)
    return made


def deep(backend: str, dtype: str) -> CompiledModule:
    """Two low-rank layers with a softmax between: a chain each, and the whole is none."""
    b, i, r, j, s, o = tnc.indices("b i r j s o", i=24, r=4, j=20, s=4, o=28)
    x = tnc.input("x", b, i)
    hidden = tnc.contract(x, tnc.param("A", i, r), tnc.param("B", r, j), out=(b, j))
    weights = tnc.softmax(hidden, j)
    y = tnc.contract(weights, tnc.param("C", j, s), tnc.param("D", s, o), out=(b, o))
    return tnc.compile(tnc.tanh(y), backend=backend, dtype=dtype, seed=0)


def shallow(backend: str, dtype: str) -> CompiledModule:
    """One chain forward and one backward."""
    b, i, r, o = tnc.indices("b i r o", i=40, r=4, o=44)
    y = tnc.contract(tnc.input("x", b, i), tnc.param("A", i, r), tnc.param("B", r, o), out=(b, o))
    return tnc.compile(tnc.tanh(y), backend=backend, dtype=dtype, seed=0)


def check(make: Callable[[str, str], CompiledModule], size: int, dtype: str) -> CompiledModule:
    """The result and every gradient against aten in float64; returns the module."""
    ours, exact = make("triton", dtype), make("torch", "float64")
    x = torch.randn(37, size, generator=torch.Generator().manual_seed(3)).to(getattr(torch, dtype))
    assert worst_error(ours, exact, x) < TOLERANCE[x.dtype]
    return ours


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("make", "size"), [(shallow, 40), (deep, 24)])
def test_without_any_chain_results_are_the_same(
    make: Callable[[str, str], CompiledModule], size: int, dtype: str, compiler: Compiler
) -> None:
    module = check(make, size, dtype)
    tried = len(compiler.asked)
    assert tried >= 2, "forward and backward had a chain"
    assert "sharing" not in module.source({"b": 37}, part="backward", backend="triton")
    x = torch.randn(37, size, dtype=getattr(torch, dtype), requires_grad=True)
    module(x).sum().backward()
    assert len(compiler.asked) == tried, "what spilled is not tried again"


def test_only_the_chain_that_spills_is_left_out(compiler: Compiler) -> None:
    first: list[str] = []

    def spills(kernel: str) -> bool:
        first.append(kernel)
        return kernel == first[0]

    compiler.spills = spills
    module, whole = deep("triton", "float32"), deep("triton", "float32")
    x = torch.randn(37, 24)
    with torch.no_grad():
        y = module(x)
        compiler.spills = lambda kernel: False
        wanted = whole(x)
    assert relative_error(y, wanted) < TOLERANCE[x.dtype]
    counts = [launches(each.source({"b": 37}, backend="triton")) for each in (module, whole)]
    assert counts[0] > counts[1]
    assert "sharing(" in module.source({"b": 37}, backend="triton")


def test_a_profiler_sees_what_runs_instead(compiler: Compiler) -> None:
    module, x = shallow("triton", "float32"), torch.randn(3, 40)
    with torch.no_grad(), torch.profiler.profile() as profile:
        for _ in range(2):
            module(x)
    names = [event.name for event in profile.events() if event.name.startswith("tnc.forward")]
    assert names
    assert len(compiler.asked) == 1 or set(compiler.asked) == {compiler.asked[0]}


def test_an_error_of_another_kernel_is_the_users(compiler: Compiler) -> None:
    module = shallow("triton", "float32")

    def spills(kernel: str) -> bool:
        raise NoConfiguration("unknown", where="no kernel of ours")

    compiler.spills = spills
    with torch.no_grad(), pytest.raises(NoConfiguration, match="unknown"):
        module(torch.randn(3, 40))


def test_a_plan_without_a_chain_has_none_of_it() -> None:
    program = shallow("triton", "float16").program()
    (bundle,) = (a for a in plan_launches(program).actions if isinstance(a, Bundle))
    again = plan_launches(program, frozenset({bundle.digest})).actions
    assert bundle.digest not in {a.digest for a in again if isinstance(a, Bundle)}
    others = frozenset(map(str, range(MOST_REFUSED)))
    assert any(isinstance(a, Bundle) for a in plan_launches(program, frozenset({"0"})).actions)
    assert not any(isinstance(a, Bundle) for a in plan_launches(program, others).actions)


# ---------------------------------------------------------------------------- compiled for a target


def said(name: str, **more: Any) -> dict[str, Any]:
    made = {"registers": 90, "spill_bytes": 0, "shared_bytes": 0, "num_warps": 4, "constants": {}}
    return {"name": name, "grid": (1,), **made, "asm": "", "binary": "", **more}


@pytest.mark.parametrize(
    "found", [{"spill_bytes": 8}, {"shared_bytes": 10**6}, {"error": "Illegal shared layout"}]
)
def test_kernels_of_a_target_are_those_of_a_plan_that_fits(
    found: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiles(command: Any, *, input: str, **options: Any) -> Any:
        (job,) = json.loads(input)
        chained = "sharing(" in job["text"]
        answer = [[said("t_kernel"), *([said(_chain_of(job["text"]), **found)] if chained else [])]]
        return subprocess.CompletedProcess(command, 0, json.dumps(answer), "")

    monkeypatch.setattr(kernels.subprocess, "run", compiles)
    made = shallow("triton", "float16").kernels("sm_90", {"b": 64})
    assert [launch.name for launch in made] == ["t_kernel"]


def _chain_of(source: str) -> str:
    """The kernel that a source shares rows of."""
    return source.split("sharing(")[1].split(",")[0]


def test_the_child_compiles_until_one_spills_nothing() -> None:
    """in order; after many bytes those with fewest rows first, and none that must spill more"""
    rows = [8, 4, 2, 1, 4, 2]
    candidates = [
        {"ROWS": number, "WAY": k // 4, "num_warps": 4, "at": k} for k, number in enumerate(rows)
    ]

    def compiled(spills: list[int | None]) -> tuple[list[int], list[int | None]]:
        order: list[int] = []

        def spill(config: Mapping[str, int]) -> int | None:
            order.append(config["at"])
            return spills[config["at"]]

        return order, child.spills_until_none(candidates, spill)

    assert compiled([8, 0, 0, 0, 0, 0]) == ([0, 1], [8, 0, None, None, None, None])
    assert compiled([999, 8, 0, 0, 0, 0])[0] == [0, 3, 2, 1]
    assert compiled([999, 0, 0, 0, 0, 0])[1][1] == 0, "the first that spills nothing is found"
    assert compiled([999, 0, 0, 600, 0, 0])[0] == [0, 3, 5, 4]
    assert compiled([None, 8, 8, 8, 8, 8])[0] == [0, 1, 2, 3, 4, 5]


def test_a_kernel_without_the_tensor_memory_it_wants_does_not_run() -> None:
    """triton compiles no more than a trap then, which takes four registers"""
    launch = said("t_kernel", error=child.too_wide(1152) or "")
    with pytest.raises(BackendError, match="1152 columns of tensor memory, of 512"):
        kernels.read_launch(launch)
    assert child.too_wide(512) is None
