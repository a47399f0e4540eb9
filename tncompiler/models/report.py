"""What became of a model's weights: a table to print, and JSON."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

SCHEMA = 1
_WIDTH = 160


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One weight.

    ``name``: of the module or parameter; ``tied``: of others that share it. ``layer``: the class in
    its place. ``shape``: of the dense weight, inputs first. ``format``, ``ranks``, ``in_shape``,
    ``out_shape``: of the network. ``parameters_before``, ``parameters_after``: of the weight,
    without biases. ``error``: relative, of the weight, or of outputs where it is ``weighted`` by
    what came to it on the calibration batches; ``lower_bound``: what its ranks cannot undercut.
    ``output_error``: relative, of the layer's output on the calibration batches. ``us_before``,
    ``us_after``: predicted microseconds that the weight takes of a call in eval mode on a CPU, with
    128 rows or tokens, one sequence of 128 positions or one image of 128 pixels an axis. None where
    there is no such number: of a parameter that a module reads itself no call is known.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    format: str
    ranks: dict[str, int]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    error: float
    lower_bound: float | None = None
    output_error: float | None = None
    us_before: float | None = None
    us_after: float | None = None
    weighted: bool = False
    tied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A weight that stays as it is, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """``layers`` and ``skipped``: every weight of the model, in order. ``parameters_before`` and
    ``parameters_after``: of the whole model, each counted once. ``seconds``: what it took.
    ``search``: what a `tnc.Search` found, where the configuration was one."""

    layers: tuple[LayerReport, ...]
    skipped: tuple[Skipped, ...]
    parameters_before: int
    parameters_after: int
    seconds: float
    search: Any = None

    def to_json(self) -> str:
        """All of it as JSON text."""
        own = asdict(replace(self, search=None))
        if self.search is not None:
            own["search"] = json.loads(self.search.to_json())
        return json.dumps({"format": "tncompiler report", "schema": SCHEMA, **own}, indent=1)

    def table(self) -> Table:
        """A rich table, one row for each weight."""
        made = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=self._caption()
        )
        made.caption_justify = "left"
        for heading in ("weight", "becomes", "modes"):
            made.add_column(heading, overflow="fold")
        for heading in ("parameters", "error", "bound", "output error", "predicted µs"):
            made.add_column(heading, justify="right")
        for layer in self.layers:
            made.add_row(*_row(layer))
        return made

    def _caption(self) -> str:
        kept = self.parameters_after / max(self.parameters_before, 1)
        lines = [
            f"{self.parameters_before:,} → {self.parameters_after:,} parameters ({kept:.1%}), "
            f"{self.seconds:.1f} s"
        ]
        reasons = Counter((skipped.kind, skipped.reason) for skipped in self.skipped)
        lines += [f"as it was: {count} {kind}: {why}" for (kind, why), count in reasons.items()]
        return "\n".join(lines)

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=_WIDTH).print(self.table())
        return text.getvalue().rstrip("\n")


def _row(layer: LayerReport) -> tuple[str, ...]:
    names = ", ".join((layer.name or "(model)", *(f"= {name}" for name in layer.tied)))
    modes = f"{'·'.join(map(str, layer.in_shape))} → {'·'.join(map(str, layer.out_shape))}"
    times = (layer.us_before, layer.us_after)
    return (
        names,
        f"{layer.layer}, {layer.format}",
        modes,
        f"{layer.parameters_before:,} → {layer.parameters_after:,}",
        f"{layer.error:.3g}",
        _number(layer.lower_bound, "≥ {:.3g}"),
        _number(layer.output_error, "{:.3g}"),
        "–" if None in times else " → ".join(_number(us, "{:.0f}") for us in times),
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
