"""Calls and steps like the last one: what differs is seen, and done as a new module does it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import tncompiler as tnc
from tests.situations import outcome
from tncompiler import autograd, tensor_guards
from tncompiler.module import CompiledModule

b, i, h, o = tnc.indices("b i h o", i=16, h=12, o=8)
ROWS = 512  # so many that our backward pass runs
DATA = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0))


def network(backend: str = "torch") -> CompiledModule:
    x = tnc.input("x", b, i)
    hidden = tnc.tanh(x @ tnc.param("A", i, h))
    module: CompiledModule = tnc.compile(hidden @ tnc.param("B", h, o), backend=backend, seed=0)
    return module


def stepped(backend: str = "torch") -> CompiledModule:
    module = network(backend)
    for _ in range(2):
        module(DATA).sum().backward()
    module.zero_grad()
    return module


def read(backend: str = "torch") -> CompiledModule:
    module = network(backend)
    for _ in range(2):
        without_gradients(module)
    return module


def evaluated(backend: str = "torch") -> CompiledModule:
    """A module that keeps the product of two parameters."""
    x, g = tnc.input("x", b, i), tnc.Index("g", 64)
    weight = tnc.param("A", i, g) @ tnc.param("C", g, h)
    hidden = tnc.tanh(x @ weight)
    module: CompiledModule = tnc.compile(hidden @ tnc.param("B", h, o), backend=backend, seed=0)
    module.eval()
    for _ in range(2):
        without_gradients(module)
    assert module._kept._entry is not None
    return module


def stepped_by_numpy() -> CompiledModule:
    return stepped("numpy")


def read_by_numpy() -> CompiledModule:
    return read("numpy")


def evaluated_by_numpy() -> CompiledModule:
    return evaluated("numpy")


WAYS = {"fastest": tensor_guards._fastest(), "Python": tensor_guards._by_asking}
PASTS = [stepped, read, evaluated, stepped_by_numpy, read_by_numpy, evaluated_by_numpy]


def gradients(module: CompiledModule, data: Tensor = DATA) -> list[Tensor]:
    y = module(data)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [*module.parameters()])]


def without_gradients(module: CompiledModule) -> Any:
    with torch.no_grad():
        y = module(DATA)
    assert not y.requires_grad
    return y


def inference_mode(module: CompiledModule) -> Any:
    with torch.inference_mode():
        return module(DATA).clone()


def autocast(module: CompiledModule) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = gradients(module)
    assert made[0].dtype == torch.bfloat16
    return made


def autocast_backward(module: CompiledModule) -> Any:
    y = module(DATA)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.autograd.grad(y.square().sum(), [*module.parameters()])


def second_order(module: CompiledModule) -> Any:
    (first,) = torch.autograd.grad(module(DATA).square().sum(), module.A, create_graph=True)
    return torch.autograd.grad(first.square().sum(), [*module.parameters()])


def batched_cotangents(module: CompiledModule) -> Any:
    y = module(DATA)
    cotangents = torch.stack([torch.ones_like(y), torch.zeros_like(y)])
    return torch.autograd.grad(y, [module.A], cotangents, is_grads_batched=True)


def functorch(module: CompiledModule) -> Any:
    held = dict(module.named_parameters())

    def loss(held: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, held, (DATA,)).square().sum()

    return list(torch.func.grad(loss)(held).values())


def left_by_functorch(module: CompiledModule) -> Any:
    """A tensor that came out of a transform that is over, which torch unwraps; call after call."""
    left: list[Tensor] = []

    def inner(v: Tensor) -> Tensor:
        left.append(v.view_as(v))
        return v.sum()

    data = DATA.clone().requires_grad_()
    torch.func.grad(inner)(data)
    inputs = (data, *module.parameters())
    calls = [data, data, left[0], left[0], left[0]]
    return [g for x in calls for g in torch.autograd.grad(module(x).sum(), inputs)]


def vmap(module: CompiledModule) -> Any:
    return torch.vmap(lambda rows: module(rows))(DATA.reshape(2, ROWS // 2, 16))


def forward_mode(module: CompiledModule) -> Any:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(DATA, torch.ones_like(DATA))
        return forward_ad.unpack_dual(module(dual)).tangent


def traced(module: CompiledModule) -> Any:
    return torch.jit.trace(module, (DATA[:64],))(DATA[64:128])


def seen_by_a_mode(module: CompiledModule) -> Any:
    class Counts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    with Counts():
        made = gradients(module)
    assert any("mm" in name for name in names)
    return [*made, torch.tensor(len(names))]


def fewer_rows(module: CompiledModule) -> Any:
    return gradients(module, DATA[:300])


def input_wants_gradient(module: CompiledModule) -> Any:
    data = DATA.clone().requires_grad_()
    return torch.autograd.grad(module(data).sum(), data)


def frozen(module: CompiledModule) -> Any:
    module.A.requires_grad_(False)
    y = module(DATA)
    y.sum().backward()
    assert module.A.grad is None
    return [y, module.B.grad]


def all_frozen(module: CompiledModule) -> Any:
    module.requires_grad_(False)
    y = module(DATA)
    assert not y.requires_grad
    return y


def in_double(module: CompiledModule) -> Any:
    return gradients(module.double(), DATA.double())


def data_in_double(module: CompiledModule) -> Any:
    for parameter in module.parameters():
        parameter.data = parameter.data.double()
    return gradients(module, DATA.double())


def other_numbers(module: CompiledModule) -> Any:
    module.A.data = module.A.data * 2
    module.load_state_dict({**module.state_dict(), "B": torch.ones(12, 8)})
    return gradients(module)


def subclass(module: CompiledModule) -> Any:
    class Marked(Tensor):
        pass

    return torch.Tensor(module(DATA.as_subclass(Marked)))


def wrong_size(module: CompiledModule) -> Any:
    return module(DATA[:, :15])


def not_a_tensor(module: CompiledModule) -> Any:
    return module(DATA.numpy())


def too_many(module: CompiledModule) -> Any:
    return module(DATA, DATA)


def none_at_all(module: CompiledModule) -> Any:
    return module()


def by_name(module: CompiledModule) -> Any:
    return module(x=DATA)


def wrong_name(module: CompiledModule) -> Any:
    return module(DATA, z=DATA)


def moved(module: CompiledModule) -> Any:
    return module.to("meta")(DATA.to("meta")).shape


def apart(module: CompiledModule) -> Any:
    return module(DATA.to("meta"))


def written_in_place(module: CompiledModule) -> Any:
    with torch.no_grad():
        module.A.mul_(2)
        return module(DATA)


def stepped_by_an_optimizer(module: CompiledModule) -> Any:
    module(DATA).square().sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    return without_gradients(module)


def other_mode(module: CompiledModule) -> Any:
    before = without_gradients(module)
    return [before, without_gradients(module.train(not module.training))]


def of_other_parameters(module: CompiledModule) -> Any:
    held = {name: 2 * p.detach() for name, p in module.named_parameters()}
    with torch.no_grad():
        return [torch.func.functional_call(module, held, (DATA,)), module(DATA)]


def another_parameter(module: CompiledModule) -> Any:
    module.A = torch.nn.Parameter(torch.ones_like(module.A))
    return without_gradients(module)


def frozen_with_gradients_on(module: CompiledModule) -> Any:
    module.requires_grad_(False)
    first = [module(DATA), module(DATA)]
    module.B.requires_grad_(True)
    return [*first, torch.autograd.grad(module(DATA).sum(), module.B)[0]]


def wrong_size_without_gradients(module: CompiledModule) -> Any:
    with torch.no_grad():
        return module(DATA[:, :15])


def apart_without_gradients(module: CompiledModule) -> Any:
    with torch.no_grad():
        return module(DATA.to("meta"))


def traced_by_operations(module: CompiledModule) -> Any:
    return make_fx(module)(DATA)(2 * DATA)


def gradients_traced_by_operations(module: CompiledModule) -> Any:
    return make_fx(lambda data: gradients(module, data))(DATA)(2 * DATA)


def selective_checkpoint(module: CompiledModule) -> Any:
    kept = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
    y = checkpoint(module, DATA, use_reentrant=False, context_fn=kept)
    return torch.autograd.grad(y.square().sum(), [*module.parameters()])


def of_fake_tensors(module: CompiledModule) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        made = module(DATA)
    return [torch.tensor(isinstance(made, FakeTensor)), torch.tensor(made.shape)]


def nested(module: CompiledModule) -> Any:
    return module(torch.nested.nested_tensor([DATA[:3], DATA[:5]]))


SITUATIONS: list[Callable[[CompiledModule], Any]] = [
    gradients, without_gradients, inference_mode, autocast, autocast_backward, second_order,
    batched_cotangents, functorch, left_by_functorch, vmap, forward_mode, traced, seen_by_a_mode,
    fewer_rows, input_wants_gradient, frozen, all_frozen, in_double, data_in_double,
    other_numbers, subclass, wrong_size, not_a_tensor, too_many, none_at_all, by_name, wrong_name,
    moved, apart, written_in_place, stepped_by_an_optimizer, other_mode, of_other_parameters,
    another_parameter, frozen_with_gradients_on, wrong_size_without_gradients,
    apart_without_gradients, traced_by_operations, gradients_traced_by_operations,
    selective_checkpoint, of_fake_tensors, nested,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("past", PASTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda f: f.__name__)
def test_it_is_done_as_by_a_module_without_a_past(
    situation: Callable[[CompiledModule], Any],
    past: Callable[[], CompiledModule],
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensor_guards, "_make", WAYS[way])
    warm = past()
    fresh = copy.deepcopy(warm)
    assert warm._last is not None and fresh._last is None
    got, expected = outcome(situation, warm), outcome(situation, fresh)
    assert type(got) is type(expected)
    if isinstance(got, Tensor):
        got, expected = [got], [expected]
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs


def test_such_a_step_asks_for_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module = stepped()
    expected = gradients(module)
    monkeypatch.setattr(CompiledModule, "_run", None)
    monkeypatch.setattr(autograd, "_gradients", None)
    for _ in range(3):
        for mine, theirs in zip(gradients(module), expected, strict=True):
            assert torch.equal(mine, theirs)


def test_two_outputs_that_are_added_up_have_one_cotangent(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tnc.input("x", b, i)
    outputs = [x @ tnc.param("A", i, h), x @ tnc.param("C", i, h)]
    module: CompiledModule = tnc.compile(outputs, backend="torch", seed=0)

    def step() -> list[Tensor]:
        one, other = module(DATA)
        return list(torch.autograd.grad((one + other).sum(), [*module.parameters()]))

    expected = step()
    monkeypatch.setattr(autograd, "_gradients", None)
    for mine, theirs in zip(step(), expected, strict=True):
        assert torch.equal(mine, theirs)


def test_calls_by_name_and_of_other_sizes_find_what_earlier_ones_made() -> None:
    module = network()
    rows = [DATA, DATA[:300]]
    for data in rows:
        module(x=data).sum().backward()
    made = [spec.repeated for spec in module._specialisations.values()]
    for data in [*rows, *rows]:
        module(x=data).sum().backward()
        module(data).sum().backward()
    assert [spec.repeated for spec in module._specialisations.values()] == made
    assert None not in made


@pytest.mark.parametrize("past", [read, evaluated], ids=lambda f: f.__name__)
def test_nor_does_such_a_call_without_gradients(
    past: Callable[[], CompiledModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = past()
    expected = without_gradients(module)
    monkeypatch.setattr(CompiledModule, "_run", None)
    for _ in range(3):
        assert torch.equal(without_gradients(module), expected)


def test_a_compiled_module_does_not_look_at_its_past() -> None:
    module = stepped()
    expected = gradients(copy.deepcopy(module))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for _ in range(2):
        for mine, theirs in zip(gradients(compiled), expected, strict=True):  # type: ignore[arg-type]
            torch.testing.assert_close(mine, theirs)
        module(DATA).sum().backward()


def test_what_was_kept_is_let_go_of_by_the_next_step() -> None:
    x = tnc.input("x", b, i)
    r = tnc.Index("r", 64)
    weight = tnc.param("A", i, r) @ tnc.param("B", r, o)
    module: CompiledModule = tnc.compile(x @ weight, backend="torch", seed=0)
    for _ in range(3):
        module.train()
        module(DATA).sum().backward()
        module.eval()
        with torch.no_grad():
            module(DATA)
        assert module._kept._entry is not None
        module(DATA).sum().backward()
        assert module._kept._entry is None


def test_an_output_that_is_an_argument_is_a_copy() -> None:
    x, c = tnc.input("x", b, i), tnc.param("A", i, h)
    module: CompiledModule = tnc.compile([x @ c, x], backend="torch", seed=0)
    data = DATA.clone().requires_grad_()
    for _ in range(3):
        made, same = module(data)
        same.add_(1)  # would change the input, were it the input itself
        (made.sum() + same.sum()).backward()
    assert torch.equal(data.detach(), DATA)


def test_a_function_of_users_that_gives_its_argument_gives_a_copy() -> None:
    same = tnc.elementwise("gives_its_argument", lambda x: x, lambda x: 1 + 0 * x)
    x, c = tnc.input("x", b, i), tnc.param("A", i, h)
    module: CompiledModule = tnc.compile([x @ c, same(x)], backend="torch", seed=0)
    rows = torch.cat([DATA, DATA])
    expected = rows.clone()
    for data in (rows[:ROWS], rows.requires_grad_()[:ROWS]):
        made, copied = module(data)
        copied.add_(1)
        made.sum().backward()
    assert torch.equal(rows, expected)


def test_a_parametrization_runs_once_a_call() -> None:
    class Counted(torch.nn.Module):
        calls = 0

        def forward(self, weight: Tensor) -> Tensor:
            self.calls += 1
            return 2 * weight

    module, counted = network(), Counted()
    parametrize.register_parametrization(module, "A", counted)
    calls: list[Callable[[], Any]] = [
        lambda: module(DATA).sum().backward(),
        lambda: module(DATA).sum().backward(),
        lambda: module(DATA[:300]).sum().backward(),
        lambda: without_gradients(module),
        lambda: module(DATA).sum().backward(),
    ]
    for call in calls:
        call()
    for call in calls:
        counted.calls = 0
        call()
        assert counted.calls == 1


def test_names_of_parameters_stay_free() -> None:
    x = tnc.input("x", b, i)
    module = tnc.compile(x @ tnc.param("repeats", i, h), backend="torch")
    assert module.repeats.shape == (16, 12)
