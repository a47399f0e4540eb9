"""The fuzzer itself is tested: each of these bugs, planted in the package, must be caught.

A bug is a replacement in the source of one function. If that source has changed so that the
replacement no longer fits, the test says so: plant the same mistake in the new code. What the
package remembers is forgotten before and after: no answer from before hides a bug, and none that a
bug has made is given to the tests that follow in the process.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.fuzz import LARGE, check_network
from tests.large import as_if_large
from tests.networks import Case, random_network
from tests.oracle import Runner, compare, compare_named, epsilon, expected_gradients
from tncompiler.ir import functions
from tncompiler.ir.matmul import matmul_form
from tncompiler.ir.program import Contract
from tncompiler.ir.reference import Bounded, evaluate_all
from tncompiler.planning import ways
from tncompiler.planning.cache import PLANS

MOST = 320  # networks until a bug must have been caught
CONTROL = 40


@dataclass(frozen=True)
class Bug:
    """`old` becomes `new` in the source of `where`, "module:function" or "module:Class.method"."""

    name: str
    where: str
    old: str
    new: str
    runner: str = "function"


BUGS = (
    Bug(
        "index capture in flatten_contractions",
        "ir.passes.flatten:_Expansion._open",
        "names = {label: self.fresh(size) for label, size in sizes.items()}",
        "known = [k for k in range(len(self.sizes))]\n"
        "    names = {label: label if label in known and self.sizes[label] == size "
        "and label not in op.output else self.fresh(size) for label, size in sizes.items()}",
    ),
    Bug(
        "a bare summed label without its size",
        "ir.passes.flatten:_Expansion._count_bare_sums",
        "size = self.sizes[label]",
        "size = 1",
    ),
    Bug(
        "a window used before all tensors with its source are one",
        "planning.windows:is_ready",
        "elsewhere(source) == 0",
        "True",
    ),
    Bug(
        "a window's padding forgotten",
        "backends.numpy.windows:_parts",
        "start = first * step + t * reach - before",
        "start = first * step + t * reach",
    ),
    Bug(
        "a window that is summed although it is still to be used",
        "planning.schedule:_Network.contract_all",
        "(*wires, *(r.labels for r in self.windows))",
        "wires",
    ),
    Bug(
        "a conjugate forgotten behind a convolution",
        "ir.passes.window_rules:convolve_adjoint",
        "rev.conj(operands[k])",
        "operands[k]",
    ),
    Bug(
        "numbers lost when networks are merged",
        "ir.passes.flatten:_Expansion._scales",
        "for literal in self.literals]",
        "for literal in self.literals[:1]]",
    ),
    Bug(
        "a delta ignored",
        "ir.lower:_Lowering._weak",
        "isinstance(node, ex.Delta)",
        "False",
    ),
    Bug(
        "an inlined network joined to one label of its user too few",
        "ir.passes.flatten:_Expansion._inline",
        "zip(inner, labels, strict=True)",
        "zip(inner[:-1] if len(inner) > 1 else inner, labels, strict=False)",
    ),
    Bug(
        "map wires swapped",
        "ir.lower:_map",
        "tuple(node.indices.index(i) for i in arg.indices)",
        "tuple(sorted(node.indices.index(i) for i in arg.indices))",
    ),
    Bug(
        "merging in the wrong axis order",
        "ir.algebra:merge",
        "(*before, *merged, *after)",
        "(*before, *reversed(merged), *after)",
        runner="unshared expressions",
    ),
    Bug(
        "a relabeling read with its axes swapped",
        "ir.passes.simplify:_rewire",
        "labels = tuple(wired[label] for label in source.inputs[0])",
        "labels = tuple(wired[label] for label in sorted(source.inputs[0], reverse=True))",
    ),
    Bug(
        "common steps: different numbers taken for one",
        "ir.passes.common:step_key",
        "(type(op.value).__name__, repr(op.value), step.out.dtype)",
        "(type(op.value).__name__, step.out.dtype)",
    ),
    Bug(
        "common steps: operand order of a difference ignored",
        "ir.passes.common:step_key",
        "op.function in _COMMUTATIVE",
        "op.function in (*_COMMUTATIVE, 'sub', 'div')",
    ),
    Bug(
        "common steps: wires of a contraction ignored",
        "ir.passes.common:step_key",
        "return (op, operands, step.out.shape, step.out.dtype)",
        "return (type(op), getattr(op, 'function', op if not isinstance(op, Contract) else 0), "
        "operands, step.out.shape, step.out.dtype)",
    ),
    Bug(
        "a double negation that is none",
        "ir.passes.simplify:_same_as",
        "return inner.operands[0]",
        "return inner.out.name",
    ),
    Bug(
        "an axis order that a reader is not told",
        "ir.passes.layout:reread",
        "tuple(labels[axis] for axis in order) if operand == name else labels",
        "labels",
    ),
    Bug(
        "an axis order applied backwards",
        "ir.passes.layout:reordered",
        "place = {axis: position for position, axis in enumerate(order)}",
        "place = dict(enumerate(order))",
    ),
    Bug(
        "the conjugate dropped in the adjoint of a contraction",
        "ir.passes.adjoint:_contract",
        "*(rev.conj(value) for value, _ in others)",
        "*(value for value, _ in others)",
    ),
    Bug(
        "the conjugate dropped in the adjoint of a map",
        "ir.passes.adjoint:_times_conj",
        "rev.conj(slope.value)",
        "slope.value",
    ),
    Bug(
        "the second cotangent of a shared value overwrites the first",
        "ir.passes.adjoint:_Reverse.give",
        "self.pending.setdefault(target.name, []).append(cotangent)",
        "self.pending[target.name] = [cotangent]",
    ),
    Bug(
        "a real operand that keeps a complex cotangent",
        "ir.passes.adjoint:_Reverse.give",
        "if cotangent.dtype != target.dtype:",
        "if False:",
    ),
    Bug(
        "a cotangent of an operand used twice in one network counted once",
        "ir.passes.adjoint:_contract",
        "if target.name not in rev.active:",
        "if target.name not in rev.active or target in operands[:position]:",
    ),
    Bug(
        "the adjoint of a slice padded on the wrong side",
        "ir.passes.adjoint:_slice",
        "rev.builder.pad(cotangent, op.axis, op.start, after)",
        "rev.builder.pad(cotangent, op.axis, after, op.start)",
    ),
    Bug(
        "the adjoint of a pad sliced from the start",
        "ir.passes.adjoint:_pad",
        "rev.builder.slice(cotangent, op.axis, op.before, stop)",
        "rev.builder.slice(cotangent, op.axis, 0, stop - op.before)",
    ),
    Bug(
        "concat offsets that do not move on",
        "ir.passes.adjoint:_concat",
        "        start = stop",
        "        start = 0",
    ),
    Bug(
        "ties of a maximum counted in full",
        "ir.passes.adjoint:tie_shares",
        "hit / tracer.multiply(hit, keep=extreme.labels)",
        "hit / 1.0",
    ),
    Bug(
        "a mean divided by one size too few",
        "ir.algebra:mean",
        "product(index.size for index in bound)",
        "product(index.size for index in bound[:1])",
        runner="unshared expressions",
    ),
    Bug(
        "a broadcast operand's cotangent not summed",
        "ir.passes.adjoint:_summed",
        "tracer.multiply(product, keep=labels).value",
        "tracer.multiply(product, keep=labels).value if len(labels) != 1 else "
        "tracer.multiply(product, 0.5, keep=labels).value",
    ),
    Bug(
        "a negated cotangent with its axes in another order",
        "ir.passes.adjoint:_times_conj",
        '_summed(tracer, tracer.call("neg", ct), labels)',
        'tracer.call("neg", tracer.multiply(ct, keep=labels)).value',
    ),
    Bug(
        "numbers of a network not multiplied in",
        "planning.schedule:_Network._scale",
        "self.terms[at] = self.windowing.contract([scale, term], term.labels)",
        "pass",
    ),
    Bug(
        "a kept index dropped while contracting",
        "planning.schedule:_Network._contract_pair",
        "if uses[label] > 0 or label in self.op.output",
        "if uses[label] > 0",
    ),
    Bug(
        "a step taken over that another network made",
        "planning.schedule:_Network._finish",
        "is_new = len(self.builder.steps) > self.start",
        "is_new = bool(self.builder.steps)",
    ),
    Bug(
        "summed indices in two orders in one matrix product",
        "ir.matmul:_form",
        "readable(b, batch, k, n)",
        "readable(b, batch, tuple(label for label in b if label in k), n)",
    ),
    Bug(
        "the sums of the last lane alone",
        "backends.numpy.threads:run_blocks",
        "total += part",
        "total[...] = part",
    ),
    Bug(
        "a copied operand read in the order that it had",
        "planning.layout:_Copying._product",
        "Contract(read, chosen.out)",
        "Contract(tuple(wires), chosen.out)",
    ),
    Bug(
        "a transposed matrix taken as it stands",
        "backends.contracting:_block",
        "return text if moved == sorted(moved) else emitter.permute(text, moved)",
        "return text",
    ),
    Bug(
        "a product whose result is not put in order",
        "backends.contracting:_matmul",
        "if natural != op.output:",
        "if False:",
    ),
    Bug(
        "operands of an elementwise product not aligned",
        "backends.contracting:aligned",
        "if present != labels:",
        "if False:",
    ),
    Bug(
        "diagonals embedded on the wrong axes (NumPy)",
        "backends.numpy.runtime:embed_diagonal",
        "list(pattern)",
        "list(pattern[::-1])",
    ),
    Bug(
        "saved values in another order than they are read",
        "ir.passes.partition:partition",
        "(*primal, *saved)",
        "(*primal, *reversed(saved))",
    ),
    Bug(
        "a pad on the wrong side (torch)",
        "backends.torch.emit:TorchEmitter.pad",
        "[before, after]",
        "[after, before]",
        runner="torch",
    ),
)

# rules of functions: what is replaced by what
RULES: dict[str, dict[str, Any]] = {
    "sub": {"partials": (lambda call, x, y, out: 1.0, lambda call, x, y, out: 1.0)},
    "exp": {"partials": (lambda call, x, out: x,)},
    "maximum": {
        "partials": (
            lambda call, x, y, out: call("where", call("greater", x, y), 1.0, 0.0),
            lambda call, x, y, out: call("where", call("greater", y, x), 1.0, 0.0),
        )
    },
    "imag": {
        "adjoint": lambda call, ct, x, out: (call("project", -1j * call("real", ct), x),),
    },
    "div": {"partials": (lambda call, x, y, out: 1.0 / y, lambda call, x, y, out: out / y)},
    "where": {
        "adjoint": lambda call, ct, c, a, b, out: (
            None,
            call("where", c, ct, 0.0),
            call("where", c, ct, 0.0),
        )
    },
}


# ---------------------------------------------------------------------------- planting


def plant(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a function by its mutated self, wherever the package holds it."""
    module_name, path = bug.where.split(":")
    module = importlib.import_module(f"tncompiler.{module_name}")
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, module)
    right = owner.__dict__.get(name)
    assert right is not None, f"{bug.where} is gone: plant {bug.name!r} anew"
    source = textwrap.dedent(inspect.getsource(right))
    assert source.count(bug.old) == 1, f"{bug.where} has changed: plant {bug.name!r} anew"
    wrong = compiled(source.replace(bug.old, bug.new), name, module)
    monkeypatch.setattr(owner, name, wrong)
    for holder in [m for n, m in sys.modules.items() if n.startswith("tncompiler")]:
        replace_in(holder, right, wrong, monkeypatch)


def compiled(source: str, name: str, module: types.ModuleType) -> Any:
    space = dict(vars(module))
    code = compile(f"from __future__ import annotations\n{source}", f"<planted {name}>", "exec")
    exec(code, space)  # our own source, from above
    made = space[name]
    return types.FunctionType(
        made.__code__, vars(module), name, made.__defaults__, made.__closure__
    )


def replace_in(
    holder: types.ModuleType, right: Any, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In names imported from elsewhere, and in tables of rules."""
    for key, value in list(vars(holder).items()):
        if value is right:
            monkeypatch.setattr(holder, key, wrong)
        elif isinstance(value, dict) and not key.startswith("__"):
            for entry in [k for k, v in value.items() if v is right]:
                monkeypatch.setitem(value, entry, wrong)


@contextmanager
def planted(change: Callable[[pytest.MonkeyPatch], None]) -> Iterator[None]:
    """The package with a bug, and then without it and all that came of it."""
    forget()
    try:
        with pytest.MonkeyPatch.context() as patch:
            change(patch)
            yield
    finally:
        forget()


def forget() -> None:
    """Empty what the package remembers in this process."""
    for module in [m for n, m in sys.modules.items() if n.startswith("tncompiler")]:
        for value in list(vars(module).values()):
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()
    ways._KNOWN.clear()
    PLANS.recent.clear()


# ---------------------------------------------------------------------------- catching


@dataclass(frozen=True)
class Expected:
    """A network and what it is worth, computed while nothing was planted."""

    case: Case
    forward: tuple[Bounded, ...]
    gradients: dict[str, Bounded]


@functools.cache
def expected(seed: int) -> Expected:
    case = random_network(seed)
    eps = epsilon(case.dtype)
    forward = evaluate_all(case.outputs, case.arrays, case.sizes, eps)
    found = expected_gradients(
        case.outputs, case.arrays, case.cotangents, case.wrt, case.sizes, eps, seed
    )
    return Expected(case, forward, found)


def caught(seed: int, outputs: Any, runner: str) -> str | None:
    """What the fuzzer says of the network of a seed; None if all is well."""
    known = expected(seed)
    case = known.case
    try:
        large = as_if_large() if seed % LARGE == 1 else nullcontext()
        with warnings.catch_warnings(), np.errstate(all="ignore"), large:
            warnings.simplefilter("ignore")
            machine = Runner(outputs or case.outputs, runner, case.dtype, case.given)
            values = machine.forward(case.arrays)
            compare("forward", case.outputs, values, known.forward, runner, seed)
            if case.wrt:
                _, found = machine.gradients(case.arrays, case.cotangents, case.wrt)
                compare_named("gradient", case.outputs, found, known.gradients, runner, seed)
    except Exception as error:  # a crash of the compiler is a catch as well
        return f"{type(error).__name__}: {error}"
    return None


def hunt(most: int, runner: str = "function") -> tuple[int, str] | None:
    """The first seed that catches what is planted, and what it says."""
    rebuilt = runner == "unshared expressions"  # the mistake is in how expressions are made
    for seed in range(most):
        outputs = random_network(seed).outputs if rebuilt else None
        found = caught(seed, outputs, "function" if rebuilt else runner)
        if found is not None:
            return seed, found
    return None


@pytest.fixture(scope="module", autouse=True)
def known_networks() -> None:
    """What the networks are worth: it must be known before anything is planted."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for seed in range(MOST):
            expected(seed)


def test_nothing_planted_nothing_caught() -> None:
    assert hunt(CONTROL) is None
    assert hunt(CONTROL // 4, "torch") is None
    check_network(random_network(0))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_planted_bug_is_caught(bug: Bug) -> None:
    with planted(lambda patch: plant(bug, patch)):
        found = hunt(MOST, bug.runner)
    assert found is not None, f"{bug.name}: not caught by {MOST} networks"


def test_a_bug_leaves_nothing_behind() -> None:
    """Forms of matrix products are remembered: a wrong one would be taken again afterwards."""
    swapped = next(bug for bug in BUGS if bug.where == "ir.matmul:_form")
    sums = Contract(((0, 1), (1, 0)), ())
    right = matmul_form(sums, {0: 2, 1: 3})
    with planted(lambda patch: plant(swapped, patch)):
        assert matmul_form(sums, {0: 2, 1: 3}) != right
    assert matmul_form(sums, {0: 2, 1: 3}) == right


@pytest.mark.parametrize("name", RULES)
def test_wrong_rule_is_caught(name: str) -> None:
    wrong = replace(functions.function(name), **RULES[name])
    with planted(lambda patch: patch.setitem(functions._LOADED, name, wrong)):
        found = hunt(MOST)
    assert found is not None, f"{name}: not caught by {MOST} networks"
