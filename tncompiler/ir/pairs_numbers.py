"""Leading directions of a bond in numbers, in double precision, for NumPy and torch alike.

``linalg`` and the arrays' own methods are all that is asked of a library.
"""

from __future__ import annotations

from typing import Any

_SMALLEST = 1e-12  # of the largest eigenvalue: what is below is no direction of the left part
_BROAD = 1e-12  # relative to the largest λ²: differences of λ below its root do not count


def _transposed(a: Any) -> Any:
    return a.swapaxes(-1, -2)


class Spectrum:
    """All directions of a bond, the largest λ first, and which of the first `count` are kept."""

    def __init__(self, np: Any, left: Any, right: Any, count: int, cutoff: float) -> None:
        self.left, self.right, self.count = left, right, count
        values, vectors = np.linalg.eigh((left + _transposed(left)) / 2)
        top = values[..., -1:]
        known = values > _SMALLEST * top
        safe = np.where(known, values, np.where(top > 0, top, top + 1.0))
        root = np.sqrt(safe) * known
        half = (vectors * root[..., None, :]) @ _transposed(vectors)
        inverse = (vectors * (known / np.sqrt(safe))[..., None, :]) @ _transposed(vectors)
        whole = half @ ((right + _transposed(right)) / 2) @ half
        squares, turned = np.linalg.eigh(whole)
        order = list(range(left.shape[-1]))[::-1]
        self.squares, turned = squares[..., order], turned[..., order]
        self.x, self.y = inverse @ turned, half @ turned
        limit = self.squares[..., :1] * max(cutoff * cutoff, _SMALLEST)
        kept = self.squares[..., :count] > limit
        self.kept = kept * (self.squares[..., :count] * 0 + 1)
        self.value = self.x[..., :count] * self.kept[..., None, :]

    def gradients(self, np: Any, cotangent: Any) -> tuple[Any, Any]:
        """By left and right. Directions that are both kept turn into each other without a change of
        what is truncated, so equal singular values of theirs do no harm; of others, differences
        are broadened."""
        weights = _transposed(self.x) @ (cotangent * self.kept[..., None, :])
        inside = weights[..., : self.count, :] * self.kept[..., :, None]
        x, y = self.x[..., : self.count], self.y[..., : self.count]
        by_left = -0.5 * x @ inside @ _transposed(x)
        gaps = self.squares[..., None, : self.count] - self.squares[..., self.count :, None]
        broad = _BROAD * self.squares[..., :1, None] ** 2
        outside = weights[..., self.count :, :] * gaps / (gaps * gaps + broad + (broad == 0))
        rest = self.y[..., self.count :]
        by_left = by_left + self.right @ rest @ outside @ _transposed(x)
        by_right = rest @ outside @ _transposed(y)
        return (by_left + _transposed(by_left)) / 2, (by_right + _transposed(by_right)) / 2
