"""Memory does not grow: many calls of one module, many modules made and dropped."""

import subprocess
import sys

import pytest

_PRELUDE = """
import gc
import torch
import tncompiler as tnc

torch.set_num_threads(1)

def resident_mb():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def module(k, backend):
    b, i, o, r = tnc.indices(f"b i{k} o{k} r{k}", **{f"i{k}": 6 + k % 7, f"o{k}": 4, f"r{k}": 3})
    x = tnc.input("x", b, i)
    A, B = tnc.param(f"A{k}", i, r), tnc.param(f"B{k}", r, o)
    return tnc.compile(tnc.relu(tnc.contract(x, A, B, out=(b, o))), backend=backend)
"""

_CALLS = """
f = module(0, BACKEND)
def step(k):
    loss = f(torch.ones(1 + k % 5, 6)).square().sum()
    for p in f.parameters():
        p.grad = None
    loss.backward()
for k in range(1_000):
    step(k)
before = resident_mb()
for k in range(10_000):
    step(k)
print(resident_mb() - before)
"""

_MODULES = """
def cycle(k):
    module(k, BACKEND)(torch.ones(2 + k % 3, 6 + k % 7)).sum().backward()
for k in range(100):
    cycle(k)
before = resident_mb()
for k in range(1_000):
    cycle(100 + k)
print(resident_mb() - before)
"""

_LEAK = """
held = []
before = resident_mb()
for k in range(100):
    held.append(torch.ones(2**16))
print(resident_mb() - before)
"""


def growth_mb(code: str, backend: str = "auto") -> float:
    """What a script of its own process prints: its growth of resident memory in MiB."""
    text = _PRELUDE + code.replace("BACKEND", repr(backend))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_ten_thousand_steps_keep_their_memory(backend: str) -> None:
    assert growth_mb(_CALLS, backend) <= 1.0


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_thousand_modules_are_given_back(backend: str) -> None:
    assert growth_mb(_MODULES, backend) <= 50.0


def test_a_leak_would_be_seen() -> None:
    assert growth_mb(_LEAK) > 20.0
