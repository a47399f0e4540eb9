"""One layer of an LSTM or GRU in one direction, from core to core at every position.

In: what the input gives to the gates, for all positions; states; the cores of the weights that the
hidden state meets. Out: the outputs of all positions, and the last states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.nn.checks import IMPLEMENTATIONS
from tncompiler.nn.given import Given, GivenTensors, input_leaf, with_inputs
from tncompiler.nn.linear import Linear
from tncompiler.recurrence import gru_cell, lstm_cell, scan

GATES = {"LSTM": 4, "GRU": 3}
Step = Callable[[Expr], Expr]


class Sweep(GivenTensors):
    """The scan of one layer in one direction.

    ``kind``: "LSTM" or "GRU". ``hh``: the weight from the hidden state to the gates, with its bias;
    ``hr``: the one that projects the hidden state, if any. Both give their cores at each call.
    """

    def __init__(self, kind: str, hh: Linear, hr: Linear | None, reverse: bool) -> None:
        self.networks = networks_of(hh, hr)
        t, b = Index("t"), Index("b")
        gates, gate = Index("outputs", hh.out_features), Index("gate", GATES[kind])
        unit = Index("unit", hh.out_features // GATES[kind])
        state = unit if hr is None else Index("projected", hr.out_features)
        x, h = input_leaf("x", (t, b, gates)), input_leaf("h", (b, state))
        bias = [input_leaf("bias", (gates,))] if hh.has_bias else []
        recurrent = with_inputs(hh._network, "hh")
        projected = None if hr is None else with_inputs(hr._network, "hr")
        from_state = _times(hh, recurrent, state, gates)

        def apart(sums: Expr) -> list[Expr]:
            parts = sums.split(gates, (gate, unit))
            return [parts.select(gate, number) for number in range(GATES[kind])]

        def from_hidden(h: Expr) -> list[Expr]:
            return apart(from_state(h) + bias[0] if bias else from_state(h))

        states = [h] if kind == "GRU" else [h, input_leaf("c", (b, unit))]
        if kind == "GRU":
            last, out = scan(gru_cell(apart, from_hidden), h, x, over=t, reverse=reverse)
            outputs = (out, last)
        else:
            project = (
                None if hr is None or projected is None else _times(hr, projected, unit, state)
            )
            cell = lstm_cell(apart, from_hidden, project)
            last, out = scan(cell, tuple(states), x, over=t, reverse=reverse)
            outputs = (out, *last)
        leaves = [leaf.name for leaf in (x, *states, *bias)]
        names = [*leaves, *recurrent.names, *(() if projected is None else projected.names)]
        way = "factorized" if hh.implementation == "factorized" else "auto"
        super().__init__(outputs, names, hh.backend, IMPLEMENTATIONS[way])

    def run(
        self, x: Tensor, states: Sequence[Tensor], hh: Linear, hr: Linear | None
    ) -> tuple[Tensor, ...]:
        """The outputs of all positions, then the last states."""
        cores = [part._core(name) for part in _known(hh, hr) for name in part._table.leaves]
        bias = [] if hh.bias is None else [hh.bias]
        outputs: tuple[Tensor, ...] = self([x, *states, *bias, *cores])
        return outputs


def networks_of(hh: Linear, hr: Linear | None) -> tuple[Expr, ...]:
    """What a sweep was made of: tied weights get other networks."""
    return tuple(part._network for part in _known(hh, hr))


def _known(hh: Linear, hr: Linear | None) -> list[Linear]:
    return [hh] if hr is None else [hh, hr]


def _times(part: Linear, network: Given, near: Index, far: Index) -> Step:
    """How a weight takes a tensor with one index to a tensor with another."""

    def step(value: Expr) -> Expr:
        renamed = value.rename({near: Index("inputs", near.size)})
        made = part.product(renamed, network.network)
        return made if far.name == "outputs" else made.rename({"outputs": far})

    return step
