"""Every pass keeps the value and is idempotent; the validator rejects broken programs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import tncompiler as tnc
from tests.test_semantics_helpers import evaluate, rand, same
from tncompiler.ir.builder import Builder
from tncompiler.ir.errors import InvalidProgram
from tncompiler.ir.lift import lift
from tncompiler.ir.lower import lower
from tncompiler.ir.passes import LOGICAL_PASSES, PASSES, SCHEDULED_PASSES, load_pass, run_passes
from tncompiler.ir.passes.adjoint import adjoint
from tncompiler.ir.passes.slicing import slice_index
from tncompiler.ir.program import (
    Argument,
    Cast,
    Concat,
    Contract,
    Literal,
    Map,
    Merge,
    Pad,
    Permute,
    Program,
    Reduce,
    Slice,
    Split,
    Step,
    Value,
)
from tncompiler.ir.validate import validate
from tncompiler.planning.machine import as_machine
from tncompiler.planning.timing import program_us
from tncompiler.scheduling import THINNING_GAIN

I, J, K, L = tnc.indices("i j k l", i=2, j=3, k=4, l=3)
A, B, C = tnc.input("A", I, J), tnc.param("B", J, K), tnc.input("C", K)
S, T = tnc.input("S", J, L), tnc.input("T", L, J)
Z = tnc.Index("z", 0)
ONE, UNO, DUE, TRE = tnc.indices("one uno due tre", size=1)


def negated(expr):
    return -expr


CORPUS = {
    "scalar": lambda: (tnc.input("a") * 3 + tnc.input("b"),),
    "size 0": lambda: ((tnc.input("O", I, Z) @ tnc.input("P", Z, J)) + A, tnc.input("P", Z, J) * 2),
    "size 1": lambda: (tnc.input("U", I, ONE) @ tnc.input("V", ONE, J) * A,),
    "many of size 1": lambda: (
        tnc.contract(
            tnc.input("U", UNO, I, ONE, J),
            tnc.input("V", J, ONE, K, DUE),
            out=(K, UNO, I, DUE, ONE),
        )
        @ tnc.input("W", K, L, TRE),
        tnc.contract(tnc.input("V", J, ONE, K, DUE), B, tnc.input("w", ONE), out=(DUE, J)),
    ),
    "trace": lambda: (tnc.contract(S, tnc.delta(J, L), out=()),),
    "diagonal": lambda: (tnc.contract(S, tnc.delta(J, L), out=(J,)) @ A,),
    "hyperedge": lambda: (tnc.contract(A, B, S, tnc.input("h", J), out=(I, K, L)),),
    "outer product": lambda: (A * C, tnc.contract(C, tnc.input("h", J), out=(J, K))),
    "disconnected": lambda: (tnc.contract(A, C, tnc.input("D", L), out=(I,)),),
    "shared parameter": lambda: (B @ C + (B(L, K) @ C) @ S,),
    "capture": lambda: (tnc.contract((S @ T(L, J)) * tnc.input("h", J), A, out=(I,)),),
    "relabelings": lambda: (tnc.exp(S.transpose(L, J)) + T, T(J, L).transpose(L, J) * 2),
    "conj conj": lambda: (A.conj().conj() + negated(-A), A.real),
    "repeated": lambda: (tnc.tanh(A @ B) + tnc.tanh(A @ B), tnc.tanh(A @ B) * C),
    "nested": lambda: (((A @ B) @ C) * 2.0 * tnc.ones(L), (A @ tnc.delta(J, L)) @ S),
    "shapes": lambda: (
        (A * 2).merge((J, I), tnc.Index("m", 6)).split("m", (I, J)),
        tnc.concat([A, A.slice(J, 1, 3)], tnc.Index("j", 5)),
        A.pad(J, 1, 0).max("j"),
    ),
    "normalisation": lambda: (tnc.layer_norm(A, over=J), tnc.softmax(A @ B, over=(I, K))),
    "gradient": lambda: tnc.grad(tnc.tanh(tnc.tanh(A @ B) @ C).sum(), (A, B)),
    "bare sums": lambda: ((tnc.ones(I, J) * C).sum(I), tnc.ones(J, L).sum()),
    "dead": lambda: (tnc.where(A > 0, A, A * A), A * 0),
    "broadcast": lambda: (A * tnc.ones(K), tnc.maximum(A * tnc.ones(K), C * tnc.ones(I, J))),
    "same output twice": lambda: (A * 2, A * 2, A),
}
MANY = tnc.indices(" ".join(f"q{n}" for n in range(56)), size=1)
CORPUS["56 indices"] = lambda: (
    tnc.contract(tnc.input("Q", *MANY[:30]), tnc.input("R", *MANY[20:]), out=MANY[:20]),
)


def arrays_of(outputs) -> dict[str, np.ndarray]:
    leaves = {leaf.name: leaf for output in outputs for leaf in output.leaves}
    return {name: rand(*leaf.shape, seed=n) for n, (name, leaf) in enumerate(leaves.items())}


def lifted(program: Program, outputs):
    return lift(program, {leaf.name: leaf for output in outputs for leaf in output.leaves})


def values(outputs, arrays) -> list[np.ndarray]:
    return [np.asarray(value) for value in evaluate(tuple(outputs), arrays)]


@pytest.fixture(scope="module", params=CORPUS)
def case(request):
    outputs = CORPUS[request.param]()
    arrays = arrays_of(outputs)
    return outputs, arrays, values(outputs, arrays)


@pytest.mark.parametrize("dtype", ["default", "float64", "bfloat16"])
@pytest.mark.parametrize("name", PASSES)
def test_every_pass_yields_a_valid_program_and_is_idempotent(case, name: str, dtype: str) -> None:
    """a pass takes valid IR and returns valid IR; returns the same object when nothing changed"""
    outputs, _, _ = case
    apply = load_pass(name)
    program = validate(lower(outputs, default_dtype=dtype))
    once = validate(apply(program))
    assert apply(once) is once or apply(once) == once, f"{name} is not idempotent"


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_returns_the_same_object_when_done(case, name: str) -> None:
    """returns the same object when it has nothing to do"""
    outputs, _, _ = case
    apply = load_pass(name)
    once = apply(lower(outputs, default_dtype="float64"))
    while (again := apply(once)) != once:
        once = again
    assert apply(once) is once


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_keeps_the_value(case, name: str) -> None:
    """Properties: a pass keeps the value"""
    outputs, arrays, expected = case
    program = load_pass(name)(lower(outputs))
    for got, value in zip(values(lifted(program, outputs), arrays), expected, strict=True):
        same(got, value)


@pytest.mark.parametrize("table", [LOGICAL_PASSES, SCHEDULED_PASSES])
def test_the_tables_together_keep_the_value(case, table) -> None:
    outputs, arrays, expected = case
    program = run_passes(lower(outputs), table)
    for got, value in zip(values(lifted(program, outputs), arrays), expected, strict=True):
        same(got, value)


def test_lifting_alone_keeps_the_value(case) -> None:
    outputs, arrays, expected = case
    for got, value in zip(values(lifted(lower(outputs), outputs), arrays), expected, strict=True):
        same(got, value)


def test_a_wrong_pass_would_be_noticed(case) -> None:
    """The helpers above can fail."""
    outputs, arrays, expected = case
    spoilt = [output + 1.0 for output in lifted(lower(outputs), outputs)]
    got = values(spoilt, arrays)
    if any(value.size for value in expected):
        with pytest.raises(AssertionError):
            for g, value in zip(got, expected, strict=True):
                same(g, value)


@pytest.mark.parametrize("name", PASSES)
def test_passes_keep_arguments_and_output_count(case, name: str) -> None:
    """Inputs, outputs and values stay."""
    outputs, _, _ = case
    program = lower(outputs, default_dtype="float64")
    after = load_pass(name)(program)
    assert after.arguments == program.arguments
    scales = len(after.outputs) - len(program.outputs)
    assert scales == 0 or (name == "carry_exponents" and scales > 0)
    for old, new in zip(program.outputs, after.outputs, strict=False):
        assert after.values[new].shape == program.values[old].shape
        assert after.values[new].dtype == program.values[old].dtype


@pytest.mark.parametrize("name", PASSES)
def test_passes_work_on_adjoint_programs(case, name: str) -> None:
    outputs, _, _ = case
    program = lower(outputs, default_dtype="float64")
    wrt = [a.value.name for a in program.arguments]
    joint = validate(adjoint(program, wrt))
    apply = load_pass(name)
    once = validate(apply(joint))
    assert apply(once) == once


def test_the_runner_validates_and_shows_changes() -> None:
    """The runner validates after every pass and hands each change to an optional watcher"""
    seen = []
    program = lower((tnc.tanh(A @ B) + tnc.tanh(A @ B),))
    run_passes(program, LOGICAL_PASSES, watcher=lambda n, b, a: seen.append((n, b is a)))
    assert "merge_common_steps" in [name for name, _ in seen]
    assert not any(same_object for _, same_object in seen)


def test_flattening_makes_one_contraction() -> None:
    program = run_passes(lower((((A @ B) @ C) @ tnc.input("e", I),)), LOGICAL_PASSES)
    assert [len(step.operands) for step in program.steps] == [4]


def test_deltas_and_ones_vanish() -> None:
    """never materialised when an algebraic rewrite removes them"""
    outputs = ((A @ tnc.delta(J, L)) @ S, (A * tnc.ones(K)).sum(J, K))
    program = run_passes(lower(outputs), LOGICAL_PASSES)
    assert all(step.operands or isinstance(step.op, Literal) for step in program.steps)


def test_dead_steps_are_dropped() -> None:
    program = lower((A * 2, tnc.exp(A)))
    short = replace(program, outputs=program.outputs[:1])
    assert len(load_pass("drop_dead_steps")(short).steps) < len(short.steps)


def test_low_precision_is_widened() -> None:
    program = lower((A @ B,), default_dtype="bfloat16")
    wide = load_pass("widen_low_precision")(program)
    contraction = next(s for s in wide.steps if isinstance(s.op, Contract))
    assert contraction.out.dtype == "float32"
    assert wide.values[wide.outputs[0]].dtype == "bfloat16"


# The validator ------------------------------------------------------------------------------------

P = Value("p", (2, 3), "float32", ("i", "j"))
Q = Value("q", (3, 4), "float32", ("j", "k"))


def with_step(op, operands=("p",), shape=(2, 3), axes=None, outputs=("t",)) -> Program:
    out = Value("t", tuple(shape), "float32", tuple(axes or [f"a{n}" for n in range(len(shape))]))
    arguments = (Argument(P, "input"), Argument(Q, "input"))
    return Program(arguments, (Step(out, op, tuple(operands)),), tuple(outputs))


MATMUL = Contract(((0, 1), (1, 2)), (0, 2))

BROKEN: dict[str, Callable[[], Program]] = {
    "undefined operand": lambda: with_step(Map("exp", ((0, 1),)), ["nobody"]),
    "undefined output": lambda: with_step(Map("exp", ((0, 1),)), outputs=["nobody"]),
    "defined twice": lambda: replace(
        with_step(Map("exp", ((0, 1),))),
        arguments=(Argument(P, "input"), Argument(replace(P, name="t"), "input")),
    ),
    "two arguments of one name": lambda: replace(
        with_step(Map("exp", ((0, 1),))), arguments=(Argument(P, "input"), Argument(P, "input"))
    ),
    "use before definition": lambda: replace(
        with_step(Map("exp", ((0, 1),))),
        steps=(
            Step(Value("u", (2, 3), "float32", ("i", "j")), Map("exp", ((0, 1),)), ("t",)),
            Step(Value("t", (2, 3), "float32", ("i", "j")), Map("exp", ((0, 1),)), ("p",)),
        ),
    ),
    "axes without names": lambda: with_step(Map("exp", ((0, 1),)), axes=("i",)),
    "contraction of another count": lambda: with_step(MATMUL, ["p"], (2, 4)),
    "labels not numbered": lambda: with_step(
        Contract(((5, 1), (1, 2)), (5, 2)), ["p", "q"], (2, 4)
    ),
    "label with two sizes": lambda: with_step(
        Contract(((0, 1), (0, 2)), (1, 2)), ["p", "q"], (3, 4)
    ),
    "labels of another rank": lambda: with_step(
        Contract(((0,), (1, 2)), (0, 2)), ["p", "q"], (2, 4)
    ),
    "wrong output size": lambda: with_step(MATMUL, ["p", "q"], (2, 5)),
    "wrong output rank": lambda: with_step(MATMUL, ["p", "q"], (2,)),
    "map of another arity": lambda: with_step(Map("add", ((0, 1),)), ["p"]),
    "map of another wiring": lambda: with_step(Map("exp", ((0, 1), (0, 1))), ["p", "p"]),
    "map that repeats an axis": lambda: with_step(Map("exp", ((0, 0),)), ["p"], (2,)),
    "map to another size": lambda: with_step(Map("exp", ((0, 1),)), ["p"], (2, 4)),
    "map beyond its output": lambda: with_step(Map("exp", ((0, 7),)), ["p"]),
    "map with a bare axis": lambda: with_step(Map("exp", ((0, 1),)), ["p"], (2, 3, 4)),
    "map of an unknown function": lambda: with_step(Map("frobnicate", ((0, 1),)), ["p"]),
    "reduce to another shape": lambda: with_step(Reduce("max", (0,)), ["p"], (2,)),
    "reduce over an axis that is not there": lambda: with_step(Reduce("max", (5,)), ["p"], (2, 3)),
    "unknown reduction": lambda: with_step(Reduce("median", (0,)), ["p"], (3,)),
    "split that does not multiply out": lambda: with_step(Split(0, 2), ["p"], (2, 2, 3)),
    "merge that does not multiply out": lambda: with_step(Merge(0, 2), ["p"], (7,)),
    "slice to another size": lambda: with_step(Slice(1, 0, 2), ["p"], (2, 3)),
    "slice beyond its source": lambda: with_step(Slice(1, 2, 5), ["p"], (2, 3)),
    "slice backwards": lambda: with_step(Slice(1, -3, 0), ["p"], (2, 3)),
    "pad to another size": lambda: with_step(Pad(1, 1, 1), ["p"], (2, 4)),
    "concat of other shapes": lambda: with_step(Concat(0), ["p", "q"], (5, 3)),
    "concat to another size": lambda: with_step(Concat(0), ["p", "p"], (5, 3)),
    "concat along no axis": lambda: with_step(Concat(4), ["p", "p"], (4, 3)),
    "concat of nothing": lambda: with_step(Concat(0), [], (0, 3)),
    "cast to another shape": lambda: with_step(Cast(), ["p"], (3, 2)),
    "cast of two": lambda: with_step(Cast(), ["p", "p"]),
    "literal with operands": lambda: with_step(Literal(1), ["p"], ()),
    "literal with axes": lambda: with_step(Literal(1), [], (2,)),
    "unknown dtype": lambda: replace(
        with_step(Map("exp", ((0, 1),))),
        steps=(Step(Value("t", (2, 3), "float7", ("i", "j")), Map("exp", ((0, 1),)), ("p",)),),
    ),
    "operands of two dtypes": lambda: replace(
        with_step(MATMUL, ["p", "q"], (2, 4)),
        arguments=(Argument(P, "input"), Argument(replace(Q, dtype="float64"), "input")),
    ),
    "map that changes the dtype": lambda: replace(
        with_step(Map("exp", ((0, 1),))),
        steps=(Step(Value("t", (2, 3), "float64", ("i", "j")), Map("exp", ((0, 1),)), ("p",)),),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_validator_rejects(name: str) -> None:
    """A program breaks a rule of the IR: InvalidProgram, never another error."""
    with pytest.raises(InvalidProgram):
        validate(BROKEN[name]())


def test_the_validator_accepts_what_the_broken_ones_are_made_of() -> None:
    validate(with_step(MATMUL, ["p", "q"], (2, 4)))
    validate(with_step(Map("exp", ((0, 1),))))
    validate(with_step(Reduce("max", (0,)), ["p"], (3,)))
    validate(with_step(Slice(1, 0, 2), ["p"], (2, 2)))
    validate(with_step(Pad(1, 1, 1), ["p"], (2, 5)))
    validate(with_step(Concat(0), ["p", "p"], (4, 3)))
    validate(with_step(Split(0, 2), ["p"], (2, 1, 3)))
    validate(with_step(Merge(0, 2), ["p"], (6,)))


def test_a_scheduled_program_has_at_most_two_operands() -> None:
    program = with_step(Contract(((0, 1), (1, 2), (0, 1)), (0, 2)), ["p", "q", "p"], (2, 4))
    validate(program)
    with pytest.raises(InvalidProgram, match="two operands"):
        validate(program, scheduled=True)


def test_the_runner_catches_a_pass_that_breaks_a_program(monkeypatch) -> None:
    """validated in between"""
    monkeypatch.setitem(PASSES, "saboteur", "dead:drop_dead_steps")
    import tncompiler.ir.passes.dead as dead

    monkeypatch.setattr(dead, "drop_dead_steps", lambda program: replace(program, outputs=("x9",)))
    with pytest.raises(InvalidProgram):
        run_passes(lower((A * 2,)), ["saboteur"])


def in_two_steps() -> Program:
    u = Value("u", (2, 3), "float32", ("i", "j"))
    program = with_step(MATMUL, ["u", "q"], (2, 4))
    return replace(program, steps=(Step(u, Map("exp", ((0, 1),)), ("p",)), *program.steps))


def in_a_loop() -> Program:
    return slice_index(with_step(Map("exp", ((0, 1),))), ("p", 0), 1)


def with_another(value: Value, **changed) -> Callable[[Program], Program]:
    other = replace(value, **changed)
    return lambda good: replace(
        good,
        arguments=tuple(replace(a, value=other) if a.value == value else a for a in good.arguments),
    )


def with_a_step_of_another_shape(good: Program) -> Program:
    first, last = good.steps
    wide = replace(first, out=replace(first.out, shape=(2, 5)), op=Pad(1, 0, 2))
    return replace(good, steps=(wide, last))


def without_results(good: Program) -> Program:
    loop, pick = good.steps
    body = replace(loop.op.body, outputs=())
    return replace(good, steps=(replace(loop, op=replace(loop.op, body=body, joined=())), pick))


BROKEN_LATER = {
    "another argument": (in_two_steps, with_another(Q, shape=(5, 4))),
    "an argument of another dtype": (in_two_steps, with_another(Q, dtype="float64")),
    "another operand": (in_two_steps, with_a_step_of_another_shape),
    "a step too few": (in_two_steps, lambda good: replace(good, steps=good.steps[1:])),
    "another order": (in_two_steps, lambda good: replace(good, steps=good.steps[::-1])),
    "a step twice": (in_two_steps, lambda good: replace(good, steps=good.steps * 2)),
    "another loop": (in_a_loop, without_results),
}


@pytest.mark.parametrize("name", BROKEN_LATER)
def test_what_breaks_a_program_is_found_beside_steps_that_are_known(name: str) -> None:
    """A step that was found valid is looked at again once something that it reads has changed."""
    make, spoil = BROKEN_LATER[name]
    good = make()
    assert validate(good, known=good) is good
    with pytest.raises(InvalidProgram):
        validate(spoil(good), known=good)


def test_known_steps_are_not_looked_at_again() -> None:
    broken = BROKEN["wrong output size"]()
    assert validate(broken, known=broken) is broken


def test_builders_leave_trivial_steps_out() -> None:
    builder = Builder("float32")
    p = builder.argument(P, "input")
    assert builder.cast(p, "float32") is p
    assert builder.contract((p,), ((0, 1),), (0, 1), p.shape, p.axes) is p
    assert builder.map("conj", (p,), ((0, 1),), p.shape, p.axes) is p
    assert builder.steps == []


def test_axes_of_size_1_cost_no_copies() -> None:
    """a rank of 1 stands between two axes that a product reads as one"""
    b, i, j, k, r, o = tnc.indices("b i j k r o", b=256, i=32, j=32, k=32, r=1, o=32)
    x, right, left = tnc.input("x", b, i, j), tnc.param("R", i, j, k, r), tnc.param("L", k, r, i, o)
    monarch = tnc.contract(x, right, left, out=(b, k, o))
    wide = tnc.contract(x, tnc.param("Q", i, j, k), tnc.param("P", k, i, o), out=(b, k, o))
    for part in ("forward", "step"):
        found, wanted = (
            tnc.compile(net, framework="numpy").program(part=part) for net in (monarch, wide)
        )
        copies, least = (
            [s for s in program.steps if isinstance(s.op, Permute)] for program in (found, wanted)
        )
        assert len(copies) <= len(least)
        rates = as_machine("reference").planning
        assert program_us(found, {}, rates) <= program_us(wanted, {}, rates) / THINNING_GAIN
