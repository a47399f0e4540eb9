"""tnc.nn.Linear: every format and implementation against the dense layer of the same weight."""

import copy
import io
import math
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tncompiler as tnc
from tests.test_formats import fitting, full, make
from tncompiler import formats
from tncompiler.formats.conditioning import condition_numbers
from tncompiler.ir.errors import TncError
from tncompiler.nn.checks import IMPLEMENTATIONS
from tncompiler.nn.tensorized import IllConditioned

EXACT, PADDED = ((3, 4), (2, 5)), ((2, 7), (3, 4))  # of a layer of 12 → 10 features
UNEQUAL = ((2, 2, 4), (2, 5))
FORMAT = formats.TTMatrix(3, clamp=True)
MODES: dict[str, Any] = dict(in_shape=(3, 4), out_shape=(2, 5))


def layer(**options: Any) -> Any:
    torch.manual_seed(0)
    return tnc.nn.Linear(12, 10, **{"format": FORMAT, **MODES, **options})


def exact(name: str, shapes: Any, **options: Any) -> tuple[Any, nn.Linear]:
    """A layer at full rank and the dense one that it was made from, in float64."""
    torch.manual_seed(0)
    dense = nn.Linear(12, 10, options.pop("bias", True), dtype=torch.float64)
    modes = dict(in_shape=shapes[0], out_shape=shapes[1])
    return tnc.nn.Linear.from_dense(dense, full(name, *shapes), **modes, **options), dense


def shaped(name: str, n: int, m: int, rank: int, **options: Any) -> Any:
    modes = dict(in_shape=(n,), out_shape=(m,)) if name == "Custom" else {}
    return tnc.nn.Linear(n, m, format=make(name, rank, clamp=True), **modes, **options)


def differing(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


# ---------------------------------------------------------------------------- against dense


def cases() -> Iterator[Any]:
    for name in formats.FORMATS:
        for shapes in fitting(name, [PADDED, UNEQUAL]):
            for implementation in IMPLEMENTATIONS:
                yield pytest.param(
                    name, shapes, implementation, id=f"{name}-{shapes}-{implementation}"
                )


@pytest.mark.parametrize("name, shapes, implementation", [*cases()])
def test_full_rank_is_the_dense_layer_forward_and_backward(
    name: str, shapes: Any, implementation: str
) -> None:
    mine, dense = exact(name, shapes, implementation=implementation)
    assert mine.decomposition.error < 1e-12
    x = torch.randn(3, 2, 12, dtype=torch.float64, requires_grad=True)
    got, wanted = mine(x), dense(x)
    assert differing(got, wanted) < 1e-12
    cotangent = torch.randn_like(got)
    (by_mine,) = torch.autograd.grad(got, x, cotangent, retain_graph=True)
    (by_dense,) = torch.autograd.grad(wanted, x, cotangent)
    assert differing(by_mine, by_dense) < 1e-12
    cores = list(mine.parameters())
    through_weight = F.linear(x, mine.reconstruct(), mine.bias)
    for a, b in zip(
        torch.autograd.grad(got, cores, cotangent),
        torch.autograd.grad(through_weight, cores, cotangent),
        strict=True,
    ):
        assert differing(a, b) < 1e-11
    back = mine.to_dense()
    assert differing(back.weight, dense.weight) < 1e-12
    assert torch.equal(back.bias, dense.bias)


def test_the_comparison_sees_a_wrong_core() -> None:
    mine, dense = exact("TT", EXACT)
    with torch.no_grad():
        mine.cores.G1[0] += 1
    x = torch.randn(3, 12, dtype=torch.float64)
    assert differing(mine(x), dense(x)) > 1e-3


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0,), (3, 0, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_leading_dimensions(shape: tuple[int, ...], bias: bool) -> None:
    mine, dense = exact("TTMatrix", PADDED, bias=bias)
    x = torch.randn(*shape, 12, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(mine(x), dense(x))
    mine(x).sum().backward()
    assert x.grad.shape == x.shape
    assert (mine.bias is None) is not bias


def test_inputs_that_are_not_contiguous() -> None:
    mine, dense = exact("Tucker", EXACT)
    x = torch.randn(12, 3, 4, dtype=torch.float64)
    for view in (x.permute(2, 1, 0), x.movedim(0, -1), x[:, :, :1].expand(12, 3, 4).movedim(0, -1)):
        torch.testing.assert_close(mine(view), dense(view))


@pytest.mark.parametrize(
    "dtype, error", [("float16", 2e-2), ("bfloat16", 2e-1), ("complex64", 1e-5)]
)
def test_other_dtypes(dtype: str, error: float) -> None:
    dense = nn.Linear(12, 10, dtype=getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditioned)
        mine = tnc.nn.Linear.from_dense(dense, full("TT", *EXACT), **MODES)
    x = torch.randn(4, 12).to(dense.weight.dtype)
    assert mine(x).dtype == mine.weight.dtype == mine.to_dense().weight.dtype == x.dtype
    assert differing(mine(x), dense(x)) < error
    mine(x).abs().sum().backward()
    assert all(p.grad is not None for p in mine.parameters())


def test_the_implementations_do_what_they_say() -> None:
    """factorized never forms the dense weight, reconstructed does, and both are the same."""
    ranks = dict(format=formats.TTMatrix(2), in_shape=(4, 4, 4), out_shape=(4, 4, 4))
    x, outs = torch.randn(64, 64), {}
    for implementation in IMPLEMENTATIONS:
        torch.manual_seed(0)
        mine = tnc.nn.Linear(64, 64, implementation=implementation, **ranks)
        outs[implementation] = mine(x)
        sizes = {str(symbol): 3 for symbol in mine.cores.compilation.free_symbols}
        made = [
            math.prod(int(n) for n in step.out.shape)
            for step in mine.cores.program(sizes).steps
            if not any("b" in str(n) for n in step.out.shape)
        ]
        assert (max(made, default=0) >= 64 * 64) == (implementation == "reconstructed") or (
            implementation == "auto"
        )
    torch.testing.assert_close(outs["factorized"], outs["reconstructed"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outs["auto"], outs["reconstructed"], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("name", formats.FORMATS)
def test_one_layer_keeps_the_variance(name: str) -> None:
    torch.manual_seed(0)
    mine, x = shaped(name, 60, 50, 8), torch.randn(256, 60)
    for nonlinearity, gain in (("linear", 1.0), ("relu", 2**0.5)):
        squares = []
        for _ in range(8):
            mine.reset_parameters(nonlinearity)
            squares.append(float(mine(x).detach().square().mean()))
        assert 0.7 < math.sqrt(np.mean(squares)) / gain < 1.3
    assert not mine.bias.any()


@pytest.mark.parametrize("nonlinearity", ["linear", "relu"])
@pytest.mark.parametrize("name", formats.FORMATS)
def test_twenty_layers_keep_the_scale(name: str, nonlinearity: str) -> None:
    """Within 2x, as the geometric mean over some networks: a narrow one fluctuates by itself."""
    mine = shaped(name, 96, 96, 72 if name == "CP" else 24, bias=False)
    logs = []
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.randn(32, 96)
        with torch.no_grad():
            for _ in range(20):
                mine.reset_parameters(nonlinearity)
                x = torch.relu(mine(x)) if nonlinearity == "relu" else mine(x)
        logs.append(float(x.square().mean().sqrt().log()))
    assert 0.5 < math.exp(np.mean(logs)) < 2


def test_padding_takes_no_variance() -> None:
    torch.manual_seed(0)
    mine = tnc.nn.Linear(40, 64, format=formats.TTMatrix(8), in_shape=(4, 4, 4))
    assert 0.7 < float(mine(torch.randn(256, 40)).detach().std()) < 1.3


def test_drawing_follows_the_seed() -> None:
    a, b = layer(), layer()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    b.reset_parameters()
    assert not torch.equal(a.cores.G1, b.cores.G1)
    with pytest.raises(TncError, match="nonlinearity"):
        a.reset_parameters("nothing")


# ---------------------------------------------------------------------------- as a torch module


def test_state_round_trips_strictly_through_the_meta_device() -> None:
    mine, x = layer(), torch.randn(3, 12)
    assert list(mine.state_dict()) == ["cores.G1", "cores.G2", "cores.bias"]
    with torch.device("meta"):
        inside = layer()
    for other in (layer(device="meta"), inside):
        assert other.cores.G1.is_meta
        assert other(x.to("meta")).shape == (3, 10)
        other = other.to_empty(device="cpu")
        other.load_state_dict(mine.state_dict(), strict=True)
        assert torch.equal(other(x), mine(x))
    other = layer(device="meta")
    other.load_state_dict(mine.state_dict(), strict=True, assign=True)
    assert torch.equal(other(x), mine(x))
    empty = layer(device="meta").to_empty(device="cpu")
    empty.reset_parameters()
    assert torch.isfinite(empty(x)).all()


def saved(mine: Any) -> Any:
    file = io.BytesIO()
    torch.save(mine, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copier", [copy.deepcopy, saved, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copier: Any) -> None:
    mine, dense = exact("TTMatrix", EXACT)
    mine.eval().cores.G1.requires_grad_(False)
    other, x = copier(mine), torch.randn(3, 12, dtype=torch.float64)
    assert torch.equal(other(x), mine(x)) and not other.training
    assert [p.requires_grad for p in other.parameters()] == [False, True, True]
    assert differing(other.reconstruct(), dense.weight) < 1e-12
    assert other.decomposition.error == mine.decomposition.error
    with torch.no_grad():
        other.cores.G1.zero_()
    assert differing(mine.weight, dense.weight) < 1e-12


@pytest.mark.parametrize("given", [None, torch.float32])
def test_dtype_moves(given: Any) -> None:
    mine = layer(dtype=given)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        mine.to(dtype)
        x = torch.randn(2, 12, dtype=dtype)
        assert mine(x).dtype == mine.weight.dtype == dtype


def test_training_with_frozen_cores_hooks_and_an_optimizer() -> None:
    mine, x, seen = layer(), torch.randn(32, 12), []
    target = torch.randn(32, 10)
    mine.cores.G1.requires_grad_(False)
    mine.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    before = mine.cores.G1.clone()
    optimizer = torch.optim.Adam([p for p in mine.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.mse_loss(mine(x), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert torch.equal(mine.cores.G1, before) and mine.cores.G1.grad is None
    assert seen == [(32, 10)] * 20


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_torch_compile_with_a_batch_that_changes(implementation: str) -> None:
    torch._dynamo.reset()
    mine = layer(implementation=implementation)
    compiled = torch.compile(mine, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (3, 7):
        x = torch.randn(count, 12)
        torch.testing.assert_close(compiled(x), mine(x))
    compiled(torch.randn(5, 12)).sum().backward()
    assert mine.cores.G1.grad is not None


def test_functorch() -> None:
    mine, x = layer(), torch.randn(5, 12)
    params = dict(mine.named_parameters())

    def loss(params: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(mine, params, (row,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    mine(x).square().sum().backward()
    for name, parameter in params.items():
        torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-4)


def test_functional_call_reaches_the_reconstructed_weight() -> None:
    mine = layer()
    zeros = {name: torch.zeros_like(p) for name, p in mine.named_parameters()}

    class Weight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mine

        def forward(self) -> Tensor:
            return self.inner.reconstruct()

    called = torch.func.functional_call(Weight(), {f"inner.{k}": v for k, v in zeros.items()}, ())
    assert not called.any()


def test_autocast() -> None:
    mine, x = layer(), torch.randn(3, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mine(x)
        assert mine.weight.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert differing(out.float(), mine(x)) < 0.1
    out.sum().backward()
    assert mine.cores.G1.grad.dtype == torch.float32


def test_reconstruct_is_differentiable_and_is_the_network() -> None:
    mine = layer(dtype=torch.float64)
    table = FORMAT.network(**MODES)
    network = tnc.compile(table, framework="numpy", dtype="float64")
    cores = {k: v.detach().numpy() for k, v in mine.named_parameters() if "bias" not in k}
    wanted = network(parameters={k.removeprefix("cores."): v for k, v in cores.items()})
    np.testing.assert_allclose(mine.weight.detach().numpy().T, wanted.reshape(12, 10), atol=1e-12)

    def weight(first: Tensor, second: Tensor) -> Tensor:
        given = {"cores.G1": first, "cores.G2": second}
        return torch.func.functional_call(mine, {**given}, (torch.eye(12, dtype=torch.float64),))

    assert torch.autograd.gradcheck(weight, [mine.cores.G1, mine.cores.G2])


# ---------------------------------------------------------------------------- tied weights


def test_two_layers_on_the_same_cores() -> None:
    a, b, x = layer(), layer(), torch.randn(3, 12)
    b.reset_parameters()
    b.tie(a)
    assert b.cores.G1 is a.cores.G1 and b.bias is not a.bias
    model = nn.ModuleList([a, b])
    assert len(list(model.parameters())) == 4
    assert torch.equal(a(x), b(x))
    (a(x).sum() + b(x).sum()).backward()
    copied = copy.deepcopy(model)
    assert copied[0].cores.G1 is copied[1].cores.G1


def test_an_autoencoder_on_the_same_cores() -> None:
    down, up = layer(), tnc.nn.Linear(10, 12, format=formats.LowRank(2))
    up.tie(down)
    torch.testing.assert_close(up.weight, down.weight.t())
    x = torch.randn(3, 10)
    torch.testing.assert_close(up(x), F.linear(x, up.weight, up.bias), rtol=1e-4, atol=1e-4)
    third = tnc.nn.Linear(10, 12, format=formats.LowRank(2))
    third.tie(up)
    torch.testing.assert_close(third(x), up(x))


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_head_tied_to_an_embedding(name: str) -> None:
    dtype = torch.float64 if name in ("TT", "Tucker") else torch.float32
    modes = dict(in_shape=(4, 5), out_shape=(2, 3))
    embedding = tnc.nn.Embedding(19, 6, format=make(name, 3, clamp=True), **modes, dtype=dtype)
    head = tnc.nn.Linear(6, 19, bias=True, format=formats.Dense())
    head.tie(embedding)
    x = torch.randn(3, 6, dtype=dtype)
    torch.testing.assert_close(
        head(x), F.linear(x, embedding.weight, head.bias), rtol=1e-4, atol=1e-4
    )
    model = nn.Sequential(embedding, head)
    assert len(list(model.parameters())) == len(list(embedding.parameters())) + 1
    model(torch.tensor([[1, 18]])).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    copied = pickle.loads(pickle.dumps(model)) if name != "Custom" else copy.deepcopy(model)
    assert copied(torch.tensor([3])).equal(model(torch.tensor([3])))
    assert model.bfloat16()(torch.tensor([3])).dtype == torch.bfloat16
    assert len(list(model.parameters())) == len(list(embedding.parameters())) + 1


# ---------------------------------------------------------------------------- repr, conditioning


def test_repr_is_one_line_with_ranks_shapes_and_compression() -> None:
    assert repr(layer(format=formats.TTMatrix(99, clamp=True))) == (
        "Linear(12, 10, bias=True, format=TTMatrix(rank=6), 3x4 → 2x5, 156 parameters in "
        "cores, compression 0.769x)"
    )
    assert "Custom()" in repr(shaped("Custom", 12, 10, 3))


def pair(a: Any, b: Any) -> dict[str, np.ndarray]:
    return {"A": np.array(a, float), "B": np.array(b, float)}


def two_terms() -> Any:
    i, o, r = tnc.Index("i", 3), tnc.Index("o", 3), tnc.Index("r", 2)
    return tnc.param("A", i, r) @ tnc.param("B", r, o)


EYE = [[1, 0], [0, 1], [0, 0]]
NUMBERS = [
    (EYE, np.transpose(EYE), 1.0),  # orthogonal
    (np.multiply(EYE, [1, 1e-3]), np.transpose(EYE), 1.0),  # each scaled to norm one
    (np.ones((3, 2)), [[1, 0, 0], [1, 0, 0]], math.inf),  # the same term twice
    ([[1, 1], [0, 1], [0, 0]], np.ones((2, 3)), (1 + 2**0.5)),  # cosine 1/√2
    ([[1, 0], [0, 0], [0, 0]], np.transpose(EYE), 1.0),  # a term that is zero does not count
    (np.zeros((3, 2)), np.zeros((2, 3)), 1.0),
]


@pytest.mark.parametrize("a, b, number", NUMBERS)
def test_condition_numbers_of_constructed_cores(a: Any, b: Any, number: float) -> None:
    (found,) = condition_numbers(two_terms(), pair(a, b)).values()
    assert found == pytest.approx(number) or (number == math.inf and found > 1e7)


def test_nearly_equal_terms_of_cp_warn_and_orthogonal_ones_do_not() -> None:
    """A tensor of border rank 2 and rank 3: CP comes ever nearer with terms that cancel."""
    a, b = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    u, v = a + 1e-4 * b, a
    terms = [(np.stack([x, y], 1)) for x, y in ((u, v),) * 3]
    network = formats.CP(2).network((3, 3), (3,))
    (found,) = condition_numbers(
        network, dict(zip(("U1", "U2", "V1"), terms, strict=True))
    ).values()
    assert found > 1e3
    twice = formats.Custom(two_equal_terms)
    weight = np.outer(np.arange(1, 4), np.arange(1, 4))
    dense = nn.Linear(3, 3)
    dense.weight.data.copy_(torch.from_numpy(weight))
    with pytest.warns(IllConditioned, match="condition number") as caught:
        tnc.nn.Linear.from_dense(dense, twice, in_shape=(3,), out_shape=(3,))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("TT", "TTMatrix", "LowRank", "Tucker", "CP", "HT"):
            mine, _ = exact(name, EXACT)
            assert min(mine.condition_numbers().values()) >= 1 - 1e-9


def two_equal_terms(ins: Any, outs: Any) -> Any:
    """One term, added up over a bond that the factor does not depend on."""
    r = tnc.Index("r", 2)
    return tnc.contract(
        tnc.param("A", *ins), tnc.param("B", *outs), tnc.param("c", r), out=(*ins, *outs)
    )


# ---------------------------------------------------------------------------- refused


def spoiled(value: float) -> nn.Linear:
    dense = nn.Linear(12, 10)
    dense.weight.data[0, 0] = value
    return dense


BAD: dict[str, Any] = {
    "features": lambda: tnc.nn.Linear(0, 10, format=FORMAT),
    "features of a kind": lambda: tnc.nn.Linear("12", 10, format=FORMAT),
    "modes": lambda: layer(in_shape=(2, 2)),
    "one mode": lambda: layer(in_shape=5),
    "mode of a kind": lambda: layer(in_shape=(3.0, 4)),
    "no modes": lambda: layer(out_shape=()),
    "format": lambda: layer(format="TT"),
    "rank": lambda: layer(format=formats.TTMatrix(99)),
    "no rank": lambda: layer(format=formats.TTMatrix()),
    "implementation": lambda: layer(implementation="fast"),
    "backend": lambda: layer(backend="fast"),
    "device": lambda: layer(device="nowhere"),
    "dtype": lambda: layer(dtype=torch.int32),
    "NaN": lambda: tnc.nn.Linear.from_dense(spoiled(math.nan), FORMAT, **MODES),
    "infinity": lambda: tnc.nn.Linear.from_dense(spoiled(math.inf), FORMAT, **MODES),
    "not dense": lambda: tnc.nn.Linear.from_dense(nn.Conv1d(1, 1, 1), FORMAT),
    "meta": lambda: tnc.nn.Linear.from_dense(nn.Linear(12, 10, device="meta"), FORMAT, **MODES),
    "two goals": lambda: tnc.nn.Linear.from_dense(nn.Linear(12, 10), FORMAT, rank=1, budget=9),
    "far too many modes": lambda: tnc.nn.Linear.from_dense(
        nn.Linear(12, 10), FORMAT, in_shape=(9, 9), out_shape=(2, 5)
    ),
    "wrong size": lambda: layer()(torch.randn(3, 11)),
    "scalar": lambda: layer()(torch.tensor(1.0)),
    "list": lambda: layer()([1.0] * 12),
    "wrong dtype": lambda: layer()(torch.randn(3, 12).double()),
    "integers": lambda: layer()(torch.ones(3, 12, dtype=torch.int64)),
    "tied to another size": lambda: layer().tie(tnc.nn.Linear(12, 11, format=formats.Dense())),
    "tied to torch's": lambda: layer().tie(nn.Linear(12, 10)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_and_how_to_mend_it(case: str) -> None:
    with pytest.raises(TncError, match=r"(?s).+fix: "):
        BAD[case]()


def test_more_modes_than_features_are_clamped_only_when_asked() -> None:
    with pytest.raises(TncError, match="can carry at most"):
        tnc.nn.Linear.from_dense(nn.Linear(12, 10), formats.TTMatrix(99), **MODES)
    mine = tnc.nn.Linear.from_dense(nn.Linear(12, 10), formats.TTMatrix(99, clamp=True), **MODES)
    assert mine.decomposition.error < 1e-6


@pytest.mark.parametrize("name", formats.FORMATS)
def test_modes_are_chosen_as_the_format_likes(name: str) -> None:
    if name != "Custom":
        assert shaped(name, 60, 48, 2)(torch.randn(2, 60)).shape == (2, 48)


def test_names_of_a_scope_do_not_disturb() -> None:
    with tnc.scope("block"):
        mine = layer()
    assert mine(torch.randn(2, 12)).shape == (2, 10)
    assert mine.weight.shape == (10, 12)
