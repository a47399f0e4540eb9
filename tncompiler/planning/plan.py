"""A contraction plan as a value: orders, steps, costs; JSON with schema and checksum."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import sympy

from tncompiler.ir.errors import FileFormatError, PlanError
from tncompiler.ir.origin import call_site
from tncompiler.ir.program import (
    Labels,
    Loop,
    Networks,
    Program,
    Scan,
    Step,
    element_count,
    label_names,
    label_sizes,
    operand_values,
    relations_of,
)
from tncompiler.ir.scans.steps import programs_within
from tncompiler.ir.sizes import Binding, Terms, evaluate, parse_size, render_size, size_text
from tncompiler.planning.cost import flat_steps
from tncompiler.planning.digest import program_digest
from tncompiler.planning.order import Pair, check_order, ssa_to_linear

SCHEMA = 2
_PLAIN = 2**1024  # numbers from here on are written in base 16: Python reads no longer decimals


@dataclass(frozen=True, slots=True)
class NetworkOrder:
    """The order of one network: its tensors, and SSA pairs (tensor n + k is pair k's result).

    ``wires`` labels each tensor's axes, ``output`` those of the result; ``sizes`` has the size of
    label k at position k, at the sizes that the plan is for.
    """

    name: str
    tensors: tuple[str, ...]
    pairs: tuple[Pair, ...]
    wires: tuple[Labels, ...] = ()
    output: Labels = ()
    sizes: tuple[int, ...] = ()

    @staticmethod
    def of(
        program: Program, name: str, nominal: Binding, pairs: tuple[Pair, ...] = ()
    ) -> NetworkOrder:
        """The network that makes the value `name`; scalars are applied apart and left out."""
        step = program.producers[name]
        op: Networks = step.op  # type: ignore[assignment]
        operands = operand_values(program, step)
        sizes = label_sizes(op, operands, step.out)
        kept = [k for k, value in enumerate(operands) if value.shape]
        return NetworkOrder(
            name,
            tuple(operands[k].name for k in kept),
            pairs,
            tuple(op.inputs[k] for k in kept),
            op.output,
            tuple(evaluate(sizes[label], nominal) for label in range(len(sizes))),
        )

    def linear(self) -> tuple[tuple[int, ...], ...]:
        """The order in opt_einsum's linear form: positions in the list of what is left."""
        return ssa_to_linear(self.pairs, len(self.tensors))


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step for people: its equation by index names, symbolic flops and bytes, shape."""

    name: str
    kind: str
    equation: str
    shape: tuple[str, ...]
    flops: Terms
    elementwise: Terms
    bytes_read: Terms
    bytes_written: Terms


@dataclass(frozen=True)
class ContractionPlan:
    """How an expression is computed.

    ``networks`` holds the order of each contraction network; ``steps`` the whole program in order;
    ``sizes`` the integers the plan was made for; ``digest`` names the expression it belongs to;
    ``saved`` the values that the forward pass keeps for the backward pass; ``cut`` whether
    `max_seconds` stopped its search or left something out; ``replanned`` how many pairs `reuse`
    searched anew, None for a plan that was not made of another.
    """

    networks: tuple[NetworkOrder, ...]
    steps: tuple[PlanStep, ...]
    sizes: Mapping[str, int]
    minimize: str
    peak_memory: int
    largest: int
    digest: str
    saved: tuple[str, ...] = ()
    recomputed: tuple[str, ...] = ()
    sliced_indices: tuple[str, ...] = ()
    cut: bool = False
    replanned: int | None = None

    @property
    def flops(self) -> sympy.Expr | int:
        """Flops of all contractions, symbolic in the free sizes."""
        return _value(Terms.total(step.flops for step in self.steps))

    @property
    def total_write(self) -> sympy.Expr | int:
        """Bytes written by all steps, symbolic in the free sizes."""
        return _value(Terms.total(step.bytes_written for step in self.steps))

    @property
    def contraction_width(self) -> float:
        """log2 of the largest computed value's elements, at the plan's sizes."""
        return math.log2(max(self.largest, 1))

    def _only(self) -> NetworkOrder:
        if len(self.networks) == 1:
            return self.networks[0]
        raise PlanError(
            f"the plan has {len(self.networks)} networks, so there is no one path",
            where=call_site(),
            fix="look at plan.networks, each with .pairs and .linear()",
        )

    @property
    def ssa_path(self) -> tuple[Pair, ...]:
        """The SSA path of the only network."""
        return self._only().pairs

    @property
    def path(self) -> tuple[tuple[int, ...], ...]:
        """The linear path of the only network, as opt_einsum writes it."""
        return self._only().linear()

    def reuse(self, edited: Any, sizes: Mapping[Any, Any] | None = None) -> ContractionPlan:
        """The plan of a network that differs from this plan's by a small change.

        ``edited``: an expression, or a TensorNetwork. Tensors are matched by name; where one was
        added, removed, resized or wired anew, the tree is planned anew some levels around it, and
        kept elsewhere. ``sizes`` as `tnc.plan` takes them; free sizes are those of this plan.
        Raises: PlanError if no tensor of the edited network has a name that the plan knows.
        """
        from tncompiler.compiler import replan  # the expression is lowered as for a new plan

        return replan(self, edited, sizes)

    def _repr_html_(self) -> str:
        """The steps as a table, for notebooks."""
        from tncompiler.draw.notebook import plan_html

        return plan_html(self)

    def to_text(self) -> str:
        """The order of each network, then one line a step; for people."""
        lines = [f"plan for {self.minimize} at {dict(self.sizes)}"]
        lines += [f"network {n.name}: {', '.join(n.tensors)}; {n.pairs}" for n in self.networks]
        lines += [f"  {step.equation}  # {step.flops.to_sympy()} flops" for step in self.steps]
        return "\n".join(lines)

    __str__ = to_text

    def to_json(self) -> str:
        """The plan as JSON text with schema version and checksum."""
        data = _to_data(self)
        return json.dumps({**data, "checksum": checksum_of(data)}, indent=1)

    @staticmethod
    def from_json(text: str) -> ContractionPlan:
        """The plan that `to_json` wrote. Raises FileFormatError if it was altered or cut short."""
        try:
            data = json.loads(text)
            checksum = data.pop("checksum")
            if data["format"] != "tncompiler plan" or data["schema"] != SCHEMA:
                raise KeyError("schema")
            intact = checksum == checksum_of(data)
            plan = _from_data(data) if intact else None
        except _OF_STRANGE_DATA:
            raise FileFormatError(
                "this is no plan, or one of another version",
                where=f"the JSON read at {call_site()}",
                fix="write it with plan.to_json()",
            ) from None
        if plan is None:
            raise FileFormatError(
                "the plan's checksum does not match: it was altered or cut short",
                where=f"the JSON read at {call_site()}",
                fix="write it again with plan.to_json()",
            )
        return plan


# what reading data of another form may raise
_OF_STRANGE_DATA = (
    *(ValueError, KeyError, TypeError, AttributeError, PlanError),
    *(RecursionError, OverflowError),
)


def _value(terms: Terms) -> sympy.Expr | int:
    value = terms.to_sympy()
    return int(value) if isinstance(value, sympy.Integer) else value


def checksum_of(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def terms_data(terms: Terms) -> list[Any]:
    return [[_number_data(c), [size_text(f) for f in factors]] for c, factors in terms.terms]


def terms_from(data: Any) -> Terms:
    return Terms(
        tuple((_number_from(c), tuple(parse_size(f) for f in factors)) for c, factors in data)
    )


def _number_data(number: int) -> int | str:
    return number if number < _PLAIN else hex(number)


def _number_from(data: Any) -> int:
    return int(data, 16) if isinstance(data, str) else int(data)


_COSTS = ("flops", "elementwise", "bytes_read", "bytes_written")


def _to_data(plan: ContractionPlan) -> dict[str, Any]:
    return {
        "format": "tncompiler plan",
        "schema": SCHEMA,
        "digest": plan.digest,
        "minimize": plan.minimize,
        "sizes": dict(plan.sizes),
        "peak_memory": _number_data(plan.peak_memory),
        "largest": _number_data(plan.largest),
        "saved": list(plan.saved),
        "recomputed": list(plan.recomputed),
        "sliced_indices": list(plan.sliced_indices),
        "cut": plan.cut,
        "replanned": plan.replanned,
        "networks": [
            {
                "name": n.name,
                "tensors": list(n.tensors),
                "pairs": [list(p) for p in n.pairs],
                "wires": [list(labels) for labels in n.wires],
                "output": list(n.output),
                "sizes": list(n.sizes),
            }
            for n in plan.networks
        ],
        "steps": [
            {
                "name": s.name,
                "kind": s.kind,
                "equation": s.equation,
                "shape": list(s.shape),
                **{cost: terms_data(getattr(s, cost)) for cost in _COSTS},
            }
            for s in plan.steps
        ],
    }


def _from_data(data: Mapping[str, Any]) -> ContractionPlan:
    networks = tuple(_network_from(item) for item in data["networks"])
    steps = tuple(
        PlanStep(
            str(item["name"]),
            str(item["kind"]),
            str(item["equation"]),
            tuple(map(str, item["shape"])),
            *(terms_from(item[cost]) for cost in _COSTS),
        )
        for item in data["steps"]
    )
    return ContractionPlan(
        networks,
        steps,
        {str(k): int(v) for k, v in data["sizes"].items()},
        str(data["minimize"]),
        _number_from(data["peak_memory"]),
        _number_from(data["largest"]),
        str(data["digest"]),
        tuple(map(str, data["saved"])),
        tuple(map(str, data["recomputed"])),
        tuple(map(str, data["sliced_indices"])),
        bool(data["cut"]),
        None if data["replanned"] is None else int(data["replanned"]),
    )


def _network_from(item: Mapping[str, Any]) -> NetworkOrder:
    tensors = tuple(map(str, item["tensors"]))
    pairs = check_order([(int(a), int(b)) for a, b in item["pairs"]], len(tensors))
    wires = tuple(tuple(map(int, labels)) for labels in item["wires"])
    output, sizes = tuple(map(int, item["output"])), tuple(map(int, item["sizes"]))
    labels = {label for labels in (*wires, output) for label in labels}
    known = set(range(len(sizes)))  # a window may relate labels that no tensor has
    if len(wires) != len(tensors) or not labels <= known or min(sizes, default=0) < 0:
        raise KeyError("wires")
    return NetworkOrder(str(item["name"]), tensors, pairs, wires, output, sizes)


def describe_steps(program: Program) -> tuple[PlanStep, ...]:
    """The steps of a scheduled program for people, those of loops after their loop."""
    return tuple(
        PlanStep(
            flat.step.out.name,
            type(flat.step.op).__name__.lower(),
            step_equation(flat.program, flat.step),
            tuple(render_size(size) for size in flat.step.out.shape),
            flat.flops,
            flat.elementwise,
            flat.bytes_read,
            flat.bytes_written,
        )
        for flat in flat_steps(program)
    )


def step_equation(program: Program, step: Step) -> str:
    """The step by index names: "t0(b, o1) = x(b, i1) * G1(i1, o1)"."""
    operands = operand_values(program, step)
    if isinstance(step.op, Networks):
        names = label_names(step.op, operands, step.out)
        terms = [
            f"{value.name}({', '.join(names[label] for label in labels)})"
            for value, labels in zip(operands, step.op.inputs, strict=True)
        ]
        out = ", ".join(names[label] for label in step.op.output)
        equation = f"{step.out.name}({out}) = {' * '.join(terms) or '1'}"
        return ", ".join((equation, *(r.text(names) for r in relations_of(step.op))))
    if isinstance(step.op, Scan):
        return f"scan over {step.op.index}, {step.op.carried} states"
    if isinstance(step.op, Loop):
        return f"loop over {step.op.index}, {step.op.width} at a time"
    if not operands:
        return f"{step.out.name} = {step.op.text()}"
    sources = ", ".join(f"{v.name}({', '.join(v.axes)})" if v.axes else v.name for v in operands)
    return f"{step.out.name}({', '.join(step.out.axes)}) = {step.op.text()}({sources})"


def make_plan(
    logical: Program,
    scheduled: Program,
    orders: Mapping[str, tuple[Pair, ...]],
    nominal: Binding,
    minimize: str,
    peak_memory: int,
) -> ContractionPlan:
    """The plan of a scheduled program, as far as it follows from that and its orders."""
    networks = tuple(
        NetworkOrder.of(inner, name, nominal, orders[name])
        for inner in programs_within(logical)
        for name in orders
        if name in inner.producers and isinstance(inner.producers[name].op, Networks)
    )
    sizes = [element_count(step.out).evaluate(nominal) for step in scheduled.steps]
    largest = max(sizes, default=0)
    return ContractionPlan(
        networks,
        describe_steps(scheduled),
        {symbol.name: number for symbol, number in nominal.items()},
        minimize,
        peak_memory,
        largest,
        program_digest(logical),
    )
