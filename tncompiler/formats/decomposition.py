"""What a decomposition gives: cores by name, and how far the network is from the weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tncompiler.formats.format import Format


@dataclass(frozen=True)
class Decomposition:
    """A weight as a network of cores.

    ``cores``: the parameters of ``network``, by name, in the weight's dtype. ``error``: the
    Frobenius norm of weight minus network, over that of the weight (``is_weighted`` by the second
    moments if they were given; then ``plain_error`` is the unweighted one). ``error_bound``: what
    theory promises for the way it was found, with the rounding of the cores to the weight's dtype;
    None where it promises nothing. ``lower_bound``: what no network of these ranks can undercut
    (Eckart–Young on every cut of the network), None for formats without such cuts. Both are bounds
    on ``error``. ``format`` has the ranks that were chosen.
    """

    format: Format
    network: Any
    cores: dict[str, np.ndarray]
    error: float
    error_bound: float | None = None
    lower_bound: float | None = None
    plain_error: float | None = None
    is_weighted: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """How many numbers the cores hold."""
        return sum(core.size for core in self.cores.values())

    def reconstruct(self) -> np.ndarray:
        """The weight that the cores stand for, with axes (*in_shape, *out_shape)."""
        from tncompiler.formats.evaluate import evaluate

        return evaluate(self.network, self.cores)

    def __iter__(self) -> Any:
        """`cores, error = format.decompose(…)`."""
        return iter((self.cores, self.error))
