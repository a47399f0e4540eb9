"""Generated code for the profiler: a range around every statement, named after what it makes.

In: a loaded source. Out: a callable of the same results, whose entry has the ranges and which uses
all else (kernels above all) from the source as it is loaded.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from torch.autograd import profiler

from tncompiler.backends.source import Code, Loaded, Source, load
from tncompiler.ir.errors import NoConfiguration

Run = Callable[..., tuple[Any, ...]]
_PLAIN = (ast.Delete, ast.Return, ast.Pass, ast.FunctionDef)  # statements that compute nothing


class Ranged:
    """A program that shows its steps in the profiler, and costs nothing while that is off.

    ``around``: what is done to its function, and to the one with ranges, before they are called.
    """

    def __init__(self, loaded: Code, around: Callable[[Run], Run] | None = None) -> None:
        self._loaded, self._around = loaded, around
        self.run = self._wrapped(loaded.run)
        self._shown: tuple[Loaded, Run] | None = None  # the source is held while it may run

    def _wrapped(self, run: Run) -> Run:
        return run if self._around is None else self._around(run)

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        if not profiler._is_profiler_enabled:
            return self.run(*arguments)
        if self._shown is None:
            shown = load(with_ranges(self._loaded))
            self._shown = shown, self._wrapped(shown.run)
        try:
            return self._shown[1](*arguments)
        except NoConfiguration:  # other code runs here, as the plain call finds out
            self._shown = None
            return self.run(*arguments)


def with_ranges(loaded: Code) -> Source:
    """The source of an entry with ranges, which takes everything else from the loaded one."""
    source = loaded.source
    tree = ast.parse(source.text)
    entry = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == source.entry)
    arguments = [argument.arg for argument in entry.args.args]
    entry.body = [*_in_ranges(entry.body, source.entry, arguments)]
    title = f"tnc.{source.entry}({', '.join(arguments)})"
    entry.body = [_ranged(entry.body, title)]
    held = ", ".join(name for name in _top_names(tree) if name != source.entry)
    text = f"from torch.profiler import record_function\nfrom {loaded.name} import {held}\n\n\n"
    return Source(text + ast.unparse(ast.fix_missing_locations(entry)) + "\n", source.entry)


def _in_ranges(body: list[ast.stmt], entry: str, arguments: list[str]) -> Iterator[ast.stmt]:
    """The statements, each that computes in a range: "tnc.forward t0 = x, G1"."""
    known = set(arguments)
    for statement in body:
        made, read = _names(statement, ast.Store), _names(statement, ast.Load)
        used = [name for name in read if name in known and name not in made]
        known.update(made)
        if isinstance(statement, _PLAIN) or not _computes(statement):
            yield statement
        else:
            what = ", ".join(made) or read[0]  # a launch makes nothing and is its kernel
            yield _ranged([statement], f"tnc.{entry} {what} = {', '.join(used)}")


def _names(statement: ast.stmt, context: type[ast.expr_context]) -> list[str]:
    """Names that a statement writes or reads, in order."""
    names = [n for n in ast.walk(statement) if isinstance(n, ast.Name)]
    return [*dict.fromkeys(name.id for name in names if isinstance(name.ctx, context))]


def _computes(statement: ast.stmt) -> bool:
    """Whether more is done than looking up a size."""
    return any(isinstance(node, ast.Call | ast.BinOp) for node in ast.walk(statement))


def _ranged(body: list[ast.stmt], name: str) -> ast.With:
    call = ast.Call(ast.Name("record_function", ast.Load()), [ast.Constant(name)], [])
    return ast.With([ast.withitem(call)], body)


def _top_names(tree: ast.Module) -> Iterator[str]:
    """Everything that a module defines."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from _names(node, ast.Store)
