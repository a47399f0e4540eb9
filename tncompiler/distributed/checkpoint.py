"""What finished slices add up to, on disk: one file for each rank and nest of loops.

A file is tensors in safetensors with JSON in its header, written beside and moved into place, so
that whatever is killed leaves the old one or the new one. What does not belong to the work at hand
(other tensors, another plan, another number of ranks) is not used.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tncompiler.distributed.sums import Total
from tncompiler.ir.errors import RankMismatch

FORMAT = "tncompiler slices"
SCHEMA = 1
logger = logging.getLogger("tncompiler.distributed")

# what reading a file of another form may raise
_OF_STRANGE_DATA = (SafetensorError, ValueError, KeyError, TypeError, IndexError, OSError)


@dataclass
class Checkpoint:
    """One rank's file. ``key``: what work it belongs to; ``every_s``: how often it is written."""

    path: Path
    key: str
    every_s: float
    _written: float = field(default_factory=time.monotonic)

    def restore(
        self, numbers: range, axes: Sequence[Sequence[int | None]]
    ) -> tuple[int, list[list[Total]]] | None:
        """The next slice to do and the sums so far, by depth of the loop; None if there are none.

        ``axes``: along which the results of each loop are joined.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = json.loads(file.metadata()["work"])
                if header["key"] != self.key or header["slices"] != [numbers.start, numbers.stop]:
                    logger.warning("%s belongs to other work: it is not used", self.path)
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                sums = [
                    _totals(depth, counts, own, tensors)
                    for depth, (counts, own) in enumerate(zip(header["sums"], axes, strict=False))
                ]
                return int(header["next"]), sums
        except _OF_STRANGE_DATA as error:
            logger.warning("%s cannot be read, and is not used: %r", self.path, error)
            return None

    def check_others(self, others: Iterable[Path]) -> None:
        """Raises: RankMismatch if a job of another number of ranks has left the work unfinished."""
        for path in others:
            header = _header(path)
            if header is None or header["key"] != self.key:
                continue
            if int(header["next"]) < int(header["slices"][1]):
                raise RankMismatch(
                    f"{path.name} is of the same work, half done by another number of ranks",
                    where=str(path.parent),
                    fix="start the job with as many ranks as it had, or give another folder",
                )

    def is_due(self) -> bool:
        return time.monotonic() - self._written >= self.every_s

    def write(self, numbers: range, following: int, sums: Sequence[Sequence[Total]]) -> None:
        """Replace the file. Where that fails (a full disk), the old one stays, and work goes on."""
        self._written = time.monotonic()
        header = {
            "format": FORMAT,
            "schema": SCHEMA,
            "key": self.key,
            "slices": [numbers.start, numbers.stop],
            "next": following,
            "sums": [[one.sum.counts for one in totals] for totals in sums],
        }
        tensors = {
            f"{depth}.{k}.{level}": tensor
            for depth, totals in enumerate(sums)
            for k, one in enumerate(totals)
            for level, tensor in enumerate(one.levels())
        }
        try:
            _replace(self.path, tensors, {"work": json.dumps(header)})
        except (OSError, SafetensorError) as error:
            logger.warning("no checkpoint was written, the last one stays: %s", error)


def _header(path: Path) -> dict[str, Any] | None:
    """What a file says of itself; None if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()["work"])
        return header if {"key", "next", "slices"} <= header.keys() else None
    except _OF_STRANGE_DATA:
        return None


def _totals(
    depth: int, counts: Any, axes: Sequence[int | None], tensors: Mapping[str, Tensor]
) -> list[Total]:
    """The sums of one loop."""
    made = []
    for k, (own, axis) in enumerate(zip(counts, axes, strict=True)):
        levels = [tensors[f"{depth}.{k}.{level}"] for level in range(len(own))]
        made.append(Total.restored(levels, [int(count) for count in own], axis))
    return made


def _replace(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write beside, to the disk, and move into place; nothing is left where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file({k: t.contiguous() for k, t in tensors.items()}, name, metadata)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """What identifies the tensors that slices read."""
    digest = blake2b(digest_size=16)
    for name, tensor in tensors.items():
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(
            plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        )
    return digest.hexdigest()
