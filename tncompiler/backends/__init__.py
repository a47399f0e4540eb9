"""Backends: program → source → callable. To add one: a package, and one line in the table."""

from __future__ import annotations

if __name__ != "tncompiler.backends":
    raise ImportError(
        f"this package was imported as {__name__!r}; the link at the top of the repository is "
        "for reading. Write 'import tncompiler.backends'."
    )

from collections.abc import Callable
from importlib import import_module

from tncompiler.backends.source import Source
from tncompiler.ir.errors import BackendError
from tncompiler.ir.origin import call_site
from tncompiler.ir.program import Program

BACKENDS: dict[str, str] = {
    "numpy": "tncompiler.backends.numpy.emit:emit",
    "torch": "tncompiler.backends.torch.emit:emit",
    "triton": "tncompiler.backends.triton.emit:emit",
}

Emit = Callable[[Program, str, str], Source]


def emitter_of(name: str) -> Emit:
    """The function (program, entry name, precision) → Source of a backend. Raises BackendError."""
    if not isinstance(name, str) or name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise BackendError(
            f"there is no backend {name!r}", where=call_site(), fix=f"choose one of {known}"
        )
    module, attribute = BACKENDS[name].split(":")
    return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
