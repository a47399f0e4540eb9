"""Write docs/inside.md: docs/inside.template.md with what its snippets print.

make pages
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
for library in ("OMP", "OPENBLAS", "MKL"):  # programs differ with the threads that they may use
    os.environ[f"{library}_NUM_THREADS"] = "1"

from docs.snippets import run_page  # noqa: E402

NOTE = (
    "<!-- written by docs/build_inside.py from inside.template.md; do not edit it by hand -->\n\n"
)


def page() -> str:
    """The page, what each snippet prints after it."""
    path = HERE / "inside.template.md"
    text = path.read_text(encoding="utf-8")
    parts, start = [NOTE], 0
    for snippet, printed in run_page(path):
        parts.append(text[start : snippet.end])
        start = snippet.end
        if printed:
            parts.append(f"\n\n```text\n{printed.rstrip()}\n```")
    return "".join([*parts, text[start:]])


if __name__ == "__main__":
    (HERE / "inside.md").write_text(page(), encoding="utf-8")
