"""tnc.nn.Embedding and EmbeddingBag against torch's layers on the reconstructed table."""

import copy
import io
import pickle
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
from tncompiler.ir.errors import TncError
from tncompiler.nn.checks import IMPLEMENTATIONS

COUNT, DIM = 19, 6
SHAPES = [((4, 5), (2, 3)), ((2, 2, 5), (7,)), ((20,), (2, 2, 2))]
FORMAT = formats.TTMatrix(3, clamp=True)
MODES: dict[str, Any] = dict(in_shape=(4, 5), out_shape=(2, 3))
TOKENS = torch.tensor([[3, 18, 3, 0], [7, 3, 18, 18]])
FLAT = torch.tensor([3, 18, 3, 0, 7, 3, 18])


def embedding(**options: Any) -> Any:
    torch.manual_seed(0)
    return tnc.nn.Embedding(COUNT, DIM, **{"format": FORMAT, **MODES, **options})


def bag(**options: Any) -> Any:
    torch.manual_seed(0)
    given = {"format": FORMAT, **MODES, "dtype": torch.float64, **options}
    return tnc.nn.EmbeddingBag(COUNT, DIM, **given)


def cases() -> Iterator[Any]:
    for name in formats.FORMATS:
        for shapes in fitting(name, SHAPES)[:2]:
            for implementation in IMPLEMENTATIONS:
                yield pytest.param(
                    name, shapes, implementation, id=f"{name}-{shapes}-{implementation}"
                )


def agree(mine: Any, out: Tensor, wanted: Tensor) -> None:
    """Same values, and same gradients of the cores: by the layer, and through the whole table."""
    torch.testing.assert_close(out, wanted)
    cotangent, cores = torch.randn_like(out), list(mine.parameters())
    got = torch.autograd.grad(out, cores, cotangent)
    through = torch.autograd.grad(wanted, cores, cotangent)
    for a, b in zip(got, through, strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------------------- Embedding


@pytest.mark.parametrize("name, shapes, implementation", [*cases()])
def test_full_rank_is_the_dense_table(name: str, shapes: Any, implementation: str) -> None:
    torch.manual_seed(0)
    dense = nn.Embedding(COUNT, DIM, dtype=torch.float64)
    modes = dict(in_shape=shapes[0], out_shape=shapes[1], implementation=implementation)
    mine = tnc.nn.Embedding.from_dense(dense, full(name, *shapes), **modes)
    torch.testing.assert_close(mine(TOKENS), dense(TOKENS), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mine.to_dense().weight, dense.weight, rtol=1e-9, atol=1e-9)
    agree(mine, mine(TOKENS), F.embedding(TOKENS, mine.weight))


def test_the_comparison_sees_other_gradients() -> None:
    mine = embedding(dtype=torch.float64)
    with pytest.raises(AssertionError):
        agree(mine, mine(TOKENS), mine.weight.detach()[TOKENS] * 2 - mine.weight[TOKENS])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("padding", [None, 3, -1])
def test_padding_and_frequencies(padding: int | None, scale: bool, implementation: str) -> None:
    options = dict(padding_idx=padding, scale_grad_by_freq=scale)
    mine = embedding(**options, dtype=torch.float64, implementation=implementation)
    assert mine.padding_idx == (None if padding is None else padding % COUNT)
    wanted = F.embedding(TOKENS, mine.weight, mine.padding_idx, scale_grad_by_freq=scale)
    agree(mine, mine(TOKENS), wanted)
    dense = mine.to_dense()
    assert (dense.padding_idx, dense.scale_grad_by_freq) == (mine.padding_idx, scale)
    torch.testing.assert_close(dense(TOKENS), mine(TOKENS))
    if mine.padding_idx is not None:
        row = mine(torch.tensor([mine.padding_idx]))
        assert not row.any()
        assert not any(g.any() for g in torch.autograd.grad(row.sum(), list(mine.parameters())))


def test_a_padding_row_that_is_not_zero_is_kept() -> None:
    """As pretrained models have it: torch reads the row, and trains it not."""
    dense = nn.Embedding(COUNT, DIM, padding_idx=3, dtype=torch.float64)
    with torch.no_grad():
        dense.weight[3] = 7.0
    mine = tnc.nn.Embedding.from_dense(dense, full("TT", *SHAPES[0]), **MODES)
    torch.testing.assert_close(mine(TOKENS), dense(TOKENS))
    assert next(iter(mine.state_dict())) == "padding_row"
    other = embedding(padding_idx=3, format=mine.format, dtype=torch.float64)
    other.load_state_dict(mine.state_dict(), strict=True)
    assert torch.equal(other(TOKENS), mine(TOKENS))


def test_frequent_rows_count_more() -> None:
    torch.manual_seed(0)
    dense = nn.Embedding(COUNT, DIM)
    often = torch.ones(COUNT)
    often[:3] = 1e4
    tokens, errors = torch.arange(3), []
    for moments in (None, often):
        mine = tnc.nn.Embedding.from_dense(dense, formats.LowRank(2), moments=moments)
        errors.append(float((mine(tokens) - dense(tokens)).detach().norm()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_shapes_and_kinds_of_tokens(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mine = embedding(padding_idx=0)
    tokens = torch.randint(COUNT, shape, dtype=dtype)
    out = mine(tokens)
    assert out.shape == (*shape, DIM)
    torch.testing.assert_close(out, mine.to_dense()(tokens))
    out.sum().backward()


@pytest.mark.parametrize("name", formats.FORMATS)
def test_rows_have_variance_one(name: str) -> None:
    torch.manual_seed(0)
    modes = dict(in_shape=(300,), out_shape=(16,)) if name == "Custom" else {}
    for _ in range(3):
        mine = tnc.nn.Embedding(300, 16, format=make(name, 8, clamp=True), **modes)
        assert 0.8 < float(mine.weight.detach().std()) < 1.25


def shared(ins: Any, outs: Any) -> Any:
    """One core for both digits."""
    k, r = tnc.Index("k", ins[0].size), tnc.Index("r", 3)
    core = tnc.param("A", k, r)
    first, second = core.rename({k: ins[0]}), core.rename({k: ins[1]})
    return tnc.contract(first, second, tnc.param("B", r, *outs), out=(*ins, *outs))


def with_constant(ins: Any, outs: Any) -> Any:
    a = tnc.Index("a", 3)
    scale = tnc.constant("c", ins[0], value=np.arange(1.0, 5.0))
    return tnc.param("A", *ins, a) * scale @ tnc.param("B", a, *outs)


def nonlinear(ins: Any, outs: Any) -> Any:
    a = tnc.Index("a", 3)
    return tnc.tanh(tnc.param("A", *ins, a) @ tnc.param("B", a, *outs))


def own_indices() -> Any:
    m, n, o, r = (tnc.Index(name, k) for name, k in (("m", 4), ("n", 5), ("o", 6), ("token", 2)))
    return tnc.contract(tnc.param("A", m, r, n), tnc.param("B", r, o), out=(m, n, o))


CUSTOM: dict[str, Any] = {
    "shared": (shared, (5, 5), (6,)),
    "constant": (with_constant, (4, 5), (2, 3)),
    "nonlinear": (nonlinear, (4, 5), (2, 3)),
    "own indices": (own_indices(), (4, 5), (6,)),
}


@pytest.mark.parametrize("case", CUSTOM)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_networks_of_ones_own(case: str, implementation: str) -> None:
    network, ins, outs = CUSTOM[case]
    options = dict(in_shape=ins, out_shape=outs, implementation=implementation)
    custom = formats.Custom(network)
    mine = embedding(format=custom, dtype=torch.float64, **options)
    agree(mine, mine(TOKENS), F.embedding(TOKENS, mine.weight))
    assert min(mine.condition_numbers().values(), default=1.0) >= 1 - 1e-9


@pytest.mark.parametrize("case", CUSTOM)
def test_networks_of_ones_own_from_dense(case: str) -> None:
    network, ins, outs = CUSTOM[case]
    dense = nn.Embedding(COUNT, DIM)
    dense.weight.data.copy_(torch.outer(torch.arange(COUNT) % 5 / 10, torch.ones(DIM)))
    custom = formats.Custom(network)
    made = tnc.nn.Embedding.from_dense(dense, custom, in_shape=ins, out_shape=outs)
    assert float((made(TOKENS) - dense(TOKENS)).detach().abs().max()) < 0.5
    assert made.double()(TOKENS).shape == (2, 4, DIM)


# ---------------------------------------------------------------------------- as a torch module


def test_state_round_trips_through_the_meta_device() -> None:
    mine = embedding()
    assert list(mine.state_dict()) == ["cores.G1", "cores.G2"]
    other = embedding(device="meta", padding_idx=1)
    assert other(TOKENS.to("meta")).shape == (2, 4, DIM)
    other = embedding(device="meta").to_empty(device="cpu")
    other.load_state_dict(mine.state_dict(), strict=True)
    assert torch.equal(other(TOKENS), mine(TOKENS))


@pytest.mark.parametrize("given", [None, torch.float32])
def test_dtype_moves(given: Any) -> None:
    mine = embedding(dtype=given, padding_idx=3)
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.float32):
        assert mine.to(dtype)(TOKENS).dtype == mine.weight.dtype == dtype


def test_copies() -> None:
    mine = embedding(padding_idx=3).eval()
    file = io.BytesIO()
    torch.save(mine, file)
    file.seek(0)
    made = (
        copy.deepcopy(mine),
        pickle.loads(pickle.dumps(mine)),
        torch.load(file, weights_only=False),
    )
    for other in made:
        assert torch.equal(other(TOKENS), mine(TOKENS)) and not other.training
        assert other.cores.G1 is not mine.cores.G1


def test_autocast_leaves_the_table_as_it_is() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert embedding()(TOKENS).dtype == nn.Embedding(COUNT, DIM)(TOKENS).dtype == torch.float32


def test_functorch() -> None:
    mine = embedding(dtype=torch.float64)
    params = dict(mine.named_parameters())

    def loss(params: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return torch.func.functional_call(mine, params, (tokens,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, TOKENS)
    mine(TOKENS).square().sum().backward()
    for name, parameter in params.items():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)


@pytest.mark.parametrize(
    "options, dtype",
    [({}, torch.bfloat16), (dict(padding_idx=3, scale_grad_by_freq=True), torch.float32)],
)
def test_torch_compile_with_tokens_that_change(options: Any, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    mine = embedding(**options, dtype=dtype)
    compiled = torch.compile(mine, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (TOKENS, TOKENS[:, :3]):
        torch.testing.assert_close(compiled(tokens), mine(tokens))
    compiled(TOKENS).sum().backward()
    got = [p.grad.clone() for p in mine.parameters()]
    wanted = torch.autograd.grad(mine(TOKENS).sum(), list(mine.parameters()))
    close = dict(rtol=0.1, atol=0.1) if dtype == torch.bfloat16 else {}
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **close)
    with pytest.raises(RuntimeError, match="not in a table"):
        compiled(TOKENS + 1)


def test_tied_tables() -> None:
    a, b = embedding(), embedding(format=formats.LowRank(2), padding_idx=1)
    b.tie(a)
    assert b.cores is a.cores
    torch.testing.assert_close(b(TOKENS), a(TOKENS))
    assert not b(torch.tensor([1])).any()


def test_repr() -> None:
    assert repr(embedding(padding_idx=-1)) == (
        "Embedding(19, 6, padding_idx=18, format=TTMatrix(rank=3), 4x5 (padded from 19) → 2x3, "
        "69 parameters in cores, compression 1.65x)"
    )
    assert "mode='mean'" in repr(bag())


# ---------------------------------------------------------------------------- EmbeddingBag

BAGS: dict[str, Any] = {
    "rows": (TOKENS, None, False),
    "offsets": (FLAT, torch.tensor([0, 2, 5]), False),
    "empty bags": (FLAT, torch.tensor([0, 0, 5, 7]), False),
    "last offset": (FLAT, torch.tensor([0, 2, 7]), True),
    "no tokens": (FLAT[:0], torch.tensor([0, 0]), False),
    "no bags": (FLAT[:0], torch.tensor([], dtype=torch.int64), False),
    "no rows": (TOKENS[:0], None, False),
    "only one token": (torch.tensor([[3, 3], [3, 3]]), None, False),
}


@pytest.mark.parametrize("padding", [None, 3, -1])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("case", BAGS)
def test_bags(case: str, mode: str, padding: int | None) -> None:
    tokens, offsets, last = BAGS[case]
    mine = bag(mode=mode, padding_idx=padding, include_last_offset=last)
    dense = mine.to_dense()
    out, wanted = mine(tokens, offsets), dense(tokens, offsets)
    torch.testing.assert_close(out, wanted)
    cotangent = torch.randn_like(wanted)
    wanted.backward(cotangent)
    (table,) = torch.autograd.grad(out, mine.cores.G1, cotangent, retain_graph=True)
    (through,) = torch.autograd.grad(mine.weight, mine.cores.G1, dense.weight.grad)
    torch.testing.assert_close(table, through)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_bags_from_dense(name: str, implementation: str) -> None:
    torch.manual_seed(0)
    dense = nn.EmbeddingBag(COUNT, DIM, mode="sum", dtype=torch.float64, padding_idx=2)
    made = tnc.nn.EmbeddingBag.from_dense(
        dense, full(name, *SHAPES[0]), **MODES, implementation=implementation
    )
    assert made.mode == "sum"
    torch.testing.assert_close(made(TOKENS), dense(TOKENS))


@pytest.mark.parametrize("case", ["rows", "offsets"])
def test_weights_of_samples(case: str) -> None:
    tokens, offsets, _ = BAGS[case]
    mine = bag(mode="sum")
    weights = torch.rand(tokens.shape, dtype=torch.float64, requires_grad=True)
    given = dict(mode="sum", per_sample_weights=weights)
    out, wanted = (
        mine(tokens, offsets, weights),
        F.embedding_bag(tokens, mine.weight, offsets, **given),
    )
    agree(mine, out, wanted)


@pytest.mark.parametrize("case", ["rows", "offsets", "empty bags"])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_gradients_of_bags_over_frequencies(mode: str, case: str) -> None:
    """As torch documents it; torch 2.13 on the CPU divides by the counts of other tokens."""
    tokens, offsets, _ = BAGS[case]
    mine = bag(mode=mode, scale_grad_by_freq=True)
    dense = nn.EmbeddingBag(COUNT, DIM, mode=mode, dtype=torch.float64)
    dense.load_state_dict({"weight": mine.weight})
    out, wanted = mine(tokens, offsets), dense(tokens, offsets)
    torch.testing.assert_close(out, wanted)
    cotangent = torch.randn_like(out)
    wanted.backward(cotangent)
    counts = torch.bincount(tokens.flatten(), minlength=COUNT).clamp(min=1)
    (core,) = torch.autograd.grad(out, mine.cores.G1, cotangent)
    shared = dense.weight.grad / counts[:, None]
    (through,) = torch.autograd.grad(mine.weight, mine.cores.G1, shared)
    torch.testing.assert_close(core, through)


def test_bags_of_int32_and_compiled() -> None:
    torch._dynamo.reset()
    mine = bag(mode="mean", padding_idx=3)
    offsets = torch.tensor([0, 2], dtype=torch.int32)
    torch.testing.assert_close(mine(FLAT.int(), offsets), mine(FLAT, offsets.long()))
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(TOKENS), mine(TOKENS))


# ---------------------------------------------------------------------------- refused


def from_dense(**options: Any) -> Any:
    return tnc.nn.Embedding.from_dense(nn.Embedding(COUNT, DIM, **options), FORMAT, **MODES)


BAD: dict[str, Any] = {
    "count": lambda: tnc.nn.Embedding(-3, DIM, format=FORMAT, in_shape=(2,)),
    "dim": lambda: tnc.nn.Embedding(COUNT, 6.5, format=FORMAT, out_shape=(7,)),
    "modes": lambda: embedding(in_shape=(2, 2)),
    "format": lambda: embedding(format=3),
    "implementation": lambda: embedding(implementation=None),
    "padding": lambda: embedding(padding_idx=COUNT),
    "negative padding": lambda: embedding(padding_idx=-COUNT - 1),
    "padding of a kind": lambda: embedding(padding_idx=True),
    "max_norm": lambda: embedding(max_norm=1.0),
    "sparse": lambda: embedding(sparse=True),
    "max_norm of dense": lambda: from_dense(max_norm=1.0),
    "sparse of dense": lambda: from_dense(sparse=True),
    "not dense": lambda: tnc.nn.Embedding.from_dense(nn.EmbeddingBag(COUNT, DIM), FORMAT),
    "meta": lambda: from_dense(device="meta"),
    "high token": lambda: embedding()(torch.tensor([0, COUNT])),
    "negative token": lambda: embedding()(torch.tensor([-1])),
    "float tokens": lambda: embedding()(torch.tensor([1.0])),
    "list": lambda: embedding()([1, 2]),
    "tied to a Linear": lambda: embedding().tie(tnc.nn.Linear(6, 19, format=formats.Dense())),
    "tied to another size": lambda: embedding().tie(tnc.nn.Embedding(9, 6, format=formats.Dense())),
    "mode": lambda: bag(mode="min"),
    "bags": lambda: bag()(FLAT),
    "both bags": lambda: bag()(TOKENS, torch.tensor([0])),
    "rows of no tokens": lambda: bag()(TOKENS[:, :0]),
    "3-D": lambda: bag()(TOKENS[None]),
    "offsets of a kind": lambda: bag()(FLAT, torch.tensor([0.0])),
    "list of offsets": lambda: bag()(FLAT, [0, 2]),
    "offsets that shrink": lambda: bag()(FLAT, torch.tensor([0, 5, 2])),
    "offsets that start late": lambda: bag()(FLAT, torch.tensor([1, 2])),
    "offsets beyond": lambda: bag()(FLAT, torch.tensor([0, 99])),
    "no last offset": lambda: bag(include_last_offset=True)(FLAT, FLAT[:0]),
    "last offset too early": lambda: bag(include_last_offset=True)(FLAT, torch.tensor([0, 99])),
    "weights in a mean": lambda: bag()(TOKENS, None, torch.ones(2, 4, dtype=torch.float64)),
    "weights of a shape": lambda: bag(mode="sum")(TOKENS, None, torch.ones(2, dtype=torch.float64)),
    "weights of a dtype": lambda: bag(mode="sum")(TOKENS, None, torch.ones(2, 4)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_and_how_to_mend_it(case: str) -> None:
    with pytest.raises(TncError, match=r"(?s).+fix: "):
        BAD[case]()
