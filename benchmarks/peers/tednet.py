"""tednet's linear layers: tensor train (of matrices), tensor ring and CP.

Its block-term layer has a factor for each pair of modes, so is another network than ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.base import Contestant, LayerPeer, silence
from benchmarks.peers.layers import core_names, layer_contestant
from benchmarks.problems import Arrays, Problem


class Tednet(LayerPeer):
    packages = ("tednet.tnn.tensor_ring", "tednet.tnn.tensor_train", "tednet.tnn.cp")
    formats = ("TTMatrix", "TensorRing", "CP")

    def supports(self, problem: Problem) -> str | None:
        fields = problem.cell.case.fields
        refused = super().supports(problem)
        if refused is None and fields["format"] == "TTMatrix":
            return None if len(fields["ins"]) == len(fields["outs"]) else "needs equal mode counts"
        return refused

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        with silence():
            layer, parameters = _MAKERS[problem.cell.case.fields["format"]](problem, arrays)
        flat = (arrays.operands["x"].shape[0], -1)
        return layer_contestant(
            problem, arrays, layer, parameters, _theirs(problem), _ours(problem), flat
        )


def _layer(kind: Any, problem: Problem, *ranks: Any) -> nn.Module:
    fields = problem.cell.case.fields
    layer = kind(list(fields["ins"]), list(fields["outs"]), *ranks, bias=False)
    return layer.to(getattr(torch, problem.cell.dtype))  # type: ignore[no-any-return]


def _train(problem: Problem, arrays: Arrays) -> Any:
    from tednet.tnn.tensor_train import TTLinear

    names = core_names(problem, "G")
    layer = _layer(TTLinear, problem, [arrays.operands[n].shape[-1] for n in names[:-1]])
    return layer, {name: [getattr(layer, f"node{k}")] for k, name in enumerate(names)}


def _ring(problem: Problem, arrays: Arrays) -> Any:
    from tednet.tnn.tensor_ring import TRLinear

    names = core_names(problem, "G")
    layer = _layer(TRLinear, problem, [arrays.operands[n].shape[0] for n in names])
    return layer, {name: [getattr(layer, f"node{k}")] for k, name in enumerate(names)}


def _cp(problem: Problem, arrays: Arrays) -> Any:
    from tednet.tnn.cp import CPLinear

    names = [*core_names(problem, "U"), *core_names(problem, "V")]
    rank = arrays.operands[names[0]].shape[-1]
    layer = _layer(CPLinear, problem, rank)
    blocks = {
        name: [getattr(layer, f"node{k}_block{r}") for r in range(rank)]
        for k, name in enumerate(names)
    }
    return layer, blocks


_MAKERS: dict[str, Any] = {"TTMatrix": _train, "TensorRing": _ring, "CP": _cp}


def _theirs(problem: Problem) -> Any:
    """How a core of ours is theirs: a train has its open axes first, CP a vector for each term."""
    kind = problem.cell.case.fields["format"]

    def convert(name: str, core: Tensor) -> Sequence[Tensor]:
        if kind == "CP":
            return list(core.unbind(-1))
        if kind == "TTMatrix" and name != "G1":
            return [core.movedim(0, 2)]
        return [core]

    return convert


def _ours(problem: Problem) -> Any:
    kind = problem.cell.case.fields["format"]

    def convert(name: str, found: Sequence[Tensor]) -> Tensor:
        if kind == "CP":
            return torch.stack(list(found), -1)
        if kind == "TTMatrix" and name != "G1":
            return found[0].movedim(2, 0)
        return found[0]

    return convert


PEER = Tednet()
