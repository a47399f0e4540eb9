"""Whether torch.export traces. torch 2.6 cannot tell: there every trace counts as an export."""

from __future__ import annotations

import torch

is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
