"""Gauges and spectra of every format, against singular values and terms of the dense weight."""

from collections.abc import Iterator
from typing import Any

import networkx as nx
import numpy as np
import pytest

import tncompiler as tnc
from tests.test_formats import fitting, make, oracle, random_cores
from tncompiler import formats
from tncompiler.formats.bonds import NetworkBond, Sites, keep_channels, scale_channels
from tncompiler.formats.gauge import canonical_cores, regauged_cores, spectra
from tncompiler.formats.joints import joints_of, with_bond
from tncompiler.ir.errors import FormatError, ShapeError, UnknownIndex

SHAPES = [((3, 4), (2, 5)), ((2, 3, 2), (4, 3))]
EXACT = {"TT", "TTMatrix", "Tucker", "HT", "LowRank", "Dense", "Custom"}  # trees of pairs


def cases() -> Iterator[Any]:
    for name in formats.FORMATS:
        for shapes in fitting(name, SHAPES):
            yield pytest.param(name, shapes, id=f"{name}-{shapes}")


def network(name: str, shapes: Any) -> tuple[Sites, dict[str, np.ndarray]]:
    expr = make(name, 3, clamp=True).network(*shapes)
    return Sites.of(expr), random_cores(expr)


def weight(sites: Sites, cores: Any) -> np.ndarray:
    return oracle(sites.network, cores)


def unfolded(sites: Sites, cores: Any, bond: NetworkBond) -> np.ndarray:
    """The weight as a matrix between the sides of a bond."""
    graph = sites.joined.copy()
    graph.remove_node(bond.name)
    side = nx.node_connected_component(graph, bond.ends[0].site)
    inside = {label for site in side if isinstance(site, int) for label in sites.inputs[site]}
    axes = [k for k, label in enumerate(sites.output) if label in inside]
    dense = weight(sites, cores)
    size = int(np.prod([dense.shape[k] for k in axes]))
    return np.moveaxis(dense, axes, range(len(axes))).reshape(size, -1)


def terms(sites: Sites, cores: Any, bond: NetworkBond) -> np.ndarray:
    """Norms of the terms that the weight is a sum of, by switching all other channels off."""
    alone = [np.eye(bond.size)[k] for k in range(bond.size)]
    made = (scale_channels(sites, cores, bond.name, factors) for factors in alone)
    return np.array([np.linalg.norm(weight(sites, each)) for each in made])


def random_gauge(bond: NetworkBond, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if not bond.joins_two:
        return rng.uniform(0.5, 2.0, bond.size)
    return rng.standard_normal((bond.size, bond.size)) + 2 * np.eye(bond.size)


@pytest.mark.parametrize("name, shapes", [*cases()])
def test_bonds_are_the_summed_indices_of_the_network(name: str, shapes: Any) -> None:
    sites, cores = network(name, shapes)
    for bond in sites.bonds:
        assert bond.ends and bond.movable
        for end in bond.ends:
            assert cores[end.core].shape[end.axis] == bond.size
    assert len({bond.name for bond in sites.bonds}) == len(sites.bonds)
    known = make(name, 3, clamp=True).bonds(formats.format.Modes.of(*shapes))
    assert {bond.name for bond in known} <= {bond.name for bond in sites.bonds}


@pytest.mark.parametrize("name, shapes", [*cases()])
def test_the_canonical_gauge_keeps_the_weight(name: str, shapes: Any) -> None:
    sites, cores = network(name, shapes)
    for center in (None, *cores):
        made = canonical_cores(sites, cores, center)
        assert {key: core.shape for key, core in made.items()} == {
            key: core.shape for key, core in cores.items()
        }
        dense = weight(sites, cores)
        np.testing.assert_allclose(weight(sites, made), dense, atol=1e-11 * np.abs(dense).max())


@pytest.mark.parametrize("name, shapes", [*cases()])
def test_spectra_do_not_depend_on_the_gauge(name: str, shapes: Any) -> None:
    sites, cores = network(name, shapes)
    before = spectra(sites, cores)
    for bond in sites.bonds:
        turned = regauged_cores(sites, cores, bond.name, random_gauge(bond))
        dense = weight(sites, cores)
        np.testing.assert_allclose(weight(sites, turned), dense, atol=1e-11 * np.abs(dense).max())
        if name == "BlockTerm":  # its terms mix what its pairs of cores share
            continue
        for other, after in spectra(sites, turned).items():
            wanted = before[other].values
            np.testing.assert_allclose(after.values, wanted, atol=1e-6 * wanted[0])


@pytest.mark.parametrize("name, shapes", [*cases()])
def test_spectra_are_singular_values_or_norms_of_terms(name: str, shapes: Any) -> None:
    sites, cores = network(name, shapes)
    found = spectra(sites, cores)
    for bond in sites.bonds:
        spectrum = found[bond.name]
        assert (np.diff(spectrum.values) <= 1e-12 * spectrum.values[0]).all()
        if spectrum.is_sum:
            wanted = np.sort(terms(sites, cores, bond))[::-1]
        elif spectrum.exact:
            wanted = np.linalg.svd(unfolded(sites, cores, bond), compute_uv=False)
            wanted = np.pad(wanted, (0, max(0, bond.size - len(wanted))))[: bond.size]
        else:  # of the weight's norm
            assert name not in EXACT
            norm = np.linalg.norm(spectrum.values)
            np.testing.assert_allclose(norm, np.linalg.norm(weight(sites, cores)))
            continue
        np.testing.assert_allclose(spectrum.values, wanted, atol=1e-7 * wanted[0])
    if name in EXACT:
        assert all(spectrum.exact for spectrum in found.values())


@pytest.mark.parametrize("name, shapes", [*cases()])
def test_canonical_channels_are_ordered_and_orthogonal(name: str, shapes: Any) -> None:
    sites, cores = network(name, shapes)
    made = canonical_cores(sites, cores)
    for bond, spectrum in zip(sites.bonds, spectra(sites, made).values(), strict=True):
        if spectrum.exact and (sites.is_tree or len(sites.bonds) == 1):
            np.testing.assert_allclose(
                terms(sites, made, bond), spectrum.values, atol=1e-7 * spectrum.values[0]
            )


def test_all_cores_but_the_center_are_isometries() -> None:
    sites, cores = network("TT", ((3, 4), (2, 5)))
    made = canonical_cores(sites, cores, "G2")
    first = made["G1"]
    np.testing.assert_allclose(first.T @ first, np.eye(3), atol=1e-12)
    for later in (made["G3"].reshape(3, -1), made["G4"]):
        rows = later @ later.T
        np.testing.assert_allclose(rows, np.eye(len(rows)), atol=1e-7)
    norm = np.linalg.norm(weight(sites, cores))
    np.testing.assert_allclose(np.linalg.norm(made["G2"]), norm)


def test_signs_are_fixed() -> None:
    """Channels of a network and of its gauge are the same ones, number by number."""
    for name in ("TT", "CP", "Tucker"):
        sites, cores = network(name, ((3, 4), (2, 5)))
        turned = cores
        for bond in sites.bonds:
            turned = regauged_cores(sites, turned, bond.name, random_gauge(bond))
        one, other = canonical_cores(sites, cores), canonical_cores(sites, turned)
        for key in cores:
            np.testing.assert_allclose(one[key], other[key], atol=1e-6 * np.abs(one[key]).max())


def test_complex_cores() -> None:
    sites, cores = network("TT", ((3, 4), (2, 5)))
    rng = np.random.default_rng(2)
    cores = {name: core + 1j * rng.standard_normal(core.shape) for name, core in cores.items()}
    made = canonical_cores(sites, cores)
    dense = weight(sites, cores)
    np.testing.assert_allclose(weight(sites, made), dense, atol=1e-11 * np.abs(dense).max())
    found = spectra(sites, cores)["r2"]
    wanted = np.linalg.svd(unfolded(sites, cores, sites.bond("r2")), compute_uv=False)[:3]
    np.testing.assert_allclose(found.values, wanted)


def test_channels_that_carry_nothing_come_last_and_count_nothing() -> None:
    sites, cores = network("TT", ((3, 4), (2, 5)))
    cores["G1"][:, 0] = 0
    found = spectra(sites, cores)["r1"]
    assert found.values[-1] < 1e-6 * found.values[0] and found.discarded(2) < 1e-6
    made = canonical_cores(sites, cores)
    np.testing.assert_allclose(weight(sites, made), weight(sites, cores), atol=1e-11)
    fewer = keep_channels(sites, made, {"r1": [0, 1]})
    joint = joints_of(sites.network)["r1"]
    kept = Sites.of(with_bond(sites.network, joint, 2))
    np.testing.assert_allclose(weight(kept, fewer), weight(sites, cores), atol=1e-6)


def test_zero_weights_have_a_canonical_gauge() -> None:
    sites, cores = network("TT", ((3, 4), (2, 5)))
    zeros = {name: np.zeros_like(core) for name, core in cores.items()}
    made = canonical_cores(sites, zeros)
    assert all(np.isfinite(core).all() and not core.any() for core in made.values())
    assert spectra(sites, zeros)["r1"].entropy == 0.0


def test_entropy_and_rank_of_equal_channels() -> None:
    r = tnc.Index("r", 4)
    i, o = tnc.indices("i o", size=4)
    sites = Sites.of(tnc.param("A", i, r) @ tnc.param("B", r, o))
    found = spectra(sites, {"A": np.eye(4), "B": 2 * np.eye(4)})["r"]
    np.testing.assert_allclose(found.values, 2.0)
    np.testing.assert_allclose([found.entropy, found.effective_rank], [np.log(4), 4])
    np.testing.assert_allclose(found.discarded(1), np.sqrt(3) / 2)


def test_shared_cores_and_unknown_names_are_refused() -> None:
    a, b, c = tnc.indices("a b c", size=3)
    core = tnc.param("A", a, b)
    shared = Sites.of(core @ core(b, c))
    with pytest.raises(FormatError, match="stands at several places"):
        canonical_cores(shared, {"A": np.eye(3)})
    assert spectra(shared, {"A": np.diag([3.0, 2.0, 1.0])})["b"].values == pytest.approx([9, 4, 1])
    sites, cores = network("TT", ((3, 4), (2, 5)))
    with pytest.raises(UnknownIndex, match="name one of r1, r2, r3"):
        sites.bond("s")
    with pytest.raises(UnknownIndex, match="channels are 0 to 2"):
        sites.bond("r1").check_channels(3)
    with pytest.raises(UnknownIndex, match="name one of G1, G2, G3, G4"):
        canonical_cores(sites, cores, "G9")
    for gauge in (np.ones((2, 2)), np.zeros((3, 3)), np.ones(2), "no"):
        with pytest.raises(ShapeError):
            regauged_cores(sites, cores, "r1", gauge)
    ring, cores = network("CP", ((3, 4), (2, 5)))
    with pytest.raises(FormatError, match="only scales"):
        regauged_cores(ring, cores, "r", np.eye(3))


def test_networks_that_are_more_than_one_contraction_are_refused() -> None:
    i, j, r, o = tnc.indices("i j r o", i=2, j=2, r=3, o=2)
    for first in (tnc.relu(tnc.param("A", i, r)), 0.5 * tnc.param("A", i, r)):
        with pytest.raises(FormatError, match="more than one contraction"):
            Sites.of(first @ tnc.param("B", r, o))
    tied = (tnc.param("A", i, j, r), tnc.delta(i, j), tnc.param("B", r, o))
    with pytest.raises(FormatError, match="beside its cores"):
        Sites.of(tnc.contract(*tied, out=(i, o)))


def test_spectra_see_a_wrong_gauge() -> None:
    sites, cores = network("TT", ((3, 4), (2, 5)))
    wrong = {**cores, "G1": cores["G1"] * np.array([1.0, 2.0, 3.0])}
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            spectra(sites, wrong)["r1"].values, spectra(sites, cores)["r1"].values, rtol=1e-3
        )
