"""A process that runs trials: `python -m tncompiler.planning.worker`.

In: on the first line a network and an objective, on each further line a trial, all as JSON. Out:
for each trial a line an order, as soon as it is found, then null.
"""

from __future__ import annotations

import json
import sys
from typing import IO

from tncompiler.planning.hyper import network_from, run_trial, trial_from


def serve(reader: IO[str], writer: IO[str]) -> None:
    """Answer trials until there are no more."""
    work = json.loads(reader.readline())
    network, minimize = network_from(work["network"]), work["minimize"]
    for line in reader:
        for order in run_trial(network, minimize, trial_from(json.loads(line))):
            print(json.dumps(order), file=writer, flush=True)
        print("null", file=writer, flush=True)


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
