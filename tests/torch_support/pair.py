"""Two processes for the checks of `distributed.py`: started once, they run cell after cell.

`python -m tests.torch_support.pair FOLDER RANK CELL…` is one of them. Every cell has a process
group of its own, so that one that fails leaves the next alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from tests.conftest import ROOT

WORLD = 2
PATIENCE = timedelta(seconds=30)  # how long a process waits for the other
FINE = ""


def run_pair(cells: Iterable[str], folder: Path) -> dict[str, str]:
    """What each cell raises in either process, as text; empty where all is right."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "TRITON_INTERPRET": "1"}
    environment["OMP_NUM_THREADS"] = "1"
    names = [*cells]
    command = [sys.executable, "-m", "tests.torch_support.pair", str(folder)]
    children = [
        subprocess.Popen([*command, str(rank), *names], cwd=ROOT, env=environment)
        for rank in range(WORLD)
    ]
    while None in (statuses := [child.poll() for child in children]) and not any(statuses):
        time.sleep(0.1)
    if any(statuses):  # the other one may wait for ever
        for child in children:
            child.kill()
        raise RuntimeError(f"processes ended with {statuses}")
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]
    return {name: "\n".join(filter(None, (one[name] for one in found))) for name in names}


def _run(folder: Path, rank: int, names: list[str]) -> None:
    """One process: every cell in turn, then a file of what they raised."""
    import torch

    from tests.torch_support.table import cell_named

    torch.set_num_threads(1)
    found = {}
    for number, name in enumerate(names):
        transform, cell = cell_named(name)
        try:
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store{number}",
                rank=rank,
                world_size=WORLD,
                timeout=PATIENCE,
            )
            transform.check(cell)
            torch.distributed.barrier()
            found[name] = FINE
        except Exception:
            found[name] = f"rank {rank}: {traceback.format_exc()}"
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _run(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
