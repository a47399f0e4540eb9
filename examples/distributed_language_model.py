"""The tensorized causal language model, trained by two processes as by one.

What `examples/language_model.py` compiles as one expression is cut into blocks here: modules, so
that each can be checkpointed, compiled and spread over processes (FSDP2) on its own.
`python examples/distributed_language_model.py` trains it in one plain process, under DDP, and under
FSDP2 with bfloat16 autocast, checkpoints and torch.compile, on the same batches, and compares the
curves.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from language_model import (
    BATCH,
    LAYERS,
    batches,
    block,
    characters,
    m1,
    m2,
    matrix,
    norm,
    r,
    t,
    v,
    v1,
    v2,
)
from language_model import b as rows
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import tncompiler as tnc

WORLD = 2
LEARNING_RATE = 3e-3
SMOOTHING = 10  # steps that a point of a compared curve is the mean of


# ---------------------------------------------------------------------------- the model


class LanguageModel(nn.Module):
    """The model of `language_model.loss_expression`, cut between its blocks and before its loss."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        x = tnc.input("x", rows, t, m1, m2)
        ids = tnc.input("ids", rows, t, dtype="int64")
        places = tnc.param("place1", t, r) @ tnc.param("place2", r, m1, m2)
        first = tnc.gather(matrix("embedding", (v1, v2), (m1, m2)), (v1, v2), ids) + places
        logits = (norm(x, "last") @ matrix("head", (m1, m2), (v1, v2))).merge((v1, v2), v)
        self.first = tnc.compile(first, seed=seed)
        self.blocks = nn.ModuleList(
            tnc.compile(block(x, layer), seed=seed + 1 + layer) for layer in range(LAYERS)
        )
        self.head = tnc.compile(logits, seed=seed + 1 + LAYERS)
        self.checkpoints = False
        self._start_small(torch.Generator().manual_seed(seed))

    def _start_small(self, generator: torch.Generator) -> None:
        """Draw the head so that logits start with values of size 1, as its own network alone does
        not know what it is given."""
        x = torch.randn(2, t.size, m1.size, m2.size, generator=generator)
        self.head.reset_parameters(generator, inputs=[x])

    def forward(self, ids: Tensor, following: Tensor) -> Tensor:
        x = self.first(ids)
        for each in self.blocks:
            x = checkpoint(each, x, use_reentrant=False) if self.checkpoints else each(x)
        logits = self.head(x).float()
        return functional.cross_entropy(logits.flatten(0, 1), following.flatten())


def plain(model: LanguageModel) -> nn.Module:
    return model


def data_parallel(model: LanguageModel) -> nn.Module:
    return DistributedDataParallel(model)


def sharded(model: LanguageModel) -> nn.Module:
    """FSDP2 over every block, each compiled and checkpointed."""
    mesh = init_device_mesh("cpu", (WORLD,))
    model.checkpoints = True
    for each in (model.first, *model.blocks, model.head):
        each.compile()
        fully_shard(each, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is trained: what is put around it, in how many processes, in which precision."""

    wrap: Callable[[LanguageModel], nn.Module]
    world: int = 1
    autocast: bool = False

    def precision(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.autocast else nullcontext()


WAYS = {
    "plain": Way(plain),
    "DDP": Way(data_parallel, WORLD),
    "FSDP2, bfloat16 autocast, checkpoints, torch.compile": Way(sharded, WORLD, autocast=True),
}


# ---------------------------------------------------------------------------- training


@dataclass(frozen=True, slots=True)
class Run:
    """``losses``: of whole batches, step by step; ``last``: the mean of the last ten;
    ``difference``: the largest from the plain process, both smoothed."""

    name: str
    losses: list[float]
    last: float = 0.0
    difference: float = 0.0


def train(way: Way, steps: int, seed: int, rank: int) -> list[float]:
    """The losses of all processes' rows, the same in each."""
    model = way.wrap(LanguageModel(seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for ids, following in batches(characters(), steps, seed):
        own = slice(rank * BATCH // way.world, (rank + 1) * BATCH // way.world)
        optimizer.zero_grad()
        with way.precision():
            loss = model(ids[own], following[own])
        loss.backward()
        optimizer.step()
        mean = loss.detach().float()
        if way.world > 1:
            dist.all_reduce(mean)
        losses.append(float(mean) / way.world)
    return losses


def in_processes(name: str, steps: int, seed: int) -> list[float]:
    """Train in as many processes as the way has, each started anew; the losses."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--steps", str(steps), "--seed", str(seed)]
        children = [
            subprocess.Popen([*command, "--child", name, str(rank), folder], env=environment)
            for rank in range(WAYS[name].world)
        ]
        statuses = [child.wait() for child in children]
        if any(statuses):
            raise RuntimeError(f"{name}: a process failed")
        losses: list[float] = json.loads((Path(folder) / "losses.json").read_text())
    return losses


def run_child(name: str, rank: int, folder: Path, steps: int, seed: int) -> None:
    """One of the processes; the first writes the losses down."""
    way = WAYS[name]
    torch.set_num_threads(1)
    if way.world > 1:
        method = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=way.world)
    losses = train(way, steps, seed, rank)
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(losses))
    if way.world > 1:
        dist.destroy_process_group()


# ---------------------------------------------------------------------------- comparing


def smooth(losses: Sequence[float]) -> list[float]:
    """Means over the last steps up to each."""
    return [statistics.mean(losses[max(0, k + 1 - SMOOTHING) : k + 1]) for k in range(len(losses))]


def compared(run: Run, reference: Run) -> Run:
    pairs = zip(smooth(run.losses), smooth(reference.losses), strict=True)
    last = statistics.mean(run.losses[-10:])
    return replace(run, last=last, difference=max(abs(a - c) for a, c in pairs))


def draw(runs: Sequence[Run], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for run, style in zip(runs, ("-", "--", ":"), strict=True):
        axes.plot(smooth(run.losses), style, label=run.name)
    axes.set(xlabel="step", ylabel="loss, nats a character", title="One process, two processes")
    axes.legend()
    figure.savefig(path, dpi=120)


def shown(runs: Sequence[Run]) -> Table:
    made = Table("how", title="Tensorized language model")
    for heading in ("first loss", "last ten", "largest difference"):
        made.add_column(heading, justify="right")
    for run in runs:
        numbers = (run.losses[0], run.last, run.difference)
        made.add_row(run.name, *(f"{number:.4f}" for number in numbers))
    return made


def main(argv: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the record and the picture go")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "RANK", "FOLDER"), help="one process")
    options = parser.parse_args(argv)
    if options.child:
        name, rank, folder = options.child
        run_child(name, int(rank), Path(folder), options.steps, options.seed)
        return []
    runs = [Run(name, in_processes(name, options.steps, options.seed)) for name in WAYS]
    runs = [compared(run, runs[0]) for run in runs]
    Console(width=110).print(shown(runs))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"steps": options.steps, "runs": [asdict(run) for run in runs]}
        (options.out / "torch_training.json").write_text(json.dumps(record, indent=1) + "\n")
        draw(runs, options.out / "torch_training.png")
    return runs


if __name__ == "__main__":
    main()
