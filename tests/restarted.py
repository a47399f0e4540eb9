"""What torchrun starts in a test: a long sum in which rank 1 is killed once, at its tenth slice."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.test_distributed_checkpoints import KILLED_AT, Counter, arrays, bits, long_sum


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, attempt = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    counter = Counter(KILLED_AT if (rank, attempt) == (1, 0) else None, die)
    made = long_sum(str(folder / "slices"), counter, dist.group.WORLD, lost_after_s=3.0)(*arrays())
    found = {
        "attempt": attempt,
        "bits": bits(made).hex(),
        "done": len(counter.seen),
        "total": counter.seen[-1].total if counter.seen else 0,
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
