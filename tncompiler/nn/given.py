"""Networks whose tensors are given at each call: how layers read weights that cores make."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tncompiler.api import compile as compile_network
from tncompiler.ir import algebra
from tncompiler.ir.dtypes import dtype_name
from tncompiler.ir.expressions import Expr, Leaf, replace_leaves, walk
from tncompiler.ir.index import Index
from tncompiler.planning.options import PlanOptions


class GivenTensors:
    """A program whose tensors are given at each call, so that it follows their dtype and device.

    ``outputs``: an expression or a tuple of them, of inputs called ``names``.
    """

    def __init__(
        self, outputs: Any, names: Sequence[str], backend: str, options: PlanOptions | None = None
    ) -> None:
        self.outputs, self.names = outputs, list(names)
        # tables are read where the layer is: while it is on a CPU, no kernel can run
        self.backend, self.options = "auto" if backend == "triton" else backend, options
        self.compiled: dict[torch.dtype, Any] = {}

    def prepare(self, dtype: torch.dtype) -> Any:
        """The program compiled for a dtype."""
        if dtype not in self.compiled:
            self.compiled[dtype] = compile_network(
                self.outputs,
                inputs=self.names,
                backend=self.backend,
                dtype=dtype_name(dtype),
                plan=self.options,
            )
        return self.compiled[dtype]

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """The outputs for these tensors, in the order of names; at their dtype under autocast."""
        dtype = common_dtype(tensors)
        run = self.prepare(dtype)
        with _without_autocast(tensors[0].device.type):
            return run(*(tensor.to(dtype) for tensor in tensors))


class CoreReading(GivenTensors):
    """A network whose leaves are given at each call, in the order of ``leaves``, their names."""

    def __init__(self, network: Expr, backend: str, options: PlanOptions | None = None) -> None:
        given = with_inputs(network)
        self.leaves, self.parameters = given.leaves, given.parameters
        super().__init__(given.network, given.names, backend, options)

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        value: Tensor = super().__call__(tensors)
        return value


@dataclass(frozen=True, slots=True)
class Given:
    """A network with inputs for leaves: ``names`` of the inputs, ``leaves`` they stand for.

    ``parameters``: those of the leaves that are parameters.
    """

    network: Expr
    names: tuple[str, ...]
    leaves: tuple[str, ...]
    parameters: tuple[str, ...]


def with_inputs(network: Expr, prefix: str = "t") -> Given:
    """The network with an input for every leaf; a leaf at several sites has one for each."""
    leaves = [*dict.fromkeys(node for node in walk(network) if isinstance(node, Leaf))]
    inputs = [input_leaf(f"{prefix}{k}", leaf.indices) for k, leaf in enumerate(leaves)]
    return Given(
        replace_leaves(network, dict(zip(leaves, inputs, strict=True))),
        tuple(leaf.name for leaf in inputs),
        tuple(leaf.name for leaf in leaves),
        tuple(leaf.name for leaf in leaves if leaf.kind == "param"),
    )


def input_leaf(name: str, indices: Sequence[Index]) -> Leaf:
    """An input by exactly this name: `tnc.input` would take the prefix of an open `tnc.scope`."""
    return algebra.leaf(name, indices, kind="input")


def common_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """What all of them promote to."""
    return reduce(torch.promote_types, [tensor.dtype for tensor in tensors])


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
