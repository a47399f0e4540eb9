"""Weights that other libraries hold as networks, as decompositions of ours, with the same numbers.

The libraries are never imported: their objects say by their classes and attributes what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tncompiler.dsl import contract, param
from tncompiler.formats.cp import CP
from tncompiler.formats.custom import Custom
from tncompiler.formats.decomposition import Decomposition
from tncompiler.formats.dense import Dense
from tncompiler.formats.format import Format
from tncompiler.formats.tensor_ring import TensorRing
from tncompiler.formats.trains import named_cores
from tncompiler.formats.tt import TT
from tncompiler.formats.tt_matrix import TTMatrix
from tncompiler.formats.tucker import Tucker
from tncompiler.formats.weights import as_array
from tncompiler.ir.errors import ArgumentError, FormatError
from tncompiler.ir.index import Index

Cores = dict[str, np.ndarray]
Found = tuple[Format, list[int], list[int], Cores]  # a format, both shapes, and its cores


def from_tensorly_torch(weight: Any, inputs: Sequence[int] | None = None) -> Decomposition:
    """A factorized weight of TensorLy-Torch (or TensorLy): CP, Tucker, TT, BlockTT, dense.

    ``inputs``: which of its modes are inputs of the weight, by position. If not given, the weight
    has to be a tensorized matrix, whose columns are inputs, as in tltorch.FactorizedLinear; of a
    tltorch.FactorizedEmbedding the rows are: give their positions.
    Raises: ArgumentError for anything else; FormatError for ranks above what a bond can carry.
    """
    weight = getattr(weight, "weight", weight)  # of a FactorizedLinear, say
    names = {cls.__name__ for cls in type(weight).__mro__}
    reader = next((read for name, read in _READERS.items() if name in names), None)
    if reader is None:
        raise ArgumentError(
            f"from_tensorly_torch got a {type(weight).__name__}",
            fix=f"give one of {', '.join(_READERS)}",
        )
    shapes: Any = getattr(weight, "tensorized_shape", None)
    if shapes is not None and (len(shapes) != 2 or any(isinstance(s, int) for s in shapes)):
        raise ArgumentError(
            f"the tensorized shape {shapes} is not that of one matrix",
            fix="give a weight with two tuples of modes, rows and columns",
        )
    count = len(weight.shape) if shapes is None else sum(map(len, shapes))
    if inputs is None and shapes is None:
        raise ArgumentError(
            f"which of the {count} modes are inputs is not said", fix="write inputs=(0, 1), say"
        )
    given = range(len(shapes[0]), count) if inputs is None else inputs
    return _finished(reader(weight, _checked(given, count)))


def from_tensorkrowch(network: Any, inputs: Sequence[int] | None = None) -> Decomposition:
    """An MPS or MPO of TensorKrowch: a train, a ring, or (MPO) a train of pairs of modes.

    ``inputs``: which sites of an MPS are inputs (default: its in_features).
    Raises: ArgumentError for anything else.
    """
    names = {cls.__name__ for cls in type(network).__mro__}
    if not {"MPS", "MPO"} & names or not hasattr(network, "tensors"):
        raise ArgumentError(
            f"from_tensorkrowch got a {type(network).__name__}",
            fix="give a tensorkrowch.models.MPS or MPO",
        )
    cores = [as_array(tensor) for tensor in network.tensors]
    if network.boundary == "obc":
        cores = [core[None] if k == 0 else core for k, core in enumerate(cores)]
        last = 2 if "MPO" in names else -1  # the right bond comes before the output of an MPO
        cores[-1] = np.expand_dims(cores[-1], last)
    if "MPO" in names:
        pairs = [core.transpose(0, 1, 3, 2) for core in cores]
        return _finished(_chain(pairs, [("i", "o")] * len(pairs)))
    given = network.in_features if inputs is None else inputs
    return _finished(_chain(cores, _sides(given, len(cores))))


def from_quimb(network: Any, inputs: Sequence[int] | None = None) -> Decomposition:
    """A MatrixProductState or MatrixProductOperator of quimb, open or cyclic.

    ``inputs``: which sites of a state are inputs, the others being outputs. An operator's lower
    indices are inputs and its upper ones outputs, as where it is applied to a state.
    Raises: ArgumentError for anything else.
    """
    names = {cls.__name__ for cls in type(network).__mro__}
    operator = "MatrixProductOperator" in names
    if not operator and "MatrixProductState" not in names:
        raise ArgumentError(
            f"from_quimb got a {type(network).__name__}",
            fix="give a MatrixProductState or MatrixProductOperator; for any other network use "
            "tnc.formats.Custom(tnc.from_quimb(network))",
        )
    if not operator and inputs is None:
        raise ArgumentError(
            f"which of the {network.L} sites are inputs is not said", fix="write inputs=(0, 1), say"
        )
    cores = [_quimb_core(network, site, operator) for site in range(network.L)]
    cores[0] = cores[0] * 10.0 ** float(getattr(network, "exponent", 0.0))
    if operator:
        return _finished(_chain(cores, [("i", "o")] * len(cores)))
    return _finished(_chain(cores, _sides(inputs, len(cores))))


# ---------------------------------------------------------------------------- TensorLy


def _read_dense(weight: Any, ins: list[int]) -> Found:
    array = as_array(weight.tensor)
    shape = [n for part in getattr(weight, "tensorized_shape", array.shape) for n in _modes(part)]
    order = _order(ins, len(shape))
    array = array.reshape(shape).transpose(order)
    count = len(ins)
    return Dense(), [*array.shape[:count]], [*array.shape[count:]], {"W": array}


def _read_cp(weight: Any, ins: list[int]) -> Found:
    factors = [as_array(factor) for factor in _parts(weight)[1]]
    scales = _parts(weight)[0]
    if scales is not None:
        factors[0] = factors[0] * as_array(scales)
    names = _factor_names(ins, len(factors))
    cores = {names[k]: factor for k, factor in enumerate(factors)}
    return CP(factors[0].shape[1]), *_shapes([len(f) for f in factors], ins), cores


def _read_tucker(weight: Any, ins: list[int]) -> Found:
    core, given = _parts(weight)
    factors = [as_array(factor) for factor in given]
    names, order = _factor_names(ins, len(factors)), _order(ins, len(factors))
    cores = {"C": as_array(core).transpose(order)}
    cores.update({names[k]: factor for k, factor in enumerate(factors)})
    format = Tucker(tuple(cores["C"].shape))
    return format, *_shapes([len(f) for f in factors], ins), cores


def _read_train(weight: Any, ins: list[int]) -> Found:
    cores = [as_array(core) for core in weight.factors]
    return _chain(cores, _sides(ins, len(cores)))


def _read_block_train(weight: Any, ins: list[int]) -> Found:
    """Cores (left, row, column, right); rows or columns are inputs as a whole."""
    cores = [as_array(core) for core in weight.factors]
    count = len(cores)
    if ins == [*range(count)]:
        return _chain(cores, [("i", "o")] * count)
    if ins == [*range(count, 2 * count)]:
        return _chain([core.transpose(0, 2, 1, 3) for core in cores], [("i", "o")] * count)
    raise FormatError(
        f"the modes {ins} of a train of pairs are not all its rows or all its columns",
        fix=f"give {tuple(range(count))} or {tuple(range(count, 2 * count))}",
    )


# their class → how it is read
_READERS: dict[str, Callable[[Any, list[int]], Found]] = {
    "CPTensor": _read_cp,
    "TuckerTensor": _read_tucker,
    "TTTensor": _read_train,
    "BlockTT": _read_block_train,
    "TTMatrix": _read_block_train,
    "DenseTensor": _read_dense,
}


def _parts(weight: Any) -> tuple[Any, Sequence[Any]]:
    """What the factors share (weights or a core), and the factors."""
    parts = getattr(weight, "decomposition", None)
    first, factors = (weight[0], weight[1]) if parts is None else parts
    return first, [*factors]


def _modes(part: Any) -> Sequence[int]:
    return (part,) if isinstance(part, int) else part


def _checked(inputs: Any, count: int) -> list[int]:
    """Positions of input modes. Raises ArgumentError unless some modes are inputs, and not all."""
    given = [*inputs] if isinstance(inputs, Sequence | range) else []
    if not 0 < len(set(given)) == len(given) < count or not set(given) <= {*range(count)}:
        raise ArgumentError(
            f"inputs are {inputs!r:.60}, of {count} modes",
            fix="give the positions of some of them, from 0, and not all",
        )
    return given


def _order(ins: list[int], count: int) -> list[int]:
    """All modes, inputs first."""
    return [*ins, *(k for k in range(count) if k not in ins)]


def _shapes(sizes: list[int], ins: list[int]) -> tuple[list[int], list[int]]:
    ordered = [sizes[k] for k in _order(ins, len(sizes))]
    return ordered[: len(ins)], ordered[len(ins) :]


def _factor_names(ins: list[int], count: int) -> dict[int, str]:
    """U1, … for inputs and V1, … for outputs, by position."""
    outs = [k for k in range(count) if k not in ins]
    names = {k: f"U{n}" for n, k in enumerate(ins, start=1)}
    return names | {k: f"V{n}" for n, k in enumerate(outs, start=1)}


# ---------------------------------------------------------------------------- chains


def _sides(inputs: Any, count: int) -> list[tuple[str, ...]]:
    """For each site of a chain of one mode a site, whether it is an input or an output."""
    ins = _checked(inputs, count)
    return [("i",) if site in ins else ("o",) for site in range(count)]


def _chain(cores: list[np.ndarray], sides: list[tuple[str, ...]]) -> Found:
    """Cores (left, *modes, right) in a row or a ring: its format, or a network if it has none."""
    modes = [size for core in cores for size in core.shape[1:-1]]
    letters = [side for site in sides for side in site]
    ins = [n for n, side in zip(modes, letters, strict=True) if side == "i"]
    outs = [n for n, side in zip(modes, letters, strict=True) if side == "o"]
    cyclic = cores[-1].shape[-1] > 1
    cores = cores if cyclic else _narrowed(cores)
    ranks = tuple(core.shape[-1] for core in cores)
    paired = all(site == ("i", "o") for site in sides)
    in_order = not paired and letters == ["i"] * len(ins) + ["o"] * len(outs)
    if paired and not cyclic:
        return TTMatrix(ranks[:-1]), ins, outs, named_cores(cores)
    if in_order and not cyclic:
        return TT(ranks[:-1]), ins, outs, named_cores(cores)
    named = {f"G{k}": core for k, core in enumerate(cores, start=1)}
    if in_order:
        return TensorRing(ranks), ins, outs, named
    return Custom(_ring_network(cores, sides)), ins, outs, named


def _narrowed(cores: list[np.ndarray]) -> list[np.ndarray]:
    """The same train without bonds wider than what is left or right of them.

    Such a bond gets the index of that side, and what the core held moves into the next one.
    """
    for _ in range(2):  # from the left, and once more from the other end
        cores = [*cores]
        for k, core in enumerate(cores[:-1]):
            rows = core.size // core.shape[-1]
            if rows < core.shape[-1]:
                cores[k] = np.eye(rows, dtype=core.dtype).reshape(*core.shape[:-1], rows)
                cores[k + 1] = np.tensordot(core.reshape(rows, -1), cores[k + 1], 1)
        cores = [core.swapaxes(0, -1) for core in cores[::-1]]
    return cores


def _ring_network(cores: list[np.ndarray], sides: list[tuple[str, ...]]) -> Any:
    """The network of cores in a ring, with modes in the order of inputs, then outputs."""
    bonds = [Index(f"r{k}", core.shape[-1]) for k, core in enumerate(cores, start=1)]
    found: dict[str, list[Index]] = {"i": [], "o": []}
    terms = []
    for k, (core, site) in enumerate(zip(cores, sides, strict=True)):
        own = []
        for side, size in zip(site, core.shape[1:-1], strict=True):
            own.append(Index(f"{side}{len(found[side]) + 1}", size))
            found[side].append(own[-1])
        terms.append(param(f"G{k + 1}", bonds[k - 1], *own, bonds[k]))
    return contract(*terms, out=(*found["i"], *found["o"]))


def _quimb_core(network: Any, site: int, operator: bool) -> np.ndarray:
    """The tensor of a site as (left, *modes, right)."""
    tensor, count = network[site], network.L
    own = (
        [network.lower_ind(site), network.upper_ind(site)] if operator else [network.site_ind(site)]
    )
    wanted: list[str | None] = [None, *own, None]
    if count > 1 and (site or network.cyclic):
        wanted[0] = network.bond((site - 1) % count, site)
    if count > 1 and (site < count - 1 or network.cyclic):
        wanted[-1] = network.bond(site, (site + 1) % count)
    array = as_array(tensor.data).transpose([tensor.inds.index(n) for n in wanted if n is not None])
    missing = [axis for axis in (0, len(wanted) - 1) if wanted[axis] is None]
    return np.expand_dims(array, tuple(missing))


def _finished(found: Found) -> Decomposition:
    format, ins, outs, cores = found
    network = format.network(ins, outs)
    shapes = {"in_shape": tuple(map(int, ins)), "out_shape": tuple(map(int, outs))}
    held = {name: np.ascontiguousarray(core) for name, core in cores.items()}
    if not all(np.isfinite(core).all() for core in held.values()):
        raise FormatError("a core holds NaN or infinite numbers", fix="repair the weight first")
    return Decomposition(format, network, held, error=0.0, details=shapes)
