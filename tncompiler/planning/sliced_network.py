"""An order and indices to slice for one large network, from cotengra's slicer and reconfiguration.

In: a network, a limit of elements. Out: SSA pairs and labels to go through one position at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tncompiler.ir.dtypes import ITEM_BYTES
from tncompiler.ir.program import Contract, Labels, Program, Step, label_sizes, operand_values
from tncompiler.ir.sizes import Binding, evaluate
from tncompiler.planning.budget import Budget
from tncompiler.planning.order import Pair, letter, split_path
from tncompiler.planning.slicing import Cut

SLICED_FROM = 10  # tensors; smaller networks are cut by trying every index
_ROUNDS = 64


@dataclass(frozen=True, slots=True)
class SlicedOrder:
    """SSA pairs, and the labels that are sliced."""

    pairs: tuple[Pair, ...]
    labels: Labels


@dataclass(frozen=True, slots=True)
class SlicedProgram:
    """The order of each network, and the cuts for one of them."""

    orders: Mapping[str, tuple[Pair, ...]]
    cuts: tuple[Cut, ...]


def slice_network(
    terms: Sequence[Labels],
    output: Labels,
    sizes: Mapping[int, int],
    pairs: Sequence[Pair],
    target: int,
    seed: int,
    budget: Budget | None = None,
) -> SlicedOrder:
    """Slice until all intermediates at once have at most `target` elements, if that can be.

    One index at a time, and after each the tree is reconfigured around it. The same for the same
    seed. ``budget``: the time after which no further index is sliced.
    """
    from cotengra import ContractionTree  # takes a second to import

    numbers = {letter(label): label for label in sizes}
    tree = ContractionTree.from_path(
        [[letter(label) for label in term] for term in terms],
        [letter(label) for label in output],
        {letter(label): max(size, 1) for label, size in sizes.items()},
        ssa_path=pairs,
    )
    budget = budget or Budget()
    for number in range(_ROUNDS):
        if budget.late():
            break
        if tree.peak_size() <= target or not tree.size_dict.keys() - tree.sliced_inds.keys():
            break
        tree.slice_(target_slices=2, seed=seed + number)
        tree.subtree_reconfigure_(seed=seed + number, maxiter=64)
    found = split_path(tree.get_ssa_path(), len(terms))
    return SlicedOrder(found, tuple(sorted(numbers[name] for name in tree.sliced_inds)))


def slice_program(
    program: Program,
    orders: Mapping[str, tuple[Pair, ...]],
    nominal: Binding,
    limit: int,
    seed: int,
    budget: Budget | None = None,
) -> SlicedProgram | None:
    """Orders with cuts for the largest network of a logical program; None if none is large."""
    networks = [
        (len(step.operands), step)
        for step in program.steps
        if isinstance(step.op, Contract) and step.out.name in orders
    ]
    count, step = max(networks, key=lambda item: item[0], default=(0, None))
    if step is None or count < SLICED_FROM or len(set(step.operands)) < count:
        return None  # of a core at several sites cotengra's labels do not say which use is meant
    terms, output, sizes = _terms(program, step, nominal)
    target = limit // ITEM_BYTES[step.out.dtype]
    pairs = orders[step.out.name]
    found = slice_network(terms, output, sizes, pairs, target, seed, budget)
    cuts = [cut for label in found.labels for cut in _cuts(program, step, label)]
    return SlicedProgram({**orders, step.out.name: found.pairs}, tuple(cuts))


def _terms(
    program: Program, step: Step, nominal: Binding
) -> tuple[list[Labels], Labels, dict[int, int]]:
    """The network as the scheduler sees it: without scalars and labels of one tensor alone."""
    op: Contract = step.op  # type: ignore[assignment]
    operands = operand_values(program, step)
    sizes = {k: evaluate(s, nominal) for k, s in label_sizes(op, operands, step.out).items()}
    output = tuple(dict.fromkeys(op.output))
    uses: dict[int, int] = dict.fromkeys(output, 1)
    for labels in op.inputs:
        for label in set(labels):
            uses[label] = uses.get(label, 0) + 1
    terms = [
        tuple(label for label in dict.fromkeys(labels) if uses[label] > 1)
        for labels in op.inputs
        if labels
    ]
    on_terms = {label for term in terms for label in term}
    return terms, tuple(k for k in output if k in on_terms), {k: sizes[k] for k in on_terms}


def _cuts(program: Program, step: Step, label: int) -> list[Cut]:
    """The label's axes of the network's operands; the first cut makes the loop, others find it."""
    op: Contract = step.op  # type: ignore[assignment]
    return [
        Cut(name, labels.index(label), 1, sink=True)
        for name, labels in zip(step.operands, op.inputs, strict=True)
        if label in labels
    ]
