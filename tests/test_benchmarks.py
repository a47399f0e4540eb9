"""The bench: its corpus, floor, checks, timing and reports. Speed itself is never tested."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks import contest
from benchmarks.agree import Wrong, check, difference
from benchmarks.cases import (
    KINDS,
    Case,
    CaseError,
    Cell,
    append_lock,
    check_lock,
    load_cases,
    read_case,
    read_lock,
    select,
)
from benchmarks.contest import CellResult, Entry, TooSlow, find_missing, patience, run_cell
from benchmarks.floor import Floor, Rates, floor_of, measure_rates
from benchmarks.machine import machine_facts
from benchmarks.measure import LEAST_ROUNDS, SLOW_ROUNDS, Timing, time_in_turn
from benchmarks.peers import HEADLINE, OURS, PEERS, load_peer
from benchmarks.peers.base import Contestant, ForwardOnly, read_array
from benchmarks.plots import draw_plots
from benchmarks.problems import Arrays, Problem, build_problem, draw_arrays
from benchmarks.record import (
    RecordError,
    as_record,
    compare,
    read_record,
    summarise,
    write_record,
)
from benchmarks.reference import Outcome, best_tree, least_flops, oracle, tree_flops
from benchmarks.run import main
from benchmarks.table import change_table, print_results

RATES = Rates({"float32": 1e9, "float64": 1e9}, 1e9)
CORPUS = load_cases()

TINY = dict(id="tiny", kind="layer", format="TTMatrix", ins=[2, 3], outs=[3, 2], rank=2, batch=[4])
CHAIN = dict(
    id="chain",
    kind="einsum",
    equation="Bi,ij,jk->Bk",
    sizes={"i": 3, "j": 5, "k": 7},
    inputs=1,
    batch=[2],
)
CONV = dict(
    id="conv", kind="conv", format="Tucker", channels=[2, 3], image=[5, 4], kernel=3, rank=[2, 2],
    batch=[2],
)  # fmt: skip


def case_of(**changes: Any) -> Case:
    """The tiny layer, with other fields."""
    return read_case(1, {k: v for k, v in {**TINY, **changes}.items() if v is not None})


def cell_of(case: Case, part: str = "forward", dtype: str = "float32") -> Cell:
    return Cell(case, case.batch[0] if case.batch else 0, dtype, part)


def problem_of(part: str = "forward", **changes: Any) -> Problem:
    return build_problem(cell_of(case_of(**changes), part))


# The corpus -------------------------------------------------------------------------------------


def test_corpus_is_append_only() -> None:
    check_lock(CORPUS, read_lock())
    unlisted = {case.id for case in CORPUS} - set(read_lock())
    assert not unlisted, "list them: python -m benchmarks.cases --lock"


def test_lock_refuses_what_is_not_appended(tmp_path: Path) -> None:
    lock = tmp_path / "cases.lock"
    assert append_lock(lock, [case_of()]) == 1
    assert append_lock(lock, [case_of(), case_of(id="more")]) == 1
    assert append_lock(lock, [case_of(default=["*"]), case_of(id="more")]) == 0
    with pytest.raises(CaseError, match=r"'tiny', field 'id': was removed"):
        check_lock([case_of(id="more")], read_lock(lock))
    with pytest.raises(CaseError, match=r"'tiny', field '\*': computes something else"):
        check_lock([case_of(rank=3), case_of(id="more")], read_lock(lock))


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.id)
def test_every_case_builds(case: Case) -> None:
    problem = build_problem(next(case.cells()))
    assert len({operand.name for operand in problem.operands}) == len(problem.operands)
    assert problem.gradients


def test_corpus_holds_what_is_promised() -> None:
    assert {case.kind for case in CORPUS} == set(KINDS)
    formats = {case.fields["format"] for case in CORPUS if case.kind == "layer"}
    promised = {"TTMatrix", "Tucker", "CP", "TensorRing", "HT", "BlockTerm", "Kronecker", "Monarch"}
    assert promised <= formats
    cells = select(CORPUS, "all")
    assert {1, 16, 256, 4096} <= {cell.batch for cell in cells}
    assert len({cell.id for cell in cells}) == len(cells)


def test_selections_are_nested() -> None:
    quick, default, every = (
        {cell.id for cell in select(CORPUS, name)} for name in ("quick", "default", "all")
    )
    assert quick < default < every


def test_patterns_name_cases_and_cells() -> None:
    cases = [case_of(), case_of(id="more")]
    assert {cell.case.id for cell in select(cases, "all", "m*")} == {"more"}
    (one,) = select(cases, "all", "tiny/b4/float64/step")
    assert (one.batch, one.dtype, one.part) == (4, "float64", "step")


BAD = {
    "id": (dict(id="Bad id"), "id", "lower-case"),
    "kind": (dict(kind="tree"), "kind", "layer, einsum"),
    "unknown field": (dict(ranks=3), "ranks", "rank"),
    "missing field": (dict(format=None), "format", "needs it"),
    "value": (dict(rank=0), "rank", "other cases"),
    "truth": (dict(rank=True), "rank", "other cases"),
    "shape": (dict(ins="2, 3"), "ins", "other cases"),
    "dtype": (dict(dtype=["float16"]), "dtype", "other cases"),
    "pattern": (dict(default=["b8/*"]), "default", "b4/float32/forward"),
    "nesting": (dict(quick=["*"], default=["*/step"]), "quick", "let default"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_entries_name_case_field_and_fix(name: str) -> None:
    changes, field, fix = BAD[name]
    with pytest.raises(CaseError) as caught:
        case_of(**changes)
    assert caught.value.field == field
    assert repr(field) in str(caught.value)
    assert f"fix: {caught.value.fix}" in str(caught.value) and fix in caught.value.fix


UNBUILDABLE = {
    "format": (dict(format="Nonsense"), "AttributeError"),
    "rank": (dict(rank=99), "can carry at most"),
    "letter": ({**CHAIN, "sizes": {"i": 3, "j": 5}}, "'k' has no size"),
    "batch": ({**CHAIN, "batch": []}, "list"),
    "unused": ({**CHAIN, "sizes": {**CHAIN["sizes"], "z": 2}}, "no operand has 'z'"),  # type: ignore[dict-item]
    "output": ({**CHAIN, "equation": "Bi,ij,jk->Bkz"}, "'z' has no size"),
    "arrow": ({**CHAIN, "equation": "Bi,ij,jk"}, "no '->'"),
}


@pytest.mark.parametrize("name", UNBUILDABLE)
def test_descriptions_without_sense_are_refused(name: str) -> None:
    changes, words = UNBUILDABLE[name]
    entry = changes if "id" in changes else {**TINY, **changes}
    with pytest.raises(CaseError, match=words):
        build_problem(next(read_case(1, entry).cells()))


def test_ids_are_unique(tmp_path: Path) -> None:
    path = tmp_path / "cases.toml"
    entry = '[[case]]\nid = "a"\nkind = "peps"\nrows = 2\ncolumns = 2\nbond = 2\n'
    path.write_text(entry)
    assert len(load_cases(path)) == 1
    path.write_text(entry * 2)
    with pytest.raises(CaseError, match="'a', field 'id': is taken"):
        load_cases(path)
    path.write_text("[[case")
    with pytest.raises(CaseError, match="no TOML"):
        load_cases(path)


# The reference and the floor --------------------------------------------------------------------


def test_floor_of_a_product_by_hand() -> None:
    case = read_case(
        1, dict(id="m", kind="einsum", equation="ij,jk->ik", sizes=dict(i=2, j=3, k=5))
    )
    forward, step = (floor_of(build_problem(cell_of(case, part)), RATES) for part in case.part)
    assert forward.flops == 2 * 2 * 3 * 5
    assert forward.bytes == 4 * (2 * 3 + 3 * 5 + 2 * 5)
    assert forward.time_ms == pytest.approx(1e3 * 124 / 1e9)  # the bytes take longer
    assert step.flops == 3 * forward.flops
    assert step.bytes == 4 * 2 * (2 * 3 + 3 * 5 + 2 * 5)
    slow = replace(RATES, flops_per_s={"float32": 1e8})
    assert floor_of(build_problem(cell_of(case)), slow).time_ms == pytest.approx(1e3 * 60 / 1e8)


def test_tree_of_a_chain_by_hand() -> None:
    """(B i)(i j)(j k) with B 2, i 3, j 5, k 7: from the left 60 + 140, from the right 210 + 84."""
    problem = build_problem(cell_of(read_case(1, CHAIN)))
    assert tree_flops(problem, ((0, 1), (2, 3)), "forward") == 200
    assert tree_flops(problem, ((1, 2), (0, 3)), "forward") == 294
    assert best_tree(problem, "forward")[0] == 200
    assert best_tree(build_problem(cell_of(read_case(1, CHAIN), "step")), "step")[0] == 600


def test_inputs_without_gradient_cost_less() -> None:
    whole = build_problem(cell_of(read_case(1, CHAIN), "step"))
    less = build_problem(cell_of(read_case(1, {**CHAIN, "input_gradient": False}), "step"))
    assert set(whole.gradients) - set(less.gradients) == {"T0"}
    pairs = ((0, 1), (2, 3))
    assert tree_flops(whole, pairs, "step") - tree_flops(less, pairs, "step") == 60
    assert whole.numbers_moved - less.numbers_moved == 2 * 3


def test_an_outer_product_only_multiplies() -> None:
    case = read_case(1, dict(id="o", kind="einsum", equation="i,j->ij", sizes=dict(i=2, j=3)))
    assert best_tree(build_problem(cell_of(case)), "forward")[0] == 6


@pytest.mark.parametrize("equation", ["ij,jk,kl->il", "ab,cd->a", "iij,j->i", "i,i,i->"])
def test_oracle_agrees_with_numpy(equation: str) -> None:
    sizes = {letter: 2 + k for k, letter in enumerate(sorted(set(equation) - set(",->")))}
    case = read_case(1, dict(id="e", kind="einsum", equation=equation, sizes=sizes))
    problem = build_problem(cell_of(case, "step", "float64"))
    arrays = draw_arrays(problem)
    found = oracle(problem, arrays)
    given = [arrays.operands[operand.name] for operand in problem.operands]
    np.testing.assert_allclose(found.value, np.einsum(equation, *given))
    name = problem.operands[0].name
    other = equation.split("->")[0].split(",", 1)[1]
    if equation != "iij,j->i":
        back = f"{problem.output},{other}->{problem.operands[0].term}"
        if set(problem.operands[0].term) <= {*problem.output, *other}:
            expected = np.einsum(back, arrays.cotangent, *given[1:])
            np.testing.assert_allclose(found.gradients[name], expected)


def conv_problem(part: str = "forward", **changes: Any) -> Problem:
    return build_problem(cell_of(read_case(1, {**CONV, **changes}), part, "float64"))


@pytest.mark.parametrize("changes", [{}, {"format": "CP", "rank": 3, "kernel": 5}])
def test_convolutions_by_hand(changes: dict[str, Any]) -> None:
    """Every tap by itself, on an image with zeros around it."""
    problem = conv_problem(**changes)
    arrays = draw_arrays(problem).operands
    terms = ",".join(o.term for o in problem.parameters)
    kernel = np.einsum(f"{terms}->tskl", *(arrays[o.name] for o in problem.parameters))
    padding = kernel.shape[-1] // 2
    image = np.pad(arrays["x"], [(0, 0), (0, 0), (padding,) * 2, (padding,) * 2])
    height, width = arrays["x"].shape[2:]
    expected = sum(
        np.einsum("ts,bsij->btij", kernel[..., k, l], image[..., k : k + height, l : l + width])
        for k in range(kernel.shape[2])
        for l in range(kernel.shape[3])
    )
    np.testing.assert_allclose(oracle(problem, draw_arrays(problem)).value, expected)


def test_flops_of_convolutions_by_hand() -> None:
    """Layer by layer 20 positions of 2 images, 2·2, 2·2·9 and 2·3 products; or one kernel."""
    layers, kernel = 2 * 40 * (4 + 36 + 6), 2 * (72 + 108 + 40 * 54)
    assert least_flops(conv_problem()) == min(layers, kernel) == layers
    assert least_flops(conv_problem("step")) == 3 * layers


def test_what_has_no_windows_declines_convolutions() -> None:
    problem = conv_problem()
    arrays = draw_arrays(problem)
    entry, _ = contest._admit("opt_einsum numpy", problem, arrays, oracle(problem, arrays))
    assert (entry.state, entry.why) == ("declined", "has no such convolution")


def test_rates_are_measured() -> None:
    rates = measure_rates(("float32",), size=32, copied=2**12)
    assert rates.flops_per_s["float32"] > 0 and rates.bytes_per_s > 0
    assert rates.best(Rates({"float32": 1e18}, 1.0)) == Rates({"float32": 1e18}, rates.bytes_per_s)


# Contestants ------------------------------------------------------------------------------------

MISSING = find_missing()
TINY_CASES = (
    *({**TINY, "id": name.lower(), "format": name} for name in ("TTMatrix", "CP", "TensorRing")),
    {**TINY, "id": "tucker", "format": "Tucker"},
    dict(
        id="mps", kind="mps", sites=4, bond=3, features=2, classes=3, batch=[2],
        input_gradient=False,
    ),
    dict(id="peps", kind="peps", rows=2, columns=3, bond=2),
    CHAIN,
    CONV,
    {**CONV, "id": "conv-cp", "format": "CP", "rank": 3},
)  # fmt: skip


@pytest.mark.parametrize("part", ["forward", "step"])
@pytest.mark.parametrize("entry", TINY_CASES, ids=lambda entry: entry["id"])
def test_all_that_are_here_agree(entry: dict[str, Any], part: str) -> None:
    problem = build_problem(cell_of(read_case(1, entry), part))
    arrays = draw_arrays(problem)
    expected = oracle(problem, arrays)
    timed = 0
    for name in (*OURS, *PEERS):
        if name in MISSING or name == "torch.compile":
            continue
        admitted, contestant = contest._admit(name, problem, arrays, expected, False)
        assert admitted.state in ("timed", "declined"), (name, admitted.why)
        timed += contestant is not None
    assert timed >= 5


def test_every_peer_is_an_entry_of_the_table() -> None:
    files = {path.stem for path in Path(contest.__file__).parent.joinpath("peers").glob("*.py")}
    named = {where.partition(":")[0].rpartition(".")[2] for where in {**OURS, **PEERS}.values()}
    assert files - named == {"__init__", "base", "layers"}
    assert set(HEADLINE.values()) <= set(OURS)
    assert not set(OURS) & set(PEERS)


class Broken(ForwardOnly):
    """A peer that computes `change` of the right result."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.change = change

    def prepare(self, problem: Problem, arrays: Arrays) -> Contestant:
        value = self.change(oracle(problem, arrays).value.astype(problem.cell.dtype))
        return Contestant(lambda: value, read_array)


def fail(value: np.ndarray) -> np.ndarray:
    raise ZeroDivisionError("as planned")


@pytest.mark.parametrize(
    ("change", "state", "why"),
    [
        (lambda value: value, "timed", ""),
        (lambda value: value * 1.01, "wrong", "the output is off by 1.0e-02"),
        (lambda value: value * np.nan, "wrong", "off by nan"),
        (lambda value: value[:1], "wrong", "off by inf"),
        (fail, "failed", "ZeroDivisionError: as planned"),
    ],
)
def test_wrong_and_failing_peers_are_named(
    monkeypatch: pytest.MonkeyPatch, change: Any, state: str, why: str
) -> None:
    monkeypatch.setattr(contest, "load_peer", lambda name: Broken(change))
    result = run_cell(cell_of(case_of()), RATES, {}, 0.0, names=["somebody"])
    assert result.entries["somebody"].state == state
    assert why in result.entries["somebody"].why
    assert (result.entries["somebody"].timing is not None) == (state == "timed")


def test_a_missing_gradient_is_wrong() -> None:
    problem = problem_of("step")
    expected = oracle(problem, draw_arrays(problem))
    assert check(problem, expected, expected) == 0.0
    without = Outcome(expected.value, {k: v for k, v in expected.gradients.items() if k != "G1"})
    with pytest.raises(Wrong, match="no gradient of G1"):
        check(problem, without, expected)
    assert check(problem, without, expected, partial=True) == 0.0
    turned = Outcome(expected.value, {**expected.gradients, "G1": -expected.gradients["G1"]})
    with pytest.raises(Wrong, match=r"the gradient of G1 is off by 2\.0e"):
        check(problem, turned, expected, partial=True)


def test_difference_of_zeros() -> None:
    assert difference(np.zeros(3), np.zeros(3)) == 0.0
    assert difference(np.ones(4), np.zeros(4)) == 2.0


def test_a_peer_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = ForwardOnly()
    peer.packages = ("no_such_package",)
    monkeypatch.setattr(contest, "load_peer", lambda name: peer)
    missing = find_missing(["somebody"])
    assert "No module named 'no_such_package'" in missing["somebody"]
    result = run_cell(cell_of(case_of()), RATES, missing, 0.0, names=["somebody"])
    assert result.entries["somebody"] == Entry("unavailable", missing["somebody"])


def test_patience_ends() -> None:
    with pytest.raises(TooSlow), patience(0.01):
        while True:
            pass
    with patience(5.0):
        pass


def test_slow_starters_are_left_out_unless_wanted() -> None:
    problem = problem_of()
    arrays = draw_arrays(problem)
    entry, _ = contest._admit("torch.compile", problem, arrays, oracle(problem, arrays), False)
    assert entry.state == "left out"
    assert load_peer("torch.compile").slow_start


# Timing -----------------------------------------------------------------------------------------


def test_rounds_take_turns() -> None:
    order: list[str] = []
    timings = time_in_turn({n: (lambda n=n: order.append(n)) for n in "ab"}, 0.0)  # type: ignore[misc]
    assert {len(timing.samples_ms) for timing in timings.values()} == {LEAST_ROUNDS}
    runs = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert len(runs) > LEAST_ROUNDS


def test_slow_calls_are_timed_less_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: clock[0])

    def taking(seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock[0] += seconds

        return run

    calls = {"quick": taking(0.001), "slow": taking(5.0)}
    timings = time_in_turn(calls, 200.0)
    assert timings["slow"].slow and len(timings["slow"].samples_ms) == SLOW_ROUNDS
    assert not timings["quick"].slow and len(timings["quick"].samples_ms) > SLOW_ROUNDS
    assert timings["quick"].calls == 2
    assert timings["quick"].median_ms == pytest.approx(1.0)
    assert len(time_in_turn(calls, 1.0)["slow"].samples_ms) == 1


def test_each_turn_begins_with_calls_that_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """so that the threads of the one before have gone to sleep, and its own are awake"""
    clock = [0.0]
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: clock[0])
    seen: list[str] = []

    def running(name: str) -> Callable[[], None]:
        def run() -> None:
            clock[0] += 0.01
            seen.append(name)

        return run

    time_in_turn({"a": running("a")}, 0.0, settle_s=0.045)
    warming = len(seen) - LEAST_ROUNDS * (5 + 1)
    assert warming == 3
    seen.clear()
    time_in_turn({name: running(name) for name in "ab"}, 0.0, settle_s=0.045)
    turns = ["".join(turn) for _, turn in itertools.groupby(seen[2 * warming :])]
    assert sum(map(len, turns)) == 2 * LEAST_ROUNDS * 6 and all(len(t) % 6 == 0 for t in turns)


def test_spread_is_the_distance_of_quartiles() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0), 1)
    assert (timing.median_ms, timing.spread_ms) == (3.0, 2.0)


# Reports ----------------------------------------------------------------------------------------


def result_of(part: str = "forward", case: str = "tiny", **times: float) -> CellResult:
    """A cell with these medians and a floor of 1 ms; `dense` stands for the dense layer."""
    names = {"ours": HEADLINE[part], "dense": "dense layer", "reconstruct": "reconstruct torch"}
    entries = {
        names.get(name, name): Entry(
            "timed", "", Timing((ms,) * 7, 1), 1e-7, 1.0, reference=name == "dense"
        )
        for name, ms in times.items()
    }
    return CellResult(cell_of(case_of(id=case), part), Floor(1000, 1000, 1.0), entries)


PEER = {"opt_einsum numpy": 6.0, "cotengra numpy": 4.0}


def test_best_peer_and_ratio() -> None:
    result = result_of(ours=2.0, dense=0.1, **PEER)
    assert result.best_peer == "cotengra numpy"  # the dense layer computes something else
    assert (result.ratio, result.floor_fraction) == (2.0, 0.5)
    assert result_of(ours=2.0).ratio is None
    assert result_of(**PEER).ratio is None


def test_summary_counts_what_is_promised() -> None:
    results = [
        result_of(case="far", ours=1.0, **PEER),
        result_of(case="near", ours=2.0, **{"cotengra numpy": 1.8}),
        result_of(case="dear", ours=3.0, reconstruct=2.5),
    ]
    found = summarise(results)
    assert found.far == 2 and found.mean_ratio == pytest.approx((4.0 * 2.5 / 3.0) ** 0.5)
    assert found.least_ratio == pytest.approx(2.5 / 3.0)
    assert [name.split("/")[0] for name in found.slower] == ["near", "dear"]
    assert [name.split("/")[0] for name in found.dearer] == ["dear"]
    assert found.median_floor == 0.5


def record_of(*results: CellResult) -> dict[str, Any]:
    return as_record(results, machine_facts(1), RATES, {"other": "the time was used up"})


def test_record_goes_to_a_file_and_back(tmp_path: Path) -> None:
    record = record_of(result_of(ours=2.0, **PEER))
    write_record(record, tmp_path / "out" / "results.json")
    assert read_record(tmp_path / "out" / "results.json") == json.loads(json.dumps(record))
    assert {"cpu", "cores", "threads", "commit", "date", "versions"} <= set(record["machine"])
    assert any("openblas" in library for library in record["machine"]["blas"])


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot be read"), ("{", "is no JSON"), ("{}", "schema None"), ("[]", "schema None")],
)
def test_bad_records_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecordError, match=words):
        read_record(path)


def test_runs_compare_by_ratio_of_common_peers() -> None:
    before = record_of(result_of(ours=2.0, **PEER), result_of(case="same", ours=1.0, **PEER))
    slower_machine = result_of(ours=2.0, **{"opt_einsum numpy": 12.0})
    after = record_of(
        slower_machine, result_of(case="same", ours=3.0, **{k: 3 * v for k, v in PEER.items()})
    )
    moved, same = compare(before, after)
    assert moved.cell.startswith("tiny") and moved.moved
    assert (moved.before, moved.now) == (3.0, 6.0)  # over opt_einsum, which both have
    assert not same.moved and same.factor == pytest.approx(1.0)
    after["cells"][0]["fingerprint"] = "another case"
    assert len(compare(before, after)) == 1


def test_noise_hides_small_changes() -> None:
    before, after = (record_of(result_of(ours=ms, **PEER)) for ms in (2.0, 1.5))
    (change,) = compare(before, after)
    assert change.moved
    assert not replace(change, noise=1.0).moved


def test_tables_and_plots_are_written(tmp_path: Path) -> None:
    wrong = {"numpy.einsum": Entry("wrong", "the output is off by 1.0e+00 of its norm")}
    result = result_of(ours=2.0, **PEER)
    result = replace(result, entries={**result.entries, **wrong})
    console = Console(record=True, width=200)
    print_results(
        console, [result], {"other": "the time was used up"}, {"tednet": "not here"}, True
    )
    now = record_of(result_of(ours=1.0, **PEER))
    console.print(change_table(compare(record_of(result), now), "then.json"))
    text = console.export_text()
    for words in ("tiny/b4/float32", "2.00", "cotengra numpy", "not here", "off by 1.0e+00"):
        assert words in text
    assert "not run: other: the time was used up" in text
    assert "then.json" in text and "gained" in text
    paths = draw_plots([result, result_of("step", ours=1.0, **PEER)], tmp_path)
    assert {path.name for path in paths} == {"floor.png", "forward.png", "step.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert draw_plots([result_of(ours=1.0)], tmp_path) == []


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    corpus = tmp_path / "cases.toml"
    corpus.write_text('[[case]]\nid = "p"\nkind = "peps"\nrows = 2\ncolumns = 2\nbond = 2\n')
    given = ["--cases", str(corpus), "--all"]
    assert main([*given, "--list"]) == 0
    assert "p/float64/step" in capsys.readouterr().out
    assert main([*given, "--case", "nothing"]) == 2
    assert "selects no cell" in capsys.readouterr().out
    monkeypatch.setattr("benchmarks.floor.measure_rates", lambda dtypes: RATES)
    monkeypatch.setattr("benchmarks.run.set_threads", lambda wanted: 1)
    some = ["--case", "p/float32/*", "--minutes", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("benchmarks.contest.find_missing", lambda: {"torch.compile": "too slow"})
    assert main([*given, *some]) == 0
    record = read_record(tmp_path / "results.json")
    assert {cell["id"] for cell in record["cells"]} == {"p/float32/forward", "p/float32/step"}
    assert main([*given, *some, "--against", str(tmp_path / "missing.json")]) == 2
