"""Runs a kernel's grid: block after block, and in a block warp after warp from barrier to barrier.

Between two barriers warps may run in any order on a GPU. Here the order is chosen, and each warp
runs alone as far as it can: a barrier that is missing gives wrong numbers in one order or another,
and is an error in any (`sharing`).
Lanes that part at a branch go on in order of position, those furthest behind first.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx.actions import LOCAL_BYTES, Action, Barrier, Warp
from tests.ptx.effects import make_action
from tests.ptx.memory import Memory
from tests.ptx.registers import LANES, Array, Mask, Registers
from tests.ptx.sharing import Block, SharedMemory
from tests.ptx.text import Instruction, Kernel, PtxError, read_kernel

SHARED_BYTES = 49_152  # what a block may have if it does not ask for more
Order = Callable[[list[int]], list[int]]
Program = tuple[tuple[Instruction, Action], ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """``parameters`` and ``constants``: values and addresses by name; ``sizes`` of the grid.

    ``races``: whether they are allowed, so that they show in the numbers only.
    """

    kernel: Kernel
    program: Program
    memory: Memory
    parameters: dict[str, int]
    constants: dict[str, int]
    sizes: Sequence[int]
    shared_bytes: int
    races: bool


def forward(warps: list[int]) -> list[int]:
    return warps


def reverse(warps: list[int]) -> list[int]:
    return warps[::-1]


def shuffled(seed: int) -> Order:
    """Another order at every barrier."""
    generator = random.Random(seed)
    return lambda warps: generator.sample(warps, len(warps))


def run_grid(
    ptx: str,
    arguments: Sequence[Array | int],
    grid: Sequence[int],
    order: Order = forward,
    *,
    shared_bytes: int = SHARED_BYTES,
    races: bool = False,
) -> None:
    """Run a kernel on arrays, which it changes in place, and integers.

    Parameters beyond the arguments (triton's own scratch memory) are 0.
    Raises: PtxError for an unknown instruction, an access outside every array, a misaligned one,
    a barrier or a shuffle that some lanes do not reach; unless ``races`` are allowed,
    accesses to shared memory that no barrier is between.
    """
    kernel, program = _prepared(ptx)
    memory = Memory()
    given = [
        argument if isinstance(argument, int) else memory.add(f"argument {k}", argument)
        for k, argument in enumerate(arguments)
    ]
    given += [0] * (len(kernel.parameters) - len(given))
    named = dict(zip((name for name, _ in kernel.parameters), given, strict=True))
    arrays = {n: np.frombuffer(data, np.uint8) for n, data in kernel.constants.items()}
    constants = {name: memory.add(name, array) for name, array in arrays.items()}
    sizes = (*grid, 1, 1)[:3]
    launch = Launch(kernel, program, memory, named, constants, sizes, shared_bytes, races)
    with np.errstate(all="ignore"):
        for place in itertools.product(*map(range, reversed(sizes))):
            _run_block(launch, place[::-1], order)


@functools.lru_cache(maxsize=64)
def _prepared(ptx: str) -> tuple[Kernel, Program]:
    kernel = read_kernel(ptx)
    return kernel, tuple((i, make_action(kernel, i)) for i in kernel.code)


def _run_block(launch: Launch, place: Sequence[int], order: Order) -> None:
    kernel = launch.kernel
    block = Block(launch.shared_bytes)
    running: dict[int, Iterator[None]] = {}
    for number in range(kernel.threads // LANES):
        local = Memory()
        local.add("local memory", np.full(LANES * LOCAL_BYTES, 255, np.uint8), base=0)
        shared = SharedMemory(block, number, forbids=not launch.races)
        spaces = {"global": launch.memory, "shared": shared, "local": local}
        warp = Warp(_special(launch, number, place), spaces, launch.parameters)
        running[number] = _run_warp(launch.program, warp)
    while running:
        for number in order(list(running)):
            try:
                next(running[number])
            except StopIteration:
                del running[number]
            except PtxError as error:
                where = f"kernel {kernel.name}, block {tuple(place)}, warp {number}"
                raise PtxError(f"{error}\n  in {where}") from error
        block.pass_barrier()


def _special(launch: Launch, number: int, place: Sequence[int]) -> Registers:
    """Registers that say which thread this is, and where the arrays in the text are."""
    kernel, lane = launch.kernel, np.arange(LANES, dtype=np.uint32)
    registers = Registers(kernel)
    registers["%laneid"] = lane
    named: dict[str, Any] = {"tid": (lane + LANES * number, 0, 0), "ntid": (kernel.threads, 1, 1)}
    for name, values in {**named, "ctaid": place, "nctaid": launch.sizes}.items():
        for axis, value in zip("xyz", values, strict=True):
            registers[f"%{name}.{axis}"] = np.zeros(LANES, np.uint32) + np.asarray(value, np.uint32)
    for name, address in launch.constants.items():
        registers[name] = np.full(LANES, address, np.uint64)
    return registers


def _run_warp(program: Program, warp: Warp) -> Iterator[None]:
    """Until the end; yields at barriers. ``waiting``: lanes that are elsewhere, by position."""
    at, lanes = 0, _none()
    lanes[:] = True
    waiting: dict[int, Array] = {}
    alone: Mask = None
    while True:
        if waiting:
            waiting[at] = waiting.get(at, _none()) | lanes
            at = min(waiting)
            lanes = waiting.pop(at)
        if at == len(program):
            return
        alone = lanes if waiting else None
        instruction, action = program[at]
        taken = alone
        if instruction.guard is not None:
            chosen = warp.registers[instruction.guard] == instruction.wanted
            taken = chosen if alone is None else chosen & alone
            if taken.all():
                taken = None
            elif not taken.any():
                at += 1
                continue
        try:
            target = action(warp, taken)
        except PtxError as error:
            raise PtxError(f"{error}\n  at {instruction} (line {instruction.line})") from error
        at += 1
        if isinstance(target, np.ndarray):
            at, lanes = _part(waiting, at, lanes, taken, target)
        elif target is Barrier:
            yield


def _none() -> Array:
    return np.zeros(LANES, np.bool_)


def _part(
    waiting: dict[int, Array], at: int, lanes: Array, taken: Mask, targets: Array
) -> tuple[int, Array]:
    """Lanes that jump wait where they go; returns where the first of all are, and which."""
    jumping = lanes if taken is None else taken
    for target in np.unique(targets[jumping]):
        waiting[int(target)] = waiting.get(int(target), _none()) | jumping & (targets == target)
    staying = lanes & ~jumping
    if staying.any():
        waiting[at] = waiting.get(at, _none()) | staying
    first = min(waiting)
    return first, waiting.pop(first)
