"""Choose the axis orders of all intermediates together, by predicted time, and place the copies.

In: a scheduled program, integers for its free sizes, rates. Out: the same program with the axes of
its intermediates in the orders, and with the permuting copies, that take least time. Every value is
tried in each order in which its product can come out, forward and adjoint steps alike, until none
wants to change. `passes/layout.py` gives the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product as choices

from tncompiler.ir.builder import Builder
from tncompiler.ir.convolution import form_of, natural_axes
from tncompiler.ir.matmul import is_product, matmul_form
from tncompiler.ir.passes.layout import free_values, order_axes, permuted, reordered, reread
from tncompiler.ir.program import (
    Contract,
    Convolve,
    Labels,
    Map,
    Networks,
    Permute,
    Program,
    Step,
    Value,
    canonical,
    canonical_convolve,
    label_sizes,
    operand_values,
)
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.convolutions import ConvolutionWay, convolution_ways
from tncompiler.planning.layout_groups import Group, joined_groups, own_order
from tncompiler.planning.ways import LONG_COPY_US, Way, Ways

_SWEEPS = 3  # through the program, at most
_TRIED = 6  # orders of one value, those of the fastest ways
_MOST_STEPS = 400  # in a program that is searched


def lay_out(
    program: Program, nominal: Binding, ways: Ways, is_late: Callable[[], bool] = lambda: False
) -> Program | None:
    """The program with axes in the orders that take least time, and copies as steps.

    None if it was late before all copies were placed.
    """
    program = order_axes(program)
    if len(program.steps) <= _MOST_STEPS:
        layout = _Layout(program, nominal, ways, is_late)
        layout.improve()
        if any(isinstance(step.op, Convolve) for step in program.steps):
            turned = _Layout(program, nominal, ways, is_late)
            turned.put_channels_last()
            turned.improve()
            layout = min(layout, turned, key=_Layout.total_us)
        program = layout.program()
    return _Copying(program, nominal, ways).program(is_late)


class _Costs:
    """What a step takes with its arrays in given orders."""

    def __init__(self, nominal: Binding, ways: Ways) -> None:
        self.nominal, self.ways = nominal, ways

    def sizes(self, op: Networks, operands: Iterable[Value], out: Value) -> tuple[int, ...]:
        """By label; those of a contraction count from 0."""
        found = label_sizes(op, operands, out)
        sizes = [found[label] for label in range(len(found))]
        return tuple([n if isinstance(n, int) else evaluate(n, self.nominal) for n in sizes])

    def product_sizes(self, step: Step, operands: Iterable[Value]) -> tuple[int, ...] | None:
        """The sizes of a contraction that a matrix product computes, by label; else None."""
        op = step.op
        if not isinstance(op, Contract) or len(op.inputs) != 2:
            return None
        sizes = self.sizes(op, operands, step.out)
        return sizes if is_product(op, sizes, step.out.dtype) else None

    def step_us(self, step: Step, operands: tuple[Value, ...]) -> float:
        """Microseconds of what depends on the order of axes."""
        op = step.op
        if isinstance(op, Convolve):
            sizes = self.sizes(op, operands, step.out)
            return convolution_ways(op, sizes, step.out.dtype, self.ways)[0].time_us
        if isinstance(op, Contract) and len(op.inputs) == 2:
            sizes = self.sizes(op, operands, step.out)
            if is_product(op, sizes, step.out.dtype):
                return self.ways.best(op, sizes, step.out.dtype).time_us
            return sum(self._aligned_us(k, op.output, sizes, step.out.dtype) for k in op.inputs)
        if isinstance(op, Map):
            sizes = tuple([evaluate(size, self.nominal) for size in step.out.shape])
            out = tuple(range(len(sizes)))
            return sum(self._aligned_us(k, out, sizes, step.out.dtype) for k in op.inputs)
        return 0.0

    def askew(self, own: Labels, order: Labels, out: Value) -> bool:
        """Whether an array with its axes in one order is another one in memory than in another."""
        sizes = tuple([evaluate(size, self.nominal) for size in out.shape])
        return self.ways.permute_us(own, order, sizes, out.dtype) > 0

    def _aligned_us(self, own: Labels, out: Labels, sizes: tuple[int, ...], dtype: str) -> float:
        """What reading an operand elementwise takes more where its axes come otherwise."""
        wanted = tuple([label for label in out if label in own])
        if wanted == own or len(set(own)) < len(own):
            return 0.0
        return self.ways.permute_us(own, wanted, sizes, dtype)


class _Layout:
    """The program while its axes are being reordered."""

    def __init__(
        self, program: Program, nominal: Binding, ways: Ways, is_late: Callable[[], bool]
    ) -> None:
        self.source, self.costs, self.is_late = program, _Costs(nominal, ways), is_late
        self.steps = {step.out.name: step for step in program.steps}
        self.values = dict(program.values)
        self.readers: dict[str, list[str]] = {}
        for step in program.steps:
            for name in dict.fromkeys(step.operands):
                self.readers.setdefault(name, []).append(step.out.name)
        free = free_values(program)
        names = [name for name in self.steps if name in free]
        self.movable = [name for name in names if len(self.values[name].shape) > 1]

    def program(self) -> Program:
        return self.source.with_steps(self.steps.values())

    def total_us(self) -> float:
        """What depends on the order of axes, of all steps together."""
        return sum(map(self._us, self.steps.values()))

    def put_channels_last(self) -> None:
        """Turn all images of convolutions that may be turned.

        One alone would cost copies until its neighbours are turned too.
        """
        for name in self.steps:
            op = self.steps[name].op
            if isinstance(op, Convolve):
                form = form_of(op)
                orders = form.read_orders(last=True)
                for k in form.images:
                    self._turn(self.steps[name].operands[k], op.inputs[k], orders[k])
                self._turn(name, op.output, form.made_order(last=True))

    def _turn(self, name: str, labels: Labels, order: Labels) -> None:
        if name in self.movable and labels != order:
            place = {label: axis for axis, label in enumerate(labels)}
            self._move(name, tuple([place[label] for label in order]))

    def improve(self) -> None:
        """Give values other orders until none wants one any more, or it is late."""
        self._sweep(self.movable)
        groups = joined_groups(self.steps, self.movable)
        for group in [g for g in groups if not self.is_late() and self._place_group(g)]:
            self._sweep({other for name in group for other in (name, *self._around(name))})

    def _sweep(self, names: Collection[str]) -> None:
        """``names``: those that are looked at to begin with."""
        unsettled = set(names)  # what changed since they were looked at
        for sweep in range(_SWEEPS):
            for name in self.movable if sweep % 2 == 0 else reversed(self.movable):
                if name in unsettled and not self.is_late():
                    unsettled.remove(name)
                    if self._place(name):
                        unsettled |= self._around(name)

    def _around(self, name: str) -> set[str]:
        """The values whose best order may depend on that of a value."""
        changed = [name, *self.readers.get(name, ())]
        found = {operand for step in changed for operand in self.steps[step].operands}
        return found.union(changed) - {name}

    def _place_group(self, group: Group) -> bool:
        """Give values that maps join, and of which one is askew, one order; whether that pays."""
        before = {name: self.steps[name] for name in self._seen_by(group)}
        if not any(self._us(step) for step in before.values() if isinstance(step.op, Map)):
            return False
        least, best = 0.999 * sum(map(self._us, before.values())), None
        for order in self._group_candidates(group):
            self._move_group(group, order)
            cost = sum(self._us(self.steps[name]) for name in before)
            if cost < least:
                least, best = cost, order
            self._restore(before)
        if best is not None:
            self._move_group(group, best)
        return best is not None

    def _seen_by(self, group: Group) -> list[str]:
        """The steps that make or read values of a group."""
        readers = (reader for name in group for reader in self.readers.get(name, ()))
        return list(dict.fromkeys((*group, *readers)))

    def _group_candidates(self, group: Group) -> list[Labels]:
        """Orders of a group's axes: those that its values have or can be made in."""
        found: dict[Labels, None] = {}
        for name, places in group.items():
            found[places] = None
            for order in self._candidates(self.steps[name]):
                found[tuple([places[axis] for axis in order])] = None
        return list(found)

    def _move_group(self, group: Group, wanted: Labels) -> None:
        for name, places in group.items():
            self._move(name, own_order(places, wanted))

    def _restore(self, steps: Mapping[str, Step]) -> None:
        self.steps.update(steps)
        self.values.update((name, step.out) for name, step in steps.items())

    def _us(self, step: Step) -> float:
        return self.costs.step_us(step, self._operands(step, {}))

    def _place(self, name: str) -> bool:
        """Give a value its best order, all others staying; whether it changed."""
        identity = tuple(range(len(self.values[name].shape)))
        best, least = identity, sum(map(self._us, self._touching(name)))
        for order in dict.fromkeys(self._candidates(self.steps[name])):
            cost = math.inf if order == identity else self._cost(name, order)
            if cost < 0.999 * least:
                best, least = order, cost
        if best == identity:
            return False
        self._move(name, best)
        return True

    def _touching(self, name: str) -> Iterator[Step]:
        """The steps that make and read a value."""
        yield self.steps[name]
        for reader in self.readers.get(name, ()):
            yield self.steps[reader]

    def _move(self, name: str, order: Labels) -> None:
        self.steps[name] = reordered(self.steps[name], order)
        self.values[name] = self.steps[name].out
        for reader in self.readers.get(name, ()):
            self.steps[reader] = reread(self.steps[reader], name, order)

    def _cost(self, name: str, order: Labels) -> float:
        """What making the value in this order and reading it takes."""
        step = reordered(self.steps[name], order)
        total = self.costs.step_us(step, self._operands(step, {}))
        moved = {name: step.out}
        for reader in self.readers.get(name, ()):
            read = reread(self.steps[reader], name, order)
            total += self.costs.step_us(read, self._operands(read, moved))
        return total

    def _operands(self, step: Step, moved: Mapping[str, Value]) -> tuple[Value, ...]:
        return tuple([moved.get(name) or self.values[name] for name in step.operands])

    def _candidates(self, step: Step) -> Iterator[Labels]:
        """Orders (by axis) in which the step can make its value."""
        op = step.op
        if isinstance(op, Map):
            yield from (wires for wires in op.inputs if len(wires) == len(step.out.shape))
        if isinstance(op, Convolve):
            yield from natural_axes(op)
        if not isinstance(op, Contract):
            return
        place = {label: axis for axis, label in enumerate(op.output)}
        sizes = self.costs.product_sizes(step, self._operands(step, {}))
        if sizes is not None:
            orders = self.costs.ways.results(op, sizes, step.out.dtype)[:_TRIED]
            yield from (tuple([place[label] for label in order]) for order in orders)
            yield from self._as_read(step, op)
        elif len(op.inputs) == 2 and len(place) == len(op.output):
            for first, second in (op.inputs, op.inputs[::-1]):
                merged = [k for k in dict.fromkeys((*first, *second)) if k in place]
                if len(merged) == len(place):
                    yield tuple([place[label] for label in merged])

    def _as_read(self, step: Step, op: Contract) -> Iterator[Labels]:
        """Orders of a product that go within rows and columns as a reader would copy it: small
        operands may be turned instead."""
        a, b = map(set, op.inputs)
        for reader in self.readers.get(step.out.name, ()):
            reading = self.steps[reader]
            wanted = self._wanted(reading, step.out.name)
            if wanted is not None:
                labels = [op.output[axis] for axis in wanted]
                batch, m, n = ([k for k in labels if k in own] for own in (a & b, a - b, b - a))
                for order in ((*batch, *m, *n), (*batch, *n, *m)):
                    yield tuple([op.output.index(label) for label in order])

    def _wanted(self, reading: Step, name: str) -> Labels | None:
        """The order of its axes to which a step would copy an operand, if that takes long."""
        op, operands = reading.op, self._operands(reading, {})
        sizes = self.costs.product_sizes(reading, operands)
        if sizes is None or not isinstance(op, Contract):
            return None
        way = self.costs.ways.best(op, sizes, reading.out.dtype)
        side = reading.operands.index(name)
        order, own = (way.a, way.b)[side], op.inputs[side]
        if self.costs.ways.permute_us(own, order, sizes, reading.out.dtype) < LONG_COPY_US:
            return None
        return tuple([op.inputs[side].index(label) for label in order])


class _Copying:
    """The program with a step for every permuting copy; equal copies are made once."""

    def __init__(self, program: Program, nominal: Binding, ways: Ways) -> None:
        self.source, self.costs = program, _Costs(nominal, ways)
        self.builder = Builder(like=program)
        self.made: dict[str, dict[Labels, Value]] = {}  # source → axes → copy
        self.read = {name for step in program.steps for name in step.operands}

    def program(self, is_late: Callable[[], bool]) -> Program | None:
        """The program with its copies; None if it got late."""
        for step in self.source.steps:
            if is_late():
                return None
            operands = operand_values(self.source, step)
            op = step.op
            if isinstance(op, Permute):
                self.made.setdefault(operands[0].name, {}).setdefault(op.axes, step.out)
            sizes = self.costs.product_sizes(step, operands)
            if sizes is not None:
                self._product(step, operands, sizes)
            elif isinstance(op, Convolve):
                self._convolution(step, op, operands)
            elif isinstance(op, Map):
                self._map(step, op, operands)
            else:
                self.builder.copy(step, operands)
        return self.source.with_steps(self._needed(self.builder.steps))

    def _needed(self, steps: Sequence[Step]) -> Iterator[Step]:
        """The steps without copies that nobody reads; what is only given back is a view."""
        read = {name for step in steps for name in step.operands}
        for step in steps:
            if step.out.name in read or not isinstance(step.op, Permute):
                yield step
            elif step.out.name in self.source.outputs:
                whole = tuple(range(len(step.op.axes)))
                yield Step(step.out, canonical(Contract((whole,), step.op.axes)), step.operands)

    def _product(self, step: Step, operands: tuple[Value, ...], sizes: tuple[int, ...]) -> None:
        op: Contract = step.op  # type: ignore[assignment]

        def way(wires: tuple[Labels, Labels]) -> Way:
            return self.costs.ways.best(Contract(wires, op.output), sizes, step.out.dtype)

        first, second = (self._readings(v, k) for v, k in zip(operands, op.inputs, strict=True))
        wires = min(choices(first, second), key=lambda pair: way(pair).time_us)
        chosen = way(wires)
        given = [first[wires[0]], second[wires[1]]]
        read = self._written(chosen, sizes)
        for side, order in enumerate(read):
            if order != wires[side]:
                given[side] = self._copied(operands[side], op.inputs[side], order)
        self._emit(step, op.output, Contract(read, chosen.out), tuple(given))

    def _written(self, way: Way, sizes: tuple[int, ...]) -> tuple[Labels, Labels]:
        """The orders in which backends read the operands, which may copy where many small products
        would do."""
        numbers = dict(enumerate(sizes))
        form = matmul_form(Contract((way.a, way.b), way.out), numbers, stacks=True)
        return form.a_order, form.b_order

    def _convolution(self, step: Step, op: Convolve, operands: tuple[Value, ...]) -> None:
        """With images in the order in which they are read; kernels are small, and stay."""
        sizes = self.costs.sizes(op, operands, step.out)

        def way(wires: tuple[Labels, Labels]) -> ConvolutionWay:
            read = Convolve(wires, op.output, op.relations)
            return convolution_ways(read, sizes, step.out.dtype, self.costs.ways)[0]

        first, second = (self._readings(v, k) for v, k in zip(operands, op.inputs, strict=True))
        wires = min(choices(first, second), key=lambda pair: way(pair).time_us)
        chosen = way(wires)
        given, inputs = [first[wires[0]], second[wires[1]]], [*wires]
        for k in form_of(op).images:
            if chosen.inputs[k] != wires[k]:
                inputs[k] = chosen.inputs[k]
                given[k] = self._copied(operands[k], op.inputs[k], inputs[k])
        read = Convolve((inputs[0], inputs[1]), chosen.out, op.relations)
        self._emit(step, op.output, read, tuple(given))

    def _map(self, step: Step, op: Map, operands: tuple[Value, ...]) -> None:
        """With whole operands in its order: libraries walk arrays askew slower than they copy."""
        whole = tuple(range(len(step.out.shape)))
        given, inputs = list(operands), list(op.inputs)
        for side, wires in enumerate(op.inputs):
            if len(wires) == len(whole) and self.costs.askew(wires, whole, step.out):
                given[side], inputs[side] = self._copied(operands[side], wires, whole), whole
        self.builder.copy(Step(step.out, Map(op.function, tuple(inputs)), ()), given)

    def _emit(self, step: Step, wanted: Labels, op: Networks, operands: tuple[Value, ...]) -> None:
        """The product as it comes out, and if its axes are wanted otherwise a copy, which is made
        once for all who read it; or a view, where that is the same in memory or nobody does."""
        numbered = canonical_convolve(op) if isinstance(op, Convolve) else canonical(op)
        if op.output == wanted:
            self.builder.copy(Step(step.out, numbered, ()), operands)
            return
        place = {label: axis for axis, label in enumerate(wanted)}
        back = tuple([place[label] for label in op.output])
        made = permuted(step.out, back)
        product = self.builder.emit(numbered, operands, made.shape, made.dtype, made.axes)
        turned: Permute | Contract = canonical(Contract((op.output,), wanted))
        if step.out.name in self.read and self.costs.askew(back, tuple(range(len(back))), step.out):
            self.made.setdefault(step.out.name, {})[back] = product
            axes = tuple([op.output.index(label) for label in wanted])
            product, axes = self._halfway(product, axes)
            turned = Permute(axes)
        self.builder.copy(Step(step.out, turned, ()), (product,))

    def _readings(self, value: Value, labels: Labels) -> dict[Labels, Value]:
        """The operand and its copies that exist already, by the labels of their axes."""
        copies = self.made.get(value.name, {})
        found = {tuple([labels[k] for k in axes]): copy for axes, copy in copies.items()}
        return {labels: value, **found}

    def _halfway(self, value: Value, axes: Labels) -> tuple[Value, Labels]:
        """What is copied with its axes in that order: the value, or a first copy of it where two
        take less time than one."""
        sizes = tuple([evaluate(size, self.costs.nominal) for size in value.shape])
        own = tuple(range(len(axes)))
        between = self.costs.ways.copies(own, axes, sizes, value.dtype)[1]
        if between is None:
            return value, axes
        view = permuted(value, between)
        first = self.builder.emit(Permute(between), (value,), view.shape, view.dtype, view.axes)
        return first, tuple([between.index(axis) for axis in axes])

    def _copied(self, value: Value, labels: Labels, order: Labels) -> Value:
        place = {label: axis for axis, label in enumerate(labels)}
        axes = tuple([place[label] for label in order])
        known = self.made.setdefault(value.name, {})
        if axes not in known:
            view = permuted(value, axes)
            moving = [axis for axis in axes if value.shape[axis] != 1]
            whole = tuple(range(len(axes)))
            op: Permute | Contract = Contract((whole,), axes)
            if moving != sorted(moving):
                value, turned = self._halfway(value, axes)
                op = Permute(turned)
            known[axes] = self.builder.emit(op, (value,), view.shape, view.dtype, view.axes)
        return known[axes]
