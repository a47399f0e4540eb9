"""Facts about the machine and what is installed on it, for the record."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import threadpoolctl

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = (
    *("numpy", "torch", "scipy", "opt_einsum", "cotengra", "cotengrust"),
    *("tensorly", "tensorly-torch", "tensorkrowch", "tednet", "torchTT"),
)


def machine_facts(threads: int) -> dict[str, Any]:
    """cpu, cores, threads, load, versions, kernels of BLAS, commit and date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_1min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "blas": _blas(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _commit() -> str:
    """The commit, with a plus where the checkout differs from it."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _blas() -> list[str]:
    """The BLAS libraries that are loaded, each with the core that its kernels are for."""
    return [
        " ".join(str(library.get(key) or "") for key in ("internal_api", "version", "architecture"))
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    ]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
