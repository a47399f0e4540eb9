"""What a machine reaches, as a value; the committed tables.

`machines/` holds `reference`, measured on two cores, and published figures of GPUs. `calibrate`
makes one's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from hashlib import blake2b
from importlib.resources import files
from typing import Any

from tncompiler.ir.errors import FileFormatError, PlanError
from tncompiler.ir.origin import call_site
from tncompiler.planning.rates import Accelerator, Library, Rates

SCHEMA = 1
_KINDS: dict[str, type[Any]] = {"library": Library, "accelerator": Accelerator}


@dataclass(frozen=True)
class Machine:
    """A machine: its name and, by backend, what it reaches. Part of what identifies a plan.

    ``source`` says where the figures come from.
    """

    name: str
    libraries: Mapping[str, Rates]
    source: str = ""

    def __post_init__(self) -> None:
        if not self.libraries:
            raise PlanError(
                f"the machine {self.name!r:.40} has no rates",
                where=call_site(),
                fix="give a Library or an Accelerator for at least one backend",
            )

    @property
    def planning(self) -> Rates:
        """The rates that trees are compared by: those of the first backend."""
        return next(iter(self.libraries.values()))

    @property
    def cpu(self) -> Machine:
        """Itself if it knows both CPU backends, else the reference."""
        return self if {"numpy", "torch"} <= self.libraries.keys() else load_machine("reference")

    def seen_by(self, library: str) -> Machine:
        """The machine with a library's own rates first where that was measured with threads.

        Among tensors NumPy's programs have a BLAS of one thread and torch's most often run, so
        trees are compared by torch's rates; on one thread both libraries are alike.
        """
        own = self.libraries.get(library)
        if own is None or own.threads == 1 or own is self.planning:
            return self
        return self.led_by(library)

    def led_by(self, library: str) -> Machine:
        """The machine with the rates of one of its libraries first."""
        own = self.libraries[library]
        return replace(self, libraries={library: own, **self.libraries})

    @cached_property
    def digest(self) -> str:
        """What identifies the rates, whatever the machine is called."""
        text = json.dumps({name: _as_data(rates) for name, rates in self.libraries.items()})
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """The table as JSON text."""
        return json.dumps(
            {
                "format": "tncompiler machine",
                "schema": SCHEMA,
                "name": self.name,
                "source": self.source,
                "libraries": {name: _as_data(r) for name, r in self.libraries.items()},
            },
            indent=1,
        )

    @staticmethod
    def from_json(text: str) -> Machine:
        """The machine that `to_json` wrote. Raises: FileFormatError."""
        try:
            data = json.loads(text)
            if data["format"] != "tncompiler machine" or data["schema"] != SCHEMA:
                raise KeyError("schema")
            found = {str(k): _from_data(item) for k, item in data["libraries"].items()}
            return Machine(str(data["name"]), found, str(data["source"]))
        except PlanError as error:
            problem = error.what
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            problem = "this is no machine table, or one of another version"
        raise FileFormatError(
            problem, where=f"the JSON read at {call_site()}", fix="write it with machine.to_json()"
        )


def _as_data(rates: Rates) -> dict[str, Any]:
    kind = next(name for name, made in _KINDS.items() if isinstance(rates, made))
    values = {f.name: getattr(rates, f.name) for f in fields(rates) if f.init}
    if isinstance(rates, Library) and rates.threads == 1:
        del values["threads"], values["alone"]
    elif isinstance(rates, Library):
        values["alone"] = rates.alone and _as_data(rates.alone)
    return {"kind": kind, **values}


def _from_data(item: Mapping[str, Any]) -> Rates:
    values = {k: v for k, v in item.items() if k != "kind"}
    if values.get("alone"):
        values["alone"] = _from_data(values["alone"])
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
        elif isinstance(value, dict):
            values[name] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    made: Rates = _KINDS[item["kind"]](**values)
    return made


# ---------------------------------------------------------------------------- the tables

MACHINES = ("reference", "a100", "h100", "b200", "mi300x")
_default: Machine | None = None


@cache
def load_machine(name: str) -> Machine:
    """A committed table by name. Raises: PlanError for an unknown one."""
    if name not in MACHINES:
        raise PlanError(
            f"there is no machine table {name!r:.40}",
            where=call_site(),
            fix=f"choose one of {', '.join(MACHINES)}, or give a tnc.Machine",
        )
    text = files(__package__).joinpath("machines", f"{name}.json").read_text(encoding="utf-8")
    return Machine.from_json(text)


def default_machine() -> str | Machine:
    """What plans are made for unless something else is said."""
    return _default or "reference"


def set_default_machine(machine: Machine | None) -> None:
    """Make a machine the default of this process; None: the committed reference again."""
    global _default
    _default = machine


def as_machine(given: str | Machine) -> Machine:
    """A table by name, or as it is."""
    return given if isinstance(given, Machine) else load_machine(given)
