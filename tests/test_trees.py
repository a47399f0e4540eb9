"""Trees of one shape: each path contracts everything, in the cheapest order there is."""

import itertools
from math import prod
from typing import Any

import numpy as np
import pytest

from tncompiler.planning.trees import reconstruct_first, stream_first

Terms = list[frozenset[str]]
SEEDS = range(20)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def random_network(seed: int, cores: int) -> tuple[Terms, frozenset[str], dict[str, int]]:
    """Data and cores on some indices, hyperedges and outer products among them."""
    rng = np.random.default_rng(seed)
    names = LETTERS[: cores + 4]
    terms = [
        frozenset(rng.choice(list(names), size=int(rng.integers(1, 4)), replace=False))
        for _ in range(cores + 1)
    ]
    used = sorted(frozenset().union(*terms))
    output = frozenset(k for k in used if rng.random() < 0.4)
    return terms, output, {k: int(rng.integers(1, 6)) for k in used}


def contracted(path: Any, terms: Terms, output: frozenset[str], sizes: dict[str, int]) -> Any:
    """The value along a linear path, its flops, and which terms went into each step."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal([sizes[k] for k in sorted(term)]) for term in terms]
    left = [
        (sorted(t), a, frozenset({n})) for n, (t, a) in enumerate(zip(terms, arrays, strict=True))
    ]
    flops, made = 0, []
    for step in path:
        taken = [left[position] for position in step]
        left = [item for position, item in enumerate(left) if position not in step]
        joint = frozenset().union(*(labels for labels, _, _ in taken))
        needed = output.union(*(labels for labels, _, _ in left))
        kept = sorted(joint & needed)
        text = ",".join("".join(labels) for labels, _, _ in taken) + "->" + "".join(kept)
        value = np.einsum(text, *(array for _, array, _ in taken))
        members = frozenset().union(*(which for _, _, which in taken))
        left.append((kept, value, members))
        flops += prod(sizes[k] for k in joint)
        made.append(members)
    assert len(left) == 1, "the path leaves tensors over"
    labels, value, _ = left[0]
    assert labels == sorted(output)
    text = ",".join("".join(sorted(term)) for term in terms) + "->" + "".join(sorted(output))
    np.testing.assert_allclose(value, np.einsum(text, *arrays), atol=1e-9)
    return flops, made


def in_order(order: tuple[int, ...]) -> list[tuple[int, int]]:
    """The linear path on which the data absorbs cores in this order."""
    left, path = list(range(len(order) + 1)), []
    state = 0
    for number, core in enumerate(order):
        path.append((left.index(state), left.index(core)))
        left = [k for k in left if k not in (state, core)]
        state = len(order) + 1 + number
        left.append(state)
    return path


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", SEEDS)
def test_streaming_is_the_cheapest_order_of_cores(seed: int, cores: int) -> None:
    network = random_network(seed, cores)
    flops, made = contracted(stream_first(*network), *network)
    assert all(0 in members for members in made)
    orders = itertools.permutations(range(1, cores + 1))
    assert flops == min(contracted(in_order(order), *network)[0] for order in orders)


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("seed", SEEDS)
def test_reconstruction_leaves_the_data_for_last(seed: int, cores: int) -> None:
    network = random_network(seed, cores)
    _, made = contracted(reconstruct_first(*network), *network)
    assert all(0 not in members for members in made[:-1])
    assert made[-1] == frozenset(range(cores + 1))


@pytest.mark.parametrize("search", [stream_first, reconstruct_first])
@pytest.mark.parametrize("cores", [0, 13, 16])
def test_few_and_many_cores(search: Any, cores: int) -> None:
    """A train: greedy beyond a dozen cores."""
    chain = [frozenset({"A"}), *(frozenset({chr(65 + k), chr(66 + k)}) for k in range(cores))]
    sizes = dict.fromkeys(frozenset().union(*chain), 2)
    output = frozenset({chr(65 + cores)})
    _, made = contracted(search(chain, output, sizes), chain, output, sizes)
    assert len(made) == max(cores, 0)


@pytest.mark.parametrize("search", [stream_first, reconstruct_first])
def test_disconnected_cores_and_sizes_of_zero(search: Any) -> None:
    terms = [frozenset("ab"), frozenset("cd"), frozenset("ef"), frozenset("d")]
    output = frozenset("ae")
    for size in (2, 0):
        sizes = {**dict.fromkeys("abcdef", 2), "b": size}
        contracted(search(terms, output, sizes), terms, output, sizes)


def test_the_contraction_sees_a_path_that_leaves_tensors_over() -> None:
    terms, output, sizes = random_network(0, 3)
    with pytest.raises(AssertionError, match="over"):
        contracted([(0, 1)], terms, output, sizes)
