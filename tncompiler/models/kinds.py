"""Which modules have a layer of ours, and how they are handed to it.

To add one: a line in KINDS, by the full name of the dense class. What cannot be handed over has a
reason, in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from tncompiler.module import CompiledModule
from tncompiler.nn import LAYERS
from tncompiler.nn.parts import Composite
from tncompiler.nn.tensorized import Tensorized

_FLOATS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
)
_QUANTIZED = "torch.ao.nn."  # where torch keeps its quantized modules


def as_it_is(module: Any) -> nn.Module:
    """The module itself."""
    return module  # type: ignore[no-any-return]


def transposed_linear(module: Any) -> nn.Linear:
    """Hugging Face's Conv1D, whose weight is (inputs, outputs), as the Linear that it is."""
    inputs, outputs = module.weight.shape
    linear = nn.Linear(inputs, outputs, bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().t(), module.weight.requires_grad)
    linear.bias = module.bias
    return linear.train(module.training)


@dataclass(frozen=True, slots=True)
class Kind:
    """``layer``: its name in `tnc.nn.LAYERS`. ``dense``: the module that its `from_dense` takes."""

    layer: str
    dense: Callable[[Any], nn.Module] = as_it_is


# full name of a dense class → the layer that takes its place
KINDS: dict[str, Kind] = {
    "torch.nn.modules.linear.Linear": Kind("Linear"),
    "torch.nn.modules.conv.Conv1d": Kind("Conv1d"),
    "torch.nn.modules.conv.Conv2d": Kind("Conv2d"),
    "torch.nn.modules.conv.Conv3d": Kind("Conv3d"),
    "torch.nn.modules.sparse.Embedding": Kind("Embedding"),
    "torch.nn.modules.sparse.EmbeddingBag": Kind("EmbeddingBag"),
    "torch.nn.modules.activation.MultiheadAttention": Kind("MultiheadAttention"),
    "torch.nn.modules.rnn.LSTM": Kind("LSTM"),
    "torch.nn.modules.rnn.GRU": Kind("GRU"),
    "tncompiler.nn.graph.DenseGraphConv": Kind("GraphConv"),
    "transformers.pytorch_utils.Conv1D": Kind("Linear", transposed_linear),
    "transformers.modeling_utils.Conv1D": Kind("Linear", transposed_linear),
}


def kind_of(module: nn.Module) -> tuple[Kind | None, str | None]:
    """The kind of a module, or the reason why nothing can take its place; (None, None) if it has
    no place in the table at all."""
    closed = closed_reason(module)
    if closed is not None:
        return None, closed
    for cls in type(module).__mro__:
        kind = KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
        if kind is not None:
            reason = _class_reason(module, cls, kind) or weights_reason(module)
            return (None, reason) if reason else (kind, None)
    return None, None


def closed_reason(module: nn.Module) -> str | None:
    """Why nothing inside a module is looked at either; None for all others."""
    if isinstance(module, Tensorized | Composite | CompiledModule):
        return "tensorized already"
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit"
    if type(module).__module__.startswith(_QUANTIZED):
        return "quantized"
    return None


def _class_reason(module: nn.Module, cls: type, kind: Kind) -> str | None:
    if parametrize.is_parametrized(module):
        return "parametrized: its weight is computed"
    if type(module).forward is not cls.forward:  # type: ignore[attr-defined]
        return f"{type(module).__name__} has a forward of its own"
    if kind.layer not in LAYERS:
        return f"there is no tnc.nn.{kind.layer}"
    for option in ("max_norm", "sparse"):
        if getattr(module, option, None):
            return f"{option} does not go with cores: rows share them"
    return None


def weights_reason(module: nn.Module) -> str | None:
    """Why the parameters that a module holds itself cannot be read; None if they can."""
    if isinstance(getattr(module, "weight", None), Tensor) and "weight" not in module._parameters:
        return "its weight is computed (weight_norm, pruning)"
    held = (parameter for parameter in module._parameters.values() if parameter is not None)
    return next(filter(None, map(parameter_reason, held)), None)


def parameter_reason(parameter: Tensor) -> str | None:
    """Why a parameter has no numbers that a format could take; None if it has."""
    if is_lazy(parameter):
        return "not initialised yet"
    if parameter.is_meta:
        return "on the meta device: it has no numbers"
    plain = type(parameter) in (Tensor, nn.Parameter) and type(parameter.data) is Tensor
    if not plain:
        return f"its parameter is a {type(parameter.data).__name__}"
    if parameter.dtype not in _FLOATS:
        return f"quantized: its parameter has dtype {str(parameter.dtype).removeprefix('torch.')}"
    return None
