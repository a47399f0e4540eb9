"""The kernel of a bundle: one function, or one for each chain and a kernel that calls them.

In: a bundle. Out: the source of one kernel with its functions, and how its partial sums lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sympy

from tncompiler.backends.naming import Names
from tncompiler.backends.triton.bundle import Bundle, Way
from tncompiler.backends.triton.chain_kernel import ChainSource, Parts, chain_function
from tncompiler.backends.triton.chain_tiles import WIDENING
from tncompiler.backends.triton.pairwise_kernel import RESERVED, KernelSource

Naming = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class BundleSource:
    """``parts``: where the sums of a program lie; ``dtype``: of a sum."""

    kernel: KernelSource
    parts: Parts
    dtype: str


def bundle_kernel(
    bundle: Bundle, name: str, variables: Mapping[str, str], naming: Naming, precision: str = "ieee"
) -> BundleSource:
    """The kernel of a bundle; WAY says which of the ways it goes, if there are several.

    ``variables``: the host's names of values; ``naming`` makes a name of a function unique.
    """
    parts = Parts.of(bundle.sums)
    if len(bundle.ways) == 1 and len(bundle.ways[0]) == 1:
        made = chain_function(bundle.ways[0][0], name, variables, parts, precision)
        return BundleSource(_source(name, made.text, made.arrays, made.symbols), parts, made.dtype)
    base = name.removesuffix("_kernel")

    def function(way: Way, position: int) -> ChainSource:
        own = naming(_function_name(base, position, way))
        return chain_function(way[position], own, variables, parts, precision)

    ways = [[function(way, k) for k in range(len(way))] for way in bundle.ways]
    text, arrays, symbols = _dispatch(bundle, name, variables, ways)
    whole = "\n\n\n".join([*(made.text for way in ways for made in way), text])
    return BundleSource(_source(name, whole, arrays, symbols), parts, ways[0][0].dtype)


def _source(
    name: str, text: str, arrays: tuple[str, ...], symbols: tuple[sympy.Symbol, ...]
) -> KernelSource:
    """A kernel whose grid the host function works out itself."""
    return KernelSource(name, text, arrays, symbols, (), lambda size, config: ())


def _function_name(base: str, position: int, way: Way) -> str:
    tiled = "_tiled" if any(chain.tile for chain in way) else ""
    if len(way) == 1:
        return f"{base}{tiled or '_whole'}"
    return f"{base}{tiled}_{position + 1}_of_{len(way)}"


def _dispatch(
    bundle: Bundle, name: str, variables: Mapping[str, str], ways: list[list[ChainSource]]
) -> tuple[str, tuple[str, ...], tuple[sympy.Symbol, ...]]:
    """The kernel that calls the functions of a way, each in programs of its own."""
    made = [source for way in ways for source in way]
    names = Names()
    names.reserve((*RESERVED, *WIDENING, "parts", "ROWS", "WAY", *(m.name for m in made)))
    arrays = tuple(v.name for v in (*bundle.inputs, *bundle.outputs))
    symbols = tuple(dict.fromkeys(symbol for source in made for symbol in source.symbols))
    pointers = {array: names(("array", array), variables[array], "a") for array in arrays}
    sizes = {symbol: names(symbol, f"{symbol.name}_size", "size") for symbol in symbols}
    parameters = [*pointers.values(), *(["parts"] if bundle.sums else []), *sizes.values()]
    constants = [f"{c}: tl.constexpr" for c in ("WAY", "ROWS", "WIDE")[len(ways) == 1 :]]
    lines = ["@triton.jit", f"def {name}({', '.join([*parameters, *constants])}):"]
    lines.append('    """One launch, cut in the way that spills nothing."""')

    def call(source: ChainSource) -> str:
        given = [pointers[array] for array in source.arrays]
        given += ["parts"] * source.sums + [sizes[symbol] for symbol in source.symbols]
        return f"{source.name}({', '.join([*given, 'ROWS', 'WIDE'])})"

    for number, way in enumerate(ways):
        indent = "    "
        if len(ways) > 1:
            lines.append(f"    {'el' if number else ''}if WAY == {number}:")
            indent += "    "
        if len(way) == 1:
            lines.append(indent + call(way[0]))
            continue
        for branch, source in enumerate(way):
            lines.append(f"{indent}{'el' if branch else ''}if tl.program_id(1) == {branch}:")
            lines.append(f"{indent}    {call(source)}")
    return "\n".join(lines), arrays, symbols
