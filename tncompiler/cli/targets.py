"""What a NETWORK on the command line means: an equation, a Python attribute, a saved layer."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from tncompiler.api import compile as compile_network
from tncompiler.inspection import Inspection
from tncompiler.ir.errors import ArgumentError, TncError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.interchange.equations import from_einsum
from tncompiler.planning.options import PlanOptions

_SAVED = ".safetensors"


@dataclass(frozen=True, slots=True)
class Target:
    """A compiled network, and the sizes that are still to be given to its methods."""

    network: Inspection
    sizes: Mapping[str, int]


def read_network(target: str, sizes: Mapping[str, int], plan: PlanOptions | None = None) -> Target:
    """The compiled network that a target means, with the sizes that it leaves open."""
    found = read_target(target)
    if isinstance(found, Expr | tuple | dict):
        return Target(compiled(found, sizes, plan), {})
    inner = _network_of(found)
    if inner is not None:
        return Target(inner, sizes)
    raise ArgumentError(
        f"{target!r:.80} is a {type(found).__name__}, which is no network",
        fix="name an expression, a compiled network or a layer of tnc.nn",
    )


def _network_of(found: Any) -> Inspection | None:
    """A compiled network, or that of a layer of tnc.nn."""
    inner = found if isinstance(found, Inspection) else getattr(found, "cores", None)
    return inner if isinstance(inner, Inspection) else None


def compiled(outputs: Any, sizes: Mapping[str, int], plan: PlanOptions | None = None) -> Inspection:
    """An expression compiled for NumPy; those of its sizes that are not given stay free."""
    network: Inspection = compile_network(
        outputs, sizes=sizes, framework="numpy", plan=plan, seed=0
    )
    return network


def read_target(target: str) -> Any:
    """The object that a target means. Python files are executed."""
    place, colon, name = target.rpartition(":")
    if not colon:
        if _is_equation(target):
            return from_einsum(target)
        if Path(target).is_file():
            return _whole_file(Path(target))
        raise _unknown(target)
    if place.endswith(_SAVED):
        return _layer(Path(place), name)
    found = _attribute(_module(place), name, target)
    with _failing_in(Path(place)):
        return _called(found, target)


def read_model(target: str) -> Any:
    """A torch model: an attribute of Python code, or a saved model."""
    from torch import nn

    found = read_target(target)
    if not isinstance(found, nn.Module):
        raise ArgumentError(
            f"{target!r:.80} is a {type(found).__name__}, which is no torch module",
            fix="name a module, or a function that makes one",
        )
    return found


def _is_equation(text: str) -> bool:
    """Whether text is an einsum equation rather than the name of a file."""
    return "->" in text or ("," in text and not Path(text).exists())


def _unknown(target: str) -> ArgumentError:
    return ArgumentError(
        f"{target!r:.80} is no equation, and no file of that name is there",
        fix='give "ij,jk->ik", "file.py:name", "package.module:name" or a saved model',
    )


def _whole_file(path: Path) -> Any:
    if path.suffix == _SAVED:
        return _saved(path)
    raise ArgumentError(
        f"{str(path)!r:.80} does not say which of its networks is meant",
        fix=f"name it: {path}:network",
    )


def _saved(path: Path) -> Any:
    from tncompiler.models.files.load import load

    if not path.is_file():
        raise _unknown(str(path))
    return load(None, path)


def _layer(path: Path, name: str) -> Any:
    """A layer as the file describes it, with numbers of its own: the model need not be known."""
    from tncompiler.models.files.descriptions import read_layer
    from tncompiler.models.files.sealed import read

    if not path.is_file():
        raise _unknown(str(path))
    layers = {each: data for data in read(path)[0]["layers"] for each in data["names"]}
    if name not in layers:
        raise ArgumentError(
            f"the model has no tensorized layer {name!r:.60}",
            where=str(path),
            fix=f"it has {', '.join(list(layers)[:8])}",
        )
    return read_layer(layers[name], None)


def _module(place: str) -> ModuleType:
    """A module by its file or its name; what it imports may lie beside it."""
    path = Path(place)
    beside = str(path.parent.resolve()) if path.suffix == ".py" else str(Path.cwd())
    if beside not in sys.path:
        sys.path.insert(0, beside)
    if path.suffix != ".py":
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ArgumentError(
                f"{place!r:.80} cannot be imported: {error}",
                fix="name a file or an installed module",
            ) from None
    if not path.is_file():
        raise _unknown(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise _unknown(place)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    with _failing_in(path):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _failing_in(path: Path) -> Iterator[None]:
    """Say of an error in the user's own file where it arose."""
    try:
        yield
    except TncError:
        raise
    except Exception as error:
        calls = traceback.extract_tb(error.__traceback__)
        lines = [call.lineno for call in calls if Path(call.filename).resolve() == path.resolve()]
        raise ArgumentError(
            f"{str(path)!r:.80} does not run: {type(error).__name__}: {error}",
            where=f"line {lines[-1]}" if lines else None,
            fix="run it in Python to see the whole traceback",
        ) from error


def _attribute(module: ModuleType, name: str, target: str) -> Any:
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError:
        kinds = (Expr, Inspection)
        known = [key for key, value in vars(module).items() if isinstance(value, kinds)]
        shown = f"it has {', '.join(known[:8])}" if known else "name one of its networks"
        raise ArgumentError(f"{target!r:.80}: there is no {name!r:.40}", fix=shown) from None


def _called(found: Any, target: str) -> Any:
    """What a function or class without arguments makes; anything else as it is."""
    if not inspect.isfunction(found) and not inspect.isclass(found):
        return found
    needed = [
        p.name
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise ArgumentError(
            f"{target!r:.80} needs {', '.join(needed)}",
            fix="name a network, or a function that needs nothing",
        )
    return found()
