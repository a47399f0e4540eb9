"""Write a scheduled program as Triton kernels and one host function that launches them."""

from __future__ import annotations

from tncompiler.backends.source import Source
from tncompiler.backends.torch.emit import TorchEmitter
from tncompiler.backends.triton.fuse import Action, fuse
from tncompiler.backends.triton.pairwise import Pairwise, split_sum
from tncompiler.backends.triton.pairwise_kernel import KernelSource, pairwise_kernel
from tncompiler.backends.triton.spelling import HELPERS
from tncompiler.backends.triton.tiles import Tiles, choose_tiles
from tncompiler.ir.dtypes import kind
from tncompiler.ir.program import Literal, Merge, Program, Split, Step, Value

_RUNTIME = ("dot", "is_wide", "on_device_of_arguments", "real_view", *HELPERS)


def emit(program: Program, entry: str) -> Source:
    """Triton source of a scheduled program."""
    return TritonEmitter(program, entry).source()


class TritonEmitter(TorchEmitter):
    """Launches where kernels do the work; flat aten operations for the rest."""

    helpers = (*TorchEmitter.helpers, *_RUNTIME, "triton", "tl")
    decorators = ("@on_device_of_arguments",)

    def __init__(self, program: Program, entry: str) -> None:
        super().__init__(program, entry)
        self.kernels: list[KernelSource] = []
        self.values = dict(program.values)
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
        lines.append(f"from tncompiler.backends.triton.runtime import {', '.join(sorted(used))}")
        for kernel in self.kernels:
            lines += ["", "", kernel.text]
        return lines

    # ------------------------------------------------------------------ steps and launches

    def statements(self) -> None:
        actions = fuse(self.program)
        last_use = _last_uses(actions)
        kept = {*self.program.outputs, *(a.value.name for a in self.program.arguments)}
        for position, action in enumerate(actions):
            if isinstance(action, Pairwise):
                self._launches(action)
            elif not isinstance(action.op, Literal):
                self._step(action)
                self._note_layout(action)
            done = [n for n, last in last_use.items() if last == position and n not in kept]
            if position + 1 < len(actions):
                self._release(done)

    def _note_layout(self, step: Step) -> None:
        if isinstance(step.op, Split | Merge) and step.operands[0] in self.dense:
            self.dense.add(step.out.name)

    def _launches(self, pairwise: Pairwise) -> None:
        tiles = choose_tiles(pairwise)
        if tiles.splits == 1:
            self._launch(pairwise, tiles)
            return
        first, second = split_sum(pairwise, tiles.splits)
        self._launch(first, tiles)
        self._launch(second, choose_tiles(second))
        self.lines.append(f"del {self.name(first.out)}")

    def _launch(self, pairwise: Pairwise, tiles: Tiles) -> None:
        arrays = [load.value for load in pairwise.loads]
        for value in dict.fromkeys(arrays):
            self._make_dense(value)
        names = {value.name: self.name(value) for value in (*arrays, pairwise.out)}
        kernel_name = self.names(("kernel", pairwise.out.name), f"{names[pairwise.out.name]}_kernel", "k")
        kernel = pairwise_kernel(pairwise, tiles, kernel_name, names)
        self.kernels.append(kernel)
        self._allocate(pairwise)
        texts = [self._pointer(v) for v in kernel.arrays]
        texts += [self.size(symbol) for symbol in kernel.symbols]
        for constant, value in kernel.constants:
            if constant == "WIDE" and not value:
                value = f"is_wide({', '.join(names.values())})"
            texts.append(f"{constant}={value}")
        texts += [f"num_warps={tiles.warps}", f"num_stages={tiles.stages}", "enable_fp_fusion=True"]
        grid = ", ".join(kernel.grid(self.size))
        self.lines.append(f"{kernel_name}[({grid},)]({', '.join(texts)})")
        self.dense.add(pairwise.out.name)

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

    def _allocate(self, pairwise: Pairwise) -> None:
        out = pairwise.out
        self.values[out.name] = out
        made = "zeros" if pairwise.diagonal else "empty"
        shape = f"{self.shape(out)}," if out.shape else ""
        text = f"torch.{made}(({shape}), dtype=torch.{out.dtype}{self.device})"
        self.lines.append(f"{self.name(out)} = {text}  # {self._tuple(out)}")


def _last_uses(actions: list[Action]) -> dict[str, int]:
    """By value, the position of the last action that makes or reads it."""
    last: dict[str, int] = {}
    for position, action in enumerate(actions):
        if isinstance(action, Pairwise):
            names = [action.out.name, *(load.value.name for load in action.loads)]
        else:
            names = [action.out.name, *action.operands]
        last.update(dict.fromkeys(names, position))
    return last
