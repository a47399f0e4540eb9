"""Dense weights that layers build of their cores: kept in evaluation, used where that is faster.

A call in evaluation asks twice. `Built.ready` answers calls like earlier ones in a microsecond;
where it has no answer, the layer looks at everything (`may_keep`, which way is faster) and lets
`Built.keep` build, or say that nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from tncompiler.debug import level
from tncompiler.kept import KeptValues, Values
from tncompiler.planning.keeping import LARGEST_KEPT
from tncompiler.planning.machine import as_machine
from tncompiler.planning.rates import Rates
from tncompiler.tensor_marks import MARKS, Snapshot, can_keep, is_gathered
from tncompiler.watching import overseen, watched

_REMEMBERED = 256  # combinations of sizes
# what a call of a compiled network takes longer to start than one of torch's own functions, and how
# much longer its steps may take than predicted: small ones do
_CALL_US, _DOUBT = 5.0, 1.5


@dataclass(frozen=True, slots=True)
class _Ready:
    """What is kept, for calls that need not look further.

    ``values``: the built weights and what goes with them. ``snapshot``: all that the layer held
    before they were built. ``dtype``, ``shapes``: of inputs that are known to meet them.
    """

    values: Values
    snapshot: Snapshot
    dtype: torch.dtype
    shapes: set[torch.Size]


class Built:
    """The built weights of one layer. Copies of a layer build their own."""

    def __init__(self) -> None:
        self._kept = KeptValues(MARKS)
        self._ways: dict[Hashable, bool] = {}
        self._ready: _Ready | None = None

    def __reduce__(self) -> Any:
        return (Built, ())

    def drop(self) -> None:
        """Forget what is kept."""
        self._kept.drop()
        self._ready = None

    def ready(self, layer: nn.Module, x: Any) -> Values | None:
        """What is kept, if a call on x is known to use it and nothing of the layer has changed.

        Every call of a small layer pays for each line here, so none looks anything up twice.
        """
        if is_compiling():  # asked first: a trace must read nothing that changes
            return None
        found = self._ready
        if found is None or layer.training or type(x) is not Tensor or not x.is_cpu:
            return None
        if x.dtype is not found.dtype or x.shape not in found.shapes:
            return None
        if torch.is_grad_enabled() and found.snapshot.asks_gradients():
            return None
        if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
            return None
        return found.values if found.snapshot.holds(layer) else None

    def keep(self, layer: nn.Module, x: Tensor, make: Callable[[], Values]) -> Values:
        """What `make` made of all that the layer holds, or makes of it now; ready for inputs like x
        from now on."""
        ready = self._ready
        if ready is not None and not ready.snapshot.holds(layer):
            self.drop()
            ready = None
        if ready is None:
            snapshot = Snapshot(layer)  # first of all: what changes meanwhile is then seen later
            ready = _Ready(self._made(layer, make), snapshot, x.dtype, set())
            self._ready = None if level() else ready  # debugging compares checksums at each call
        if len(ready.shapes) >= _REMEMBERED:
            ready.shapes.clear()
        ready.shapes.add(x.shape)
        return ready.values

    def _made(self, layer: nn.Module, make: Callable[[], Values]) -> Values:
        def once() -> Values:
            with torch.inference_mode(False), torch.no_grad():
                return make()

        return self._kept.get([*layer.parameters(), *layer.buffers()], "weights", once)

    def wins(
        self,
        key: Hashable,
        whole_us: Callable[[], float],
        cores_us: Callable[[], float],
        doubt: float = _DOUBT,
    ) -> bool:
        """Whether built weights are faster than cores, or not much slower than these are predicted
        to be; asked once for each key. ``doubt``: how many times as long cores may take."""
        if key not in self._ways:
            if len(self._ways) >= _REMEMBERED:
                self._ways.clear()
            whole = whole_us()
            self._ways[key] = whole <= _CALL_US or whole <= doubt * cores_us() + _CALL_US
        return self._ways[key]


def may_keep(layer: Any, x: Tensor, is_faster: Callable[[], bool], is_index: bool = False) -> bool:
    """Whether a call on x may use what is kept of a layer's cores, and is faster with it.

    Not where a backend was named, or torch looks inside: there the program runs; and not where
    weights would take more than LARGEST_KEPT bytes. ``is_index``: x holds positions in a table, and
    need not have the dtype of the cores.
    """
    if layer.training or not allows_whole(layer):
        return False
    if not x.is_cpu or watched((x,)) or overseen("numpy") or not is_faster():
        return False
    held: Sequence[Tensor] = layer.held_tensors()
    if not is_index and any(tensor.dtype != x.dtype for tensor in held):
        return False
    return keeps(layer, held)


def allows_whole(layer: Any) -> bool:
    """Whether a layer may keep dense weights, by what was asked for and by their size."""
    asked = layer.implementation == "factorized" or layer.backend != "auto"
    return not asked and layer.dense_bytes() <= LARGEST_KEPT


def keeps(layer: nn.Module, held: Sequence[Tensor]) -> bool:
    """Whether a call now may keep what a layer makes of the tensors that it holds: in evaluation,
    where nobody asks for gradients, and changes of all of them show."""
    if layer.training or (torch.is_grad_enabled() and any(t.requires_grad for t in held)):
        return False
    if any(map(is_gathered, layer.modules())):
        return False
    return can_keep(held, [*layer.buffers()]) and not watched(held)


def product_us(part: Any, rows: int, batch: int = 1) -> float:
    """Predicted microseconds of rows times a layer's dense weight, in groups of equal size."""
    rates = torch_rates(part.cores)
    inputs, outputs = part.table_shape
    dtype = part.cores.compute_dtype
    return rates.step_us + rates.product_us(batch, rows, outputs // batch, inputs, dtype)


def torch_rates(network: Any) -> Rates:
    """What torch reaches on the CPU that a compiled network is planned for."""
    return as_machine(network.compilation.options.machine).cpu.libraries["torch"]


def table_us(part: Any) -> float:
    """Predicted microseconds of building a layer's dense weight."""
    us: float = part._table.prepare(part._core_dtype()).predicted_us()
    return us
