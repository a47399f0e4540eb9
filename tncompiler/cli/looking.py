"""`tnc explain`, `tnc plan` and `tnc draw`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tncompiler.cli.options import (
    JsonOption,
    NetworkArgument,
    OutputOption,
    PartOption,
    SizesOption,
    put,
    read_sizes,
)
from tncompiler.cli.targets import Target, read_network
from tncompiler.ir.errors import ArgumentError
from tncompiler.planning.options import PlanOptions


def explain(
    network: NetworkArgument,
    sizes: SizesOption = "",
    part: PartOption = "forward",
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the plan explorer, a page."),
    ] = None,
    source: Annotated[bool, typer.Option(help="Print the generated source instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What a network costs, step by step.

    \b
    $ tnc explain "bi,ir,ro->bo" --sizes i=784,r=8,o=256
    $ tnc explain examples/quickstart.py:layer --part step
    $ tnc explain "ij,jk,kl->il" --html explorer.html
    """
    found = read_network(network, read_sizes(sizes))
    if html is not None:
        found.network.to_html(html, found.sizes)
    show = found.network.source if source else found.network.explain
    put(as_json, lambda: _cost_data(found, part, html), lambda: show(found.sizes, part))


def _cost_data(found: Target, part: str, html: Path | None) -> dict[str, Any]:
    network, sizes = found.network, found.sizes
    cost = network.cost(network.compilation.nominal(sizes), part)
    plan = network.plan(sizes)
    return {
        "part": part,
        "sizes": dict(plan.sizes),
        "flops": int(cost.flops),
        "elementwise": int(cost.elementwise),
        "bytes_read": int(cost.bytes_read),
        "bytes_written": int(cost.bytes_written),
        "peak_bytes": cost.peak_bytes,
        "predicted_us": network.predicted_us(sizes),
        "steps": [
            {"name": step.name, "kind": step.kind, "equation": step.equation, "shape": step.shape}
            for step in plan.steps
        ],
        **({} if html is None else {"html": str(html)}),
    }


def plan(
    network: NetworkArgument,
    sizes: SizesOption = "",
    minimize: Annotated[str, typer.Option(help="time, flops or memory.")] = "time",
    search: Annotated[
        str, typer.Option(help="auto, greedy, optimal, hyper or left-to-right.")
    ] = "auto",
    memory_limit: Annotated[
        str | None, typer.Option(metavar="2GiB", help="The most bytes a call may allocate.")
    ] = None,
    machine: Annotated[
        str, typer.Option(help="reference, a100, h100, b200, mi300x, or a file of tnc calibrate.")
    ] = "reference",
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """The order in which a network is contracted.

    \b
    $ tnc plan "ij,jk,kl,lm->im" --sizes i=8,j=64,k=8,l=64,m=8
    $ tnc plan "ij,jk,kl->il" --sizes i=64,j=64,k=64,l=64 --minimize flops --json
    $ tnc plan examples/quickstart.py:layer --output plan.json
    """
    options = PlanOptions(
        minimize=minimize, search=search, memory_limit=memory_limit, machine=_machine(machine)
    )
    found = read_network(network, read_sizes(sizes), options)
    made = found.network.plan(found.sizes)
    if output is not None:
        output.write_text(made.to_json(), encoding="utf-8")
    put(as_json, lambda: json.loads(made.to_json()), made.to_text)


def _machine(name: str) -> Any:
    """A committed table by name, or one that `tnc calibrate` wrote."""
    from tncompiler.planning.machine import Machine

    path = Path(name)
    return Machine.from_json(path.read_text(encoding="utf-8")) if path.is_file() else name


def draw(
    network: NetworkArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="A .svg, .pdf or .png.")
    ] = Path("network.svg"),
    what: Annotated[
        str, typer.Option(help="network, tree, memory, roofline or family.")
    ] = "network",
    without: Annotated[
        str | None, typer.Option(metavar="TENSOR", help="A tensor to take out of the network.")
    ] = None,
    layout: Annotated[str, typer.Option(help="Of the network: auto, own or graphviz.")] = "auto",
    sizes: SizesOption = "",
    dpi: Annotated[int, typer.Option(help="Of a .png.", min=20, max=1200)] = 150,
    as_json: JsonOption = False,
) -> None:
    """Draw a network, its contraction tree, or a chart of what it costs.

    \b
    $ tnc draw "bi,ir,ro->bo" --sizes i=784,r=8,o=256 --output layer.svg
    $ tnc draw examples/quickstart.py:layer --what memory --output memory.png
    $ tnc draw examples/quickstart.py:layer --without G1 --output gradient.svg
    """
    found = read_network(network, read_sizes(sizes))
    options: dict[str, Any] = {} if without is None else {"without": without}
    if what == "network":
        options["layout"] = layout
    if what != "family":  # which goes through all sizes
        options["sizes"] = found.sizes
    ax = found.network.draw(what, **options)
    _save(ax, output, dpi)
    put(as_json, lambda: {"what": what, "file": str(output)}, lambda: f"wrote {output}")


def _save(ax: Any, path: Path, dpi: int) -> None:
    try:
        ax.figure.savefig(path, dpi=dpi)
    except ValueError as error:  # matplotlib does not know the ending
        raise ArgumentError(
            f"{str(path)!r:.80}: {error}", fix="name a .svg, .pdf or .png"
        ) from None
