"""tncompiler: a symbolic tensor-network graph compiler.

Importing it loads neither torch nor triton; they load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name → module that holds it, loaded on first use; all other names are those of dsl.py
_PUBLIC: dict[str, str] = {
    "attention": "tncompiler.blocks",
    "batch_norm": "tncompiler.blocks",
    "dropout": "tncompiler.blocks",
    "moments": "tncompiler.blocks",
    "rms_norm": "tncompiler.blocks",
    "compress": "tncompiler.truncation",
    "compile": "tncompiler.api",
    "plan": "tncompiler.api",
    "plan_family": "tncompiler.api",
    "scan": "tncompiler.recurrence",
    "lstm_cell": "tncompiler.recurrence",
    "gru_cell": "tncompiler.recurrence",
    "avg_pool": "tncompiler.pooling",
    "max_pool": "tncompiler.pooling",
    "propagate": "tncompiler.message_passing",
    "normalized_weights": "tncompiler.message_passing",
    "edge_softmax": "tncompiler.message_passing",
    "einsum": "tncompiler.drop_in.einsum",
    "einsum_expression": "tncompiler.drop_in.expression",
    "contract_path": "tncompiler.drop_in.paths",
    "from_einsum": "tncompiler.ir.interchange.equations",
    "from_networkx": "tncompiler.ir.interchange.graphs",
    "from_quimb": "tncompiler.ir.interchange.quimb",
    "Ranks": "tncompiler.distributed.options",
    "simulate": "tncompiler.distributed.simulate",
    "parallelize": "tncompiler.distributed.parallelize",
    "PlanOptions": "tncompiler.planning.options",
    "ContractionPlan": "tncompiler.planning.plan",
    "PlanFamily": "tncompiler.planning.family",
    "Machine": "tncompiler.planning.machine",
    "calibrate": "tncompiler.calibration",
    "tensorize": "tncompiler.models.tensorize",
    "tensorize_": "tncompiler.models.tensorize",
    "to_dense": "tncompiler.models.dense",
    "Rule": "tncompiler.models.config",
    "save": "tncompiler.models.files.save",
    "load": "tncompiler.models.files.load",
    "Search": "tncompiler.compression.search",
    "heal": "tncompiler.compression.heal",
    "AdaptiveRank": "tncompiler.compression.adaptive",
    "inflate": "tncompiler.compression.resize",
    "shrink": "tncompiler.compression.resize",
    "prune": "tncompiler.compression.pruning",
    "quantize": "tncompiler.compression.quantizing",
    "recipe": "tncompiler.compression.recipe",
    "Expr": "tncompiler.ir.expressions",
    "TncError": "tncompiler.ir.errors",
}

_MODULES = ("backends", "distributed", "draw", "formats", "interpret", "ir", "nn", "planning")


def __getattr__(name: str) -> Any:
    if name == "__all__":
        dsl = import_module("tncompiler.dsl")
        return sorted({*_PUBLIC, *_MODULES, *dsl.__all__})
    if name in _MODULES:
        return import_module(f"tncompiler.{name}")
    if name.startswith("_"):
        raise AttributeError(f"module 'tncompiler' has no attribute {name!r}")
    module = import_module(_PUBLIC.get(name, "tncompiler.dsl"))
    if name not in _PUBLIC and name not in module.__all__:
        raise AttributeError(f"module 'tncompiler' has no attribute {name!r}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
