"""Write a scheduled program as Triton kernels and one host function that launches them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Self

from tncompiler.backends.source import Source
from tncompiler.backends.torch.emit import TorchEmitter
from tncompiler.backends.triton.actions import last_uses
from tncompiler.backends.triton.bundle import Bundle
from tncompiler.backends.triton.bundle_kernel import BundleSource, bundle_kernel
from tncompiler.backends.triton.chain_tiles import WIDENING
from tncompiler.backends.triton.launches import plan_launches
from tncompiler.backends.triton.pairwise import Pairwise, split_sum, sum_of_parts
from tncompiler.backends.triton.pairwise_kernel import KernelSource, blocks_of, pairwise_kernel
from tncompiler.backends.triton.spelling import HELPERS
from tncompiler.backends.triton.stretches import NONE, Refused
from tncompiler.backends.triton.tiles import Tiles, tile_candidates, unsplit, way_candidates
from tncompiler.ir.dtypes import kind
from tncompiler.ir.program import Literal, Merge, Program, Split, Step, Value
from tncompiler.ir.sizes import Size, product, size_symbol

PROGRAMS = size_symbol("programs of a launch")  # no index can be called so: it is only compared

_RUNTIME = (
    "dot",
    "fitting",
    "is_wide",
    "on_device_of_arguments",
    "real_view",
    "sharing",
    *WIDENING,
    *HELPERS,
)


class Emitted(NamedTuple):
    """A source, and of each of its kernels that runs a chain the digest of that chain."""

    source: Source
    chains: Mapping[str, str]


def emit(program: Program, entry: str, precision: str = "ieee", *, reuses: bool = False) -> Source:
    """Triton source of a scheduled program; "tf32" lets float32 products round their operands."""
    return emit_without(NONE, program, entry, precision).source


def emit_without(
    refused: Refused, program: Program, entry: str, precision: str = "ieee"
) -> Emitted:
    """The source of a plan that has none of the refused chains."""
    emitter = TritonEmitter(program, entry, precision, refused)
    return Emitted(emitter.source(), emitter.chains)


class TritonEmitter(TorchEmitter):
    """Launches where kernels do the work; flat aten operations for the rest."""

    helpers: tuple[str, ...] = (*TorchEmitter.helpers, *_RUNTIME, "triton", "tl")
    decorators = ("@on_device_of_arguments",)

    def __init__(
        self, program: Program, entry: str, precision: str = "ieee", refused: Refused = NONE
    ) -> None:
        self.planned = plan_launches(program, refused)
        super().__init__(self.planned.program, entry)
        self.precision, self.refused = precision, refused
        self.chains: dict[str, str] = {}  # digests by kernel
        self.kernels: list[KernelSource] = []
        self.tables: list[str] = []  # candidates of kernels that have several
        self.alive: list[str] = []  # what the last action still reads
        self.values = dict(self.program.values)
        self.dense: set[str] = set()  # values whose memory is in the order of their axes

    def prelude(self) -> list[str]:
        body = "\n".join([*self.lines, *(kernel.text for kernel in self.kernels)])
        used = [n for n in _RUNTIME if f"{n}(" in body or f"@{n}" in self.decorators]
        lines = ["import torch"]
        if self.kernels:
            lines += ["import triton", "import triton.language as tl"]
        if self.imports:
            names = ", ".join(sorted(self.imports))
            lines.append(f"from tncompiler.backends.torch.runtime import {names}")
        choosing = {"fitting", "sharing"}
        for module, names_of in (("fitting", choosing), ("runtime", {*used} - choosing)):
            found = ", ".join(sorted(names_of & {*used}))
            if found:
                lines.append(f"from tncompiler.backends.triton.{module} import {found}")
        for kernel in self.kernels:
            lines += ["", "", kernel.text]
        return [*lines, *(["", ""] if self.tables else []), *self.tables]

    # ------------------------------------------------------------------ steps and launches

    def write_steps(self) -> None:
        """Write every action, and give up values when nobody needs them any more."""
        actions = self.planned.actions
        last_use = last_uses(actions)
        kept = {*self.program.outputs, *(a.value.name for a in self.program.arguments)}
        for position, action in enumerate(actions):
            match action:
                case Pairwise():
                    self._launches(action)
                case Bundle():
                    self._launch_bundle(action)
                case Step() if not isinstance(action.op, Literal):
                    self._step(action)
                    self._note_layout(action)
            self.alive = [n for n, last in last_use.items() if last == position and n not in kept]
            if position + 1 < len(actions):
                self.release(self.alive)

    def read_last(self) -> list[str]:
        return self.alive

    def nested(self, body: Program) -> Self:
        """As for every emitter; the kernels of a loop's body stand beside the others."""
        inner = super().nested(body)
        inner.kernels, inner.tables, inner.chains = self.kernels, self.tables, self.chains
        return inner

    def for_body(self, body: Program, entry: str) -> Self:
        return type(self)(body, entry, self.precision, self.refused)

    def _note_layout(self, step: Step) -> None:
        if isinstance(step.op, Split | Merge) and step.operands[0] in self.dense:
            self.dense.add(step.out.name)

    def _launches(self, pairwise: Pairwise) -> None:
        tiles = tile_candidates(pairwise)
        if tiles[0].splits == 1:
            self._launch(pairwise, tiles)
            return
        first, second = split_sum(pairwise, tiles[0].splits)
        self._launch(first, tiles)
        self._launch(second, tile_candidates(second))
        self.lines.append(f"del {self.name(first.out)}")

    def _launch(self, pairwise: Pairwise, tiles: tuple[Tiles, ...]) -> None:
        arrays = [*dict.fromkeys(load.value for load in pairwise.loads)]
        for value in arrays:
            self._make_dense(value)
        names = {value.name: self.name(value) for value in (*arrays, pairwise.out)}
        name = self._kernel_name(pairwise.out)
        kernel = pairwise_kernel(pairwise, tiles, name, names, self.precision)
        self.kernels.append(kernel)
        self._allocate(pairwise.out, zeros=pairwise.diagonal)
        given = [self._pointer(array) for array in kernel.arrays]
        given += [self.size(symbol) for symbol in kernel.symbols]
        given += [f"{c}={v or self._wide(kernel)}" for c, v in kernel.constants if v or c == "WIDE"]
        if len(tiles) == 1:
            config, options = "", f"num_warps={tiles[0].warps}, num_stages={tiles[0].stages}"
        else:
            blocks = [_keywords(dict(blocks_of(pairwise, t)), t) for t in tiles]
            grid = ", ".join(kernel.grid(self.size, "config"))
            config = self._configure(kernel, blocks, grid, given)
            options = f"**{config}"
        grid = ", ".join(kernel.grid(self.size, config))
        launch = f"{kernel.name}[({grid},)]({', '.join(given)}"
        self.lines.append(f"{launch}, {options}, enable_fp_fusion=True)")
        self.dense.add(pairwise.out.name)

    def _kernel_name(self, value: Value) -> str:
        """A name for the next kernel: two may make one value, each for the launches after it."""
        key = ("kernel", self.scope, value.name, len(self.kernels))
        return self.names(key, f"{self.name(value)}_kernel", "kernel")

    def _wide(self, kernel: KernelSource) -> str:
        """Source of whether offsets into a kernel's arrays take 64 bits."""
        values = [self.values[name] for name in kernel.arrays]
        unsure = [self.name(value) for value in values if not _is_narrow(value)]
        return f"is_wide({', '.join(unsure)})" if unsure else "False"

    def _configure(
        self, kernel: KernelSource, candidates: list[str], grid: str, given: list[str]
    ) -> str:
        """The variable that holds the configuration which a kernel is launched with."""
        table = self._tabulate(kernel, candidates)
        config = self.names(("config", kernel.name), "config", "config")
        programs = f"lambda config: ({grid},)"
        asked = ", ".join([kernel.name, table, programs, *given])
        self.lines.append(f"{config} = fitting({asked})")
        return config

    def _tabulate(self, kernel: KernelSource, candidates: list[str]) -> str:
        """The table of a kernel's configurations."""
        table = self.names(("table", kernel.name), f"{kernel.name}s", "configs")
        self.tables.append(f"{table} = ({', '.join(candidates)},)")
        return table

    # ------------------------------------------------------------------ chains

    def _launch_bundle(self, bundle: Bundle) -> None:
        """The bundle's launch, and the one that adds up what each program has summed."""
        for value in bundle.inputs:
            self._make_dense(value)
        self.values.update((v.name, v) for v in (*bundle.outputs, *bundle.sums))
        names = {v.name: self.name(v) for v in (*bundle.inputs, *bundle.outputs, *bundle.sums)}
        first = (*bundle.outputs, *bundle.sums)[0]
        name = self._kernel_name(first)
        self.chains[name] = bundle.digest
        made = bundle_kernel(bundle, name, names, self._function_name, self.precision)
        self.kernels.append(made.kernel)
        for value in bundle.outputs:
            self._allocate(value)
            self.dense.add(value.name)
        arrays = [self.name(self.values[name]) for name in made.kernel.arrays]
        sizes = [self.size(symbol) for symbol in made.kernel.symbols]
        wide = self.names(("wide", name), "wide", "wide")
        self.lines.append(f"{wide} = {self._wide(made.kernel)}")
        last = [*sizes, f"WIDE={wide}"]
        programs = self.names(PROGRAMS, "programs", "programs")
        unknown = [f"(torch.{made.dtype}, {made.parts.total})"] if bundle.sums else []
        config = self._share(bundle, made, [*arrays, *unknown, *last])
        parts = self._allocate_parts(bundle, made)
        given = ", ".join([*arrays, *([self.name(parts)] if parts else []), *last])
        grid = f"({programs},{_branches(bundle, config)})"
        launch = f"{made.kernel.name}[{grid}]({given}"
        self.lines.append(f"{launch}, **{config}, enable_fp_fusion=True)")
        if parts is not None:
            self._add_parts(bundle, made, parts)

    def _share(self, bundle: Bundle, made: BundleSource, given: list[str]) -> str:
        """The variable of the bundle's configuration, which comes with a number of programs."""
        candidates = [_way_keywords(bundle, k, t) for k, t in way_candidates(bundle)]
        table = self._tabulate(made.kernel, candidates)
        config = self.names(("config", made.kernel.name), "config", "config")
        programs = self.names(PROGRAMS, "programs", "programs")
        grid = f"lambda config, programs: (programs,{_branches(bundle, 'config')})"
        rows = self.size(bundle.stream.size)
        asked = ", ".join([made.kernel.name, table, grid, rows, *given])
        self.lines.append(f"{config}, {programs} = sharing({asked})")
        return config

    def _function_name(self, name: str) -> str:
        return self.names(("function", name), name, "part")

    def _allocate_parts(self, bundle: Bundle, made: BundleSource) -> Value | None:
        """Room for the sums of each program."""
        if not bundle.sums:
            return None
        name, shape = f"{bundle.sums[0].name} parts", (PROGRAMS, made.parts.total)
        parts = Value(name, shape, made.dtype, ("program", "element"))
        self._allocate(parts)
        self.dense.add(parts.name)
        return parts

    def _add_parts(self, bundle: Bundle, made: BundleSource, parts: Value) -> None:
        """One launch for all sums; each is a view of its result."""
        dtypes = {value.dtype for value in bundle.sums}
        dtype = dtypes.pop() if len(dtypes) == 1 else made.dtype
        sums = Value(f"{bundle.sums[0].name} sums", (made.parts.total,), dtype, ("element",))
        summed = sum_of_parts(parts, sums)
        self._launch(summed, unsplit(tile_candidates(summed)))
        for value in bundle.sums:
            start = made.parts.offsets[value.name]
            count = math.prod(int(size) for size in value.shape)
            text = f"{self.name(sums)}[{start}:{start + count}].view({self.shape(value) or '()'})"
            if value.dtype != dtype:
                text = f"{text}.to(torch.{value.dtype})"
            self.lines.append(f"{self.name(value)} = {text}  # {self._tuple(value)}")
            self.dense.add(value.name)

    def size(self, size: Size) -> str:
        """The number of programs is no size of the arguments: the host function has chosen it."""
        if size == PROGRAMS:
            return self.names(PROGRAMS, "programs", "programs")
        return super().size(size)

    def _make_dense(self, value: Value) -> None:
        """Kernels read arrays in the order of their axes; most are so already."""
        self.ref(value)
        if value.name not in self.dense:
            name = self.name(value)
            self.lines.append(f"{name} = {name}.contiguous()")
            self.dense.add(value.name)

    def _pointer(self, name: str) -> str:
        value = self.values[name]
        text = self.name(value)
        return f"real_view({text})" if kind(value.dtype) == "complex" else text

    def _allocate(self, out: Value, *, zeros: bool = False) -> None:
        self.values[out.name] = out
        made = "zeros" if zeros else "empty"
        shape = f"{self.shape(out)}," if out.shape else ""
        text = f"torch.{made}(({shape}), dtype=torch.{out.dtype}{self.device})"
        self.lines.append(f"{self.name(out)} = {text}  # {self._tuple(out)}")


def _is_narrow(value: Value) -> bool:
    """Whether 32 bits are known to count an array's numbers."""
    numbers = product(value.shape)
    return isinstance(numbers, int) and numbers * (1 + (kind(value.dtype) == "complex")) < 2**31


def _branches(bundle: Bundle, config: str) -> str:
    """Source of how many branches a configuration has, as the second axis of the grid; or none."""
    counts = [len(way) for way in bundle.ways]
    if counts == [1]:
        return ""
    return f" {tuple(counts)}[{config}['WAY']]" if len(counts) > 1 else f" {counts[0]}"


def _way_keywords(bundle: Bundle, number: int, tiles: Tiles) -> str:
    """A configuration of a chain's kernel as source."""
    way = {"WAY": number} if len(bundle.ways) > 1 else {}
    return _keywords({**way, "ROWS": tiles.m}, tiles)


def _keywords(blocks: Mapping[str, int], tiles: Tiles) -> str:
    """A configuration as source."""
    options = {**blocks, "num_warps": tiles.warps, "num_stages": tiles.stages}
    return f"dict({', '.join(f'{name}={number}' for name, number in options.items())})"
