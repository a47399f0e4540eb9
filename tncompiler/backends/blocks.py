"""Find runs of equal steps, as layers make them, so that generated code says each once.

In: a scheduled program. Out: bodies, programs of their own, and which steps are a call of which
body on which values. Programs are planned, differentiated and laid out as a whole; that layers come
out alike is only noticed here, by looking for steps that repeat at a distance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from tncompiler.ir.program import (
    Argument,
    Literal,
    Loop,
    Op,
    Program,
    Scan,
    Step,
    Value,
    fresh_name,
    operand_values,
)

LEAST_STEPS = 8  # of a body
_MOST_PERIODS = 12  # that are looked at
_MOST_KINDS = 4  # of runs in one program
GIVEN = "given"  # the kind of a body's argument that nobody needs after the body's last use


@dataclass(frozen=True, slots=True)
class Block:
    """Steps from `start` to before `stop`, literals apart, as a call of the body of that number.

    ``arguments`` and ``results`` are values of the program, in the order of the body's.
    """

    start: int
    stop: int
    body: int
    arguments: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The bodies, and the blocks in the order of the program."""

    bodies: tuple[Program, ...] = ()
    blocks: tuple[Block, ...] = ()


def find_blocks(program: Program) -> Blocks:
    """Equal runs of steps that follow one another; none where that saves little."""
    finder = _Finder(program)
    spans = list(finder.spans())
    return finder.blocks(sorted(spans)) if spans else Blocks()


Span = tuple[int, int]  # positions among the steps that are no literals
Key = tuple[tuple[int, tuple[object, ...]], ...]


class _Finder:
    def __init__(self, program: Program) -> None:
        self.program = program
        steps = enumerate(program.steps)
        self.positions = [k for k, step in steps if not isinstance(step.op, Literal)]
        self.steps = [program.steps[k] for k in self.positions]
        self.literals = {s.out.name: s for s in program.steps if isinstance(s.op, Literal)}
        self.made = {step.out.name: place for place, step in enumerate(self.steps)}
        self.last_read = {n: p for p, s in enumerate(self.steps) for n in s.operands}
        self.last_read.update(dict.fromkeys(program.outputs, len(self.steps)))
        numbers: dict[object, int] = {}
        self.tokens = [numbers.setdefault(self._token(s), len(numbers)) for s in self.steps]

    def _token(self, step: Step) -> object:
        """What a step does, whatever its values are called."""
        operands = [
            (type(literal.op.value), literal.op.value, value.dtype)  # type: ignore[union-attr]
            if (literal := self.literals.get(value.name))
            else (value.shape, value.dtype)
            for value in operand_values(self.program, step)
        ]
        return _nameless(step.op), step.out.shape, step.out.dtype, tuple(operands)

    # ------------------------------------------------------------------ where steps repeat

    def spans(self) -> Iterator[Span]:
        """Runs of steps of one length after another, of which several are alike."""
        tokens: list[object] = [*self.tokens]
        for _ in range(_MOST_KINDS):
            best: tuple[int, int, list[Span]] = (0, 0, [])
            for period in _periods(tokens):
                runs = list(_runs(tokens, period))
                saved = sum(((stop - start) // period - 1) * period for start, stop in runs)
                best = max(best, (saved, -period, runs))
            saved, period, runs = best[0], -best[1], best[2]
            if not saved:
                return
            for start, stop in runs:
                yield from self._cut(start, stop, period)
                for place in range(start, stop):
                    tokens[place] = (place,)  # equal to no other

    def _cut(self, start: int, stop: int, period: int) -> Iterator[Span]:
        """A run in spans of a period, beginning where fewest values are alive."""
        count = (stop - start) // period
        alive = self._alive()

        def crossing(first: int) -> int:
            return sum(alive[first + k * period] for k in range(count + 1))

        first = min(range(start, stop - count * period + 1), key=crossing)
        for k in range(count):
            yield first + k * period, first + (k + 1) * period

    def _alive(self) -> list[int]:
        """Values alive before each step; a loop must not be cut from what is picked out of it."""
        changes = [0] * (len(self.steps) + 2)
        for name, place in self.made.items():
            weight = 10**6 if isinstance(self.steps[place].op, Loop | Scan) else 1
            changes[place + 1] += weight
            changes[self.last_read.get(name, place) + 1] -= weight
        total, found = 0, []
        for change in changes:
            total += change
            found.append(total)
        return found

    # ------------------------------------------------------------------ bodies and calls

    def blocks(self, spans: Sequence[Span]) -> Blocks:
        """Spans with one flow of values share a body, if there are two of them."""
        groups: dict[Key, list[Span]] = {}
        for span in spans:
            groups.setdefault(self._key(span), []).append(span)
        bodies: list[Program] = []
        blocks: list[Block] = []
        for group in groups.values():
            if len(group) > 1:
                body, calls = self._group(group, len(bodies))
                bodies.append(body)
                blocks += calls
        return Blocks(tuple(bodies), tuple(sorted(blocks, key=lambda block: block.start)))

    def _key(self, span: Span) -> Key:
        """The steps with where each of their operands comes from."""
        outside = {name: number for number, name in enumerate(self._outside(span))}

        def source(name: str) -> object:
            if name in self.literals:
                return None
            return outside[name] if name in outside else (self.made[name] - span[0],)

        return tuple(
            (token, tuple(map(source, step.operands)))
            for token, step in zip(self.tokens[slice(*span)], self.steps[slice(*span)], strict=True)
        )

    def _outside(self, span: Span) -> list[str]:
        """The values that are read and not made there, in the order in which they are read."""
        names = chain.from_iterable(step.operands for step in self.steps[slice(*span)])
        found = dict.fromkeys(name for name in names if name not in self.literals)
        return [name for name in found if not self._is_made(name, span)]

    def _is_made(self, name: str, span: Span) -> bool:
        return span[0] <= self.made.get(name, -1) < span[1]

    def _group(self, spans: Sequence[Span], number: int) -> tuple[Program, list[Block]]:
        outside = [self._outside(span) for span in spans]
        results = [
            place
            for place in range(spans[0][1] - spans[0][0])
            if any(self._leaves(span, place) for span in spans)
        ]
        given = [self._are_given(names, spans) for names in zip(*outside, strict=True)]
        if given and all(given):
            given[0] = False  # one stays, to say on which device new tensors go
        body = self._body(spans[0], outside, given, results)
        calls = [
            Block(
                self.positions[span[0]],
                self.positions[span[1] - 1] + 1,
                number,
                tuple(names),
                tuple(self.steps[span[0] + place].out.name for place in results),
            )
            for span, names in zip(spans, outside, strict=True)
        ]
        return body, calls

    def _leaves(self, span: Span, place: int) -> bool:
        """Whether a value that is made there is read elsewhere."""
        return self.last_read.get(self.steps[span[0] + place].out.name, -1) >= span[1]

    def _are_given(self, names: Sequence[str], spans: Sequence[Span]) -> bool:
        """Whether computed values are all read for the last time there; arguments may be among."""
        pairs = [pair for pair in zip(names, spans, strict=True) if pair[0] in self.made]
        return bool(pairs) and all(self.last_read[name] < span[1] for name, span in pairs)

    def _body(
        self,
        span: Span,
        outside: Sequence[Sequence[str]],
        given: Sequence[bool],
        results: Sequence[int],
    ) -> Program:
        """The steps of one span as a program, its arguments called by what their names share."""
        steps = self.steps[slice(*span)]
        names = list(dict.fromkeys(name for step in steps for name in step.operands))
        numbers = [self.literals[name] for name in names if name in self.literals]
        taken = {step.out.name for step in (*numbers, *steps)}
        called: dict[str, str] = {}
        for name, others in zip(outside[0], zip(*outside, strict=True), strict=True):
            called[name] = fresh_name(_shared_name(others), taken)
            taken.add(called[name])
        arguments = [
            Argument(replace(self.program.values[name], name=own), GIVEN if dies else "input")
            for (name, own), dies in zip(called.items(), given, strict=True)
        ]
        renamed = [
            Step(step.out, step.op, tuple(called.get(name, name) for name in step.operands))
            for step in steps
        ]
        made = tuple(steps[place].out.name for place in results)
        return Program(tuple(arguments), (*numbers, *renamed), made)


def _periods(tokens: Sequence[object]) -> list[int]:
    """Distances at which steps repeat most often."""
    last: dict[object, int] = {}
    distances: Counter[int] = Counter()
    for place, token in enumerate(tokens):
        if place - last.get(token, place) >= LEAST_STEPS:
            distances[place - last[token]] += 1
        last[token] = place
    return [distance for distance, _ in distances.most_common(_MOST_PERIODS)]


def _runs(tokens: Sequence[object], period: int) -> Iterator[Span]:
    """Where at least two periods are alike."""
    start = 0
    for place in range(len(tokens) - period + 1):
        ends = place == len(tokens) - period
        if ends or tokens[place] != tokens[place + period]:
            if place - start >= period:
                yield start, place + period
                start = place + period  # two runs share no step
            start = max(start, place + 1)


def _shared_name(names: Sequence[str]) -> str:
    """What dotted names end with alike, that of a weight without its layer's; else the first."""
    parts = [name.split(".") for name in names]
    count = 0
    while all(len(p) > count for p in parts) and len({p[-1 - count] for p in parts}) == 1:
        count += 1
    return ".".join(parts[0][len(parts[0]) - count :]) or names[0]


def _nameless(op: Op) -> Op:
    """The operation; bodies of loops with their values numbered."""
    if not isinstance(op, Loop | Scan):
        return op
    return replace(op, body=_numbered(op.body))


def _numbered(body: Program) -> Program:
    names = {name: f"v{number}" for number, name in enumerate(body.values)}

    def called(value: Value) -> Value:
        return replace(value, name=names[value.name], axes=())

    arguments = tuple(Argument(called(a.value), a.kind) for a in body.arguments)
    steps = tuple(_renamed(step, names, called(step.out)) for step in body.steps)
    return Program(arguments, steps, tuple(names[name] for name in body.outputs), body.equations)


def _renamed(step: Step, names: Mapping[str, str], out: Value) -> Step:
    operands = tuple(names[name] for name in step.operands)
    return Step(out, _nameless(step.op), operands)
