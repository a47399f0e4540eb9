"""Write docs/torch-support.md from the tests' table and docs/torch_training.json.

python docs/build_torch_support.py          (at once: every cell is a test of its own)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.torch_support.cells import Cell  # noqa: E402
from tests.torch_support.subjects import BACKENDS, SUBJECTS  # noqa: E402
from tests.torch_support.table import CELLS, SECTIONS, TRANSFORMS, Transform  # noqa: E402

HEAD = """# What torch can do to a compiled network

Every cell is a test (`tests/test_torch_support.py`): the transform is applied to a network that was
compiled for the backend and to the same function in plain torch, and values and derivatives agree;
or it raises the error that the cell names. Nothing is silently zero, silently constant, or silently
computed with a dense weight. `python docs/build_torch_support.py` writes this page from the table
of those tests, and a test holds it against them.

Columns: a *program* of cores with a bias, a function and a constant; the *layer* `tnc.nn.Linear`;
the *convolution* `tnc.nn.Conv2d`; causal *attention* with projections; a *scan* (an Elman network).
Each cell has a mark for {backends}, in this order; Triton's kernels run under its interpreter.

{cells} cells, of which {working} work and {refused} raise an error that says so.
"""
REFUSALS = """
## Errors

| mark | where | error | it says | what helps |
|---|---|---|---|---|
{rows}
"""
COMPILED = """
## What torch.compile makes

Code that torch.compile made is differentiated once. A second backward pass through it raises, an
error of ours where the network runs as an operator (numpy, triton), torch's own where it is aten
code, for which AOTAutograd raises before anything of ours runs. One second pass does not raise, for
modules of plain torch neither (torch 2.10 to 2.14): if the loss is linear in what aten code gives
(`compiled(x).sum()`) and the second derivatives are asked for by `torch.autograd.grad(…, x)`, the
compiled part may count as constant; operators raise. After a plain `backward()` compiled code may
refuse `create_graph=True` from the first pass on ("donated buffers"). Derivatives that are taken
inside of what is compiled, by `torch.func`, are right to any order.

What training keeps is what eager training keeps. With free sizes (`dynamic=True`, or once torch has
seen a second batch size) one plan serves all: that of the largest sizes that were traced, so that
smaller batches keep no more than the largest, and larger ones may keep more than eager code does.
Compile with a batch of full size first. Before torch 2.13 the plan is that of 128 rows. Operators
keep nothing but their inputs, and plan each size.
"""
VERSIONS = """
## Versions

`make matrix-torch ARGS=--any-build` runs the tests of this page that are not slow with other
versions. Runs of 2026-11-26, as the code is but for 2.8, which ran before the last changes:

| torch | Python | passed | failed |
|---|---|--:|--:|
| 2.14.1 | 3.12 | 1191 | 0 |
| 2.10.0, without Triton | 3.11 | 820 | 2 |
| 2.8.0, without Triton | 3.11 | 779 | 21 |
| 2.6.0, without Triton | 3.11 | 771 | 52 |

2.10: einsum traced with dynamo's older rules. 2.8: ten of FSDP2's mixed precision, five of
DTensors, attention compiled for free sizes; four were mended and not run again.
2.6: 40 of FSDP2 and DTensors (torch's FSDP2 asks a CPU for streams of a GPU, its DTensors
cannot select), attention compiled or exported at free sizes, einsum traced with dynamo's older
rules, and compiled training has one plan for all sizes, as a trace cannot say which are fixed; two
were mended and not run again. Triton is too old there for our kernels.
Equal layers are compiled once from 2.13 on. torch 2.15 was not to be had.
"""
TRAINING = """
## A training run

`python examples/distributed_language_model.py` trains the tensorized causal language model
(TT-matrices of rank 8 in every weight, its blocks compiled one by one) {steps} steps on the topics
of Python's help. Each of two gloo processes takes half of every batch. Curves are compared with the
plain process after a running mean over ten steps.

| how | first loss | last ten | largest difference from plain |
|---|--:|--:|--:|
{rows}

![Loss curves](pictures/torch_training.png)
"""


def mark(transform: Transform, cell: Cell, known: dict[str, str]) -> str:
    """✓, or the number of the error."""
    refusal = transform.refusal(cell)
    if refusal is None:
        return "✓"
    says = refusal.says.replace("|", "·")
    key = f"{transform.name} | `{refusal.error}` | {says} | {refusal.mend}"
    return known.setdefault(key, f"({len(known) + 1})")


def table(rows: tuple[Transform, ...], known: dict[str, str]) -> str:
    heads = ["transform", *(subject.name for subject in SUBJECTS)]
    lines = [heads, ["---", *[":-:"] * len(SUBJECTS)]]
    for transform in rows:
        cells = [
            " ".join(mark(transform, Cell(subject, backend), known) for backend in BACKENDS)
            for subject in SUBJECTS
        ]
        lines.append([transform.name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def training_section(record: Mapping[str, Any]) -> str:
    rows = [
        f"| {run['name']} | {run['losses'][0]:.4f} | {run['last']:.4f} | {run['difference']:.4f} |"
        for run in record["runs"]
    ]
    return TRAINING.format(steps=record["steps"], rows="\n".join(rows))


def page(record: Mapping[str, Any] | None) -> str:
    """The whole page."""
    known: dict[str, str] = {}
    sections = [f"\n## {title}\n\n{table(rows, known)}\n" for title, rows in SECTIONS.items()]
    pairs = [(transform, cell) for transform in TRANSFORMS.values() for cell in CELLS]
    refused = sum(transform.refusal(cell) is not None for transform, cell in pairs)
    counts = dict(cells=len(pairs), refused=refused, working=len(pairs) - refused)
    text = HEAD.format(backends=", ".join(BACKENDS), **counts) + "".join(sections)
    if known:
        rows = "\n".join(f"| {number} | {key} |" for key, number in known.items())
        text += REFUSALS.format(rows=rows)
    text += COMPILED + VERSIONS
    return text + (training_section(record) if record else "")


def read_record() -> Mapping[str, Any] | None:
    path = HERE / "torch_training.json"
    found: Mapping[str, Any] | None = None
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    (HERE / "torch-support.md").write_text(page(read_record()), encoding="utf-8")


if __name__ == "__main__":
    main()
