"""The table of instructions that do more than compute: memory, control, and what lanes share.

Each is made once, before a kernel runs, into an action on a warp and those lanes that take part;
an action returns where to go on, if not at the next instruction.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from tests.ptx import together
from tests.ptx.actions import (
    LOCAL_BYTES,
    Action,
    Barrier,
    Maker,
    Next,
    Warp,
    address_of,
    check_together,
    check_vector,
    listed,
)
from tests.ptx.arithmetic import COMPUTATIONS
from tests.ptx.registers import KINDS, LANES, UNSIGNED, Mask, Read, reader, writer
from tests.ptx.text import Instruction, Kernel, PtxError


def make_action(kernel: Kernel, instruction: Instruction) -> Action:
    """What is not known, or not well formed, is an error that names it once a lane gets there."""
    try:
        return _make_action(kernel, instruction)
    except PtxError as error:
        message = str(error)
    except (KeyError, ValueError) as error:
        message = f"{instruction} is not as it should be: {error}"

    def fail(warp: Warp, lanes: Mask) -> Next:
        raise PtxError(message)

    return fail


def _make_action(kernel: Kernel, instruction: Instruction) -> Action:
    if "{" not in "".join(instruction.operands) and instruction.opcode in COMPUTATIONS:
        return _compute(kernel, instruction)
    known = _find_effect(instruction.opcode)
    if known is None:
        raise PtxError(f"unknown instruction: {instruction}")
    maker, found = known
    return maker(kernel, instruction, found)


@functools.cache
def _find_effect(opcode: str) -> tuple[Maker, re.Match[str]] | None:
    for pattern, maker in EFFECTS:
        if found := re.fullmatch(pattern, opcode):
            return maker, found
    return None


def _compute(kernel: Kernel, instruction: Instruction) -> Action:
    made = COMPUTATIONS[instruction.opcode]
    function = made.function
    target, *sources = instruction.operands
    reads = [reader(kernel, o, kind) for o, kind in zip(sources, made.sources, strict=True)]
    write = writer(kernel, target)

    def act(warp: Warp, lanes: Mask) -> None:
        registers = warp.registers
        write(registers, function(*[read(registers) for read in reads]), lanes)

    return act


# ---------------------------------------------------------------------------- moves


def _move_parts(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    """mov with braces: a register from its parts, or parts from a register; the low part first."""
    bits = int(found[1])
    target, source = instruction.operands
    names = listed(source if source.startswith("{") else target)
    part = f"b{bits // len(names)}"
    if source.startswith("{"):
        write, reads = writer(kernel, target), [reader(kernel, n, part) for n in names]

        def pack(warp: Warp, lanes: Mask) -> None:
            stacked = np.stack([read(warp.registers) for read in reads], axis=-1)
            write(warp.registers, stacked.reshape(-1).view(UNSIGNED[bits]), lanes)

        return pack
    read, writes = reader(kernel, source, f"b{bits}"), [writer(kernel, n) for n in names]

    def unpack(warp: Warp, lanes: Mask) -> None:
        parts = read(warp.registers).view(UNSIGNED[bits // len(names)]).reshape(LANES, -1)
        for k, write in enumerate(writes):
            write(warp.registers, np.ascontiguousarray(parts[:, k]), lanes)

    return unpack


def _load_parameter(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    write = writer(kernel, instruction.operands[0])
    name, dtype = instruction.operands[1].strip("[] "), KINDS[found[1]].dtype

    def act(warp: Warp, lanes: Mask) -> None:
        bits = warp.parameters[name] & (2 ** (8 * dtype.itemsize) - 1)
        write(warp.registers, np.full(LANES, bits, np.uint64).astype(dtype), lanes)

    return act


# ---------------------------------------------------------------------------- memory


def _in_space(kernel: Kernel, operand: str, space: str) -> Read:
    """Each lane has local memory of its own, one after another."""
    address = address_of(kernel, operand)
    if space != "local":
        return address
    start = np.arange(LANES, dtype=np.uint64) * np.uint64(LOCAL_BYTES)
    return lambda registers: address(registers) + start


def _load(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    space, kind = found[1], KINDS[found[3]]
    target, source = instruction.operands
    writes = [writer(kernel, name) for name in listed(target)]
    address = _in_space(kernel, source, space)
    step = kind.dtype.itemsize

    def act(warp: Warp, lanes: Mask) -> None:
        first, memory = address(warp.registers), warp.spaces[space]
        check_vector(first, step * len(writes), lanes)
        for k, write in enumerate(writes):
            values = memory.load(first + np.uint64(k * step), UNSIGNED[kind.bits], lanes)
            write(warp.registers, values.view(kind.dtype), lanes)

    return act


def _store(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    space, kind = found[1], KINDS[found[3]]
    target, source = instruction.operands
    reads = [reader(kernel, name, f"b{kind.bits}") for name in listed(source)]
    address = _in_space(kernel, target, space)
    step = kind.dtype.itemsize

    def act(warp: Warp, lanes: Mask) -> None:
        first, memory = address(warp.registers), warp.spaces[space]
        check_vector(first, step * len(reads), lanes)
        for k, read in enumerate(reads):
            memory.store(first + np.uint64(k * step), read(warp.registers), lanes)

    return act


def _copy(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    """cp.async: what it writes is not there before it is waited for."""
    target, source, size, *given = instruction.operands
    to, start = address_of(kernel, target), address_of(kernel, source)
    words = int(size, 0) // 4
    count = reader(kernel, given[0], "u32") if given else None

    def act(warp: Warp, lanes: Mask) -> None:
        first = start(warp.registers)
        have = np.full(LANES, 4 * words) if count is None else count(warp.registers)
        taken = have > 0 if lanes is None else lanes & (have > 0)
        check_vector(first, 4 * words, taken)
        read = []
        for k in range(words):
            there = taken & (have >= 4 * k + 4)
            read.append(warp.spaces["global"].load(first + np.uint64(4 * k), UNSIGNED[32], there))
        warp.open_group.append((to(warp.registers), read, lanes))

    return act


def _commit(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    def act(warp: Warp, lanes: Mask) -> None:
        warp.groups.append(warp.open_group)
        warp.open_group = []

    return act


def _wait(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    """Until no more than so many groups are under way."""
    left = int(instruction.operands[0], 0) if instruction.operands else 0

    def act(warp: Warp, lanes: Mask) -> None:
        if not instruction.operands:
            warp.groups.append(warp.open_group)
            warp.open_group = []
        while len(warp.groups) > left:
            for addresses, words, taken in warp.groups.pop(0):
                for k, values in enumerate(words):
                    warp.spaces["shared"].store(addresses + np.uint64(4 * k), values, taken)

    return act


# ---------------------------------------------------------------------------- control


def _jump(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    targets = np.full(LANES, kernel.labels[instruction.operands[0]])
    return lambda warp, lanes: targets


def _jump_by_table(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    number, table = instruction.operands
    read = reader(kernel, number, "u32")
    places = np.array([kernel.labels[label] for label in kernel.tables[table]])
    return lambda warp, lanes: places[np.minimum(read(warp.registers), len(places) - 1)]


def _return(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    end = np.full(LANES, len(kernel.code))
    return lambda warp, lanes: end


def _barrier(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    if instruction.operands != ("0",):
        raise PtxError(f"unknown instruction: {instruction} (barrier 0 of all threads is known)")

    def act(warp: Warp, lanes: Mask) -> Next:
        check_together(lanes, instruction)
        return Barrier

    return act


def _nothing(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    """The lanes of a warp go together anyway."""
    return lambda warp, lanes: None


_CACHED = r"((?:\.(?:nc|ca|cg|cs|cv|wb|wt|volatile|L1::\w+|L2::\w+))*)"
_VECTOR = r"(?:\.v[24])?"
_KIND = r"\.([busf]\d+)"

EFFECTS: tuple[tuple[str, Maker], ...] = (
    (r"mov\.[busf](32|64)", _move_parts),
    (rf"ld\.param{_KIND}", _load_parameter),
    (rf"ld\.(global|shared|local){_CACHED}{_VECTOR}{_KIND}", _load),
    (rf"st\.(global|shared|local){_CACHED}{_VECTOR}{_KIND}", _store),
    (r"cp\.async\.c[ag]\.shared\.global(?:\.L2::\w+)?", _copy),
    (r"cp\.async\.commit_group", _commit),
    (r"cp\.async\.(wait_group|wait_all)", _wait),
    (r"shfl\.sync\.(bfly|idx|up|down)\.b32", together.shuffle),
    (r"redux\.sync\.(add|min|max|and|or|xor)\.([bsu]32)", together.reduce),
    (r"mma\.sync\..*", together.multiply),
    (r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16", together.load_matrices),
    (r"stmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16", together.store_matrices),
    (r"bra(\.uni)?", _jump),
    (r"brx\.idx(\.uni)?", _jump_by_table),
    (r"ret|exit", _return),
    (r"(?:bar|barrier)\.sync(?:\.aligned)?", _barrier),
    (r"bar\.warp\.sync", _nothing),
)
