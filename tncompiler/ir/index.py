"""Named indices."""

from __future__ import annotations

from dataclasses import dataclass

from tncompiler.ir.errors import BadName, UnknownIndex
from tncompiler.ir.names import check_index_name
from tncompiler.ir.origin import call_site
from tncompiler.ir.sizes import Size, as_size, render_size, size_symbol


@dataclass(frozen=True, slots=True)
class Index:
    """A named index: equal to another when name and size are equal.

    ``size`` is an int or a positive sympy integer expression; an index made without one gets a
    symbol of its own name.
    """

    name: str
    size: Size = None

    def __post_init__(self) -> None:
        check_index_name(self.name)
        size = size_symbol(self.name) if self.size is None else as_size(self.size, repr(self.name))
        object.__setattr__(self, "size", size)

    def __repr__(self) -> str:
        return f"Index({self.name!r}, {render_size(self.size)})"

    def __str__(self) -> str:
        return f"{self.name}:{render_size(self.size)}"


def indices(names: str, /, size: object = None, **sizes: object) -> tuple[Index, ...]:
    """Indices from names separated by blanks or commas.

    >>> b, i, r = indices("b i r", i=8)

    ``sizes`` gives the size of an index by name, ``size`` that of all others; what has none gets
    a symbol of its own. Raises BadName, BadSize, or UnknownIndex for a size without an index.
    """
    words = names.replace(",", " ").split() if isinstance(names, str) else []
    if not words:
        raise BadName(
            "no index names given", where=call_site(), fix="write tnc.indices('b i j', i=4)"
        )
    unknown = sorted(set(sizes) - set(words))
    if unknown:
        raise UnknownIndex(
            f"a size is given for {', '.join(map(repr, unknown))}, which is not among {words}",
            where=call_site(),
            fix="name the index, or drop its size",
        )
    return tuple(Index(word, sizes.get(word, size)) for word in words)
