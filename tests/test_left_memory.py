"""Large arrays of generated code take memory that earlier ones have left, and give it back."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tncompiler as tnc
from tncompiler.backends.numpy import memory as left
from tncompiler.backends.torch.memory import bmm, copied, elementwise, empty, fresh, mm
from tncompiler.module import CompiledModule

I, R, O = tnc.indices("i r o", i=256, r=1024, o=256)
B = tnc.Index("b", 512)
ROWS = torch.rand(512, 256)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    left.release()
    yield
    left.release()


def layer(backend: str, **options: object) -> CompiledModule:
    """b × i → b × r → b × o: 2 MiB in between, half of it out."""
    hidden = tnc.tanh(tnc.contract(tnc.input("x", B, I), tnc.param("U", I, R), out=(B, R)))
    out = tnc.contract(hidden, tnc.param("V", R, O), out=(B, O))
    torch.manual_seed(0)
    return tnc.compile(out, backend=backend, plan=tnc.PlanOptions(**options))


def step(module: CompiledModule) -> list[Tensor]:
    x = ROWS.clone().requires_grad_()
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_a_step_leaves_its_memory_to_the_next(backend: str) -> None:
    module = layer(backend)
    first = [t.clone() for t in step(module)]
    kept = left.kept_bytes()
    assert kept > 2**21
    for _ in range(5):
        assert all(map(torch.equal, step(module), first))
    assert left.kept_bytes() == kept


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_results_are_their_holders(backend: str) -> None:
    module = layer(backend)
    with torch.no_grad():
        y = module(ROWS)
        copy = y.clone()
        others = [module(ROWS * k) for k in range(2, 6)]
        assert torch.equal(y, copy)
        assert len({t.data_ptr() for t in (y, *others)}) == 5
        view = y[1:, ::2]
        wanted = view.clone()
        del y
        others += [module(ROWS * k) for k in range(6, 9)]
        assert torch.equal(view, wanted)


@pytest.mark.parametrize("options", [{"memory_limit": 2**30}, {"minimize": "memory"}])
def test_a_limit_of_memory_keeps_nothing(options: dict[str, object]) -> None:
    step(layer("torch", **options))
    assert left.kept_bytes() == 0


def test_torch_differentiates_code_that_makes_new_tensors() -> None:
    module = layer("torch")
    assert "memory import" in module.source()
    exact = step(module)

    def total(x: Tensor) -> Tensor:
        return module(x).square().sum()

    assert torch.allclose(torch.func.grad(total)(ROWS), exact[1], rtol=1e-4, atol=1e-4)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        module(ROWS)
    assert flops.get_total_flops() == 2 * 512 * 1024 * (256 + 256)


def test_operations_are_torchs() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(700, 500), torch.randn(500, 700, dtype=torch.float32)
    assert torch.equal(mm(a, b), torch.mm(a, b)) and torch.equal(mm(a[:3], b), torch.mm(a[:3], b))
    x, y = torch.randn(20, 300, 40), torch.randn(20, 40, 200)
    assert torch.equal(bmm(x, y), torch.bmm(x, y))
    turned = x.permute(1, 0, 2).expand(2, -1, -1, -1).transpose(0, 3)
    assert torch.equal(copied(turned), turned) and copied(turned).is_contiguous()
    assert copied(a) is a
    row, half = torch.randn(500), torch.randn(700, 500).to(torch.bfloat16)
    assert torch.equal(elementwise(torch.add, a, row), a + row)
    assert torch.equal(elementwise(torch.mul, a, 2.0), 2.0 * a)
    assert torch.equal(elementwise(torch.mul, half, half), half * half)
    assert torch.equal(elementwise(torch.mul, a, half), a * half)  # as torch promotes
    assert elementwise(torch.add, a.t(), a.t()).stride() == a.t().stride()
    column = a[:, :1]
    assert torch.equal(elementwise(torch.mul, column, row), column * row)
    made = elementwise(torch.tanh, a)
    assert torch.equal(made, torch.tanh(a)) and not made.data_ptr() % 64
    assert empty((3,), torch.float32, torch.device("meta")).is_meta


def test_memory_is_used_again_when_nobody_holds_it() -> None:
    array = left.fresh((512, 128), np.float32)
    address = array.ctypes.data
    view = array.reshape(-1).view(np.int32)[5:]
    del array
    gc.collect()
    assert left.fresh((512, 128), np.float32).ctypes.data != address  # the view holds it
    del view
    gc.collect()
    assert left.fresh((512, 128), np.float32).ctypes.data == address


def test_a_tensor_holds_its_memory() -> None:
    tensor = torch.from_numpy(left.fresh((512, 128), np.float32))
    other = left.fresh((512, 128), np.float32)
    assert other.ctypes.data != tensor.data_ptr()


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left, "MOST_BYTES", 2**20)
    arrays = [left.fresh((2**18,), np.uint8) for _ in range(8)]
    del arrays
    gc.collect()
    assert left.kept_bytes() <= 2**20
    assert left.kept_bytes() > 0


def test_small_arrays_come_from_the_allocator() -> None:
    assert left.fresh((3, 4), np.float64).base is None


def test_numbers_may_come_first() -> None:
    """torch's functions want a tensor there."""
    x = tnc.input("x", tnc.Index("b"), I)
    module = tnc.compile(tnc.tanh(2.5 - 0.5 * x) + 3 / (1 + x), backend="torch")
    assert "elementwise(torch.tanh" in module.source()
    rows = ROWS.repeat(8, 1)
    assert torch.allclose(module(rows), torch.tanh(2.5 - 0.5 * rows) + 3 / (1 + rows))
    assert left.kept_bytes() > 0


def test_memory_of_one_size_serves_others_of_about_that() -> None:
    first = fresh((1000, 1000), torch.float32)
    place = first.data_ptr()
    del first
    assert fresh((999, 1000), torch.float32).data_ptr() == place
    assert fresh((500, 1000), torch.float32).data_ptr() != place


def test_what_was_left_first_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left, "MOST_BYTES", 10 * 2**20)
    sizes = [2**20, 3 * 2**20, 4 * 2**20]
    held = [left.memory(size) for size in sizes]
    while held:
        del held[0]
    assert 8 * 2**20 < left.kept_bytes() < 9 * 2**20
    assert left.memory(2**20).nbytes == 2**20
    assert sorted(left._left.blocks) == [size + 64 for size in (2**20, 3 * 2**20, 4 * 2**20)]
    held = [left.memory(5 * 2**20)]
    del held[0]
    assert 6 * 2**20 < left.kept_bytes() < 7 * 2**20  # of 1 and 5 MiB: those of 3 and 4 are older


def test_slices_let_go_of_their_results() -> None:
    module = tnc.compile(
        tnc.contract(tnc.input("x", B, I), tnc.param("U", I, R), out=(B, R)),
        process_group=tnc.Ranks(None, slices=4),
    )
    gc.disable()
    try:
        with torch.no_grad():
            module(ROWS)
            kept = left.kept_bytes()
            for _ in range(3):
                module(ROWS)
            assert left.kept_bytes() == kept > 0
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_has_a_lock_of_its_own() -> None:
    """A thread that is not in the child may have held the parent's."""
    code = """
import os, threading
from tncompiler.backends.numpy import memory
holder = threading.Thread(target=memory._left.lock.acquire)
holder.start()
holder.join()
child = os.fork()
if not child:
    memory.fresh((2**20,), "float32")
    os._exit(0)
raise SystemExit(os.waitpid(child, 0)[1])
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
