"""tnc.nn.LSTM and GRU against torch's with the same dense weights."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import tncompiler as tnc
from tests.test_formats import fitting, full, make
from tncompiler import formats
from tncompiler.ir.errors import TncError
from tncompiler.nn import gated
from tncompiler.nn.checks import IMPLEMENTATIONS

INPUTS, HIDDEN, POSITIONS, BATCH = 6, 4, 3, 2
FORMAT = formats.TTMatrix(99, clamp=True)
KINDS = ("LSTM", "GRU")
# torch's arguments after the sizes; projections are the LSTM's alone
SIGNATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": dict(bias=False),
    "two layers": dict(num_layers=2, dropout=1.0),
    "both ways": dict(bidirectional=True, batch_first=True),
    "deep": dict(num_layers=2, bidirectional=True, bias=False),
    "projected": dict(proj_size=3),
    "deep projected": dict(proj_size=2, num_layers=2, bidirectional=True),
}


def dense_of(kind: str, signature: str = "plain", **options: Any) -> Any:
    torch.manual_seed(0)
    how = {"dtype": torch.float64, **SIGNATURES[signature], **options}
    return getattr(nn, kind)(INPUTS, HIDDEN, **how)


def whole(dense: Any, format: Any = FORMAT, **options: Any) -> Any:
    return getattr(tnc.nn, type(dense).__name__).from_dense(dense, format, **options)


def layer(kind: str = "LSTM", **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(tnc.nn, kind)(INPUTS, HIDDEN, **{"format": FORMAT, **options})


def data(dense: Any, *, states: bool) -> list[Tensor]:
    """A sequence, and perhaps states, that ask for gradients."""
    torch.manual_seed(1)
    shape = (BATCH, POSITIONS) if dense.batch_first else (POSITIONS, BATCH)
    given = [torch.randn(*shape, INPUTS, dtype=torch.float64)]
    count = dense.num_layers * (1 + dense.bidirectional)
    sizes = [dense.proj_size or HIDDEN, *[HIDDEN] * isinstance(dense, nn.LSTM)]
    given += [torch.randn(count, BATCH, size, dtype=torch.float64) for size in sizes * states]
    return [tensor.requires_grad_() for tensor in given]


def run(model: Any, given: list[Tensor]) -> list[Tensor]:
    """The outputs and last states, in a list."""
    x, *states = given
    hx = None if not states else tuple(states) if len(states) > 1 else states[0]
    out, last = model(x, hx)
    return [out, *(last if isinstance(last, tuple) else (last,))]


def agree(mine: Any, dense: Any, given: list[Tensor]) -> None:
    """The same values, and the same gradients of inputs, states, biases and cores."""
    got, wanted = run(mine, given), run(dense, given)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    cotangents = [torch.randn_like(value) for value in wanted]
    names = [name for name, _ in dense.named_parameters()]
    biases = [name for name in names if name.startswith("bias")]
    weights = [name for name in names if name.startswith("weight")]
    theirs = torch.autograd.grad(
        wanted, [*given, *map(dense.get_parameter, [*biases, *weights])], cotangents
    )
    parts = mine.parts()
    own = [parts[name.replace("bias", "weight")].bias for name in biases]
    cores = [c for part in parts.values() for n, c in part.cores.named_parameters() if n != "bias"]
    ours = torch.autograd.grad(got, [*given, *own, *cores], cotangents)
    for a, b in zip(ours, theirs[: len(given) + len(own)], strict=False):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    by_weight = theirs[len(given) + len(own) :]
    made = mine.reconstruct()
    through = torch.autograd.grad([made[name] for name in weights], cores, by_weight)
    for a, b in zip(ours[len(given) + len(own) :], through, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------- against dense


def cases() -> Iterator[Any]:
    for kind in KINDS:
        for signature in SIGNATURES:
            if kind == "LSTM" or "proj" not in signature:
                for implementation in IMPLEMENTATIONS:
                    yield pytest.param(kind, signature, implementation)


@pytest.mark.parametrize("kind, signature, implementation", [*cases()])
def test_full_rank_is_the_dense_layer(kind: str, signature: str, implementation: str) -> None:
    dense = dense_of(kind, signature)
    mine = whole(dense, implementation=implementation)
    assert mine.decomposition.error < 1e-12
    for states in (False, True):
        agree(mine, dense, data(dense, states=states))
    back = mine.to_dense()
    assert repr(back) == repr(dense)
    for (name, a), b in zip(back.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("implementation", ["factorized", "reconstructed"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format(name: str, kind: str, implementation: str) -> None:
    dense = dense_of(kind)
    gates = (4, 4) if kind == "LSTM" else (3, 4)
    shapes: dict[str, Any] = dict(in_shape=(2, 3), hidden_shape=(2, 2), out_shape=gates)
    assert fitting(name, [((2, 3), gates)])
    format = full(name, (2, 3), gates) if name == "Custom" else make(name, 999, clamp=True)
    mine = whole(dense, format, implementation=implementation, **shapes)
    agree(mine, dense, data(dense, states=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_comparison_sees_a_wrong_core(implementation: str) -> None:
    dense = dense_of("GRU")
    mine = whole(dense, implementation=implementation)
    with torch.no_grad():
        mine.hh_l0.cores.G1[0] += 1
    with pytest.raises(AssertionError):
        agree(mine, dense, data(dense, states=False))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_sequence_without_a_batch(kind: str, implementation: str) -> None:
    for signature in ("plain", "both ways"):
        dense = dense_of(kind, signature)
        mine = whole(dense, implementation=implementation)
        x = torch.randn(POSITIONS, INPUTS, dtype=torch.float64)
        states = [s[:, 0] for s in data(dense, states=True)[1:]]
        for given in ([x], [x, *states]):
            for a, b in zip(run(mine, given), run(dense, given), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_sorted", [True, False])
def test_packed_sequences(kind: str, is_sorted: bool) -> None:
    dense = dense_of(kind, "both ways")
    mine = whole(dense)
    lengths = (4, 3, 1) if is_sorted else (1, 4, 3)
    rows = [torch.randn(n, INPUTS, dtype=torch.float64) for n in lengths]
    packed = pack_sequence(rows, enforce_sorted=is_sorted)
    h = torch.randn(2, 3, HIDDEN, dtype=torch.float64)
    for hx in (None, (h, 2 * h) if kind == "LSTM" else h):
        (got, last), (wanted, after) = mine(packed, hx), dense(packed, hx)
        torch.testing.assert_close(pad_packed_sequence(got), pad_packed_sequence(wanted))
        torch.testing.assert_close(last, after)
    with pytest.raises(TncError, match=r"(?s)packed.+fix: "):
        whole(dense, implementation="factorized")(packed)


def test_dropout_lies_between_layers_in_training_only() -> None:
    for implementation in IMPLEMENTATIONS:
        dense = dense_of("LSTM", "two layers")
        mine = whole(dense.eval(), implementation=implementation)
        assert not mine.training
        given = data(dense, states=True)
        agree(mine, dense, given)
        halved = whole(dense_of("LSTM", num_layers=2, dropout=0.5), implementation=implementation)
        a, b = run(halved, given)[0], run(halved, given)[0]
        assert not torch.equal(a, b)


# ---------------------------------------------------------------------------- which way


def test_auto_is_one_of_the_two_ways() -> None:
    """A layer of 1024 on few cores goes from core to core; a small one on built weights."""
    small = layer()
    assert small._as_whole(torch.zeros(8, 4, INPUTS))
    wide = tnc.nn.LSTM(1024, 1024, format=formats.TTMatrix(1), dtype=torch.float32)
    assert not wide._as_whole(torch.zeros(2, 1, 1024))
    kept = wide.eval()._whole_us(2, 1, True)
    assert kept < wide._whole_us(2, 1, False)


def test_built_weights_are_kept_in_evaluation_until_a_core_changes() -> None:
    dense = dense_of("GRU")
    mine = whole(dense, implementation="reconstructed").eval()
    (x,) = data(dense, states=False)
    with torch.no_grad():
        mine(x)
        first = mine._weights(x)
        assert all(a is b for a, b in zip(first, mine._weights(x), strict=True))
        mine.ih_l0.cores.G1.mul_(2)
        torch.testing.assert_close(mine._weights(x)[0], 2 * first[0])
        mine.ih_l0.cores.G1.data.mul_(0.5)
        mine.invalidate()
        torch.testing.assert_close(mine._weights(x)[0], first[0])
        mine.train().eval()
        assert mine._weights(x)[0] is not first[0]
    assert mine(x)[0].requires_grad


# ---------------------------------------------------------------------------- as a torch module


def test_parts_by_torchs_names() -> None:
    dense = dense_of("LSTM", "deep projected")
    mine = whole(dense)
    named = [name for name, _ in dense.named_parameters() if name.startswith("weight")]
    assert [*mine.parts()] == named == [*mine.reconstruct()]
    assert all(isinstance(part, tnc.nn.Linear) for part in mine.parts().values())
    assert set(mine.condition_numbers()) == set(named)
    assert mine.decomposition.parameters == sum(p.core_count() for p in mine.parts().values())


def test_a_format_for_each_weight() -> None:
    dense = dense_of("GRU")
    format = {"weight_ih_l0": FORMAT, "weight_hh_l0": formats.Dense()}
    mine = whole(dense, format)
    assert [type(part.format).__name__ for part in mine.parts().values()] == ["TTMatrix", "Dense"]
    agree(mine, dense, data(dense, states=False))
    again = layer("GRU", format=mine.format)
    assert [part.core_count() for part in again.parts().values()] == [
        part.core_count() for part in mine.parts().values()
    ]
    with pytest.raises(TncError, match=r"(?s)weight_hh_l0.+fix: "):
        layer("GRU", format={"weight_ih_l0": FORMAT})


def test_moments_of_the_inputs() -> None:
    torch.manual_seed(0)
    dense, x = nn.LSTM(16, 16), torch.randn(200, 16) * torch.logspace(0, -3, 16)
    moments = x.T @ x / 200
    mine = whole(dense, formats.LowRank(), rank=4, moments=moments)
    found = mine.decomposition.parts["weight_ih_l0"]
    assert found.error < found.plain_error
    plain = mine.decomposition.parts["weight_hh_l0"]
    assert plain.error == plain.plain_error


def test_a_budget_in_numbers_is_shared_out() -> None:
    dense = nn.LSTM(32, 32)
    mine = whole(dense, formats.LowRank(), budget=2000)
    assert 1000 < mine.decomposition.parameters <= 2000
    assert 0 < mine.decomposition.lower_bound <= mine.decomposition.error < 1
    fifth = whole(dense, formats.LowRank(), budget=0.2)
    assert fifth.decomposition.parameters <= 0.2 * 2 * 32 * 128


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_state_round_trips_through_the_meta_device(implementation: str) -> None:
    mine, x = layer(implementation=implementation), torch.randn(3, 2, INPUTS)
    other = layer(device="meta", implementation=implementation).to_empty(device="cpu")
    other.load_state_dict(mine.state_dict(), strict=True)
    torch.testing.assert_close(other(x), mine(x))
    assert list(mine.state_dict())[:3] == ["ih_l0.cores.G1", "ih_l0.cores.G2", "ih_l0.cores.G3"]


@pytest.mark.parametrize("implementation", ["factorized", "reconstructed"])
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_dtypes(copier: Any, implementation: str) -> None:
    dense = dense_of("LSTM")
    mine = whole(dense, implementation=implementation).eval()
    (x,) = data(dense, states=False)
    with torch.no_grad():
        wanted = mine(x)[0]
        other = copier(mine)
        assert torch.equal(other(x)[0], wanted)
        other.hh_l0.cores.G1.zero_()
        assert torch.equal(mine(x)[0], wanted) and not torch.equal(other(x)[0], wanted)
        torch.testing.assert_close(mine.float()(x.float())[0], wanted.float())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast(implementation: str) -> None:
    mine, x = layer(implementation=implementation), torch.randn(3, 2, INPUTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mine(x)[0]
    torch.testing.assert_close(out.float(), mine(x)[0], rtol=0.1, atol=0.05)


def test_autocast_where_the_kernel_lacks_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, x = layer(implementation="reconstructed"), torch.randn(3, 2, INPUTS)
    kernel = torch._VF.lstm

    def lacking(*args: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor")
        return kernel(*args)

    monkeypatch.setitem(gated._LSTM_HAS, torch.bfloat16, False)
    monkeypatch.setattr(torch._VF, "lstm", lacking, raising=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lower = mine(x)[0], mine(x.bfloat16())[0]
    assert out.dtype == lower.dtype == torch.bfloat16
    torch.testing.assert_close(out, mine(x)[0].bfloat16())
    torch.testing.assert_close(lower, mine(x.bfloat16().float())[0].bfloat16())


@pytest.mark.parametrize("implementation", ["auto", "factorized"])
def test_torch_compile_and_functorch(implementation: str) -> None:
    torch._dynamo.reset()
    mine, x = layer(implementation=implementation), torch.randn(3, 2, INPUTS)
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mine(x), rtol=1e-4, atol=1e-5)
    held = dict(mine.named_parameters())

    def loss(held: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(mine, held, (x,))[0].square().sum()

    found = torch.func.grad(loss)(held)
    mine(x)[0].square().sum().backward()
    for name, parameter in held.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4)


def test_tied_weights() -> None:
    mine = layer(bidirectional=True, implementation="factorized", dtype=torch.float64)
    mine.hh_l0_reverse.tie(mine.hh_l0)
    assert mine.hh_l0_reverse.cores.G1 is mine.hh_l0.cores.G1
    (x,) = data(mine.to_dense(), states=False)
    torch.testing.assert_close(mine(x), mine.to_dense()(x))
    other = layer(format=formats.LowRank(2), implementation="factorized", dtype=torch.float64)
    mine.hh_l0.tie(other.hh_l0)
    torch.testing.assert_close(mine(x), mine.to_dense()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_weights_have_the_scale_of_torchs(kind: str) -> None:
    torch.manual_seed(0)
    mine = getattr(tnc.nn, kind)(48, 64, format=formats.TTMatrix(16, clamp=True))
    for weight in mine.reconstruct().values():
        assert 0.7 < float(weight.detach().std()) * (3 * 64) ** 0.5 < 1.4
    for part in mine.parts().values():
        assert 0 < float(part.bias.detach().abs().max()) <= 64**-0.5


def test_repr_is_one_line() -> None:
    assert repr(layer("GRU", format=formats.LowRank(2), num_layers=2, batch_first=True)) == (
        "GRU(6, 4, num_layers=2, batch_first=True, format=LowRank(rank=2), 132 parameters, "
        "compression 1.64x)"
    )


# ---------------------------------------------------------------------------- refused


def spoiled() -> nn.GRU:
    dense = nn.GRU(INPUTS, HIDDEN)
    dense.weight_hh_l0.data[0, 0] = float("nan")
    return dense


X = torch.randn(3, 2, INPUTS)
BAD: dict[str, Any] = {
    "inputs": lambda: tnc.nn.LSTM(0, 4, format=FORMAT),
    "hidden": lambda: tnc.nn.GRU(6, 1.5, format=FORMAT),
    "layers": lambda: layer(num_layers=0),
    "dropout": lambda: layer(dropout=2),
    "projection": lambda: layer(proj_size=4),
    "format": lambda: layer(format="TT"),
    "rank": lambda: layer(format=formats.TTMatrix(99)),
    "modes": lambda: layer(hidden_shape=(1, 2)),
    "implementation": lambda: layer(implementation="fast"),
    "NaN": lambda: whole(spoiled()),
    "another kind": lambda: tnc.nn.GRU.from_dense(nn.LSTM(6, 4), FORMAT),
    "meta": lambda: whole(nn.LSTM(6, 4, device="meta")),
    "list": lambda: layer()([1.0]),
    "features": lambda: layer()(torch.randn(3, 2, 5)),
    "axes": lambda: layer()(torch.randn(6)),
    "no positions": lambda: layer()(torch.randn(0, 2, 6)),
    "dtype": lambda: layer()(X.double()),
    "one state": lambda: layer()(X, torch.zeros(1, 2, 4)),
    "states of another batch": lambda: layer()(X, (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))),
    "states of another dtype": lambda: layer("GRU")(X, torch.zeros(1, 2, 4).double()),
    "two states": lambda: layer("GRU")(X, (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_and_how_to_mend_it(case: str) -> None:
    with pytest.raises(TncError, match=r"(?s).+fix: "):
        BAD[case]()
