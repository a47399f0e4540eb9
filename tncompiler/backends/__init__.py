"""Backends: program → source → callable. To add one: a package, and one line in the table."""

from __future__ import annotations

if __name__ != "tncompiler.backends":
    raise ImportError(
        f"this package was imported as {__name__!r}; the link at the top of the repository is "
        "for reading. Write 'import tncompiler.backends'."
    )

from importlib import import_module
from typing import Any, Protocol

from tncompiler.backends.source import Code, Source, load
from tncompiler.ir.errors import BackendError
from tncompiler.ir.origin import call_site
from tncompiler.ir.program import Program

BACKENDS: dict[str, str] = {
    "numpy": "tncompiler.backends.numpy.emit:emit",
    "torch": "tncompiler.backends.torch.emit:emit",
    "triton": "tncompiler.backends.triton.emit:emit",
}

LOADERS: dict[str, str] = {  # of backends that have more than one source for a program
    "triton": "tncompiler.backends.triton.replanning:Replanned",
}


class Emit(Protocol):
    """Writes a program in a backend.

    ``reuses``: large arrays may take memory that earlier ones have left; nothing to a backend whose
    library keeps what is freed.
    """

    def __call__(
        self, program: Program, entry: str, precision: str = "ieee", *, reuses: bool = False
    ) -> Source: ...


def emitter_of(name: str) -> Emit:
    """What writes a backend's sources. Raises BackendError."""
    if not isinstance(name, str) or name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise BackendError(
            f"there is no backend {name!r}", where=call_site(), fix=f"choose one of {known}"
        )
    return _found(BACKENDS[name])  # type: ignore[no-any-return]


def code_of(
    name: str, program: Program, entry: str, precision: str, *, reuses: bool = False
) -> Code:
    """A program's code in a backend, ready to run. ``reuses``: see `Emit`. Raises BackendError."""
    if name in LOADERS:
        return _found(LOADERS[name])(program, entry, precision)  # type: ignore[no-any-return]
    return load(emitter_of(name)(program, entry, precision, reuses=reuses))


def _found(place: str) -> Any:
    module, attribute = place.split(":")
    return getattr(import_module(module), attribute)
