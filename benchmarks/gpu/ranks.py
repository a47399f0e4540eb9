"""Slices on a GPU: ranks that hold their tensors there, against one process without a limit.

    python -m benchmarks.gpu.ranks

One rank on NCCL, which takes one a device: its slices, and every operation between ranks, of which
one has what it gave. Then two processes that share the machine's one GPU over gloo. Exits with 1 if
anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

import tncompiler as tnc
from benchmarks.simulate import on_ranks
from examples.slices import Network, circuit, peps_norm
from tncompiler.distributed.calibrate import LOST_S, Stopwatch
from tncompiler.distributed.team import Team, digest_of

TOLERANCE = 2e-5  # of the largest element, in float32
LIMITED: tuple[Callable[[], Network], ...] = (
    lambda: circuit(4, 5, 14, "4MiB"),
    lambda: peps_norm(4, 5, 4, "4MiB"),
)
SMALL: tuple[Callable[[], Network], ...] = (  # as every step's kernels take seconds to compile
    lambda: circuit(2, 3, 6, "1KiB"),
    lambda: peps_norm(3, 3, 3, "16KiB"),
)
WORLDS = (("nccl", 1), ("gloo", 2))


def check_limited(made: Network, device: str, backend: str) -> tuple[str, float]:
    """What a contraction in slices, as it does not fit, differs by from the whole."""
    tensors = [torch.from_numpy(array) for array in made.arrays]
    options = tnc.PlanOptions(memory_limit=made.memory_limit)
    ranks = tnc.Ranks(dist.group.WORLD)
    sliced = tnc.compile(made.expr, plan=options, process_group=ranks, backend=backend)
    given = [t.to(device) for t in tensors]
    value, again = sliced(*given), sliced(*given)
    if not torch.equal(value, again):
        raise ValueError(f"{made.name}: two runs differ: {value} and {again}")
    whole = tnc.compile(made.expr, backend="torch")(*tensors)
    return f"{made.name}, {sliced.slices()} slices", _off([value], [whole], device)


def check_gradients(device: str, backend: str) -> tuple[str, float]:
    """What a layer in four slices differs by, with all its gradients."""
    i, r, s, o = tnc.indices("i r s o", i=96, r=24, s=24, o=64)
    b = tnc.Index("b")
    cores = tnc.param("U", i, r), tnc.param("G", r, s), tnc.param("V", s, o)
    layer = tnc.contract(tnc.input("x", b, i), *cores, out=(b, o))
    ranks = tnc.Ranks(dist.group.WORLD, slices=4)
    torch.manual_seed(0)
    x = torch.randn(256, 96)
    exact = tnc.compile(layer, backend="torch", dtype="float64")
    ours = tnc.compile(layer, process_group=ranks, backend=backend).to(device)
    ours.load_state_dict(exact.state_dict())
    exact.load_state_dict({n: t.cpu().double() for n, t in ours.state_dict().items()})
    wide = x.double().requires_grad_()
    given = x.to(device).requires_grad_()
    y, reference = ours(given), exact(wide)
    y.square().sum().backward()
    reference.square().sum().backward()
    mine = [y, given.grad, *(p.grad for p in ours.parameters())]
    theirs = [reference, wide.grad, *(p.grad for p in exact.parameters())]
    return f"layer, {ours.slices()} slices", _off(mine, theirs, device)


def check_operations(device: str) -> tuple[str, float]:
    """Whether all that ranks send each other arrives, in a group of one rank that does send it."""
    team = Team(dist.group.WORLD, LOST_S)
    team.group, team.device = dist.group.WORLD, torch.device(device, torch.cuda.current_device())
    torch.manual_seed(0)
    sent = [torch.randn(3, 5), torch.randn(4, dtype=torch.complex64), torch.tensor([True, False])]
    given = [t.to(device) for t in sent]
    shapes = [[tuple(t.shape) for t in sent]]
    team.agree(digest_of("alike"), lambda: "alike")
    shared = [t.clone() for t in given]
    team.share(shared)
    found = [
        *team.add_up([t.clone() for t in given]),
        *team.exchange([given], shapes)[0],
        *(team.gather(t)[0] for t in given),
        *shared,
    ]
    text = team.share_text("what the first rank has")
    wrong = [t for t, e in zip(found, sent * 4, strict=True) if not torch.equal(t.cpu(), e)]
    return "operations between ranks", float(bool(wrong) or text != "what the first rank has")


def _off(mine: Sequence[Any], theirs: Sequence[Any], device: str) -> float:
    """The largest error of any, relative to the largest element of each."""
    elsewhere = [t.device for t in mine if t.device.type != torch.device(device).type]
    if elsewhere:
        raise ValueError(f"results of tensors on {device} are on {elsewhere}")
    pairs = [(t.detach().cpu(), e.detach()) for t, e in zip(mine, theirs, strict=True)]
    return max(((t - e).abs().max() / e.abs().max()).item() for t, e in pairs)


@dataclass(frozen=True, slots=True)
class Checking:
    """What every rank does; gives the errors by what was checked."""

    device: str
    operations: bool

    def __call__(self, watch: Stopwatch) -> dict[str, float]:
        found = {}
        if self.operations:
            name, off = check_operations(self.device)
            found[name] = off
            print(f"{name}: {off:.1e}", flush=True)
        for backend, networks in (("torch", LIMITED), ("auto", SMALL)):
            limited = [check_limited(made(), self.device, backend) for made in networks]
            for name, off in (*limited, check_gradients(self.device, backend)):
                found[f"{backend}: {name}"] = off
                if watch.rank == 0:
                    print(f"{backend}: {name}: {off:.1e}", flush=True)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.ranks", description=__doc__)
    parser.add_argument("--device", default="cuda", help="where the tensors are")
    device = parser.parse_args().device
    wrong = []
    for kind, world in WORLDS:
        if kind == "nccl" and device == "cpu":
            continue
        print(f"{kind}, {world} ranks", flush=True)
        task = Checking(device, operations=kind == "nccl")
        found = on_ranks(task, time.perf_counter, world, kind)
        wrong += [f"{kind}: {name}" for name, off in found.items() if not off < TOLERANCE]
    print(f"{len(wrong)} wrong", *wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
