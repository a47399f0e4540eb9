"""`grad`, `jvp` and `environment`: derivatives as expressions again.

Expressions are lowered, differentiated as programs by the same rules as compiled code, and lifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tncompiler.ir import algebra
from tncompiler.ir.dtypes import is_differentiable, kind
from tncompiler.ir.errors import ArgumentError, GradientError
from tncompiler.ir.expressions import Expr, Leaf, replace_leaves, walk
from tncompiler.ir.index import Index
from tncompiler.ir.lift import lift
from tncompiler.ir.lower import collect_leaves, lower
from tncompiler.ir.origin import call_site
from tncompiler.ir.passes import LOGICAL_PASSES, run_passes
from tncompiler.ir.passes.adjoint import adjoint
from tncompiler.ir.passes.dead import drop_dead_steps
from tncompiler.ir.passes.tangent import tangent
from tncompiler.ir.program import Contract, Program, fresh_name


def _check_leaf(expr: Expr, leaf: object, found: Sequence[Leaf]) -> Leaf:
    names = ", ".join(leaf.name for leaf in found) or "none"
    if isinstance(leaf, str):
        leaf = next((own for own in found if own.name == leaf), leaf)
    if not isinstance(leaf, Leaf):
        raise GradientError(
            f"{_shown(leaf)} is no input, parameter or constant",
            where=call_site(),
            fix=f"the leaves are: {names}",
        )
    for own in found:
        if own.name == leaf.name:
            if own.digest != leaf.digest:
                collect_leaves((own, leaf))  # raises the clash
            if not is_differentiable(leaf.dtype):
                raise GradientError(
                    f"{leaf.name!r} holds {leaf.dtype} numbers, which have no derivatives",
                    where=f"the {leaf.kind} declared at {leaf.origin}",
                    fix="declare it with a float or complex dtype",
                )
            return leaf
    raise GradientError(
        f"{leaf.name!r} does not appear in the expression at {expr.origin}",
        where=call_site(),
        fix=f"the leaves are: {names}",
    )


def _shown(leaf: object) -> str:
    return repr(leaf) if isinstance(leaf, Expr | str) else f"a {type(leaf).__name__}"


def _expect_expr(value: object, caller: str) -> None:
    if not isinstance(value, Expr):
        raise ArgumentError(
            f"{caller} takes an expression, not a {type(value).__name__}",
            where=call_site(),
            fix="build one with tnc.input, tnc.param and operations on them",
        )


def grad(
    expr: Expr, wrt: Leaf | str | tuple[Leaf | str, ...], cotangent: Expr | None = None
) -> Expr | tuple[Expr, ...]:
    """The gradient of a scalar expression, or of <cotangent, expr>, by a leaf (or its name), or by
    several.

    The result has the indices of `wrt`; a shared parameter's uses add. It equals torch's `.grad`
    (for complex tensors ∂L/∂Re + i·∂L/∂Im). Raises GradientError for a non-scalar or non-real
    expression without cotangent, or a leaf that does not appear.
    """
    _expect_expr(expr, "grad")
    leaves = collect_leaves((expr,))
    wanted = wrt if isinstance(wrt, tuple) else (wrt,)
    targets = tuple(_check_leaf(expr, leaf, leaves) for leaf in wanted)
    seed = _seed(expr, cotangent)
    program = lower((expr,))
    joint = drop_dead_steps(adjoint(program, [t.name for t in targets], keep_outputs=False))
    arguments: dict[str, Expr] = {leaf.name: leaf for leaf in leaves}
    (seed_name,) = (a.value.name for a in joint.arguments if a.kind == "cotangent")
    arguments[seed_name] = seed
    gradients = lift(joint, arguments)
    aligned = tuple(algebra.reindex(g, t.indices) for g, t in zip(gradients, targets, strict=True))
    return aligned if isinstance(wrt, tuple) else aligned[0]


def _seed(expr: Expr, cotangent: Expr | None) -> Expr:
    if cotangent is not None:
        given = algebra.as_expr(cotangent)
        if set(given.indices) != set(expr.indices):
            raise GradientError(
                f"the cotangent has the indices ({', '.join(map(str, given.indices))}) but the "
                f"expression has ({', '.join(map(str, expr.indices))})",
                where=call_site(),
                fix="both need the same indices",
            )
        return algebra.transpose(given, expr.indices)
    if expr.indices:
        raise GradientError(
            f"the expression is no scalar: it has the indices "
            f"({', '.join(map(str, expr.indices))})",
            where=f"the expression at {expr.origin}",
            fix="give cotangent=…, or differentiate expr.sum()",
        )
    if _is_complex(expr):
        raise GradientError(
            "the expression is not real, so its gradient is not unique",
            where=f"the expression at {expr.origin}",
            fix="differentiate expr.real, or give cotangent=…",
        )
    return algebra.elementwise("unit_cotangent", expr)


def _is_complex(expr: Expr) -> bool:
    program = lower((expr,))
    return kind(program.values[program.outputs[0]].dtype) == "complex"


def jvp(expr: Expr, tangents: Mapping[Leaf | str, Expr] | Mapping[Leaf, Expr]) -> Expr:
    """The directional derivative of an expression along tangents of its leaves, or of their names.

    Each tangent has the indices of its leaf; the result has those of the expression.
    """
    _expect_expr(expr, "jvp")
    if not isinstance(tangents, Mapping) or not tangents:
        raise ArgumentError(
            "jvp takes a dict of leaf → tangent", where=call_site(), fix="write {x: dx}"
        )
    leaves = collect_leaves((expr,))
    arguments: dict[str, Expr] = {leaf.name: leaf for leaf in leaves}
    moving = {_check_leaf(expr, leaf, leaves): t for leaf, t in tangents.items()}
    program = lower((expr,))
    joint = drop_dead_steps(tangent(program, [m.name for m in moving], keep_outputs=False))
    names = [a.value.name for a in joint.arguments if a.kind == "tangent"]
    for name, (leaf, given) in zip(names, moving.items(), strict=True):
        value = algebra.as_expr(given)
        if set(value.indices) != set(leaf.indices):
            raise GradientError(
                f"the tangent of {leaf.name!r} has other indices than the leaf",
                where=call_site(),
                fix=f"give one with the indices ({', '.join(map(str, leaf.indices))})",
            )
        arguments[name] = algebra.transpose(value, leaf.indices)
    (result,) = lift(joint, arguments)
    return algebra.reindex(result, expr.indices)


def environment(expr: Expr, leaf: Leaf | str) -> Expr:
    """The network with one tensor, or the one of a name, taken out: contracting it back in gives
    `expr`.

    Holomorphic: nothing is conjugated. Its indices are those of `expr` that the rest still has,
    then those of the tensor that the rest has. Raises GradientError if the tensor occurs more than
    once (the occurrences are listed) or not as a factor of one network.
    """
    _expect_expr(expr, "environment")
    leaves = collect_leaves((expr,))
    target = _check_leaf(expr, leaf, leaves)
    uses = [n for n in walk(expr) if isinstance(n, Leaf) and n.name == target.name]
    distinct = list(dict.fromkeys(uses))
    marked = [use for use in distinct if use == target] or (distinct if len(distinct) == 1 else [])
    if len(marked) != 1:
        raise _ambiguous(target, distinct)
    hole = algebra.leaf(_free_name(leaves), marked[0].indices, kind="input", dtype=marked[0].dtype)
    pierced = replace_leaves(expr, {marked[0]: hole})
    program = run_passes(lower((pierced,)), [p for p in LOGICAL_PASSES if p != "bind_windows"])
    positions = _factor_positions(program, hole.name)
    if len(positions) > 1:
        raise _ambiguous(target, [marked[0]] * len(positions))
    if not positions:
        raise GradientError(
            f"the expression at {expr.origin} is not one network with {target.name!r} as a factor; "
            f"it occurs as {_occurrences(target, distinct)}",
            where=call_site(),
            fix="take the environment of a contraction; use tnc.grad for anything else",
        )
    return _take_out(program, positions[0], expr, marked[0], leaves)


def _free_name(leaves: Sequence[Leaf]) -> str:
    names = {leaf.name for leaf in leaves}
    name = "hole"
    while name in names:
        name += "_"
    return name


def _ambiguous(target: Leaf, uses: Sequence[Leaf]) -> GradientError:
    return GradientError(
        f"{target.name!r} occurs {len(uses)} times, so its environment is not unique: "
        f"{_occurrences(target, uses)}",
        where=call_site(),
        fix="name the occurrence with its own indices, as A(i, j)",
    )


def _occurrences(target: Leaf, uses: Sequence[Leaf]) -> str:
    return "; ".join(
        f"{target.name}({', '.join(i.name for i in use.indices)}) at {use.origin}" for use in uses
    )


def _factor_positions(program: Program, name: str) -> list[int]:
    """Where the argument stands in the contraction that makes the output; [] if it is elsewhere."""
    producer = program.producers.get(program.outputs[0])
    if producer is None or not isinstance(producer.op, Contract):
        return []
    elsewhere = any(name in step.operands for step in program.steps if step is not producer)
    return [] if elsewhere else [k for k, op in enumerate(producer.operands) if op == name]


def _take_out(
    program: Program, position: int, expr: Expr, leaf: Leaf, leaves: Sequence[Leaf]
) -> Expr:
    """The factors of the output's contraction, but for one, contracted to what is left open."""
    step = program.producers[program.outputs[0]]
    op: Contract = step.op  # type: ignore[assignment]
    wires = [labels for k, labels in enumerate(op.inputs) if k != position]
    if any(len(set(labels)) != len(labels) for labels in wires):
        raise GradientError(
            "the rest of the network has a diagonal", where=call_site(), fix="use tnc.grad"
        )
    rest = program.with_steps(
        [s for s in program.steps if s is not step],
        tuple(name for k, name in enumerate(step.operands) if k != position),
    )
    arguments: dict[str, Expr] = {own.name: own for own in leaves}
    arguments[step.operands[position]] = leaf
    terms = lift(rest, arguments)
    own = op.inputs[position]
    open_labels = (*op.output, *own)
    named: dict[int, Index] = {}
    joints: list[Expr] = []
    for label, index in zip(open_labels, (*expr.indices, *leaf.indices), strict=True):
        if named.setdefault(label, index) != index:
            joints.append(algebra.delta(named[label], index))
    for term, labels in zip(terms, wires, strict=True):
        _name_bound(named, term, labels)
    have = {label for labels in wires for label in labels}
    wired = [
        algebra.reindex(term, [named[label] for label in labels])
        for term, labels in zip(terms, wires, strict=True)
    ]
    bare = [named[k] for k in dict.fromkeys(own) if k not in have and k not in op.output]
    wired += [*joints, *([algebra.ones(*bare)] if bare else [])]
    kept = [named[k] for k in dict.fromkeys(open_labels) if k in have]
    twins = [index for joint in joints for index in joint.indices]
    return algebra.contract(*wired, out=list(dict.fromkeys((*kept, *bare, *twins))))


def _name_bound(named: dict[int, Index], term: Expr, labels: Sequence[int]) -> None:
    """Give labels that no open index names a fresh one."""
    for label, index in zip(labels, term.indices, strict=True):
        if label not in named:
            taken = {known.name for known in named.values()}
            named[label] = Index(fresh_name(index.name, taken), index.size)
