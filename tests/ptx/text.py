"""PTX text as instructions: what a kernel declares, its code in order, and where its labels are."""

from __future__ import annotations

import re
from dataclasses import dataclass

_KERNEL = re.compile(r"\.entry (\w+)\((.*?)\)(.*?)\n\{(.*?)\n\}", re.DOTALL)
_PARAMETER = re.compile(r"\.param \.(\w+)[^,]*? (\w+)\s*(?:,|$)")
_TABLE = re.compile(r"(\$?\w+):\s*\.branchtargets(.*?);", re.DOTALL)
_DECLARED = re.compile(r"\.reg \.(\w+)\s+([^;]*);")
_LABEL = re.compile(r"(\$?\w+):")
_GUARD = re.compile(r"@(!?)(%?\w+)\s+(.*)", re.DOTALL)
_SCOPE = re.compile(r"\{\s*(\.reg.*?)\}?")
_CONSTANT = re.compile(r"\.(?:global|const) \.align \d+ \.b8 (\S+)\[\d+\] = \{([^}]*)\};")
_LOCAL = re.compile(r"\.local \.align \d+ \.b8\s+(\w+)\[(\d+)\];")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{\[][^,]*")


class PtxError(Exception):
    """A kernel did what a GPU would not do rightly; says where."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """``guard``: the predicate that must be as ``wanted``; ``line`` of the kernel's body."""

    opcode: str
    operands: tuple[str, ...]
    guard: str | None
    wanted: bool
    line: int

    def __str__(self) -> str:
        guard = f"@{'' if self.wanted else '!'}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".rstrip()


@dataclass(frozen=True, slots=True)
class Kernel:
    """``registers``: the type of each prefix (or name) of registers; ``tables``: of jumps.

    ``constants``: bytes of each array in the text; ``local``: names of arrays of a thread.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]  # name and type
    threads: int
    registers: dict[str, str]
    code: tuple[Instruction, ...]
    labels: dict[str, int]  # the position of an instruction in code
    tables: dict[str, tuple[str, ...]]
    constants: dict[str, bytes]
    local: dict[str, int]


def read_kernel(ptx: str) -> Kernel:
    """The one kernel of a PTX text, such as triton writes."""
    text = re.sub(r"//[^\n]*", "", ptx.split("\t.section", 1)[0])
    found = _KERNEL.search(text)
    if found is None:
        raise PtxError("there is no kernel in this text")
    name, parameters, limits, body = found.groups()
    threads = re.search(r"\.reqntid (\d+)", limits)
    if threads is None:
        raise PtxError(f"kernel {name} does not say how many threads a block has (.reqntid)")
    tables = {label: tuple(re.findall(r"[$\w]+", row)) for label, row in _TABLE.findall(body)}
    code, labels = _read_code(_TABLE.sub("", body))
    return Kernel(
        name,
        tuple((n, kind) for kind, n in _PARAMETER.findall(" ".join(parameters.split()))),
        int(threads[1]),
        _read_registers(body),
        code,
        labels,
        tables,
        {name: bytes(map(int, row.split(","))) for name, row in _CONSTANT.findall(text)},
        {name: int(size) for name, size in _LOCAL.findall(body)},
    )


def _read_registers(body: str) -> dict[str, str]:
    found = {}
    for kind, names in _DECLARED.findall(body):
        for name in names.split(","):
            found[name.strip().split("<")[0]] = kind
    return found


def _read_code(body: str) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for number, line in enumerate(body.splitlines(), 1):
        rest = line.strip()
        while label := _LABEL.match(rest):
            labels[label[1]] = len(code)
            rest = rest[label.end() :].strip()
        if scope := _SCOPE.fullmatch(rest):
            rest = scope[1]
        for statement in filter(None, map(str.strip, rest.split(";"))):
            if statement[0] != "." and statement not in ("{", "}"):  # for the debugger; scopes
                code.append(_read_instruction(statement, number))
    return tuple(code), labels


def _read_instruction(text: str, line: int) -> Instruction:
    guard, wanted = None, True
    if found := _GUARD.fullmatch(text):
        wanted, guard, text = found[1] == "", found[2], found[3]
    opcode, *rest = text.split(None, 1)
    operands = [operand.strip() for operand in _OPERAND.findall(rest[0])] if rest else []
    return Instruction(opcode, tuple(operands), guard, wanted, line)
