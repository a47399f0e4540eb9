"""Bad inputs: each gets its own error class and a message that says what, where and how to mend it.

All messages together are a golden file: a catalogue by class, each with the code that provokes it.
Lines of this file in messages are replaced by LINE.
"""

import ast
import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests.conftest import Golden
from tncompiler.ir import errors as er
from tncompiler.ir.errors import TncError

B = tnc.Index("b")
I, J, K, R = tnc.indices("i j k r", i=2, j=3, k=4, r=5)
A, C, X = tnc.input("A", I, J), tnc.input("C", J, K), tnc.input("x", B, I)
W, S = tnc.param("W", I, J), tnc.param("S", J, tnc.Index("j2", 3))
Z, N = tnc.input("z", dtype="complex64"), tnc.input("n", I, dtype="int64")


def numpy_of(expr, **options):
    return tnc.compile(expr, framework="numpy", **options)


def zeros(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


def set_parameter(name, value):
    numpy_of(W, seed=0).parameters[name] = value


CASES: dict[str, tuple[type[TncError], Callable[[], object]]] = {
    # names
    "leaf name with a blank": (er.BadName, lambda: tnc.input("my tensor", I)),
    "leaf name that is code": (er.BadName, lambda: tnc.input("a\nimport os", I)),
    "leaf name of look-alikes": (er.BadName, lambda: tnc.input("ﬁlter", I)),
    "leaf name of too many parts": (er.BadName, lambda: tnc.input(".".join("a" * 200), I)),
    "leaf name that is too long": (er.BadName, lambda: tnc.input("a" * 2000, I)),
    "leaf name that is a keyword": (er.ReservedName, lambda: tnc.param("lambda", I)),
    "leaf name with a keyword": (er.ReservedName, lambda: tnc.param("fc1.class", I)),
    "leaf name of Python's own": (er.ReservedName, lambda: tnc.param("__class__", I)),
    "scope name that is a keyword": (er.ReservedName, lambda: tnc.scope("import")),
    "index name that changes direction": (er.BadName, lambda: tnc.Index("a\u202eb", 3)),
    "leaf name that is long": (er.BadName, lambda: tnc.param("é" * 200, I)),
    "leaf name that is no text": (er.BadName, lambda: tnc.param(7, I)),
    "index name that is empty": (er.BadName, lambda: tnc.Index("", 3)),
    "index name with a newline": (er.BadName, lambda: tnc.Index("a\nb", 3)),
    "no index names": (er.BadName, lambda: tnc.indices("")),
    "scope name": (er.BadName, lambda: tnc.scope("1st layer")),
    "size name": (er.BadName, lambda: tnc.size("2D")),
    # sizes
    "negative size": (er.BadSize, lambda: tnc.Index("i", -3)),
    "fractional size": (er.BadSize, lambda: tnc.Index("i", 2.5)),
    "size that is code": (er.BadSize, lambda: tnc.Index("i", "__import__('os')")),
    "size that takes for ever": (er.BadSize, lambda: tnc.Index("i", "9**9**9**9")),
    "size without end": (er.BadSize, lambda: tnc.Index("i", 10**5000)),
    "power of a power": (er.BadSize, lambda: tnc.Index("i", "(D**64)**64")),
    "parameter that no memory holds": (
        er.BadSize,
        lambda: numpy_of(tnc.param("G", tnc.Index("i", 2**62))),
    ),
    "size given twice": (er.SizeClash, lambda: numpy_of(X, sizes={"b": 3, B: 4})),
    "size for no index": (er.UnknownIndex, lambda: tnc.indices("i j", k=3)),
    "size of a known index": (er.SizeClash, lambda: numpy_of(A, sizes={"i": 3})),
    "size of an unknown index": (er.UnknownIndex, lambda: numpy_of(A, sizes={"q": 3})),
    "size that is a size": (er.BadSize, lambda: numpy_of(X, sizes={"b": "D"})),
    "parameter without a size": (er.UnboundSize, lambda: numpy_of(tnc.param("G", B, I))),
    "two sizes on two tensors": (
        er.SizeClash,
        lambda: tnc.contract(
            tnc.input("G1", I, tnc.Index("r", 4)), tnc.input("G2", tnc.Index("r", 3), J)
        ),
    ),
    "two sizes on one tensor": (er.SizeClash, lambda: tnc.input("T", I, tnc.Index("i", 3))),
    "two sizes in a sum": (er.SizeClash, lambda: A + tnc.input("D", tnc.Index("i", 7))),
    "delta of two sizes": (er.SizeClash, lambda: tnc.delta(I, J)),
    # indices
    "index twice": (er.RepeatedIndex, lambda: tnc.input("T", I, I)),
    "index that is a name": (er.ArgumentError, lambda: tnc.input("T", "i")),
    "out twice": (er.RepeatedOutputIndex, lambda: tnc.contract(A, C, out=(I, I))),
    "out unknown": (er.UnknownOutputIndex, lambda: tnc.contract(A, C, out=(I, R))),
    "matmul without a common index": (er.NoCommonIndex, lambda: A @ tnc.input("D", K)),
    "sum of two index sets": (er.IndexMismatch, lambda: A + C),
    "reduce over an unknown index": (er.UnknownIndex, lambda: A.sum(K)),
    "max over an unknown name": (er.UnknownIndex, lambda: A.max("zz")),
    "softmax over an unknown index": (er.UnknownIndex, lambda: tnc.softmax(A, over=K)),
    "rename onto an index": (er.RepeatedIndex, lambda: S.rename({"j2": J})),
    "rename to another size": (er.SizeClash, lambda: A.rename({I: K})),
    "rename of an unknown index": (er.UnknownIndex, lambda: A.rename({K: R})),
    "transpose without an index": (er.ArgumentError, lambda: A.transpose(I)),
    "call with too few": (er.ArgumentError, lambda: A(I)),
    "call with another size": (er.SizeClash, lambda: A(I, K)),
    "split that does not multiply out": (
        er.SizeEquationError,
        lambda: A.split(J, tnc.indices("p q", size=2)),
    ),
    "merge that does not multiply out": (
        er.SizeEquationError,
        lambda: A.merge((I, J), tnc.Index("m", 7)),
    ),
    "split with a remainder in a call": (
        er.SizeEquationError,
        lambda: numpy_of(X.split(B, (tnc.Index("p", 4), tnc.Index("q"))))(zeros(6, 2)),
    ),
    "max over an index of size 0": (
        er.EmptyReduction,
        lambda: numpy_of(X.max(B))(zeros(0, 2)),
    ),
    "select beyond": (er.PositionError, lambda: A.select(J, 3)),
    "slice beyond a free size": (
        er.PositionError,
        lambda: numpy_of(X.slice(B, 0, 5))(zeros(3, 2)),
    ),
    "slice at no integer": (er.ArgumentError, lambda: A.slice(J, 0.5, 2)),
    "slice beyond": (er.PositionError, lambda: A.slice(J, 1, 9)),
    "slice backwards": (er.PositionError, lambda: A.slice(J, 2, 1)),
    "concat to another size": (er.SizeClash, lambda: tnc.concat([A, A], tnc.Index("j", 5))),
    "concat of other tensors": (
        er.SizeClash,
        lambda: tnc.concat([A, C.rename({K: tnc.Index("n", 4)})], J),
    ),
    "stack of too few": (er.SizeClash, lambda: tnc.stack([A, A], tnc.Index("t", 3))),
    # operands
    "array as operand": (er.ArgumentError, lambda: A + zeros(2, 3)),
    "text as operand": (er.ArgumentError, lambda: A * "x"),
    "truth value": (er.ArgumentError, lambda: bool(A > 0)),
    "complex exponent": (er.ArgumentError, lambda: A**1j),
    "replace of an expression": (er.ArgumentError, lambda: (A @ C).replace(A @ C, A)),
    "replace by other indices": (er.SizeClash, lambda: (A @ C).replace(A, C)),
    "constant of another shape": (er.ShapeError, lambda: tnc.constant("c", I, value=zeros(3))),
    "constant without a shape": (
        er.ShapeError,
        lambda: tnc.constant("c", I, value=[[1, 2], [3]]),
    ),
    "complex constant of a real dtype": (
        er.DTypeError,
        lambda: tnc.constant("c", I, value=[1j, 2], dtype="float32"),
    ),
    "constant of text": (er.UnsupportedDType, lambda: tnc.constant("c", I, value=["a", "b"])),
    "unknown init": (er.ArgumentError, lambda: tnc.param("W", I, init="xavier")),
    "dtype of objects": (er.UnsupportedDType, lambda: tnc.input("x", I, dtype=object)),
    "cast to an unknown dtype": (er.UnsupportedDType, lambda: A.astype("float8")),
    "unknown dtype": (er.UnsupportedDType, lambda: tnc.input("x", I, dtype="float8")),
    "relu of a complex number": (er.DTypeError, lambda: numpy_of(tnc.relu(Z))(np.complex64(1))),
    # leaves
    "two parameters of one name": (
        er.NameClash,
        lambda: numpy_of(W.sum() + tnc.param("W", J).sum()),
    ),
    "input and parameter of one name": (er.NameClash, lambda: numpy_of(W + tnc.input("W", I, J))),
    "name of the module": (er.NameClash, lambda: tnc.compile(tnc.param("forward", I))),
    "leaf and module of one name": (
        er.NameClash,
        lambda: tnc.compile(tnc.param("a", I) + tnc.param("a.b", I)),
    ),
    # compile
    "dtype of parameters": (er.DTypeError, lambda: numpy_of(W, dtype="int32")),
    "unknown dtype to compile": (er.UnsupportedDType, lambda: numpy_of(W, dtype="float8")),
    "seed that is none": (er.ArgumentError, lambda: numpy_of(W, seed=-1)),
    "share that is no network": (er.ArgumentError, lambda: tnc.compile(W, share={"W": 1})),
    "sizes that are no dict": (er.ArgumentError, lambda: numpy_of(X, sizes=[3])),
    "inputs that are text": (er.ArgumentError, lambda: numpy_of(A @ C, inputs="A")),
    "plan memory limit": (er.PlanError, lambda: tnc.PlanOptions(memory_limit="2 gigabytes")),
    "plan memory limit too small": (
        er.PlanError,
        lambda: numpy_of(A @ C, plan=tnc.PlanOptions(memory_limit=1))(zeros(2, 3), zeros(3, 4)),
    ),
    "plan trials": (er.PlanError, lambda: tnc.PlanOptions(trials=0)),
    "plan that is no JSON": (er.FileFormatError, lambda: tnc.ContractionPlan.from_json("{")),
    "outputs that are none": (er.ArgumentError, lambda: tnc.compile(None)),
    "outputs that are empty": (er.ArgumentError, lambda: tnc.compile({})),
    "output that is an array": (er.ArgumentError, lambda: tnc.compile((A, zeros(2)))),
    "unknown backend": (er.BackendError, lambda: tnc.compile(A, backend="fortran")),
    "unknown framework": (er.BackendError, lambda: tnc.compile(A, framework="jax")),
    "backend of another framework": (er.BackendError, lambda: numpy_of(A, backend="torch")),
    "inputs that are not all": (er.ArgumentError, lambda: numpy_of(A @ C, inputs=["A"])),
    "plan that is no plan": (er.PlanError, lambda: numpy_of(A @ C, plan="best")),
    "plan of another network": (
        er.PlanError,
        lambda: numpy_of(A @ C, plan=tnc.plan(A * 2))(zeros(2, 3), zeros(3, 4)),
    ),
    "plan option": (er.PlanError, lambda: tnc.PlanOptions(minimize="beauty")),
    "plan that was altered": (
        er.FileFormatError,
        lambda: tnc.ContractionPlan.from_json(tnc.plan(A @ C).to_json().replace("time", "flops")),
    ),
    "path of two networks": (er.PlanError, lambda: tnc.plan(tnc.tanh(A @ C) @ C).path),
    "part": (er.ArgumentError, lambda: numpy_of(A).cost(part="sideways")),
    "share of another size": (
        er.TncError,
        lambda: tnc.compile(W, share=tnc.compile(tnc.param("W", J, K))),
    ),
    # calls
    "too few arguments": (er.ArgumentCountError, lambda: numpy_of(A @ C)(zeros(2, 3))),
    "too few tensors": (er.ArgumentCountError, lambda: tnc.compile(A @ C)(torch.zeros(2, 3))),
    "too many arguments": (er.ArgumentCountError, lambda: numpy_of(A)(zeros(2, 3), zeros(2, 3))),
    "argument of an unknown name": (er.ArgumentError, lambda: numpy_of(A)(B=zeros(2, 3))),
    "argument given twice": (
        er.ArgumentCountError,
        lambda: numpy_of(A)(zeros(2, 3), A=zeros(2, 3)),
    ),
    "array of another rank": (er.ShapeError, lambda: numpy_of(A)(zeros(2))),
    "tensor of another rank": (er.ShapeError, lambda: tnc.compile(A)(torch.zeros(2))),
    "array of another size": (er.ArraySizeClash, lambda: numpy_of(A)(zeros(2, 4))),
    "tensor of another size": (er.ArraySizeClash, lambda: tnc.compile(A)(torch.zeros(2, 4))),
    "tensors on two devices": (
        er.DeviceError,
        lambda: tnc.compile(A @ C)(torch.zeros(2, 3), torch.zeros(3, 4, device="meta")),
    ),
    "array of objects": (er.UnsupportedDType, lambda: numpy_of(A)(np.full((2, 3), None))),
    "integers for floats": (
        er.DTypeError,
        lambda: numpy_of(A @ W)(zeros(2, 3, dtype="int64")),
    ),
    "arrays that disagree": (
        er.ArraySizeClash,
        lambda: numpy_of(X @ tnc.input("y", B))(zeros(5, 2), zeros(6)),
    ),
    "array of another dtype": (
        er.DTypeError,
        lambda: numpy_of(A @ W)(zeros(2, 3, dtype="float64")),
    ),
    "array to a torch module": (er.ArgumentError, lambda: tnc.compile(A)(zeros(2, 3))),
    "tensor of another dtype": (
        er.DTypeError,
        lambda: tnc.compile(A @ W)(torch.zeros(2, 3, dtype=torch.float64)),
    ),
    "parameter that is not there": (er.ArgumentError, lambda: set_parameter("V", zeros(2))),
    "parameter of another shape": (er.ShapeError, lambda: set_parameter("W", zeros(3, 2))),
    "parameter of another kind": (er.DTypeError, lambda: set_parameter("W", zeros(2, 3) * 1j)),
    "cotangent of another shape": (
        er.ShapeError,
        lambda: numpy_of(A * 2).vjp(zeros(2, 3))[1](zeros(3, 2)),
    ),
    "no tangents": (er.ArgumentError, lambda: numpy_of(A * 2).jvp(zeros(2, 3), {})),
    "value and grad of a matrix": (
        er.GradientError,
        lambda: numpy_of(A * 2).value_and_grad(zeros(2, 3)),
    ),
    "complex cotangent": (
        er.DTypeError,
        lambda: numpy_of(A * 2).vjp(zeros(2, 3))[1](zeros(2, 3) * 1j),
    ),
    "cotangent for one output of two": (
        er.ArgumentError,
        lambda: numpy_of((A * 2, A * 3)).vjp(zeros(2, 3))[1](zeros(2, 3)),
    ),
    # derivatives
    "gradient of an array": (er.GradientError, lambda: tnc.grad(A.sum(), zeros(2, 3))),
    "gradient by an integer": (er.GradientError, lambda: tnc.grad(N.sum() * 1.5, N)),
    "tangents that are no dict": (er.ArgumentError, lambda: tnc.jvp(A.sum(), A)),
    "gradient of a matrix": (er.GradientError, lambda: tnc.grad(A @ C, A)),
    "gradient by an absent leaf": (er.GradientError, lambda: tnc.grad(A.sum(), C)),
    "gradient by an expression": (er.GradientError, lambda: tnc.grad(A.sum(), A * 1)),
    "gradient of a complex number": (er.GradientError, lambda: tnc.grad(Z * 1, Z)),
    "cotangent of other indices": (er.GradientError, lambda: tnc.grad(A @ C, A, cotangent=A)),
    "tangent of other indices": (er.GradientError, lambda: tnc.jvp(A.sum(), {A: C})),
    "environment in a nonlinear place": (er.GradientError, lambda: tnc.environment(tnc.exp(A), A)),
    "environment of two occurrences": (
        er.GradientError,
        lambda: tnc.environment(
            S @ S(tnc.Index("j2", 3), tnc.Index("j3", 3)), S(J, tnc.Index("j3", 3))
        ),
    ),
    # files
    "JSON with code for a size": (
        er.FileFormatError,
        lambda: tnc.from_json(X.to_json().replace('"b",\n     "b"', '"b", "exec(1)"')),
    ),
    "text that is no JSON": (er.FileFormatError, lambda: tnc.from_json("{")),
    "JSON that is no expression": (er.FileFormatError, lambda: tnc.from_json("[]")),
    "JSON of another schema": (
        er.FileFormatError,
        lambda: tnc.from_json(A.to_json().replace('"schema": 1', '"schema": 99')),
    ),
    "JSON with an unknown node": (
        er.FileFormatError,
        lambda: tnc.from_json(A.to_json().replace('"Leaf"', '"Eval"')),
    ),
    "init that JSON cannot hold": (
        er.FileFormatError,
        lambda: tnc.param("w", I, init=lambda shape: zeros(*shape)).to_json(),
    ),
}


def error_of(name: str) -> BaseException:
    """What the case raises."""
    try:
        CASES[name][1]()
    except Exception as error:
        return error
    pytest.fail(f"{name}: nothing was raised")


@pytest.mark.parametrize("name", CASES)
def test_each_bad_input_has_its_error(name: str) -> None:
    """user input never meets a bare AssertionError, KeyError, IndexError or AttributeError"""
    error = error_of(name)
    assert isinstance(error, CASES[name][0]), f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("name", CASES)
def test_each_message_says_what_and_how_to_mend_it(name: str) -> None:
    """Errors say what, where and how to mend it"""
    error = error_of(name)
    assert isinstance(error, TncError)
    assert error.what
    assert error.fix, f"no fix in: {error}"
    assert str(error).splitlines()[-1] == f"  fix: {error.fix}"
    assert all(len(line) < 500 for line in str(error).splitlines())


# what has no place of its own, or is raised by code outside that does not say where yet


@pytest.mark.parametrize("name", CASES)
def test_each_message_says_where(name: str) -> None:
    """Errors say … where"""
    assert re.search(r"test_errors\.py:\d+", str(error_of(name))), str(error_of(name))


def classes(kind: type = TncError) -> dict[type, None]:
    """A class and those below it, each once."""
    found = {kind: None}
    for below in kind.__subclasses__():
        found.update(classes(below))
    return found


PROMISED = {
    "a clash of sizes": "two sizes on two tensors",
    "an unknown index": "reduce over an unknown index",
    "an output index nobody has": "out unknown",
    "a repeated output index": "out twice",
    "a parameter whose size is still a symbol": "parameter without a size",
    "a wrong number of arguments": "too few arguments",
    "a wrong shape of arguments": "array of another rank",
    "a wrong dtype of arguments": "array of another dtype",
    "a wrong device of arguments": "tensors on two devices",
    "a reserved name": "leaf name that is a keyword",
    "a hostile name": "leaf name that is code",
    "an unsupported dtype": "unknown dtype",
}


def test_each_kind_has_its_own_class() -> None:
    """each gets its OWN error class"""
    raised = [type(error_of(name)) for name in PROMISED.values()]
    assert len(set(raised)) == len(PROMISED), raised


def test_there_are_enough_cases() -> None:
    """at least 40 of these messages are golden-tested; here, of every class"""
    assert len(CASES) >= 60
    assert {kind for kind, _ in CASES.values()} >= {
        er.SizeClash, er.PositionError, er.ArraySizeClash, er.UnknownIndex, er.UnknownOutputIndex,
        er.NoCommonIndex, er.IndexMismatch, er.RepeatedIndex, er.RepeatedOutputIndex, er.NameClash,
        er.BadName, er.ReservedName, er.BadSize, er.UnboundSize, er.SizeEquationError,
        er.ArgumentError, er.ArgumentCountError, er.ShapeError, er.DTypeError, er.UnsupportedDType,
        er.DeviceError, er.EmptyReduction, er.GradientError, er.PlanError, er.BackendError,
        er.FileFormatError,
    }  # fmt: skip


def scrubbed(text: str) -> str:
    """The text without what changes from run to run: lines of this file and addresses."""
    text = re.sub(r"(test_errors\.py):\d+", r"\1:LINE", text)
    return re.sub(r"0x[0-9a-f]+", "ADDRESS", text)


def test_scrubbed_leaves_the_rest() -> None:
    assert (
        scrubbed("at test_errors.py:12, size 12 0xff") == "at test_errors.py:LINE, size 12 ADDRESS"
    )


def codes() -> tuple[list[str], dict[str, str]]:
    """The definitions of this file that cases use, and the code of each case."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    given = [
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Assign) and "tnc." in ast.unparse(node)
    ]
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "CASES"
    )
    assert isinstance(table, ast.Dict)
    found = {
        ast.literal_eval(key): ast.unparse(case.elts[1].body)  # type: ignore[attr-defined,arg-type]
        for key, case in zip(table.keys, table.values, strict=True)
    }
    return given, found


def test_every_case_has_its_code() -> None:
    assert list(codes()[1]) == list(CASES)


def test_golden_messages(golden: Golden) -> None:
    """One entry a case, under its class: what is done, then what is said."""
    given, code = codes()
    parts = ["\n".join(f">>> {line}" for line in given) + "\n"]
    raised = {name: error_of(name) for name in CASES}
    for kind in classes():
        own = [name for name, error in raised.items() if type(error) is kind]
        if own:
            above = " < ".join(base.__name__ for base in kind.__bases__)
            says = (kind.__doc__ or "").splitlines()[0]
            parts.append(f"{'=' * 100}\n{kind.__name__} ({above}): {says}\n{'=' * 100}\n")
        parts += [f"# {n}\n>>> {code[n]}\n{kind.__name__}: {raised[n]}\n" for n in own]
    golden("errors.txt", scrubbed("\n".join(parts)))


def test_the_style_example() -> None:
    """SizeClash: index 'r' has size 4 on G1 (axis 2) but size 3 on G2 (axis 0)"""
    r4, r3 = tnc.Index("r", 4), tnc.Index("r", 3)
    with pytest.raises(er.SizeClash) as caught:
        tnc.contract(tnc.param("G1", I, J, r4), tnc.param("G2", r3, K))
    lines = str(caught.value).splitlines()
    assert lines[0] == "index 'r' has size 4 on G1 (axis 2) but size 3 on G2 (axis 0)"
    assert re.match(r"  in .*test_errors\.py:\d+$", lines[1])
    assert lines[2] == "  fix: give both the same size, or rename one of them"


def test_error_of_fails_where_nothing_is_raised(monkeypatch) -> None:
    monkeypatch.setitem(CASES, "fine", (TncError, lambda: None))
    with pytest.raises(pytest.fail.Exception, match="nothing was raised"):
        error_of("fine")


@pytest.mark.parametrize("kind", [er.SizeClash, er.ArgumentError, er.DTypeError])
def test_errors_survive_pickle_and_copy(kind) -> None:
    error = kind("what", where="there", fix="mend")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert (again.what, again.where, again.fix, str(again)) == (
            "what",
            "there",
            "mend",
            str(error),
        )


def test_every_error_is_a_value_error() -> None:
    for kind in TncError.__subclasses__():
        assert issubclass(kind, ValueError)
    assert tnc.TncError is TncError
    assert issubclass(er.ArgumentError, TypeError)


def test_an_unknown_attribute_of_the_package_raises() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        tnc.nonsense  # noqa: B018
    assert set(tnc.__all__) <= set(dir(tnc))


HOSTILE = (
    None,
    3,
    -1,
    2.5,
    "",
    "x",
    [],
    {},
    (),
    object(),
    np.ones(2),
    B,
    A,
    True,
    b"i",
    float("nan"),
)
CALLS: dict[str, Callable[[object], object]] = {
    "Index name": lambda v: tnc.Index(v, 3),
    "Index size": lambda v: tnc.Index("i", v),
    "indices": lambda v: tnc.indices(v),
    "size": lambda v: tnc.size(v),
    "input name": lambda v: tnc.input(v, I),
    "input index": lambda v: tnc.input("q", v),
    "input dtype": lambda v: tnc.input("q", I, dtype=v),
    "param init": lambda v: tnc.param("q", tnc.Index("e", 2), init=v),
    "constant value": lambda v: tnc.constant("q", I, value=v),
    "contract": lambda v: tnc.contract(A, v),
    "contract out": lambda v: tnc.contract(A, out=v),
    "add": lambda v: A + v,
    "matmul": lambda v: A @ v,
    "power": lambda v: A**v,
    "sum": lambda v: A.sum(v),
    "max": lambda v: A.max(v),
    "rename key": lambda v: A.rename({I: v}),
    "rename": lambda v: A.rename(v),
    "transpose": lambda v: A.transpose(v, J),
    "split index": lambda v: A.split(v, (I, J)),
    "split parts": lambda v: A.split(I, v),
    "merge parts": lambda v: A.merge(v, tnc.Index("m", 6)),
    "merge into": lambda v: A.merge((I, J), v),
    "select": lambda v: A.select(I, v),
    "select index": lambda v: A.select(v, 0),
    "slice start": lambda v: A.slice(J, v, 3),
    "slice stop": lambda v: A.slice(J, 0, v),
    "pad": lambda v: A.pad(J, v, 1),
    "stack parts": lambda v: tnc.stack(v, tnc.Index("t", 2)),
    "stack part": lambda v: tnc.stack([A, v], tnc.Index("t", 2)),
    "stack index": lambda v: tnc.stack([A, A], v),
    "concat parts": lambda v: tnc.concat(v, J),
    "concat part": lambda v: tnc.concat([A, v], J),
    "concat index": lambda v: tnc.concat([A, A], v),
    "where": lambda v: tnc.where(v, A, A),
    "relu": lambda v: tnc.relu(v),
    "softmax over": lambda v: tnc.softmax(A, over=v),
    "softmax": lambda v: tnc.softmax(v, over=I),
    "layer_norm eps": lambda v: tnc.layer_norm(A, over=I, eps=v),
    "astype": lambda v: A.astype(v),
    "call": lambda v: A(v, J),
    "replace leaf": lambda v: A.replace(v, A),
    "replace by": lambda v: A.replace(A, v),
    "delta": lambda v: tnc.delta(I, v),
    "ones": lambda v: tnc.ones(v),
    "grad expr": lambda v: tnc.grad(v, A),
    "grad wrt": lambda v: tnc.grad(A.sum(), v),
    "grad wrt tuple": lambda v: tnc.grad(A.sum(), (A, v)),
    "grad cotangent": lambda v: tnc.grad(A, A, cotangent=v),
    "jvp": lambda v: tnc.jvp(A, v),
    "jvp tangent": lambda v: tnc.jvp(A, {A: v}),
    "jvp expr": lambda v: tnc.jvp(v, {A: A}),
    "environment": lambda v: tnc.environment(A @ C, v),
    "environment expr": lambda v: tnc.environment(v, A),
    "from_json": lambda v: tnc.from_json(v),
    "plan": lambda v: tnc.plan(v),
    "plan sizes": lambda v: tnc.plan(X @ W, sizes=v),
    "plan options": lambda v: tnc.plan(X @ W, options=v),
    "compile": lambda v: numpy_of(v),
    "compile sizes": lambda v: numpy_of(X @ W, sizes=v),
    "compile size": lambda v: numpy_of(X @ W, sizes={"b": v}),
    "compile size key": lambda v: numpy_of(X @ W, sizes={v: 3}) if v.__hash__ else None,
    "compile inputs": lambda v: numpy_of(X @ W, inputs=v),
    "compile dtype": lambda v: numpy_of(X @ W, dtype=v),
    "compile plan": lambda v: numpy_of(X @ W, plan=v),
    "compile backend": lambda v: numpy_of(X @ W, backend=v),
    "compile framework": lambda v: tnc.compile(X @ W, framework=v),
    "compile seed": lambda v: numpy_of(X @ W, seed=v),
    "compile share": lambda v: numpy_of(X @ W, share=v),
    "numpy call": lambda v: numpy_of(X @ W)(v),
    "numpy parameters": lambda v: numpy_of(X @ W)(zeros(2, 2), parameters=v),
    "numpy parameter": lambda v: numpy_of(X @ W)(zeros(2, 2), parameters={"W": v}),
    "numpy assignment": lambda v: set_parameter("W", v),
    "numpy pull": lambda v: numpy_of(X @ W).vjp(zeros(2, 2))[1](v),
    "numpy jvp": lambda v: numpy_of(X @ W).jvp(zeros(2, 2), tangents=v),
    "torch call": lambda v: tnc.compile(X @ W)(v),
    "cost sizes": lambda v: numpy_of(X @ W).cost(v),
    "cost part": lambda v: numpy_of(X @ W).cost(part=v),
    "source backend": lambda v: numpy_of(X @ W).source(backend=v),
}


@pytest.mark.parametrize("name", CALLS)
def test_hostile_arguments_meet_only_our_errors(name: str) -> None:
    """user input never meets `assert`, nor KeyError, IndexError, AttributeError or ValueError

    A bare TypeError is Python's own word for a value of another type, and may pass.
    """
    bad = []
    for value in HOSTILE:
        try:
            CALLS[name](value)
        except (TncError, TypeError):
            continue
        except Exception as error:
            bad.append(
                f"{type(value).__name__} {value!r:.30} → {type(error).__name__}: {error!s:.80}"
            )
    assert not bad, "\n".join(bad)
