"""Expressions as JSON: round trips of every node; altered texts are refused or harmless."""

import json
import random

import numpy as np
import pytest

import tncompiler as tnc
from tests.test_semantics_helpers import crand, evaluate, rand, same
from tncompiler.ir import expressions as ex
from tncompiler.ir.errors import FileFormatError
from tncompiler.ir.expressions import Expr, walk

I, J, K = tnc.indices("i j k", i=2, j=3, k=4)
N = tnc.Index("n")
A, B, X = tnc.param("A", I, J), tnc.param("net.B", J, K, init="zeros"), tnc.input("x", N, I)
M = tnc.Index("m", 6)

NODES: dict[str, Expr] = {
    "Leaf": X,
    "Leaf dtype": tnc.input("z", I, dtype="complex64"),
    "Leaf init array": tnc.param("w", I, init=np.array([1.5, -0.0])),
    "Leaf init name": B,
    "Leaf constant": tnc.constant("c", I, J, value=rand(2, 3)),
    "Leaf complex constant": tnc.constant("c", I, value=crand(2)),
    "Leaf int constant": tnc.constant("c", I, value=np.array([2**62, -1])),
    "Leaf bool constant": tnc.constant("c", I, value=np.array([True, False])),
    "Leaf transposed constant": tnc.constant("c", I, J, value=rand(3, 2).T),
    "Leaf empty constant": tnc.constant("c", tnc.Index("e", 0), value=np.zeros(0)),
    "Leaf scalar": tnc.input("s"),
    "Leaf transposed": A.transpose(J, I),
    "Literal int": A * 3,
    "Literal negative": A * -3,
    "Literal float": A * 0.1,
    "Literal nan": A * float("nan"),
    "Literal inf": A * float("-inf"),
    "Literal complex": A * (1 - 2.5j),
    "Literal size": X / N.size,
    "Literal zero": A * -0.0,
    "Delta": tnc.delta(I, tnc.Index("i2", 2), tnc.Index("i3", 2)),
    "Ones": tnc.ones(I, N),
    "Contract": tnc.contract(X, A, B, out=(K, N)),
    "Contract trace": tnc.contract(
        tnc.input("S", J, tnc.Index("l", 3)), tnc.delta(J, tnc.Index("l", 3))
    ),
    "Map": tnc.where(A > 0, tnc.gelu(A), A / B.sum(K)),
    "Map order": tnc.maximum(B.sum(K), A),
    "Reduce": X.max(N).min(I),
    "Reindex": tnc.exp(A)(tnc.Index("p", 2), J).transpose(J, tnc.Index("p", 2)),
    "Split": tnc.exp(A).split(J, (tnc.Index("p", 3), tnc.Index("q", 1))),
    "Split symbolic": X.split(N, (tnc.Index("p", 3), tnc.Index("q"))),
    "Merge": A.merge((J, I), M),
    "Merge symbolic": X.merge((N, I), tnc.Index("m")),
    "Slice": A.slice(J, 1, 3),
    "Slice symbolic": X.slice(N, 1, -1),
    "Slice empty": A.slice(J, 1, 1),
    "Select": A.select(J, -1),
    "Pad": A.pad(J, 1, 0),
    "Window": A.window(J, out=tnc.Index("o", 3), kernel=tnc.Index("k", 2), padding=(1, 0)),
    "Window symbolic": X.window(
        N, out=tnc.Index("o"), kernel=tnc.Index("k", 3), stride=2, dilation=2, padding=2
    ),
    "Concat": tnc.concat([A, A * 2], tnc.Index("j", 6)),
    "Concat symbolic": tnc.concat([X, X], tnc.Index("n", 2 * N.size)),
    "Arange": tnc.arange(J) * A,
    "Leading": tnc.compress(A @ B, J, max_bond=2),
    "LeadingAdjoint": tnc.grad(
        tnc.compress(A @ B, J, max_bond=2), A, cotangent=tnc.input("ct", I, K)
    ),
    "Scan": tnc.scan(lambda h, x: (tnc.tanh(h + x),) * 2, A.select(I, 0), A, over=I)[1],
    "Gather": A.gather(J, tnc.input("ids", N, dtype="int64")),
    "Gather shared": A.gather(J, tnc.input("ids", I, N, dtype="int64") % 3),
    "Scatter": A.scatter_add(tnc.input("ids", J, dtype="int64"), N),
    "Scatter max": A.scatter_max(tnc.input("ids", J, dtype="int64"), N),
    "Scatter shared": A.scatter_add(tnc.input("ids", I, J, dtype="int64"), M, over=J),
    "Stack": tnc.stack([A, A * 2], tnc.Index("t", 2)),
    "Cast": (A > 0).astype("float64"),
    "gradient": tnc.grad(tnc.layer_norm(X @ A, over=J).sum(), A),
    "softmax": tnc.softmax(X @ A, over=J),
    "odd names": tnc.input("x", tnc.Index("a'b;import os", 2), tnc.Index("α β", 3)).sum("α β"),
    "bound names": (A @ B)(I, tnc.Index("j", 4)) @ tnc.input("y", tnc.Index("j", 4)),
    "symbolic sizes": tnc.input("u", tnc.Index("a", 2 * N.size + 1), tnc.Index("b", N.size**2)),
}


@pytest.mark.parametrize("name", NODES)
def test_round_trips(name: str) -> None:
    """`expr.to_json()` / `tnc.from_json()`"""
    expr = NODES[name]
    again = tnc.from_json(expr.to_json())
    assert again == expr
    assert again.indices == expr.indices
    assert again.to_json() == expr.to_json()
    assert [leaf.name for leaf in again.leaves] == [leaf.name for leaf in expr.leaves]


def test_every_kind_of_node_is_among_them() -> None:
    kinds = {type(node).__name__ for expr in NODES.values() for node in walk(expr)}
    assert kinds == {kind.__name__ for kind in ex.Expr.__subclasses__()}


@pytest.mark.parametrize(
    "name",
    ["Contract", "Map", "Map order", "Split symbolic", "softmax", "gradient", "Slice symbolic"],
)
def test_values_survive(name: str) -> None:
    expr = NODES[name]
    shapes = {"x": (6, 2), "A": (2, 3), "net.B": (3, 4)}
    arrays = {leaf.name: rand(*shapes[leaf.name]) for leaf in expr.leaves}
    same(evaluate(tnc.from_json(expr.to_json()), arrays), evaluate(expr, arrays))


def test_constants_survive_bit_by_bit() -> None:
    value = np.array([np.nan, -0.0, np.inf, 5e-324, 0.1])
    expr = tnc.constant("c", tnc.Index("e", 5), value=value)
    assert tnc.from_json(expr.to_json()).value.tobytes() == value.tobytes()


def test_shared_nodes_are_written_once() -> None:
    expr = A
    for _ in range(40):
        expr = tnc.tanh(expr) + expr
    assert len(expr.to_json()) < 50_000
    assert tnc.from_json(expr.to_json()) == expr


def test_deep_expressions_survive() -> None:
    expr = A
    for _ in range(3000):
        expr = tnc.exp(expr)
    assert tnc.from_json(expr.to_json()) == expr


def test_a_callable_init_is_refused() -> None:
    """Raises FileFormatError for a callable `init`."""
    with pytest.raises(FileFormatError, match="'w'"):
        tnc.param("w", I, init=lambda shape: np.ones(shape)).to_json()


def test_the_text_is_plain_json() -> None:
    data = json.loads(NODES["gradient"].to_json())
    assert data["schema"] == 1
    assert data["format"] == "tncompiler expression"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "3",
        "[]",
        "{}",
        '"x"',
        "nope",
        "[" * 100_000,
        '{"format": "tncompiler expression"}',
        None,
        3,
        [],
        {},
        b"\xff",
        object(),
    ],
    ids=lambda t: str(t)[:20],
)
def test_what_is_no_expression_is_refused(text) -> None:
    with pytest.raises(FileFormatError):
        tnc.from_json(text)


@pytest.mark.parametrize("schema", [0, 2, "1", None, 1.5, True, [1]])
def test_other_schemas_are_refused(schema) -> None:
    data = {**json.loads(A.to_json()), "schema": schema}
    with pytest.raises(FileFormatError, match="schema"):
        tnc.from_json(json.dumps(data))


def node_data(expr: Expr, kind: str):
    data = json.loads(expr.to_json())
    return data, next(item for item in data["nodes"] if item["kind"] == kind)


@pytest.mark.parametrize(
    ("name", "kind", "change"),
    [
        ("Contract", "Contract", {"operands": [0, 1, 99]}),
        ("Contract", "Contract", {"operands": [0, 1, -1]}),
        ("Contract", "Contract", {"operands": [3]}),
        ("Contract", "Contract", {"operands": [True, 1]}),
        ("Contract", "Contract", {"operands": []}),
        ("Contract", "Contract", {"indices": [["zz", "3"]]}),
        ("Contract", "Contract", {"indices": [["n", "n"], ["n", "n"]]}),
        ("Contract", "Contract", {"kind": "Eval"}),
        ("Contract", "Contract", {"kind": "__class__"}),
        ("Contract", "Contract", {"kind": ["Contract"]}),
        ("Map", "Map", {"function": "system"}),
        ("Map", "Map", {"function": ["relu"]}),
        ("Map", "Map", {"operands": [0]}),
        ("Map order", "Map", {"indices": [["j", "3"]]}),
        ("Map order", "Map", {"indices": [["j", "3"], ["i", "2"], ["i", "2"]]}),
        ("Leaf", "Leaf", {"name": "a b"}),
        ("Leaf", "Leaf", {"name": "__class__"}),
        ("Leaf", "Leaf", {"leaf": "secret"}),
        ("Leaf", "Leaf", {"dtype": "object"}),
        ("Leaf", "Leaf", {"dtype": "O"}),
        ("Leaf", "Leaf", {"init": "xavier"}),
        ("Leaf", "Leaf", {"init": {"dtype": "object", "shape": [1], "base64": "AAAAAAAAAAA="}}),
        ("Leaf", "Leaf", {"indices": [["i", "__import__('os')"]]}),
        ("Leaf", "Leaf", {"indices": [["i", "9**9**9"]]}),
        ("Leaf", "Leaf", {"indices": [["i", "-1"]]}),
        ("Leaf", "Leaf", {"indices": [["i"]]}),
        ("Leaf constant", "Leaf", {"value": None}),
        (
            "Leaf constant",
            "Leaf",
            {"value": {"dtype": "float64", "shape": [2, 3], "base64": "AA=="}},
        ),
        ("Leaf constant", "Leaf", {"value": {"dtype": "float64", "shape": [-1], "base64": ""}}),
        ("Leaf constant", "Leaf", {"leaf": "param"}),
        ("Split", "Split", {"axis": 7}),
        ("Split", "Split", {"parts": [["p", "2"], ["q", "2"]]}),
        ("Merge", "Merge", {"count": 0}),
        ("Merge", "Merge", {"count": 9}),
        ("Merge", "Merge", {"into": ["m", "7"]}),
        ("Slice", "Slice", {"bounds": ["1", "30"]}),
        ("Slice", "Slice", {"bounds": ["2", "1"]}),
        ("Slice", "Slice", {"bounds": ["1"]}),
        ("Reindex", "Reindex", {"axes": [0, 0]}),
        ("Reduce", "Reduce", {"function": "median"}),
        ("Reduce", "Reduce", {"over": ["zz"]}),
        ("Reduce", "Reduce", {"over": "n"}),
        ("Cast", "Cast", {"dtype": "default"}),
        ("Concat", "Concat", {"axis": 5}),
        ("Gather", "Gather", {"axis": -1}),
        ("Gather", "Gather", {"axis": True}),
        ("Scatter", "Scatter", {"summed": [3]}),
        ("Scatter", "Scatter", {"axis": 7}),
        ("Scatter", "Scatter", {"function": "median"}),
        ("Literal float", "Literal", {"value": ["float", "__import__('os')"]}),
        ("Literal float", "Literal", {"value": ["code", "1"]}),
        ("Literal int", "Literal", {"indices": [["i", "2"]]}),
        ("Delta", "Delta", {"indices": [["i", "2"], ["j", "3"]]}),
        ("Delta", "Delta", {"indices": []}),
    ],
    ids=str,
)
def test_altered_nodes_are_refused(name: str, kind: str, change) -> None:
    """Nothing a file holds is executed: every node is rebuilt and checked."""
    data, node = node_data(NODES[name], kind)
    node.update(change)
    try:
        again = tnc.from_json(json.dumps(data))
    except FileFormatError:
        return
    valid_elsewhere = [{"over": "n"}, {"indices": [["zz", "3"]]}]
    assert change in valid_elsewhere, f"{change} was accepted as {again!r}"


def test_outputs_are_checked() -> None:
    data = json.loads(A.to_json())
    for outputs in ([], [0, 0], [5], [-1], ["0"], None, 0, {}, [True], [None]):
        with pytest.raises(FileFormatError):
            tnc.from_json(json.dumps({**data, "outputs": outputs}))


REPLACEMENTS = (
    None,
    0,
    -1,
    7,
    1.5,
    "x",
    "",
    [],
    {},
    [0],
    ["i", "2"],
    {"a": 1},
    True,
    10**30,
    "i" * 600,
)


def places(data, path=()):
    """Every path into nested JSON data."""
    yield path
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(data, path, value):
    if not path:
        return value
    head, *rest = path
    copied = dict(data) if isinstance(data, dict) else list(data)
    copied[head] = replaced(copied[head], rest, value)
    return copied


def without(data, path):
    head, *rest = path
    copied = dict(data) if isinstance(data, dict) else list(data)
    if rest:
        copied[head] = without(copied[head], rest)
    else:
        del copied[head]
    return copied


def mutations(expr: Expr, rng: random.Random, count: int):
    text = expr.to_json()
    data = json.loads(text)
    paths = [path for path in places(data) if path]
    for _ in range(count):
        action = rng.choice(["cut", "swap", "swap", "drop", "character", "copy"])
        path = rng.choice(paths)
        if action == "cut":
            yield text[: rng.randrange(len(text))]
        elif action == "character":
            k = rng.randrange(len(text))
            yield text[:k] + rng.choice('0123456789"[]{}ij,-') + text[k + 1 :]
        elif action == "drop":
            yield json.dumps(without(data, path))
        elif action == "swap":
            yield json.dumps(replaced(data, path, rng.choice(REPLACEMENTS)))
        else:
            other = rng.choice(paths)
            value = data
            for key in other:
                value = value[key]
            yield json.dumps(replaced(data, path, value))


@pytest.mark.parametrize("name", NODES)
def test_mutations_are_refused_or_harmless(name: str) -> None:
    """always FileFormatError or an expression that round-trips, never another exception"""
    rng = random.Random(name)
    for text in mutations(NODES[name], rng, 40):
        try:
            expr = tnc.from_json(text)
        except FileFormatError:
            continue
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\non {text}")
        assert isinstance(expr, Expr)
        assert tnc.from_json(expr.to_json()) == expr


def test_the_mutations_do_alter() -> None:
    """The fuzzer can fail: what it makes differs from the text, and much of it is refused."""
    rng = random.Random(0)
    texts = list(mutations(NODES["Contract"], rng, 100))
    refused = 0
    for text in texts:
        try:
            tnc.from_json(text)
        except FileFormatError:
            refused += 1
    assert refused > 60
    assert len(set(texts)) > 90


def test_messages_name_the_node() -> None:
    data, node = node_data(NODES["Contract"], "Contract")
    node["operands"] = [99]
    with pytest.raises(FileFormatError, match=r"node 3 .*fix: "):
        try:
            tnc.from_json(json.dumps(data))
        except FileFormatError as error:
            raise FileFormatError(str(error).replace("\n", " ")) from None
