"""A second backward pass through what torch.compile made, refused by an error of ours.

torch differentiates compiled code once. A second pass raises inside of its compiler, which names no
network; and where a loss is linear, gradients may count as constants without a word. Operators of
gradients run in the first pass, below autograd, and can look at what torch makes of the results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

Gradients = tuple[Tensor | None, ...]


def refuse_second_pass(error: Callable[[], Exception]) -> None:
    """To be called by an operator of gradients while it runs.

    ``error`` makes what is raised: in the second pass, or in the first one (`create_graph=True`)
    if torch would leave this network out of the second.
    """
    node = torch._C._current_autograd_node()
    if node is None or not torch._C._autograd._get_current_graph_task_keep_graph():
        return

    inputs = {source for source, _ in node.next_functions if source is not None}

    def refuse(*_: Any) -> None:
        raise error()

    def look(gradients: Gradients, cotangents: Gradients) -> None:
        handle.remove()
        if not torch.is_grad_enabled():  # the graph is kept, but no further one is built
            return
        nodes = {g.grad_fn for g in gradients if g is not None and g.grad_fn is not None}
        if not nodes or not all(_reaches(made, inputs) for made in nodes):
            refuse()
        for made in nodes:
            made.register_prehook(refuse)

    handle = node.register_hook(look)


def _reaches(made: Node, wanted: set[Node]) -> bool:
    """Whether a pass that starts at a node comes to all of these."""
    seen, pending = {made}, [made]
    while pending and not wanted <= seen:
        sources = {source for source, _ in pending.pop().next_functions if source is not None}
        pending.extend(sources - seen)
        seen |= sources
    return wanted <= seen
