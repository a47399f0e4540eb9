"""How torch's programs add up long sums: by blocks, where the library would lose digits.

More positive terms than LONG_SUM, added one by one, may leave the error bound (3.6 deviations: a
split costs torch 10 to 20 us, and gains as much from 2,048 terms on). MKL adds so in products with
a side of less than NARROW.
"""

from __future__ import annotations

LONG_SUM = 512
NARROW = 12
# so many blocks of LONG_SUM terms and fewer are added up one after another
IN_TURN, STACKS_IN_TURN = 2, 4
_BLOCKS, BLOCK = 16, 4096  # at least so many blocks, and of about so many terms


def cut(length: int) -> tuple[int, int, int]:
    """Number of blocks, terms in a block, and how many terms they cover together."""
    blocks = max(_BLOCKS, length // BLOCK)
    return blocks, length // blocks, length // blocks * blocks
