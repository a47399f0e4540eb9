"""The memory-time curve of one transformer-sized layer, and the plan families of some layers.

In: a clock. Out: for each limit of memory, from none down to the smallest that can be kept, what
the plan predicts and what NumPy takes; for each layer the ranges of the batch and their plans.
"""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np

import tncompiler as tnc
from benchmarks.measure import Clock
from tncompiler.ir.errors import PlanError

RANK, INS, OUTS, BATCH = 16, (8, 8, 12), (8, 16, 24), 2048  # 768 → 3072, as in a transformer
SHARES = (1.0, 0.8, 0.65, 0.5, 0.42, 0.36, 0.32, 0.0)  # 0: the smallest limit that is found
ROUNDS = 3
FAMILIES: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "TTMatrix": (16, (8, 8, 12), (8, 16, 24)),
    "TT": (32, (8, 8, 12), (8, 16, 24)),
    "Tucker": (16, (24, 32), (48, 64)),
    "TensorRing": (8, (24, 32), (48, 64)),
}


@dataclass(frozen=True, slots=True)
class Point:
    """One limit: bytes predicted and held by NumPy at most, microseconds predicted and taken."""

    limit: int | None
    predicted_bytes: int
    measured_bytes: int
    predicted_us: float
    measured_us: float
    saved: int
    recomputed: int
    sliced: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A range of batches, the order that runs there, and its predicted microseconds by size."""

    layer: str
    low: int
    high: int
    path: str
    curve: tuple[tuple[int, float], ...]


def layer(rank: Any, ins: tuple[int, ...], outs: tuple[int, ...], name: str = "TTMatrix") -> Any:
    """A tensorized layer with bias and gelu, its batch a free size."""
    weight = getattr(tnc.formats, name)(rank, clamp=True).network(ins, outs)
    legs = [i for i in weight.indices if i.name.startswith("i")]
    out = [i for i in weight.indices if i not in legs]
    (batch,) = tnc.indices("b")
    y = tnc.contract(tnc.input("x", batch, *legs), weight, out=(batch, *out))
    return tnc.gelu(y + tnc.param("bias", *out))


def memory_curve(clock: Clock) -> list[Point]:
    """The points of the curve, the largest limit first."""
    expr = layer(RANK, INS, OUTS)
    x = np.random.default_rng(0).standard_normal((BATCH, *INS)).astype("float32")
    whole = _point(expr, None, x, clock)
    points = [whole]
    for share in SHARES[1:]:
        limit = max(int(share * whole.predicted_bytes), 1)
        try:
            points.append(_point(expr, limit, x, clock))
        except PlanError as error:
            least = int(str(error).split("memory_limit=")[1].split()[0])
            points.append(_point(expr, least, x, clock))
            break
    return points


def _point(expr: Any, limit: int | None, x: np.ndarray, clock: Clock) -> Point:
    plan = None if limit is None else tnc.PlanOptions(memory_limit=limit)
    f = tnc.compile(expr, framework="numpy", seed=0, plan=plan)
    sizes = {"b": len(x)}
    names = f._differentiable(None)
    step = f.compilation.training_step(f._dtypes(), f.compilation.nominal(sizes), names).fitted
    y, pull = f.vjp(x)
    cotangent = np.ones_like(y)
    pull(cotangent)
    del y, pull
    times = []
    for _ in range(ROUNDS):
        start = clock()
        f.vjp(x)[1](cotangent)
        times.append(clock() - start)
    gc.collect()
    tracemalloc.start()
    f.vjp(x)[1](cotangent)
    measured = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Point(
        limit,
        step.peak,
        measured,
        step.time_us,
        min(times) * 1e6,
        len(step.programs.saved),
        len(step.programs.recomputed),
        step.sliced,
    )


def family_members() -> list[Member]:
    """The training plans of layers over batches of 1 to 65,536."""
    found = []
    for name, (rank, ins, outs) in FAMILIES.items():
        options = tnc.PlanOptions(training=True)
        family = tnc.plan_family(layer(rank, ins, outs, name), "b", 1, 65536, options=options)
        for member in family.members:
            curve = tuple((int(size), float(us)) for size, us in member.curve)
            path = str(member.plan.networks[0].linear())
            found.append(Member(name, member.low, member.high, path, curve))
    return found
