"""Tensor parallelism: a compiled module whose parameters are cut along an index over a mesh.

Each rank holds one block of the index of every parameter that carries it, as a DTensor, and the
whole of the others; it computes along its block. What has the index comes out in parts, what is
summed over it is added up between ranks: that is all that is communicated, and the report says it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tncompiler.autograd import Flat, NetworkFunction
from tncompiler.binding import Call
from tncompiler.compiler import Compilation
from tncompiler.distributed.module import RankedModule, RankedSpecialisation
from tncompiler.distributed.options import Ranks
from tncompiler.distributed.planning import RankPrograms
from tncompiler.distributed.shard_planner import Held, ShardPlanner, ShardReport, parts_of
from tncompiler.distributed.sums import at
from tncompiler.distributed.team import team_of
from tncompiler.ir.errors import ArgumentError, GradientError, UnknownIndex
from tncompiler.ir.origin import call_site
from tncompiler.module import CompiledModule
from tncompiler.watching import watched


def parallelize(
    module: CompiledModule,
    mesh: DeviceMesh,
    index: Any = None,
    *,
    sizes: Mapping[Any, Any] | None = None,
) -> ShardedModule:
    """The module with its parameters cut along an index over a mesh of one dimension.

    ``index``: an index of a parameter, a bond or an output index, by name or as an Index; None
    takes the one with which a training step is predicted to be fastest. ``sizes``: those of a call,
    for the prediction; free sizes count as 128. The result has DTensors as parameters, with the
    module's names and values; every rank calls it with the same tensors and gets the same results,
    and its `report` says what is communicated. Raises: UnknownIndex if no parameter has the index,
    ArgumentError for what is no compiled network, or a mesh of more dimensions.
    """
    if not isinstance(module, CompiledModule):
        raise ArgumentError(
            f"a {type(module).__name__} is no compiled network",
            where=call_site(),
            fix="give what tnc.compile returned",
        )
    if not isinstance(mesh, DeviceMesh) or mesh.ndim != 1:
        raise ArgumentError(
            f"mesh is {mesh!r:.60}",
            where=call_site(),
            fix='give a DeviceMesh of one dimension, as mesh["tp"]',
        )
    ranks = Ranks(mesh.get_group())
    report = _chosen(module, _names(module.compilation, index), sizes, ranks)
    return ShardedModule(module, mesh, report)


def _names(compilation: Compilation, index: Any) -> list[str]:
    """The index that was given, or all that could be."""
    known: dict[str, None] = {}
    for leaf in compilation.params:
        shape = compilation.parameter_shape(leaf)
        known.update((i.name, None) for i, n in zip(leaf.indices, shape, strict=True) if n > 1)
    if index is None and known:
        return list(known)
    name = str(getattr(index, "name", index))
    if name in known:
        return [name]
    raise UnknownIndex(
        f"no parameter has an index {name!r:.40} of 2 or more positions",
        where=compilation.place(),
        fix=f"choose of {', '.join(known)}" if known else "there is none that could be cut",
    )


def _chosen(
    module: CompiledModule, names: Sequence[str], sizes: Mapping[Any, Any] | None, ranks: Ranks
) -> ShardReport:
    """The fastest of some indices, by what rank 0 predicts."""
    compilation, team = module.compilation, team_of(ranks.group, ranks.lost_after_s)
    nominal = dict(compilation.nominal({} if sizes is None else sizes))
    call = Call(compilation.default_dtypes(module.compute_dtype), nominal, nominal)
    wrt = tuple(name for name, p in module.named_parameters() if p.requires_grad)
    world = team.world
    with team.one_call():
        given = compilation, call, wrt, ranks, world
        plans = ShardPlanner(names[0], *given).plans
        reports = [ShardPlanner(name, *given, plans=plans).report() for name in names]
        best = min(reports, key=lambda report: report.ranks_us)
        taken = team.share_text(best.index)
    return next((report for report in reports if report.index == taken), best)


class ShardedModule(RankedModule):
    """What `tnc.parallelize` returns. ``report`` says how it is cut, and what is communicated."""

    def __init__(self, module: CompiledModule, mesh: DeviceMesh, report: ShardReport) -> None:
        self.mesh, self.report = mesh, report
        self._is_cut = False
        super().__init__(
            module.compilation, Ranks(mesh.get_group()), backend=module.backend, dtype=module._dtype
        )
        self.parts = parts_of(self.compilation, report.index, mesh.size())
        values = dict(module.named_parameters())
        for leaf, (owner, name) in zip(self.compilation.params, self._owners, strict=False):
            value = values[leaf.name]
            cut = distribute_tensor(value.detach(), mesh, [self._placement(leaf.name)])
            owner._parameters[name] = nn.Parameter(cut, value.requires_grad)
        self._is_cut = True

    def _placement(self, name: str) -> Shard | Replicate:
        part = self.parts.get(name)
        return Replicate() if part is None else Shard(part.axis)

    @torch.no_grad()
    def reset_parameters(
        self,
        generator: torch.Generator | None = None,
        skip: frozenset[str] = frozenset(),
        *,
        inputs: Any = None,
    ) -> None:
        """As a compiled module draws them, on rank 0; each rank takes its parts."""
        if not self._is_cut:
            super().reset_parameters(generator, skip, inputs=inputs)
            return
        drawn = CompiledModule(self.compilation, dtype=self._dtype)
        drawn.reset_parameters(generator, inputs=inputs)
        for name, value in drawn.named_parameters():
            if name not in skip:
                cut = distribute_tensor(value.detach(), self.mesh, [self._placement(name)])
                self.get_parameter(name).copy_(cut)

    def _alike(self) -> CompiledModule:
        return ShardedModule(self, self.mesh, self.report)

    # ---------------------------------------------------------------- calling

    def _run(self, tensors: Sequence[Tensor], cast: bool) -> Any:
        if watched([t for t in tensors if not isinstance(t, DTensor)]):
            whole = [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
            return self.compilation.pack(self._flat(whole)(*whole))
        grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        spec = self._specialise(tensors, cast, grad, keeps=False)
        own = [self._own(*one) for one in zip(self.compilation.ordered, tensors, strict=True)]
        if spec.positions:
            results = NetworkFunction.apply(spec, *own)  # type: ignore[no-untyped-call]
            return self.compilation.pack(results)
        return self.compilation.pack(spec.results(own))

    def _own(self, leaf: Any, tensor: Tensor) -> Tensor:
        """What this rank computes with: its part of a parameter, the whole of an input."""
        if not isinstance(tensor, DTensor):
            return tensor
        if leaf.kind != "param":
            tensor = tensor.redistribute(self.mesh, [Replicate()])
        return tensor.to_local()

    def _planner(self, call: Call, wrt: tuple[str, ...], backends: Sequence[str]) -> ShardPlanner:
        given = self.compilation, call, wrt, self.ranks, self.team.world, backends[:1]
        return ShardPlanner(self.report.index, *given)

    def _specialisation(
        self, call: Call, wrt: tuple[str, ...], backend: str, programs: RankPrograms
    ) -> RankedSpecialisation:
        return ShardedSpecialisation(self, call, wrt, backend, programs)


class ShardedSpecialisation(RankedSpecialisation):
    """One combination of shapes, with parameters in parts."""

    module: ShardedModule

    def _load(self, programs: RankPrograms, wrt: tuple[str, ...]) -> None:
        module, parts = self.module, self.module.parts
        held = Held.of(programs, parts, module.team.world, wrt)
        self._forward = module.function_of(programs.forward, self.backend, parts, held.saved)
        if programs.training is None:
            return
        program = programs.training.backward
        known = {**parts, **{name: held.forward[name] for name in held.saved}}
        backward = module.function_of(program, self.backend, known, held.gradients)
        bounds = {
            position: (parts[name].axis, *parts[name].bounds(module.team.rank))
            for position, name in enumerate(wrt)
            if name in parts and program.outputs[position] not in backward.parts
        }

        def own(*arrays: Any) -> tuple[Any, ...]:
            results = backward(*arrays)
            return tuple(
                at(result, (bounds[k],)) if k in bounds else result
                for k, result in enumerate(results)
            )

        self._backward = own

    @property
    def flat(self) -> Flat:
        """Refused: torch would differentiate this rank's part as if it were the whole."""
        raise GradientError(
            "a module cut by tnc.parallelize has first derivatives only",
            where=self.module.compilation.place(),
            fix="take second ones of the module as it was compiled",
        )
