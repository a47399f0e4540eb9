"""The plans that are best on parts of a size's range, and the sizes at which one gives way.

A family is a value: it prints as a table, and has JSON with schema and checksum, as plans have.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from typing import Any

import sympy
from rich import box
from rich.console import Console
from rich.table import Table

from tncompiler.ir.errors import FileFormatError, PlanError
from tncompiler.ir.origin import call_site
from tncompiler.ir.sizes import Terms
from tncompiler.planning.memory import peak_expression
from tncompiler.planning.plan import ContractionPlan, checksum_of, terms_data, terms_from

SCHEMA = 1
WIDTH = 120


@dataclass(frozen=True, slots=True)
class FamilyMember:
    """A plan and the sizes ``low`` … ``high`` at which it runs, both included.

    ``curve``: (size, predicted microseconds) at some of them; ``moments``: bytes that are alive
    together, a sum of terms in the free sizes for each step.
    """

    plan: ContractionPlan
    low: int
    high: int
    curve: tuple[tuple[int, float], ...]
    moments: tuple[Terms, ...]

    @property
    def flops(self) -> sympy.Expr | int:
        """Flops, in the free sizes."""
        return self.plan.flops

    @property
    def bytes_moved(self) -> sympy.Expr:
        """Bytes that all steps read and write, in the free sizes."""
        steps = self.plan.steps
        return Terms.total(t for s in steps for t in (s.bytes_read, s.bytes_written)).to_sympy()

    @property
    def peak(self) -> sympy.Expr:
        """The most bytes of computed values alive at once: an unevaluated Max."""
        return peak_expression(self.moments)

    def predicted_us(self, size: int) -> float:
        """Predicted microseconds at a size, between those of the curve (a power of the size)."""
        sizes = [place for place, _ in self.curve]
        at = bisect_left(sizes, size)
        if at < len(sizes) and sizes[at] == size:
            return self.curve[at][1]
        (a, first), (b, second) = self.curve[at - 1 : at + 1]
        share = math.log(size / max(a, 1)) / math.log(b / max(a, 1))
        return float(first ** (1 - share) * second**share)


@dataclass(frozen=True, slots=True)
class PlanFamily:
    """The plans of a range of sizes, in order; each holds where it is the best of them.

    ``symbol``: the name of the size. ``training``: whether plans, costs and times are those of a
    training step.
    """

    symbol: str
    members: tuple[FamilyMember, ...]
    training: bool = False

    @property
    def low(self) -> int:
        """The first size."""
        return self.members[0].low

    @property
    def high(self) -> int:
        """The last size."""
        return self.members[-1].high

    @property
    def crossovers(self) -> tuple[int, ...]:
        """The sizes from which the next plan runs."""
        return tuple(member.low for member in self.members[1:])

    def member(self, size: int) -> FamilyMember:
        """The member that runs at a size. Raises: PlanError if it is outside the range."""
        if not self.low <= size <= self.high:
            raise PlanError(
                f"{self.symbol} = {size} is outside the family's range {self.low} to {self.high}",
                where=call_site(),
                fix="make a family of a wider range",
            )
        return self.members[bisect_right(self.crossovers, size)]

    def at(self, size: int) -> ContractionPlan:
        """The plan that runs at a size."""
        return self.member(size).plan

    def predicted_us(self, size: int) -> float:
        """Predicted microseconds at a size."""
        return self.member(size).predicted_us(size)

    def to_text(self) -> str:
        """A table with a row for each plan; for people."""
        table = Table(self.symbol, "orders", "flops", "predicted", box=box.SIMPLE_HEAD)
        for member in self.members:
            orders = [f"{n.name}: {n.linear()}" for n in member.plan.networks if n.pairs]
            first, last = member.curve[0][1], member.curve[-1][1]
            table.add_row(
                f"{member.low} … {member.high}",
                "\n".join(orders),
                str(member.flops),
                f"{first:.4g} … {last:.4g} µs",
            )
        console = Console(file=StringIO(), width=WIDTH, color_system=None)
        what = "a training step" if self.training else "the forward pass"
        console.print(f"plans of {what} for {self.members[0].plan.minimize}", highlight=False)
        console.print(table, markup=False)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()

    __str__ = to_text

    def _repr_html_(self) -> str:
        """The plans as a table, for notebooks."""
        from tncompiler.draw.notebook import family_html

        return family_html(self)

    def to_json(self) -> str:
        """The family as JSON text with schema version and checksum."""
        data = {
            "format": "tncompiler plan family",
            "schema": SCHEMA,
            "symbol": self.symbol,
            "training": self.training,
            "members": [_member_data(member) for member in self.members],
        }
        return json.dumps({**data, "checksum": checksum_of(data)}, indent=1)

    @staticmethod
    def from_json(text: str) -> PlanFamily:
        """The family that `to_json` wrote. Raises: FileFormatError if it was altered or cut."""
        try:
            data = json.loads(text)
            checksum = data.pop("checksum")
            if data["format"] != "tncompiler plan family" or data["schema"] != SCHEMA:
                raise KeyError("schema")
            intact = checksum == checksum_of(data)
            members = tuple(_member_from(item) for item in data["members"]) if intact else ()
            joined = all(a.high + 1 == b.low for a, b in pairwise(members))
            if not members or not joined:
                raise KeyError("members")
            return PlanFamily(str(data["symbol"]), members, bool(data["training"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            raise FileFormatError(
                "this is no family of plans, one of another version, or it was altered",
                where=f"the JSON read at {call_site()}",
                fix="write it with family.to_json()",
            ) from None


def _member_data(member: FamilyMember) -> dict[str, Any]:
    return {
        "low": member.low,
        "high": member.high,
        "plan": json.loads(member.plan.to_json()),
        "curve": [list(point) for point in member.curve],
        "moments": [terms_data(terms) for terms in member.moments],
    }


def _member_from(item: Mapping[str, Any]) -> FamilyMember:
    low, high = int(item["low"]), int(item["high"])
    curve = tuple((int(size), float(us)) for size, us in item["curve"])
    if not low <= high or (curve[0][0], curve[-1][0]) != (low, high):
        raise KeyError("curve")
    return FamilyMember(
        ContractionPlan.from_json(json.dumps(item["plan"])),
        low,
        high,
        curve,
        tuple(terms_from(terms) for terms in item["moments"]),
    )
