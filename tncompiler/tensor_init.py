"""First values of a module's parameters, as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tncompiler.function import check_init_shape, initial_array
from tncompiler.ir.errors import DTypeError
from tncompiler.ir.expressions import Leaf
from tncompiler.ir.origin import call_site


def on_cpu(values: Any) -> Any:
    """Tensors as NumPy arrays, by name or in order; bfloat16, which NumPy lacks, as float32."""
    if isinstance(values, Mapping):
        return {name: on_cpu([value])[0] for name, value in values.items()}
    return [
        (v.float() if v.dtype == torch.bfloat16 else v).detach().cpu().resolve_conj().numpy()
        if isinstance(v, Tensor)
        else v
        for v in values
    ]


def initialize(
    leaf: Leaf, parameter: Tensor, std: float, generator: torch.Generator | None
) -> None:
    """Fill a parameter as its leaf says; `std` is for one that says nothing."""
    if leaf.init is None or (isinstance(leaf.init, str) and leaf.init == "normal"):
        scale = std if leaf.init is None else 1.0
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.normal_(0.0, scale, generator=generator) if scale else parameter.zero_()
            return
    given = leaf.init(tuple(parameter.shape)) if callable(leaf.init) else None
    if isinstance(given, Tensor):
        value = given
        check_init_shape(leaf, tuple(value.shape), tuple(parameter.shape))
    else:
        rng = np.random.default_rng(0)
        shape = tuple(parameter.shape)
        kind = np.dtype("complex128" if parameter.is_complex() else "float64")
        value = torch.from_numpy(initial_array(leaf, shape, std, kind, rng))
    if value.is_complex() and not parameter.is_complex():
        raise DTypeError(
            f"the init of {leaf.name!r} is complex",
            where=call_site(),
            fix="give it a complex dtype",
        )
    parameter.copy_(value)
