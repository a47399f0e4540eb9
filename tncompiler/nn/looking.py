"""What a compiled network shows, asked of the layer around it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Looking:
    """Looks at ``cores``, the compiled network of a layer, by whose names sizes go: `b`."""

    cores: Any

    def explain(self, sizes: Mapping[Any, Any] | None = None, part: str = "forward") -> str:
        """A text table: one line a step with equation, sizes, flops and bytes; totals below."""
        return str(self.cores.explain(sizes, part))

    def cost(self, sizes: Mapping[Any, Any] | None = None, part: str = "forward") -> Any:
        """Flops, bytes and peak of a call, symbolic in the sizes that are free."""
        return self.cores.cost(sizes, part)

    def plan(self, sizes: Mapping[Any, Any] | None = None) -> Any:
        """The plan that a call of these sizes without gradients runs."""
        return self.cores.plan(sizes)

    def draw(self, what: str = "network", **options: Any) -> Any:
        """A matplotlib picture, as of a compiled network; returns the Axes."""
        return self.cores.draw(what, **options)

    def to_html(self, path: str | os.PathLike[str], sizes: Mapping[Any, Any] | None = None) -> Path:
        """Write the plan explorer of the layer; returns its path."""
        return Path(self.cores.to_html(path, sizes))

    def _repr_svg_(self) -> str | None:
        """The network, for notebooks."""
        shown: str | None = self.cores._repr_svg_()
        return shown
