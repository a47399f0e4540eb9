"""A safetensors file with JSON in its header and one checksum over every byte.

Written beside its place and moved there, so that it is there as a whole or not at all; read only if
each byte is as it was written.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tncompiler.ir.errors import FileFormatError, UnsupportedModule

FORMAT, SCHEMA = "tncompiler model", 1
_KEY = "tncompiler"  # of the one entry in the file's metadata
_MARK = "checksum of this file: "
_BLANK = "0" * 64
_CHUNK = 2**20
_LENGTH_BYTES = 8  # of the header's length, with which a safetensors file begins
_LONGEST = 2**28  # header that is believed


def write(path: Path, content: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write tensors and JSON data. Raises OSError where the system does, UnsupportedModule for
    tensors of classes that keep their numbers elsewhere."""
    check_plain_tensors(tensors, path)
    data = {"format": FORMAT, "schema": SCHEMA, "checksum": _MARK + _BLANK, **content}
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    part.touch(exist_ok=False)
    mode = part.stat().st_mode  # as the umask says; safetensors would let nobody else read it
    try:
        save_file(tensors, part, {_KEY: json.dumps(data)})
        _seal(part)
        part.chmod(mode)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_plain_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises UnsupportedModule for a tensor of a class of its own, as torchao's and DTensor."""
    for name, tensor in tensors.items():
        kind = type(tensor.detach())
        if kind is not Tensor:
            raise UnsupportedModule(
                f"{name!r} is a {kind.__name__}, which a file of plain numbers cannot hold",
                where=str(path),
                fix="save before other libraries quantize or shard it, or use tnc.quantize",
            )


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The data and tensors of a file. Raises FileFormatError unless all is as it was written."""
    header = _header(path)
    place = header.find(_MARK.encode()) + len(_MARK)
    found = header[place : place + len(_BLANK)].decode("ascii", "replace")
    blank = header[:place] + _BLANK.encode() + header[place + len(_BLANK) :]
    if place < len(_MARK) or _digest(path, blank) != found:
        raise _not_ours(path, "it was altered or cut off, or is no file of tnc.save")
    try:
        data = json.loads(json.loads(header)["__metadata__"][_KEY])
        tensors = load_file(path)
    except (ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        raise _not_ours(path, f"it cannot be read: {str(error)[:80]}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _not_ours(path, "it is no file of tnc.save")
    if data.get("schema") != SCHEMA:
        raise FileFormatError(
            f"schema {data.get('schema')!r:.40} is not {SCHEMA}",
            where=str(path),
            fix="read it with the version of tncompiler that wrote it",
        )
    return data, tensors


def _seal(path: Path) -> None:
    """Put the checksum of the file, as it is with a blank one, into its place."""
    header = _header(path)
    place = _LENGTH_BYTES + header.find(_MARK.encode()) + len(_MARK)
    digest = _digest(path, header)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def _header(path: Path) -> bytes:
    """The header as bytes, without its length."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = file.read(length) if length <= _LONGEST else b""
    if len(header) < length or not length:
        raise _not_ours(path, "it was cut off, or is no safetensors file")
    return header


def _digest(path: Path, header: bytes) -> str:
    """The checksum of a file with another header of the same length."""
    total = sha256()
    with path.open("rb") as file:
        total.update(file.read(_LENGTH_BYTES))
        total.update(header)
        file.seek(_LENGTH_BYTES + len(header))
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def _not_ours(path: Path, what: str) -> FileFormatError:
    return FileFormatError(what, where=str(path), fix="write it again with tnc.save")
