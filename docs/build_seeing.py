"""Draw the pictures of docs/seeing.md, and take that of the explorer if chromium is installed.

make pages
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
sys.path.insert(0, str(HERE.parent))

import tncompiler as tnc  # noqa: E402
from examples.quickstart import layer  # noqa: E402
from tests.networks_to_see import lattice  # noqa: E402

WINDOW = "1120,1230"


def draw_all() -> None:
    """Every picture of the page."""
    network = tnc.compile(layer, framework="numpy", seed=0)
    for what in ("network", "tree", "memory", "family"):
        save(network.draw(what), what)
    save(network.draw("roofline", part="step"), "roofline")
    save(network.draw("network", without="G1"), "without")
    save(tnc.compile(lattice(3, 4), framework="numpy", seed=0).draw(), "lattice")
    weight = tnc.formats.HT(rank=3).network((4, 4, 4), (4, 4, 4))
    save(tnc.compile(weight, framework="numpy", seed=0).draw(), "ht")


def save(ax: Any, name: str) -> None:
    ax.figure.savefig(PICTURES / f"see_{name}.png", dpi=110)


def photograph() -> None:
    """The explorer in training, at a step."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("chromium is not installed: docs/pictures/explorer.png stays as it is")
        return
    with tempfile.TemporaryDirectory() as folder:
        page = tnc.compile(layer, framework="numpy", seed=0).to_html(Path(folder) / "page.html")
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        target = f"--screenshot={PICTURES / 'explorer.png'}"
        wait = "--virtual-time-budget=4000"
        window = f"--window-size={WINDOW}"
        command = [chromium, *arguments, window, wait, target, page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    draw_all()
    photograph()
