"""The commands in one application."""

from __future__ import annotations

from importlib import import_module

import typer

# command → the function that it is; `tnc --help` lists them in this order
COMMANDS: dict[str, str] = {
    "explain": "tncompiler.cli.looking:explain",
    "plan": "tncompiler.cli.looking:plan",
    "draw": "tncompiler.cli.looking:draw",
    "bench": "tncompiler.cli.measuring:bench",
    "tensorize": "tncompiler.cli.models:tensorize",
    "inspect": "tncompiler.cli.models:inspect",
    "calibrate": "tncompiler.cli.measuring:calibrate",
    "cache": "tncompiler.cli.measuring:cache",
}
_HELP = """Look at tensor networks: plan, explain, draw and time them; tensorize models.

A NETWORK is an einsum equation ("ij,jk->ik"), an attribute of a Python file or module
("layer.py:network", "package.module:network"), or a layer of a saved model
("model.safetensors:fc1"). Python files are executed.
"""

app = typer.Typer(
    help=_HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _name, _target in COMMANDS.items():
    _module, _function = _target.split(":")
    app.command(_name)(getattr(import_module(_module), _function))
