"""The rest of a network around a core that stands in it once, as a factor."""

from __future__ import annotations

from tncompiler.ir.derivatives import environment
from tncompiler.ir.errors import FormatError, GradientError
from tncompiler.ir.expressions import Expr, Leaf, walk


def rest_of(network: Expr, core: Leaf) -> Expr:
    """The environment of a core, for networks that are linear in it.

    Raises: FormatError if the core occurs more than once or not as a factor.
    """
    uses = {n for n in walk(network) if isinstance(n, Leaf) and n.name == core.name}
    if len(uses) > 1:  # each use has an environment of its own, with the core in it
        raise _not_linear(core, f"it stands in {len(uses)} places", network.origin)
    try:
        return environment(network, core)
    except GradientError as error:
        raise _not_linear(core, error.what, error.where) from None


def _not_linear(core: Leaf, why: str, where: str | None) -> FormatError:
    return FormatError(
        f"the network is not linear in {core.name!r}: {why}",
        where=where,
        fix="give every core one place, as a factor of the network",
    )
