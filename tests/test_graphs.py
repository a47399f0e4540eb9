"""CUDA graphs: what they refuse anywhere, and on a GPU that they change nothing but time."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import tncompiler as tnc
from tncompiler import graphs
from tncompiler.ir.errors import BackendError
from tncompiler.module import CompiledModule

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def network(cuda_graph: bool) -> CompiledModule:
    b, i, j, k = tnc.indices("b i j k", i=12, j=10, k=8)
    y = tnc.tanh(tnc.contract(tnc.input("x", b, i), tnc.param("A", i, j), out=(b, j)))
    z = tnc.contract(y, tnc.param("B", j, k), out=(b, k))
    return tnc.compile(z, backend="torch", seed=0, cuda_graph=cuda_graph)


def test_tensors_on_a_cpu_are_an_error() -> None:
    with pytest.raises(BackendError, match=r"cuda_graph=True needs CUDA tensors.*cpu"):
        network(True)(torch.ones(3, 12))


def test_numpy_functions_have_no_graphs() -> None:
    (i,) = tnc.indices("i", i=3)
    with pytest.raises(BackendError, match="needs torch tensors"):
        tnc.compile(tnc.relu(tnc.input("x", i)), framework="numpy", cuda_graph=True)


def test_copies_keep_the_option() -> None:
    for copied in (copy.deepcopy(network(True)), pickle.loads(pickle.dumps(network(True)))):
        with pytest.raises(BackendError, match="cuda_graph=True needs CUDA tensors"):
            copied(torch.ones(3, 12))


class Recorder:
    """Stands for a GPU's graphs: a replay runs the call again on the memory that it was given."""

    def __init__(self) -> None:
        self.captures = 0

    def record(self, run: Any, tensors: Any) -> Any:
        self.captures += 1
        results = run(*tensors)

        def replay() -> None:
            for result, made in zip(results, run(*tensors), strict=True):
                result.copy_(made)

        return replay, results


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(graphs, "record", made.record)
    return made


def test_arguments_that_stay_are_read_where_they_are(recorder: Recorder) -> None:
    graphed = graphs.Graphed(lambda x, w: (x @ w,))
    w, kept = torch.randn(4, 3), []
    for step in range(5):
        x = torch.randn(2, 4)
        kept.append((graphed(x, w)[0], x @ w))
        with torch.no_grad():
            w += step  # as an optimizer does
    for got, wanted in kept:
        torch.testing.assert_close(got, wanted)
    assert recorder.captures == 2, "one, and another when x had moved"
    assert [tensor.data_ptr() == w.data_ptr() for tensor in graphed._read] == [False, True]


def test_a_parameter_that_is_replaced_is_read_anew(recorder: Recorder) -> None:
    graphed = graphs.Graphed(lambda x, w: (x * w,))
    x = torch.randn(3)
    for _ in range(3):
        w = torch.randn(3)
        torch.testing.assert_close(graphed(x, w)[0], x * w)
    same = torch.randn(6)
    for w in (same[:3], same[::2]):
        torch.testing.assert_close(graphed(x, w)[0], x * w)
    assert recorder.captures == 2


def test_the_same_place_read_otherwise_has_moved(recorder: Recorder) -> None:
    graphed = graphs.Graphed(lambda x: (x + 0,))
    x = torch.randn(3, 3)
    assert torch.equal(graphed(x)[0], x)
    assert torch.equal(graphed(x.T)[0], x.T)


@gpu
def test_results_and_gradients_are_those_of_plain_calls() -> None:
    plain, graphed = network(False).cuda(), network(True).cuda()
    kept = []
    for _ in range(3):
        x = torch.randn(5, 12, device="cuda", requires_grad=True)
        z = x.detach().clone().requires_grad_()
        for module, given in ((plain, x), (graphed, z)):
            module.zero_grad()
            result = module(given)
            result.square().sum().backward()
            kept.append(result.detach())
        torch.testing.assert_close(kept[-1], kept[-2])
        torch.testing.assert_close(z.grad, x.grad)
        for mine, theirs in zip(graphed.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)
    assert not torch.equal(kept[1], kept[3])  # a later call leaves an earlier result alone
