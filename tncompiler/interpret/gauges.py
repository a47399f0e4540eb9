"""Bonds of layers: what they are, what they carry, and the gauge in which that can be read."""

from __future__ import annotations

from typing import Any

from tncompiler.formats.bonds import NetworkBond
from tncompiler.formats.gauge import Spectrum, canonical_cores, regauged_cores, spectra
from tncompiler.formats.weights import check_finite
from tncompiler.interpret.layers import check_layer, cores_of, sites_of, with_cores


def bonds(layer: Any) -> dict[str, NetworkBond]:
    """The bonds of a layer's weight by name: sizes, and the cores that they join.

    Raises: ArgumentError for what is no tensorized layer of one weight; FormatError for a weight
    that is more than one contraction.
    """
    return {bond.name: bond for bond in sites_of(layer).bonds}


def spectrum(layer: Any, bond: str | None = None) -> Any:
    """The `Spectrum` of a bond, or those of all bonds by name: singular values and entropy.

    Cost: contractions of cores with themselves; no dense weight is made. Singular values below
    3e-8 of the largest are rounding. Raises: UnknownIndex for a bond that there is not; FormatError
    for cores with NaN or infinity.
    """
    sites = sites_of(layer)
    if bond is not None:
        sites.bond(bond)
    cores = cores_of(layer)
    check_finite(cores, str(layer))
    found: dict[str, Spectrum] = spectra(sites, cores)
    return found if bond is None else found[bond]


def canonicalize(layer: Any, center: str | None = None) -> Any:
    """A copy of the layer that computes the same, with channels ordered, orthogonal, of fixed sign.

    Channel k of a bond then is the k-th singular direction there, so that channels of two layers,
    or of one layer trained twice, can be compared. ``center``: the core that takes the singular
    values, all others being isometries towards it; None shares them evenly. On bonds of three
    cores or more, terms are ordered by norm.
    Raises: FormatError for shared or constant cores, and for NaN or infinity in them; UnknownIndex
    for a center that is no core.
    """
    cores = cores_of(check_layer(layer))
    check_finite(cores, str(layer))
    return with_cores(layer, canonical_cores(sites_of(layer), cores, center))


def regauge(layer: Any, bond: str, matrix: Any) -> Any:
    """A copy of the layer that computes the same, with a matrix and its inverse put on a bond.

    ``matrix``: (channels, channels), or (channels,) for scales. Raises: ShapeError for others and
    for matrices without an inverse; UnknownIndex; FormatError where none can stand.
    """
    held = cores_of(check_layer(layer))
    return with_cores(layer, regauged_cores(sites_of(layer), held, bond, matrix))
