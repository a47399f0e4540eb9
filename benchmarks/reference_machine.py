"""Measure the committed table again: tncompiler/planning/machines/reference.json.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE \\
        OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \\
        .venv/bin/python -m benchmarks.reference_machine --passes 5 --pause 60

One thread, and the kernels that OpenBLAS chooses itself: variables may ask for those of an older
core. Several passes spread over minutes, of which the least time of each operation counts: a shared
machine is quiet now and then.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.run import set_threads
from tncompiler.calibration import CALL_US, CONVOLUTIONS, Times, library_of, measure_times
from tncompiler.planning.machine import load_machine

TABLE = Path(__file__).parent.parent / "tncompiler/planning/machines/reference.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--pause", type=float, default=60.0, metavar="SECONDS")
    options = parser.parse_args()
    set_threads(1)
    found: dict[str, Times] = {name: {} for name in CALL_US}
    for number in tqdm(range(options.passes), desc="passes"):
        if number:
            time.sleep(options.pause)
        for name, times in found.items():
            for key, us in measure_times(name, progress=False).items():
                times[key] = min(us, times.get(key, us))
    libraries = {
        name: replace(library_of(times, CALL_US[name]), convolutions=CONVOLUTIONS[name])
        for name, times in found.items()
    }
    renewed = replace(load_machine("reference"), libraries=libraries)
    TABLE.write_text(renewed.to_json() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
