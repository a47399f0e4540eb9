"""Candidate orders contract everything; costs are those counted by hand; searches find the best."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import cotengra
import networkx
import numpy as np
import pytest

from tests.test_rates import library
from tncompiler.planning import reconfigure
from tncompiler.planning import tree_cost as tree_costs
from tncompiler.planning.candidates import (
    Network,
    _Exact,
    _exact_searches,
    _RandomGreedy,
    _Reconfigured,
    candidate_orders,
    is_exact,
    tree_multiplications,
)
from tncompiler.planning.exchange import neighbours, shape_of
from tncompiler.planning.hyper import greedy_order
from tncompiler.planning.order import Pair, letter, split_path
from tncompiler.planning.reconfigure import Search, reconfigured
from tncompiler.planning.tree_cost import TreeCosts, tree_cost

RATES = library()
Order = tuple[Pair, ...]


def random_network(seed: int, tensors: int, labels: int, output: int = 2) -> Network:
    """Tensors of one to four labels of sizes 2 to 6, hyperedges among them."""
    rng = random.Random(seed)
    names = range(labels)
    wires = [tuple(rng.sample(names, rng.randint(1, min(4, labels)))) for _ in range(tensors)]
    used = sorted({k for wire in wires for k in wire})
    out = tuple(rng.sample(used, min(output, len(used))))
    return Network.of(wires, out, {k: rng.randint(2, 6) for k in names}, active=range(tensors))


def grid(rows: int, columns: int, size: int = 3) -> Network:
    """A closed lattice: each label on two tensors."""
    label = itertools.count()
    wires: list[list[int]] = [[] for _ in range(rows * columns)]
    for at in range(rows * columns):
        for step, ends in ((1, (at + 1) % columns == 0), (columns, at >= columns * (rows - 1))):
            if not ends:
                edge = next(label)
                wires[at].append(edge)
                wires[at + step].append(edge)
    return Network.of(list(map(tuple, wires)), (), dict.fromkeys(range(next(label)), size))


def every_order(count: int) -> Iterator[Order]:
    """Every sequence of pairs of so many tensors."""

    def extend(left: tuple[int, ...], pairs: Order) -> Iterator[Order]:
        if len(left) == 1:
            yield pairs
        for a, b in itertools.combinations(left, 2):
            rest = tuple(k for k in left if k not in (a, b))
            yield from extend((*rest, count + len(pairs)), (*pairs, (a, b)))

    return extend(tuple(range(count)), ())


def contracts_everything(pairs: Order, count: int) -> bool:
    """Whether each tensor and each result but the last is read once, after it is there."""
    read = [k for pair in pairs for k in pair]
    made = all(max(pair) < number for number, pair in enumerate(pairs, count))
    return made and sorted(read) == list(range(count + len(pairs) - 1))


def flops(network: Network, pairs: Order) -> float:
    return tree_cost(replace(network, active=frozenset()), pairs, "flops", RATES)


# ---------------------------------------------------------------------------- costs


def test_flops_of_a_chain_and_of_its_adjoint() -> None:
    """x (b i) G (i r) H (r o): two products forward, one more for each operand that needs it."""
    b, i, r, o = 3, 5, 2, 7
    sizes = {0: b, 1: i, 2: r, 3: o}
    wires, out = [(0, 1), (1, 2), (2, 3)], (0, 3)
    stream, first, second = ((0, 1), (2, 3)), 2 * b * i * r, 2 * b * r * o
    for active, times in [((), (1, 1)), ((1,), (2, 2)), ((2,), (1, 2)), ((0, 1, 2), (3, 3))]:
        network = Network.of(wires, out, sizes, active=active)
        expected = times[0] * first + times[1] * second
        assert tree_cost(network, stream, "flops", RATES) == expected


def test_a_product_without_a_sum_is_half_the_flops() -> None:
    network = Network.of([(0,), (1,), (0, 1)], (0, 1), {0: 4, 1: 5})
    assert tree_cost(network, ((0, 1), (2, 3)), "flops", RATES) == 20 + 20


def test_products_of_parameters_are_free_where_they_are_kept() -> None:
    wires, sizes = [(0, 1), (1, 2), (2, 3)], {0: 3, 1: 5, 2: 2, 3: 7}
    weight_first = ((1, 2), (0, 3))
    network = Network.of(wires, (0, 3), sizes, fixed=(1, 2))
    paid, kept = (
        tree_cost(replace(network, cached=cached), weight_first, "flops", RATES)
        for cached in (False, True)
    )
    assert (paid, kept) == (2 * 5 * 2 * 7 + 2 * 3 * 5 * 7, 2 * 3 * 5 * 7)


def test_time_is_the_sum_of_products() -> None:
    b, i, r, o = 64, 16, 4, 256
    network = Network.of([(0, 1), (1, 2), (2, 3)], (0, 3), {0: b, 1: i, 2: r, 3: o})
    expected = 0.0
    for m, n, k in ((b, r, i), (b, o, r)):
        moved = 4.0 * (m * k + k * n + m * n)
        rows, columns = sorted((m, n))
        product = RATES.product_us(1, rows, columns, k, "float32")
        expected += RATES.step_us + max(product, RATES.pass_us(moved))
    assert tree_cost(network, ((0, 1), (2, 3)), "time", RATES) == pytest.approx(expected)


def test_an_operand_in_the_wrong_order_is_copied_first() -> None:
    """(i, k, j) read as (i j, k) is interleaved; (i, j, k) is not, nor (k, i, j)."""
    sizes = {0: 4, 1: 8, 2: 16, 3: 32}

    def time(wire: tuple[int, ...]) -> float:
        network = Network.of([wire, (2, 3)], (0, 1, 3), sizes)
        return tree_cost(network, ((0, 1),), "time", RATES)

    assert time((0, 1, 2)) == time((2, 0, 1))
    copied = RATES.step_us + RATES.gather_us(2 * 4 * 4 * 8 * 16, 8)
    assert time((0, 2, 1)) == pytest.approx(time((0, 1, 2)) + copied)


def test_a_batch_innermost_is_copied() -> None:
    sizes = {0: 4, 1: 8, 2: 16, 3: 32}

    def time(wire: tuple[int, ...]) -> float:
        network = Network.of([wire, (0, 2, 3)], (0, 1, 3), sizes)
        return tree_cost(network, ((0, 1),), "time", RATES)

    assert time((0, 1, 2)) == time((0, 2, 1)) < time((1, 2, 0))


def test_memory_counts_what_a_gradient_needs() -> None:
    network = Network.of([(0, 1), (1, 2), (2, 3)], (0, 3), {0: 3, 1: 5, 2: 2, 3: 7})
    stream = ((0, 1), (2, 3))
    assert tree_cost(network, stream, "memory", RATES) == 3 * 2 + 3 * 7
    trained = replace(network, active=frozenset({0, 1, 2}))
    assert tree_cost(trained, stream, "memory", RATES) == 3 * 2 + 3 * 7 + 3 * 2


def test_scalars_and_private_labels_are_left_out() -> None:
    network = Network.of([(0, 1, 5), (), (1, 2)], (0, 2), {0: 2, 1: 3, 2: 4, 5: 9}, active=(2,))
    assert network.wires == ((0, 1), (1, 2))
    assert network.active == {1}
    assert network.terms == (frozenset({0, 1}), frozenset({1, 2}))


# ---------------------------------------------------------------------------- candidates


@pytest.mark.parametrize("seed", range(12))
def test_candidates_are_different_whole_orders(seed: int) -> None:
    network = random_network(seed, tensors=3 + seed, labels=4 + seed)
    network = replace(network, fixed=frozenset(range(1, len(network.terms), 2)))
    orders = list(candidate_orders(network, 4, 0))
    assert orders and len(set(orders)) == len(orders)
    assert all(contracts_everything(pairs, len(network.terms)) for pairs in orders)
    assert all(a < b for pairs in orders for a, b in pairs)
    assert orders == list(candidate_orders(network, 4, 0))


@pytest.mark.parametrize("seed", range(4))
def test_the_first_candidate_multiplies_least(seed: int) -> None:
    """By cotengra's count, one multiplication a point, against every order there is."""
    rng = random.Random(seed)
    network = grid(2, 3)
    network = replace(network, sizes={k: rng.randint(2, 9) for k in network.sizes})
    first = next(candidate_orders(network, 4, 0))
    least = min(multiplied(network, pairs) for pairs in every_order(6))
    assert multiplied(network, first) == least


@pytest.mark.parametrize("seed", range(6))
def test_exact_search_finds_the_same_cost_sieved_or_not(seed: int) -> None:
    network = random_network(seed, tensors=7, labels=9)
    given = (network, network.terms, network.output)
    paths = [_Exact("flops", sieved)(*given) for sieved in (False, True)]
    pairs = [split_path(path, len(network.terms)) for path in paths]
    assert multiplied(network, pairs[0]) == multiplied(network, pairs[1])


def test_what_touches_everything_is_not_sieved() -> None:
    wires = ((0, 1, 2), (0, 3, 4), (1, 3, 5), (2, 4, 5))
    complete = Network.of(wires, (), dict.fromkeys(range(6), 2))
    assert not any(search.sieved for search in _exact_searches(complete.terms))
    assert all(search.sieved for search in _exact_searches(grid(2, 4).terms))


def test_the_weight_first_is_among_the_candidates() -> None:
    network = Network.of([(0, 1), (1, 2), (2, 3)], (0, 3), {0: 9, 1: 2, 2: 2, 3: 2}, fixed=(1, 2))
    assert any(set(pairs[0]) == {1, 2} for pairs in candidate_orders(network, 4, 0))


def test_exact_search_is_kept_from_crowds() -> None:
    """CP of 16 factors shares one label: exact search there takes minutes."""
    assert is_exact(grid(4, 4).terms)
    assert not is_exact(grid(6, 6).terms)
    crowd = [frozenset({0, k}) for k in range(1, 17)]
    assert not is_exact(crowd) and is_exact(crowd[:8])


# ---------------------------------------------------------------------------- reconfiguration


def left_to_right(count: int) -> Order:
    return ((0, 1), *((count + k, k + 2) for k in range(count - 2)))


@pytest.mark.parametrize("seed", range(6))
def test_reconfigured_trees_are_whole_and_never_worse(seed: int) -> None:
    network = random_network(seed, tensors=14, labels=16)
    before = left_to_right(len(network.terms))
    after = reconfigured(network.terms, network.output, network.sizes, before, exact_for(network))
    assert contracts_everything(after, len(network.terms))
    assert multiplied(network, after) <= multiplied(network, before)


def exact_for(network: Network) -> Search:
    return partial(_Exact("flops"), network)


def multiplied(network: Network, pairs: Order) -> float:
    return float(cotengra_tree(network, pairs).total_flops())


def cotengra_tree(network: Network, pairs: Order) -> Any:
    return cotengra.ContractionTree.from_path(
        [[letter(k) for k in sorted(term)] for term in network.terms],
        [letter(k) for k in sorted(network.output)],
        {letter(k): n for k, n in network.sizes.items()},
        ssa_path=pairs,
    )


def test_a_part_as_large_as_the_network_gives_the_best_tree() -> None:
    network = grid(2, 4)
    found = reconfigured(
        network.terms, network.output, network.sizes, left_to_right(8), exact_for(network)
    )
    best = next(candidate_orders(network, 4, 0))
    assert multiplied(network, found) == multiplied(network, best)


def test_parts_bring_a_lattice_close_to_the_best() -> None:
    network = grid(4, 5)
    before = left_to_right(20)
    found = reconfigured(network.terms, network.output, network.sizes, before, exact_for(network))
    assert multiplied(network, found) < 0.9 * multiplied(network, before)


def test_more_ways_to_choose_parts_improve_what_the_largest_first_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random cubic graphs of 80 tensors, from greedy trees."""
    ways = reconfigure._ways
    gains = []
    for seed in range(3):
        network = cubic(80, seed)
        before, costs = greedy_order(network, seed), []
        for count in (1, 4):
            monkeypatch.setattr(reconfigure, "_ways", lambda tree, n=count: ways(tree)[:n])
            found = reconfigured(
                network.terms, network.output, network.sizes, before, exact_for(network)
            )
            costs.append(multiplied(network, found))
        gains.append(costs[1] / costs[0])
    assert max(gains) <= 1.0
    assert math.prod(gains) < 0.5


def cubic(count: int, seed: int) -> Network:
    graph = networkx.random_regular_graph(3, count, seed=seed)
    wires: list[list[int]] = [[] for _ in range(count)]
    for label, edge in enumerate(graph.edges):
        for node in edge:
            wires[node].append(label)
    return Network.of(wires, (), dict.fromkeys(range(graph.number_of_edges()), 2))


# ---------------------------------------------------------------------------- exchanges


@pytest.mark.parametrize("count", [3, 4, 7])
def test_neighbours_are_whole_trees_one_exchange_away(count: int) -> None:
    start = left_to_right(count)
    found = list(neighbours(start, count))
    assert len(found) == 2 * (count - 2)
    for pairs in found:
        assert contracts_everything(pairs, count)
        assert len(shape_of(pairs, count) ^ shape_of(start, count)) == 2
    assert len({shape_of(pairs, count) for pairs in found}) == len(found)


def test_two_tensors_have_no_neighbours() -> None:
    assert list(neighbours(((0, 1),), 2)) == []


def test_every_tree_is_reached_by_exchanges() -> None:
    start = left_to_right(5)
    reached, frontier = {shape_of(start, 5)}, [start]
    while frontier:
        for pairs in neighbours(frontier.pop(), 5):
            if shape_of(pairs, 5) not in reached:
                reached.add(shape_of(pairs, 5))
                frontier.append(pairs)
    assert len(reached) == math.prod(range(3, 8, 2))  # (2n - 3)!! rooted binary trees


# ---------------------------------------------------------------------------- the helpers


def test_helpers_can_fail() -> None:
    assert not contracts_everything(((0, 1), (0, 2)), 3)
    assert not contracts_everything(((0, 3), (1, 2)), 3)
    assert contracts_everything(((0, 1), (2, 3)), 3)
    assert len(list(every_order(4))) == 18
    network = grid(2, 2)
    values = {multiplied(network, pairs) for pairs in every_order(4)}
    assert len(values) > 1 and np.isfinite(list(values)).all()
    assert flops(network, left_to_right(4)) > 0


@pytest.mark.parametrize("minimize", ["time", "flops", "memory"])
@pytest.mark.parametrize("seed", range(12))
def test_costs_of_trees_are_the_same_remembered_or_not(
    seed: int, minimize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets of tensors, and what products of them cost, are shared by the trees of a network."""
    network = random_network(seed, 7, 9)
    roles = replace(network, fixed=frozenset((0, 2, 3)), cached=bool(seed % 2))
    for own in (roles, replace(roles, active=frozenset((1,)))):
        costs = TreeCosts(own, minimize, RATES)
        orders = list(candidate_orders(own, 8, seed))
        remembered = [costs(order) for order in (*orders, *orders)]
        with monkeypatch.context() as patch:
            patch.setattr(tree_costs, "_MASKED_UP_TO", 0)
            anew = [tree_cost(own, order, minimize, RATES) for order in orders]
        assert remembered == pytest.approx([*anew, *anew])


# ---------------------------------------------------------------------------- more starts


@pytest.mark.parametrize(("size", "starts"), [(2, 1), (8, 4)])
def test_what_runs_long_is_searched_from_more_starts(
    size: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lattice of 5 x 5: thousands of multiplications, or more than ten million."""
    seeds: list[int] = []
    search = _Reconfigured.__call__

    def noted(method: _Reconfigured, *given: Any) -> Any:
        if isinstance(method.first, _RandomGreedy):
            seeds.append(method.first.seed)
        return search(method, *given)

    monkeypatch.setattr(_Reconfigured, "__call__", noted)
    network = grid(5, 5, size)
    orders = list(candidate_orders(network, 4, seed=3))
    assert seeds == list(range(3, 3 + starts))
    assert all(contracts_everything(pairs, 25) for pairs in orders)
    assert (tree_multiplications(network, orders[0]) >= 1e7) == (starts > 1)


def test_what_runs_long_is_also_ordered_to_write_less() -> None:
    """A lattice of 5 x 5 with bonds of 8: the last orders are the best ones, improved again."""
    network = grid(5, 5, 8)
    *others, last = candidate_orders(network, 4, seed=3)
    assert written(network, last) <= min(written(network, pairs) for pairs in others)


def written(network: Network, pairs: Order) -> float:
    """Multiplications, and 32 for each element that a step makes."""
    tree = cotengra_tree(network, pairs)
    return float(tree.total_flops() + 32 * tree.total_write())


def test_multiplications_by_hand() -> None:
    """(i j)(j k)(k l) from the left: 2·3·4 and 2·4·5."""
    network = Network.of(((0, 1), (1, 2), (2, 3)), (0, 3), {0: 2, 1: 3, 2: 4, 3: 5})
    assert tree_multiplications(network, ((0, 1), (2, 3))) == 2 * 3 * 4 + 2 * 4 * 5
