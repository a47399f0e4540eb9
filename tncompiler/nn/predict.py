"""Predicted microseconds of the ways in which a layer may run, by the machine's committed rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tncompiler.nn.tensorized import Tensorized
from tncompiler.planning.machine import as_machine


def predicted_us(run: Any, sizes: Mapping[str, int]) -> float:
    """A forward pass of a compiled module on torch, at sizes by index name."""
    compilation = run.compilation
    dtypes = compilation.default_dtypes(run.compute_dtype)
    return float(compilation.predicted_us(dtypes, compilation.nominal(sizes), (), "torch"))


def table_us(part: Tensorized) -> float:
    """Building a part's dense weight."""
    return predicted_us(part._table.prepare(part._core_dtype()), {})


def product_us(part: Tensorized, rows: int) -> float:
    """So many rows times a part's dense weight."""
    rates = as_machine(part.cores.compilation.options.machine).cpu.libraries["torch"]
    inputs, outputs = part.table_shape
    dtype = part.cores.compute_dtype
    return rates.step_us + rates.product_us(1, rows, outputs, inputs, dtype)
