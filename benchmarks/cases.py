"""The corpus: cases.toml as checked, immutable descriptions.

In: the file. Out: a Case for each entry, and the Cells (case, batch, dtype, part) that a run
selects. What holds: ids are unique, every field is known to its kind and has a value of its type.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CASES = HERE / "cases.toml"
LOCK = HERE / "cases.lock"

PARTS = ("forward", "step")
DTYPES = ("float32", "float64")
SELECTIONS = ("quick", "default", "all")

Reader = Any  # a function from a raw value to the field's value; raises ValueError


class CaseError(ValueError):
    """An entry of the corpus that cannot be used: which case, which field, and how to mend it."""

    def __init__(self, case: str, name: str, what: str, fix: str) -> None:
        self.case, self.field, self.what, self.fix = case, name, what, fix
        super().__init__(f"case {case!r}, field {name!r}: {what}\n  fix: {fix}")


# ---------------------------------------------------------------------------- fields


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("is no integer of 1 or more")
    return value


def _odd(value: Any) -> int:
    if _positive(value) % 2 == 0:
        raise ValueError("is no odd number")
    return _positive(value)


def _natural(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("is no integer of 0 or more")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("is no list of sizes")
    return tuple(map(_positive, value))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("is no text")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("is no list of texts")
    return tuple(map(_text, value))


def _sizes(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ValueError("is no table from letters to sizes")
    return {_text(letter): _positive(size) for letter, size in value.items()}


def _rank(value: Any) -> int | tuple[int, ...]:
    return _shape(value) if isinstance(value, list) else _positive(value)


def _one_of(*choices: str) -> Reader:
    def read(value: Any) -> tuple[str, ...]:
        values = _texts(value)
        unknown = [v for v in values if v not in choices]
        if unknown or not values or len(set(values)) < len(values):
            raise ValueError(f"is not made of different ones of {', '.join(choices)}")
        return values

    return read


# kind → its fields → reader; all of them are needed
KINDS: dict[str, dict[str, Reader]] = {
    "layer": dict(format=_text, ins=_shape, outs=_shape, rank=_rank),
    "einsum": dict(equation=_text, sizes=_sizes),
    "mps": dict(sites=_positive, bond=_positive, features=_positive, classes=_positive),
    "peps": dict(rows=_positive, columns=_positive, bond=_positive),
    "regular": dict(nodes=_positive, degree=_positive, bond=_positive, seed=_natural),
    "conv": dict(format=_text, channels=_shape, image=_shape, kernel=_odd, rank=_rank),
    "circuit": dict(qubits=_positive, depth=_positive, seed=_natural),
}
# fields that some kinds may have → reader, default
OPTIONAL: dict[str, dict[str, tuple[Reader, Any]]] = {
    "layer": dict(blocks=(_positive, None)),
    "einsum": dict(inputs=(_natural, 0)),
}
# fields that every case may have
COMMON: dict[str, tuple[Reader, Any]] = dict(
    batch=(_shape, ()),
    dtype=(_one_of(*DTYPES), DTYPES),
    part=(_one_of(*PARTS), PARTS),
    input_gradient=(_truth, True),
    quick=(_texts, ()),
    default=(_texts, ()),
    torch_compile=(_texts, ()),
    note=(_text, ""),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One network of the corpus.

    ``fields``: those of its kind (see KINDS). ``batch`` is empty where the network has no batch.
    ``quick`` and ``default``: patterns such as "b256/float32/*" of the cells that such runs time.
    ``torch_compile``: those where a default run has torch.compile, which takes long to start, too.
    ``input_gradient``: whether a training step differentiates the inputs.
    """

    id: str
    kind: str
    fields: Mapping[str, Any]
    batch: tuple[int, ...]
    dtype: tuple[str, ...]
    part: tuple[str, ...]
    input_gradient: bool
    quick: tuple[str, ...]
    default: tuple[str, ...]
    torch_compile: tuple[str, ...]
    note: str

    def cells(self) -> Iterator[Cell]:
        """Every combination of batch, dtype and part."""
        for batch in self.batch or (0,):
            for dtype in self.dtype:
                for part in self.part:
                    yield Cell(self, batch, dtype, part)

    @property
    def fingerprint(self) -> str:
        """A hash of what is computed; an id keeps its fingerprint for ever."""
        said = {"kind": self.kind, "input_gradient": self.input_gradient, **self.fields}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is timed: a case at a batch size (0: it has none), in a dtype, forward or as a step."""

    case: Case
    batch: int
    dtype: str
    part: str

    @property
    def settings(self) -> str:
        batch = f"b{self.batch}/" if self.batch else ""
        return f"{batch}{self.dtype}/{self.part}"

    @property
    def id(self) -> str:
        return f"{self.case.id}/{self.settings}"


# ---------------------------------------------------------------------------- reading


def load_cases(path: Path = CASES) -> tuple[Case, ...]:
    """The cases of a file, checked. Raises: CaseError."""
    with path.open("rb") as file:
        try:
            entries = tomllib.load(file).get("case", [])
        except tomllib.TOMLDecodeError as error:
            raise CaseError("?", "?", f"{path.name} is no TOML: {error}", "mend the line") from None
    cases = tuple(read_case(number, entry) for number, entry in enumerate(entries, start=1))
    known: set[str] = set()
    for case in cases:
        if case.id in known:
            raise CaseError(case.id, "id", "is taken by an earlier case", "give it another id")
        known.add(case.id)
    return cases


def read_case(number: int, entry: Mapping[str, Any]) -> Case:
    """One entry, checked. Raises: CaseError."""
    name = entry.get("id", f"number {number}")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", str(entry.get("id"))):
        fix = "use lower-case letters, digits and dashes"
        raise CaseError(str(name), "id", f"{entry.get('id')!r} is no id", fix)
    kind = entry.get("kind")
    if kind not in KINDS:
        raise CaseError(name, "kind", f"{kind!r} is unknown", f"choose one of {', '.join(KINDS)}")
    optional = OPTIONAL.get(kind, {})
    known = {"id", "kind", *KINDS[kind], *optional, *COMMON}
    for given in entry:
        if given not in known:
            fix = f"a {kind} has {', '.join(sorted(known))}"
            raise CaseError(name, given, "is unknown", fix)
    for needed in KINDS[kind]:
        if needed not in entry:
            raise CaseError(name, needed, "is missing", f"every {kind} needs it")
    fields = {key: _read(name, key, read, entry[key]) for key, read in KINDS[kind].items()}
    fields.update(_defaulted(name, optional, entry, keep_default=False))
    case = Case(id=name, kind=kind, fields=fields, **_defaulted(name, COMMON, entry))
    _check_patterns(case)
    return case


def _read(case: str, name: str, read: Reader, value: Any) -> Any:
    try:
        return read(value)
    except ValueError as error:
        fix = "see the other cases of its kind"
        raise CaseError(case, name, f"{value!r:.60} {error}", fix) from None


def _defaulted(
    case: str,
    readers: Mapping[str, tuple[Reader, Any]],
    entry: Mapping[str, Any],
    keep_default: bool = True,
) -> dict[str, Any]:
    """Optional fields as given, or else (if wanted) their defaults."""
    found = {}
    for name, (read, default) in readers.items():
        if name in entry:
            found[name] = _read(case, name, read, entry[name])
        elif keep_default:
            found[name] = default
    return found


def _check_patterns(case: Case) -> None:
    """Every pattern selects something; what a quick run times, a default run times too."""
    cells = list(case.cells())
    for name in ("quick", "default", "torch_compile"):
        for pattern in getattr(case, name):
            if not any(fnmatchcase(cell.settings, pattern) for cell in cells):
                fix = f"its cells are like {cells[0].settings!r}"
                raise CaseError(case.id, name, f"{pattern!r} selects no cell", fix)
    default = {cell.settings for cell in select([case], "default")}
    left_out = [c.settings for c in select([case], "quick") if c.settings not in default]
    if left_out:
        fix = "let default select it too"
        raise CaseError(case.id, "quick", f"{left_out[0]!r} is not in default", fix)


def select(cases: Iterable[Case], selection: str, pattern: str = "*") -> list[Cell]:
    """The cells of a run; `pattern` is matched with case ids and with cell ids."""
    found = []
    for case in cases:
        for cell in case.cells():
            wanted = selection == "all" or any(
                fnmatchcase(cell.settings, one) for one in getattr(case, selection)
            )
            named = fnmatchcase(case.id, pattern) or fnmatchcase(cell.id, pattern)
            if wanted and named:
                found.append(cell)
    return found


# ---------------------------------------------------------------------------- append-only


def read_lock(path: Path = LOCK) -> dict[str, str]:
    """Id → fingerprint of every case that was ever listed."""
    words = path.read_text().split() if path.exists() else []
    return dict(zip(words[0::2], words[1::2], strict=True))


def check_lock(cases: Sequence[Case], locked: Mapping[str, str]) -> None:
    """Refuse a corpus that lost a case, or says something else under an old id.

    Raises: CaseError.
    """
    prints = {case.id: case.fingerprint for case in cases}
    for name, print_ in locked.items():
        if name not in prints:
            raise CaseError(name, "id", "was removed", "the corpus is append-only: put it back")
        if prints[name] != print_:
            fix = "the corpus is append-only: keep it, and append a case with another id"
            raise CaseError(name, "*", "computes something else than it did", fix)


def append_lock(path: Path = LOCK, cases: Sequence[Case] | None = None) -> int:
    """List new cases in the lock file; returns how many there were. Raises: CaseError."""
    cases = load_cases() if cases is None else cases
    locked = read_lock(path)
    check_lock(cases, locked)
    new = [case for case in cases if case.id not in locked]
    with path.open("a") as file:
        file.writelines(f"{case.id} {case.fingerprint}\n" for case in new)
    return len(new)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Check the corpus; --lock lists new cases.")
    parser.add_argument("--lock", action="store_true")
    count = append_lock() if parser.parse_args().lock else 0
    print(f"{len(load_cases())} cases, {count} of them new in {LOCK.name}")
