"""GraphConv: a graph convolution over a list of edges, its weight a network of cores.

torch has no such layer. This is the convolution of Kipf & Welling 2017 (arXiv:1609.02907), with the
arguments that libraries of graph layers agree on; `DenseGraphConv` is the same in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tncompiler import dsl
from tncompiler.formats.format import Format
from tncompiler.ir import algebra
from tncompiler.ir.errors import ArgumentError, DTypeError, ShapeError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.index import Index
from tncompiler.message_passing import propagate
from tncompiler.nn.built import may_keep
from tncompiler.nn.checks import check_kind
from tncompiler.nn.given import input_leaf
from tncompiler.nn.matrix import Matrix

NORMALIZATIONS = ("symmetric", "mean", None)


class DenseGraphConv(nn.Module):
    """What GraphConv computes, in plain torch around a torch.nn.Linear; arguments as there."""

    def __init__(
        self,
        linear: nn.Linear,
        normalization: str | None = "symmetric",
        self_loops: bool = True,
    ) -> None:
        super().__init__()
        self.linear, self.normalization = linear, _checked(normalization)
        self.self_loops = bool(self_loops)

    @property
    def in_features(self) -> int:
        return self.linear.in_features

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """The convolution of the nodes' features."""
        check_graph(self, x, edge_index, edge_weight)
        graph = edges_of(x, edge_index, edge_weight, self.self_loops)
        weight, bias = self.linear.weight.t(), self.linear.bias
        return convolve(x, graph, weight, bias, self.normalization)

    def extra_repr(self) -> str:
        return shown_graph(self)


class GraphConv(Matrix):
    """y = A x W + bias, where A is the adjacency of a graph, normalized, and W a network.

    Shapes: x (nodes, in_features), edge_index (2, edges) with the source and the target of each
    edge, edge_weight (edges,) or none, output (nodes, out_features). Each target gets the sum over
    its edges of the weight times what the source has.
    ``normalization``: "symmetric" divides an edge's weight by the roots of the degrees of its ends,
    "mean" by the degree of its target, None by nothing; a degree is the sum of the weights of the
    edges that come in. ``self_loops`` adds an edge of weight 1 from each node to itself first; give
    False where the list has them. Formats, shapes and implementations as in `tnc.nn.Linear`.
    Raises: FormatError for shapes or ranks that do not fit; ShapeError for edges that are none;
    PositionError for an edge of a node that is not there.
    """

    dense = DenseGraphConv
    inputs = ("x", "sources", "targets", "weights")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format,
        normalization: str | None = "symmetric",
        self_loops: bool = True,
        in_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.normalization = _checked(normalization)
        self.self_loops = bool(self_loops)
        features, shapes = (in_features, out_features), (in_shape, out_shape)
        self._describe(features, bias, format, shapes, implementation, backend)
        self._make(device, dtype)

    def _expression(self) -> Expr:
        """The layer on a graph; what is propagated is the narrower of the two sides."""
        n, e = Index("n"), Index("e")
        x = input_leaf("x", (n, Index("inputs", self.in_features)))
        sources, targets = (
            algebra.leaf(name, (e,), kind="input", dtype="int64") for name in ("sources", "targets")
        )
        weights = self._normalized(input_leaf("weights", (e,)), sources, targets, n)
        if self.out_features <= self.in_features:
            y = propagate(self.product(x, self._network), n, sources, targets, weights=weights)
        else:
            y = self.product(propagate(x, n, sources, targets, weights=weights), self._network)
        return self._biased(y)

    def _normalized(self, weights: Expr, sources: Expr, targets: Expr, n: Index) -> Expr:
        if self.normalization is None:
            return weights
        degrees = dsl.scatter_add(weights, targets, n)
        known = dsl.greater(degrees, 0.0)
        safe = dsl.where(known, degrees, 1.0)  # so that no gradient of a root of 0 is taken
        if self.normalization == "mean":
            inverse = dsl.where(known, dsl.reciprocal(safe), 0.0)
            return weights * dsl.gather(inverse, n, targets)
        root = dsl.where(known, dsl.rsqrt(safe), 0.0)
        return dsl.gather(root, n, sources) * weights * dsl.gather(root, n, targets)

    def _sizes(self, rows: int) -> dict[str, int]:
        """With an edge for each node, which torch's sums of the dense way take less time for: so
        cores run only where the weight is most of the work."""
        return {"n": rows, "e": rows}

    def _probe(self, rows: Tensor) -> Tensor:
        nodes = torch.arange(len(rows), device=rows.device)
        made: Tensor = self.cores.run_aten(rows, nodes, nodes, rows.new_ones(len(rows)))
        return made

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """The convolution of the nodes' features."""
        check_graph(self, x, edge_index, edge_weight)
        graph = edges_of(x, edge_index, edge_weight, self.self_loops)
        whole = self._built.ready(self, x)
        if whole is None and may_keep(self, x, lambda: self.is_whole_faster(len(x))):
            whole = self._built.keep(self, x, self._make_whole)
        if whole is not None:
            weight, bias = whole
            try:
                return convolve(x, graph, weight, bias, self.normalization)
            except (IndexError, RuntimeError):
                self.cores(x, *graph)  # says what is wrong with the graph
                raise
        made: Tensor = self.cores(x, *graph)
        return made

    @torch.no_grad()
    def to_dense(self) -> DenseGraphConv:
        """A `DenseGraphConv` that computes the same."""
        return DenseGraphConv(self._dense_linear(), self.normalization, self.self_loops)

    @classmethod
    def from_dense(
        cls,
        module: DenseGraphConv,
        format: Format,
        *,
        in_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        rank: Any = None,
        tolerance: float | None = None,
        budget: float | None = None,
        moments: Any = None,
        seed: int = 0,
        implementation: str = "auto",
        backend: str = "auto",
    ) -> GraphConv:
        """The layer nearest to a dense one; arguments as in `Linear.from_dense`.

        ``moments``: those of the features after they were propagated.
        """
        check_kind(module, DenseGraphConv)
        goal = dict(rank=rank, tolerance=tolerance, budget=budget, moments=moments, seed=seed)
        return cls._near(
            module.linear,
            format,
            goal,
            in_shape,
            out_shape,
            normalization=module.normalization,
            self_loops=module.self_loops,
            implementation=implementation,
            backend=backend,
        )

    def extra_repr(self) -> str:
        return f"{shown_graph(self)}, {super().extra_repr()}"


def edges_of(
    x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sources, targets and weights, with loops where they are asked for."""
    sources, targets = edge_index.long()
    weights = x.new_ones(len(sources)) if edge_weight is None else edge_weight
    if not self_loops:
        return sources, targets, weights
    nodes = torch.arange(len(x), device=x.device)
    ends = torch.cat([sources, nodes]), torch.cat([targets, nodes])
    return *ends, torch.cat([weights, x.new_ones(len(x))])


def convolve(
    x: Tensor,
    graph: tuple[Tensor, Tensor, Tensor],
    weight: Tensor,
    bias: Tensor | None,
    normalization: str | None,
) -> Tensor:
    """The convolution with a dense weight (inputs, outputs): the narrower side is propagated."""
    sources, targets, scales = graph
    if normalization is not None:
        degrees = scales.new_zeros(len(x)).index_add(0, targets, scales)
        power = -0.5 if normalization == "symmetric" else -1.0
        known = degrees > 0
        factors = torch.where(known, torch.where(known, degrees, 1.0) ** power, 0.0)
        scales = scales * factors.index_select(0, targets)
        scales = scales * factors.index_select(0, sources) if power == -0.5 else scales
    narrows = weight.shape[1] <= weight.shape[0]
    moved = x @ weight if narrows else x
    messages = moved.index_select(0, sources) * scales[:, None]
    made = torch.zeros_like(moved).index_add(0, targets, messages)
    made = made if narrows else made @ weight
    return made if bias is None else made + bias


def check_graph(layer: Any, x: Any, edge_index: Any, edge_weight: Any) -> None:
    """Raises ArgumentError, ShapeError or DTypeError for what is no graph with features."""
    where = f"{type(layer).__name__} of {layer.in_features} features"
    if not isinstance(x, Tensor) or not isinstance(edge_index, Tensor):
        raise ArgumentError(
            f"x is a {type(x).__name__}, edge_index a {type(edge_index).__name__}",
            where=where,
            fix="give torch tensors",
        )
    if x.ndim != 2 or x.shape[1] != layer.in_features:
        raise ShapeError(
            f"x has shape {tuple(x.shape)}", where=where, fix="give (nodes, in_features)"
        )
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ShapeError(
            f"edge_index has shape {tuple(edge_index.shape)}",
            where=where,
            fix="give (2, edges): sources, then targets",
        )
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise DTypeError(
            f"edge_index has dtype {edge_index.dtype}", where=where, fix="give numbers of nodes"
        )
    wanted = (edge_index.shape[1],)
    if edge_weight is not None and tuple(getattr(edge_weight, "shape", ())) != wanted:
        raise ShapeError(
            f"edge_weight is {getattr(edge_weight, 'shape', edge_weight)!s:.60}",
            where=where,
            fix=f"give one number for each edge, {wanted}",
        )


def shown_graph(layer: GraphConv | DenseGraphConv) -> str:
    return f"normalization={layer.normalization!r}, self_loops={layer.self_loops}"


def _checked(normalization: Any) -> str | None:
    if normalization not in NORMALIZATIONS:
        raise ArgumentError(
            f"normalization is {normalization!r:.40}", fix="choose 'symmetric', 'mean' or None"
        )
    return normalization  # type: ignore[no-any-return]
