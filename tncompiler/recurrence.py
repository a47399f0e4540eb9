"""Recurrence: a cell, traced once, applied along an index; LSTM and GRU cells.

In: expressions. Out: expressions, whose source and plan do not grow with the index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tncompiler.container import Container
from tncompiler.ir import algebra
from tncompiler.ir import expressions as ex
from tncompiler.ir.errors import ArgumentError, ScanError, StateMismatch, UnknownIndex
from tncompiler.ir.expressions import Expr, Leaf, walk
from tncompiler.ir.index import Index
from tncompiler.ir.lower import name_clash
from tncompiler.ir.origin import call_site
from tncompiler.ir.scans.make import scan_results, slot
from tncompiler.ir.scope import describe

Cell = Callable[..., Any]
Gates = Callable[[Expr], Sequence[Expr]]

_depth: ContextVar[int] = ContextVar("tncompiler_scan_depth", default=0)


def scan(
    cell: Cell, init: Any, inputs: Any = None, *, over: Index, reverse: bool = False
) -> tuple[Any, Any]:
    """Apply a cell at every position of an index in turn, carrying states along.

    ``cell(states, slices)`` is called once, with expressions, and returns the states after one
    position and its outputs (None for none); without inputs it is called as ``cell(states)``.
    ``init`` are the states before the first position: an expression, tuple or dict, and so come
    `states`. ``inputs``, in such a container too, have the index `over`; their `slices` do not.
    Other tensors that the cell uses, parameters above all, it reads whole at every position.
    Returns the last states, and the outputs with `over` as their first index. ``reverse`` starts at
    the last position; outputs stay at the position they are made at.

    Source, plan and compile time do not depend on the size of `over`. Raises: StateMismatch where
    the cell gives states back with other indices; UnknownIndex for an input without `over`.
    """
    if not isinstance(over, Index):
        raise ArgumentError(f"over= is {over!r:.40}", where=call_site(), fix="give an index")
    states = _container("init", init)
    given = None if inputs is None else _container("inputs", inputs)
    slices = () if given is None else given.expressions
    _check_arguments(states.expressions, slices, over)
    with _inside() as depth:
        slots = [_state_slot(s, k, depth) for k, s in enumerate(states.expressions)]
        slots += [_slice_slot(s, k, depth, over) for k, s in enumerate(slices)]
        count = len(states.expressions)
        packed = [states.pack(slots[:count])]
        packed += [] if given is None else [given.pack(slots[count:])]
        after, outputs = _pair(cell(*packed), cell)
    body = _same_states(states, after, cell)
    made = None if outputs is None else _container("the cell's outputs", outputs)
    body += () if made is None else made.expressions
    results = _results(body, (*states.expressions, *slices), slots, count, over, reverse)
    final = states.pack(results[:count])
    return final, None if made is None else made.pack(results[count:])


def _results(
    body: tuple[Expr, ...],
    arguments: tuple[Expr, ...],
    slots: list[Leaf],
    count: int,
    over: Index,
    reverse: bool,
) -> tuple[Expr, ...]:
    """The scan's results; leaves that the cell uses beside its slots are arguments as they are."""
    captured = _captured(body, {leaf.name for leaf in slots})
    axes = [argument.indices.index(over) for argument in arguments[count:]]
    node = ex.Scan(
        (),
        over,
        (*arguments, *captured.values()),
        (*slots, *captured.values()),
        body,
        count,
        (*(None,) * count, *axes, *(None,) * len(captured)),
        (*(None,) * count, *(0,) * (len(body) - count)),
        bool(reverse),
    )
    return scan_results(node)


def _captured(body: tuple[Expr, ...], own: set[str]) -> dict[str, Leaf]:
    """Leaves that a cell uses beside its slots, by name. Raises NameClash on two of one name."""
    found: dict[str, Leaf] = {}
    for node in walk(*body):
        if isinstance(node, Leaf) and node.name not in own:
            first = found.setdefault(node.name, node)
            if first.digest != node.digest:
                raise name_clash(first, node)
    return found


@contextmanager
def _inside() -> Iterator[int]:
    """How deep in cells we are: names of slots tell cells within cells apart."""
    token = _depth.set(_depth.get() + 1)
    try:
        yield _depth.get()
    finally:
        _depth.reset(token)


def _container(what: str, value: Any) -> Container:
    try:
        return Container.of(value)
    except ArgumentError as error:
        raise ArgumentError(
            error.what.replace("the outputs are", f"{what} is").replace("an output", what),
            where=call_site(),
            fix="give an expression, or a non-empty tuple or dict of expressions",
        ) from None


def _check_arguments(states: Sequence[Expr], inputs: Sequence[Expr], over: Index) -> None:
    for state in states:
        if over in state.indices:
            raise ScanError(
                f"{describe(state)} is a state, but has the index {over.name!r} that is scanned",
                where=f"the scan at {call_site()}",
                fix="a state has the indices of one position; give what has more as inputs",
            )
    for value in inputs:
        if over not in value.indices:
            raise UnknownIndex(
                f"{describe(value)} is an input of the scan over {over}, but has the indices "
                f"({', '.join(map(str, value.indices))})",
                where=f"the scan at {call_site()}",
                fix="inputs have that index; use others inside the cell as they are",
            )


def _state_slot(state: Expr, number: int, depth: int) -> Leaf:
    return slot(f"state {number} of scan {depth}", state.indices)


def _slice_slot(value: Expr, number: int, depth: int, over: Index) -> Leaf:
    left = [index for index in value.indices if index != over]
    return slot(f"slice {number} of scan {depth}", left)


def _pair(returned: Any, cell: Cell) -> tuple[Any, Any]:
    if isinstance(returned, tuple) and len(returned) == 2:
        return returned
    raise StateMismatch(
        f"the cell {_named(cell)} returns a {type(returned).__name__}, not states and outputs",
        where=f"the scan at {call_site()}",
        fix="return a pair: the states in the container they came in, and outputs or None",
    )


def _named(cell: Cell) -> str:
    return repr(getattr(cell, "__qualname__", type(cell).__name__))


def _same_states(states: Container, after: Any, cell: Cell) -> tuple[Expr, ...]:
    """The states that the cell gives back, in the order of indices in which it got them."""
    try:
        new = states.unpack(after)
    except ArgumentError:
        raise StateMismatch(
            f"the cell {_named(cell)} gets {len(states.expressions)} states in a {states.kind}, "
            f"but returns a {type(after).__name__}",
            where=f"the scan at {call_site()}",
            fix="return the states in the container they came in",
        ) from None
    for number, (before, value) in enumerate(zip(states.expressions, new, strict=True)):
        if not isinstance(value, Expr) or set(value.indices) != set(before.indices):
            raise _mismatch(number, before, value, cell)
    pairs = zip(states.expressions, new, strict=True)
    return tuple(algebra.transpose(value, before.indices) for before, value in pairs)


def _mismatch(number: int, before: Expr, value: Any, cell: Cell) -> StateMismatch:
    found = f"is a {type(value).__name__}"
    if isinstance(value, Expr):
        found = f"has the indices ({', '.join(map(str, value.indices))}) at {value.origin}"
    return StateMismatch(
        f"state {number} of the scan has the indices ({', '.join(map(str, before.indices))}), but "
        f"the one that the cell {_named(cell)} gives back {found}",
        where=f"the scan at {call_site()}",
        fix="give back the same indices with the same sizes: sum over the others, rename them, or "
        "start from a state that has them",
    )


# ---------------------------------------------------------------------------- cells


def lstm_cell(
    from_input: Gates, from_hidden: Gates, project: Callable[[Expr], Expr] | None = None
) -> Cell:
    """The cell of an LSTM, for `scan` with the states (h, c) and one input; its output is h.

    ``from_input`` and ``from_hidden`` make of the input and of h what goes into the gates: input,
    forget, cell, output, in torch's order. Each may be any network, with a bias or without.
    ``project`` makes h smaller than c, as torch's proj_size does.
    Source: Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735, as torch.nn.LSTM has it.
    """

    def cell(state: tuple[Expr, Expr], value: Expr) -> tuple[tuple[Expr, Expr], Expr]:
        h, c = state
        sums = [a + b for a, b in zip(from_input(value), from_hidden(h), strict=True)]
        i, f, o = (_map("sigmoid", sums[k]) for k in (0, 1, 3))
        c = f * c + i * _map("tanh", sums[2])
        h = o * _map("tanh", c)
        h = h if project is None else project(h)
        return (h, c), h

    return cell


def gru_cell(from_input: Gates, from_hidden: Gates) -> Cell:
    """The cell of a GRU, for `scan` with the state h and one input; its output is h.

    ``from_input`` and ``from_hidden`` make of the input and of h what goes into reset gate, update
    gate and new state, in torch's order: the reset gate multiplies what comes from h.
    Source: Cho et al. 2014, arXiv:1406.1078, as torch.nn.GRU has it.
    """

    def cell(h: Expr, value: Expr) -> tuple[Expr, Expr]:
        (xr, xz, xn), (hr, hz, hn) = from_input(value), from_hidden(h)
        r, z = _map("sigmoid", xr + hr), _map("sigmoid", xz + hz)
        n = _map("tanh", xn + r * hn)
        h = n + z * (h - n)
        return h, h

    return cell


def _map(name: str, value: Expr) -> Expr:
    return algebra.elementwise(name, value)
