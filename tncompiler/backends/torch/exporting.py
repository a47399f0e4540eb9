"""Whether torch.export traces."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """As torch.compiler.is_exporting, which torch 2.6 lacks and whose answer in traces of
    torch.compile is always true before 2.13: here it is asked outside of the trace."""
    known = getattr(torch.compiler, "is_exporting", None)
    return bool(known() if known else torch.compiler.is_compiling())  # 2.6: only exports set it


# what torch.compiler.assume_constant_result sets, after loading a compiler that few need
is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]
