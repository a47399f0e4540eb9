"""Hostile input executes nothing and reaches no source: the section Trust of DESIGN, item by item.

Names, texts for sizes and JSON are made by the thousand, always the same ones. What reads files
runs in a process of its own, under an audit hook that ends it where anything is executed or opened.
"""

from __future__ import annotations

import ast
import copy
import importlib
import io
import json
import keyword
import random
import re
import signal
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tncompiler as tnc
from tests.large import as_if_large
from tests.networks import random_network
from tncompiler.backends.numpy.emit import NumpyEmitter
from tncompiler.backends.torch.emit import TorchEmitter
from tncompiler.backends.windows import HELPERS as WINDOWS
from tncompiler.ir.errors import BadName, BadSize, FileFormatError, NameClash, TncError
from tncompiler.ir.expressions import Expr

ROOT = Path(__file__).resolve().parents[1]
I, J = tnc.indices("i j", i=2, j=3)

# ---------------------------------------------------------------------------- hostile names

FRAGMENTS = [
    "a\nimport os", "import os", "class", "lambda", "None", "True", "match", "print", "exec", "np",
    "torch", "forward", "training", "x", "x1", "G1", "fc1.G1", "_", "__", "__class__",
    "__import__", "__import__('os').system('id')", "os.system", "eval(1)", "a.b", "a..b", ".",
    "a;b", ";", "#", "# noqa", "'", '"', '"""', "'''", "\\", "\\n", "\n", "\r", "\r\n", "\t", "\f",
    "\v", "\0", "\x1b", "\x7f", "\x85", "\xa0", "\u2028", "\u2029", "\u200b", "\u200d", "\u200e",
    "\u202e", "\u2066", "\ufeff", "\ufffe", "\ud800", "\U000e0041",
    "ﬁ", "ａｂ", "ｉｍｐｏｒｔ", "𝐱", "ª",
    "µ", "\u212a", "а", "ο", "é", "e\u0301", "١", "²", "·", "℘", "α β", "日本", "{0}", "{x}",
    "{x.__class__}", "%s", "%(x)d", "${x}", "$(id)", "`id`", "f'{1}'", "1", "1x", "-1", "a-b",
    "a b", " ", "", "(", ")", "[0]", "=", ":=", "@", "\\N{BULLET}", "\\x41", "\\u0041", "&amp;",
    "<b>", "../..", "/etc/passwd", "C:\\", "pass\n    raise", "):\n    pass\n#",
    "'); import os; ('", "*args", "**kw", "...", "t0", "v0", "i0",
]  # fmt: skip


def hostile_names(count: int, seed: int) -> list[str]:
    """Names made of fragments, random characters of all of Unicode, keywords, and long ones."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.6:
            name = "".join(rng.choices(FRAGMENTS, k=rng.choice((1, 1, 2, 2, 3))))
        elif kind < 0.75:
            name = "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(1, 5)))
        elif kind < 0.8:
            name = chr(rng.randrange(0x110000)) + rng.choice(FRAGMENTS)
        elif kind < 0.85:
            name = rng.choice(keyword.kwlist + keyword.softkwlist) + rng.choice(("", "", "_", ".x"))
        elif kind < 0.999:
            name = "".join(rng.choices("abcxyzGWrt_019.", k=rng.randrange(1, 6)))
        else:
            name = rng.choice(("a", "é", "(", "a.", "\n")) * rng.randrange(200, 5000)
        made.append(name)
    return made


CHUNKS = 5
NAMES = 100_000


def chunk_of_names(chunk: int) -> list[str]:
    return hostile_names(NAMES // CHUNKS, chunk)


def attempted(make: Callable[[], Any]) -> Any:
    """What is made, or None where a BadName is raised."""
    try:
        return make()
    except BadName:
        return None


def is_vetted(name: str) -> bool:
    """Dotted plain ASCII identifiers; written here anew, not with the package's own check."""
    parts = name.split(".")
    return all(
        re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part, re.ASCII) for part in parts
    ) and not any(keyword.iskeyword(part) or part.startswith("__") for part in parts)


# ---------------------------------------------------------------------------- source under a lens

_KINDS = (
    ast.Module, ast.Import, ast.ImportFrom, ast.alias, ast.FunctionDef, ast.arguments, ast.arg,
    ast.Return, ast.Assign, ast.Delete, ast.Name, ast.Attribute, ast.Call, ast.keyword, ast.Tuple,
    ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Subscript, ast.Slice, ast.expr_context,
    ast.operator, ast.unaryop, ast.cmpop, ast.List, ast.Expr, ast.Starred,
)  # fmt: skip
_OWN = r"tncompiler\.backends\.(numpy\.(memory|products|runtime)|torch\.(memory|runtime))"
_MODULES = re.compile(rf"numpy|torch|scipy\.special|{_OWN}")
_CALLS = {"complex", "float"}  # and what is imported
_COMMENT = re.compile(r"#[A-Za-z0-9_ (),·*@=:.]*")


def check_source(text: str) -> None:
    """Fail unless the source holds only what an emitter writes: no user text, not in a comment."""
    assert text.isprintable() or set(text) - {"\n"} <= set(filter(str.isprintable, text))
    tree = ast.parse(text)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    called = {*_CALLS, *(alias.name for node in imports for alias in node.names)}
    called |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        assert isinstance(node, _KINDS), ast.dump(node)[:200]
        if isinstance(node, ast.Expr):  # a list of arrays is emptied
            assert re.fullmatch(r"[a-z_0-9]+\.clear\(\)", ast.unparse(node)), ast.unparse(node)
        if isinstance(node, ast.Import):
            assert all(_MODULES.fullmatch(a.name) for a in node.names)
        if isinstance(node, ast.ImportFrom):
            assert _MODULES.fullmatch(str(node.module))
        if isinstance(node, ast.Name | ast.arg):
            name = node.id if isinstance(node, ast.Name) else node.arg
            assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name), name
            assert not re.fullmatch(r"__.*__", name), name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id in called, node.func.id
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), node.attr
        if isinstance(node, ast.Constant):
            assert node.value in ("inf", "-inf", "nan") or not isinstance(node.value, str | bytes)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            assert _COMMENT.fullmatch(token.string), token.string


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "from os import path",
        "eval(1)",
        "x = y.__class__",
        "x = 'text'",
        "x = 1  # it's",
        "x = lambda: 0",
        "x = 1  # é",
        "é = 1",
        "__import__ = 1",
        "for x in y: z",
        "x = f'{y}'",
    ],
)
def test_check_source_fails(text: str) -> None:
    with pytest.raises(AssertionError):
        check_source(text)


def sources(outputs: Any, parts: tuple[str, ...] = ("forward",)) -> Iterator[str]:
    function = tnc.compile(outputs, framework="numpy")
    for backend in ("numpy", "torch"):
        for part in parts:
            yield function.source(backend=backend, part=part)


def test_there_are_enough_names() -> None:
    """100,000 generated names"""
    names = hostile_names(2000, 0)
    assert names == hostile_names(2000, 0)
    assert len(set(hostile_names(NAMES // CHUNKS, 0))) > NAMES // CHUNKS // 2
    assert 0.1 < sum(map(is_vetted, names)) / len(names) < 0.6


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_names_of_leaves_sizes_and_scopes(chunk: int) -> None:
    """A user's name reaches generated source only if it is a plain ASCII identifier"""
    leaves, taken = [], set()
    for name in chunk_of_names(chunk):
        leaf = attempted(lambda name=name: tnc.input(name, I))
        assert (leaf is not None) == (is_vetted(name) and len(name) <= 1000), ascii(name)
        assert (attempted(lambda name=name: tnc.size(name)) is None) == (leaf is None)
        assert (attempted(lambda name=name: tnc.scope(name)) is None) == (leaf is None)
        if leaf is not None and name not in taken:
            taken.add(name)
            leaves.append(leaf)
    assert len(leaves) > 500
    rng = random.Random(chunk)
    outputs = [tnc.contract(*rng.sample(leaves, 12), out=(I,)) for _ in range(40)]
    for text in sources(tuple(outputs)):
        check_source(text)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_names_of_indices_symbols_and_outputs(chunk: int) -> None:
    """otherwise a numbered one stands in. Nothing unvetted goes into a comment."""
    found: dict[str, tnc.Index] = {}
    for name in chunk_of_names(chunk):
        index = attempted(lambda name=name: tnc.Index(name))
        if index is None:
            assert not name.strip() or not name.isprintable() or len(name) > 1000, ascii(name)
        else:
            found[name] = index
    indices, outputs = list(found.values()), {}
    for start in range(0, len(indices) - 60, 60):
        a = tnc.input(f"a{start}", *indices[start : start + 40])
        b = tnc.input(f"b{start}", *indices[start + 20 : start + 60])
        outputs[indices[start].name] = tnc.contract(a, b, out=indices[start : start + 45])
    several = dict(list(outputs.items())[:10])
    mean = indices[1]
    several["mean\nimport os"] = tnc.tanh(outputs[next(iter(outputs))].mean(mean)) / mean.size
    for text in (*sources(outputs), *sources(several, ("forward", "backward"))):
        check_source(text)


def test_names_of_outputs_come_back_as_they_were() -> None:
    names = [name for name in dict.fromkeys(FRAGMENTS) if name]
    f = tnc.compile({name: tnc.input("x", I) * 2.5 for name in names}, framework="numpy")
    assert list(f(np.ones(2, np.float32))) == names
    check_source(f.source())


HELPERS = sorted({*NumpyEmitter.helpers, *TorchEmitter.helpers})


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_emitters_reserve_all_that_their_runtime_offers(backend: str) -> None:
    runtime = importlib.import_module(f"tncompiler.backends.{backend}.runtime")
    offered = {
        name
        for name, value in vars(runtime).items()
        if callable(value) and value.__module__ == runtime.__name__ and not name.startswith("_")
    }
    emitter = {"numpy": NumpyEmitter, "torch": TorchEmitter}[backend]
    assert offered <= set(emitter.helpers)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_all_that_generated_code_imports_is_reserved(backend: str) -> None:
    """Helpers live in more than one module: what random networks import must be reserved."""
    emitter = {"numpy": NumpyEmitter, "torch": TorchEmitter}[backend]
    seen: set[str] = set()
    with as_if_large():
        for seed in range(150):
            case = random_network(seed, dtype="float64")
            f = tnc.compile(case.outputs, framework="numpy", dtype="float64", sizes=case.given)
            sizes = {k: case.sizes[k] for k in f.compilation.free_symbols}
            text = f.source(sizes=sizes, backend=backend)
            for line in text.splitlines():
                if line.startswith("from tncompiler."):
                    seen.update(line.partition(" import ")[2].split(", "))
    assert len(seen) > 3 and seen <= {*emitter.helpers, *WINDOWS, "RunningSum"}


@pytest.mark.parametrize(
    "name",
    [
        *("np", "torch", "erf", "expit", "gate", "float", "complex", "forward", "t0", "v0", "inf"),
        *HELPERS,
    ],
)
def test_a_leaf_may_be_called_as_the_source_calls_things(name: str) -> None:
    k, l = tnc.Index("k", 3), tnc.Index("l", 3)
    square = tnc.contract(tnc.input(name, k, l), tnc.delta(k, l), out=(k, l))
    g = tnc.gelu(tnc.relu(square)) + tnc.sigmoid(square)
    f = tnc.compile(g, framework="numpy")
    for text in sources(g, ("forward", "backward")):
        check_source(text)
    _, pull = f.vjp(np.ones((3, 3), np.float32))
    assert pull(np.ones((3, 3), np.float32))[name].shape == (3, 3)


def test_names_of_torch_modules_are_refused() -> None:
    """Leaf names that collide with what torch modules own"""
    torch = pytest.importorskip("torch")
    owned = [n for n in dir(torch.nn.Module) if is_vetted(n)] + ["training", "_parameters"]
    assert {"forward", "register_buffer", "train", "eval"} <= set(owned)
    for name in owned:
        with pytest.raises(NameClash):
            tnc.compile(tnc.param(name, I))
        with pytest.raises(NameClash):
            tnc.compile(tnc.param(f"layer.{name}", I))
    x = [tnc.input(name, I) for name in owned]
    f = tnc.compile(sum(x[1:], start=x[0]))  # inputs are no attributes: any name will do
    assert f(*(torch.ones(2) for _ in owned)).tolist() == [len(owned)] * 2


# ---------------------------------------------------------------------------- hostile sizes

SIZES = [
    "__import__('os').system('touch /tmp/tnc-hostile')", "exec('1')", "eval('1')",
    "open('/etc/passwd')", "9**9**9**9", "9**64**64", "(((9**64)**64)**64)",
    "((((9**64)**64)**64)**64)**64", "1<<10**9", "10**(10**10)", "2**-1", "a**-1", "a**b", "a**65",
    "(a**64)**64", "((a+b)**64)**64", "lambda: 1", "(lambda: 1)()", "a.b", "a.__class__",
    "().__class__", "f(1)", "a[0]", "[1]", "{1}", "{1: 2}", "(1, 2)", "[x for x in y]",
    "a if b else c", "a and b", "not a", "a < b", "a:=3", "a;b", "a=1", "a\nb", "import os",
    "yield", "await a", "1.5", "1e3", "1e400", "1j", "True", "None", "...", "b'a'", "f'{a}'",
    "'a\\nb'", "''", "*a", "**a", "~a", "a/b", "a%b", "a@b", "a|b", "a&b", "a^b", "a>>1", "", "  ",
    "\0", "a\0", "#", "a\\", "(a", "a)", "class", "-1", "-a", "a-a-1", "5//0", "a//0", "a//(b-b)",
    "0**0**0 - 2", "nan", "oo*0.", "1" * 400, "1" * 5000, "1" * 11_000, "9" * 200 + "**64",
    "(" * 300 + "a" + ")" * 300, "(" * 9000, "-" * 9000 + "1", "a+" * 4900 + "-1.0",
    "a*" * 4900 + "1.0", "[" * 9000, "a" * 20_000, "\ud800", "a\u202eb",
]  # fmt: skip
FINE = {"nan"}  # a name as any other
BEYOND = [
    *(10**400, -1, -(10**400), 1.5, float("nan"), float("inf"), 1j, True, None, [], "x" * 99_999),
]

Parser = Callable[[Any], Any]
X = tnc.input("x", tnc.Index("n"), I)


def _in_json(value: Any) -> Any:
    data = json.loads(X.to_json())
    data["nodes"][0]["indices"][0][1] = value
    return tnc.from_json(json.dumps(data))


def _in_a_slice(value: Any) -> Any:
    data = json.loads(X.slice("n", 1, 5).to_json())
    data["nodes"][1]["bounds"][1] = value
    return tnc.from_json(json.dumps(data))


def _in_a_plan(value: Any) -> Any:
    data = json.loads(tnc.plan(X @ tnc.input("y", I)).to_json())
    data["steps"][0]["flops"][0][1][0] = value
    return tnc.ContractionPlan.from_json(signed(data))


PARSERS: dict[str, Parser] = {
    "Index": lambda v: tnc.Index("i", v),
    "indices": lambda v: tnc.indices("i j", size=v),
    "pad": lambda v: X.pad("n", v, 0),
    "compile": lambda v: tnc.compile(X, framework="numpy", sizes={"n": v}),
    "plan": lambda v: tnc.plan(X, sizes={"n": v}),
    "JSON index": _in_json,
    "JSON slice": _in_a_slice,
    "JSON plan": _in_a_plan,
}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where something hangs; no speed is measured."""

    def ring(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_within_fails() -> None:
    with pytest.raises(AssertionError, match="not done"), within(0.01):
        while True:
            pass


@pytest.mark.parametrize("parser", PARSERS)
def test_texts_for_sizes(parser: str) -> None:
    """Size expressions go through an own parser (names, integers, `+ - * // **`)"""
    wrong = []
    for value in [*SIZES, *BEYOND]:
        if parser in ("indices", "Index") and value is None:
            continue  # there it means a symbol
        if parser.startswith("JSON") and isinstance(value, complex):
            continue
        try:
            with within(20):
                PARSERS[parser](value)
            if value not in FINE and not (parser == "pad" and value in ("-a", "a-a-1")):
                wrong.append(f"{value!r:.60} was taken")
        except (BadSize, FileFormatError) as error:
            if not error.fix or len(str(error)) > 1000:
                wrong.append(f"{value!r:.60} → {error!s:.300}")
        except Exception as error:
            wrong.append(f"{value!r:.60} → {type(error).__name__}: {error!s:.100}")
    assert not wrong, "\n".join(wrong)
    assert not Path("/tmp/tnc-hostile").exists()


@pytest.mark.parametrize("name", ["α β", "class", "a*b", "a'b", '"', "2", "n + 1", "\\n", "#"])
def test_a_free_size_of_any_name_survives(name: str) -> None:
    """An index of any printable name gets a size of that name, in JSON and in plans as well."""
    t = tnc.input("x", tnc.Index(name), I) @ tnc.input("y", tnc.Index("k", tnc.Index(name).size), I)
    assert tnc.from_json(t.to_json()) == t
    plan = tnc.plan(t)
    assert tnc.ContractionPlan.from_json(plan.to_json()).to_json() == plan.to_json()
    product = tnc.Index(name, tnc.size("a") * tnc.size("b"))
    assert (
        tnc.input("x", product).digest
        != tnc.input("x", tnc.Index(name, tnc.Index("a*b").size)).digest
    )


# ---------------------------------------------------------------------------- hostile JSON

_RNG_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, -1, 10**9, 2**63, 10**30, 10**400, 0.5, 1e308, float("inf"),
    float("-inf"), float("nan"), "", "x", "n", "0", "-1", "9**9**9", "__import__('os')",
    "a\nimport os", "class", "object", "O", "i" * 700, "0x1p99999", "inf", "AAAA", "====",
    "float64", "bfloat16",
    [], [0], [[]], [[0]], ["i", "2"], [-1], [2**40, 2**40], {}, {"a": 1}, {"dtype": "O"},
    {"dtype": "float64", "shape": [2**40], "base64": ""},
    {"dtype": "float64", "shape": [-1], "base64": "AAAAAAAAAAA="},
    {"dtype": "object", "shape": [1], "base64": "AAAAAAAAAAA="},
    {"dtype": "float64", "shape": [float("inf")], "base64": "AAAAAAAAAAA="},
    "sum", "exp", "system", "Eval", "Contract", "Map", "__class__",
)  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into nested JSON data, but the whole."""
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def mutated(data: Any, paths: list[tuple[Any, ...]], rng: random.Random) -> Any:
    """A copy of JSON data with one to three things changed."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(paths)
        try:
            holder, key = at(data, path[:-1]), path[-1]
            if isinstance(holder, dict) != isinstance(key, str):
                continue
            action = rng.choice(("value", "value", "delete", "swap", "double", "number", "deep"))
            if action == "value":
                holder[key] = copy.deepcopy(rng.choice(_RNG_VALUES))
            elif action == "delete":
                del holder[key]
            elif action == "swap":  # operands before their nodes, and other cycles, come of this
                other = rng.choice(paths)
                if other[: len(path)] == path:
                    continue  # JSON cannot hold itself
                there = at(data, other[:-1])
                holder[key], there[other[-1]] = copy.deepcopy(there[other[-1]]), holder[key]
            elif action == "double" and isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            elif action == "number" and type(holder[key]) in (int, float):
                holder[key] += rng.choice((-2, -1, 1, 2, 10**6, 2**70))
            elif action == "deep":
                for _ in range(rng.choice((1, 2, 200))):
                    holder[key] = [holder[key]]
        except (LookupError, TypeError):
            continue  # an earlier change took the place away
    return data


def signed(data: Any) -> str:
    """Plan data with the checksum that belongs to it, as a forger would write it."""
    from tncompiler.planning.plan import checksum_of

    data.pop("checksum", None)
    return json.dumps({**data, "checksum": checksum_of(data)})


def corrupted(text: str, rng: random.Random) -> str:
    position = rng.randrange(len(text))
    if rng.random() < 0.3:
        return text[:position]
    return text[:position] + rng.choice('0123456789"[]{}:,-\\\0e.\u202e') + text[position + 1 :]


def expressions() -> list[Expr]:
    from tests.test_serialize import NODES

    return list(NODES.values())


def _harmless(expr: Expr) -> None:
    again = tnc.from_json(expr.to_json())
    assert again == expr, "it does not survive a round trip"


def fuzz_expressions(count: int) -> str:
    """Altered expressions: refused, or valid ones; now and then compiled."""
    rng, taken = random.Random(1), 0
    datas = [json.loads(expr.to_json()) for expr in expressions()]
    paths = [list(places(data)) for data in datas]
    for number in range(count):
        k = rng.randrange(len(datas))
        text = json.dumps(mutated(datas[k], paths[k], rng))
        text = corrupted(text, rng) if number % 5 == 0 else text
        try:
            expr = tnc.from_json(text)
            taken += 1
            _harmless(expr)
            if number % 20 == 0:
                check_source(tnc.compile(expr, framework="numpy").source())
        except TncError:
            continue
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} on {text[:3000]}") from error
    return f"{count} texts, {taken} taken"


def fuzz_plans(count: int) -> str:
    """Altered plans: refused, or what they compute is right; checksums are forged for most."""
    k = tnc.indices("k0 k1 k2 k3 k4", k0=2, k1=3, k2=2, k3=3, k4=2)
    leaves = [tnc.input(f"x{n}", k[n], k[n + 1]) for n in range(4)]
    expr = tnc.tanh(tnc.contract(*leaves, out=(k[0], k[4]))) @ tnc.input("y", k[4], k[0])
    arrays = [np.full([i.size for i in leaf.indices], 0.5, "float32") for leaf in expr.leaves]
    right = tnc.compile(expr, framework="numpy")(*arrays)
    own = tnc.plan(expr)
    data = json.loads(own.to_json())
    rng, taken = random.Random(2), 0
    paths = list(places(data))
    paths += 12 * [path for path in paths if path[0] == "networks"]
    for number in range(count):
        changed = mutated(data, paths, rng)
        text = json.dumps(changed) if number % 4 == 0 else signed(changed)
        text = corrupted(text, rng) if number % 5 == 0 else text
        try:
            plan = tnc.ContractionPlan.from_json(text)
            taken += 1
            assert tnc.ContractionPlan.from_json(plan.to_json()) == plan
            if [len(n.tensors) for n in plan.networks] != [len(n.tensors) for n in own.networks]:
                continue  # see test_a_forged_plan_of_other_networks
            if plan.networks == own.networks and taken % 8:
                continue  # what runs is as before
            value = tnc.compile(expr, framework="numpy", plan=plan)(*arrays)
            assert np.allclose(value, right), "the value is another one"
        except TncError:
            continue
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} on {text[:3000]}") from error
    return f"{count} texts, {taken} taken"


# ---------------------------------------------------------------------------- under an audit hook

_FORBIDDEN = ("os.", "subprocess.", "socket.", "pickle.", "ctypes.", "shutil.", "marshal.load")
_PATHS = (str(ROOT / "tncompiler"), str(ROOT / ".venv"), sys.base_prefix)
_QUIET = ("os.listdir", "os.scandir", "ctypes.dlopen", "ctypes.dlsym", "os.putenv")


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise where something is executed, opened or started, but for our own generated source."""
    if event == "exec":
        name = getattr(arguments[0], "co_filename", "")
        allowed = name.startswith(("<tncompiler ", "<frozen", *_PATHS))
    elif event == "compile":  # ast.parse, and the generated source
        name = arguments[1]
        name = name.decode() if isinstance(name, bytes) else str(name)
        allowed = name.startswith(("<unknown>", "<tncompiler ", *_PATHS))
    elif event == "open":
        allowed = str(arguments[0]).startswith(_PATHS)  # a module that loads on first use
    else:
        allowed = event in _QUIET or not event.startswith(_FORBIDDEN)
    if not allowed:
        sys.stderr.write(f"AUDIT {event} {arguments!r:.300}\n")
        sys.stderr.flush()
        raise AssertionError(f"hostile input reached {event}")


_GUARDED = """
import importlib, pkgutil, resource, sys
import tncompiler
for module in pkgutil.walk_packages(tncompiler.__path__, "tncompiler."):
    if module.name.startswith(("tncompiler.ir", "tncompiler.planning")):
        importlib.import_module(module.name)
i = tncompiler.Index("i", 2)
tncompiler.compile(tncompiler.gelu(tncompiler.input("x", i)), framework="numpy")([1.0, 2.0])
from tests import test_hostile
test_hostile.{job}({few})
sys.addaudithook(test_hostile.audit)
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
print(test_hostile.{job}({count}))
"""


def guarded(job: str, count: int, few: int = 20) -> str:
    """Run a function of this file in a process under the audit hook and a limit on memory."""
    code = _GUARDED.format(job=job, count=count, few=few)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "AUDIT" not in done.stderr, done.stderr[-4000:]
    return done.stdout


def misbehave(which: int) -> str:
    """What the hook and the limit have to stop."""
    if which == 1:
        eval("1 + 1")
    elif which == 2:
        with suppress(Exception):
            __import__("os").system("true")
    elif which == 3:
        open("/etc/passwd").close()
    elif which == 4:
        __import__("pickle").loads(b"cos\nsystem\n.")
    elif which == 5:
        np.ones(2**33)
    return "nothing stopped it"


@pytest.mark.parametrize("which", [1, 2, 3, 4, 5])
def test_guarded_fails(which: int) -> None:
    with pytest.raises(AssertionError, match=r"AUDIT|MemoryError|Unable to allocate"):
        guarded("misbehave", which, few=0)


def test_altered_expressions_execute_nothing() -> None:
    """Nothing a file holds is executed; only typed errors, or a valid expression"""
    taken = re.fullmatch(r"5000 texts, (\d+) taken\n", guarded("fuzz_expressions", 5000))
    assert taken is not None
    assert 200 < int(taken[1]) < 5000


def test_altered_plans_execute_nothing() -> None:
    """plans (JSON with schema version and checksum) … re-validated on load"""
    taken = re.fullmatch(r"5000 texts, (\d+) taken\n", guarded("fuzz_plans", 5000))
    assert taken is not None
    assert 100 < int(taken[1]) < 5000


@pytest.mark.parametrize(
    "change",
    [
        "networks",
        "tensors",
    ],
)
def test_a_forged_plan_of_other_networks(change: str) -> None:
    """A plan whose checksum is right, but whose networks are not those of the expression."""
    expr = X @ tnc.input("y", I, J) @ tnc.input("z", J)
    data = json.loads(tnc.plan(expr).to_json())
    if change == "networks":
        data["networks"] = []
    else:
        data["networks"][0].update(tensors=["x", "y"], pairs=[[0, 1]])
    x, y, z = (np.ones(shape, np.float32) for shape in ((4, 2), (2, 3), (3,)))
    with pytest.raises(TncError):
        plan = tnc.ContractionPlan.from_json(signed(data))
        tnc.compile(expr, framework="numpy", plan=plan)(x, y, z)


@pytest.mark.parametrize("open_", ["[", '{"a":', '{"nodes": [', "[{"])
def test_deep_nesting_is_refused(open_: str) -> None:
    for read in (tnc.from_json, tnc.ContractionPlan.from_json):
        with pytest.raises(FileFormatError):
            read(open_ * 100_000)


# ---------------------------------------------------------------------------- the package's source

_BANNED = {"pickle", "cPickle", "dill", "marshal", "shelve", "cloudpickle", "joblib", "jsonpickle"}
_EXECUTING = {"sympify", "parse_expr", "lambdify", "literal_eval", "unpickle"}


def executing(text: str) -> list[str]:
    """Calls and imports in Python source that execute what they are given."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [n for n in names if n.split(".")[0] in _BANNED or n in _EXECUTING]
        elif isinstance(node, ast.Attribute) and node.attr in _EXECUTING:
            found.append(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            banned = {"exec", "eval", "compile", "__import__", *_EXECUTING}
            found += [name] if name in banned else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            called = f"{owner}.{node.func.attr}"
            found += [called] if called in ("torch.load", "np.load", "sympy.S", "os.system") else []
    return found


def test_executing_finds() -> None:
    text = "import pickle\nfrom sympy import sympify\nsympy.lambdify(x)\neval(x)\ntorch.load(f)"
    assert set(executing(text)) == {"pickle", "sympify", "lambdify", "eval", "torch.load"}
    assert executing("module.eval()\nexecute(x)\nnp.zeros(3)") == []


def test_the_package_executes_only_its_own_source() -> None:
    """No pickle, no sympify / parse_expr / lambdify / eval; one audited exec of generated source"""
    files = sorted((ROOT / "tncompiler").rglob("*.py"))
    assert len(files) > 40
    found = {
        str(path.relative_to(ROOT)): calls
        for path in files
        if (calls := executing(path.read_text(encoding="utf-8")))
    }
    assert found == {"tncompiler/backends/source.py": ["exec", "compile"]}


# ---------------------------------------------------------------------------- depth


def chain(length: int) -> Expr:
    expr: Expr = tnc.input("A", I, J)
    for _ in range(length):
        expr = tnc.tanh(expr)
    return expr


def test_deep_expressions_do_not_recurse() -> None:
    """No recursion in tree depth"""
    deep, twin = chain(10_000), chain(10_000)
    assert hash(deep) == hash(twin)
    assert deep == twin
    assert deep != chain(9_999)
    assert "Map" in repr(deep)
    assert deep.to_text().count("\n") == 10_000
    assert tnc.from_json(deep.to_json()) == deep
    assert [leaf.name for leaf in deep.leaves] == ["A"]
    assert deep.replace(deep.leaves[0], tnc.input("B", I, J)).leaves[0].name == "B"
    assert copy.deepcopy(deep) == deep


def test_deep_expressions_compile() -> None:
    f = tnc.compile(chain(2_000), framework="numpy")
    x = np.full((2, 3), 0.5, np.float32)
    value, pull = f.vjp(x)
    expected, slope = np.full((2, 3), 0.5), np.ones((2, 3))
    for _ in range(2_000):
        expected = np.tanh(expected)
        slope = slope * (1 - expected**2)
    assert np.allclose(value, expected, atol=1e-5)
    assert np.allclose(pull(np.ones((2, 3), np.float32))["A"], slope, atol=1e-5)


def test_deep_expressions_have_derivatives() -> None:
    deep = chain(600)
    assert tnc.grad(deep.sum(), deep.leaves[0]).indices == (I, J)
    assert tnc.jvp(deep, {deep.leaves[0]: tnc.input("dA", I, J)}).indices == (I, J)


def test_deep_products_compile() -> None:
    bonds = [tnc.Index(f"k{n}", 2) for n in range(301)]
    deep: Expr = tnc.input("G0", bonds[0], bonds[1])
    for n in range(1, 300):
        deep = deep @ tnc.input(f"G{n}", bonds[n], bonds[n + 1])
    f = tnc.compile(deep, framework="numpy")
    value = f(*(np.eye(2, dtype=np.float32) for _ in f.inputs))
    assert np.array_equal(value, np.eye(2))
