"""A compiled network whose slices run over the ranks of a process group, as a torch module.

Every rank calls it with the same tensors and gets the same results and gradients, as if it were
alone. Where torch looks inside (compile, export, functorch, second derivatives) every rank computes
everything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tncompiler.autograd import Specialisation
from tncompiler.backends.numpy.threads import among_tensors
from tncompiler.binding import Call
from tncompiler.compiler import Compilation
from tncompiler.distributed.heap import keep_freed_memory
from tncompiler.distributed.options import Ranks
from tncompiler.distributed.planning import RankPlanner, RankPrograms, backends_on_cpu
from tncompiler.distributed.run import RankedRun, Work
from tncompiler.distributed.shards import Shard
from tncompiler.distributed.stages import Slices, Stage, stages_of
from tncompiler.distributed.team import digest_of, team_of
from tncompiler.ir.dtypes import is_differentiable
from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.program import Program
from tncompiler.module import KEPT, CompiledModule
from tncompiler.planning.digest import program_digest

Function = Callable[..., tuple[Any, ...]]


class RankedModule(CompiledModule):
    """The module that `tnc.compile(…, process_group=…)` returns."""

    _repeats = False  # ranks first agree on what they are about to do

    def __init__(self, compilation: Compilation, ranks: Ranks, **options: Any) -> None:
        if options.get("cuda_graph"):
            raise ArgumentError(
                "cuda_graph=True does not go with process_group",
                where=compilation.place(),
                fix="leave one of them out",
            )
        keep_freed_memory()
        self.ranks = ranks
        self.team = team_of(ranks.group, ranks.lost_after_s)
        super().__init__(compilation, **options)
        self._work = program_digest(compilation.logical(self._dtypes()))
        self._digests: dict[tuple[Any, ...], Tensor] = {}  # of what was told, by kind of call

    @torch.no_grad()
    def reset_parameters(
        self,
        generator: torch.Generator | None = None,
        skip: frozenset[str] = frozenset(),
        *,
        inputs: Any = None,
    ) -> None:
        """As a compiled module draws them, on rank 0; all ranks take its numbers."""
        super().reset_parameters(generator, skip, inputs=inputs)
        drawn = [p for name, p in self.named_parameters() if name not in skip]
        with self.team.one_call():
            self.team.share(drawn)

    def _alike(self) -> CompiledModule:
        return RankedModule(self.compilation, self.ranks, backend=self.backend, dtype=self._dtype)

    def _agree(self, key: tuple[Any, ...], tensors: Sequence[Tensor]) -> None:
        digest = self._digests.get(key)
        if digest is None:
            digest = digest_of(self._told(tensors))
            if len(self._digests) >= KEPT:
                self._digests.clear()
            self._digests[key] = digest
        with self.team.one_call():
            self.team.agree(digest, lambda: self._told(tensors))

    def stages(self) -> list[Stage]:
        """What was run so far, for each combination of shapes forward and backward."""
        specs = self._specialisations.values()
        ranked = [spec for spec in specs if isinstance(spec, RankedSpecialisation)]
        return [stage for spec in ranked for stage in spec.stages]

    def slices(self) -> int:
        """The most slices that a nest of loops has, in what was run so far; 1 where none has."""
        counts = [stage.count for stage in self.stages() if isinstance(stage, Slices)]
        return max(counts, default=1)

    def _told(self, tensors: Sequence[Tensor]) -> str:
        """What this rank is about to compute, for the others to compare."""
        grad = torch.is_grad_enabled()
        leaves = ", ".join(
            f"{leaf.name} {tuple(t.shape)} {t.dtype}{' with gradient' * (grad and t.requires_grad)}"
            for leaf, t in zip(self.compilation.ordered, tensors, strict=True)
        )
        compilation, ranks = self.compilation, self.ranks
        plan = compilation.fixed_plan
        asked = compilation.options.key() if plan is None else (plan.digest, plan.networks)
        return f"{leaves}; slices={ranks.slices}, backend={self.backend}; {asked}; {self._work}"

    def _keeps_of(self, tensors: Sequence[Tensor], cast: bool, grad: bool) -> bool:
        """Nothing is kept: a rank has only its part of what it would keep."""
        return False

    def _make_specialisation(
        self, tensors: Sequence[Tensor], grad: bool, cast: bool, keeps: bool
    ) -> Specialisation:
        call = self._call(tensors, cast)
        wrt = tuple(
            leaf.name
            for leaf, tensor, dtype in zip(
                self.compilation.ordered, tensors, call.dtypes[1:], strict=True
            )
            if grad and tensor.requires_grad and is_differentiable(dtype)
        )
        backends = self._backends_of(call, {tensor.device.type for tensor in tensors})
        with self.team.one_call():
            programs = self._planner(call, wrt, backends).programs(self.team)
        return self._specialisation(call, wrt, programs.plan.backend, programs)

    def _planner(self, call: Call, wrt: tuple[str, ...], backends: Sequence[str]) -> RankPlanner:
        return RankPlanner(self.compilation, call, wrt, self.ranks, self.team.world, backends)

    def _specialisation(
        self, call: Call, wrt: tuple[str, ...], backend: str, programs: RankPrograms
    ) -> RankedSpecialisation:
        return RankedSpecialisation(self, call, wrt, backend, programs)

    def _backends_of(self, call: Call, devices: set[str]) -> tuple[str, ...]:
        """The one that was named; else Triton on a GPU, and on a CPU those that rank 0 is to choose
        the faster of: of slices, NumPy has one thread each."""
        if self.backend not in ("auto", "numpy"):
            return (self.backend,)
        if devices <= {"cpu"}:
            known = backends_on_cpu(call.dtypes)
            if self.backend == "numpy":
                return known[-1:]
            return known if torch.get_num_threads() == 1 else known[:1]
        return ("triton" if devices == {"cuda"} and self.backend == "auto" else "torch",)

    def function_of(
        self,
        program: Program,
        backend: str,
        given: Mapping[str, Shard] | None = None,
        wanted: Collection[str] = (),
    ) -> RankedRun:
        """A program over the ranks, called with the backend's arrays.

        ``given``: arguments that ranks have in parts; ``wanted``: results that may be in parts.
        """

        def load(part: Program, entry: str) -> Function:
            run = self.compilation.executable(part, backend, entry).run
            return among_tensors(run) if backend == "numpy" else run

        place = self.compilation.place()
        work = Work(self.team, self.ranks, load, backend == "numpy", place)
        return RankedRun(program, work, given, wanted)


class RankedSpecialisation(Specialisation):
    """One combination of shapes over ranks: what autograd's function asks of a specialisation."""

    def __init__(
        self,
        module: RankedModule,
        call: Call,
        wrt: tuple[str, ...],
        backend: str,
        programs: RankPrograms,
    ) -> None:
        super().__init__(module.compilation, call, (), backend)
        self.module, self.programs = module, programs
        names = [leaf.name for leaf in module.compilation.ordered]
        self.positions = tuple(names.index(name) for name in wrt)
        self._load(programs, wrt)
        if programs.training is not None:
            self._read_by(programs.training.backward, names)
            self.forward, self.backward = self._forward, self._backward
            self.output_count = len(programs.forward.outputs) - len(programs.training.saved)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is run, forward and backward."""
        training = self.programs.training
        backward = () if training is None else stages_of(training.backward)
        return (*stages_of(self.programs.forward), *backward)

    def _load(self, programs: RankPrograms, wrt: tuple[str, ...]) -> None:
        """Make the functions of the programs."""
        self._forward: Function = self.module.function_of(programs.forward, self.backend)
        if programs.training is not None:
            self._backward: Function = self.module.function_of(
                programs.training.backward, self.backend
            )

    @cached_property
    def run(self) -> Function:
        """The forward program, where no gradient is asked for."""
        return self._forward
