"""plan.reuse: after an edit the tree is kept but around it, and as good as a fresh one."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
import pytest

import tncompiler as tnc
from tncompiler.ir.errors import PlanError
from tncompiler.ir.expressions import Expr
from tncompiler.ir.interchange.networks import only_network
from tncompiler.planning import reuse
from tncompiler.planning.order import check_order

FLOPS = tnc.PlanOptions(minimize="flops")


@dataclass(frozen=True)
class Drawn:
    """A network as a graph: sizes of its edges, and of the open indices of some nodes."""

    graph: nx.Graph
    sizes: dict[tuple[int, int], int]
    open: dict[int, int]

    @staticmethod
    def of(graph: nx.Graph, seed: int) -> "Drawn":
        rng = random.Random(seed)
        sizes = {edge_of(*edge): rng.choice([2, 3]) for edge in sorted(graph.edges)}
        return Drawn(graph, sizes, {node: 2 for node in rng.sample(sorted(graph), 2)})

    def expr(self) -> Expr:
        edges = {e: tnc.Index("e{}_{}".format(*e), size) for e, size in self.sizes.items()}
        legs = {node: tnc.Index(f"o{node}", size) for node, size in self.open.items()}
        tensors = [
            tnc.input(
                f"T{node}",
                *(edges[edge_of(node, other)] for other in self.graph.neighbors(node)),
                *([legs[node]] if node in legs else []),
            )
            for node in self.graph
        ]
        return tnc.contract(*tensors, out=legs.values())


def edge_of(a: int, b: int) -> tuple[int, int]:
    return (min(a, b), max(a, b))


def add(net: Drawn, rng: random.Random) -> Drawn:
    """A tensor more, on up to three others."""
    graph, node = net.graph.copy(), max(net.graph) + 1
    new = {
        edge_of(node, other): 2 for other in rng.sample(sorted(net.graph), rng.choice([1, 2, 3]))
    }
    graph.add_node(node)
    graph.add_edges_from(new)
    return replace(net, graph=graph, sizes={**net.sizes, **new})


def remove(net: Drawn, rng: random.Random) -> Drawn:
    """A tensor less, with its indices."""
    graph, node = net.graph.copy(), rng.choice(sorted(net.graph))
    graph.remove_node(node)
    sizes = {edge: size for edge, size in net.sizes.items() if node not in edge}
    return Drawn(graph, sizes, {k: size for k, size in net.open.items() if k != node})


def resize(net: Drawn, rng: random.Random) -> Drawn:
    """An index of another size; 0 and 1 too."""
    edge = rng.choice(sorted(net.sizes))
    return replace(net, sizes={**net.sizes, edge: rng.choice([0, 1, 4, 5])})


EDITS: tuple[Callable[[Drawn, random.Random], Drawn], ...] = (add, remove, resize)


def drawn(seed: int) -> Drawn:
    """A random network of 4 to 12 tensors: regular, or with tensors that touch nothing."""
    count = random.Random(seed).choice([4, 6, 8, 10, 12])
    if seed % 2:
        return Drawn.of(nx.random_regular_graph(3, count, seed=seed), seed)
    return Drawn.of(nx.gnm_random_graph(count, round(1.3 * count), seed=seed), seed)


def reference(net: Drawn, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The value by numpy.einsum in float64, one tensor after the other."""
    labels = {index: number for number, index in enumerate((*net.sizes, *net.open))}
    wires = {
        node: [labels[edge_of(node, other)] for other in net.graph.neighbors(node)]
        + [labels[k] for k in net.open if k == node]
        for node in net.graph
    }
    output = [labels[node] for node in net.open]
    value, held, left = np.ones(()), [], dict(wires)
    for node, own in wires.items():
        del left[node]
        needed = {*output, *(label for others in left.values() for label in others)}
        kept = [label for label in dict.fromkeys([*held, *own]) if label in needed]
        value, held = np.einsum(value, held, arrays[f"T{node}"], own, kept), kept
    return np.einsum(value, held, output)


def check_drawn(net: Drawn, plan: tnc.ContractionPlan, seed: int) -> None:
    """The plan computes the network."""
    check(net.expr(), plan, seed, lambda arrays: reference(net, arrays))


def check(
    expr: Expr,
    plan: tnc.ContractionPlan,
    seed: int,
    value: Callable[[dict[str, np.ndarray]], np.ndarray],
) -> None:
    rng = np.random.default_rng(seed)
    arrays = {leaf.name: rng.standard_normal(leaf.shape) for leaf in expr.leaves}
    expected = value(arrays)
    got = tnc.compile(expr, plan=plan, framework="numpy", dtype="float64")(**arrays)
    largest = max(np.abs(expected).max(initial=0), 1)
    assert np.allclose(got, expected, rtol=1e-9, atol=1e-9 * largest)


@pytest.mark.parametrize("seed", range(50))
def test_random_edits(seed: int) -> None:
    """random edits on 50 networks give valid plans whose value is right"""
    net = drawn(seed)
    plan = tnc.plan(net.expr(), options=FLOPS)
    for edit in EDITS:
        edited = edit(net, random.Random(seed))
        expr = edited.expr()
        new = plan.reuse(expr)
        (network,) = new.networks
        assert check_order(network.pairs, len(network.tensors))
        assert new.replanned is not None
        assert 0 <= new.replanned <= len(network.pairs)
        if 0 not in edited.sizes.values():  # where 0 is counted, any order may look dear
            assert new.flops <= FACTOR * tnc.plan(expr, options=FLOPS).flops
        check_drawn(edited, new, seed)


FACTOR = 1.1  # of the flops of a fresh plan, at most; see the next test for most


def test_most_edits_cost_nothing() -> None:
    ratios = []
    for seed in range(50):
        net = drawn(seed)
        plan = tnc.plan(net.expr(), options=FLOPS)
        for edit in EDITS[:2]:
            expr = edit(net, random.Random(seed)).expr()
            ratios.append(plan.reuse(expr).flops / max(tnc.plan(expr, options=FLOPS).flops, 1))
    assert np.median(ratios) <= 1.0
    assert np.quantile(ratios, 0.95) <= 1.25


def test_nothing_changed_nothing_planned() -> None:
    expr = drawn(3).expr()
    plan = tnc.plan(expr, options=FLOPS)
    again = plan.reuse(expr)
    assert again.replanned == 0
    assert again.ssa_path == plan.ssa_path
    assert again.minimize == "flops"
    assert plan.replanned is None


def test_far_from_the_edit_the_tree_is_kept() -> None:
    """replan only around it"""
    net = Drawn.of(nx.random_labeled_tree(400, seed=1), 1)
    plan = tnc.plan(net.expr(), options=FLOPS)
    for edit in EDITS:
        new = plan.reuse(edit(net, random.Random(1)).expr())
        assert new.replanned is not None
        assert new.replanned < 100
        kept = {frozenset(group) for group in groups(plan)} & {
            frozenset(group) for group in groups(new)
        }
        assert len(kept) > 200


def groups(plan: tnc.ContractionPlan) -> list[frozenset[str]]:
    """The tensors under each pair."""
    (network,) = plan.networks
    found = [frozenset([name]) for name in network.tensors]
    for a, b in network.pairs:
        found.append(found[a] | found[b])
    return found[len(network.tensors) :]


def test_an_edit_around_which_planning_pays() -> None:
    """A bond grown from 2 to 512 must not be carried through the old tree."""
    k = [tnc.Index(f"k{n}", 2) for n in range(30)]
    chain = [tnc.input(f"A{n}", k[n], k[n + 1]) for n in range(29)]
    plan = tnc.plan(tnc.contract(*chain), options=FLOPS)
    wide = tnc.Index("wide", 512)
    chain[14] = tnc.input("A14", k[14], wide)
    chain[15] = tnc.input("A15", wide, k[16])
    new = plan.reuse(tnc.contract(*chain))
    fresh = tnc.plan(tnc.contract(*chain), options=FLOPS)
    assert new.flops <= 1.05 * fresh.flops
    assert new.replanned is not None
    assert new.replanned < 29


def test_a_network_as_a_graph() -> None:
    """`edited` is an expression or a TensorNetwork"""
    net = drawn(5)
    plan = tnc.plan(net.expr(), options=FLOPS)
    edited = add(net, random.Random(5))
    new = plan.reuse(only_network(edited.expr()))
    assert new.networks[0].pairs == plan.reuse(edited.expr()).networks[0].pairs
    check_drawn(edited, new, 5)


def test_a_diagonal_result_as_a_graph() -> None:
    i, j = tnc.indices("i j", i=3, j=4)
    a, b = tnc.input("a", i, j), tnc.input("b", j)
    other = tnc.Index("i2", 3)
    expr = tnc.contract(a, b, tnc.delta(i, other), out=(i, other))
    plan = tnc.plan(tnc.contract(a, b))
    new = plan.reuse(only_network(expr))
    check(expr, new, 0, lambda arrays: np.diag(arrays["a"] @ arrays["b"]))


def test_several_networks_and_maps() -> None:
    i, j, k, l, m = tnc.indices("i j k l m", i=3, j=4, k=5, l=6, m=2)
    a, b, c = tnc.input("a", i, j), tnc.input("b", j, k), tnc.input("c", k, l)
    d, e = tnc.input("d", l, m), tnc.input("e", m)
    plan = tnc.plan(tnc.tanh(tnc.contract(a, b, c)) @ d)
    edited = tnc.tanh(tnc.contract(a, b, c)) @ d @ e
    new = plan.reuse(edited)
    assert len(new.networks) == 2
    check(edited, new, 0, lambda v: np.tanh(v["a"] @ v["b"] @ v["c"]) @ v["d"] @ v["e"])
    part = tnc.exp(a @ b)
    check(part, plan.reuse(part), 0, lambda v: np.exp(v["a"] @ v["b"]))


def test_one_name_several_times() -> None:
    """A uniform chain: one core at every site, told apart by where it occurs."""
    k = [tnc.Index(f"k{n}", 3) for n in range(12)]
    core = tnc.param("A", k[0], k[1])
    sites = [core(k[n], k[n + 1]) for n in range(11)]
    plan = tnc.plan(tnc.contract(*sites[:8]), options=FLOPS)
    new = plan.reuse(tnc.contract(*sites))
    assert check_order(new.networks[0].pairs, 11)


def test_an_index_on_every_tensor() -> None:
    """One tensor more on a batch index leaves the others as they were."""
    b, k = tnc.Index("b", 7), [tnc.Index(f"k{n}", 2) for n in range(41)]
    sites = [tnc.input(f"A{n}", b, k[n], k[n + 1]) for n in range(40)]
    plan = tnc.plan(tnc.contract(*sites[:39], out=(b,)), options=FLOPS)
    new = plan.reuse(tnc.contract(*sites, out=(b,)))
    assert new.replanned is not None
    assert new.replanned < 39


def test_symbols_keep_the_sizes_of_the_plan() -> None:
    b, i, j, k = tnc.indices("b i j k", i=3, j=4, k=5)
    x, u, v = tnc.input("x", b, i), tnc.param("u", i, j), tnc.param("v", j, k)
    plan = tnc.compile(tnc.contract(x, u, v), framework="numpy").plan({b: 300})
    edited = tnc.contract(x, u, v, tnc.param("w", k))
    assert plan.reuse(edited).sizes == {"b": 300}
    assert plan.reuse(edited, sizes={b: 4}).sizes == {}


def test_nothing_in_common_raises() -> None:
    """PlanError for networks with nothing in common"""
    i, j = tnc.indices("i j", i=3, j=4)
    plan = tnc.plan(tnc.input("a", i, j) @ tnc.input("b", j))
    with pytest.raises(PlanError, match="no tensor in common"):
        plan.reuse(tnc.input("c", i, j) @ tnc.input("d", j))


@pytest.mark.parametrize("edited", [None, 3, "ab,bc->ac", [], {}])
def test_no_expression_raises(edited: object) -> None:
    i, j = tnc.indices("i j", i=3, j=4)
    plan = tnc.plan(tnc.input("a", i, j) @ tnc.input("b", j))
    with pytest.raises(tnc.TncError):
        plan.reuse(edited)


def test_a_plan_from_a_file_can_be_reused() -> None:
    net = drawn(7)
    plan = tnc.ContractionPlan.from_json(tnc.plan(net.expr(), options=FLOPS).to_json())
    edited = remove(net, random.Random(7))
    new = plan.reuse(edited.expr())
    assert tnc.ContractionPlan.from_json(new.to_json()) == new
    check_drawn(edited, new, 7)


def test_a_tree_that_an_edit_made_bad_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 tensors a search tells, of 60 greedy runs do whether it is worth making."""
    for count, seed in ((10, 3), (60, 5)):
        net = Drawn.of(nx.random_regular_graph(3, count, seed=seed), seed)
        expr = net.expr()
        plan = tnc.plan(expr, options=FLOPS)
        in_turn = ((0, 1),) * (count - 1)  # a balanced tree, whatever is next to what
        bad = tnc.plan(expr, options=replace(FLOPS, path=in_turn))
        assert bad.flops > 2 * plan.flops
        node = max(net.graph) + 1
        graph = net.graph.copy()
        graph.add_edge(node, node - 1)
        edited = replace(net, graph=graph, sizes={**net.sizes, (node - 1, node): 2})
        new = bad.reuse(edited.expr())
        assert new.flops == tnc.plan(edited.expr(), options=FLOPS).flops
        assert new.replanned == count  # all pairs
        with monkeypatch.context() as patch:
            patch.setattr(reuse, "_anew", lambda *_: None)
            assert bad.reuse(edited.expr()).flops > new.flops
