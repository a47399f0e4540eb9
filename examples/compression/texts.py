"""Real sentences that come with packages: docstrings, to train on and to be judged by."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

WORDS = (6, 24)  # of a sentence
_SENTENCE = r"[A-Z][A-Za-z0-9 ,;'()-]+[.!?]"
T = TypeVar("T")


def sentences(package: str, pattern: str, count: int) -> list[str]:
    """Plain sentences of the files of a package, each once, in a fixed order."""
    found: dict[str, None] = {}
    for text in _texts(package, pattern):
        for part in prose(text):
            found.setdefault(part)
    return _spread([*found], count)


def prose(text: str) -> Iterator[str]:
    """The plain sentences of a text; what holds code or signs is left out."""
    flat = re.sub(r"\s+", " ", text)
    for match in re.finditer(rf"(?<=[.!?] ){_SENTENCE}(?= [A-Z])", flat):
        if _fits(match.group()):
            yield match.group()


def pairs(package: str, count: int) -> list[tuple[str, str]]:
    """The first sentences of the first and second paragraph of docstrings, which say different
    things of one function; each once, in a fixed order."""
    found: dict[str, str] = {}
    for text in _texts(package, "*.py"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first, second = _openings(ast.get_docstring(node) or "")
                if first and second and second not in found.values():
                    found.setdefault(first, second)
    return _spread([*found.items()], count)


def _openings(docstring: str) -> tuple[str, str]:
    """The first plain sentences of two paragraphs; empty where there is none."""
    flat = [re.sub(r"\s+", " ", part) for part in docstring.split("\n\n")[:2]]
    matches = [re.match(_SENTENCE, part) for part in (*flat, "", "")[:2]]
    first, second = (m.group() if m is not None and _fits(m.group()) else "" for m in matches)
    return first, second


def _fits(sentence: str) -> bool:
    return WORDS[0] <= len(sentence.split()) <= WORDS[1]


def _texts(package: str, pattern: str) -> Iterator[str]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is missing\n  fix: pip install it")
    for path in sorted(Path(spec.origin).parent.rglob(pattern)):
        yield path.read_text(encoding="utf-8", errors="ignore")


def _spread(every: Sequence[T], count: int) -> list[T]:
    """So many, from all over."""
    return [*every[:: max(len(every) // count, 1)][:count]]


def batches(
    pieces: Callable[[Sequence[str]], Tensor], lines: Sequence[str], size: int
) -> list[Tensor]:
    """Sentences of about one length together, the batches in a mixed order."""
    ordered = sorted(lines, key=len)
    made = [pieces(ordered[k : k + size]) for k in range(0, len(ordered), size)]
    order = torch.randperm(len(made), generator=torch.Generator().manual_seed(0))
    return [made[k] for k in order]
