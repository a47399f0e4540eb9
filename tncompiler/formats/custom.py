"""Custom: a network that the user wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tncompiler.dsl import param
from tncompiler.formats.als import als, random_cores
from tncompiler.formats.balance import balanced_by_name
from tncompiler.formats.descent import descend
from tncompiler.formats.format import Bond, Factored, Format
from tncompiler.formats.joints import joints_of, with_bond
from tncompiler.formats.modes import Modes
from tncompiler.formats.substitute import bound_to
from tncompiler.ir import algebra
from tncompiler.ir.dtypes import DEFAULT
from tncompiler.ir.errors import FormatError
from tncompiler.ir.expressions import Expr, Leaf, replace_leaves, walk
from tncompiler.ir.index import Index

_STARTS = 3


@dataclass(frozen=True, init=False)
class Custom(Format):
    """Any expression of parameters and constants, as a weight.

        tnc.formats.Custom(tnc.contract(A, B, C, out=(i1, i2, o1)))
        tnc.formats.Custom(lambda ins, outs: tnc.param("A", *ins, r) @ tnc.param("B", r, *outs))

    ``expression``: open indices are the input modes, then the output modes, symbols among their
    sizes are bound to the shapes; or a function from both tuples of indices to an expression. It
    has the ranks it is written with: `rank` and `clamp` change nothing, and a tolerance or a budget
    of a decomposition is only checked.

    Shapes: parameters as declared.
    Cost:   what the parameters hold.
    Error:  no bound: alternating least squares from random starts (Kolda & Bader 2009,
            doi:10.1137/07070111X, section 3.4, with environments for unfoldings). A network that
            is not linear in each parameter, such as one with shared cores, is fitted by L-BFGS.
    Raises: FormatError for an expression with inputs, without parameters, or of other sizes.
    """

    expression: Any = None

    direct: ClassVar[bool] = False

    def __init__(self, expression: Any, *, rank: Any = None, clamp: bool = False) -> None:
        for name, value in (("expression", expression), ("rank", rank), ("clamp", clamp)):
            object.__setattr__(self, name, value)

    def bonds(self, modes: Modes) -> tuple[Bond, ...]:
        return ()

    def build(self, modes: Modes, bonds: Mapping[str, Index]) -> Expr:
        expr = self.expression
        if isinstance(expr, Expr):
            expr = _scoped(_fitting(expr, modes))
        elif callable(expr):
            expr = expr(modes.ins, modes.outs)
        return _checked(expr, modes)

    def resized(self, modes: Modes, bond: str, size: int) -> Format:
        """The network as one contraction, with another size for a bond."""
        network = self.network(modes.ins, modes.outs)
        joints = joints_of(network)
        if bond not in joints:
            raise FormatError(
                f"the network has no bond {bond!r}", fix=f"its bonds are {sorted(joints)}"
            )
        return Custom(with_bond(network, joints[bond], size))

    def factor(
        self, weight: np.ndarray, modes: Modes, ranks: Mapping[str, int], tail: float, seed: int
    ) -> Factored:
        network = self.build(modes, {})
        starts = random_cores(network, weight, np.random.default_rng(seed), _STARTS)
        try:
            cores, _ = als(network, weight, starts)
        except FormatError:  # not linear in every parameter
            return Factored(descend(network, weight, starts)[0], {})
        return Factored(balanced_by_name(cores), {})

    def __str__(self) -> str:
        return "Custom()"


def _fitting(expr: Expr, modes: Modes) -> Expr:
    """The expression with the modes for its open indices."""
    if expr.ndim != len(modes.all):
        raise _misfit(expr, modes)
    bound = bound_to(expr, modes.shape)
    if bound.shape != modes.shape:
        raise _misfit(expr, modes)
    return algebra.reindex(bound, modes.all)


def _scoped(expr: Expr) -> Expr:
    """The expression with the names of its parameters in the scope that is open."""
    params = [n for n in walk(expr) if isinstance(n, Leaf) and n.kind == "param"]
    return replace_leaves(
        expr, {n: param(n.name, *n.indices, init=n.init, dtype=_own_dtype(n)) for n in params}
    )


def _own_dtype(leaf: Leaf) -> str | None:
    return None if leaf.dtype == DEFAULT else leaf.dtype


def _checked(expr: Any, modes: Modes) -> Expr:
    if not isinstance(expr, Expr):
        raise FormatError(
            f"Custom got a {type(expr).__name__}",
            fix="give an expression, or a function (ins, outs) → expression",
        )
    if set(expr.indices) != set(modes.all):
        raise _misfit(expr, modes)
    inputs = [leaf.name for leaf in expr.leaves if leaf.kind == "input"]
    if inputs:
        raise FormatError(
            f"the network has the input {inputs[0]!r}", fix="a weight has parameters and constants"
        )
    if not any(leaf.kind == "param" for leaf in expr.leaves):
        raise FormatError("the network has no parameters", fix="declare them with tnc.param")
    return algebra.transpose(expr, modes.all)


def _misfit(expr: Expr, modes: Modes) -> FormatError:
    return FormatError(
        f"the network has the open indices ({', '.join(map(str, expr.indices))}), but the modes "
        f"are ({', '.join(map(str, modes.all))})",
        where=f"the expression defined at {expr.origin}",
        fix="give it one open index for each mode, inputs first, of the same sizes",
    )
