"""Scans: against loops written out, torch's own LSTM and GRU, and themselves under limits."""

import json
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import tncompiler as tnc
from tests import oracle
from tests.fuzz import check_network
from tests.networks import Case
from tncompiler.ir.errors import (
    ArgumentError,
    FileFormatError,
    NameClash,
    PlanError,
    ScanError,
    StateMismatch,
    UnknownIndex,
)
from tncompiler.ir.expressions import Expr, Scan, walk
from tncompiler.ir.reference import evaluate

STEPS, BATCH, INPUTS, HIDDEN = 6, 3, 4, 5

rng = np.random.default_rng(0)


def indices(steps: int = STEPS) -> tuple[tnc.Index, ...]:
    return tnc.indices("t b i h k g", t=steps, b=BATCH, i=INPUTS, h=HIDDEN, k=HIDDEN, g=4)


def elman(steps: int = STEPS, *, reverse: bool = False) -> tuple[Expr, Expr]:
    """h ← tanh(x W + h U): the last state and all states."""
    t, b, i, h, k, _ = indices(steps)
    x, first = tnc.input("x", t, b, i), tnc.input("first", b, h)
    w, u = tnc.param("W", i, h), tnc.param("U", k, h)

    def cell(state: Expr, part: Expr) -> tuple[Expr, Expr]:
        carried = tnc.contract(state.rename({h: k}), u, out=(b, h))
        new = tnc.tanh(tnc.contract(part, w, out=(b, h)) + carried)
        return new, new

    last, every = tnc.scan(cell, first, x, over=t, reverse=reverse)
    return last, every


def elman_arrays(steps: int = STEPS) -> dict[str, np.ndarray]:
    shapes = {"x": (steps, BATCH, INPUTS), "first": (BATCH, HIDDEN)}
    shapes |= {"W": (INPUTS, HIDDEN), "U": (HIDDEN, HIDDEN)}
    return {name: rng.standard_normal(shape) * 0.5 for name, shape in shapes.items()}


def elman_by_hand(arrays: dict[str, Any], order: Sequence[int]) -> dict[int, Any]:
    """Every state by position, for arrays or tensors."""
    state, states = arrays["first"], {}
    for position in order:
        inner = arrays["x"][position] @ arrays["W"] + state @ arrays["U"]
        state = np.tanh(inner) if isinstance(inner, np.ndarray) else torch.tanh(inner)
        states[position] = state
    return states


def numpy_function(outputs: Any, arrays: dict[str, np.ndarray], **options: Any) -> Any:
    made = tnc.compile(outputs, framework="numpy", dtype="float64", seed=0, **options)
    for name in made.parameters:
        made.parameters[name] = arrays[name]
    return made


def inputs_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: arrays[name] for name in ("x", "first")}


# ---------------------------------------------------------------------------- what a scan means


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, STEPS])
def test_a_scan_is_its_cell_written_out(steps: int, reverse: bool) -> None:
    arrays = elman_arrays(steps)
    order = range(steps)[:: -1 if reverse else 1]
    states = elman_by_hand(arrays, order)
    last, every = numpy_function(elman(steps, reverse=reverse), arrays)(**inputs_of(arrays))
    np.testing.assert_allclose(last, states[order[-1]] if steps else arrays["first"], atol=1e-12)
    expected = [states[k] for k in range(steps)] or np.zeros((0, BATCH, HIDDEN))
    np.testing.assert_allclose(every, expected, atol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_those_of_the_loop_written_out(backend: str, reverse: bool) -> None:
    arrays = elman_arrays()
    module = tnc.compile(elman(reverse=reverse), backend=backend, dtype=torch.float64)
    own = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(own[name])
    given = {name: own[name].detach().requires_grad_() for name in ("x", "first")}
    last, every = module(**given)
    weights = torch.tensor(rng.standard_normal(every.shape))
    ((every * weights).sum() + last.square().sum()).backward()
    order = range(STEPS)[:: -1 if reverse else 1]
    states = elman_by_hand(own, order)
    loss = sum((states[k] * weights[k]).sum() for k in order) + states[order[-1]].square().sum()
    loss.backward()
    found = {**given, **dict(module.named_parameters())}
    for name, tensor in own.items():
        torch.testing.assert_close(found[name].grad, tensor.grad, atol=1e-10, rtol=1e-10)


def test_the_reference_interpreter_goes_through_positions() -> None:
    arrays = elman_arrays()
    last, every = elman()
    states = elman_by_hand(arrays, range(STEPS))
    np.testing.assert_allclose(evaluate(last, arrays).value, states[STEPS - 1], atol=1e-12)
    np.testing.assert_allclose(evaluate(every, arrays).value[2], states[2], atol=1e-12)


def test_states_and_outputs_come_in_the_containers_they_were_given_in() -> None:
    t, b = tnc.indices("t b", t=3, b=2)
    x = tnc.input("x", t, b)
    states, outputs = tnc.scan(
        lambda s, v: ({"n": s["n"] + 1.0, "sum": s["sum"] + v["x"]}, (s["n"], v["x"])),
        {"n": tnc.ones(b) * 0.0, "sum": tnc.ones(b)},
        {"x": x},
        over=t,
    )
    f = tnc.compile((states["n"], states["sum"], *outputs), framework="numpy", dtype="float64")
    value = np.arange(6.0).reshape(3, 2)
    n, total, counted, same = f(value)
    np.testing.assert_array_equal(n, [3, 3])
    np.testing.assert_array_equal(total, 1 + value.sum(0))
    np.testing.assert_array_equal(counted, [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(same, value)


def test_a_cell_without_inputs_is_applied_over_and_over() -> None:
    i, j, n = tnc.indices("i j n", i=3, j=3, n=7)
    a, v = tnc.input("A", i, j), tnc.input("v", j)
    last, nothing = tnc.scan(lambda s: ((a @ s).rename({i: j}), None), v, over=n)
    assert nothing is None
    matrix, vector = rng.standard_normal((3, 3)), rng.standard_normal(3)
    f = tnc.compile(last, framework="numpy", dtype="float64")
    expected = np.linalg.matrix_power(matrix, 7) @ vector
    np.testing.assert_allclose(f(A=matrix, v=vector), expected, rtol=1e-10)


def test_cells_within_cells() -> None:
    t, i = tnc.indices("t i", t=4, i=5)
    x = tnc.input("x", t, i)

    def row(total: Expr, part: Expr) -> tuple[Expr, Expr]:
        inner, running = tnc.scan(lambda s, v: (s + v * total, s + v), total * 0.0, part, over=i)
        return total + inner, running

    last, every = tnc.scan(row, x.sum(t, i) * 0.0 + 1.0, x, over=t)
    value = rng.standard_normal((4, 5))
    f = tnc.compile((last, every), framework="numpy", dtype="float64")
    total, expected = 1.0, []
    for part in value:
        inner, running = 0.0, []
        for v in part:
            running.append(inner + v)
            inner = inner + v * total
        expected.append(running)
        total += inner
    made = f(value)
    np.testing.assert_allclose(made[0], total)
    np.testing.assert_allclose(made[1], expected)


def test_a_length_may_stay_free() -> None:
    t, b = tnc.Index("t"), tnc.Index("b")
    x = tnc.input("x", t, b)
    _, sums = tnc.scan(lambda s, v: (s + v,) * 2, x.sum(t) * 0.0, x, over=t)
    f = tnc.compile(sums, framework="numpy", dtype="float64")
    for shape in ((3, 2), (7, 1), (0, 4)):
        value = rng.standard_normal(shape)
        np.testing.assert_allclose(f(value), np.cumsum(value, 0), atol=1e-12)


# ---------------------------------------------------------------------------- LSTM and GRU


def weights_like(module: torch.nn.Module, gates: int) -> dict[str, torch.Tensor]:
    """The layer's weights with an index for the gates, and its biases apart."""
    return {
        "W": module.weight_ih_l0.reshape(gates, -1, INPUTS),
        "U": module.weight_hh_l0.reshape(gates, -1, HIDDEN),
        "p": module.bias_ih_l0.reshape(gates, -1),
        "q": module.bias_hh_l0.reshape(gates, -1),
    }


def gates_of(count: int) -> tuple[Callable[[Expr], Any], Callable[[Expr], Any]]:
    _, b, i, h, k, _ = indices()
    g = tnc.Index("g", count)
    w, u = tnc.param("W", g, h, i), tnc.param("U", g, h, k)
    p, q = tnc.param("p", g, h), tnc.param("q", g, h)

    def apart(sums: Expr) -> list[Expr]:
        return [sums.select(g, number) for number in range(count)]

    return (
        lambda v: apart(tnc.contract(v, w, out=(g, b, h)) + p),
        lambda s: apart(tnc.contract(s.rename({h: k}), u, out=(g, b, h)) + q),
    )


def recurrent(kind: str) -> tuple[Expr, ...]:
    """Outputs and last states of an LSTM or a GRU, in torch's order."""
    t, b, i, h, *_ = indices()
    x, h0, c0 = tnc.input("x", t, b, i), tnc.input("h0", b, h), tnc.input("c0", b, h)
    if kind == "LSTM":
        (last, c), every = tnc.scan(tnc.lstm_cell(*gates_of(4)), (h0, c0), x, over=t)
        return every, last, c
    last, every = tnc.scan(tnc.gru_cell(*gates_of(3)), h0, x, over=t)
    return every, last


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_lstm_and_gru_agree_with_torch(kind: str, backend: str) -> None:
    theirs = getattr(torch.nn, kind)(INPUTS, HIDDEN).double()
    ours = tnc.compile(recurrent(kind), backend=backend, dtype=torch.float64)
    wanted = weights_like(theirs, 4 if kind == "LSTM" else 3)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(wanted[name])
    shapes = {"x": (STEPS, BATCH, INPUTS), "h0": (BATCH, HIDDEN), "c0": (BATCH, HIDDEN)}
    names = ["x", "h0", *(["c0"] if kind == "LSTM" else [])]
    given = {n: torch.tensor(rng.standard_normal(shapes[n]), requires_grad=True) for n in names}
    states = [given[n][None] for n in names[1:]]
    every, last = theirs(given["x"], tuple(states) if len(states) > 1 else states[0])
    expected = [every, *(part[0] for part in (last if isinstance(last, tuple) else (last,)))]
    made = ours(**given)
    for value, other in zip(made, expected, strict=True):
        torch.testing.assert_close(value, other, atol=1e-12, rtol=1e-12)
    cotangents = [torch.tensor(rng.standard_normal(value.shape)) for value in made]
    flat = [theirs.weight_ih_l0, theirs.weight_hh_l0, theirs.bias_ih_l0, theirs.bias_hh_l0]
    own = [dict(ours.named_parameters())[name] for name in "WUpq"]
    found = torch.autograd.grad(made, [*given.values(), *own], cotangents)
    right = torch.autograd.grad(expected, [*given.values(), *flat], cotangents)
    for value, other in zip(found, right, strict=True):
        torch.testing.assert_close(value.reshape(other.shape), other, atol=1e-10, rtol=1e-10)


# ---------------------------------------------------------------------------- on every backend

NAMED: dict[str, Callable[[], tuple[Expr, ...]]] = {
    "states and outputs": elman,
    "last position first": lambda: elman(reverse=True),
    "LSTM": lambda: recurrent("LSTM"),
    "GRU": lambda: recurrent("GRU"),
    "no position": lambda: elman(0),
}


@pytest.mark.parametrize("runner", oracle.RUNNERS)
@pytest.mark.parametrize("name", NAMED)
def test_scans_agree_with_the_oracle_on_every_runner(runner: str, name: str) -> None:
    outputs = NAMED[name]()
    leaves = {leaf.name: leaf for output in outputs for leaf in output.leaves}
    made = np.random.default_rng(5)

    def numbers(shape: tuple[Any, ...]) -> np.ndarray:
        return (0.5 * made.standard_normal(shape)).astype(np.float32)

    arrays = {name: numbers(leaf.shape) for name, leaf in leaves.items()}
    cotangents = tuple(numbers(output.shape) for output in outputs)
    case = Case(0, outputs, arrays, "float32", cotangents, tuple(arrays))
    check_network(case, (runner,))


# ---------------------------------------------------------------------------- derivatives


def test_grad_of_a_scan_is_an_expression() -> None:
    arrays = elman_arrays()
    last, every = elman()
    leaves = {leaf.name: leaf for leaf in every.leaves}
    loss = (every * every).sum() + last.sum()
    gradient = tnc.grad(loss, leaves["U"])
    found = numpy_function(gradient, arrays)(**inputs_of(arrays))
    own = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    states = elman_by_hand(own, range(STEPS))
    (sum(s.square().sum() for s in states.values()) + states[STEPS - 1].sum()).backward()
    np.testing.assert_allclose(found, own["U"].grad, atol=1e-10)
    np.testing.assert_allclose(evaluate(gradient, arrays).value, own["U"].grad, atol=1e-10)


def test_forward_mode_agrees_with_reverse_mode() -> None:
    arrays = elman_arrays()
    f = numpy_function(elman()[1], arrays)
    given = inputs_of(arrays)
    tangents = {name: rng.standard_normal(array.shape) for name, array in given.items()}
    _, moved = f.jvp(**given, tangents=tangents)
    value, pull = f.vjp(**given)
    cotangent = rng.standard_normal(value.shape)
    gradients = pull(cotangent)
    across = sum((gradients[name] * tangent).sum() for name, tangent in tangents.items())
    np.testing.assert_allclose((cotangent * moved).sum(), across, rtol=1e-10)


def test_jvp_of_a_scan_is_an_expression() -> None:
    arrays = elman_arrays()
    every = elman()[1]
    (x,) = (leaf for leaf in every.leaves if leaf.name == "x")
    moved = tnc.jvp(every, {x: tnc.input("dx", *x.indices)})
    direction = rng.standard_normal(arrays["x"].shape)
    eps = 1e-6
    high, low = (
        evaluate(every, {**arrays, "x": arrays["x"] + sign * eps * direction}).value
        for sign in (1, -1)
    )
    found = evaluate(moved, {**arrays, "dx": direction}).value
    np.testing.assert_allclose(found, (high - low) / (2 * eps), atol=1e-7)


def test_second_derivatives() -> None:
    module = tnc.compile(elman(3)[0], backend="numpy", dtype=torch.float64, seed=0)
    x = torch.tensor(rng.standard_normal((3, BATCH, INPUTS)), requires_grad=True)
    first = torch.tensor(rng.standard_normal((BATCH, HIDDEN)), requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, b: module(x=a, first=b), (x, first))


def test_torch_looks_into_a_scan() -> None:
    module = tnc.compile(elman(3)[1], backend="torch", dtype=torch.float64, seed=0)
    x = torch.tensor(rng.standard_normal((4, 3, BATCH, INPUTS)))
    first = torch.tensor(rng.standard_normal((BATCH, HIDDEN)))
    plain = torch.stack([module(x=one, first=first) for one in x])
    mapped = torch.func.vmap(lambda one: module(x=one, first=first))(x)
    torch.testing.assert_close(mapped, plain)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x=x[0], first=first), plain[0])


# ---------------------------------------------------------------------------- what is made of it


def lines_of(text: str) -> int:
    return len(text.splitlines())


def test_source_and_plan_do_not_grow_with_the_length() -> None:
    few, many = (tnc.compile(elman(steps), framework="numpy", seed=0) for steps in (512, 2048))
    for part in ("forward", "backward"):
        assert lines_of(few.source(part=part)) == lines_of(many.source(part=part))
    assert len(few.plan().steps) == len(many.plan().steps)
    assert many.cost().flops == 4 * few.cost().flops


def test_what_depends_on_no_state_is_made_for_all_positions_at_once() -> None:
    f = tnc.compile(elman(), framework="numpy", seed=0)
    before, inside = f.source().split("for ")
    assert "@ W" in before and "@ U" in inside
    assert "@ W" not in inside


def test_gradients_of_weights_are_taken_after_the_loop() -> None:
    text = tnc.compile(elman(), framework="numpy", seed=0).source(part="backward")
    assert "RunningSum" not in text
    body, after = text.split("for ")[1].split("return")[0].split("\n    del", 1)
    assert "@ U.T" in body and ".T @" in after


def test_networks_of_weights_alone_are_contracted_before_the_loop() -> None:
    t, h, k, r = tnc.indices("t h k r", t=200, h=32, k=32, r=2)
    a, b, first = tnc.param("A", k, r), tnc.param("B", r, h), tnc.input("first", h)
    last, _ = tnc.scan(
        lambda s: (tnc.tanh(tnc.contract(s.rename({h: k}), tnc.relu(a), b, out=(h,))), None),
        first,
        over=t,
    )
    text = tnc.compile(last, framework="numpy", seed=0).source()
    assert "np.maximum" not in text.split("for ")[1]


def test_explain_and_costs_count_every_position() -> None:
    f = tnc.compile(elman(), framework="numpy", seed=0)
    flops = 2 * STEPS * BATCH * HIDDEN * (INPUTS + HIDDEN)
    assert f.cost().flops == flops
    assert f"{STEPS} times" in f.explain()


def test_predicted_peak_is_what_is_taken() -> None:
    f = numpy_function(elman(512), elman_arrays(512))
    arrays = inputs_of(elman_arrays(512))
    f(**arrays)
    tracemalloc.start()
    f(**arrays)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    predicted = f.cost().peak_bytes
    assert abs(peak - predicted) < 0.1 * predicted


# ---------------------------------------------------------------------------- save or recompute


def deep_cell(steps: int) -> Expr:
    """A cell whose values take more memory than its state."""
    t, b, h, k = tnc.indices("t b h k", t=steps, b=16, h=32, k=32)
    numbers = np.sin(np.arange(steps * 16 * 32.0)).reshape(steps, 16, 32)
    x = tnc.constant("x", t, b, h, value=numbers)
    first, u = tnc.input("first", b, h), tnc.param("U", k, h)

    def cell(state: Expr, part: Expr) -> tuple[Expr, None]:
        new = tnc.tanh(part + tnc.contract(state.rename({h: k}), u, out=(b, h)))
        return tnc.tanh(new * 2.0) * tnc.sigmoid(new), None

    return tnc.scan(cell, first, x, over=t)[0]


STATE = 16 * 32 * 4  # bytes of the state of `deep_cell`


def training_plan(steps: int, **options: Any) -> tnc.ContractionPlan:
    return tnc.plan(deep_cell(steps), options=tnc.PlanOptions(training=True, **options))


def test_without_a_limit_every_value_is_kept() -> None:
    plan = training_plan(64)
    assert len(plan.saved) > 1 and plan.recomputed == ()


def test_under_a_limit_states_are_kept_and_values_made_again() -> None:
    plan = training_plan(64, memory_limit=100 * STATE)
    assert plan.saved == ("state0_all",)
    assert plan.recomputed and plan.peak_memory <= 100 * STATE


def test_under_a_low_limit_only_states_between_segments_are_kept() -> None:
    plan = training_plan(64, memory_limit=55 * STATE)
    assert "state0_all" in plan.saved and plan.peak_memory <= 55 * STATE
    kept = next(step for step in plan.steps if step.name == "state0_all")
    assert kept.shape == ("8", "16", "32")
    with pytest.raises(PlanError, match="memory_limit"):
        training_plan(64, memory_limit=10 * STATE)


def test_recomputation_can_be_asked_for_and_refused() -> None:
    assert training_plan(64, recompute="always").recomputed
    with pytest.raises(PlanError, match="memory_limit"):
        training_plan(64, recompute="never", memory_limit=55 * STATE)


@pytest.mark.parametrize("steps", [16, 19, 23])
@pytest.mark.parametrize("limit", [None, 40 * STATE, "least"])
def test_gradients_are_right_within_every_limit(steps: int, limit: Any) -> None:
    first = rng.standard_normal((16, 32)).astype(np.float32)
    cotangent = rng.standard_normal((16, 32)).astype(np.float32)
    if limit == "least":
        with pytest.raises(PlanError, match="give memory_limit=") as refused:
            training_plan(steps, memory_limit=STATE)
        limit = int(str(refused.value.fix).split("=")[1].split()[0])
    options = tnc.PlanOptions(memory_limit=limit)
    f = tnc.compile(deep_cell(steps), framework="numpy", seed=0, plan=options)
    _, pull = f.vjp(first)
    whole = tnc.compile(deep_cell(steps), framework="numpy", seed=0)
    _, other = whole.vjp(first)
    for name, gradient in other(cotangent).items():
        limits = {"atol": 1e-5 * np.abs(gradient).max(), "rtol": 1e-5}
        np.testing.assert_allclose(pull(cotangent)[name], gradient, **limits)


def test_the_measured_peak_of_a_step_is_inside_the_limit() -> None:
    limit = 55 * STATE
    f = tnc.compile(
        deep_cell(64), framework="numpy", seed=0, plan=tnc.PlanOptions(memory_limit=limit)
    )
    first = rng.standard_normal((16, 32)).astype(np.float32)
    f.vjp(first)[1](first)
    tracemalloc.start()
    f.vjp(first)[1](first)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * limit


# ---------------------------------------------------------------------------- as JSON


def test_scans_are_written_and_read() -> None:
    arrays = elman_arrays()
    every = elman(reverse=True)[1]
    again = tnc.from_json(every.to_json())
    assert again == every
    np.testing.assert_array_equal(evaluate(again, arrays).value, evaluate(every, arrays).value)
    (leaf,) = (leaf for leaf in every.leaves if leaf.name == "U")
    gradient = tnc.grad((every * every).sum(), leaf)
    assert tnc.from_json(gradient.to_json()) == gradient


def scan_item(data: dict[str, Any]) -> dict[str, Any]:
    (item,) = (node for node in data["nodes"] if node["kind"] == "Scan")
    return item


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item.update(carried=7),
        lambda item: item.update(sliced=[None, 1, None, None]),
        lambda item: item.update(sliced="none"),
        lambda item: item.update(joined=[None]),
        lambda item: item.update(over=["t", "7"]),
        lambda item: item["operands"].pop(),
        lambda item: item["operands"].reverse(),
        lambda item: item["operands"].__setitem__(0, 99),
        lambda item: item["inside"]["outputs"].reverse(),
        lambda item: item.pop("inside"),
    ],
)
def test_altered_scans_are_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(elman()[1].to_json())
    change(scan_item(data))
    with pytest.raises(FileFormatError):
        tnc.from_json(json.dumps(data))


def test_a_scan_cannot_contain_itself() -> None:
    data = json.loads(elman()[1].to_json())
    item = scan_item(data)
    item["operands"][0] = data["nodes"].index(item)
    with pytest.raises(FileFormatError):
        tnc.from_json(json.dumps(data))


# ---------------------------------------------------------------------------- bad input


def scanned(cell: Callable[..., Any], *, over: Any = None, init: Any = None) -> Any:
    t, b, i, h, *_ = indices()
    x, first = tnc.input("x", t, b, i), tnc.input("first", b, h)
    return tnc.scan(cell, first if init is None else init, x, over=over or t)


def test_states_that_do_not_match_are_refused_with_shapes() -> None:
    with pytest.raises(StateMismatch, match=r"\(b:3, h:5\).*\(b:3, i:4\)") as caught:
        scanned(lambda state, part: (part, None))
    assert "test_scan.py" in str(caught.value) and caught.value.fix


@pytest.mark.parametrize(
    "cell",
    [
        lambda state, part: state,
        lambda state, part: ((state, state), None),
        lambda state, part: (state, None, None),
        lambda state, part: (3.0, None),
    ],
)
def test_cells_that_return_something_else_are_refused(cell: Callable[..., Any]) -> None:
    with pytest.raises(StateMismatch):
        scanned(cell)


def test_other_bad_arguments() -> None:
    t, b, *_ = indices()
    with pytest.raises(UnknownIndex, match="over z:6"):
        scanned(lambda state, part: (state, None), over=tnc.Index("z", STEPS))
    with pytest.raises(ScanError, match="has the index 't'"):
        scanned(lambda state, part: (state, None), init=tnc.input("y", t, b))
    with pytest.raises(ArgumentError):
        scanned(lambda state, part: (state, None), over="t")
    with pytest.raises(ArgumentError, match="outputs"):
        scanned(lambda state, part: (state, 3))
    with pytest.raises(ArgumentError, match="init"):
        scanned(lambda state, part: (state, None), init=(1, 2))


def test_a_state_used_outside_of_its_cell_is_refused() -> None:
    leaked: list[Expr] = []

    def cell(state: Expr, part: Expr) -> tuple[Expr, None]:
        leaked.append(state)
        return state, None

    scanned(cell)
    with pytest.raises(ScanError, match="outside"):
        tnc.compile(leaked[0] * 2.0, framework="numpy")


def test_one_name_for_two_tensors_is_refused_inside_a_cell_too() -> None:
    _, b, _, h, *_ = indices()
    one, other = tnc.param("A", h), tnc.param("A", b, h)
    with pytest.raises(NameClash, match="'A'"):
        scanned(lambda state, part: (state * one * other, None))
    last, _ = scanned(lambda state, part: (state * one, None))
    with pytest.raises(NameClash, match="'A'"):
        tnc.compile(last * other, framework="numpy")


def test_replacing_a_leaf_reaches_into_cells() -> None:
    arrays = elman_arrays()
    every = elman()[1]
    (u,) = (leaf for leaf in every.leaves if leaf.name == "U")
    doubled = every.replace(u, u * 2.0)
    expected = evaluate(every, {**arrays, "U": 2 * arrays["U"]}).value
    np.testing.assert_allclose(evaluate(doubled, arrays).value, expected, atol=1e-12)


def test_equal_scans_are_equal() -> None:
    assert elman()[1] == elman()[1]
    assert elman()[1] != elman(reverse=True)[1]
    assert len([node for node in walk(*elman()) if isinstance(node, Scan)]) == 1
