"""Changes to modules that happen wholly or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from tncompiler.models.sites import Slot

_TABLES = ("_modules", "_parameters", "_buffers")  # what of a module a change touches
# hooks go along, as the very tables: the handles that users hold refer to them
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


@contextmanager
def all_or_nothing(modules: Iterable[nn.Module]) -> Iterator[None]:
    """On an error, all these modules are again what they were."""
    before = {module: (module.__class__, _copied(module)) for module in modules}
    try:
        yield
    except BaseException:
        for module, (cls, state) in before.items():
            module.__class__ = cls
            module.__dict__ = state
        raise


def _copied(module: nn.Module) -> dict[str, object]:
    state = dict(module.__dict__)
    state.update({name: state[name].copy() for name in _TABLES})
    return state


def put(layer: nn.Module, module: nn.Module, slots: Sequence[Slot]) -> None:
    """Put a layer wherever a module hangs, with its hooks; one that hangs nowhere becomes it."""
    for name in _HOOKS:
        layer.__dict__[name] = module.__dict__[name]
    for parent, key in slots:
        parent._modules[key] = layer
    if not slots:
        module.__class__ = layer.__class__
        module.__dict__ = layer.__dict__


def inherit(layer: nn.Module, module: nn.Module) -> None:
    """Give a layer the bias, the mode and `requires_grad` of the module that it stands for."""
    layer.train(module.training)
    layer.requires_grad_(any(p.requires_grad for p in module.parameters() if p.ndim > 1))
    bias = module._parameters.get("bias")
    if bias is not None:
        _replace_parameter(layer, layer.bias, bias)  # type: ignore[arg-type]


def _replace_parameter(module: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Hold another parameter wherever a module or what is in it holds a certain one."""
    for part in module.modules():
        for key, parameter in part._parameters.items():
            if parameter is old:
                part._parameters[key] = new
