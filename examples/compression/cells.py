"""Results of an experiment, one cell after the other, on disk after each of them.

What is on disk is not computed again, so an experiment that is killed goes on where it was.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Cells:
    """A file of results by what they are of; whole at every moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
                self._known = {_key(row["of"]): row for row in rows}
            except (ValueError, LookupError, TypeError):
                raise SystemExit(f"{path} is no file of results: remove it to start anew") from None

    def get(self, of: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a cell: the one on disk, or the one that `make` gives now."""
        key = _key(of)
        if key not in self._known:
            self._known[key] = {"of": dict(of), "result": make()}
            self._write()
        result: dict[str, Any] = self._known[key]["result"]
        return result

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) for row in self._known.values())
        part = self.path.with_suffix(".part")
        part.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        os.replace(part, self.path)


def _key(of: Mapping[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the standard deviation over seeds (0 for one)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def shown(values: Sequence[float], scale: float = 100.0, digits: int = 1) -> str:
    """Mean ± spread, in percent unless another scale is given."""
    mean, spread = mean_and_spread(values)
    return f"{scale * mean:.{digits}f} ± {scale * spread:.{digits}f}"
