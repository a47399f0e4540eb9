"""`tnc tensorize` and `tnc inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tncompiler import formats
from tncompiler.cli.options import JsonOption, put
from tncompiler.cli.targets import read_model
from tncompiler.ir.errors import ArgumentError


def tensorize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help='"file.py:name" or a saved model.')],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="A .safetensors file.")
    ] = Path("model.safetensors"),
    format_name: Annotated[
        str, typer.Option("--format", "-f", help=f"One of {', '.join(formats.FORMATS)}.")
    ] = "TTMatrix",
    rank: Annotated[int | None, typer.Option(help="The size of every bond.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="The relative error allowed.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="The share of each weight's parameters that is kept.")
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="PATTERN", help='Names to replace, as in "*.attention.*".')
    ] = "*",
    as_json: JsonOption = False,
) -> None:
    """Replace the weights of a torch model by networks, and save it.

    Load it in Python with tnc.load(model, FILE).

    \b
    $ tnc tensorize examples/quickstart.py:make_model --budget 0.2 --output small.safetensors
    $ tnc tensorize examples/quickstart.py:make_model --format Tucker --rank 4 --only "0" --json
    """
    from tncompiler.models.files.save import save
    from tncompiler.models.tensorize import tensorize_

    found = read_model(model)
    config = {only: _format(format_name, rank)}
    report = tensorize_(found, config, tolerance=tolerance, budget=budget, progress=not as_json)
    save(found, output)
    data = json.loads(report.to_json())
    put(as_json, lambda: {**data, "file": str(output)}, lambda: f"{report}\n{_written(output)}")


def _written(path: Path) -> str:
    load = f'wrote {path}; in Python: tnc.load(model, "{path}")'
    return f"{load}; what its outputs lost, tnc.heal learns again"


def _format(name: str, rank: int | None) -> Any:
    known = [*formats.FORMATS, *formats.ALIASES]
    if name not in known or name == "Custom":
        raise ArgumentError(
            f"there is no format {name!r:.40}",
            fix=f"choose of {', '.join(key for key in known if key != 'Custom')}",
        )
    cls = getattr(formats, name)
    return cls() if rank is None else cls(rank=rank, clamp=True)


def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help='A saved model, or "file.py:name".')
    ],
    as_json: JsonOption = False,
) -> None:
    """The tensorized layers of a model: formats, shapes, ranks, parameters with biases.

    \b
    $ tnc inspect examples/quickstart.py:make_small_model
    $ tnc inspect examples/quickstart.py:make_small_model --json
    """
    path = Path(model)
    rows = _of_file(path) if path.is_file() else _of_module(read_model(model))
    put(as_json, lambda: {"layers": rows}, lambda: _table(rows))


def _of_file(path: Path) -> list[dict[str, Any]]:
    """What the header of a saved model says; the model itself need not be known."""
    from tncompiler.models.files.sealed import read

    content, tensors = read(path)
    state = content["state"]
    rows = []
    for layer in content["layers"]:
        first = layer["names"][0]
        own = {
            state[key] for key in state if key == first or key.startswith(f"{first}.") or not first
        }
        rows.append(
            {
                "name": first,
                "layer": layer["kind"],
                "format": layer["arguments"]["format"].get("kind", "several"),
                "rank": layer["arguments"]["format"].get("rank"),
                "in_shape": layer["arguments"].get("in_shape"),
                "out_shape": layer["arguments"].get("out_shape"),
                "parameters": sum(tensors[name].numel() for name in own),
                "tied": layer["tied"],
            }
        )
    return rows


def _of_module(model: Any) -> list[dict[str, Any]]:
    from tncompiler.models.layers import find_layers

    rows = []
    for layer, names in find_layers(model).items():
        form = getattr(layer, "format", None)
        rows.append(
            {
                "name": names[0],
                "layer": type(layer).__name__,
                "format": "several" if form is None else type(form).__name__,
                "rank": getattr(form, "rank", None),
                "in_shape": getattr(layer, "in_shape", None),
                "out_shape": getattr(layer, "out_shape", None),
                "parameters": sum(p.numel() for p in layer.parameters()),
                "tied": None,
            }
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no layer is tensorized"
    from io import StringIO

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "class", "format", "rank", "modes", "parameters", box=box.SIMPLE_HEAD)
    table.columns[-1].justify = "right"
    for row in rows:
        modes = f"{_modes(row, 'in_shape')} → {_modes(row, 'out_shape')}"
        rank = "" if row["rank"] is None else str(row["rank"])
        name = row["name"] or "(model)"
        tied = f" (tied to {row['tied']})" if row["tied"] else ""
        table.add_row(
            f"{name}{tied}", row["layer"], row["format"], rank, modes, f"{row['parameters']:,}"
        )
    total = sum(row["parameters"] for row in rows)
    text = StringIO()
    Console(file=text, width=120, color_system=None).print(table, markup=False)
    lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
    return "\n".join([*lines, f"{total:,} parameters in {len(rows)} tensorized layers"])


def _modes(row: Mapping[str, Any], key: str) -> str:
    return "·".join(map(str, row[key])) if row[key] else "?"
