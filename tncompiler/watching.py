"""What torch does with the operations it is asked for now: whether it just runs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode

count_modes, trace_of_now = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_functorch_stack = torch._C._functorch.peek_interpreter_stack
_AUTOCASTS = ("cpu", "cuda")
_PLAIN = {Tensor, nn.Parameter}  # types that torch does not look into
_KEEPING = {_CachingTorchDispatchMode, _CachedTorchDispatchMode}  # keep what operations give


def watched(tensors: Sequence[Tensor]) -> bool:
    """Whether torch looks inside: compile, functorch, forward mode, a trace, a tensor subclass."""
    return looks_inside() or not are_plain(tensors)


def looks_inside() -> bool:
    """Whether torch looks into all code: compile, functorch, forward mode or a trace."""
    return (
        is_compiling()
        or forward_ad._current_level >= 0
        or _functorch_stack() is not None
        or trace_of_now() is not None
    )


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether none of them is of a subclass, which torch looks into."""
    return _PLAIN.issuperset(map(type, tensors))


def is_batched(tensor: Tensor) -> bool:
    """Whether it stands for several, as `is_grads_batched` makes them."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


def is_wrapped(tensor: Tensor) -> bool:
    """Whether it is what a transform of functorch made of another, perhaps left from one that is
    over."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_ordinary(device: str) -> bool:
    """Whether torch just runs what it is called for: nothing looks inside, no mode, no autocast."""
    return not (count_modes() or looks_inside() or autocasts(device))


def autocasts(device: str) -> bool:
    """Whether autocast is on; some devices (meta) do not know it, and asking stops some traces."""
    known = device in _AUTOCASTS or torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def is_spread(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors are DTensors: what a program makes beside them (ranges, masks) is then
    the same on all ranks. Among plain ones torch would say that they do not go together."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and all(isinstance(tensor, loaded.DTensor) for tensor in tensors)


def overseen(backend: str) -> bool:
    """Whether a mode wants what a backend's own code does not give: every operation (tracers,
    counters), or results that are not written to once they are there (selective checkpoints)."""
    if not count_modes():
        return False
    return backend != "torch" or any(
        type(mode) in _KEEPING for mode in _get_current_dispatch_mode_stack()
    )
