"""Cores in few bits, or with a mask: parametrizations of the parameters of layers.

In: a core. Out: codes as a buffer and scales as the parameter that is trained, or a mask beside the
core. The layer reads the core that they stand for at each call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tncompiler.ir.errors import ArgumentError, DTypeError, FileFormatError, ShapeError
from tncompiler.nn.tensorized import Tensorized
from tncompiler.parametrized import register, unregister

_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)  # of the largest number in a slice


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to hold numbers: ``largest`` is the largest code, ``bits`` what one takes.

    ``dtype``: of the buffer; two codes of four bits share a byte.
    """

    name: str
    bits: int
    largest: float
    dtype: torch.dtype

    @property
    def is_whole(self) -> bool:
        """Whether codes are integers."""
        return self.dtype in (torch.int8, torch.uint8)


SCHEMES: dict[str, Scheme] = {
    "int8": Scheme("int8", 8, 127, torch.int8),
    "int4": Scheme("int4", 4, 7, torch.uint8),
    "fp8": Scheme("fp8", 8, 448, torch.float8_e4m3fn),
}


def scheme_of(name: Any) -> Scheme:
    """The scheme of a name. Raises ArgumentError, listing those that there are."""
    if not isinstance(name, str) or name not in SCHEMES:
        raise ArgumentError(f"there is no scheme {name!r:.40}", fix=f"one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


class Quantized(nn.Module):
    """A core as codes times scales, one scale for each position of an axis, or one for all.

    A scale is what the largest code stands for: a number as large as those of the core, so that an
    optimizer's steps suit both. Shapes: codes as the core (int4: half as many bytes, flat); scale 1
    but along the axis.
    """

    codes: Tensor

    def __init__(self, scheme: str, shape: tuple[int, ...], axis: int | None) -> None:
        super().__init__()
        self.scheme, self.shape, self.axis = scheme_of(scheme), tuple(shape), axis
        count = prod(self.shape)
        size = ((count + 1) // 2,) if self.scheme.bits == 4 else self.shape
        self.register_buffer("codes", torch.zeros(size, dtype=self.scheme.dtype))

    def forward(self, scale: Tensor) -> Tensor:
        """The core."""
        codes = unpacked(self.codes, self.shape) if self.scheme.bits == 4 else self.codes
        return codes.to(scale.dtype) * (scale / self.scheme.largest)

    def right_inverse(self, core: Tensor) -> Tensor:
        """The scales for a core, whose codes are kept here."""
        scale = best_scale(core, self.scheme, self.axis)
        codes = rounded(core / (scale / self.scheme.largest), self.scheme)
        if self.scheme.bits == 4:
            self.codes = packed(codes).to(core.device)
        else:
            self.codes = codes.to(self.scheme.dtype)
        return scale

    def _apply(self, fn: Any, recurse: bool = True) -> Quantized:
        """Codes keep their dtype where a model is cast."""
        codes = self.codes
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.codes.dtype != self.scheme.dtype:
            self.codes = codes.to(self.codes.device)
        return self

    def extra_repr(self) -> str:
        return f"{self.scheme.name}, {self.shape}, axis={self.axis}"


class Masked(nn.Module):
    """A core of which some numbers are zero and stay zero."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, core: Tensor) -> Tensor:
        """The core with zeros."""
        return core * self.mask

    def right_inverse(self, core: Tensor) -> Tensor:
        """The core as it is held."""
        return core * self.mask


# ---------------------------------------------------------------------------- numbers


def best_scale(core: Tensor, scheme: Scheme, axis: int | None) -> Tensor:
    """The scales with the least squared error, over some clippings of the largest number."""
    rest = [k for k in range(core.ndim) if k != axis]
    largest = core.abs().amax(rest, keepdim=True) if rest else core.abs()
    largest = torch.where(largest > 0, largest, 1.0).to(core.dtype)
    best, least = largest, torch.full_like(largest, torch.inf)
    for clip in _CLIPS if scheme.is_whole else _CLIPS[:1]:
        scale = clip * largest
        step = scale / scheme.largest
        errors = (rounded(core / step, scheme) * step - core).square()
        error = errors.sum(rest, keepdim=True) if rest else errors
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def rounded(ratio: Tensor, scheme: Scheme) -> Tensor:
    """The nearest codes, as numbers of the ratio's dtype."""
    held = ratio.clamp(-scheme.largest, scheme.largest)
    return held.round() if scheme.is_whole else held.to(scheme.dtype).to(ratio.dtype)


def packed(codes: Tensor) -> Tensor:
    """Codes from -7 to 7, two in a byte."""
    flat = (codes.flatten() + 8).to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(len(flat) % 2)])
    return flat[::2] * 16 + flat[1::2]


def unpacked(codes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The codes of `packed`, as int8 in their shape."""
    halves = torch.stack([codes // 16, codes % 16], dim=1).flatten()[: prod(shape)]
    return (halves.to(torch.int8) - 8).reshape(shape)


# ---------------------------------------------------------------------------- on layers


def owner_of(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module and attribute of a dotted parameter."""
    path, _, last = name.rpartition(".")
    return layer.get_submodule(path), last


def stored_cores(layer: nn.Module) -> Iterator[tuple[str, Quantized | Masked]]:
    """The cores that are held in few bits or masked, by dotted names, and how."""
    for path, module in layer.named_modules():
        if parametrize.is_parametrized(module):
            for key, chain in module.parametrizations.items():
                if isinstance(chain[0], Quantized | Masked):
                    yield f"{path}.{key}" if path else key, chain[0]


def store_core(layer: Tensorized, name: str, made: Quantized | Masked) -> None:
    """Hold a core of a layer so from now on."""
    register(*owner_of(layer.cores, name), made)


def hold_plainly(layer: Tensorized) -> None:
    """Hold cores in few bits, and masked ones, as plain ones: their numbers are free again."""
    for name, _ in [*stored_cores(layer.cores)]:
        unregister(*owner_of(layer.cores, name))


def is_masked(layer: Tensorized) -> bool:
    """Whether some numbers of the cores are held at zero."""
    return any(isinstance(made, Masked) for _, made in stored_cores(layer.cores))


def check_not_quantized(layer: Tensorized, doing: str) -> None:
    """Raises DTypeError where a core is held in few bits: it has no numbers of its own."""
    for name, made in stored_cores(layer):
        if isinstance(made, Quantized):
            raise DTypeError(
                f"{name!r} is held as {made.scheme.name}",
                where=str(layer),
                fix=f"{doing} before quantizing",
            )


def check_plain(layer: Tensorized) -> None:
    """Raises DTypeError where bonds cannot be resized: cores are in few bits, or masked."""
    check_not_quantized(layer, "resize bonds")
    if is_masked(layer):
        raise DTypeError(
            "the cores are masked", where=str(layer), fix="resize bonds before tnc.prune"
        )


def check_mask(mask: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """A mask for a core. Raises ShapeError unless it is one of booleans in the core's shape."""
    try:
        held = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError):
        raise ShapeError(
            f"the mask of {name!r} is {mask!r:.40}", fix="give one boolean for each number"
        ) from None
    if held.dtype is not torch.bool or tuple(held.shape) != tuple(shape):
        dtype = str(held.dtype).removeprefix("torch.")
        raise ShapeError(
            f"the mask of {name!r} is {tuple(held.shape)} {dtype}, the core is {tuple(shape)}",
            fix="give one boolean for each number: False where it is to be zero",
        )
    return held


# ---------------------------------------------------------------------------- in files


def storage_data(layer: nn.Module) -> list[dict[str, Any]]:
    """How the cores of a layer are held, as data."""
    found = []
    for name, made in stored_cores(layer):
        if isinstance(made, Quantized):
            found.append({"name": name, "kind": made.scheme.name, "axis": made.axis})
        else:
            found.append({"name": name, "kind": "mask"})
    return found


def restore_storage(layer: nn.Module, data: list[Mapping[str, Any]]) -> None:
    """Hold the cores of a new layer as data say; the numbers come with the state."""
    for each in data:
        owner, key = owner_of(layer, each["name"])
        core = getattr(owner, key)
        made: Quantized | Masked
        if each["kind"] == "mask":
            made = Masked(torch.ones(core.shape, dtype=torch.bool, device=core.device))
        elif each["kind"] in SCHEMES:
            made = Quantized(each["kind"], tuple(core.shape), _axis(each["axis"], core.ndim))
        else:
            raise FileFormatError(
                f"there is no way {each['kind']!r:.40} to hold a core", fix="use a later version"
            )
        register(owner, key, made.to(core.device))


def _axis(axis: Any, ndim: int) -> int | None:
    if axis is None or (isinstance(axis, int) and 0 <= axis < ndim):
        return axis
    raise FileFormatError(f"a core has no axis {axis!r:.40}", fix="write the file again")
