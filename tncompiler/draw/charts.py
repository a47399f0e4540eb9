"""Charts of a compiled network: memory over its steps, the roofline, the plans of a family.

Each takes and returns matplotlib Axes; without ``ax`` a Figure is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from tncompiler.compiler import Compilation
from tncompiler.draw.canvas import new_axes
from tncompiler.explain import quantity
from tncompiler.families import free_size
from tncompiler.inspection import Inspection
from tncompiler.ir.errors import GradientError
from tncompiler.ir.passes.partition import TrainingPrograms, again_names
from tncompiler.ir.program import Program
from tncompiler.planning.cost import step_bytes, step_elementwise, step_flops
from tncompiler.planning.family import FamilyMember, PlanFamily
from tncompiler.planning.machine import as_machine
from tncompiler.planning.memory import held_bytes, live_bytes, made_bytes, owners
from tncompiler.planning.rates import Rates
from tncompiler.planning.timing import program_us, step_us

BLUE, PURPLE, ORANGE, GREEN, GREY = "#0072B2", "#CC79A7", "#D55E00", "#009E73", "#808080"
_PLAN_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")
_SIZE = (7.0, 3.6)  # inches
# legends stand above the chart, where no line runs through them
_ABOVE: dict[str, Any] = {
    "loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.3, "frameon": False,
    "fontsize": 8, "columnspacing": 1.2,
}  # fmt: skip
_NAMED = 6  # steps of a roofline that are named: those that take most time
_PASSED = tuple(2**k for k in range(12, 28))  # bytes of passes, the last at the rate of memory


# ---------------------------------------------------------------------------- memory


@dataclass(frozen=True, slots=True)
class MemoryTrace:
    """Bytes at each step of a run.

    ``live``: of all computed values; ``held``: those among them that stay for the backward pass and
    the caller. ``forward``: how many steps the forward pass has. ``recomputed``: positions of steps
    whose values are made again.
    """

    live: tuple[int, ...]
    held: tuple[int, ...]
    forward: int
    recomputed: tuple[int, ...] = ()


def memory_trace(network: Inspection, sizes: Mapping[Any, Any] | None = None) -> MemoryTrace:
    """The bytes alive in a training step, or in the forward pass where there is no gradient."""
    compilation = network.compilation
    nominal = compilation.nominal({} if sizes is None else sizes)
    try:
        cut = compilation.training(network._dtypes(), nominal, network._differentiable(None))
    except GradientError:
        program = network.program(sizes)
        live = tuple(bytes_ for _, bytes_ in live_bytes(program, nominal))
        return MemoryTrace(live, _held(program, nominal), len(live))
    forward = [bytes_ for _, bytes_ in live_bytes(cut.forward, nominal)]
    kept = held_bytes(cut.forward, nominal)
    backward = [kept + bytes_ for _, bytes_ in live_bytes(cut.backward, nominal)]
    held = (*_held(cut.forward, nominal), *[kept] * len(backward))
    again = tuple(len(forward) + k for k in _again(cut))
    return MemoryTrace((*forward, *backward), held, len(forward), again)


def _held(program: Program, nominal: Mapping[sympy.Symbol, int]) -> tuple[int, ...]:
    """By step, the bytes made so far that the program returns."""
    owner = owners(program)
    returned = {owner[name] for name in program.outputs if name in owner}
    total, totals = 0, []
    for step in program.steps:
        if step.out.name in returned:
            total += made_bytes(program, step).evaluate(nominal)
        totals.append(total)
    return tuple(totals)


def _again(cut: TrainingPrograms) -> list[int]:
    """The backward steps that make values of the forward pass again."""
    names = again_names(cut)
    return [k for k, step in enumerate(cut.backward.steps) if step.out.name in names]


def draw_memory(
    network: Inspection, ax: Any = None, *, sizes: Mapping[Any, Any] | None = None
) -> Any:
    """Bytes alive step by step through forward and backward pass, those held for later among them.

    Steps whose values the backward pass makes again are marked.
    """
    trace = memory_trace(network, sizes)
    ax = new_axes(ax, _SIZE)
    edges = range(len(trace.live) + 1)
    for values, colour, name in (
        (trace.live, "#56B4E9", "alive"),
        (trace.held, PURPLE, "of it saved for the backward pass, or an output"),
    ):
        ax.stairs(values, edges, fill=True, color=colour, label=name, baseline=0)
    if trace.forward < len(trace.live):
        ax.axvline(trace.forward, color=GREY, linestyle="--", linewidth=1)
        ax.annotate(
            "backward →", (trace.forward, 0.97), (4, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", color=GREY, fontsize=8,
        )  # fmt: skip
    if trace.recomputed:
        tops = [trace.live[k] for k in trace.recomputed]
        middles = [k + 0.5 for k in trace.recomputed]
        ax.plot(middles, tops, "v", color=ORANGE, label="computed again")
    peak = max(trace.live, default=0)
    ax.set(xlabel="step", xlim=(0, max(len(trace.live), 1)), ylim=(0, max(peak, 1) * 1.15))
    ax.set_title(f"peak {quantity(peak, 'B')}", fontsize=10, loc="right")
    _in_units(ax.yaxis, "B")
    ax.legend(**_ABOVE, ncols=3)
    return ax


# ---------------------------------------------------------------------------- roofline


@dataclass(frozen=True, slots=True)
class Spot:
    """One step on a roofline: its name, work (flops or elements), bytes moved, microseconds."""

    number: int
    name: str
    work: int
    moved: int
    us: float
    is_product: bool


def roofline_spots(
    network: Inspection, sizes: Mapping[Any, Any] | None = None, part: str = "forward"
) -> list[Spot]:
    """Every step that moves data, with its predicted time on one thread."""
    program = network.program(sizes, part)
    nominal = network.compilation.nominal({} if sizes is None else sizes)
    rates = as_machine(network.compilation.options.machine).planning
    spots = []
    for number, step in enumerate(program.steps, start=1):
        flops = step_flops(program, step).evaluate(nominal)
        elements = step_elementwise(step, program).evaluate(nominal)
        moved = sum(terms.evaluate(nominal) for terms in step_bytes(program, step))
        us = step_us(program, step, dict(nominal), rates)
        if moved and us:
            spots.append(Spot(number, step.out.name, flops or elements, moved, us, flops > 0))
    return spots


@dataclass(frozen=True, slots=True)
class Roofs:
    """What a machine's table has at most, a microsecond: flops of a product, bytes of a pass over
    memory, and over what is near (a cache)."""

    flops: float
    bytes_far: float
    bytes_near: float


def roofs_of(rates: Rates) -> Roofs:
    """The roofs of a machine's table."""
    extents = (256, 512, 1024, 2048)
    flops = max(2.0 * n**3 / rates.product_us(1, n, n, n, "float32") for n in extents)
    passes = [size / rates.pass_us(size) for size in _PASSED]
    return Roofs(flops, passes[-1], max(passes))


def draw_roofline(
    network: Inspection,
    ax: Any = None,
    *,
    sizes: Mapping[Any, Any] | None = None,
    part: str = "forward",
) -> Any:
    """Every step of a part by its work for each byte and its predicted rate, under the roofs.

    Areas are shares of the predicted time; the steps that take most are named.
    """
    spots = roofline_spots(network, sizes, part)
    machine = as_machine(network.compilation.options.machine)
    roofs = roofs_of(machine.planning)
    ax = new_axes(ax, (8.0, 4.4))
    working = [spot for spot in spots if spot.work]
    ridges = [roofs.flops / roofs.bytes_far, roofs.flops / roofs.bytes_near]
    intensities = [*(spot.work / spot.moved for spot in working), *ridges]
    low, high = min(intensities) / 3, max(intensities) * 3
    for rate, style, name in (
        (roofs.bytes_far, "-", "memory"),
        (roofs.bytes_near, ":", "cache"),
    ):
        ridge = roofs.flops / rate
        label = f"{name}: {quantity(float(f'{rate * 1e6:.3g}'), 'B/s')}"
        ax.plot([low, ridge], [low * rate, roofs.flops], color=GREY, linestyle=style, label=label)
    ax.plot([min(ridges), high], [roofs.flops] * 2, color=GREY)
    total = sum(spot.us for spot in spots) or 1.0
    for is_product, colour, name in ((True, BLUE, "contractions"), (False, ORANGE, "maps")):
        own = [spot for spot in working if spot.is_product == is_product]
        if own:
            ax.scatter(
                [spot.work / spot.moved for spot in own], [spot.work / spot.us for spot in own],
                [20 + 500 * spot.us / total for spot in own], color=colour, alpha=0.75,
                edgecolors="white", label=name,
            )  # fmt: skip
    _name_slowest(ax, working, total)
    ax.set(xscale="log", yscale="log", xlim=(low, high))
    ax.set(xlabel="work for each byte moved (flop or element / B)", ylabel="predicted rate")
    _in_numbers(ax.xaxis)
    _in_units(ax.yaxis, "FLOP/s", 1e6)
    moving = sum(spot.us for spot in spots if not spot.work)
    copies = f"; {100 * moving / total:.0f} % of the time copies" if moving else ""
    most = quantity(float(f"{roofs.flops * 1e6:.3g}"), "FLOP/s")
    ax.set_title(f"{machine.name}: {most} at most{copies}", fontsize=10)
    ax.legend(frameon=False, fontsize=8, loc="upper left", markerscale=0.6)
    return ax


def _name_slowest(ax: Any, spots: Sequence[Spot], total: float) -> None:
    """The steps that take most time, in a column beside the chart with a line to each."""
    slowest = sorted(spots, key=lambda spot: -spot.us)[:_NAMED]
    in_place = sorted(slowest, key=lambda spot: (-spot.work / spot.us, spot.number))
    for row, spot in enumerate(in_place):
        text = f"{spot.number}: {spot.name}, {100 * spot.us / total:.0f} %"
        ax.annotate(
            text, (spot.work / spot.moved, spot.work / spot.us), (1.03, 0.95 - 0.09 * row),
            textcoords="axes fraction", fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5},
        )  # fmt: skip


# ---------------------------------------------------------------------------- families


def family_curves(
    network: Inspection, family: PlanFamily, symbol: sympy.Symbol
) -> list[list[tuple[int, float]]]:
    """For each plan of a family: (size, predicted microseconds) over the whole range.

    What a call keeps for the next one is left out, as it is where the plans are chosen.
    """
    places = sorted({size for member in family.members for size, _ in member.curve})
    return [_curve(network, family, member, symbol, places) for member in family.members]


def _curve(
    network: Inspection,
    family: PlanFamily,
    member: FamilyMember,
    symbol: sympy.Symbol,
    places: Sequence[int],
) -> list[tuple[int, float]]:
    own = network.compilation
    fixed = Compilation(own.outputs, None, own.binding, member.plan, library=own.library)
    curve = []
    for size in places:
        compilation = own if member.low <= size <= member.high else fixed
        curve.append((size, _call_us(network, compilation, family.training, {symbol: size})))
    return curve


def _call_us(
    network: Inspection, compilation: Compilation, training: bool, given: dict[sympy.Symbol, int]
) -> float:
    rates = as_machine(network.compilation.options.machine).planning
    dtypes, sizes = network._dtypes(), compilation.nominal(given)
    if training:
        program = compilation.joint(dtypes, sizes, network._differentiable(None))
        return program_us(program, sizes, rates)
    cut = compilation.kept(dtypes, sizes) if network.keeps else None
    program = compilation.scheduled(dtypes, sizes)[0] if cut is None else cut.rest
    return program_us(program, sizes, rates)


def draw_family(
    network: Inspection,
    ax: Any = None,
    *,
    symbol: Any = None,
    low: int = 1,
    high: int = 65536,
    part: str = "forward",
) -> Any:
    """Predicted time of every plan of a family over the sizes of the range.

    A plan's line is drawn through where it runs, thin and dashed elsewhere; crossovers are marked.
    ``part``: "forward" or "step".
    """
    family = network.plans(low, high, symbol=symbol, part=part)
    size = free_size(network.compilation, symbol)
    ax = new_axes(ax, _SIZE)
    for number, points in enumerate(family_curves(network, family, size)):
        member, colour = family.members[number], _PLAN_COLOURS[number % len(_PLAN_COLOURS)]
        ax.plot(*zip(*points, strict=True), color=colour, linestyle="--", linewidth=0.8)
        own = [point for point in points if member.low <= point[0] <= member.high]
        ends = dict.fromkeys((member.low, member.high))
        name = f"{size.name} = {' … '.join(f'{end:,}' for end in ends)}"
        dot = "o" if len(own) == 1 else None  # a line of one point is not seen
        ax.plot(*zip(*own, strict=True), color=colour, linewidth=2.2, label=name, marker=dot)
    for crossover in family.crossovers:
        ax.axvline(crossover, color=GREY, linestyle=":", linewidth=1)
    what = "training step" if part == "step" else "forward pass"
    ax.set(xscale="log", yscale="log", xlabel=size.name, ylabel=f"predicted µs of a {what}")
    _in_numbers(ax.xaxis)
    _in_numbers(ax.yaxis)
    ax.legend(**_ABOVE, ncols=3, title="plan for", title_fontsize=8, alignment="left")
    return ax


def _in_numbers(axis: Any) -> None:
    """Ticks of a logarithmic axis as people write numbers."""
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def _in_units(axis: Any, unit: str, factor: float = 1.0) -> None:
    """Ticks in engineering units."""
    axis.set_major_formatter(lambda value, _: quantity(float(f"{value * factor:.6g}"), unit))
