"""The torch module: state, copies, functorch, torch.compile, double backward, initialisation."""

import copy
import io
import pickle
import traceback

import numpy as np
import pytest
import torch
from torch import nn

import tncompiler as tnc
from tncompiler.ir.errors import ArgumentError, TncError

B, I, J, K = tnc.indices("b i j k", i=3, j=4, k=5)
X, W, V = tnc.input("x", B, I), tnc.param("W", I, J), tnc.param("V", J, K)
BIAS, C = tnc.param("net.bias", K), tnc.constant("net.c", K, value=np.arange(5))
Y = tnc.tanh(X @ W) @ V * C + BIAS
BACKENDS = pytest.mark.parametrize("backend", ["numpy", "torch"])


def module(backend: str = "auto", seed: int = 0, **options) -> nn.Module:
    return tnc.compile(Y, backend=backend, seed=seed, **options)


def reference(f: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ f.W) @ f.V * torch.arange(5).to(x.dtype) + f.net.bias


def batch(n: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_it_is_a_module_with_the_parameters_of_the_network() -> None:
    """a torch.nn.Module whose parameters are G1, G2, bias"""
    f = module()
    assert isinstance(f, nn.Module)
    assert {n: tuple(p.shape) for n, p in f.named_parameters()} == {
        "W": (3, 4),
        "V": (4, 5),
        "net.bias": (5,),
    }


@BACKENDS
def test_values_and_gradients(backend: str) -> None:
    f, x = module(backend), batch().requires_grad_()
    f(x).square().mean().backward()
    got = [x.grad, *(p.grad for p in f.parameters())]
    expected = torch.autograd.grad(reference(f, x).square().mean(), [x, *f.parameters()])
    assert torch.allclose(f(x), reference(f, x), atol=1e-6)
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


# State --------------------------------------------------------------------------------------------


def test_the_state_dict_is_in_the_declared_order() -> None:
    """state_dict in the order in which the network names its leaves, each in its axis order"""
    assert list(module().state_dict()) == ["W", "V", "net.bias", "net.c"]
    f = tnc.compile(V * 1 + W.sum() + BIAS.sum())
    assert list(f.state_dict()) == ["V", "W", "net.bias"]
    assert f.state_dict()["W"].shape == (3, 4)


def test_a_strict_round_trip() -> None:
    f, g = module(seed=0), module(seed=1)
    assert not torch.equal(f.W, g.W)
    done = g.load_state_dict(f.state_dict(), strict=True)
    assert (done.missing_keys, done.unexpected_keys) == ([], [])
    assert torch.equal(f(batch()), g(batch()))
    with pytest.raises(RuntimeError, match="Missing key"):
        g.load_state_dict({"W": f.W}, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        g.load_state_dict({**f.state_dict(), "z": f.W}, strict=True)


def test_a_round_trip_through_a_file() -> None:
    f, g, file = module(seed=0), module(seed=1), io.BytesIO()
    torch.save(f.state_dict(), file)
    file.seek(0)
    g.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(f(batch()), g(batch()))


@BACKENDS
def test_to_float64(backend: str) -> None:
    f = module(backend).to(torch.float64)
    x = batch(dtype=torch.float64)
    out = f(x)
    assert out.dtype == torch.float64
    assert torch.allclose(out, reference(f, x), atol=1e-12)
    with pytest.raises(TncError, match="float32"):
        f(batch())
    assert f.float()(batch()).dtype == torch.float32


def test_a_constant_without_a_dtype_follows_the_module() -> None:
    """`constant(name, *indices, value=…)` becomes a buffer, which moves with .to() as others do."""
    c = tnc.constant("c", I, value=np.array([1.0, 2.0, 3.0]))
    f = tnc.compile(tnc.input("x", I) * c * tnc.param("w", I, init="ones"))
    assert f(torch.ones(3)).dtype == torch.float32
    assert f.double()(torch.ones(3, dtype=torch.float64)).tolist() == [1, 2, 3]
    assert f.float()(torch.ones(3)).tolist() == [1, 2, 3]


def test_a_declared_dtype_still_runs_after_to() -> None:
    f = tnc.compile(tnc.param("w", I, dtype="float64", init="ones") * 2)
    assert f.float()().tolist() == [2, 2, 2]


def test_moving_after_a_call_keeps_working() -> None:
    f = module("numpy")
    f(batch()).sum().backward()
    f.double()
    f.zero_grad()
    f(batch(dtype=torch.float64)).sum().backward()
    assert f.W.grad.dtype == torch.float64


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
@BACKENDS
def test_copies_are_equal_and_independent(copier, backend: str) -> None:
    f = module(backend).double()
    f.net.bias.requires_grad_(False)
    f.eval()
    x = batch(dtype=torch.float64)
    before = f(x)
    g = copier(f)
    assert torch.equal(g(x), before)
    assert not g.training
    assert [p.requires_grad for p in g.parameters()] == [p.requires_grad for p in f.parameters()]
    assert list(g.state_dict()) == list(f.state_dict())
    assert g.backend == f.backend
    with torch.no_grad():
        g.W.add_(1)
    assert torch.equal(f(x), before)
    assert not torch.equal(g(x), before)
    g(x).sum().backward()
    assert f.W.grad is None


def test_copies_keep_container_inputs_and_sizes() -> None:
    a, b = tnc.input("a", tnc.Index("n")), tnc.input("b", tnc.Index("n"))
    f = tnc.compile({"s": a - b, "p": (a * b).sum()}, inputs=["b", "a"], sizes={"n": 3})
    for g in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert g.inputs == ("b", "a")
        out = g(torch.ones(3), torch.zeros(3))
        assert list(out) == ["s", "p"]
        assert out["s"].tolist() == [-1, -1, -1]
        with pytest.raises(TncError):
            g(torch.ones(4), torch.zeros(4))


def test_a_copy_keeps_shared_parameters_shared() -> None:
    f = module()
    both = nn.ModuleList([f, tnc.compile(X @ W, share=f)])
    copied = copy.deepcopy(both)
    assert copied[0].W is copied[1].W
    assert copied[0].W is not f.W


def test_a_copy_keeps_an_odd_index_name() -> None:
    i = tnc.Index("a'b;import os", 3)
    f = tnc.compile(tnc.param("w", i) * 2, seed=0)
    assert torch.equal(pickle.loads(pickle.dumps(f))(), f())


def test_a_callable_init_may_be_copied_but_not_pickled() -> None:
    """modules pickle as expression JSON and tensors"""
    f = tnc.compile(tnc.param("w", I, init=lambda shape: np.ones(shape)))
    assert torch.equal(copy.deepcopy(f)(), f())
    with pytest.raises(TncError, match="'w'"):
        pickle.dumps(f)


def test_pickles_hold_no_code() -> None:
    """modules pickle as expression JSON and tensors; we never unpickle"""
    data = pickle.dumps(module())
    assert b"def forward" not in data
    assert b"Expr" not in data


# Initial values -----------------------------------------------------------------------------------


def test_a_seed_is_reproducible_and_leaves_the_global_one_alone() -> None:
    """`seed=`"""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    f, g, h = module(seed=5), module(seed=5), module(seed=6)
    assert torch.equal(f.W, g.W)
    assert not torch.equal(f.W, h.W)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_generator_is_used() -> None:
    torch.manual_seed(3)
    f = module(seed=None)
    torch.manual_seed(3)
    assert torch.equal(f.W, module(seed=None).W)
    assert not torch.equal(f.W, module(seed=None).W)


def test_reset_parameters_with_a_generator() -> None:
    f = module(seed=0)
    first = f.W.clone()
    f.reset_parameters(torch.Generator().manual_seed(1))
    second = f.W.clone()
    f.reset_parameters(torch.Generator().manual_seed(1))
    assert torch.equal(f.W, second)
    assert not torch.equal(f.W, first)
    f.reset_parameters(torch.Generator().manual_seed(0))
    assert torch.equal(f.W, first)


def test_reset_parameters_works_on_the_same_tensors() -> None:
    f = module()
    held = f.W
    f.reset_parameters()
    assert f.W is held


# Looking inside -----------------------------------------------------------------------------------


@BACKENDS
def test_func_grad_and_vmap(backend: str) -> None:
    """torch.func.grad and vmap run through the aten path"""
    f, xs = module(backend), torch.randn(4, 6, 3)
    params = {n: p.detach() for n, p in f.named_parameters()}

    def loss(p, x):
        return torch.func.functional_call(f, p, (x,)).square().sum()

    got = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, xs)
    for n, x in enumerate(xs):
        expected = torch.autograd.grad(reference(f, x).square().sum(), [f.W, f.V])
        assert torch.allclose(got["W"][n], expected[0], rtol=1e-4, atol=1e-4)
        assert torch.allclose(got["V"][n], expected[1], rtol=1e-4, atol=1e-4)
    assert torch.allclose(torch.func.vmap(f)(xs), reference(f, xs), atol=1e-5)


@BACKENDS
def test_func_jvp_and_dual_numbers(backend: str) -> None:
    """forward-mode AD means aten"""
    f, x = module(backend), batch()
    t = torch.randn_like(x)
    _, got = torch.func.jvp(f, (x,), (t,))
    _, expected = torch.func.jvp(lambda z: reference(f, z), (x,), (t,))
    assert torch.allclose(got, expected, atol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        out = f(torch.autograd.forward_ad.make_dual(x, t))
        moved = torch.autograd.forward_ad.unpack_dual(out).tangent
    assert torch.allclose(moved, expected, atol=1e-5)


@BACKENDS
def test_func_hessian(backend: str) -> None:
    f = tnc.compile(tnc.tanh(X @ W).sum(), backend=backend, seed=0)
    x = batch(1)
    got = torch.func.hessian(f)(x)
    expected = torch.func.hessian(lambda z: torch.tanh(z @ f.W).sum())(x)
    assert torch.allclose(got, expected, atol=1e-5)


@BACKENDS
def test_torch_compile_fullgraph(backend: str) -> None:
    """`backend="auto"` also means aten under torch.compile"""
    f, x = module(backend), batch().requires_grad_()
    compiled = torch.compile(f, fullgraph=True, backend="eager")
    out = compiled(x)
    assert torch.allclose(out, reference(f, x), atol=1e-6)
    out.square().sum().backward()
    (expected,) = torch.autograd.grad(reference(f, x).square().sum(), [f.W])
    assert torch.allclose(f.W.grad, expected, atol=1e-4)


def test_torch_compile_as_a_part_of_a_model() -> None:
    model = nn.Sequential(nn.Linear(2, 3), module(), nn.ReLU())
    x = torch.randn(4, 2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-6)


@BACKENDS
def test_gradcheck_and_gradgradcheck(backend: str) -> None:
    """double backward is right on both backends"""
    f = module(backend).double()
    x = batch(2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(f, (x,))
    assert torch.autograd.gradgradcheck(f, (x,))


@BACKENDS
def test_double_backward(backend: str) -> None:
    """double backward via torch.autograd.grad(create_graph=True)"""
    f = module(backend).double()
    x = batch(dtype=torch.float64).requires_grad_()

    def penalty(function):
        first = torch.autograd.grad(function(x).square().sum(), [x, f.W], create_graph=True)
        total = sum(g.square().sum() for g in first)
        return torch.autograd.grad(total, [x, f.W, f.V, f.net.bias])

    for mine, theirs in zip(penalty(f), penalty(lambda z: reference(f, z)), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-8)


@BACKENDS
def test_third_derivative(backend: str) -> None:
    f = tnc.compile(tnc.sin(tnc.input("x", I)), backend=backend, dtype="float64")
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    y = f(x).sum()
    for _ in range(3):
        y = torch.autograd.grad(y, x, create_graph=True)[0].sum()
    assert torch.allclose(y, -torch.cos(x).sum())


@BACKENDS
def test_complex_double_backward(backend: str) -> None:
    z = tnc.input("z", I, dtype="complex128")
    f = tnc.compile((z * z.conj() * z).sum().abs(), backend=backend)
    x = torch.randn(3, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(f, (x,))
    assert torch.autograd.gradgradcheck(f, (x,))


@BACKENDS
def test_backward_twice_needs_retain_graph(backend: str) -> None:
    f = module(backend)
    out = f(batch()).sum()
    out.backward(retain_graph=True)
    once = f.W.grad.clone()
    out.backward()
    assert torch.allclose(f.W.grad, 2 * once)
    with pytest.raises(RuntimeError):
        out.backward()


# Gradients wanted and not wanted ------------------------------------------------------------------


@BACKENDS
def test_no_grad_and_inference_mode(backend: str) -> None:
    f, x = module(backend), batch()
    with torch.no_grad():
        assert not f(x).requires_grad
    with torch.inference_mode():
        assert torch.allclose(f(x), reference(f, x), atol=1e-6)
    assert f(x).requires_grad


@BACKENDS
def test_frozen_parameters_get_no_gradient(backend: str) -> None:
    f = module(backend)
    f.W.requires_grad_(False)
    f(batch()).sum().backward()
    assert f.W.grad is None
    assert f.V.grad is not None
    f.W.requires_grad_(True)
    f(batch()).sum().backward()
    assert f.W.grad is not None


@BACKENDS
def test_an_unused_output_needs_no_cotangent(backend: str) -> None:
    f = tnc.compile((X @ W, tnc.exp(X @ W)), backend=backend, seed=0)
    out, _ = f(batch())
    out.sum().backward()
    expected = batch().sum(0)[:, None].expand(3, 4)
    assert torch.allclose(f.W.grad, expected, atol=1e-6)


@BACKENDS
def test_an_optimizer_step_changes_outputs(backend: str) -> None:
    f, x = module(backend), batch()
    optimizer = torch.optim.Adam(f.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = f(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.allclose(f(x), reference(f, x), atol=1e-6)


@BACKENDS
def test_expanded_cotangents(backend: str) -> None:
    """.sum() sends an expanded cotangent, whose strides are 0"""
    f, x = module(backend), batch().requires_grad_()
    f(x).sum().backward()
    (expected,) = torch.autograd.grad(reference(f, x).sum(), [x])
    assert torch.allclose(x.grad, expected, atol=1e-6)


@BACKENDS
def test_hooks_run(backend: str) -> None:
    f, seen = module(backend), []
    f.register_forward_hook(lambda m, a, out: seen.append(out.shape))
    f.W.register_hook(lambda g: seen.append(g.shape))
    f(batch()).sum().backward()
    assert seen == [(6, 5), (3, 4)]


def test_weight_norm_and_parametrisations_are_followed() -> None:
    f, x = module("numpy"), batch()
    nn.utils.parametrize.register_parametrization(f, "W", nn.Identity())
    assert torch.allclose(f(x), reference(f, x), atol=1e-6)


def test_numpy_arrays_are_refused() -> None:
    with pytest.raises(ArgumentError, match="as_tensor"):
        module()(np.ones((2, 3), "float32"))


@BACKENDS
def test_tracebacks_show_generated_source(backend: str) -> None:
    """tracebacks show generated source"""
    n, m = tnc.Index("n"), tnc.Index("m")
    f = tnc.compile(tnc.input("x", n) * tnc.input("y", m), backend=backend)
    huge = torch.zeros(1).expand(2**24)
    try:
        f(huge, huge)  # a petabyte
    except Exception:
        text = traceback.format_exc()
    assert "<tncompiler forward" in text
    line = next(k for k, t in enumerate(text.splitlines()) if "<tncompiler forward" in t)
    assert " * " in text.splitlines()[line + 1]


def test_the_printed_module_says_what_it_is() -> None:
    text = repr(module())
    assert "inputs=x" in text
    assert "k:5" in text


# Initialisation keeps variance --------------------------------------------------------------------

N, M = tnc.indices("n m", n=64, m=64)
A1, A2, O1, O2 = tnc.indices("a1 a2 o1 o2", size=8)


def tt(x, name="t", ins=(A1, A2), outs=(O1, O2), rank=4):
    r = tnc.Index(f"{name}.r", rank)
    return (
        x
        @ tnc.param(f"{name}.G1", ins[0], outs[0], r)
        @ tnc.param(f"{name}.G2", r, ins[1], outs[1])
    )


def cp(x):
    r = tnc.Index("r", 6)
    factors = [tnc.param(f"F{k}", i, r) for k, i in enumerate((A1, A2, O1, O2))]
    return tnc.contract(x, *factors, out=(B, O1, O2))


def tucker(x):
    ranks = tnc.indices("r1 r2 r3 r4", size=3)
    factors = [
        tnc.param(f"F{k}", i, r)
        for k, (i, r) in enumerate(zip((A1, A2, O1, O2), ranks, strict=True))
    ]
    return tnc.contract(x, tnc.param("core", *ranks), *factors, out=(B, O1, O2))


def ring(x):
    r, s = tnc.indices("r s", size=4)
    return tnc.contract(
        x, tnc.param("G1", s, A1, O1, r), tnc.param("G2", r, A2, O2, s), out=(B, O1, O2)
    )


@pytest.mark.parametrize("layer", [tt, cp, tucker, ring])
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_initialisation_keeps_the_variance(layer, framework: str) -> None:
    """the variance is chosen so that the network keeps the variance of its inputs"""
    expr = layer(tnc.input("x", B, A1, A2))
    x = np.random.default_rng(0).standard_normal((32, 8, 8)).astype("float32")
    variances = []
    for seed in range(20):
        f = tnc.compile(expr, framework=framework, seed=seed)
        out = f(x) if framework == "numpy" else f(torch.tensor(x)).detach().numpy()
        variances.append(out.var())
    assert 0.5 < np.sqrt(np.mean(variances)) < 2


def test_a_deep_relu_network_keeps_the_variance() -> None:
    """a 10-layer relu MLP of TT layers stays within a factor of 4"""
    hidden = [tnc.indices(f"h{n} g{n}", size=8) for n in range(11)]
    h = tnc.input("x", B, *hidden[0])
    for n in range(10):
        h = tt(h, f"l{n}", hidden[n], hidden[n + 1], rank=4)
        h = tnc.relu(h) if n < 9 else h
    f = tnc.compile(h, seed=0)
    x = torch.randn(64, 8, 8, generator=torch.Generator().manual_seed(0))
    stds = []
    for seed in range(5):
        f.reset_parameters(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            stds.append(f(x).std().item())
    assert 0.25 < np.exp(np.mean(np.log(stds))) < 4


def test_a_lone_parameter_is_not_zero() -> None:
    assert tnc.compile(W, seed=0).W.abs().min() > 0


def test_a_bias_starts_at_zero() -> None:
    assert module().net.bias.abs().max() == 0


def test_a_mask_of_parameters_is_not_zero() -> None:
    f = tnc.compile(tnc.input("x", I) * tnc.sigmoid(tnc.param("w", I)), seed=0)
    assert f.w.abs().min() > 0


def test_tiny_networks_stay_with_torch() -> None:
    """To cross to NumPy takes longer than such programs do, with gradients and without."""
    b, i, r, o = tnc.indices("b i r o", i=8, r=4, o=8)
    module = tnc.compile(tnc.input("x", b, i) @ tnc.param("A", i, r) @ tnc.param("B", r, o))
    for train in (True, False):
        module.train(train)
        with torch.no_grad():
            module(torch.randn(16, 8))
    assert {found.backend for found in module._specialisations.values()} == {"torch"}
