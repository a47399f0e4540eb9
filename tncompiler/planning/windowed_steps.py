"""Write the steps of a network that use windows: convolutions, and views through windows.

In: one or two tensors with the labels of their axes, and the windows to use. Out: one tensor, its
steps appended to a builder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tncompiler.ir.builder import Builder
from tncompiler.ir.convolution import convolution_form, joined
from tncompiler.ir.program import Convolve, Labels, Relation, Value
from tncompiler.ir.sizes import Size


@dataclass
class Term:
    """A tensor of a network, with the labels of its axes."""

    value: Value
    labels: Labels


class Windowing:
    """Uses windows on the tensors of one network; ``sizes`` and ``names`` are those of labels."""

    def __init__(
        self, builder: Builder, sizes: Mapping[int, Size], names: Mapping[int, str]
    ) -> None:
        self.builder, self.sizes, self.names = builder, sizes, names

    def together(self, relations: Sequence[Relation], a: Term, b: Term, kept: Labels) -> Term:
        """Two tensors contracted with windows: one convolution if possible, else views first."""
        op = Convolve((a.labels, b.labels), kept, tuple(relations))
        form = convolution_form(op)
        if form is not None:
            return self._convolve(a, b, joined(form.out_blocks), op.relations)
        summed = []
        for relation in relations:
            source, out, kernel = relation.labels
            if source in a.labels:
                a = self.alone(relation, a, (*b.labels, *kept))
            elif source in b.labels:
                b = self.alone(relation, b, (*a.labels, *kept))
            else:
                summed.append(relation)
                kept = tuple(label for label in kept if label != source)
                kept = (*kept, *(label for label in (out, kernel) if label not in kept))
        made = self.contract([self._met(a, b, kept), self._met(b, a, kept)], kept)
        for relation in summed:
            made = self.fold(relation, made)
        return made

    def _met(self, term: Term, other: Term, kept: Labels) -> Term:
        """The tensor summed over what neither the other tensor nor the result carries."""
        wanted = tuple(label for label in term.labels if label in (*other.labels, *kept))
        return term if wanted == term.labels else self.contract([term], wanted)

    def alone(self, relation: Relation, term: Term, output: Labels) -> Term:
        """One tensor with a window: seen through it, or summed into what it is a window of."""
        seen = relation.labels[0] in term.labels
        return self._seen(relation, term, output) if seen else self._summed(relation, term)

    def _seen(self, relation: Relation, term: Term, output: Labels) -> Term:
        """A tensor seen through a window; where one of windows and taps is summed, no view."""
        source, out, kernel = relation.labels
        wanted = [label for label in (out, kernel) if label in (*output, *term.labels)]
        if len(wanted) != 1 or wanted[0] in term.labels:
            return self.unfold(relation, term)
        bare = self._ones(kernel if wanted == [out] else out, term)
        kept = (*(label for label in term.labels if label != source), *wanted)
        return self._convolve(term, bare, kept, (relation,))

    def _summed(self, relation: Relation, term: Term) -> Term:
        """A tensor of windows and taps, or of one of them, summed into their source."""
        source, out, kernel = relation.labels
        missing = [label for label in (out, kernel) if label not in term.labels]
        if len(missing) == 2:
            term = self.contract([term, self._ones(out, term)], (*term.labels, out))
        if not missing:
            return self.fold(relation, term)
        kept = (*(label for label in term.labels if label not in (out, kernel)), source)
        return self._convolve(term, self._ones(missing[-1], term), kept, (relation,))

    def unfold(self, relation: Relation, term: Term) -> Term:
        """The tensor with windows and taps in place of the source."""
        source, out, kernel = relation.labels
        axis = term.labels.index(source)
        names = (self.names[out], self.names[kernel])
        sizes = (self.sizes[out], self.sizes[kernel])
        value = self.builder.unfold(term.value, axis, relation.geometry, sizes, names)
        labels = (*term.labels[:axis], out, kernel, *term.labels[axis + 1 :])
        distinct = tuple(dict.fromkeys(labels))
        made = Term(value, labels)
        return made if distinct == labels else self.contract([made], distinct)

    def fold(self, relation: Relation, term: Term) -> Term:
        """The tensor with the source in place of windows and taps."""
        source, out, kernel = relation.labels
        rest = tuple(label for label in term.labels if label not in (out, kernel))
        term = self.contract([term], (*rest, out, kernel))
        size, name = self.sizes[source], self.names[source]
        value = self.builder.fold(term.value, len(rest), relation.geometry, size, name)
        return Term(value, (*rest, source))

    def _convolve(self, a: Term, b: Term, kept: Labels, relations: tuple[Relation, ...]) -> Term:
        op = Convolve((a.labels, b.labels), kept, relations)
        shape, axes = [self.sizes[k] for k in kept], [self.names[k] for k in kept]
        return Term(self.builder.convolve((a.value, b.value), op, shape, axes), kept)

    def contract(self, terms: Sequence[Term], kept: Labels) -> Term:
        """A contraction without windows."""
        value = self.builder.contract(
            [term.value for term in terms],
            [term.labels for term in terms],
            kept,
            [self.sizes[label] for label in kept],
            [self.names[label] for label in kept],
        )
        return Term(value, kept)

    def _ones(self, label: int, like: Term) -> Term:
        shape, axes = (self.sizes[label],), (self.names[label],)
        return Term(self.builder.structural((0,), shape, axes, (like.value,)), (label,))
