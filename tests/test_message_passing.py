"""Message passing by edges: against dense adjacencies, forward and gradients, and in memory."""

import subprocess
import sys
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests import oracle
from tncompiler.ir.errors import PositionError

NODES, EDGES, FEATURES, HEADS = 7, 20, 3, 2

rng = np.random.default_rng(3)


def graph() -> tuple[Any, ...]:
    n, e, f, k = tnc.indices("n e f k", n=NODES, e=EDGES, f=FEATURES, k=HEADS)
    ids = [tnc.input(name, e, dtype="int64") for name in ("sources", "targets")]
    return n, e, f, k, *ids


def edges() -> tuple[np.ndarray, np.ndarray]:
    """Every node is a target, some pairs of nodes occur twice."""
    targets = np.concatenate([np.arange(NODES), rng.integers(0, NODES, EDGES - NODES)])
    return rng.integers(0, NODES, EDGES), targets


def dense(sources: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    matrix = np.zeros((NODES, NODES))
    np.add.at(matrix, (targets, sources), weights)
    return matrix


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("weighted", [False, True])
def test_propagation_is_the_product_with_the_adjacency(backend: str, weighted: bool) -> None:
    n, e, f, _, sources, targets = graph()
    x, w = tnc.input("x", n, f), tnc.input("w", e)
    made = tnc.propagate(x, n, sources, targets, weights=w if weighted else None)
    compiled = tnc.compile(made, backend=backend, dtype=torch.float64)
    s, t = edges()
    weights = torch.tensor(rng.standard_normal(EDGES) if weighted else np.ones(EDGES))
    values = torch.tensor(rng.standard_normal((NODES, FEATURES)), requires_grad=True)
    given = {"x": values, "sources": torch.tensor(s), "targets": torch.tensor(t)}
    given |= {"w": weights.requires_grad_()} if weighted else {}
    found = compiled(**given)
    adjacency = torch.tensor(dense(s, t, weights.detach().numpy()))
    torch.testing.assert_close(found, adjacency @ values)
    cotangent = torch.tensor(rng.standard_normal((NODES, FEATURES)))
    found.backward(cotangent)
    torch.testing.assert_close(values.grad, adjacency.T @ cotangent)
    if weighted:
        torch.testing.assert_close(weights.grad, (cotangent[t] * values.detach()[s]).sum(1))


def test_weights_of_a_graph_convolution_are_those_of_the_normalised_adjacency() -> None:
    network = nx.karate_club_graph()
    network.add_edges_from((node, node) for node in network)
    sources, targets = directed_edges(network)
    n, e = tnc.indices("n e", n=len(network), e=len(sources))
    ids = [tnc.input(name, e, dtype="int64") for name in ("sources", "targets")]
    f = tnc.compile(tnc.normalized_weights(*ids, n), framework="numpy", dtype="float64")
    adjacency = nx.to_numpy_array(network, weight=None)
    scale = 1 / np.sqrt(adjacency.sum(0))
    expected = (scale[:, None] * adjacency * scale)[targets, sources]
    np.testing.assert_allclose(f(sources, targets), expected, rtol=1e-12)


def directed_edges(network: nx.Graph) -> tuple[np.ndarray, np.ndarray]:
    """Both directions of every edge, a loop once."""
    pairs = {(a, b) for a, b in network.edges} | {(b, a) for a, b in network.edges}
    sources, targets = np.array(sorted(pairs)).T
    return sources, targets


@pytest.mark.parametrize("runner", oracle.RUNNERS)
@pytest.mark.parametrize("spread", [1.0, 30.0, 1e4])
def test_softmax_over_the_edges_of_a_target(runner: str, spread: float) -> None:
    """in float32, where exp(89) overflows and exp(-104) is 0, whatever the other targets have"""
    n, e, _, k, _, targets = graph()
    made = tnc.edge_softmax(tnc.input("scores", e, k), targets, n)
    _, t = edges()
    level = 1000.0 * t[:, None]  # far apart from target to target
    numbers = (spread * rng.standard_normal((EDGES, HEADS)) + level).astype(np.float32)
    own = torch.tensor(numbers, requires_grad=True)
    expected = torch.zeros(EDGES, HEADS)
    for node in range(NODES):
        expected[t == node] = torch.softmax(own[t == node], 0)
    cotangent = rng.standard_normal((EDGES, HEADS)).astype(np.float32)
    expected.backward(torch.tensor(cotangent))
    given = {"scores": numbers, "targets": t}
    compiled = oracle.Runner((made,), runner, "float32", {})
    (found,), gradients = compiled.gradients(given, [cotangent], ("scores",))
    assert own.grad is not None
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradients["scores"], own.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_one_score_far_above_the_others_of_its_target() -> None:
    """a hub whose mean lies far below its largest score, and a target of few edges beside it"""
    edge, node = tnc.Index("edge"), tnc.Index("node", 2)
    targets = tnc.input("targets", edge, dtype="int64")
    made = tnc.edge_softmax(tnc.input("scores", edge), targets, node)
    scores = np.array([*[-300.0] * 500, 300.0, -200.0, -200.0], np.float32)
    at = np.array([*[0] * 501, 1, 1])
    found = tnc.compile(made, framework="numpy")(scores, at)
    assert np.array_equal(found, [*[0.0] * 500, 1.0, 0.5, 0.5])


def test_attention_over_edges_is_dense_attention_with_a_mask() -> None:
    n, _, f, k, sources, targets = graph()
    x, w = tnc.input("x", n, f), tnc.param("W", f, k)
    a, b = tnc.param("a", k), tnc.param("b", k)
    h = tnc.contract(x, w, out=(n, k))
    score = tnc.gather(h * a, n, sources) + tnc.gather(h * b, n, targets)
    weights = tnc.edge_softmax(tnc.relu(score), targets, n)
    made = tnc.propagate(h, n, sources, targets, weights=weights)
    compiled = tnc.compile(made, framework="numpy", dtype="float64", seed=0)
    pairs = rng.permutation(NODES * NODES)[:EDGES]
    s, t = pairs % NODES, pairs // NODES
    value = rng.standard_normal((NODES, FEATURES))
    found = compiled(x=value, sources=s, targets=t)
    p = compiled.parameters
    dense_h = value @ p["W"]
    scores = np.maximum((dense_h * p["a"])[None] + (dense_h * p["b"])[:, None], 0)
    mask = np.zeros((NODES, NODES, 1), bool)
    mask[t, s] = True
    raised = np.where(mask, np.exp(scores), 0.0)
    shares = raised / np.maximum(raised.sum(1, keepdims=True), 1e-300)
    np.testing.assert_allclose(found, np.einsum("tsk,sk->tk", shares, dense_h), atol=1e-12)


def test_a_node_that_is_none_is_refused() -> None:
    n, _, f, _, sources, targets = graph()
    x = tnc.input("x", n, f)
    compiled = tnc.compile(tnc.propagate(x, n, sources, targets), framework="numpy")
    s, t = edges()
    with pytest.raises(PositionError, match=f"{NODES}"):
        compiled(x=np.zeros((NODES, FEATURES), np.float32), sources=s, targets=t + NODES)


LARGE = """
import re
from pathlib import Path
import numpy as np
import tncompiler as tnc

nodes, edges, width = 10**5, 10**6, 16
n, e, f, g = tnc.indices("n e f g", n=nodes, e=edges, f=width, g=width)
s, t = (tnc.input(name, e, dtype="int64") for name in "st")
x, w = tnc.input("x", n, f), tnc.param("W", f, g)
h = tnc.contract(x, w, out=(n, g))
weights = tnc.edge_softmax(
    tnc.gather(h.sum(g), n, s) * 0.1 + tnc.gather(h.max(g), n, t) * 0.1, t, n
)
out = tnc.relu(tnc.propagate(h, n, s, t, weights=weights))
compiled = tnc.compile(out, framework="numpy", seed=0)
rng = np.random.default_rng(0)
given = {"x": rng.standard_normal((nodes, width), dtype=np.float32)}
given |= {name: rng.integers(0, nodes, edges) for name in "st"}
value, pull = compiled.vjp(**given)
gradients = pull(np.ones_like(value))
assert np.isfinite(gradients["W"]).all()
# not what `resource` says: that begins with the peak of the process that started this one
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def test_a_million_edges_take_less_than_a_gibibyte() -> None:
    """Attention over edges with its gradients, imports and all."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 2**30
