"""Decisions that took time to find, kept in memory and as files of JSON.

A record is a dict of named decisions with schema version and checksum. It is written by temporary
file and `os.replace`, so that another process sees all of it or nothing; it is believed only after
whoever reads it has validated it. Anything odd is recomputed, and said at debug level.

TNC_CACHE_DIR says where (by default the user's cache folder), TNC_CACHE=0 switches it off.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, TypeVar

import platformdirs

from tncompiler.ir.errors import TncError

logger = logging.getLogger("tncompiler.cache")

SCHEMA = 1
_WORTH_S = 0.005  # of searching; what is found faster is not written
_MOST_RECENT = 256  # records in memory
_MOST_FILES = 1024
_MOST_BYTES = 2**26  # of all files; a record larger than a fourth of it is not kept
_SMALL = 2**18  # bytes of a record that stays in memory

Value = TypeVar("Value")


def is_on() -> bool:
    """Whether plans are kept."""
    return os.environ.get("TNC_CACHE", "1") != "0"


def directory() -> Path:
    """Where files are kept; it need not exist."""
    given = os.environ.get("TNC_CACHE_DIR")
    return Path(given) if given else Path(platformdirs.user_cache_dir("tncompiler")) / "plans"


class Recent(Generic[Value]):
    """The values that were used last, by key; safe to share between threads."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.most:
                self._values.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


class Records:
    """Records by key, in memory and on disk."""

    def __init__(self) -> None:
        self.recent: Recent[Any] = Recent(_MOST_RECENT)

    def load(self, key: str, read: Callable[[Mapping[str, Any]], Value]) -> Value | None:
        """What `read` makes of the decisions that are kept; None if there are none, or odd ones."""
        if not is_on():
            return None
        known: Value | None = self.recent.get(key)
        if known is None:
            known = self._load_file(key, read)
        return known

    def _load_file(self, key: str, read: Callable[[Mapping[str, Any]], Value]) -> Value | None:
        path = _path(key)
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ValueError("the file is too large")
            value = read(_unsealed(json.loads(path.read_text(encoding="utf-8")), key))
            os.utime(path)  # used last: removed last
            if path.stat().st_size <= _SMALL:
                self.recent.put(key, value)
        except FileNotFoundError:
            return None
        except (OSError, TncError, *_OF_STRANGE_DATA) as error:
            logger.debug("the cached plan %s is not used: %r", path, error)
            return None
        return value

    def store(self, key: str, value: Any, decisions: Mapping[str, Any], seconds: float) -> None:
        """Keep decisions that took so long to find; `value` is what reading them gives."""
        if not is_on():
            return
        text = json.dumps(_sealed(key, decisions), separators=(",", ":"))
        if len(text) <= _SMALL:
            self.recent.put(key, value)
        if seconds < _WORTH_S or 4 * len(text) > _MOST_BYTES:
            return
        try:
            _write(_path(key), text)
            _trim(directory())
        except OSError as error:
            logger.debug("plans are not kept in %s: %r", directory(), error)


PLANS = Records()

# what reading data of another form may raise; the checksum makes it all but impossible
_OF_STRANGE_DATA = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(RecursionError, OverflowError, MemoryError),
)


def _path(key: str) -> Path:
    return directory() / f"{key}.json"


def _sealed(key: str, decisions: Mapping[str, Any]) -> dict[str, Any]:
    record = {"format": "tncompiler decisions", "schema": SCHEMA, "key": key}
    return {**record, "decisions": decisions, "checksum": _checksum(key, decisions)}


def _unsealed(record: Any, key: str) -> Mapping[str, Any]:
    """The decisions of a record. Raises: ValueError if it is of another version or was altered."""
    decisions: Mapping[str, Any] = record["decisions"]
    if record != _sealed(key, decisions):
        raise ValueError("of another version, for another key, or altered")
    return decisions


def _checksum(key: str, decisions: Mapping[str, Any]) -> str:
    text = json.dumps([key, decisions], sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _trim(folder: Path) -> None:
    """Remove what was used least recently, and what writers that died have left."""
    found = []
    for entry in os.scandir(folder):
        if entry.name.endswith((".json", ".part")):
            try:
                stat = entry.stat()
            except FileNotFoundError:  # another process trims too
                continue
            found.append((stat.st_mtime_ns, stat.st_size, entry.path))
    found.sort(reverse=True)
    total = 0
    for number, (_, size, path) in enumerate(found):
        total += size
        if number >= _MOST_FILES or total > _MOST_BYTES:
            Path(path).unlink(missing_ok=True)
