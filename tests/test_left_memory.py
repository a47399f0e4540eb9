"""Large arrays of generated code take memory that earlier ones have left, and give it back."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tncompiler as tnc
from tncompiler.backends.numpy import memory
from tncompiler.backends.torch.memory import copied, elementwise, empty, fresh, left
from tncompiler.module import CompiledModule

I, R, O = tnc.indices("i r o", i=256, r=1024, o=256)
B = tnc.Index("b", 512)
ROWS = torch.rand(512, 256)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    memory.release()
    yield
    memory.release()


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
    kept = memory.kept_bytes()
    assert kept > 2**21
    for _ in range(5):
        assert all(map(torch.equal, step(module), first))
    assert memory.kept_bytes() == kept


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
    assert memory.kept_bytes() == 0


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
    assert torch.equal(torch.mm(a, b, out=left(a, 700, 700)), torch.mm(a, b))
    turned = torch.randn(20, 300, 40).permute(1, 0, 2).expand(2, -1, -1, -1).transpose(0, 3)
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


@pytest.mark.parametrize("dtype", ["float64", "complex128", "bfloat16", "float16", "int64", "bool"])
def test_memory_of_every_dtype(dtype: str) -> None:
    like = torch.zeros(3, dtype=getattr(torch, dtype))
    made = left(like, 2**10, 2**10 + 1)
    assert made is not None and made.dtype == like.dtype and made.shape == (1024, 1025)
    assert made.is_contiguous() and torch.equal(made.fill_(True), torch.ones_like(made))


def test_small_results_and_those_elsewhere_are_torchs() -> None:
    assert left(torch.zeros(3), 2**9, 2**8) is None
    assert left(torch.zeros(3, device="meta"), 2**10, 2**10) is None
    with FlopCounterMode(display=False):
        assert left(torch.zeros(3), 2**10, 2**10) is None


def test_memory_is_used_again_when_nobody_holds_it() -> None:
    array = memory.fresh((512, 128), np.float32)
    address = array.ctypes.data
    view = array.reshape(-1).view(np.int32)[5:]
    del array
    gc.collect()
    other = memory.fresh((512, 128), np.float32)
    assert other.ctypes.data != address  # the view holds it
    del view
    gc.collect()
    assert memory.fresh((512, 128), np.float32).ctypes.data == address


def test_a_tensor_holds_its_memory() -> None:
    tensor = torch.from_numpy(memory.fresh((512, 128), np.float32))
    other = memory.fresh((512, 128), np.float32)
    assert other.ctypes.data != tensor.data_ptr()


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_BYTES", 2**20)
    arrays = [memory.fresh((2**18,), np.uint8) for _ in range(8)]
    del arrays
    gc.collect()
    assert memory.kept_bytes() <= 2**20
    assert memory.kept_bytes() > 0


def test_small_arrays_come_from_the_allocator() -> None:
    assert memory.fresh((3, 4), np.float64).base is None


def test_numbers_may_come_first() -> None:
    """torch's functions want a tensor there."""
    x = tnc.input("x", tnc.Index("b"), I)
    module = tnc.compile(tnc.tanh(2.5 - 0.5 * x) + 3 / (1 + x), backend="torch")
    assert "elementwise(torch.tanh" in module.source()
    rows = ROWS.repeat(8, 1)
    assert torch.allclose(module(rows), torch.tanh(2.5 - 0.5 * rows) + 3 / (1 + rows))
    assert memory.kept_bytes() > 0


def test_memory_of_one_size_serves_others_of_about_that() -> None:
    first = fresh((1000, 1000), torch.float32)
    place = first.data_ptr()
    del first
    assert fresh((999, 1000), torch.float32).data_ptr() == place
    assert fresh((500, 1000), torch.float32).data_ptr() != place


def test_what_was_asked_for_first_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_BYTES", 10 * 2**20)
    sizes = [2**20, 3 * 2**20, 4 * 2**20]
    held = [memory.piece(size) for size in sizes]
    del held[:]
    assert memory.kept_bytes() == 8 * 2**20
    held = [memory.piece(5 * 2**20)]  # those of 1 and 3 MiB are let go of
    assert memory.kept_bytes() == 4 * 2**20
    held.append(memory.piece(6 * 2**20))  # nobody has asked for 4 again; that of 5 is its user's
    assert memory.kept_bytes() == 0
    del held[:]
    assert memory.kept_bytes() == 6 * 2**20


def test_results_that_are_collected_leave_the_rest_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "MOST_BYTES", 10 * 2**20)
    piece, held = weakref.ref(memory.piece(2**19)), []
    for _ in range(20):  # steps, of each of which a result is kept
        held.append(memory.piece(2**20))
        assert memory.piece(2**19) is piece()
    assert len({array.ctypes.data for array in held}) == 20


def test_sizes_that_nobody_asks_for_any_more_go_before_used_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "MOST_BYTES", 10 * 2**20)
    stale = [memory.piece(3 * 2**20) for _ in range(3)]
    del stale[:]
    for _ in range(6):  # a step with two arrays, after another with other sizes
        held = [memory.piece(2 * 2**20) for _ in range(2)]
        places = {array.ctypes.data for array in held}
        del held[:]
    held = [memory.piece(2 * 2**20) for _ in range(2)]
    assert {array.ctypes.data for array in held} == places


def test_what_is_larger_than_all_that_is_kept_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = memory.piece(2**20)
    monkeypatch.setattr(memory, "MOST_BYTES", 2 * 2**20)
    large = memory.piece(3 * 2**20)
    del large, kept
    assert memory.kept_bytes() == 2**20


def test_only_so_many_pieces_in_use_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_BUSY", 4)
    held = [memory.piece(2**20) for _ in range(6)]
    assert len({array.ctypes.data for array in held}) == 6
    del held[:]
    assert memory.kept_bytes() == 4 * 2**20


def test_threads_are_not_given_the_same_memory() -> None:
    """Each fills what it is given and finds it as it left it."""
    wrong = []

    def work(number: int) -> None:
        for round in range(300):
            arrays = [memory.fresh((2**15,), np.float32) for _ in range(3)]
            for k, array in enumerate(arrays):
                array.fill(number + k / 4)
            tensor = torch.from_numpy(arrays.pop())
            time.sleep(0)
            wrong.extend(round for k, a in enumerate(arrays) if (a != number + k / 4).any())
            wrong.extend([round] * int((tensor != number + 0.5).any()))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    assert sum(map(len, memory._left.pieces.values())) < 50  # not one for each of 5,400 arrays


def test_a_result_whose_storage_is_shared_with_another_process_is_let_alone() -> None:
    result = fresh((512, 1024), torch.float32).fill_(1)
    result.share_memory_()
    assert torch.equal(fresh((512, 1024), torch.float32).fill_(2), torch.full((512, 1024), 2.0))
    assert torch.equal(result, torch.ones(512, 1024))


def test_a_storage_is_as_large_as_its_tensor() -> None:
    """What is saved or sent is the storage, and what others left behind is nobody's business."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        made = fresh((1000, 1001), dtype)
        assert made.untyped_storage().nbytes() == made.nbytes == 1001000 * dtype.itemsize
    made = fresh((1001, 1003), torch.int8)
    assert 0 <= made.untyped_storage().nbytes() - made.nbytes < 4


def test_a_storage_holds_its_memory() -> None:
    result = fresh((512, 1024), torch.float32).fill_(1)
    storage = result.untyped_storage()
    del result
    fresh((512, 1024), torch.float32).fill_(2)
    assert torch.equal(torch.tensor([], dtype=torch.float32).set_(storage)[:4], torch.ones(4))


def test_slices_let_go_of_their_results() -> None:
    module = tnc.compile(
        tnc.contract(tnc.input("x", B, I), tnc.param("U", I, R), out=(B, R)),
        process_group=tnc.Ranks(None, slices=4),
    )
    gc.disable()
    try:
        with torch.no_grad():
            module(ROWS)
            kept = memory.kept_bytes()
            for _ in range(3):
                module(ROWS)
            assert memory.kept_bytes() == kept > 0
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
