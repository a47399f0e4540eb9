"""The text report: its totals are those of `cost`, its marks those of the training programs."""

import re

import pytest

import tncompiler as tnc
from tncompiler.explain import copied_operands, dense_layer, quantity
from tncompiler.function import NumpyFunction
from tncompiler.inspection import PARTS
from tncompiler.ir.program import Argument, Contract, Program, Step, Value

b, i1, i2, o1, o2, r = tnc.indices("b i1 i2 o1 o2 r", i1=28, i2=28, o1=16, o2=16)


def compiled(outputs: object, **sizes: int) -> NumpyFunction:
    return tnc.compile(outputs, sizes=sizes, framework="numpy", seed=0)


@pytest.fixture
def layer() -> NumpyFunction:
    x = tnc.input("x", b, i1, i2)
    cores = tnc.param("G1", i1, o1, r), tnc.param("G2", r, i2, o2)
    product = tnc.contract(x, *cores, out=(b, o1, o2))
    return compiled(tnc.relu(product + tnc.param("bias", o1, o2)), r=8)


@pytest.mark.parametrize("part", PARTS)
def test_totals_are_the_cost(layer: NumpyFunction, part: str) -> None:
    cost = layer.cost({"b": 256}, part)
    text = layer.explain({"b": 256}, part)
    assert f"part        {part}" in text
    assert re.search(rf"^flops .*\({cost.flops:,}\)$", text, re.M)
    assert re.search(rf"^elementwise .*\({cost.elementwise:,}\)$", text, re.M)
    assert f"({cost.bytes_read:,} read, {cost.bytes_written:,} written)" in text
    assert re.search(rf"^peak .*\({cost.peak_bytes:,}\),", text, re.M)


def test_one_row_a_step(layer: NumpyFunction) -> None:
    rows = re.findall(r"^ *\d+   \w+\(", layer.explain(part="backward"), re.M)
    assert len(rows) == len(layer.program(part="backward").steps)


def test_kept_rows_are_the_saved_values(layer: NumpyFunction) -> None:
    compilation = layer.compilation
    leaves = layer._differentiable(None)
    saved = compilation.training(layer._dtypes(), compilation.nominal({}), leaves).saved
    assert saved and sorted(_marked(layer.explain(part="step"))) == sorted(saved)


def test_a_forward_pass_that_is_planned_otherwise_keeps_nothing_else(layer: NumpyFunction) -> None:
    """Names are those of one program: a mark stands only on a step that the training step has."""
    compilation = layer.compilation
    cut = compilation.training(
        layer._dtypes(), compilation.nominal({}), layer._differentiable(None)
    )
    marked = _marked(layer.explain())
    assert set(marked) <= set(cut.saved)
    shown = {step.out.name: step for step in layer.program().steps}
    assert all(shown[name] in cut.forward.steps for name in marked)


def _marked(text: str) -> list[str]:
    rows = (re.match(r" *\d+   (\w+)\(.* kept\b", line) for line in text.splitlines())
    return [row[1] for row in rows if row]


def test_sizes_say_whether_they_are_assumed(layer: NumpyFunction) -> None:
    assert "b = 128  (assumed" in layer.explain()
    given = layer.explain({b: 64})
    assert "b = 64\n" in given and "assumed" not in given


def test_dense_layer(layer: NumpyFunction) -> None:
    dense = dense_layer(layer, layer.compilation.nominal({}))
    assert dense is not None
    assert (dense.batch, dense.in_size, dense.out_size) == (128, 784, 256)
    assert dense.stored == 2 * 28 * 16 * 8
    assert "784→256: parameters 7,168 against 200,704 (28 times fewer)" in layer.explain()


def test_no_dense_layer_for_two_inputs() -> None:
    product = tnc.contract(tnc.input("x", b, i1), tnc.input("y", i1, o1), out=(b, o1))
    assert "dense layer" not in compiled(product).explain()


def test_no_dense_layer_for_two_layers() -> None:
    hidden = tnc.relu(tnc.contract(tnc.input("x", b, i1), tnc.param("V", i1, r), out=(b, r)))
    f = compiled(tnc.contract(hidden, tnc.param("W", r, o1), out=(b, o1)), r=4)
    assert "dense layer" not in f.explain()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("size", [0, 1, 5])
def test_scalar_without_parameters(part: str, size: int) -> None:
    x = tnc.input("x", b)
    text = compiled(tnc.contract(x, x, out=())).explain({b: size}, part)
    assert "scalar" in text or part == "backward"
    assert f"b = {size}" in text and "parameters" not in text


def test_an_output_that_is_an_input() -> None:
    assert "no steps" in compiled(tnc.input("x", b)).explain()


def test_several_outputs_by_name() -> None:
    x = tnc.input("x", i1)
    text = compiled({"double": x * 2.0, "sum": tnc.contract(x, out=())}).explain()
    assert "outputs     double (i1:28)\n            sum ()" in text


def test_integers_have_no_backward() -> None:
    text = compiled(tnc.contract(tnc.input("n", b, dtype="int64"), out=())).explain()
    assert "kept        0 B" in text


def test_unknown_part(layer: NumpyFunction) -> None:
    with pytest.raises(tnc.TncError, match="there is no part 'sideways'"):
        layer.explain(part="sideways")


def test_copied_operands_names_the_interleaved_one() -> None:
    a = Value("a", (2, 3, 4, 5), "float32", ("m", "k", "n", "l"))
    w = Value("w", (3, 5, 7), "float32", ("k", "l", "o"))
    out = Value("t", (2, 4, 7), "float32", ("m", "n", "o"))
    step = Step(out, Contract(((0, 1, 2, 3), (1, 3, 4)), (0, 2, 4)), ("a", "w"))
    arguments = Argument(a, "input"), Argument(w, "param")
    assert copied_operands(Program(arguments, (step,), ("t",)), step, {}) == ["a"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (3_211_264, "3.21 MB"), (999_999, "1 MB")],
)
def test_quantity(number: int, text: str) -> None:
    assert quantity(number, "B") == text
