"""Lines of JSON that a search appends to as it goes, so that it can go on where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tncompiler.ir.errors import ArgumentError, FileFormatError

_HEADER = "tncompiler search"


class Store:
    """Records by key, each a line of a file; without a path only in memory.

    ``identity``: what the records belong to. A line that was cut off while it was written is left
    out. Raises FileFormatError for a file of another search, or of something else; ArgumentError
    where there can be no file.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: str) -> None:
        self.path = None if path is None else Path(path)
        self.records: dict[str, Any] = {}
        header = {"format": _HEADER, "schema": 1, "identity": identity}
        if self.path is None:
            return
        try:
            self._open(header)
        except OSError as error:
            raise ArgumentError(
                f"store= cannot be used: {error.strerror}",
                where=str(self.path),
                fix="give a file in a folder that is there",
            ) from None

    def _open(self, header: Mapping[str, Any]) -> None:
        """Read the file, or begin it."""
        lines = self._lines()
        if lines and not _is_ours(lines, header):
            raise FileFormatError(
                "it holds another search, or something else",
                where=str(self.path),
                fix="give another file, or remove it to start anew",
            )
        self.records = {line["key"]: line["record"] for line in lines[1:]}
        if not lines:
            self._append(header)

    def _lines(self) -> list[Any]:
        """The whole lines of the file; a rest without an end is cut away."""
        assert self.path is not None
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except (ValueError, RecursionError):
            return [None]

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def get(self, key: str) -> Any:
        """The record of a key; None where there is none."""
        return self.records.get(key)

    def put(self, key: str, record: Any) -> None:
        """Keep a record, on disk when this returns."""
        self.records[key] = record
        self._append({"key": key, "record": record})


def _is_ours(lines: list[Any], header: Mapping[str, Any]) -> bool:
    whole = all(isinstance(line, dict) and {"key", "record"} <= line.keys() for line in lines[1:])
    return lines[0] == header and whole
