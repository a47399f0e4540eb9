"""Places by Graphviz, where its programs are installed: numbers go in, numbers come out.

In: a graph whose edges may have a `length`. Out: a place for each node, in lengths, or None where
Graphviz is not there or fails. No name of a tensor reaches it.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Hashable, Sequence

import networkx as nx
import numpy as np

FEW, MANY = "neato", "sfdp"  # programs: exact stress of some nodes, multilevel forces of many
_SECONDS = 30.0
_log = logging.getLogger("tncompiler.draw")


def is_installed() -> bool:
    """Whether both programs are found."""
    return None not in (shutil.which(FEW), shutil.which(MANY))


def graphviz_places(
    graph: nx.Graph, nodes: Sequence[Hashable], program: str = FEW
) -> np.ndarray | None:
    """Where a program of Graphviz puts the nodes; the same graph gets the same places."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "-Tplain"], input=_written(graph, nodes), capture_output=True, text=True,
            timeout=_SECONDS, check=True,
        )  # fmt: skip
        return _read(done.stdout, len(nodes))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        _log.debug("%s is not used: %s", program, error)
        return None


def _written(graph: nx.Graph, nodes: Sequence[Hashable]) -> str:
    """The graph in Graphviz's language, nodes as numbers."""
    number = {node: k for k, node in enumerate(nodes)}
    edges = (
        f"{number[a]} -- {number[b]} [len={length:g}]"
        for a, b, length in graph.edges(data="length", default=1.0)
    )
    head = "start=1; splines=line; node [shape=point, width=0.3]"
    return f"graph {{ {head}\n" + "\n".join([*map(str, number.values()), *edges]) + "\n}"


def _read(text: str, count: int) -> np.ndarray:
    """Places by number. Raises: ValueError or IndexError if it is not all there."""
    places = np.full((count, 2), np.nan)
    for line in text.splitlines():
        kind, *words = line.split()
        if kind == "node":
            places[int(words[0])] = float(words[1]), float(words[2])
    if not np.isfinite(places).all():
        raise ValueError("it has not said where every node is")
    return places
