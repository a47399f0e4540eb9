"""What traces, asked outside of the trace: inside, older versions of torch cannot say."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """As torch.compiler.is_exporting, which torch 2.6 lacks and whose answer in traces of
    torch.compile is always true before 2.13."""
    known = getattr(torch.compiler, "is_exporting", None)
    return bool(known() if known else torch.compiler.is_compiling())  # 2.6: only exports set it


def transforms() -> int:
    """How many transforms of torch.func are being applied, one inside of the other."""
    return int(torch._C._functorch.get_dynamic_layer_stack_depth())


# what torch.compiler.assume_constant_result sets, after loading a compiler that few need: then
# torch.compile calls these where it meets them, instead of looking inside
is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]
transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]
