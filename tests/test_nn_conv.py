"""tnc.nn.Conv1d, Conv2d and Conv3d: every format and geometry against torch's, on one kernel."""

import copy
import math
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tncompiler as tnc
from tests.test_formats import full, make
from tncompiler import formats
from tncompiler.ir.errors import TncError
from tncompiler.nn.checks import IMPLEMENTATIONS
from tncompiler.nn.kernels import Kernel
from tncompiler.nn.tensorized import IllConditioned

CHANNELS, OUTPUTS = 4, 6
IMAGE = (9, 7, 5)
FORMAT = formats.TTMatrix(3, clamp=True)
# torch's arguments after the channels
GEOMETRIES: dict[str, tuple[int, dict[str, Any]]] = {
    "1d": (1, dict(kernel_size=3)),
    "1d strided": (1, dict(kernel_size=4, stride=2, padding=3, dilation=2, bias=False)),
    "1d groups": (1, dict(kernel_size=3, groups=2, padding="same")),
    "2d": (2, dict(kernel_size=3, padding=1)),
    "2d uneven": (2, dict(kernel_size=(2, 3), stride=(1, 2), padding=(0, 2), dilation=(3, 1))),
    "2d same": (2, dict(kernel_size=(2, 4), padding="same", dilation=(1, 2))),
    "2d one tap": (2, dict(kernel_size=1, padding="valid", bias=False)),
    "2d groups": (2, dict(kernel_size=3, groups=2, stride=2, padding=1)),
    "2d circular": (2, dict(kernel_size=3, padding="same", padding_mode="circular")),
    "2d reflect": (2, dict(kernel_size=3, padding=(1, 2), padding_mode="reflect")),
    "2d replicate": (2, dict(kernel_size=(2, 3), padding=1, padding_mode="replicate")),
    "3d": (3, dict(kernel_size=(2, 3, 2), stride=(2, 1, 1), padding=1)),
}


def dense_of(name: str, **options: Any) -> tuple[Any, Tensor]:
    """torch's layer of a geometry, and a batch for it."""
    torch.manual_seed(0)
    dimensions, how = GEOMETRIES[name]
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    dense = kind(CHANNELS, OUTPUTS, **how, **{"dtype": torch.float64, **options})
    return dense, torch.randn(2, CHANNELS, *IMAGE[:dimensions], dtype=dense.weight.dtype)


def whole(dense: Any, name: str, in_shape: Any = None, out_shape: Any = None, **how: Any) -> Any:
    """Our layer at full rank, made of torch's."""
    shape = dense.weight.shape
    kernel = Kernel.of(make(name, 2, clamp=True), shape, dense.groups, in_shape, out_shape)
    mine = getattr(tnc.nn, type(dense).__name__)
    format = full(name, kernel.ins, kernel.outs)
    return mine.from_dense(dense, format, in_shape=in_shape, out_shape=out_shape, **how)


def layer(**options: Any) -> Any:
    torch.manual_seed(0)
    how = dict(kernel_size=3, padding=1, format=FORMAT) | options
    return tnc.nn.Conv2d(CHANNELS, OUTPUTS, **how)


def differing(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def agree(mine: Any, dense: Any, x: Tensor) -> None:
    """The same values, and the same gradients of the input, the bias and every core."""
    x = x.clone().requires_grad_()
    got, wanted = mine(x), dense(x)
    assert differing(got, wanted) < 1e-11
    cotangent = torch.randn_like(wanted)
    (by_mine,) = torch.autograd.grad(got, x, cotangent, retain_graph=True)
    (by_dense,) = torch.autograd.grad(wanted, x, cotangent, retain_graph=True)
    assert differing(by_mine, by_dense) < 1e-11
    (by_weight,) = torch.autograd.grad(wanted, dense.weight, cotangent, retain_graph=True)
    cores = [core for name, core in mine.named_parameters() if name != "cores.bias"]
    by_cores = torch.autograd.grad(got, cores, cotangent, retain_graph=True)
    through = torch.autograd.grad(mine.reconstruct(), cores, by_weight)
    for a, b in zip(by_cores, through, strict=True):
        assert differing(a, b) < 1e-10
    if dense.bias is not None:
        (a,) = torch.autograd.grad(got, mine.bias, cotangent)
        (b,) = torch.autograd.grad(wanted, dense.bias, cotangent)
        assert differing(a, b) < 1e-11


# ---------------------------------------------------------------------------- against dense


def cases() -> Iterator[Any]:
    for number, name in enumerate(formats.FORMATS):
        for place, geometry in enumerate(GEOMETRIES):
            implementation = [*IMPLEMENTATIONS][(number + place) % len(IMPLEMENTATIONS)]
            if (number + place) % 2 or name in ("TT", "Monarch"):  # half of them for each
                yield pytest.param(name, geometry, implementation, id=f"{name}-{geometry}")
        for implementation in IMPLEMENTATIONS:
            yield pytest.param(name, "2d", implementation, id=f"{name}-{implementation}")


@pytest.mark.parametrize("name, geometry, implementation", [*cases()])
def test_full_rank_is_the_dense_layer_forward_and_backward(
    name: str, geometry: str, implementation: str
) -> None:
    dense, x = dense_of(geometry)
    mine = whole(dense, name, implementation=implementation)
    assert mine.decomposition.error < 1e-12
    agree(mine, dense, x)
    back = mine.to_dense()
    assert type(back) is type(dense) and repr(back) == repr(dense)
    assert differing(back.weight, dense.weight) < 1e-12
    assert dense.bias is None or torch.equal(back.bias, dense.bias)
    torch.testing.assert_close(mine(x[0]), dense(x[0]))


def test_the_comparison_sees_a_wrong_core() -> None:
    dense, x = dense_of("2d")
    mine = whole(dense, "TT")
    with torch.no_grad():
        mine.cores.G1[0] += 1
    with pytest.raises(AssertionError):
        agree(mine, dense, x)


PADDED: dict[str, Any] = {
    "TTMatrix": ((2, 3), (2, 4)),
    "Monarch": ((2, 3), (3, 3)),
    "TT": ((5,), (7,)),
    "Tucker": ((2, 2), (2, 2, 2)),
    "LowRank": ((5,), (6,)),
}


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("geometry", ["1d strided", "2d uneven", "2d circular"])
def test_modes_beyond_the_channels_are_padded(name: str, geometry: str) -> None:
    dense, x = dense_of(geometry)
    agree(whole(dense, name, *PADDED[name]), dense, x)


def test_the_modes_of_each_format() -> None:
    """Channels, then taps, in; groups, then outputs, out."""
    shape = (12, 4, 3, 5)
    kernel = Kernel.of(formats.TT(2), shape, 1)
    assert (kernel.ins, kernel.outs) == ((4, 3, 5), (12,))
    kernel = Kernel.of(FORMAT, shape, 1)
    assert (kernel.ins, kernel.outs) == ((2, 2, 3, 5), (3, 4))
    kernel = Kernel.of(FORMAT, shape, 3)
    assert (kernel.ins, kernel.outs) == ((2, 2, 3, 5), (3, 2, 2))
    kernel = Kernel.of(formats.Monarch(1), shape, 1)
    assert (kernel.ins, kernel.outs) == ((2, 30), (3, 4))
    kernel = Kernel.of(formats.Monarch(1), shape, 3)
    assert (kernel.ins, kernel.outs) == ((2, 30), (3, 4))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("taps", [(1, 1), (3, 3), (2, 3)])
def test_all_modes_of_a_layer_make_another_one_like_it(groups: int, taps: tuple[int, int]) -> None:
    for name in ("TT", "TTMatrix", "Monarch", "CP"):
        for channels in (2, 3, 9, 18, 27):
            shape = (8, channels, *taps)
            kernel = Kernel.of(make(name, 1), shape, groups)
            assert Kernel.of(make(name, 1), shape, groups, kernel.ins, kernel.outs) == kernel
    assert Kernel.of(formats.TT(1), (8, 9, 3, 3), 1, (3, 3)).ins == (3, 3, 3, 3)


def test_depthwise() -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(6, 12, 3, groups=6, padding=1, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    for name in formats.FORMATS:
        agree(whole(dense, name), dense, x)


def test_images_of_any_size_and_stride() -> None:
    dense, _ = dense_of("2d")
    mine = whole(dense, "Tucker")
    for shape in ((0, CHANNELS, 4, 4), (3, CHANNELS, 1, 1), (1, CHANNELS, 30, 2)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(mine(x), dense(x))
    x = torch.randn(5, 6, 2, CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(mine(x.permute(2, 3, 1, 0)), dense(x.permute(2, 3, 1, 0)))


@pytest.mark.parametrize("dtype, error", [("float16", 5e-2), ("bfloat16", 3e-1), ("float32", 1e-5)])
def test_other_dtypes(dtype: str, error: float) -> None:
    dense, x = dense_of("2d", dtype=getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditioned)
        mine = whole(dense, "TT")
    assert mine(x).dtype == mine.weight.dtype == mine.to_dense().weight.dtype == x.dtype
    assert differing(mine(x), dense(x)) < error
    mine(x).abs().sum().backward()
    assert all(p.grad is not None for p in mine.parameters())


def test_the_implementations_do_what_they_say() -> None:
    """factorized never forms the kernel, reconstructed does, and both are the same."""
    how: dict[str, Any] = dict(format=formats.TT(2), dtype=torch.float64)
    x, outs = torch.randn(2, CHANNELS, 8, 8, dtype=torch.float64), {}
    for implementation in IMPLEMENTATIONS:
        mine = layer(implementation=implementation, **how)
        outs[implementation] = mine(x)
        made = [
            math.prod(step.out.shape)
            for step in mine.cores.program().steps
            if all(isinstance(n, int) for n in step.out.shape)
        ]
        whole_kernel = max(made, default=0) >= CHANNELS * OUTPUTS * 9
        assert whole_kernel == (implementation == "reconstructed") or implementation == "auto"
    torch.testing.assert_close(outs["factorized"], outs["reconstructed"])
    torch.testing.assert_close(outs["auto"], outs["reconstructed"])


# ---------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("name", formats.FORMATS)
def test_the_variance_is_kept(name: str) -> None:
    torch.manual_seed(0)
    format = make(name, 12, clamp=True)
    mine = tnc.nn.Conv2d(16, 24, 3, format=format, groups=2 if name == "TT" else 1)
    x = torch.randn(4, 16, 12, 12)
    for nonlinearity, gain in (("linear", 1.0), ("relu", 2**0.5)):
        squares = []
        for _ in range(8):
            mine.reset_parameters(nonlinearity)
            squares.append(float(mine(x).detach().square().mean()))
        assert 0.6 < math.sqrt(np.mean(squares)) / gain < 1.5
    assert not mine.bias.any()


# ---------------------------------------------------------------------------- as a torch module


def test_state_round_trips_strictly_through_the_meta_device() -> None:
    mine, x = layer(), torch.randn(2, CHANNELS, 5, 5)
    assert list(mine.state_dict()) == ["cores.G1", "cores.G2", "cores.G3", "cores.G4", "cores.bias"]
    other = layer(device="meta")
    assert other.cores.G1.is_meta and other(x.to("meta")).shape == mine(x).shape
    other = other.to_empty(device="cpu")
    other.load_state_dict(mine.state_dict(), strict=True)
    assert torch.equal(other(x), mine(x))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copier: Any) -> None:
    dense, x = dense_of("2d groups")
    mine = whole(dense, "TTMatrix").eval()
    other = copier(mine)
    assert torch.equal(other(x), mine(x)) and not other.training
    assert differing(other.reconstruct(), dense.weight) < 1e-12


@pytest.mark.parametrize("geometry", ["1d groups", "2d uneven", "2d same", "2d circular", "3d"])
def test_in_evaluation_the_dense_kernel_is_kept_until_a_core_changes(geometry: str) -> None:
    dense, x = dense_of(geometry)
    mine = whole(dense, "TT", implementation="reconstructed").eval()
    with torch.no_grad():
        before = mine(x)
        torch.testing.assert_close(before, dense(x))
        kernel, _ = mine._built.ready(mine, x)
        torch.testing.assert_close(kernel, dense.weight)
        mine.cores.G1.mul_(2)
        torch.testing.assert_close(mine.to_dense()(x), mine(x))
        assert differing(mine(x), before) > 0.1
        mine.cores.G1.data.mul_(0.5)
        mine.invalidate()
        torch.testing.assert_close(mine(x), before)
        mine.train()
        assert mine._built._kept._entry is mine._built._ready is None
    assert mine.eval()(x).requires_grad


def test_auto_takes_the_kept_kernel_where_it_is_predicted_to_be_faster() -> None:
    small = tnc.nn.Conv2d(8, 8, 3, format=formats.CP(64)).eval()
    assert small.is_whole_faster((4, 8, 16, 16))
    large = tnc.nn.Conv2d(256, 256, 3, format=formats.CP(4)).eval()
    assert not large.is_whole_faster((4, 256, 16, 16))


def test_dtype_moves_autocast_and_torch_compile() -> None:
    mine, x = layer(), torch.randn(2, CHANNELS, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mine(x).dtype == torch.bfloat16
    compiled = torch.compile(mine, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mine(x))
    mine.double()
    assert mine(x.double()).dtype == mine.weight.dtype == torch.float64


def test_tied_kernels() -> None:
    a, b = layer(), layer(stride=2, format=formats.CP(2), bias=False)
    b.tie(a)
    x = torch.randn(2, CHANNELS, 6, 6)
    assert b.cores.G1 is a.cores.G1
    torch.testing.assert_close(b.weight, a.weight)
    wanted = nn.functional.conv2d(x, a.weight, None, 2, 1)
    torch.testing.assert_close(b(x), wanted, rtol=1e-4, atol=1e-4)
    assert len(list(nn.ModuleList([a, b]).parameters())) == len(list(a.parameters()))


def test_a_tenth_of_the_kernel() -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(32, 32, 3)
    mine = tnc.nn.Conv2d.from_dense(dense, formats.Tucker(), budget=0.1)
    assert mine.decomposition.parameters <= 0.1 * dense.weight.numel()
    assert 0 < mine.decomposition.lower_bound <= mine.decomposition.error < 1
    patches = torch.randn(1000, 288).double() @ torch.randn(288, 288).double()
    moments = patches.T @ patches / 1000
    weighted = tnc.nn.Conv2d.from_dense(dense, formats.LowRank(), rank=8, moments=moments)
    assert weighted.decomposition.error < weighted.decomposition.plain_error


def test_repr_is_one_line_with_ranks_shapes_and_compression() -> None:
    assert repr(layer(stride=2, groups=2, padding_mode="circular")) == (
        "Conv2d(4, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, "
        "padding_mode='circular', bias=True, format=TTMatrix(rank=(2, 3, 3)), 1x2x3x3 → 2x1x3, "
        "106 parameters in cores, compression 1.02x)"
    )


# ---------------------------------------------------------------------------- refused


def spoiled() -> nn.Conv2d:
    dense = nn.Conv2d(CHANNELS, OUTPUTS, 3)
    dense.weight.data[0, 0, 0, 0] = math.nan
    return dense


DENSE = nn.Conv2d(CHANNELS, OUTPUTS, 3)
BAD: dict[str, Any] = {
    "channels": lambda: tnc.nn.Conv2d(0, 6, 3, format=FORMAT),
    "groups": lambda: layer(groups=3),
    "no groups": lambda: layer(groups=0),
    "kernel": lambda: layer(kernel_size=0),
    "kernel of a kind": lambda: layer(kernel_size="3"),
    "kernel of three dimensions": lambda: layer(kernel_size=(1, 2, 3)),
    "stride": lambda: layer(stride=0),
    "dilation": lambda: layer(dilation=1.5),
    "padding": lambda: layer(padding=-1),
    "padding of a kind": lambda: layer(padding="some"),
    "same with a stride": lambda: layer(padding="same", stride=2),
    "padding mode": lambda: layer(padding_mode="mirror"),
    "modes": lambda: layer(in_shape=(1, 2)),
    "modes of groups": lambda: layer(groups=2, out_shape=(2, 2)),
    "Monarch of three modes": lambda: layer(format=formats.Monarch(1), in_shape=(2, 2, 1)),
    "format": lambda: layer(format="TT"),
    "rank": lambda: layer(format=formats.TTMatrix(99)),
    "implementation": lambda: layer(implementation="fast"),
    "NaN": lambda: tnc.nn.Conv2d.from_dense(spoiled(), FORMAT),
    "another dimension": lambda: tnc.nn.Conv1d.from_dense(DENSE, FORMAT),
    "transposed": lambda: tnc.nn.Conv2d.from_dense(nn.ConvTranspose2d(4, 6, 3), FORMAT),
    "lazy": lambda: tnc.nn.Conv2d.from_dense(nn.LazyConv2d(6, 3), FORMAT),
    "meta": lambda: tnc.nn.Conv2d.from_dense(nn.Conv2d(4, 6, 3, device="meta"), FORMAT),
    "other channels": lambda: layer()(torch.randn(2, 5, 8, 8)),
    "too few axes": lambda: layer()(torch.randn(4, 8)),
    "list": lambda: layer()([1.0]),
    "small image": lambda: layer(padding=0)(torch.randn(2, 4, 2, 2)),
    "small image in evaluation": lambda: (
        layer(padding=0, implementation="reconstructed")
        .eval()
        .requires_grad_(False)(torch.randn(2, 4, 2, 2))
    ),
    "reflection": lambda: layer(padding=4, padding_mode="reflect")(torch.randn(2, 4, 3, 3)),
    "wrong dtype": lambda: layer()(torch.randn(2, 4, 8, 8).double()),
    "tied to another size": lambda: layer().tie(layer(kernel_size=1)),
    "tied to torch's": lambda: layer().tie(DENSE),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_and_how_to_mend_it(case: str) -> None:
    with pytest.raises(TncError, match=r"(?s).+fix: "):
        BAD[case]()
