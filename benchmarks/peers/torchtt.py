"""torchTT's LinearLayerTT: a TT-matrix layer."""

from __future__ import annotations

import torch

from benchmarks.peers.base import Contestant, LayerPeer, silence
from benchmarks.peers.layers import core_names, layer_contestant, train_core, train_core_back
from benchmarks.problems import Arrays, Problem


class TorchTT(LayerPeer):
    packages = ("torchtt",)
    formats = ("TTMatrix",)

    def supports(self, problem: Problem) -> str | None:
        fields = problem.cell.case.fields
        refused = super().supports(problem)
        if refused is None and len(fields["ins"]) != len(fields["outs"]):
            return "needs as many input as output modes"
        return refused

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        import torchtt

        fields = problem.cell.case.fields
        names = core_names(problem, "G")
        count = len(names)
        ranks = [1, *(arrays.operands[name].shape[-1] for name in names[:-1]), 1]
        dtype = getattr(torch, problem.cell.dtype)
        with silence():
            layer = torchtt.nn.LinearLayerTT(
                list(fields["ins"]), list(fields["outs"]), ranks, dtype=dtype
            )
        position = {name: k for k, name in enumerate(names)}
        return layer_contestant(
            problem,
            arrays,
            layer,
            {name: [core] for name, core in zip(names, layer.cores, strict=True)},
            lambda name, core: [train_core(position[name], count, core)],
            lambda name, found: train_core_back(position[name], count, found[0]),
            arrays.operands["x"].shape,
        )


PEER = TorchTT()
