"""Instructions in which all lanes of a warp work together: shuffles, sums, and small matrices."""

from __future__ import annotations

import re

import numpy as np

from tests.ptx import matrices
from tests.ptx.actions import Action, Warp, address_of, check_together, check_vector, listed
from tests.ptx.registers import KINDS, LANES, UNSIGNED, Mask, reader, writer
from tests.ptx.text import Instruction, Kernel, PtxError


def shuffle(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    target, source, b, c, _ = instruction.operands
    value, inside = (*target.split("|"), "_")[:2]
    reads = [reader(kernel, source, "b32"), reader(kernel, b, "b32"), reader(kernel, c, "b32")]
    writes = [writer(kernel, value), writer(kernel, inside)]

    def act(warp: Warp, lanes: Mask) -> None:
        check_together(lanes, instruction)
        given = [read(warp.registers) for read in reads]
        for write, values in zip(writes, matrices.shuffled(found[1], *given), strict=True):
            write(warp.registers, values, lanes)

    return act


_REDUCTIONS: dict[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def reduce(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    """redux: one number of all lanes."""
    target, source, members = instruction.operands
    reduction, dtype = _REDUCTIONS[found[1]], KINDS[found[2]].dtype
    read, who = reader(kernel, source, found[2]), reader(kernel, members, "u32")
    write = writer(kernel, target)

    def act(warp: Warp, lanes: Mask) -> None:
        check_together(lanes, instruction)
        if (who(warp.registers) != 2**LANES - 1).any():
            raise PtxError("only all lanes together are known to reduce")
        total = reduction.reduce(read(warp.registers), dtype=dtype)
        write(warp.registers, np.full(LANES, total, dtype), lanes)

    return act


def multiply(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    if instruction.opcode not in matrices.PRODUCTS:
        raise PtxError(f"unknown instruction: {instruction}")
    shape = matrices.PRODUCTS[instruction.opcode]
    target, *sources = map(listed, instruction.operands)
    kinds = (shape.operand, shape.operand, shape.total)
    if tuple(map(len, sources)) != shape.registers:
        raise PtxError(f"the registers of {instruction} are not {shape.registers}")
    reads = [[reader(kernel, n, k) for n in s] for s, k in zip(sources, kinds, strict=True)]
    writes = [writer(kernel, name) for name in target]

    def act(warp: Warp, lanes: Mask) -> None:
        check_together(lanes, instruction)
        a, b, c = ([read(warp.registers) for read in side] for side in reads)
        for write, values in zip(writes, matrices.multiply(shape, a, b, c), strict=True):
            write(warp.registers, values, lanes)

    return act


def load_matrices(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    target, source = instruction.operands
    address = address_of(kernel, source)
    writes = [writer(kernel, name) for name in listed(target)]

    def act(warp: Warp, lanes: Mask) -> None:
        check_together(lanes, instruction)
        rows, memory = address(warp.registers), warp.spaces["shared"]
        check_vector(rows[: 8 * len(writes)], 16, None)
        for k, write in enumerate(writes):
            places = rows[matrices.lane_of_row(k)] + (4 * matrices.PLACE).astype(np.uint64)
            values = memory.load(places, UNSIGNED[32], None)
            write(warp.registers, matrices.transposed(values) if found[2] else values, lanes)

    return act


def store_matrices(kernel: Kernel, instruction: Instruction, found: re.Match[str]) -> Action:
    target, source = instruction.operands
    address = address_of(kernel, target)
    reads = [reader(kernel, name, "b32") for name in listed(source)]

    def act(warp: Warp, lanes: Mask) -> None:
        check_together(lanes, instruction)
        rows, memory = address(warp.registers), warp.spaces["shared"]
        check_vector(rows[: 8 * len(reads)], 16, None)
        for k, read in enumerate(reads):
            places = rows[matrices.lane_of_row(k)] + (4 * matrices.PLACE).astype(np.uint64)
            values = read(warp.registers)
            memory.store(places, matrices.transposed(values) if found[2] else values, None)

    return act
