"""The state of a healing as a file: numbers of the model, of its optimizer, and how far it is.

Written beside its place and moved there: whenever the process is killed, a whole file is there. It
is the file of `tnc.save` (safetensors, a checksum over every byte); nothing in it is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tncompiler.ir.errors import FileFormatError
from tncompiler.models.files.sealed import check_plain_tensors, read, write

_MODEL, _OPTIMIZER, _KEPT, _COMPLEX = "model", "optimizer", "kept", "complex"


def write_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    progress: Mapping[str, Any],
    kept: Mapping[str, Tensor],
) -> None:
    """Write it wholly or not at all. ``progress``: plain data; ``kept``: tensors that go along.
    Raises OSError."""
    tensors = {f"{_MODEL}.{name}": tensor for name, tensor in _numbers(model).items()}
    tensors.update({f"{_KEPT}.{name}": tensor for name, tensor in kept.items()})
    state = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for number, own in state["state"].items():
        for key, value in own.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}.{number}.{key}"] = value
            else:
                plain.setdefault(str(number), {})[key] = value
    written, complex_ones = {}, []
    for name, tensor in tensors.items():
        held = tensor.detach()
        if held.is_complex():
            complex_ones.append(name)
            held = torch.view_as_real(held.resolve_conj())
        written[name] = held.contiguous().clone()
    content = {"healing": {"progress": progress, "plain": plain, _COMPLEX: complex_ones}}
    write(path, content, written)


def check_numbers(path: Path, model: nn.Module) -> None:
    """Raises UnsupportedModule where a file cannot hold what the model does."""
    check_plain_tensors(_numbers(model), path)


def read_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, identity: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put a file's numbers into a model and its optimizer; the progress and the tensors kept that
    it was written with.

    Raises FileFormatError for a file that was altered, is none, or belongs to another healing; the
    model is then what it was.
    """
    content, tensors = read(path)
    data = content.get("healing")
    if not isinstance(data, dict):
        raise _foreign(path, "it is no checkpoint of tnc.heal")
    progress: dict[str, Any] = data["progress"]
    numbers = _numbers(model)
    wanted = {f"{_MODEL}.{name}" for name in numbers}
    found = {name for name in tensors if name.startswith(f"{_MODEL}.")}
    if progress.get("identity") != identity or wanted != found:
        raise _foreign(path, "it is a checkpoint of another model, or of another healing")
    whole = {
        name: torch.view_as_complex(t) if name in data[_COMPLEX] else t
        for name, t in tensors.items()
    }
    for name, tensor in numbers.items():
        if tensor.shape != whole[f"{_MODEL}.{name}"].shape:
            raise _foreign(path, f"{name!r} has another shape there")
    with torch.no_grad():
        for name, tensor in numbers.items():
            tensor.copy_(whole[f"{_MODEL}.{name}"])
    state: dict[int, dict[str, Any]] = {int(k): {**kept} for k, kept in data["plain"].items()}
    kept: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        kind, _, rest = name.partition(".")
        number, _, key = rest.partition(".")
        if kind == _KEPT:
            kept[rest] = tensor
        elif kind == _OPTIMIZER:
            state.setdefault(int(number), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return progress, kept


def _numbers(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _foreign(path: Path, what: str) -> FileFormatError:
    return FileFormatError(
        what, where=str(path), fix="give another checkpoint=, or remove the file to start anew"
    )
