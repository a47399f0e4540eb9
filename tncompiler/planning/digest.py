"""What a logical program computes, as a digest: plans are told apart, and looked up, by it."""

from __future__ import annotations

from hashlib import blake2b

from tncompiler.ir.program import Program
from tncompiler.ir.sizes import size_text


def program_digest(program: Program) -> str:
    """What a logical program computes, blind to index names and dtypes."""
    numbers = {name: number for number, name in enumerate(program.values)}
    content = [
        tuple((a.value.name, tuple(map(size_text, a.value.shape))) for a in program.arguments),
        tuple((repr(s.op), tuple(numbers[n] for n in s.operands)) for s in program.steps),
        tuple(numbers[name] for name in program.outputs),
    ]
    return blake2b(repr(content).encode(), digest_size=16).hexdigest()
