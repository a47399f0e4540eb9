"""Generated source as a value, and the one place that executes it."""

from __future__ import annotations

import linecache
import sys
import threading
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol


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


class Code(Protocol):
    """What can be run, with its source and the name of the module that holds that."""

    @property
    def source(self) -> Source: ...

    @property
    def name(self) -> str: ...

    @property
    def run(self) -> Callable[..., Any]: ...


class Loaded:
    """Executed source. While it lives, tracebacks show its lines and torch.compile finds it.

    ``run`` is the entry function, ``name`` that of the module which holds it.
    """

    __slots__ = ("__weakref__", "name", "run", "source")

    def __init__(self, source: Source) -> None:
        filename = f"<tncompiler {source.entry} {source.digest}>"
        module = types.ModuleType(f"tncompiler.generated_{source.entry}_{source.digest}")
        lines = source.text.splitlines(
            keepends=True
        )  # first: triton.jit reads its function's lines
        linecache.cache[filename] = (len(source.text), None, lines, filename)
        exec(compile(source.text, filename, "exec"), module.__dict__)
        sys.modules[module.__name__] = module  # torch.compile looks a function's module up by name
        self.source, self.name = source, module.__name__
        self.run: Callable[..., Any] = getattr(module, source.entry)
        weakref.finalize(self, _forget, filename, module.__name__, id(module)).atexit = False


def _forget(filename: str, name: str, module: int) -> None:
    if id(sys.modules.get(name)) == module:  # the same text may have been loaded anew
        del sys.modules[name]
        linecache.cache.pop(filename, None)


_living: weakref.WeakValueDictionary[str, Loaded] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def load(source: Source) -> Loaded:
    """The source, executed once for all who hold the same text.

    This module holds the only `exec` of the package. The text comes from an emitter, which writes
    nothing but its own templates, numbers and vetted identifiers.
    """
    with _lock:
        loaded = _living.get(source.text)
        if loaded is None:
            loaded = _living[source.text] = Loaded(source)
        return loaded
