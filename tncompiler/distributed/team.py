"""The ranks that work together: sums, texts and agreement between them, and an end to waiting.

Every method is called by all ranks, in one order. Whoever waits looks whether the others are alive:
a rank that is gone, or that has failed, is an error on all of them.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import blake2b
from importlib import import_module
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from tncompiler.backends.torch.memory import empty
from tncompiler.distributed.heartbeat import Heartbeat, lost
from tncompiler.distributed.network_threads import yielding_network_threads
from tncompiler.distributed.options import DIGEST_BYTES
from tncompiler.ir.errors import BackendError, GroupError, RankLost, RankMismatch
from tncompiler.ir.origin import call_site

JOIN_S = 120  # to make a group
FOREVER = timedelta(days=3650)  # slices take as long as they take; heartbeats tell who is lost
_POLL_S = 0.005
# bytes of a part from which each of a few ranks broadcasts its own: gloo gathers into memory of
# its own and copies from there, 1.1 to 1.8 times as long; among many, trees send more than a ring
_BROADCAST, _FEW = 2**18, 4
_AWAKE_S = 0.003  # as sums of a few numbers take a third of the time where no core falls asleep
_c10d: Any = import_module("torch.distributed.distributed_c10d")


class Team:
    """The members of a process group, or one process alone (``group`` None)."""

    def __init__(self, group: Any, lost_after_s: float) -> None:
        self.rank, self.world, self.broken = 0, 1, ""
        self.group: Any = None
        self.lost_after_s = lost_after_s
        self.device = torch.device("cpu")
        self.heartbeat: Heartbeat | None = None
        if group is not None:
            self._join(group, lost_after_s)

    def _join(self, group: Any, lost_after_s: float) -> None:
        if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
            raise BackendError(
                f"process_group is a {type(group).__name__}",
                where=call_site(),
                fix="give a group of torch.distributed, as dist.group.WORLD, or a tnc.Ranks",
            )
        members = dist.get_process_group_ranks(group)
        self.rank, self.world = group.rank(), group.size()
        self.members = members
        if self.world == 1:
            return
        self.group = group
        _JOINED[group] = _JOINED.get(group, 0) + 1
        store = _store(f"tncompiler/{group.group_name}/{_JOINED[group]}")
        if dist.get_backend(group) == "nccl":
            self.device = torch.device("cuda", torch.cuda.current_device())
        else:  # one of our own, so that nobody else's operations come between
            self.group = _gloo_group(store, self.rank, self.world)
        self.heartbeat = Heartbeat(store, self.rank, members, lost_after_s)
        self.heartbeat.start()

    # ---------------------------------------------------------------- together

    def add_up(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over ranks, in one operation for each dtype that goes over the wire.

        Booleans are joined by "or". The same bits on every rank, and in every run. The tensors may
        be overwritten.
        """
        if self.group is None:
            return list(tensors)
        wires = [_as_wire(tensor) for tensor in tensors]
        for dtype in dict.fromkeys(wire.dtype for wire in wires):
            mine = [k for k, wire in enumerate(wires) if wire.dtype == dtype]
            mine.sort(key=lambda k: not tensors[k].is_complex())  # pairs begin at even places
            flat = [wires[k].flatten() for k in mine]
            packed = (flat[0] if len(flat) == 1 else torch.cat(flat)).to(self.device)
            self._wait(self.group.allreduce([packed], _options(dist.AllreduceOptions())))
            parts = torch.split(packed.to(wires[mine[0]].device), [wires[k].numel() for k in mine])
            for k, part in zip(mine, parts, strict=True):
                wires[k] = part.view(wires[k].shape)
        return [_off_wire(wire, like) for wire, like in zip(wires, tensors, strict=True)]

    def exchange(
        self, parts: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Tensor]]:
        """Give each rank its tensors, and get what each has for this one, in one operation.

        ``parts``: for each rank as many tensors, of the same dtypes; ``shapes``: of what comes.
        """
        if self.group is None:
            return [list(own) for own in parts]
        sent = [torch.cat([_content(tensor) for tensor in own]) for own in parts]
        dtypes = [tensor.dtype for tensor in parts[0]]
        lengths = [
            sum(prod(s) * d.itemsize for s, d in zip(own, dtypes, strict=True)) for own in shapes
        ]
        packed = torch.cat(sent).to(self.device)
        found = packed.new_empty(sum(lengths))
        options = _options(_c10d.AllToAllOptions())
        counts = [len(one) for one in sent]
        self._wait(self.group.alltoall_base(found, packed, lengths, counts, options))
        chunks = torch.split(found.to(parts[0][0].device), lengths)
        return [_tensors(chunk, own, dtypes) for chunk, own in zip(chunks, shapes, strict=True)]

    def gather(self, part: Tensor) -> Tensor:
        """What all ranks have, of one shape and dtype, along a new first axis."""
        if self.group is None:
            return part[None]
        whole = empty((self.world, *part.shape), part.dtype, self.device)
        is_large = whole[0].nbytes >= _BROADCAST
        if is_large and self.world <= _FEW and self.device.type == "cpu":
            whole[self.rank].copy_(part)
            sources = [_content(each) for each in whole]
            for work in [self._broadcasting(each, k) for k, each in enumerate(sources)]:
                self._wait(work)
            return whole.to(part.device)
        sent, found = _content(part.to(self.device)), _content(whole)
        self._wait(self.group._allgather_base(found, sent, _options(_c10d.AllgatherOptions())))
        return whole.to(part.device)

    def share_text(self, text: str | None) -> str:
        """The text that the first rank has, on all of them, sent as bytes."""
        if self.group is None:
            return text or ""
        content = (text or "").encode()
        length = self._broadcast(torch.tensor([len(content)], device=self.device))
        sent = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.rank == 0:
            sent.copy_(_bytes(content))
        return bytes(self._broadcast(sent).cpu().numpy()).decode()

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with what the first rank has."""
        for tensor in tensors if self.group is not None else ():
            plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            tensor.copy_(_like(self._broadcast(plain.detach().clone().to(self.device)), tensor))

    def agree(self, digest: Tensor, text: Callable[[], str]) -> None:
        """Raises: RankMismatch, on every rank, unless all have the same digest.

        ``text``: makes what it is the digest of, see `digest_of`.
        """
        if self.group is None:
            return
        digests = self._gather(digest.to(self.device))
        if all(torch.equal(digests[0], other) for other in digests):
            return
        texts = self._gather_texts(text())
        self.broken = "its ranks were given different work"
        raise RankMismatch(
            "ranks are not at the same work",
            where="; ".join(_told(texts, self.members)),
            fix="call the same networks with the same shapes and options on every rank",
        )

    def _gather_texts(self, text: str) -> list[str]:
        content = text.encode()
        lengths = self._gather(torch.tensor([len(content)], device=self.device))
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: len(content)] = _bytes(content)
        found = self._gather(padded)
        pairs = zip(found, lengths, strict=True)
        return [bytes(one[: int(n)].cpu().numpy()).decode() for one, n in pairs]

    def _gather(self, mine: Tensor) -> list[Tensor]:
        found = [torch.empty_like(mine) for _ in range(self.world)]
        self._wait(self.group.allgather([found], [mine], _options(_c10d.AllgatherOptions())))
        return found

    def _broadcast(self, tensor: Tensor) -> Tensor:
        self._wait(self._broadcasting(tensor, 0))
        return tensor

    def _broadcasting(self, tensor: Tensor, rank: int) -> Any:
        """What one rank has is on its way to all others."""
        options = _options(dist.BroadcastOptions())
        options.rootRank, options.rootTensor = rank, 0
        return self.group.broadcast([tensor], options)

    # ---------------------------------------------------------------- waiting, and failing

    def check(self) -> None:
        """Raises: GroupError if another rank is lost or has failed."""
        if self.heartbeat is not None:
            self.heartbeat.check()

    @contextmanager
    def one_call(self) -> Iterator[None]:
        """What fails inside fails on every rank, and the team is of no use after it."""
        if self.broken:
            raise GroupError(
                f"this group cannot be used any more: {self.broken}",
                where=call_site(),
                fix="compile again, with a new process group",
            )
        try:
            yield
        except GroupError as error:
            self.broken = self.broken or error.what
            raise
        except Exception as error:
            self.broken = str(error)
            if self.heartbeat is not None:
                self.heartbeat.post(f"{type(error).__name__}: {error}")
            raise

    def _wait(self, work: Any) -> None:
        """Until an operation is done, or another rank is lost: giving way to other threads for
        some milliseconds, then looking now and then."""
        pause, sleepy = 0.0, time.monotonic() + _AWAKE_S
        while not work.is_completed():
            if time.monotonic() < sleepy:
                _give_way()
                continue
            self.check()
            time.sleep(pause)
            pause = min(pause + 5e-5, _POLL_S)
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(str(error)) from None

    def _lost(self, why: str) -> RankLost:
        """A connection broke: the other end may have said why, or will be silent from now on."""
        first = why.splitlines()[0]
        heartbeat = self.heartbeat
        until = time.monotonic() + 2.0
        while heartbeat is not None and time.monotonic() < until:
            heartbeat.check()  # raises what a rank that failed has said
            time.sleep(_POLL_S)
        others = [name for k, name in enumerate(self.members) if k != self.rank]
        if len(others) == 1:
            return lost(others[0], first)
        return RankLost(f"one of the ranks {others} is lost: {first}", fix="start the job again")


_TEAMS: WeakKeyDictionary[Any, Team] = WeakKeyDictionary()
# how many teams each group had: members of a group count alike, whatever groups they are in besides
_JOINED: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def team_of(group: Any, lost_after_s: float) -> Team:
    """The team of a group: one for all networks, until something goes wrong in it."""
    known = _TEAMS.get(group) if isinstance(group, dist.ProcessGroup) else None
    if known is not None and not known.broken and known.lost_after_s == lost_after_s:
        return known
    team = Team(group, lost_after_s)
    if team.world > 1:
        _TEAMS[group] = team
    return team


def _give_way() -> None:
    """Let another thread run on this core, if one wants to."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0.0)


def _store(prefix: str) -> Any:
    """The store that the processes of the job share, for keys that begin with a prefix."""
    return _c10d.PrefixStore(prefix, _c10d._get_default_store())


def _gloo_group(store: Any, rank: int, world: int) -> Any:
    """A gloo group that is never taken down: that would wait for its operations, which a rank that
    is stopped, and not gone, never ends. A process that leaves takes it along."""
    with yielding_network_threads():
        made = dist.ProcessGroupGloo(store, rank, world, timedelta(seconds=JOIN_S))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    return made


def _options(options: Any) -> Any:
    options.timeout = FOREVER
    return options


def digest_of(text: str) -> Tensor:
    """A few bytes that tell whether texts are the same."""
    return _bytes(blake2b(text.encode(), digest_size=DIGEST_BYTES).digest())


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else _NOTHING


_NOTHING = torch.zeros(0, dtype=torch.uint8)


def _content(tensor: Tensor) -> Tensor:
    """The elements of a tensor as bytes."""
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8)


def _tensors(
    content: Tensor, shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]
) -> list[Tensor]:
    """Tensors of what `_content` made of them, one after the other."""
    lengths = [prod(s) * d.itemsize for s, d in zip(shapes, dtypes, strict=True)]
    chunks = torch.split(content, lengths)
    return [
        chunk.clone().view(dtype).view(*shape)  # a copy begins where its elements may
        for chunk, dtype, shape in zip(chunks, dtypes, shapes, strict=True)
    ]


def _like(plain: Tensor, tensor: Tensor) -> Tensor:
    """Real pairs as complex numbers again, where the tensor is complex."""
    return torch.view_as_complex(plain) if tensor.is_complex() else plain


def _as_wire(tensor: Tensor) -> Tensor:
    """A tensor as it is added up between ranks."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point():
        return tensor
    return tensor.to(torch.int64)  # sums wrap as they do in the narrower dtype


def _off_wire(wire: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        return torch.view_as_complex(wire)
    return wire != 0 if like.dtype == torch.bool else wire.to(like.dtype)


def _told(texts: Sequence[str], members: Sequence[int]) -> Iterator[str]:
    """What which ranks have, by text, shortened to where they differ."""
    start = next((k for k, c in enumerate(zip(*texts, strict=False)) if len({*c}) > 1), 0)
    for text in dict.fromkeys(texts):
        names = [str(member) for member, own in zip(members, texts, strict=True) if own == text]
        shown = text[max(start - 60, 0) : start + 60]
        yield f"rank {', '.join(names)}: …{shown}…"
