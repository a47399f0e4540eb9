"""What notebooks show: networks as SVG, plans and families as HTML tables.

None where there is nothing to show (a large network, no matplotlib): notebooks then print the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from tncompiler.compiler import Compilation
from tncompiler.draw import draw
from tncompiler.draw.network import shown_networks
from tncompiler.explain import quantity
from tncompiler.inspection import Inspection
from tncompiler.ir.errors import TncError
from tncompiler.ir.expressions import Expr
from tncompiler.planning.family import PlanFamily
from tncompiler.planning.plan import ContractionPlan

_MOST = 60  # tensors of a network that is shown
_ROWS = 200
_EXAMPLE = ((4, 8, 4), (8, 4, 8))  # modes at which a format is shown


class Uncompiled(Inspection):
    """An expression as it is, for pictures."""

    def __init__(self, expression: Expr) -> None:
        self.compilation = Compilation(expression, None, {}, None, parameters_known=False)
        self.backend = "torch"

    @property
    def compute_dtype(self) -> str:
        return "float32"


def compiled_svg(network: Inspection) -> str | None:
    """The networks of a compiled one."""
    try:
        program = network.compilation.logical(network._dtypes())
        count = sum(len(one.tensors) for one in shown_networks(program))
        return str(draw(network)._repr_svg_()) if 0 < count <= _MOST else None
    except TncError:
        return None


def expression_svg(expression: Expr) -> str | None:
    """The networks of an expression, free sizes at 128."""
    try:
        return compiled_svg(Uncompiled(expression))
    except TncError:
        return None


def format_svg(form: Any) -> str | None:
    """A format's network for a small weight."""
    try:
        return expression_svg(form.network(*_EXAMPLE))
    except TncError:
        return None


def plan_html(plan: ContractionPlan) -> str:
    """A row for each step."""
    rows = [
        (step.equation, " × ".join(step.shape), str(step.flops.to_sympy()))
        for step in plan.steps[:_ROWS]
    ]
    sizes = ", ".join(f"{name} = {size}" for name, size in plan.sizes.items())
    caption = f"plan for {plan.minimize}{f' at {sizes}' if sizes else ''}"
    left = len(plan.steps) - len(rows)
    more = f"; {left} more steps" if left else ""
    peak = f"peak {quantity(plan.peak_memory, 'B')}{more}"
    return _table(f"{caption}: {peak}", ("step", "shape", "flops"), rows)


def family_html(family: PlanFamily) -> str:
    """A row for each plan."""
    rows = []
    for member in family.members:
        orders = "; ".join(f"{n.name}: {n.linear()}" for n in member.plan.networks if n.pairs)
        first, last = member.curve[0][1], member.curve[-1][1]
        place = f"{member.low} … {member.high}"
        rows.append((place, orders, str(member.flops), f"{first:.4g} … {last:.4g} µs"))
    what = "a training step" if family.training else "the forward pass"
    return _table(f"plans of {what}", (family.symbol, "orders", "flops", "predicted"), rows)


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><caption>{escape(caption)}</caption>{row(head, 'th')}{body}</table>"
