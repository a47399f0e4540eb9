"""Sharding rules derived from the indices of steps, and networks on DTensors by these rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tncompiler as tnc
from tests.networks import random_network
from tests.ranks import World
from tests.test_distributed_training import SIZES, batches, mesh_of_all, train
from tncompiler.compiler import Compilation
from tncompiler.distributed.sharding import Sharding, part_of, shardings_of
from tncompiler.ir.program import Program

B, I1, I2, O1, O2, R1 = tnc.indices("b i1 i2 o1 o2 r1", b=8, **SIZES)


def layer() -> Any:
    """x(b, i1, i2) G1(i1, o1, r1) G2(r1, i2, o2), whose bond is the only index that is hidden."""
    cores = tnc.param("G1", I1, O1, R1), tnc.param("G2", R1, I2, O2)
    return tnc.contract(tnc.input("x", B, I1, I2), *cores, out=(B, O1, O2))


def scheduled(expr: Any, dtype: str = "float64") -> Program:
    compilation = Compilation(expr, None, {}, None)
    return compilation.scheduled(compilation.default_dtypes(dtype), {})[0]


def rules(expr: Any) -> dict[tuple[int | None, ...], tuple[int | str | None, ...]]:
    """Placements of outputs by those of arguments."""
    return {
        one.arguments: tuple(
            "partial" if p else a for a, p in zip(one.outputs, one.partial, strict=True)
        )
        for one in shardings_of(scheduled(expr))
    }


# Rules ------------------------------------------------------------------------------------------


def test_output_indices_are_shards_and_contracted_ones_partial_sums() -> None:
    assert rules(layer()) == {  # x, G1, G2 → y
        (0, None, None): (0,),  # b
        (1, 0, None): ("partial",),  # i1
        (2, None, 1): ("partial",),  # i2
        (None, 1, None): (1,),  # o1
        (None, 2, 0): ("partial",),  # r1
        (None, None, 2): (2,),  # o2
    }


def test_what_does_not_add_up_is_not_cut_by_what_it_sums() -> None:
    bias = tnc.param("bias", O1, O2)
    assert set(rules(tnc.relu(layer()))) == {(0, None, None), (None, 1, None), (None, None, 2)}
    assert (None, 2, 0, None) not in rules(layer() + bias)  # each rank would add the bias
    assert (None, 2, 0, None) in rules(layer() * bias)


def test_an_index_that_a_step_needs_whole_is_not_cut() -> None:
    assert (None, 1, None) not in rules(tnc.softmax(layer(), over=O1))
    assert (None, 1, None) in rules(tnc.softmax(layer(), over=O2))
    x = tnc.input("x", I1, tnc.Index("j", 3))
    assert set(rules(x.max(I1))) == {(1,)}


def test_a_diagonal_is_not_cut() -> None:
    i, j = tnc.indices("i j", i=4, j=4)
    assert rules(tnc.contract(tnc.input("x", i, j), tnc.delta(i, j), out=(i,))) == {}


# Programs of parts ------------------------------------------------------------------------------


def check_parts(
    program: Program,
    compilation: Compilation,
    arrays: Sequence[Any],
    alike: dict[str, str] | None = None,
) -> int:
    """Each rule: results of two ranks together are the whole; how many rules there are."""
    whole = compilation.executable(program, "numpy", "whole").run(*arrays)
    rules = shardings_of(program, alike or {})
    for rule in rules:
        results = [parts_run(program, compilation, arrays, rule, rank) for rank in (0, 1)]
        for k, (wanted, first, second) in enumerate(zip(whole, *results, strict=True)):
            axis = rule.outputs[k]
            if rule.partial[k]:
                found = first + second
            else:
                found = first if axis is None else np.concatenate([first, second], axis)
            scale = np.abs(wanted).max(initial=1.0)
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * scale)
    return len(rules)


def parts_run(
    program: Program, compilation: Compilation, arrays: Sequence[Any], rule: Sharding, rank: int
) -> Any:
    """What one of two ranks makes of its part."""
    given, lengths = [], {}
    for argument, array, axis in zip(program.arguments, arrays, rule.arguments, strict=True):
        if axis is not None:
            array = np.array_split(array, 2, axis)[rank]
            lengths[argument.value.name, axis] = array.shape[axis]
        given.append(array)
    return compilation.executable(part_of(program, lengths), "numpy", "part").run(*given)


def test_parts_of_random_networks_make_the_whole() -> None:
    """Programs of a forward pass and of gradients, in float64 at the sizes of their arrays."""
    count = 0
    for seed in range(700, 760):
        case = random_network(seed)
        if case.dtype not in ("float64", "complex128"):
            continue
        free = Compilation(case.outputs, None, dict(case.given), None).free_symbols
        sizes = {**case.given, **{symbol: case.sizes[symbol] for symbol in free}}
        compilation = Compilation(case.outputs, None, sizes, None)
        dtypes = compilation.default_dtypes(case.dtype)
        arrays = [case.arrays[leaf.name] for leaf in compilation.ordered]
        count += check_parts(compilation.scheduled(dtypes, {})[0], compilation, arrays)
        if case.wrt:
            joint, first = compilation.cheapest_joint(dtypes, {}, case.wrt)
            alike = dict(zip(joint.outputs[first:], case.wrt, strict=True))
            count += check_parts(joint, compilation, [*arrays, *case.cotangents], alike)
    assert count > 50


# DTensors ---------------------------------------------------------------------------------------


class Cut(nn.Module):
    """A layer whose parameters are DTensors, cut along a bond or an output index."""

    def __init__(self, backend: str, cuts: dict[str, int]) -> None:
        from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

        super().__init__()
        self.inner = tnc.compile(layer(), dtype="float64", seed=0, backend=backend)
        self.mesh, self.kind, self.whole = mesh_of_all(), DTensor, [Replicate()]
        for name, parameter in list(self.inner.named_parameters()):
            placement = Shard(cuts[name]) if name in cuts else Replicate()
            cut = distribute_tensor(parameter.detach(), self.mesh, [placement])
            self.inner._parameters[name] = nn.Parameter(cut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread = self.kind.from_local(x, self.mesh, self.whole)
        return self.inner(spread).full_tensor()


def losses_cut(backend: str, cuts: dict[str, int]) -> tuple[list[float], set[str]]:
    module = Cut(backend, cuts)
    losses = list(map(float, train(module)))
    return losses, {str(p.placements) for p in module.parameters()}


@pytest.fixture(scope="module")
def alone() -> list[float]:
    return list(map(float, train(tnc.compile(layer(), dtype="float64", seed=0))))


@pytest.mark.parametrize(
    ("backend", "cuts"),
    [
        ("auto", {"G1": 2, "G2": 0}),
        ("numpy", {"G1": 2, "G2": 0}),
        ("numpy", {"G1": 1}),
        ("auto", {"G2": 2}),
    ],
)
def test_20_steps_on_dtensors(
    backend: str, cuts: dict[str, int], two: World, alone: list[float]
) -> None:
    """A bond (r1), and the output indices o1 and o2, which do not divide evenly."""
    for losses, placements in two.call(losses_cut, backend, cuts):
        assert losses == pytest.approx(alone, rel=1e-9)
        assert any("Shard" in placement or "S(" in placement for placement in placements)


def gradients_of_one_output() -> list[float]:
    """Of two outputs one is used: the errors of gradients of parameters and input."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    y = layer()
    whole = tnc.compile((y, y.sum(O1)), dtype="float64", seed=0)
    parts, mesh = tnc.compile((y, y.sum(O1)), dtype="float64", seed=0), mesh_of_all()
    for name, parameter in list(parts.named_parameters()):
        axis = {"G1": 1}.get(name)
        placement = Replicate() if axis is None else Shard(axis)
        cut = distribute_tensor(parameter.detach(), mesh, [placement])
        parts._parameters[name] = nn.Parameter(cut)
    x = batches(1)[0][0]
    mine = x.clone().requires_grad_()
    whole(mine)[1].square().sum().backward()
    theirs = distribute_tensor(x, mesh, [Replicate()]).requires_grad_()
    parts(theirs)[1].full_tensor().square().sum().backward()
    pairs = [(mine, theirs), *zip(whole.parameters(), parts.parameters(), strict=True)]
    return [float((a.grad - b.grad.full_tensor()).abs().max()) for a, b in pairs]


def test_outputs_may_be_left_alone(two: World) -> None:
    for errors in two.call(gradients_of_one_output):
        assert max(errors) < 1e-12


def placements_of_a_call() -> list[str]:
    module = Cut("torch", {"G1": 2, "G2": 0})
    x = batches(1)[0][0]
    y = module.inner(module.kind.from_local(x, module.mesh, module.whole))
    y.full_tensor().square().sum().backward()
    tensors = [y, *(p.grad for p in module.parameters())]
    return [type(p).__name__ for tensor in tensors for p in tensor.placements]


def test_a_bond_that_is_cut_leaves_partial_sums_and_cut_gradients(two: World) -> None:
    for names in two.call(placements_of_a_call):
        assert names == ["Partial", "Shard", "Shard"]
