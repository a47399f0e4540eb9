"""tnc.nn.MultiheadAttention against torch's with the same dense weights."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tncompiler as tnc
from tests.test_formats import full, make
from tncompiler import formats
from tncompiler.ir.errors import TncError
from tncompiler.nn.checks import IMPLEMENTATIONS

DIM, HEADS, BATCH, TARGETS, SOURCES = 8, 2, 3, 4, 5
FORMAT = formats.TTMatrix(99, clamp=True)
SIGNATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias, batch first": dict(bias=False, batch_first=True),
    "other sizes": dict(kdim=6, vdim=5),
    "biases of key and value": dict(add_bias_kv=True),
    "zero attention": dict(add_zero_attn=True, add_bias_kv=True, kdim=6, batch_first=True),
}
EXTENDED = ("biases of key and value", "zero attention")
CAUSAL = torch.ones(TARGETS, SOURCES, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
torch.manual_seed(5)
CALLS: dict[str, dict[str, Any]] = {
    "weights": {},
    "no weights": dict(need_weights=False),
    "weights of heads": dict(average_attn_weights=False),
    "mask": dict(attn_mask=CAUSAL),
    "mask without weights": dict(attn_mask=CAUSAL, need_weights=False),
    "numbers": dict(attn_mask=torch.randn(TARGETS, SOURCES, dtype=torch.float64)),
    "mask of heads": dict(attn_mask=torch.rand(BATCH * HEADS, TARGETS, SOURCES) < 0.3),
    "padding": dict(key_padding_mask=PADDING),
    "both": dict(attn_mask=CAUSAL, key_padding_mask=PADDING, need_weights=False),
    "padding in numbers": dict(key_padding_mask=torch.randn(BATCH, SOURCES, dtype=torch.float64)),
    "causal": dict(attn_mask=CAUSAL, is_causal=True, need_weights=False),
}


def dense_of(signature: str = "plain", **options: Any) -> Any:
    torch.manual_seed(0)
    how = {"dtype": torch.float64, **SIGNATURES[signature], **options}
    dense = nn.MultiheadAttention(DIM, HEADS, **how)
    with torch.no_grad():
        for bias in (dense.in_proj_bias, dense.out_proj.bias):
            if bias is not None:
                bias.uniform_(-1, 1)  # torch's are zeros
    return dense


def whole(dense: Any, format: Any = FORMAT, **options: Any) -> Any:
    return tnc.nn.MultiheadAttention.from_dense(dense, format, **options)


def layer(**options: Any) -> Any:
    torch.manual_seed(0)
    return tnc.nn.MultiheadAttention(DIM, HEADS, **{"format": FORMAT, **options})


def data(dense: Any) -> list[Tensor]:
    torch.manual_seed(1)
    sizes = ((TARGETS, DIM), (SOURCES, dense.kdim), (SOURCES, dense.vdim))
    made = [torch.randn(n, BATCH, size, dtype=torch.float64) for n, size in sizes]
    turned = [t.transpose(0, 1) if dense.batch_first else t for t in made]
    return [t.contiguous().requires_grad_() for t in turned]


def agree(mine: Any, dense: Any, given: list[Tensor], **how: Any) -> None:
    """The same values and weights, and the same gradients of inputs, biases and cores."""
    (got, weights), (wanted, theirs) = mine(*given, **how), dense(*given, **how)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
    assert (weights is None) == (theirs is None)
    if theirs is not None:
        torch.testing.assert_close(weights, theirs, rtol=1e-11, atol=1e-11)
    cotangent = torch.randn_like(wanted)
    own = dict(dense.named_parameters())
    found = torch.autograd.grad(wanted, [*given, *own.values()], cotangent)
    gradients = dict(zip(own, found[len(given) :], strict=True))
    parts = mine.parts()
    cores = [c for part in parts.values() for n, c in part.cores.named_parameters() if n != "bias"]
    added = [p for p in (mine.bias_k, mine.bias_v) if p is not None]
    ours = torch.autograd.grad(got, [*given, *added, *cores], cotangent)
    wanted_first = [*found[: len(given)], *(gradients[f"bias_{k}"] for k in "kv" if added)]
    for a, b in zip(ours, wanted_first, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    by_weight = by_part(gradients)
    made = mine.reconstruct()
    through = torch.autograd.grad([made[k] for k in by_weight], cores, [*by_weight.values()])
    for a, b in zip(ours[len(wanted_first) :], through, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def by_part(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of torch's weights, the fused one in three."""
    found = {k: g for k, g in gradients.items() if k.endswith("weight") and "in_proj" not in k}
    if "in_proj_weight" in gradients:
        thirds = gradients["in_proj_weight"].chunk(3)
        found |= {f"{k}_proj_weight": g for k, g in zip("qkv", thirds, strict=True)}
    return found


# ---------------------------------------------------------------------------- against dense


def cases() -> Iterator[Any]:
    for number, signature in enumerate(SIGNATURES):
        for place, call in enumerate(CALLS):
            if call == "causal" and signature in EXTENDED:
                continue  # there torch hides the keys that it adds, whatever the mask says
            implementation = [*IMPLEMENTATIONS][(number + place) % len(IMPLEMENTATIONS)]
            yield pytest.param(signature, call, implementation, id=f"{signature}-{call}")


@pytest.mark.parametrize("signature, call, implementation", [*cases()])
def test_full_rank_is_the_dense_layer(signature: str, call: str, implementation: str) -> None:
    dense = dense_of(signature)
    mine = whole(dense, implementation=implementation)
    assert mine.decomposition.error < 1e-12
    agree(mine, dense, data(dense), **CALLS[call])


@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format(name: str) -> None:
    dense = dense_of()
    shapes: dict[str, Any] = dict(in_shape=(2, 4), out_shape=(4, 2))
    format = full(name, (2, 4), (4, 2)) if name == "Custom" else make(name, 999, clamp=True)
    agree(whole(dense, format, **shapes), dense, data(dense), need_weights=False)


def test_the_comparison_sees_a_wrong_core() -> None:
    dense = dense_of()
    mine = whole(dense)
    with torch.no_grad():
        mine.v_proj.cores.G1[0] += 1
    with pytest.raises(AssertionError):
        agree(mine, dense, data(dense))


@pytest.mark.parametrize("signature", SIGNATURES)
def test_back_to_dense(signature: str) -> None:
    dense = dense_of(signature)
    back = whole(dense).to_dense()
    for (name, a), b in zip(back.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


def test_one_sequence_without_a_batch() -> None:
    for signature in SIGNATURES:
        dense = dense_of(signature)
        mine = whole(dense)
        given = [t.detach()[0 if dense.batch_first else slice(None), ...] for t in data(dense)]
        given = given if dense.batch_first else [t[:, 0] for t in given]
        padding = PADDING[1]
        for how in ({}, dict(average_attn_weights=False), dict(key_padding_mask=padding)):
            for a, b in zip(mine(*given, **how), dense(*given, **how), strict=True):
                torch.testing.assert_close(a, b)


def test_dropout_in_training_only() -> None:
    dense = dense_of(dropout=0.5)
    mine = whole(dense)
    given = data(dense)
    for need in (True, False):
        assert not torch.equal(
            mine(*given, need_weights=need)[0], mine(*given, need_weights=need)[0]
        )
    agree(whole(dense.eval()), dense, given)
    agree(whole(dense.eval()), dense, given, need_weights=False)


@pytest.mark.parametrize("batch_first", [True, False])
def test_inside_torchs_transformer(batch_first: bool) -> None:
    """Its layers have a fast path around attention in evaluation, which must not be taken."""
    torch.manual_seed(0)
    one = nn.TransformerEncoderLayer(
        DIM, HEADS, 16, 0.0, batch_first=batch_first, dtype=torch.float64
    )
    dense = nn.TransformerEncoder(one, 2, enable_nested_tensor=False)
    mine = copy.deepcopy(dense)
    for block in mine.layers:
        block.self_attn = whole(block.self_attn)
    x = torch.randn(3, 3, DIM, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.float64)
    for model in (mine, mine.eval()):
        for how in ({}, dict(mask=mask, is_causal=True)):
            torch.testing.assert_close(model(x, **how), dense(x, **how))
            with torch.no_grad():
                torch.testing.assert_close(model(x, **how), dense(x, **how))


def test_inside_torchs_encoder_with_padding() -> None:
    """It makes nested tensors of what is padded, unless it sees that weights are no plain ones."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(DIM, 2, 16, 0.0, batch_first=True, dtype=torch.float64)
    dense = nn.TransformerEncoder(block, 2).eval()
    assert dense.use_nested_tensor
    mine = copy.deepcopy(dense)
    for each in mine.layers:
        each.self_attn = whole(each.self_attn)
    x, padding = torch.randn(3, 5, DIM, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            got, wanted = (m(x, src_key_padding_mask=padding) for m in (mine, dense))
        torch.testing.assert_close(got[~padding], wanted[~padding])
    with pytest.raises(TncError, match=r"(?s)no one weight.+fix: "):
        torch.add(mine.layers[0].self_attn.in_proj_weight, 1)


# ---------------------------------------------------------------------------- as a torch module


def test_parts_and_a_budget_that_they_share() -> None:
    dense = nn.MultiheadAttention(32, 4)
    mine = whole(dense, formats.LowRank(), budget=1000)
    assert [*mine.parts()] == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    assert 500 < mine.decomposition.parameters <= 1000
    assert 0 < mine.decomposition.lower_bound <= mine.decomposition.error < 1


def test_state_copies_meta_and_dtypes() -> None:
    mine = layer(add_bias_kv=True)
    x = torch.randn(4, 2, DIM)
    other = layer(add_bias_kv=True, device="meta").to_empty(device="cpu")
    other.load_state_dict(mine.state_dict(), strict=True)
    for copied in (other, copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        torch.testing.assert_close(copied(x, x, x), mine(x, x, x))
    assert mine.bfloat16()(*[x.bfloat16()] * 3)[0].dtype == torch.bfloat16
    mine.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mine(x, x, x, need_weights=False)[0].dtype == torch.bfloat16
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, x)[0], mine(x, x, x)[0], rtol=1e-4, atol=1e-4)


def test_projections_keep_the_variance() -> None:
    mine = tnc.nn.MultiheadAttention(64, 4, format=formats.TTMatrix(16, clamp=True))
    for part in mine.parts().values():
        assert 0.6 < float(part(torch.randn(200, 64)).detach().std()) < 1.6


def test_repr_is_one_line() -> None:
    assert repr(layer(format=formats.LowRank(2), dropout=0.1, kdim=6)) == (
        "MultiheadAttention(8, 2, dropout=0.1, kdim=6, format=LowRank(rank=2), 124 parameters, "
        "compression 1.94x)"
    )


# ---------------------------------------------------------------------------- refused

X = torch.randn(4, 2, DIM)
BAD: dict[str, Any] = {
    "sizes": lambda: tnc.nn.MultiheadAttention(0, 2, format=FORMAT),
    "heads": lambda: tnc.nn.MultiheadAttention(8, 3, format=FORMAT),
    "kdim": lambda: layer(kdim=-1),
    "dropout": lambda: layer(dropout=1.5),
    "format": lambda: layer(format=8),
    "rank": lambda: layer(format=formats.LowRank(9)),
    "modes": lambda: layer(out_shape=(2, 2)),
    "implementation": lambda: layer(implementation="fast"),
    "another layer": lambda: whole(nn.Linear(8, 8)),
    "list": lambda: layer()(X, X, [1.0]),
    "nested": lambda: layer()(*[torch.nested.nested_tensor([X[0], X[1]])] * 3),
    "features": lambda: layer()(X, X, X[..., :5]),
    "axes": lambda: layer()(X, X[0], X[0]),
    "another batch": lambda: layer()(X, X[:, :1], X[:, :1]),
    "keys and values": lambda: layer()(X, X, X[:3]),
    "mask": lambda: layer()(X, X, X, attn_mask=torch.zeros(4, 5)),
    "integers": lambda: layer()(X, X, X, attn_mask=torch.zeros(4, 4, dtype=torch.int64)),
    "padding": lambda: layer()(X, X, X, key_padding_mask=torch.zeros(4, 2)),
    "causal alone": lambda: layer()(X, X, X, is_causal=True),
    "dtype": lambda: layer()(X.double(), X, X),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_and_how_to_mend_it(case: str) -> None:
    with pytest.raises(TncError, match=r"(?s).+fix: "):
        BAD[case]()
