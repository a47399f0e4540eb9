"""How a backend of arrays spells each operation: source text for operands that are source text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tncompiler.ir.program import Labels, Value
from tncompiler.ir.sizes import Size

# rows, terms and columns of a product; infinite where only a call tells
ProductShape = tuple[float, float, float]
Blocks = Sequence[Sequence[Size]]  # for each axis the sizes whose product it has


class Spelling(ABC):
    """What a backend says for itself; texts in, the text of the result out.

    ``axes`` are positions; ``dims`` are sizes as they stand between parentheses.
    """

    def in_place(self, function: str, texts: Sequence[str], out: str | None) -> str | None:
        """The call of a function that writes into an operand; None where there is none."""
        return None

    @staticmethod
    def parenthesize(text: str) -> str:
        return f"({text})" if (" " in text and not text.endswith(")")) or " @ " in text else text

    @abstractmethod
    def prelude(self) -> list[str]: ...

    @abstractmethod
    def template(self, name: str) -> str: ...

    @abstractmethod
    def import_for(self, name: str) -> None: ...

    @abstractmethod
    def scalar(self, number: str, dtype: str) -> str: ...

    @abstractmethod
    def result(self, value: Value) -> str: ...

    @abstractmethod
    def permute(self, text: str, axes: Sequence[int]) -> str: ...

    @abstractmethod
    def matmul(
        self,
        a: str,
        b: str,
        batched: bool,
        shape: ProductShape,
        *,
        long_k: bool,
        blocks: Blocks | None = None,
        out: str | None = None,
    ) -> str:
        """The product of two matrices or stacks of them; ``long_k``: its sums are long; ``blocks``:
        the sizes of each of its axes; ``out``: where it belongs, if a backend
        can put it there at once."""

    def outer(self, a: str, b: str, batched: bool, *, broad: bool) -> str:
        """Every element of a column times every one of a row; ``broad``: there are many."""
        return self.matmul(a, b, batched, (1, 1, 1), long_k=False)

    def dot(self, a: str, b: str) -> str:
        """The inner product of two vectors of at most `long_sum` elements."""
        return f"{a} @ {b}"

    def repeated(self, matrix: str, times: str) -> str:
        """The matrix that meets every matrix of the other operand."""
        return matrix

    @abstractmethod
    def is_long(self, length: float, rows: float, columns: float) -> bool:
        """Whether the library may add the terms of a product one after the other.

        ``length`` is the most it may sum, ``rows`` and ``columns`` the least it may give.
        """

    @abstractmethod
    def swap(self, text: str, batched: bool) -> str: ...

    @abstractmethod
    def sum(self, text: str, axes: Sequence[int], dtype: str, *, long: bool) -> str: ...

    @abstractmethod
    def reduce(self, text: str, name: str, axes: Sequence[int]) -> str: ...

    @abstractmethod
    def broadcast(self, text: str, dims: str) -> str: ...

    @abstractmethod
    def copy(self, text: str, out: str | None = None) -> str:
        """A copy without gaps; ``out`` as for `matmul`."""

    @abstractmethod
    def ones_of(self, sizes: Sequence[Size], dtype: str) -> str: ...

    @abstractmethod
    def arange(self, size: str) -> str: ...

    def ones(self, value: Value) -> str:
        return self.ones_of(value.shape, value.dtype)

    @abstractmethod
    def filled(self, value: Value, zeros: bool) -> str:
        """A new array of a value's shape and dtype: zeros, or anything."""

    @abstractmethod
    def diagonal(self, text: str, labels: Labels, distinct: Labels) -> str: ...

    @abstractmethod
    def embed(self, text: str, distinct: Labels, labels: Labels) -> str: ...

    @abstractmethod
    def pad(self, value: Value, axis: int, before: str, after: str) -> str: ...

    @abstractmethod
    def concat(self, parts: str, axis: int) -> str: ...

    @abstractmethod
    def stack(self, parts: str) -> str: ...

    def members(self, stack: str) -> str:
        """A stack as an iterable of its members."""
        return stack

    @abstractmethod
    def cast(self, text: str, dtype: str) -> str: ...

    def reshape(self, text: str, dims: str) -> str:
        return f"{text}.reshape({dims})" if dims else f"{text}.reshape(())"
