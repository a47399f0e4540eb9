"""What a student is to match: a teacher's outputs, or what its slices make of the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tncompiler.ir.errors import ArgumentError, TeacherError
from tncompiler.models.calibration import as_batch, evaluating, tensors_of

Call = tuple[tuple[Any, ...], dict[str, Any], Any]  # arguments, keywords, what came out


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """How a batch becomes gradients: calling it gives the loss of each part, after backward; no
    gradients where they are switched off."""

    run: Callable[[Any], dict[str, float]]
    trained: tuple[nn.Module, ...]  # modules whose parameters learn


def read_call(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as a call of the model: a tensor, a tuple (positional) or a mapping (keywords)."""
    call = as_batch(item)
    if call is None:
        raise ArgumentError(
            f"a batch is a {type(item).__name__}",
            fix="give a tensor, a tuple or a dict as the model takes it",
        )
    return call


def by_features(student: nn.Module, teacher: nn.Module, slices: Sequence[str]) -> Lesson:
    """Slices learn on their own: from what the teacher's gets, what the teacher's makes of it."""
    pairs = {name: (_part(student, name), _teacher_part(teacher, name)) for name in slices}

    def run(item: Any) -> dict[str, float]:
        calls = _observe(teacher, {name: pair[1] for name, pair in pairs.items()}, item)
        losses = {}
        for name, (mine, _) in pairs.items():
            if not calls[name]:
                continue
            made = [_relative_error(mine(*a, **kw), out, name) for a, kw, out in calls[name]]
            losses[name] = _backward(torch.stack(made).mean())
        if not losses:
            raise TeacherError(
                "the teacher calls none of the slices", fix="name modules that its forward calls"
            )
        return losses

    return Lesson(run, tuple(mine for mine, _ in pairs.values()))


def by_outputs(student: nn.Module, teacher: nn.Module) -> Lesson:
    """The whole model learns to make of a batch what the teacher makes of it."""

    def run(item: Any) -> dict[str, float]:
        args, kwargs = read_call(item)
        with evaluating(teacher):
            wanted = teacher(*args, **kwargs)
        return {"output": _backward(_relative_error(student(*args, **kwargs), wanted, "output"))}

    return Lesson(run, (student,))


def by_function(student: nn.Module, loss: Callable[[nn.Module, Any], Any]) -> Lesson:
    """Whatever a user's function of the model and a batch says; it may need gradients itself."""

    def run(item: Any) -> dict[str, float]:
        with torch.enable_grad():
            value = loss(student, item)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ArgumentError(
                "the loss is no number with a gradient",
                fix="give a function (model, batch) → tensor of one number",
            )
        return {"loss": _backward(value)}

    return Lesson(run, (student,))


def _backward(loss: Tensor) -> float:
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def _relative_error(mine: Any, wanted: Any, where: str) -> Tensor:
    """The squared error over the square of what is wanted. Raises TeacherError."""
    own, others = tensors_of(mine), tensors_of(wanted)
    shapes = [[tuple(t.shape) for t in each] for each in (own, others)]
    if shapes[0] != shapes[1] or not own:
        raise TeacherError(
            f"the model makes {shapes[0] or 'no tensor'} of what the teacher makes {shapes[1]} of",
            where=where,
            fix="give the model before it was tensorized as the teacher",
        )
    missed, norm = torch.zeros(()), torch.zeros(())
    for a, b in zip(own, others, strict=True):
        missed = missed + _square(a - b.detach())
        norm = norm + _square(b.detach())
    return missed / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def _square(tensor: Tensor) -> Tensor:
    """The sum of squares, at least in single precision: halves would overflow."""
    size = tensor.abs()
    return size.to(torch.promote_types(size.dtype, torch.float32)).square().sum()


def _observe(
    teacher: nn.Module, parts: Mapping[str, nn.Module], item: Any
) -> dict[str, list[Call]]:
    """What the parts of a teacher got and made in one call."""
    calls: dict[str, list[Call]] = {name: [] for name in parts}

    def hook_of(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, out: calls[name].append((args, kwargs, out))

    handles = [
        part.register_forward_hook(hook_of(name), with_kwargs=True) for name, part in parts.items()
    ]
    args, kwargs = read_call(item)
    try:
        with evaluating(teacher):
            teacher(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _part(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ArgumentError(
            f"the model has no module {name!r}", fix="name slices as model.named_modules() does"
        ) from None


def _teacher_part(teacher: nn.Module, name: str) -> nn.Module:
    try:
        return teacher.get_submodule(name)
    except AttributeError:
        raise TeacherError(
            f"the teacher has no module {name!r}",
            fix="give the model before it was tensorized as the teacher, or other slices=",
        ) from None
