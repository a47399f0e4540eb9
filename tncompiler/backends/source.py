"""Generated source as a value, and the one place that executes it."""

from __future__ import annotations

import linecache
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """Generated code: the same program gives the same bytes."""

    text: str
    entry: str

    @property
    def digest(self) -> str:
        return blake2b(self.text.encode(), digest_size=8).hexdigest()

    def __str__(self) -> str:
        return self.text


def load(source: Source) -> Callable[..., Any]:
    """The entry function. Its lines are registered, so that tracebacks show them.

    This is the only `exec` of the package. The text comes from an emitter, which writes nothing but
    its own templates, numbers and vetted identifiers.
    """
    filename = f"<tncompiler {source.entry} {source.digest}>"
    lines = source.text.splitlines(keepends=True)
    linecache.cache[filename] = (len(source.text), None, lines, filename)
    module = types.ModuleType(f"tncompiler.generated_{source.entry}_{source.digest}")
    exec(compile(source.text, filename, "exec"), module.__dict__)
    sys.modules[module.__name__] = module  # torch.compile looks a function's module up by name
    return getattr(module, source.entry)  # type: ignore[no-any-return]
