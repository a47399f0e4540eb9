"""What rank 0 plans and sends to the others: orders and cuts, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tncompiler.ir.errors import FileFormatError, TncError
from tncompiler.ir.origin import call_site
from tncompiler.planning.plan import ContractionPlan
from tncompiler.planning.slicing import Cut

FORMAT, SCHEMA = "tncompiler plan for ranks", 2


@dataclass(frozen=True, slots=True)
class RankPlan:
    """The plan, the cuts of the forward and of the backward program, and whether the forward pass
    saves values (of whole results) or the backward pass makes them again in its slices.

    ``backend``: what runs them.
    """

    plan: ContractionPlan
    forward: tuple[Cut, ...]
    backward: tuple[Cut, ...] = ()
    saves: bool = False
    backend: str = "torch"

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                "schema": SCHEMA,
                "plan": self.plan.to_json(),
                "forward": _cuts_data(self.forward),
                "backward": _cuts_data(self.backward),
                "saves": self.saves,
                "backend": self.backend,
            }
        )

    @staticmethod
    def from_json(text: str) -> RankPlan:
        """The plan that `to_json` wrote. Raises: FileFormatError."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT or data["schema"] != SCHEMA:
                raise KeyError("schema")
            plan = ContractionPlan.from_json(data["plan"])
            cuts = _cuts_from(data["forward"]), _cuts_from(data["backward"])
            return RankPlan(plan, *cuts, bool(data["saves"]), str(data["backend"]))
        except TncError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FileFormatError(
                "this is no plan for ranks, or one of another version",
                where=f"the JSON read at {call_site()}",
                fix="all ranks must run one version of tncompiler",
            ) from None


def _cuts_data(cuts: Sequence[Cut]) -> list[list[Any]]:
    return [[cut.value, cut.axis, cut.width, cut.sink] for cut in cuts]


def _cuts_from(data: Any) -> tuple[Cut, ...]:
    return tuple(Cut(str(v), int(a), int(w), bool(s)) for v, a, w, s in data)
