"""What is kept between calls is never stale: against a module that keeps nothing."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import tncompiler as tnc
from tests.test_corpus import CORPUS, arrays_of, einsum, expression, operands_of
from tncompiler.ir.errors import StaleValues
from tncompiler.kept import KeptValues, Marks
from tncompiler.module import CompiledModule
from tncompiler.planning import keeping
from tncompiler.planning.keeping import cut_kept

B, I, J, K = tnc.Index("b"), tnc.Index("i", 6), tnc.Index("j", 5), tnc.Index("k", 4)
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def network() -> tnc.Expr:
    """tanh(x A C + bias): A C is worth keeping."""
    x, a, c = tnc.input("x", B, I), tnc.param("A", I, J), tnc.param("C", J, K)
    return tnc.tanh(tnc.contract(x, a, c, out=(B, K)) + tnc.param("bias", K))


def module(backend: str = "torch") -> CompiledModule:
    f = tnc.compile(network(), seed=0, backend=backend).eval()
    assert f.kept() is not None
    return f


def count_preparations(f: CompiledModule, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows whenever something is made to be kept."""
    made: list[str] = []
    get = f._kept.get

    def counting(leaves, program, make):
        return get(leaves, program, lambda: (made.append(program), make())[1])

    monkeypatch.setattr(f._kept, "get", counting)
    return made


def assert_fresh(f: CompiledModule, x: torch.Tensor = X) -> None:
    """A call without gradients gives what the parameters say now."""
    with torch.no_grad():
        got = f(x)
        expected = torch.tanh(x @ f.A @ f.C + f.bias)
    assert torch.allclose(got, expected, atol=1e-5), (got - expected).abs().max()


@pytest.mark.parametrize("backend", ["numpy", "torch", "auto"])
def test_it_is_made_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """parameter-only subtrees are contracted once and cached"""
    f = module(backend)
    made = count_preparations(f, monkeypatch)
    for x in (X, X, X + 1, X[:2]):
        assert_fresh(f, x)
    assert len(made) == 1
    with torch.no_grad():
        assert torch.equal(f(X), f(X))


def test_staleness_would_be_noticed() -> None:
    """The check can fail: a write that nobody sees, as documented."""
    f = module()
    assert_fresh(f)
    f.A.data.mul_(2)
    with pytest.raises(AssertionError):
        assert_fresh(f)
    f.invalidate()
    assert_fresh(f)


def test_nothing_is_kept_in_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    f = module().train()
    made = count_preparations(f, monkeypatch)
    assert_fresh(f)
    assert f.kept() is None
    assert not made


# ---------------------------------------------------------------------------- optimizers


def optimizers() -> dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]:
    """Every optimizer of torch.optim, in every implementation that it has."""
    found = {}
    kinds = [k for k in vars(torch.optim).values() if isinstance(k, type)]
    for kind in kinds:
        if not issubclass(kind, torch.optim.Optimizer) or kind is torch.optim.Optimizer:
            continue
        for choice in ({}, {"foreach": True}, {"foreach": False}, {"fused": True}):
            try:
                kind([nn.Parameter(torch.ones(2, 2))], lr=0.05, **choice)
            except (TypeError, RuntimeError, ValueError):
                continue
            name = " ".join([kind.__name__, *choice, *map(str, choice.values())])
            found[name] = lambda p, kind=kind, choice=choice: kind(p, lr=0.05, **choice)
    return found


OPTIMIZERS = optimizers()


def gradients(f: CompiledModule, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    loss = f(X).square().sum()
    loss.backward()
    if isinstance(optimizer, torch.optim.SparseAdam):
        for parameter in f.parameters():
            parameter.grad = parameter.grad.to_sparse()
    return loss


def test_all_optimizers_are_there() -> None:
    names = {name.split()[0] for name in OPTIMIZERS}
    assert {"SGD", "Adam", "AdamW", "Adagrad", "LBFGS", "RMSprop", "SparseAdam"} <= names
    assert {"Adam fused True", "SGD fused True", "AdamW foreach True"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("modes", ["train and eval", "always eval", "steps alone"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_leaves_stale_weights(name: str, modes: str) -> None:
    """stale weights must be impossible; tested with every optimizer, even without train()"""
    x, a, c = tnc.input("x", B, I), tnc.param("A", I, J), tnc.param("C", J, K)
    f = tnc.compile(tnc.contract(x, a, c, out=(B, K)), seed=0, backend="torch").eval()
    optimizer = OPTIMIZERS[name](list(f.parameters()))
    before = f.A.detach().clone()
    gradients(f, optimizer)
    for _ in range(3):
        with torch.no_grad():
            assert torch.allclose(f(X), X @ f.A @ f.C, atol=1e-5)
        if modes == "train and eval":
            f.train()
        if modes != "steps alone":
            gradients(f, optimizer)
        optimizer.step(lambda: gradients(f, optimizer))
        f.eval()
        with torch.no_grad():
            assert torch.allclose(f(X), X @ f.A @ f.C, atol=1e-5)
    assert not torch.equal(before, f.A)


def test_an_optimizer_step_that_torch_compiles_ages_too() -> None:
    f = module()
    optimizer = torch.optim.AdamW(f.parameters(), lr=0.1, fused=True)
    gradients(f, optimizer)
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(2):
        assert_fresh(f)
        step()
    assert_fresh(f)


def _train(f: CompiledModule) -> None:
    f.train()


def _eval(f: CompiledModule) -> None:
    f.eval()


def _step(f: CompiledModule) -> None:
    loss = f(X).square().sum()
    loss.backward()
    with torch.no_grad():
        for parameter in f.parameters():
            parameter.sub_(0.1 * parameter.grad)


def _call(f: CompiledModule) -> None:
    assert_fresh(f)


def _inference(f: CompiledModule) -> None:
    with torch.inference_mode():
        f(X)


@pytest.mark.parametrize("order", [*permutations([_train, _eval, _step, _call, _inference])])
def test_every_order_of_modes(order) -> None:
    """in every order of train() / eval() / no_grad"""
    f = module()
    assert_fresh(f)
    for act in (*order, _eval, *order):
        act(f)
        assert_fresh(f)


# ---------------------------------------------------------------------------- changes of weights


def _swap(f: CompiledModule) -> None:
    f.A = nn.Parameter(2 * f.A.detach())


def _data(f: CompiledModule) -> None:
    f.A.data = 3 * f.A.data


def _data_written(f: CompiledModule) -> None:
    f.A.data.mul_(2)
    f.invalidate()


def _numpy_written(f: CompiledModule) -> None:
    f.A.detach().numpy()[...] *= 2
    f.invalidate()


def _in_place(f: CompiledModule) -> None:
    with torch.no_grad():
        f.C.mul_(0.5)


def _in_place_in_inference_mode(f: CompiledModule) -> None:
    with torch.inference_mode():
        f.C.mul_(0.5)


def _load(f: CompiledModule) -> None:
    f.load_state_dict({name: 2 * value for name, value in f.state_dict().items()})


def _load_assigned(f: CompiledModule) -> None:
    f.load_state_dict({n: 2 * v for n, v in f.state_dict().items()}, assign=True)


def _load_into_parent(f: CompiledModule) -> None:
    parent = nn.Sequential(f)
    parent.load_state_dict({name: 2 * value for name, value in parent.state_dict().items()})


def _reset(f: CompiledModule) -> None:
    f.reset_parameters()


def _vector(f: CompiledModule) -> None:
    vector = nn.utils.parameters_to_vector(f.parameters())
    nn.utils.vector_to_parameters(vector * 1.5, f.parameters())


def _foreach(f: CompiledModule) -> None:
    with torch.no_grad():
        torch._foreach_mul_(list(f.parameters()), 1.5)


def _frozen(f: CompiledModule) -> None:
    f.requires_grad_(False)
    f.A.mul_(1.5)


def _tied(f: CompiledModule) -> None:
    other = tnc.compile(network(), seed=1)
    with torch.no_grad():
        other.A.copy_(f.A)
        f.A = other.A
        assert_fresh(f)
        other.A.mul_(2)


def _swapped_tensors(f: CompiledModule) -> None:
    torch.utils.swap_tensors(f.A, nn.Parameter(2 * f.A.detach()))


CHANGES = [
    *(_swap, _data, _data_written, _numpy_written, _in_place, _in_place_in_inference_mode, _load),
    *(_load_assigned, _load_into_parent, _reset, _vector, _foreach, _frozen, _tied),
    *(_swapped_tensors,),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_change_is_seen(change: Callable[[CompiledModule], None], backend: str) -> None:
    f = module(backend)
    for _ in range(2):
        assert_fresh(f)
        with torch.no_grad():
            before = f(X)
        change(f)
        assert_fresh(f)
        with torch.no_grad():
            assert not torch.equal(before, f(X))


def test_another_tensor_at_the_same_address_is_another_leaf() -> None:
    """keyed on identity: an id or an address that comes again does not count"""
    f = module()
    for scale in range(2, 8):
        assert_fresh(f)
        shape = f.A.shape
        f.A = nn.Parameter(torch.empty(0))
        gc.collect()
        f.A = nn.Parameter(torch.full(shape, float(scale)))
        assert_fresh(f)


def test_other_dtypes_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """to(dtype), deepcopy and pickle: nothing is carried over"""
    f = module()
    assert_fresh(f)
    for other in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert other._kept._entry is None
        assert not other.training
        with torch.no_grad():
            other.A.mul_(2)
        assert_fresh(other)
    assert_fresh(f)
    f.double()
    assert_fresh(f, X.double())
    f.float()
    assert_fresh(f)


def test_a_forward_with_gradients_drops_it() -> None:
    """any forward that needs gradients … drop it"""
    f = module()
    assert_fresh(f)
    assert f._kept._entry is not None
    f(X)
    assert f._kept._entry is None
    for act in (f.train, f.invalidate, lambda: f.load_state_dict(f.state_dict()), f.double):
        f.eval()
        with torch.no_grad():
            f(X)
        assert f._kept._entry is not None
        act()
        assert f._kept._entry is None


# ---------------------------------------------------------------------------- where it is off


def test_functional_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off under functional_call"""
    f = module()
    made = count_preparations(f, monkeypatch)
    held = {name: 2 * p.detach() for name, p in f.named_parameters()}
    with torch.no_grad():
        got = torch.func.functional_call(f, held, (X,))
    assert torch.allclose(got, torch.tanh(X @ held["A"] @ held["C"] + held["bias"]), atol=1e-5)
    assert not made
    named = {name: nn.Parameter(value) for name, value in held.items()}
    for _ in range(2):
        assert_fresh(f)
        with torch.no_grad():
            assert torch.allclose(torch.func.functional_call(f, named, (X,)), got, atol=1e-5)


def test_parametrize(monkeypatch: pytest.MonkeyPatch) -> None:
    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    f = module()
    assert_fresh(f)
    made = count_preparations(f, monkeypatch)
    parametrize.register_parametrization(f, "A", Double())
    assert_fresh(f)
    with torch.no_grad():
        f.parametrizations.A.original.mul_(3)
    assert_fresh(f)
    assert not made


@pytest.mark.parametrize("how", ["inference tensors", "autocast", "compile", "vmap", "export"])
def test_off_where_changes_do_not_show(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off under functional_call, compile, export and inference tensors; under autocast as well"""
    f = module()
    made = count_preparations(f, monkeypatch)
    expected = torch.tanh(X @ f.A @ f.C + f.bias).detach()
    with torch.no_grad():
        if how == "inference tensors":
            with torch.inference_mode():
                for name, p in list(f.named_parameters()):
                    setattr(f, name, nn.Parameter(p.clone(), requires_grad=False))
            got = f(X)
        elif how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                got = f(X).float()
        elif how == "compile":
            got = torch.compile(f, fullgraph=True, backend="eager")(X)
        elif how == "vmap":
            got = torch.func.vmap(lambda x: f(x[None])[0])(X)
        else:
            got = torch.export.export(f, (X,)).module()(X)
    assert torch.allclose(got, expected, atol=0.1 if how == "autocast" else 1e-5)
    assert not made


def test_inputs_that_need_gradients() -> None:
    """With gradients enabled and something requiring them nothing is kept, nor lost."""
    f = module().requires_grad_(False)
    assert_fresh(f)
    x = X.clone().requires_grad_()
    f(x).sum().backward()
    slope = 1 - torch.tanh(X @ f.A @ f.C + f.bias) ** 2
    assert torch.allclose(x.grad, slope @ (f.A @ f.C).T, atol=1e-5)


def test_results_may_be_written_to() -> None:
    """An output is never what is kept, nor a view of it."""
    a, c = tnc.param("A", I, J), tnc.param("C", J, K)
    product = a @ c
    x = tnc.input("x", B, I)
    outputs = (product.merge((I, K), tnc.Index("m", 24)), tnc.tanh(product), x @ product, product)
    f = tnc.compile(outputs, seed=0, backend="torch").eval()
    with torch.no_grad():
        expected = [value.clone() for value in f(X)]
        for _ in range(3):
            got = f(X)
            for value, wanted in zip(got, expected, strict=True):
                assert torch.equal(value, wanted)
            for value in got:
                value.add_(1)


def test_threads() -> None:
    """two threads calling while one assigns"""
    f = module()
    weights = [torch.full((6, 5), float(k)) for k in range(20)]
    allowed = [torch.tanh(X @ w @ f.C + f.bias).detach() for w in [f.A.detach(), *weights]]
    wrong: list[torch.Tensor] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            with torch.no_grad():
                got = f(X)
            if not any(torch.allclose(got, value, atol=1e-4) for value in allowed):
                wrong.append(got)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for weight in weights * 3:
        f.A = nn.Parameter(weight.clone())
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert_fresh(f)


# ---------------------------------------------------------------------------- NumPy functions


def function():
    g = tnc.compile(network(), framework="numpy", seed=0)
    assert g.kept() is not None
    return g


def assert_fresh_function(g) -> None:
    x, p = X.numpy(), g.parameters
    np.testing.assert_allclose(g(x), np.tanh(x @ p["A"] @ p["C"] + p["bias"]), atol=1e-5)


def test_a_numpy_function_keeps_until_a_parameter_is_replaced(monkeypatch) -> None:
    g = function()
    made = count_preparations(g, monkeypatch)
    for _ in range(3):
        assert_fresh_function(g)
    assert len(made) == 1
    g.parameters["A"] = 2 * g.parameters["A"]
    assert_fresh_function(g)
    assert len(made) == 2
    other = {"A": np.ones((6, 5), np.float32)}
    expected = np.tanh(X.numpy() @ other["A"] @ g.parameters["C"] + g.parameters["bias"])
    np.testing.assert_allclose(g(X.numpy(), parameters=other), expected, atol=1e-5)
    assert len(made) == 2
    assert_fresh_function(g)


def test_a_shared_parameter_is_seen_to_change() -> None:
    g = function()
    h = tnc.compile(network(), framework="numpy", share=g)
    assert_fresh_function(h)
    g.parameters["C"] = -g.parameters["C"]
    assert_fresh_function(h)


def test_a_write_through_another_array_needs_invalidate() -> None:
    """writes through a base array are the documented exception"""
    g = function()
    assert_fresh_function(g)
    array = g.parameters["A"]
    array.flags.writeable = True
    array *= 2
    with pytest.raises(AssertionError):
        assert_fresh_function(g)
    g.invalidate()
    assert_fresh_function(g)


# ---------------------------------------------------------------------------- debugging


@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_debugging_compares_checksums(framework: str, monkeypatch, capsys) -> None:
    """`TNC_DEBUG` compares a checksum"""
    monkeypatch.setenv("TNC_DEBUG", "1")
    f = module() if framework == "torch" else function()
    x = X if framework == "torch" else X.numpy()
    with torch.no_grad():
        f(x)
        f(x)
        if framework == "torch":
            f.A.data.mul_(2)
        else:
            array = f.parameters["A"]
            array.flags.writeable = True
            array *= 2
        with pytest.raises(StaleValues, match="invalidate"):
            f(x)
        f.invalidate()
        f(x)


def test_checksums_take_every_dtype() -> None:
    from tncompiler.tensor_marks import MARKS

    for dtype in (torch.bfloat16, torch.float16, torch.complex64, torch.float64, torch.int8):
        for shape in ((), (3,), (0, 2)):
            tensor = torch.ones(shape, dtype=dtype)
            assert MARKS.checksum(tensor) == MARKS.checksum(tensor.clone())
    assert MARKS.checksum(torch.ones(2)) != MARKS.checksum(torch.zeros(2))
    assert MARKS.checksum(torch.ones(2, dtype=torch.complex64).conj())


def test_values_belong_to_their_leaves() -> None:
    kept = KeptValues(Marks(lambda leaf: None, lambda: None, lambda leaf: b""))
    first, second = np.ones(3), np.ones(3)
    assert kept.get([first], "p", lambda: (1,)) == (1,)
    assert kept.get([first], "p", lambda: (2,)) == (1,)
    assert kept.get([second], "p", lambda: (3,)) == (3,)
    kept.drop()
    assert kept.get([second], "p", lambda: (4,)) == (4,)


# ---------------------------------------------------------------------------- the cut and the plan


@pytest.mark.parametrize("name", CORPUS)
def test_a_cut_program_computes_the_same(name: str) -> None:
    known = CORPUS[name]
    arrays = arrays_of(known)
    g = tnc.compile(expression(known), framework="numpy", dtype=known.dtype)
    cut = cut_kept(g.program())
    if cut is None:
        return
    held = [np.asarray(arrays[leaf.name]) for leaf in g.compilation.ordered]
    given = held[len(g.compilation.inputs) :]
    values = g.compilation.executable(cut.prepare, "numpy", "prepare").run(*given)
    (got,) = g.compilation.executable(cut.rest, "numpy", "forward").run(*held, *values)
    expected = einsum(known, operands_of(known, arrays), known.out)
    tolerance = 1e-4 if known.dtype in ("float32", "complex64") else 1e-11
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_some_of_the_corpus_is_cut() -> None:
    compiled = [
        tnc.compile(expression(k), framework="numpy", dtype=k.dtype) for k in CORPUS.values()
    ]
    assert sum(cut_kept(g.program()) is not None for g in compiled) >= 3


def test_the_plan_that_is_shown_is_the_one_that_runs() -> None:
    f = tnc.compile(network(), seed=0, backend="torch")
    assert f.plan({"b": 512}).path == f.compilation.plan(f.compilation.nominal({"b": 512})).path
    trained = f.source({"b": 512})
    f.eval()
    cut = f.kept({"b": 512})
    assert cut is not None
    assert f.source({"b": 512}) != trained
    assert "def prepare(A, C, bias)" in f.source({"b": 512})
    assert f.plan({"b": 512}).networks[0].pairs[0] == (1, 2)  # A C first, as it is kept
    assert "once" in f.explain({"b": 512})
    names = {step.out.name for step in f.program({"b": 512}).steps}
    made = {s.out.name for program in (cut.prepare, cut.rest) for s in program.steps}
    assert names == made
    with torch.no_grad():
        f(torch.randn(512, 6))
    (spec,) = f._specialisations.values()
    assert spec.kept is not None
    assert spec.kept.rest.source.text in f.source({"b": 512})


def test_nothing_is_kept_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """a value is cached only if its size is reasonable; not where memory is what is asked for"""
    x, a, c = tnc.input("x", B, I), tnc.param("A", I, J), tnc.param("C", J, K)
    expr = tnc.contract(x, a, c, out=(B, K))
    f = tnc.compile(expr, plan=tnc.PlanOptions(minimize="memory")).eval()
    assert f.kept() is None
    assert tnc.compile(x @ a, framework="numpy").kept() is None
    monkeypatch.setattr(keeping, "LARGEST_KEPT", 10)
    assert tnc.compile(expr, framework="numpy").kept() is None


@pytest.mark.parametrize("implementation", ["auto", "factorized", "reconstructed"])
def test_layers_reconstruct_once_in_eval_mode(implementation: str) -> None:
    torch.manual_seed(0)
    layer = tnc.nn.Linear(
        24, 30, format=tnc.formats.TTMatrix(rank=3), implementation=implementation
    )
    x = torch.randn(64, 24)
    dense = layer.to_dense()
    for _ in range(2):
        layer.eval()
        with torch.no_grad():
            assert torch.allclose(layer(x), x @ layer.weight.T + layer.bias, atol=1e-5)
            if implementation == "reconstructed":
                assert layer.cores.kept({"b": 64}).kept_bytes() >= 24 * 30 * 4
                assert layer._built.ready(layer, x) is not None
        layer.train()
        layer(x).sum().backward()
        with torch.no_grad():
            for p in layer.parameters():
                p.mul_(1.1)
    assert not torch.allclose(dense(x), layer(x), atol=1e-3)
