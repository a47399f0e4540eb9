"""Einsum equations, as NumPy and opt_einsum write them → labels of each operand and of the output.

In: a string with commas, or operands interleaved with lists of labels. Out: an Equation in which
ellipses are spelled out, sizes are known, and axes of size 1 that broadcast are marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tncompiler.ir.errors import (
    ArgumentCountError,
    EquationError,
    RepeatedOutputIndex,
    ShapeError,
    SizeClash,
    UnknownOutputIndex,
)

Label = Hashable
Term = tuple[Label, ...]  # `...` may stand in a term for axes that are not named
Form = str | tuple[tuple[Term, ...], Term | None]  # an equation as it was given, hashable


@dataclass(frozen=True, slots=True)
class Dots:
    """The label of an axis under an ellipsis, counted from the last one."""

    position: int

    def __str__(self) -> str:
        return f"…{self.position}"


@dataclass(frozen=True, slots=True)
class Equation:
    """Labels of each operand's axes and of the output's, and the size of each label.

    ``broadcast`` lists, for each operand, the axes of size 1 whose label has another size.
    """

    inputs: tuple[Term, ...]
    output: Term
    sizes: dict[Label, int]
    broadcast: tuple[tuple[int, ...], ...]


def split_operands(
    arguments: Sequence[Any],
) -> tuple[tuple[Term, ...], Term | None, tuple[Any, ...]]:
    """The terms, the output term if one is given, and the operands, of either form of a call."""
    if not arguments:
        raise ArgumentCountError("einsum is called without arguments", fix='einsum("ij,jk", a, b)')
    if isinstance(arguments[0], str):
        terms, output = parse_text(arguments[0])
        operands = tuple(arguments[1:])
    else:
        terms, output, operands = _interleaved(arguments)
    if len(operands) != len(terms):
        raise ArgumentCountError(
            f"the equation has {len(terms)} terms, but {len(operands)} operands are given",
            where=f"the equation {show_terms(terms, output)!r}",
            fix="give one operand for each term between the commas",
        )
    return terms, output, operands


def terms_of(form: Form, count: int) -> tuple[tuple[Term, ...], Term | None]:
    """The terms of an equation in either form, for so many operands."""
    if not isinstance(form, str):
        return form
    terms, output, _ = split_operands((form, *range(count)))
    return terms, output


def parse_text(text: str) -> tuple[tuple[Term, ...], Term | None]:
    """The terms of an equation in a string; the output is None where it is implicit."""
    if not isinstance(text, str):
        raise EquationError(f"an equation is a string, not {text!r:.60}", fix='write "ij,jk->ik"')
    left, arrow, right = "".join(text.split()).partition("->")
    terms = tuple(_parse_term(term, text) for term in left.split(","))
    if "," in right:
        raise EquationError(
            "the output of an equation is one term, without commas",
            where=f"the equation {text!r:.80}",
            fix="compute several outputs with several calls, or with tnc.compile",
        )
    return terms, _parse_term(right, text) if arrow else None


def _parse_term(term: str, text: str) -> Term:
    before, dots, after = term.partition("...")
    for character in before + after:
        if character in ".->":
            raise EquationError(
                f"there is a stray {character!r} in the term {term!r}",
                where=f"the equation {text!r:.80}",
                fix='one "->" before the output, "..." for unnamed axes, commas between terms',
            )
    return (*before, *((...,) if dots else ()), *after)


def _interleaved(
    arguments: Sequence[Any],
) -> tuple[tuple[Term, ...], Term | None, tuple[Any, ...]]:
    count = len(arguments) // 2
    terms = tuple(_label_list(arguments[2 * k + 1]) for k in range(count))
    output = _label_list(arguments[-1]) if len(arguments) % 2 else None
    return terms, output, tuple(arguments[2 * k] for k in range(count))


def _label_list(labels: Any) -> Term:
    try:
        term = tuple(labels)
        hash(term)
    except TypeError:
        raise EquationError(
            f"operands and lists of labels alternate, but {type(labels).__name__} is no such list",
            fix="write einsum(a, [0, 1], b, [1, 2], [0, 2]), or begin with an equation string",
        ) from None
    is_equation = isinstance(labels, str) and any(mark in labels for mark in ",->.")
    if is_equation or sum(label is ... for label in term) > 1:
        raise EquationError(
            f"{labels!r:.60} is no list of labels", fix="give a list with at most one Ellipsis"
        )
    return term


def resolve(
    terms: Sequence[Term], output: Term | None, shapes: Sequence[Sequence[int]]
) -> Equation:
    """Ellipses spelled out, the implicit output found, sizes read off the shapes and checked."""
    where = f"the equation {show_terms(terms, output)!r}"
    ranks = [
        _dots_rank(k, term, shape, where) for k, (term, shape) in enumerate(_zip(terms, shapes))
    ]
    inputs = tuple(_spelled(term, rank) for term, rank in _zip(terms, ranks))
    if output is None:
        out = implicit_output(inputs, where)
    else:
        out = _spelled(output, max(ranks, default=0))
        _check_output(out, inputs, where)
    sizes = _sizes(inputs, shapes, where)
    broadcast = tuple(
        tuple(axis for axis, label in enumerate(term) if shape[axis] == 1 != sizes[label])
        for term, shape in _zip(inputs, shapes)
    )
    return Equation(inputs, out, sizes, broadcast)


def _zip(a: Iterable[Any], b: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(a, b, strict=True)


def _dots_rank(position: int, term: Term, shape: Sequence[int], where: str) -> int:
    """How many axes the ellipsis of a term stands for."""
    named = sum(label is not ... for label in term)
    if len(shape) < named or (len(shape) > named and ... not in term):
        raise ShapeError(
            f"operand {position} has {len(shape)} axes, shape {tuple(shape)}, but its term "
            f"{show_terms([term], None)!r} names {named}",
            where=where,
            fix='name every axis, or stand "..." for those without a name',
        )
    return len(shape) - named


def _spelled(term: Term, rank: int) -> Term:
    return tuple(
        own
        for label in term
        for own in (
            [Dots(position) for position in range(rank, 0, -1)] if label is ... else [label]
        )
    )


def implicit_output(inputs: Sequence[Term], where: str) -> Term:
    """NumPy's rule: axes under ellipses, then the labels that stand once, sorted."""
    dots = {label for term in inputs for label in term if isinstance(label, Dots)}
    counts = Counter(label for term in inputs for label in term if not isinstance(label, Dots))
    once: list[Any] = [label for label, count in counts.items() if count == 1]
    try:
        named = sorted(once)
    except TypeError:
        raise EquationError(
            f"the labels {once!r:.80} have no order, so the output's axes have none",
            where=where,
            fix="give the output's labels as the last list",
        ) from None
    return (*sorted(dots, key=lambda d: -d.position), *named)


def _check_output(output: Term, inputs: Sequence[Term], where: str) -> None:
    known = {label for term in inputs for label in term}
    for label, count in Counter(output).items():
        if count > 1:
            raise RepeatedOutputIndex(
                f"index {str(label)!r} stands {count} times in the output",
                where=where,
                fix="name it once; a diagonal matrix is tnc.contract with a tnc.delta",
            )
        if label not in known:
            raise UnknownOutputIndex(
                f"index {str(label)!r} of the output is on no operand",
                where=where,
                fix="leave it out, or put it on an operand",
            )


def _sizes(inputs: Sequence[Term], shapes: Sequence[Sequence[int]], where: str) -> dict[Label, int]:
    sizes: dict[Label, int] = {}
    found: dict[Label, tuple[int, int]] = {}
    for position, (term, shape) in enumerate(_zip(inputs, shapes)):
        own: dict[Label, int] = {}
        for axis, (label, size) in enumerate(_zip(term, shape)):
            known = own.get(label, sizes.get(label, 1) if size != 1 else size)
            if known not in (size, 1) or own.setdefault(label, size) != size:
                at, on = (position, term.index(label)) if label in own else found[label]
                raise SizeClash(
                    f"index {str(label)!r} has size {known} on operand {at} (axis {on}) but size "
                    f"{size} on operand {position} (axis {axis})",
                    where=where,
                    fix="give both the same size, or name the axes differently; size 1 broadcasts "
                    "between operands",
                )
            if label not in sizes or sizes[label] == 1:
                sizes[label], found[label] = size, (position, axis)
    return sizes


def show_terms(terms: Sequence[Term], output: Term | None) -> str:
    """The equation as text, for messages; labels of more than one character in brackets."""

    def shown(term: Term) -> str:
        return "".join(
            "..." if label is ... else text if len(text := str(label)) == 1 else f"[{text}]"
            for label in term
        )

    text = ",".join(map(shown, terms))
    return text if output is None else f"{text}->{shown(output)}"
